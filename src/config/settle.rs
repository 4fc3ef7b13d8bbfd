//! From checked values to a [`Config`]: defaults, unit conversion, derived settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::auth;
use super::discovery;
use super::duration;
use super::flags;
use super::go_syntax::quote;
use super::keepalive::Keepalive;
use super::log::LogConfig;
use super::machine::Surroundings;
use super::note::Note;
use super::refusal::Refusal;
use super::settings::{AutoCompaction, ClusterState, Config, Listen, Metrics};
use super::tls;
use super::tracing;
use super::urls::{Scheme, Url};
use super::values::{Source, Values};
use crate::types::{Address, socket_file};

const DEFAULT_SNAPSHOT_COUNT: u64 = 10_000;
const DEFAULT_QUOTA_BYTES: u64 = 2 << 30;
const SUGGESTED_QUOTA_BYTES: u64 = 8 << 30;
const AUTOMATIC_BUDGET_BYTES: u64 = 256 << 20;
const LEAST_BUDGET_BYTES: u64 = 16 << 20;

/// Builds the configuration.
///
/// # Errors
/// Errors found only here: invalid ports, retentions or budgets, a scheme that reaches nothing.
pub fn settle(
    values: &Values,
    log: LogConfig,
    initial_cluster_state: ClusterState,
    from: Source,
    around: &Surroundings<'_>,
    notes: &mut Vec<Note>,
) -> Result<Config, Refusal> {
    let name = values.text("name").to_owned();
    let data_dir = data_dir(values, &name, notes);
    let (client_tls, peer_tls, tls_protocol) = tls::settle(values, &data_dir, from, notes)?;
    let mut config = Config {
        data_dir,
        wal_dir: wal_dir(values),
        snapshot_count: snapshot_count(values),
        snapshot_catchup_entries: values.uint("snapshot-catchup-entries"),
        max_wals: values.uint("max-wals"),
        max_wals_given: values.is_given("max-wals"),
        downgrade_check_time: values.time("downgrade-check-time"),
        v2_deprecation: v2_deprecation(values),
        max_snapshots: values.uint("max-snapshots"),
        heartbeat_interval_ms: values.uint("heartbeat-interval"),
        election_timeout_ms: values.uint("election-timeout"),
        initial_election_tick_advance: values.bool("initial-election-tick-advance"),
        pre_vote: values.bool("pre-vote"),
        listen_peer_urls: listens(values, "listen-peer-urls")?,
        listen_client_urls: listens(values, "listen-client-urls")?,
        listen_client_http_urls: listens(values, "listen-client-http-urls")?,
        listen_metrics_urls: listens(values, "listen-metrics-urls")?,
        client_tls,
        peer_tls,
        tls_protocol,
        initial_advertise_peer_urls: values.urls("initial-advertise-peer-urls").to_vec(),
        advertise_client_urls: values.urls("advertise-client-urls").to_vec(),
        cors: values.words("cors").to_vec(),
        enable_grpc_gateway: values.bool("enable-grpc-gateway"),
        enable_pprof: values.bool("enable-pprof"),
        host_whitelist: values.words("host-whitelist").to_vec(),
        socket_reuse_port: values.bool("socket-reuse-port"),
        socket_reuse_address: values.bool("socket-reuse-address"),
        initial_cluster: discovery::initial_cluster(values, from).to_owned(),
        discovery: discovery::settle(values)?,
        force_new_cluster: values.bool("force-new-cluster"),
        initial_cluster_state,
        initial_cluster_token: values.text("initial-cluster-token").to_owned(),
        strict_reconfig_check: values.bool("strict-reconfig-check"),
        max_learners: max_learners(values)?,
        quota_bytes: quota_bytes(values, notes),
        max_txn_ops: size(values, "max-txn-ops"),
        max_request_bytes: size(values, "max-request-bytes"),
        max_concurrent_streams: u32::try_from(values.uint("max-concurrent-streams"))
            .unwrap_or(u32::MAX),
        grpc_keepalive_min_time: values.positive("grpc-keepalive-min-time"),
        grpc_keepalive: Keepalive::of(values, "grpc-keepalive-interval", "grpc-keepalive-timeout"),
        auto_compaction: auto_compaction(values, notes)?,
        compaction_batch_limit: compaction_batch_limit(values),
        compaction_sleep_interval: time_or(values, "compaction-sleep-interval", 10),
        compaction_sleep_interval_given: values.is_given("compaction-sleep-interval"),
        watch_progress_notify_interval: values
            .positive("watch-progress-notify-interval")
            .unwrap_or(Duration::from_secs(600))
            .max(Duration::from_millis(100)),
        watch_permission_recheck: values.bool("watch-permission-recheck"),
        corrupt_check_time: values.positive("corrupt-check-time"),
        compact_hash_check_time: values.time("compact-hash-check-time"),
        warning_apply_duration: values.time("warning-apply-duration"),
        warning_unary_request_duration: time_or(values, "warning-unary-request-duration", 300),
        auth: auth::settle(values, notes)?,
        log,
        metrics: metrics(values),
        tracing: tracing::settle(values)?,
        feature_gates: values.gates().clone(),
        unsafe_no_fsync: values.bool("unsafe-no-fsync"),
        memory_budget_bytes: memory_budget_bytes(values, around)?,
        memory_mlock: values.bool("memory-mlock"),
        name,
    };
    use_default_host(&mut config, values, around, notes);
    Ok(config)
}

fn snapshot_count(values: &Values) -> u64 {
    match values.uint("snapshot-count") {
        0 => DEFAULT_SNAPSHOT_COUNT,
        count => count,
    }
}

fn wal_dir(values: &Values) -> Option<PathBuf> {
    let dir = Some(values.text("wal-dir"));
    dir.filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// A time of which 0 means the default, in milliseconds.
fn time_or(values: &Values, name: &str, default_ms: u64) -> Duration {
    match values.duration_ns(name) {
        0 => Duration::from_millis(default_ms),
        _ => values.time(name),
    }
}

fn compaction_batch_limit(values: &Values) -> usize {
    usize::try_from(values.int("compaction-batch-limit"))
        .ok()
        .filter(|limit| *limit > 0)
        .unwrap_or(1_000)
}

fn metrics(values: &Values) -> Metrics {
    match values.text("metrics") {
        "extensive" => Metrics::Extensive,
        // As in etcd, any other word means basic.
        _ => Metrics::Basic,
    }
}

fn v2_deprecation(values: &Values) -> String {
    match values.words("v2-deprecation") {
        [.., stage] => stage.clone(),
        [] => "write-only".to_owned(),
    }
}

fn listens(values: &Values, name: &str) -> Result<Vec<Listen>, Refusal> {
    let mut listens = Vec::new();
    for url in values.urls(name) {
        if url.scheme.is_socket_file() {
            let Some(path) = socket_file(url.as_str()) else {
                return Err(Refusal::Start(format!(
                    "--{name}: {url} does not name the file of a socket, as {}:///PATH does",
                    url.scheme.name()
                )));
            };
            let (url, address) = (url.clone(), Address::File(path));
            listens.push(Listen { url, address });
            continue;
        }
        let port = match url.port.as_str() {
            "" => Ok(0),
            port => port.parse(),
        };
        let (Some(ip), Ok(port)) = (url.bind_address(), port) else {
            return Err(Refusal::Start(format!(
                "listen tcp: address {}: invalid port",
                url.port
            )));
        };
        let (url, address) = (url.clone(), SocketAddr::new(ip, port).into());
        listens.push(Listen { url, address });
    }
    Ok(listens)
}

fn data_dir(values: &Values, name: &str, notes: &mut Vec<Note>) -> PathBuf {
    match values.text("data-dir") {
        "" => {
            let dir = format!("{name}.etcd");
            notes.push(
                Note::warn("'data-dir' was empty; using default").with("data-dir", dir.as_str()),
            );
            PathBuf::from(dir)
        }
        dir => PathBuf::from(dir),
    }
}

fn max_learners(values: &Values) -> Result<u32, Refusal> {
    let count = values.int("max-learners");
    if count < 0 {
        return Err(Refusal::Start(
            "membership: too many learner members in cluster".into(),
        ));
    }
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

fn quota_bytes(values: &Values, notes: &mut Vec<Note>) -> Option<u64> {
    match u64::try_from(values.int("quota-backend-bytes")) {
        Err(_) => None,
        Ok(0) => Some(DEFAULT_QUOTA_BYTES),
        Ok(bytes) => {
            if bytes > SUGGESTED_QUOTA_BYTES {
                notes.push(
                    Note::warn("quota exceeds the maximum value")
                        .with("quota-size-bytes", bytes)
                        .with("quota-maximum-size-bytes", SUGGESTED_QUOTA_BYTES),
                );
            }
            Some(bytes)
        }
    }
}

fn auto_compaction(values: &Values, notes: &mut Vec<Note>) -> Result<AutoCompaction, Refusal> {
    let text = match values.text("auto-compaction-retention") {
        "" => "0",
        text => text,
    };
    let failed = |why: String| Refusal::Start(format!("error parsing CompactionRetention: {why}"));
    let revisions = values.text("auto-compaction-mode") == "revision";
    // A bare decimal number has no unit; a sign or a prefix makes it a duration, as in etcd.
    let bare = text.strip_prefix('+').unwrap_or(text);
    let bare = match bare.bytes().all(|b| b.is_ascii_digit()) {
        true => bare.parse::<i64>().ok(),
        false => None,
    };
    let kept = match bare {
        Some(count) if revisions => count,
        Some(hours) => hours
            .checked_mul(3_600_000_000_000)
            .ok_or_else(|| failed(format!("{} hours are out of range", quote(text))))?,
        None => duration::parse_ns(text).map_err(failed)?,
    };
    if revisions && bare.is_none() {
        notes.push(
            Note::warn("a duration as --auto-compaction-retention counts as revisions in revision mode, one a nanosecond")
                .with("auto-compaction-retention", text),
        );
    }
    match kept {
        0 => Ok(AutoCompaction::Off),
        ..0 => Err(failed(format!("{} is negative", quote(text)))),
        count if revisions => Ok(AutoCompaction::Revision(count)),
        ns => Ok(AutoCompaction::Periodic(Duration::from_nanos(
            ns.unsigned_abs(),
        ))),
    }
}

fn memory_budget_bytes(values: &Values, around: &Surroundings<'_>) -> Result<u64, Refusal> {
    match values.uint("memory-budget-bytes") {
        0 => {
            let quarter = (around.memory_bytes)().map_or(AUTOMATIC_BUDGET_BYTES, |all| all / 4);
            Ok(quarter.clamp(LEAST_BUDGET_BYTES, AUTOMATIC_BUDGET_BYTES))
        }
        bytes if bytes < LEAST_BUDGET_BYTES => Err(Refusal::Verify(format!(
            "--memory-budget-bytes must be at least {LEAST_BUDGET_BYTES} (set to {bytes})"
        ))),
        bytes => Ok(bytes),
    }
}

/// With a wildcard listener, `localhost` cannot be reached from other machines, so etcd advertises
/// the machine's own address; and the default cluster uses the member's name.
fn use_default_host(
    config: &mut Config,
    values: &Values,
    around: &Surroundings<'_>,
    notes: &mut Vec<Note>,
) {
    let untouched = |name: &str| {
        let default = flags::find(name).map(|flag| flag.kind.default_value(flag.default));
        default.as_ref() == Some(values.get(name))
    };
    let everywhere = |list: &[Listen]| {
        let first = list.first().filter(|listen| listen.url.host == "0.0.0.0");
        first.map(|listen| listen.url.port.clone())
    };
    let peer =
        everywhere(&config.listen_peer_urls).filter(|_| untouched("initial-advertise-peer-urls"));
    let client =
        everywhere(&config.listen_client_urls).filter(|_| untouched("advertise-client-urls"));
    let host = match peer.is_some() || client.is_some() {
        true => (around.default_host)(),
        false => None,
    };
    if let (Some(host), Some(port)) = (&host, &peer) {
        config.initial_advertise_peer_urls = vec![Url::from_host_port(Scheme::Http, host, port)];
    }
    if let (Some(host), Some(port)) = (&host, &client) {
        config.advertise_client_urls = vec![Url::from_host_port(Scheme::Http, host, port)];
    }
    if let Some(host) = host {
        notes.push(Note::info("detected default host for advertise").with("host", host));
    }
    if config.name != "default"
        && untouched("initial-cluster")
        && !config.initial_cluster.is_empty()
    {
        let name = match config.name.as_str() {
            "" => "default",
            name => name,
        };
        let pairs: Vec<String> = config
            .initial_advertise_peer_urls
            .iter()
            .map(|url| format!("{name}={url}"))
            .collect();
        config.initial_cluster = pairs.join(",");
    }
}

fn size(values: &Values, name: &str) -> usize {
    usize::try_from(values.uint(name)).unwrap_or(usize::MAX)
}
