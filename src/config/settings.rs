//! The configuration used by the rest of the program: typed, validated and complete.

use std::path::PathBuf;
use std::time::Duration;

use super::auth::AuthConfig;
use super::discovery::Discovery;
use super::duration;
use super::gates::Gates;
use super::keepalive::Keepalive;
use super::log::{Level, LogConfig};
use super::tls::{ListenerTls, PeerTls, SelfSigned, TlsProtocol};
use super::tracing::Tracing;
use super::urls::Url;
use crate::types::Address;

/// All settings. Fields without a comment are etcd's flag of that name.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    /// Never empty.
    pub data_dir: PathBuf,
    /// The raft log's own directory, if it has one.
    pub wal_dir: Option<PathBuf>,
    /// At least 1.
    pub snapshot_count: u64,
    pub snapshot_catchup_entries: u64,
    /// Files of the raft log that stay when they are not needed any more, if the flag is given; 0:
    /// all.
    pub max_wals: u64,
    pub max_wals_given: bool,
    /// Without effect, and shown.
    pub downgrade_check_time: Duration,
    /// Without effect, and shown.
    pub v2_deprecation: String,
    /// 0: keep all.
    pub max_snapshots: u64,
    /// One tick of raft. 1 to 10,000.
    pub heartbeat_interval_ms: u64,
    /// 5 heartbeats to 50,000.
    pub election_timeout_ms: u64,
    pub initial_election_tick_advance: bool,
    pub pre_vote: bool,

    pub listen_peer_urls: Vec<Listen>,
    pub listen_client_urls: Vec<Listen>,
    /// If not empty, these alone serve HTTP and `listen_client_urls` gRPC only.
    pub listen_client_http_urls: Vec<Listen>,
    pub listen_metrics_urls: Vec<Listen>,
    /// How those of the three lists above are encrypted whose scheme says that they are; none if
    /// none does.
    pub client_tls: Option<ListenerTls>,
    /// How connections between members are encrypted; none: they are not.
    pub peer_tls: Option<PeerTls>,
    pub tls_protocol: TlsProtocol,
    /// Sorted.
    pub initial_advertise_peer_urls: Vec<Url>,
    /// Sorted.
    pub advertise_client_urls: Vec<Url>,
    /// Origins that a browser may call from, each with its port; `*` for any.
    pub cors: Vec<String>,
    /// JSON below `/v3/`.
    pub enable_grpc_gateway: bool,
    /// `serves_profiles` decides.
    pub enable_pprof: bool,
    /// Names that a request of HTTP may have as its Host; `*` for any.
    pub host_whitelist: Vec<String>,
    pub socket_reuse_port: bool,
    pub socket_reuse_address: bool,

    /// Unchecked; [`Config::listed_cluster`] reads it, and only a start without data needs that.
    pub initial_cluster: String,
    pub discovery: Discovery,
    pub initial_cluster_state: ClusterState,
    pub initial_cluster_token: String,
    pub strict_reconfig_check: bool,
    pub max_learners: u32,
    pub force_new_cluster: bool,

    /// The quota in bytes; none: unlimited.
    pub quota_bytes: Option<u64>,
    pub max_txn_ops: usize,
    /// Of one request's message, without what gRPC's framing adds.
    pub max_request_bytes: usize,
    pub max_concurrent_streams: u32,
    /// A client that pings more often is disconnected; none: unlimited.
    pub grpc_keepalive_min_time: Option<Duration>,
    /// How idle connections are pinged; none: they are not.
    pub grpc_keepalive: Option<Keepalive>,

    pub auto_compaction: AutoCompaction,
    /// At least 1.
    pub compaction_batch_limit: usize,
    pub compaction_sleep_interval: Duration,
    /// True where it was set, be it to the default.
    pub compaction_sleep_interval_given: bool,
    /// At least 100 ms.
    pub watch_progress_notify_interval: Duration,
    /// End running watches whose users lost the right to them.
    pub watch_permission_recheck: bool,
    /// Between comparisons of all members' data; none: they are not made.
    pub corrupt_check_time: Option<Duration>,
    /// Between comparisons of the hashes kept at compactions.
    pub compact_hash_check_time: Duration,
    pub warning_apply_duration: Duration,
    pub warning_unary_request_duration: Duration,

    pub auth: AuthConfig,

    pub log: LogConfig,
    pub metrics: Metrics,
    /// None: `enable-distributed-tracing` is off.
    pub tracing: Option<Tracing>,
    pub feature_gates: Gates,
    pub unsafe_no_fsync: bool,
    /// Bytes for caches and buffers together, the whole process's.
    pub memory_budget_bytes: u64,
    /// Whether memory is kept out of swap.
    pub memory_mlock: bool,
}

impl Config {
    /// Raft ticks in an election timeout; at least 5.
    pub fn election_ticks(&self) -> usize {
        (self.election_timeout_ms / self.heartbeat_interval_ms) as usize
    }

    /// The certificates that the member makes for itself, where their files are not there yet.
    pub fn self_signed(&self) -> impl Iterator<Item = &SelfSigned> {
        let peer = self.peer_tls.as_ref();
        let listeners = [&self.client_tls, peer.map_or(&None, |tls| &tls.listener)];
        let listeners = listeners.into_iter().flatten();
        listeners.filter_map(|listener| listener.made.as_ref())
    }

    /// Whether there are profiles of the process: with debug lines as well, as in etcd.
    pub fn serves_profiles(&self) -> bool {
        self.enable_pprof || self.log.level == Level::Debug
    }

    /// Whether the name in a client's certificate is a user's.
    pub fn authenticates_by_certificate(&self) -> bool {
        self.client_tls
            .as_ref()
            .is_some_and(|tls| tls.authenticates)
    }
}

/// An address to listen on. `localhost` has become 127.0.0.1; port 0 means any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// As given.
    pub url: Url,
    pub address: Address,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    New,
    Existing,
}

impl ClusterState {
    pub fn name(self) -> &'static str {
        match self {
            ClusterState::New => "new",
            ClusterState::Existing => "existing",
        }
    }
}

/// When history is compacted without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    Off,
    /// Keep this much time.
    Periodic(Duration),
    /// Keep this many revisions.
    Revision(i64),
}

impl AutoCompaction {
    /// What the two flags would have to say.
    pub fn flags(self) -> (&'static str, String) {
        match self {
            AutoCompaction::Off => ("periodic", "0s".to_owned()),
            AutoCompaction::Periodic(kept) => ("periodic", duration::format(kept)),
            AutoCompaction::Revision(kept) => ("revision", kept.to_string()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    Basic,
    /// With histograms of every gRPC method.
    Extensive,
}
