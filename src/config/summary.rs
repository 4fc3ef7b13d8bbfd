//! The first line of a start's log: every setting, so that a log alone shows how a member was
//! configured. Names and order are etcd's, followed by etched's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value as Json;

use super::discovery::{Discovery, DiscoveryService};
use super::duration;
use super::log::LogOutput;
use super::machine::go_arch;
use super::note::Note;
use super::settings::{AutoCompaction, Config, Listen, Metrics};
use super::tls::ListenerTls;
use super::tracing::Tracing;
use super::urls;
use crate::types::{ETCD_VERSION, GIT_SHA, RUST_VERSION, VERSION};

/// A name and its setting.
type Setting = (&'static str, Json);

impl Config {
    /// The line on a start, of a member with files in `member_dir`. `initialized`: the data directory
    /// holds a member already.
    pub fn starting(&self, member_dir: &Path, initialized: bool, cpus: usize) -> Note {
        let mut note = Note::info("starting an etcd server");
        note.fields = vec![
            ("etcd-version", ETCD_VERSION.into()),
            ("git-sha", GIT_SHA.into()),
            ("rust-version", RUST_VERSION.into()),
            ("go-os", std::env::consts::OS.into()),
            ("go-arch", go_arch().into()),
            ("max-cpu-set", cpus.into()),
            ("max-cpu-available", cpus.into()),
            ("member-initialized", initialized.into()),
        ];
        note.fields.extend(self.settings());
        for (name, value) in &mut note.fields {
            if *name == "member-dir" {
                // Beside an etcd's it has another name.
                *value = text(member_dir);
            }
        }
        note.fields.push(("etched-version", VERSION.into()));
        note
    }

    /// Every setting.
    pub fn settings(&self) -> Vec<Setting> {
        let mut settings = self.member();
        settings.extend(self.addresses());
        settings.extend(self.cluster());
        settings.extend(self.history());
        settings.extend(discovery(&self.discovery));
        settings.extend([
            (
                "downgrade-check-interval",
                spelled(self.downgrade_check_time),
            ),
            ("max-learners", self.max_learners.into()),
            ("v2-deprecation", self.v2_deprecation.as_str().into()),
        ]);
        settings.extend(self.unlogged_by_etcd());
        settings.extend(self.tls());
        settings.extend(self.tls_of_both());
        settings.extend(traces(self.tracing.as_ref()));
        settings
    }

    fn member(&self) -> Vec<Setting> {
        let wal_dir = text(self.wal_dir.as_deref().unwrap_or(Path::new("")));
        let millis = |ms: u64| spelled(Duration::from_millis(ms));
        vec![
            ("name", self.name.as_str().into()),
            ("data-dir", text(&self.data_dir)),
            ("wal-dir", wal_dir.clone()),
            ("wal-dir-dedicated", wal_dir),
            ("member-dir", text(&self.data_dir.join("member"))),
            ("force-new-cluster", self.force_new_cluster.into()),
            ("heartbeat-interval", millis(self.heartbeat_interval_ms)),
            ("election-timeout", millis(self.election_timeout_ms)),
            (
                "initial-election-tick-advance",
                self.initial_election_tick_advance.into(),
            ),
            ("snapshot-count", self.snapshot_count.into()),
            ("max-wals", self.max_wals.into()),
            ("max-wals-given", self.max_wals_given.into()),
            ("max-snapshots", self.max_snapshots.into()),
            (
                "snapshot-catchup-entries",
                self.snapshot_catchup_entries.into(),
            ),
        ]
    }

    fn addresses(&self) -> Vec<Setting> {
        vec![
            (
                "initial-advertise-peer-urls",
                urls::texts(&self.initial_advertise_peer_urls).into(),
            ),
            ("listen-peer-urls", listened(&self.listen_peer_urls)),
            (
                "advertise-client-urls",
                urls::texts(&self.advertise_client_urls).into(),
            ),
            ("listen-client-urls", listened(&self.listen_client_urls)),
            ("listen-metrics-urls", listened(&self.listen_metrics_urls)),
            (
                "local-address",
                self.local_address()
                    .map_or(String::new(), |address| address.to_string())
                    .into(),
            ),
            ("cors", self.cors.clone().into()),
            ("host-whitelist", self.host_whitelist.clone().into()),
        ]
    }

    fn cluster(&self) -> Vec<Setting> {
        let corrupt_check = self.corrupt_check_time.unwrap_or_default();
        vec![
            ("initial-cluster", self.initial_cluster.as_str().into()),
            (
                "initial-cluster-state",
                self.initial_cluster_state.name().into(),
            ),
            (
                "initial-cluster-token",
                self.initial_cluster_token.as_str().into(),
            ),
            (
                "quota-backend-bytes",
                self.quota_bytes.map_or(Json::from(-1), Json::from),
            ),
            ("max-request-bytes", self.max_request_bytes.into()),
            ("max-concurrent-streams", self.max_concurrent_streams.into()),
            ("pre-vote", self.pre_vote.into()),
            ("feature-gates", self.feature_gates.summary().into()),
            (
                "initial-corrupt-check",
                self.feature_gates.enabled("InitialCorruptCheck").into(),
            ),
            ("corrupt-check-time-interval", spelled(corrupt_check)),
            (
                "compact-check-time-interval",
                spelled(self.compact_hash_check_time),
            ),
        ]
    }

    fn history(&self) -> Vec<Setting> {
        let (mode, retention) = self.auto_compaction.flags();
        // As in etcd, shown as a duration whatever its unit.
        let retention = match self.auto_compaction {
            AutoCompaction::Revision(kept) => duration::format(Duration::from_nanos(kept as u64)),
            _ => retention,
        };
        vec![
            ("auto-compaction-mode", mode.into()),
            ("auto-compaction-retention", retention.as_str().into()),
            ("auto-compaction-interval", retention.into()),
        ]
    }

    /// etcd has these in lines of their own.
    fn tls(&self) -> Vec<Setting> {
        let tls = self.client_tls.as_ref();
        let peer = self.peer_tls.as_ref();
        let peer_listener = peer.and_then(|tls| tls.listener.as_ref());
        let file = |path: Option<&Path>| text(path.unwrap_or(Path::new("")));
        vec![
            ("cert-file", file(tls.map(|tls| tls.certificate.as_path()))),
            ("key-file", file(tls.map(|tls| tls.key.as_path()))),
            (
                "trusted-ca-file",
                file(tls.and_then(|tls| tls.authorities.as_deref())),
            ),
            (
                "client-crl-file",
                file(tls.and_then(|tls| tls.revoked.as_deref())),
            ),
            (
                "client-cert-auth",
                self.authenticates_by_certificate().into(),
            ),
            (
                "client-cert-allowed-cn",
                tls.map(|tls| tls.allowed.common_names.clone()).into(),
            ),
            (
                "client-cert-allowed-hostname",
                tls.map(|tls| tls.allowed.host_names.clone()).into(),
            ),
            (
                "peer-cert-file",
                file(peer_listener.map(|tls| tls.certificate.as_path())),
            ),
            (
                "peer-key-file",
                file(peer_listener.map(|tls| tls.key.as_path())),
            ),
            (
                "peer-client-cert-file",
                file(peer.and_then(|tls| Some(tls.shown.as_ref()?.0.as_path()))),
            ),
            (
                "peer-client-key-file",
                file(peer.and_then(|tls| Some(tls.shown.as_ref()?.1.as_path()))),
            ),
            (
                "peer-trusted-ca-file",
                file(peer.and_then(|tls| tls.authorities.as_deref())),
            ),
            (
                "peer-crl-file",
                file(peer.and_then(|tls| tls.revoked.as_deref())),
            ),
            (
                "peer-client-cert-auth",
                peer_listener.is_some_and(|tls| tls.authenticates).into(),
            ),
            (
                "peer-cert-allowed-cn",
                peer.map(|tls| tls.allowed.common_names.clone()).into(),
            ),
            (
                "peer-cert-allowed-hostname",
                peer.map(|tls| tls.allowed.host_names.clone()).into(),
            ),
            (
                "peer-skip-client-san-verification",
                peer_listener.is_some_and(|tls| !tls.checks_source).into(),
            ),
        ]
    }

    fn tls_of_both(&self) -> Vec<Setting> {
        let tls = self.client_tls.as_ref();
        let peer = self.peer_tls.as_ref();
        let peer_listener = peer.and_then(|tls| tls.listener.as_ref());
        let protocol = &self.tls_protocol;
        let made = |tls: Option<&ListenerTls>| Some(tls?.made.as_ref()?.years);
        vec![
            ("auto-tls", made(tls).is_some().into()),
            (
                "peer-auto-tls",
                peer.is_some_and(|tls| !tls.verifies).into(),
            ),
            (
                "self-signed-cert-validity",
                made(tls).or(made(peer_listener)).into(),
            ),
            ("tls-min-version", protocol.least.name().into()),
            ("tls-max-version", protocol.most.name().into()),
            ("cipher-suites", protocol.cipher_suites.clone().into()),
        ]
    }

    /// etcd has these too and leaves them out of its line.
    fn unlogged_by_etcd(&self) -> Vec<Setting> {
        let keepalive = self.grpc_keepalive;
        vec![
            (
                "listen-client-http-urls",
                listened(&self.listen_client_http_urls),
            ),
            ("socket-reuse-port", self.socket_reuse_port.into()),
            ("socket-reuse-address", self.socket_reuse_address.into()),
            ("strict-reconfig-check", self.strict_reconfig_check.into()),
            ("enable-grpc-gateway", self.enable_grpc_gateway.into()),
            ("enable-pprof", self.enable_pprof.into()),
            ("max-txn-ops", self.max_txn_ops.into()),
            (
                "grpc-keepalive-min-time",
                spelled(self.grpc_keepalive_min_time.unwrap_or_default()),
            ),
            (
                "grpc-keepalive-interval",
                spelled(keepalive.map_or(Duration::ZERO, |pings| pings.interval)),
            ),
            (
                "grpc-keepalive-timeout",
                spelled(keepalive.map_or(Duration::ZERO, |pings| pings.timeout)),
            ),
            ("compaction-batch-limit", self.compaction_batch_limit.into()),
            (
                "compaction-sleep-interval",
                spelled(self.compaction_sleep_interval),
            ),
            (
                "compaction-sleep-interval-given",
                self.compaction_sleep_interval_given.into(),
            ),
            (
                "watch-progress-notify-interval",
                spelled(self.watch_progress_notify_interval),
            ),
            (
                "watch-permission-recheck",
                self.watch_permission_recheck.into(),
            ),
            (
                "warning-apply-duration",
                spelled(self.warning_apply_duration),
            ),
            (
                "warning-unary-request-duration",
                spelled(self.warning_unary_request_duration),
            ),
            ("auth-token", self.auth.token.name().into()),
            ("auth-token-ttl", spelled(self.auth.token_ttl)),
            ("bcrypt-cost", self.auth.bcrypt_cost.into()),
            ("log-level", self.log.level.name().into()),
            ("log-format", self.log.format.name().into()),
            (
                "log-outputs",
                self.log.outputs.iter().map(LogOutput::name).collect(),
            ),
            (
                "log-rotation-max-bytes",
                self.log
                    .rotation
                    .as_ref()
                    .map(|rotation| rotation.max_bytes)
                    .into(),
            ),
            (
                "metrics",
                match self.metrics {
                    Metrics::Basic => "basic".into(),
                    Metrics::Extensive => "extensive".into(),
                },
            ),
            ("unsafe-no-fsync", self.unsafe_no_fsync.into()),
            ("memory-budget-bytes", self.memory_budget_bytes.into()),
            ("memory-mlock", self.memory_mlock.into()),
        ]
    }
}

/// As the flags say it; nothing of a collector where traces are off.
fn traces(tracing: Option<&Tracing>) -> Vec<Setting> {
    let mut settings: Vec<Setting> = vec![("enable-distributed-tracing", tracing.is_some().into())];
    if let Some(tracing) = tracing {
        let address = tracing.collector.authority().map(|found| found.as_str());
        settings.extend([
            ("distributed-tracing-address", address.into()),
            (
                "distributed-tracing-service-name",
                tracing.service_name.as_str().into(),
            ),
            (
                "distributed-tracing-instance-id",
                tracing.instance_id.as_deref().into(),
            ),
            (
                "distributed-tracing-sampling-rate",
                tracing.samples_per_million.into(),
            ),
        ]);
    }
    settings
}

fn discovery(discovery: &Discovery) -> Vec<Setting> {
    let mut settings: Vec<Setting> = vec![
        ("discovery-token", discovery.token().into()),
        ("discovery-endpoints", discovery.endpoints().into()),
    ];
    if let Discovery::Dns(dns) = discovery {
        settings.extend([
            ("discovery-srv", dns.domain.as_str().into()),
            ("discovery-srv-name", dns.suffix.as_str().into()),
        ]);
    }
    let service = match discovery {
        Discovery::Service(service) => Some(service),
        Discovery::Static | Discovery::Dns(_) => None,
    };
    settings.extend(service_settings(service));
    settings
}

/// The discovery settings. The password is not shown; flags that must have their default are shown
/// too.
fn service_settings(service: Option<&DiscoveryService>) -> [Setting; 10] {
    let seconds = Duration::from_secs;
    let pings = service.map_or(Some((seconds(2), seconds(6))), |service| {
        let pings = service.keepalive?;
        Some((pings.interval, pings.timeout))
    });
    let (interval, timeout) = pings.unwrap_or_default();
    let user = service.and_then(|service| service.credentials.as_ref());
    let user = user.map_or("", |login| login.user.as_str());
    let dial = service.map_or(seconds(2), |service| service.dial_timeout);
    let request = service.map_or(seconds(5), |service| service.request_timeout);
    let tls = service.map(|service| &service.tls);
    let path = |path: Option<&PathBuf>| path.map_or_else(|| "".into(), |path| text(path));
    let pair = tls.and_then(|tls| tls.pair.as_ref());
    [
        ("discovery-dial-timeout", spelled(dial)),
        ("discovery-request-timeout", spelled(request)),
        ("discovery-keepalive-time", spelled(interval)),
        ("discovery-keepalive-timeout", spelled(timeout)),
        (
            "discovery-insecure-transport",
            tls.is_none_or(|tls| tls.insecure_transport).into(),
        ),
        (
            "discovery-insecure-skip-tls-verify",
            tls.is_some_and(|tls| !tls.verifies).into(),
        ),
        ("discovery-cert", path(pair.map(|pair| &pair.0))),
        ("discovery-key", path(pair.map(|pair| &pair.1))),
        (
            "discovery-cacert",
            path(tls.and_then(|tls| tls.authorities.as_ref())),
        ),
        ("discovery-user", user.into()),
    ]
}

fn spelled(time: Duration) -> Json {
    duration::format(time).into()
}

fn listened(list: &[Listen]) -> Json {
    list.iter().map(|listen| listen.url.as_str()).collect()
}

fn text(path: &Path) -> Json {
    path.to_string_lossy().into()
}
