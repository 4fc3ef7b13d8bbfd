//! The table of all metrics: name, type, buckets and meaning, each once.
//!
//! Names, types, labels and buckets are etcd's, for the dashboards and alerts that use them; the
//! help texts are ours. Some families count what happens only in a cluster, or what never happens
//! here (bbolt's rebalancing, the v2 store, the gRPC proxy): they stay at zero, because a dashboard
//! distinguishes a series at zero from a missing one.
//! A name of ours begins with `etched_`.

use std::time::Duration;

use super::cell::{Counter, Gauge, Histogram, Shape};
use super::text::{Exposition, Family, Kind};
use crate::types::MemberId;

const fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Disk writes and other steps of a request.
const STEP: Shape = Shape::seconds(ms(1), 14);
/// Work inside the state machine.
const FAST_STEP: Shape = Shape::seconds(us(100), 20);
const HASH: Shape = Shape::seconds(ms(10), 15);
/// A transfer of a state between members.
const TRANSFER: Shape = Shape::seconds(ms(100), 10);
/// Prometheus' default bounds.
const CALL: Shape = Shape::listed_seconds(&[
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
]);

/// Builds the cells, the figures of a scrape and the list of families from one table.
macro_rules! table {
    (
        counters { $($counter:ident = $counter_name:literal, $counter_help:literal;)* }
        gauges { $($gauge:ident = $gauge_name:literal, $gauge_help:literal;)* }
        histograms { $($histogram:ident($shape:expr) = $histogram_name:literal, $histogram_help:literal;)* }
        scraped { $($figure:ident: $figure_kind:ident = $figure_name:literal, $figure_help:literal;)* }
        labelled { $($family:ident: $kind:ident $(($labelled_shape:expr))? = $name:literal, $help:literal;)* }
    ) => {
        /// The cells of the series without labels.
        pub struct Unlabelled {
            $(pub $counter: Counter,)*
            $(pub $gauge: Gauge,)*
            $(pub $histogram: Histogram,)*
        }

        impl Default for Unlabelled {
            fn default() -> Self {
                Self {
                    $($counter: Counter::default(),)*
                    $($gauge: Gauge::default(),)*
                    $($histogram: Histogram::new($shape),)*
                }
            }
        }

        impl Unlabelled {
            pub(super) fn expose(&self, scrape: &Scrape, page: &mut Exposition) {
                $(page.number(
                    &family($counter_name, $counter_help, Kind::Counter),
                    &[],
                    self.$counter.get() as f64,
                );)*
                $(page.number(
                    &family($gauge_name, $gauge_help, Kind::Gauge),
                    &[],
                    self.$gauge.get() as f64,
                );)*
                $(page.histogram(
                    &family($histogram_name, $histogram_help, Kind::Histogram),
                    &[],
                    self.$histogram.read(),
                );)*
                $(if let Some(value) = scrape.$figure {
                    page.number(
                        &family($figure_name, $figure_help, Kind::$figure_kind),
                        &[],
                        value,
                    );
                })*
            }
        }

        /// Values read from the member and the machine at a scrape. What is `None` is not shown.
        #[derive(Clone, Debug, Default)]
        pub struct Scrape {
            $(#[doc = $figure_help] pub $figure: Option<f64>,)*
            /// The version agreed upon, such as `3.7.0`.
            pub cluster_version: Option<String>,
            /// The members, this one included.
            pub members: Vec<MemberId>,
            /// Those that were removed.
            pub removed: Vec<MemberId>,
            /// The alarms that are active: whose, and their kind in etcd's words.
            pub alarms: Vec<(MemberId, &'static str)>,
            /// Of each part of the memory budget: its name, and the bytes that it holds and may
            /// hold.
            pub memory: Vec<(&'static str, u64, u64)>,
        }

        #[cfg(test)]
        impl Scrape {
            /// A scrape in which every figure is there.
            pub(super) fn filled(value: f64) -> Self {
                Self {
                    $($figure: Some(value),)*
                    ..Default::default()
                }
            }
        }

        $(pub(super) const $family: Family = {
            #[allow(unused_mut)]
            let mut found = family($name, $help, Kind::$kind);
            $(found.shape = Some($labelled_shape);)?
            found
        };)*

        /// Name and type of every family.
        #[cfg(test)]
        pub(super) const FAMILIES: &[(&str, Kind)] = &[
            $(($counter_name, Kind::Counter),)*
            $(($gauge_name, Kind::Gauge),)*
            $(($histogram_name, Kind::Histogram),)*
            $(($figure_name, Kind::$figure_kind),)*
            $(($name, Kind::$kind),)*
        ];
    };
}

const fn family(name: &'static str, help: &'static str, kind: Kind) -> Family {
    Family {
        name,
        help,
        kind,
        shape: None,
    }
}

table! {
    counters {
        leader_changes = "etcd_server_leader_changes_seen_total", "Leaders seen so far, the first included.";
        learner_promote_successes = "etcd_server_learner_promote_successes", "Learners that this member promoted as leader.";
        heartbeat_send_failures = "etcd_server_heartbeat_send_failures_total", "Heartbeats that this member sent late as leader, mostly for a slow disk.";
        proposals_failed = "etcd_server_proposals_failed_total", "Proposals that were refused by raft or not answered in time.";
        slow_applies = "etcd_server_slow_apply_total", "Requests whose apply took longer than the warning limit.";
        slow_read_indexes = "etcd_server_slow_read_indexes_total", "Linearizable reads that were not confirmed in time.";
        read_indexes_failed = "etcd_server_read_indexes_failed_total", "Linearizable reads that were refused or dropped.";
        health_success = "etcd_server_health_success", "Requests of /health answered with health true.";
        health_failures = "etcd_server_health_failures", "Requests of /health answered with health false.";
        grpc_sent_bytes = "etcd_network_client_grpc_sent_bytes_total", "Bytes sent to clients by HTTP/2, frames and headers included, before they are encrypted; etcd counts the messages alone.";
        grpc_received_bytes = "etcd_network_client_grpc_received_bytes_total", "Bytes received from clients by HTTP/2, frames and headers included, after they are decrypted; etcd counts the messages alone.";
        connections_refused = "etched_connections_refused_total", "Connections closed when they were accepted, because as many were open as the limit of open files leaves for them.";
        puts = "etcd_mvcc_put_total", "Puts applied here, those within transactions included.";
        deletes = "etcd_mvcc_delete_total", "Range deletions applied here, those within transactions included.";
        ranges = "etcd_mvcc_range_total", "Ranges read here, those within transactions included.";
        txns = "etcd_mvcc_txn_total", "Transactions of more than one operation seen here.";
        compacted_keys = "etcd_debugging_mvcc_db_compaction_keys_total", "Revisions of keys that compactions removed.";
        leases_granted = "etcd_debugging_lease_granted_total", "Leases granted.";
        leases_revoked = "etcd_debugging_lease_revoked_total", "Leases revoked.";
        leases_renewed = "etcd_debugging_lease_renewed_total", "Leases renewed by this member as leader.";
        leases_expired = "etcd_debugging_server_lease_expired_total", "Leases that this member ended as leader because their time was up.";
        v2_expires = "etcd_debugging_store_expires_total", "Keys expired in the v2 store, which is not here.";
        v2_watch_requests = "etcd_debugging_store_watch_requests_total", "Watches of the v2 store, which is not here.";
        proxy_events_coalescing = "etcd_grpc_proxy_events_coalescing_total", "Events coalesced by a gRPC proxy, which this process is not.";
    }
    gauges {
        proposals_pending = "etcd_server_proposals_pending", "Proposals that wait to be agreed upon and applied.";
        snapshot_applies_in_progress = "etcd_server_snapshot_apply_in_progress_total", "1 while a received state is taken over.";
        wal_write_bytes = "etcd_disk_wal_write_bytes_total", "Bytes written to the raft log.";
        defrags_in_flight = "etcd_disk_defrag_inflight", "1 while a defragmentation runs.";
        put_bytes = "etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put here.";
        last_compaction_s = "etcd_debugging_mvcc_db_compaction_last", "When a compaction last finished, in seconds since 1970.";
        v2_watchers = "etcd_debugging_store_watchers", "Watches open in the v2 store, which is not here.";
        proxy_cache_hits = "etcd_grpc_proxy_cache_hits_total", "Cache hits of a gRPC proxy, which this process is not.";
        proxy_cache_keys = "etcd_grpc_proxy_cache_keys_total", "Keys cached by a gRPC proxy, which this process is not.";
        proxy_cache_misses = "etcd_grpc_proxy_cache_misses_total", "Cache misses of a gRPC proxy, which this process is not.";
        proxy_watchers_coalescing = "etcd_grpc_proxy_watchers_coalescing_total", "Watches coalesced by a gRPC proxy, which this process is not.";
    }
    histograms {
        wal_fsync(STEP) = "etcd_disk_wal_fsync_duration_seconds", "Time of an fdatasync of the raft log.";
        wal_write(STEP) = "etcd_disk_wal_write_duration_seconds", "Time of a write to the raft log without its sync; here the two are one step, whose time is in that of the sync.";
        backend_commit(STEP) = "etcd_disk_backend_commit_duration_seconds", "Time of writing a batch of applied entries to the state.";
        backend_defrag(Shape::seconds(ms(100), 13)) = "etcd_disk_backend_defrag_duration_seconds", "Time of a defragmentation.";
        backend_snapshot(Shape::seconds(ms(10), 17)) = "etcd_disk_backend_snapshot_duration_seconds", "Time of handing out a backup of the state.";
        hash(HASH) = "etcd_mvcc_hash_duration_seconds", "Time of hashing the whole state.";
        hash_history(HASH) = "etcd_mvcc_hash_rev_duration_seconds", "Time of hashing the history up to a revision.";
        index_compaction_pause(Shape::milliseconds(us(500), 14)) = "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", "Time for which a compaction of an index in memory held up writers; there is no such index here.";
        compaction_pause(Shape::milliseconds(ms(1), 13)) = "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "Time of one step of a compaction.";
        compaction_total(Shape::milliseconds(ms(100), 14)) = "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "Time of a whole compaction.";
        lease_ttls(Shape::whole(1, 24)) = "etcd_debugging_lease_ttl_total", "Times to live of granted leases, in seconds.";
        watch_send(STEP) = "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds", "Time of handing one answer with events to a watch's stream.";
        watch_send_per_event(STEP) = "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds", "The same, by the number of its events.";
        watch_control(STEP) = "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds", "Time of handing out one answer about a watch itself.";
        watch_progress(STEP) = "etcd_debugging_server_watch_send_loop_progress_duration_seconds", "Time of handing out progress.";
        bbolt_rebalance(STEP) = "etcd_debugging_disk_backend_commit_rebalance_duration_seconds", "A step of bbolt's commits, which are not made here.";
        bbolt_spill(STEP) = "etcd_debugging_disk_backend_commit_spill_duration_seconds", "A step of bbolt's commits, which are not made here.";
        bbolt_write(STEP) = "etcd_debugging_disk_backend_commit_write_duration_seconds", "A step of bbolt's commits, which are not made here.";
        snap_marshalling(STEP) = "etcd_debugging_snap_save_marshalling_duration_seconds", "Time of encoding a snapshot file, which is not made here.";
        snap_save(STEP) = "etcd_debugging_snap_save_total_duration_seconds", "Time of saving a snapshot file, which is not made here.";
        snap_fsync(STEP) = "etcd_snap_fsync_duration_seconds", "Time of an fsync of a snapshot file, which is not made here.";
        snap_db_fsync(STEP) = "etcd_snap_db_fsync_duration_seconds", "Time of an fsync of a received state; it is in the time of saving it.";
        snap_db_save(Shape::seconds(ms(100), 10)) = "etcd_snap_db_save_total_duration_seconds", "Time of receiving the files of a state and saving them, each synced.";
    }
    scraped {
        has_leader: Gauge = "etcd_server_has_leader", "1 where a leader is known.";
        is_leader: Gauge = "etcd_server_is_leader", "1 where this member leads.";
        is_learner: Gauge = "etcd_server_is_learner", "1 where this member is a learner.";
        proposals_committed: Gauge = "etcd_server_proposals_committed_total", "The newest index that is known to be agreed upon.";
        proposals_applied: Gauge = "etcd_server_proposals_applied_total", "The newest index that is applied.";
        quota_bytes: Gauge = "etcd_server_quota_backend_bytes", "Bytes of state allowed; -1 for any number.";
        db_size_bytes: Gauge = "etcd_mvcc_db_total_size_in_bytes", "Bytes that the state takes, on disk and not yet there.";
        db_size_in_use_bytes: Gauge = "etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of the state that live data needs, estimated.";
        open_reads: Gauge = "etcd_mvcc_db_open_read_transactions", "Holders of the newest view of the state.";
        keys: Gauge = "etcd_debugging_mvcc_keys_total", "Keys that are there.";
        current_revision: Gauge = "etcd_debugging_mvcc_current_revision", "The newest revision.";
        compact_revision: Gauge = "etcd_debugging_mvcc_compact_revision", "The revision compacted to; -1 for none.";
        watch_streams: Gauge = "etcd_debugging_mvcc_watch_stream_total", "Open streams of watches.";
        watchers: Gauge = "etcd_debugging_mvcc_watcher_total", "Open watches.";
        slow_watchers: Gauge = "etcd_debugging_mvcc_slow_watcher_total", "Open watches that are catching up from storage.";
        pending_events: Gauge = "etcd_debugging_mvcc_pending_events_total", "Events that wait for the clients of watches.";
        events: Counter = "etcd_debugging_mvcc_events_total", "Events sent to watches.";
        auth_revision: Gauge = "etcd_debugging_auth_revision", "The revision of users, roles and permissions.";
        fd_used: Gauge = "os_fd_used", "File descriptors in use.";
        fd_limit: Gauge = "os_fd_limit", "File descriptors that may be in use.";
        cpu_s: Counter = "process_cpu_seconds_total", "User and system time used, in seconds.";
        max_fds: Gauge = "process_max_fds", "File descriptors that may be open.";
        open_fds: Gauge = "process_open_fds", "File descriptors that are open.";
        network_received_bytes: Counter = "process_network_receive_bytes_total", "Bytes of IP packets received in this network namespace.";
        network_sent_bytes: Counter = "process_network_transmit_bytes_total", "Bytes of IP packets sent in this network namespace.";
        resident_bytes: Gauge = "process_resident_memory_bytes", "Resident memory, in bytes.";
        start_time_s: Gauge = "process_start_time_seconds", "When the process started, in seconds since 1970.";
        virtual_bytes: Gauge = "process_virtual_memory_bytes", "Virtual memory, in bytes.";
        virtual_max_bytes: Gauge = "process_virtual_memory_max_bytes", "Virtual memory allowed, in bytes.";
        scrapes_in_flight: Gauge = "promhttp_metric_handler_requests_in_flight", "Scrapes that are being answered.";
    }
    labelled {
        GRPC_STARTED: Counter = "grpc_server_started_total", "Calls begun.";
        GRPC_HANDLED: Counter = "grpc_server_handled_total", "Calls ended, by code.";
        GRPC_RECEIVED: Counter = "grpc_server_msg_received_total", "Messages received from clients.";
        GRPC_SENT: Counter = "grpc_server_msg_sent_total", "Messages sent to clients.";
        GRPC_HANDLING: Histogram(CALL) = "grpc_server_handling_seconds", "Time from the beginning of a call to its end.";
        CLIENT_REQUESTS: Counter = "etcd_server_client_requests_total", "Calls by the API version that the client says it speaks.";
        STREAM_FAILURES: Counter = "etcd_network_server_stream_failures_total", "Streams that broke.";
        REQUESTS: Histogram(STEP) = "etcd_server_request_duration_seconds", "Time from a request to its answer, by what it asks.";
        APPLIES: Histogram(FAST_STEP) = "etcd_server_apply_duration_seconds", "Time that the state machine took over a request.";
        RANGES: Histogram(FAST_STEP) = "etcd_server_range_duration_seconds", "Time that reading a range took.";
        HEALTH_CHECK: Gauge = "etcd_server_healthcheck", "1 where the check passed when it was last made.";
        HEALTH_CHECKS_MADE: Counter = "etcd_server_healthchecks_total", "Checks made for /livez and /readyz.";
        SERVER_VERSION: Gauge = "etcd_server_version", "The etcd release whose behaviour this server has.";
        GO_VERSION: Gauge = "etcd_server_go_version", "The language this server is built with.";
        SERVER_ID: Gauge = "etcd_server_id", "This member.";
        FEATURE_ENABLED: Gauge = "etcd_server_feature_enabled", "1 where a feature gate is on.";
        CLUSTER_VERSION: Gauge = "etcd_cluster_version", "The version that the cluster runs at.";
        KNOWN_PEERS: Gauge = "etcd_network_known_peers", "1 for the members that this one knows, 0 for those that were removed.";
        ACTIVE_PEERS: Gauge = "etcd_network_active_peers", "1 while a peer is connected in both directions.";
        DISCONNECTED_PEERS: Counter = "etcd_network_disconnected_peers_total", "How often the connection to a peer was lost.";
        PEER_SENT_BYTES: Counter = "etcd_network_peer_sent_bytes_total", "Bytes of messages sent to a peer.";
        PEER_RECEIVED_BYTES: Counter = "etcd_network_peer_received_bytes_total", "Bytes of messages received from a peer.";
        PEER_SEND_FAILURES: Counter = "etcd_network_peer_sent_failures_total", "Messages to a peer that were dropped, and connections that broke.";
        PEER_RECEIVE_FAILURES: Counter = "etcd_network_peer_received_failures_total", "Messages of a peer that could not be read.";
        PEER_ROUND_TRIP_TIME: Histogram(Shape::seconds(us(100), 16)) = "etcd_network_peer_round_trip_time_seconds", "Time from a probe of a peer to its answer.";
        SNAPSHOT_SEND_SUCCESSES: Counter = "etcd_network_snapshot_send_success", "Transfers of a state that ended with the peer having taken it over.";
        SNAPSHOT_SEND_FAILURES: Counter = "etcd_network_snapshot_send_failures", "Transfers of a state that did not reach the peer.";
        SNAPSHOT_SEND_INFLIGHTS: Gauge = "etcd_network_snapshot_send_inflights_total", "Transfers of a state to a peer that are under way.";
        SNAPSHOT_SEND_TOTAL_DURATION: Histogram(TRANSFER) = "etcd_network_snapshot_send_total_duration_seconds", "Time from the first byte of a state until the peer has taken it over.";
        SNAPSHOT_RECEIVE_SUCCESSES: Counter = "etcd_network_snapshot_receive_success", "Transfers of a state from a peer after which it was taken over.";
        SNAPSHOT_RECEIVE_FAILURES: Counter = "etcd_network_snapshot_receive_failures", "Transfers of a state from a peer that were cut or refused.";
        SNAPSHOT_RECEIVE_INFLIGHTS: Gauge = "etcd_network_snapshot_receive_inflights_total", "Transfers of a state from a peer that are under way.";
        SNAPSHOT_RECEIVE_TOTAL_DURATION: Histogram(TRANSFER) = "etcd_network_snapshot_receive_total_duration_seconds", "Time of receiving a state and taking it over.";
        LEARNER_PROMOTE_FAILURES: Counter = "etcd_server_learner_promote_failures", "Learners that this member as leader refused to promote, by reason.";
        ALARMS: Gauge = "etcd_debugging_server_alarms", "1 while an alarm is active, 0 once it is cleared.";
        MEMORY: Gauge = "etched_memory_bytes", "Bytes of the memory budget that a part holds.";
        MEMORY_LIMIT: Gauge = "etched_memory_limit_bytes", "Bytes of the memory budget that a part may hold.";
        CERTIFICATE_EXPIRY: Gauge = "etched_certificate_expiry_timestamp_seconds", "When a certificate in use expires, in seconds since 1970.";
        SCRAPES: Counter = "promhttp_metric_handler_requests_total", "Scrapes answered, by status.";
    }
}
