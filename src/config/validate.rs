//! Checks of values that need several of them, or their meaning, in etcd's order, so that of
//! several mistakes the same one is reported.

use std::path::PathBuf;

use super::discovery;
use super::duration;
use super::flags::{self, Flag, FlagSupport};
use super::go_syntax::quote;
use super::log::{JOURNAL, Level, LogConfig, LogFormat, LogOutput};
use super::machine::Surroundings;
use super::note::Note;
use super::refusal::Refusal;
use super::rotation::Rotation;
use super::settings::{ClusterState, Config};
use super::settle::settle;
use super::tls;
use super::tracing;
use super::urls::{self, Url};
use super::value::{Kind, Value};
use super::values::{Source, Values};
use crate::types::Address;

const SUGGESTED_REQUEST_BYTES: u64 = 10 << 20;
const MAX_ELECTION_MS: u64 = 50_000;

const DEPRECATED: &[(&str, &str)] = &[
    (
        "max-snapshots",
        "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.",
    ),
    (
        "v2-deprecation",
        "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input.",
    ),
];

/// Checks every value.
///
/// # Errors
/// The first refusal, in etcd's order.
pub fn validate(
    values: &Values,
    from: Source,
    around: &Surroundings<'_>,
    notes: &mut Vec<Note>,
) -> Result<Config, Refusal> {
    if values.text("discovery-fallback") == "proxy" {
        return Err(Refusal::Verify(
            "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\""
                .into(),
        ));
    }
    let log = log_config(values)?;
    check_urls(values)?;
    let initial_cluster_state = cluster_state(values)?;
    discovery::check(values, from)?;
    check_raft_times(values)?;
    if from == Source::CommandLine
        && values.is_given("listen-client-urls")
        && !values.is_given("advertise-client-urls")
    {
        return Err(Refusal::UnsetAdvertise);
    }
    check_compaction_mode(values)?;
    tracing::check(values)?;
    check_gates(values, notes)?;
    let check_ns = values.duration_ns("compact-hash-check-time");
    if check_ns <= 0 {
        return Err(Refusal::Verify(format!(
            "--compact-hash-check-time must be >0 (set to {})",
            duration::format_ns(check_ns)
        )));
    }
    let check_ns = values.duration_ns("corrupt-check-time");
    if check_ns < 0 {
        // etcd starts, and panics at its first use.
        return Err(Refusal::Verify(format!(
            "--corrupt-check-time must be >=0 (set to {})",
            duration::format_ns(check_ns)
        )));
    }
    tls::check(values)?;
    note_without_effect(values, notes);
    remark(values, notes);
    let config = settle(values, log, initial_cluster_state, from, around, notes)?;
    check_shared_addresses(&config)?;
    Ok(config)
}

/// The log format, if it is known.
pub fn log_format(values: &Values) -> Option<LogFormat> {
    match values.text("log-format") {
        "json" | "" => Some(LogFormat::Json),
        "console" => Some(LogFormat::Console),
        _ => None,
    }
}

fn log_config(values: &Values) -> Result<LogConfig, Refusal> {
    match values.text("logger") {
        "zap" => {}
        "capnslog" => {
            return Err(Refusal::Verify(
                "--logger=capnslog is removed in v3.5".into(),
            ));
        }
        other => {
            let text = format!("unknown logger option {}", quote(other));
            return Err(Refusal::Verify(text));
        }
    }
    let outputs = log_outputs(values.words("log-outputs"))?;
    let rotation = log_rotation(values)?;
    let level_name = values.text("log-level");
    let level = Level::parse(level_name)
        .ok_or_else(|| Refusal::Verify(format!("unrecognized level: {}", quote(level_name))))?;
    let format = log_format(values).ok_or_else(|| {
        Refusal::Verify(format!(
            "unknown log format: {}, supported values json, console",
            values.text("log-format")
        ))
    })?;
    Ok(LogConfig {
        level,
        format,
        outputs,
        rotation,
    })
}

fn log_outputs(words: &[String]) -> Result<Vec<LogOutput>, Refusal> {
    if words.len() > 1 && words.iter().any(|word| word == "default") {
        return Err(Refusal::Verify(
            "multi logoutput for \"default\" is not supported yet".into(),
        ));
    }
    if words.iter().any(|word| word == JOURNAL) && words.len() > 1 {
        let words: Vec<_> = words.iter().map(|word| quote(word)).collect();
        return Err(Refusal::Verify(format!(
            "running with systemd/journal but other '--log-outputs' values ([{}]) are configured with 'default'; override 'default' value with something else",
            words.join(" ")
        )));
    }
    if words.iter().any(|word| word == "/dev/null") {
        return Ok(Vec::new());
    }
    if words.is_empty() {
        return Ok(vec![LogOutput::Stderr]);
    }
    let output = |word: &String| match word.as_str() {
        "default" | "stderr" => LogOutput::Stderr,
        "stdout" => LogOutput::Stdout,
        JOURNAL => LogOutput::Journal,
        path => LogOutput::File(PathBuf::from(path)),
    };
    Ok(words.iter().map(output).collect())
}

/// How the one file among the outputs is rotated.
fn log_rotation(values: &Values) -> Result<Option<Rotation>, Refusal> {
    if !values.bool("enable-log-rotation") {
        return Ok(None);
    }
    let is_file = |word: &&String| !["default", "stderr", "stdout"].contains(&word.as_str());
    let words = values.words("log-outputs");
    let files = words.iter().filter(is_file).count();
    if files > 1 || (files == 0 && words.len() <= 1) {
        return Err(Refusal::Verify(
            "--log-outputs requires a single file path when --log-rotate-config-json is defined"
                .into(),
        ));
    }
    let parsed = Rotation::parse(values.text("log-rotation-config-json"));
    parsed.map(Some).map_err(Refusal::Verify)
}

fn check_urls(values: &Values) -> Result<(), Refusal> {
    for name in [
        "listen-peer-urls",
        "listen-client-urls",
        "listen-client-http-urls",
        "listen-metrics-urls",
    ] {
        for url in values
            .urls(name)
            .iter()
            .filter(|url| !url.scheme.is_socket_file())
        {
            if url.bind_address().is_none() {
                return Err(Refusal::Verify(format!(
                    "expected IP in URL for binding ({url})"
                )));
            }
        }
    }
    for (name, form) in [
        ("initial-advertise-peer-urls", "must be \"host:port\""),
        (
            "advertise-client-urls",
            "must be in the format \"host:port\", \"unix:/path/to/socket\" or \"unixs:/path/to/socket\"",
        ),
    ] {
        let list = values.urls(name);
        let nameless = |url: &&Url| !url.scheme.is_socket_file() && url.host.is_empty();
        if let Some(url) = list.iter().find(nameless) {
            return Err(Refusal::Verify(format!(
                "--{name} {} {form} (unexpected empty host ({url}))",
                quote(&urls::texts(list).join(","))
            )));
        }
    }
    Ok(())
}

fn check_shared_addresses(config: &Config) -> Result<(), Refusal> {
    let clients: Vec<&Address> = config
        .listen_client_urls
        .iter()
        .map(|l| &l.address)
        .collect();
    let mut http = config.listen_client_http_urls.iter();
    match http.find(|listen| clients.contains(&&listen.address)) {
        None => Ok(()),
        Some(listen) => Err(Refusal::Start(format!(
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {}",
            listen.url
        ))),
    }
}

fn cluster_state(values: &Values) -> Result<ClusterState, Refusal> {
    match values.text("initial-cluster-state") {
        "new" => Ok(ClusterState::New),
        "existing" => Ok(ClusterState::Existing),
        other => Err(Refusal::Verify(format!(
            "unexpected clusterState {}",
            quote(other)
        ))),
    }
}

fn check_raft_times(values: &Values) -> Result<(), Refusal> {
    let heartbeat_ms = values.uint("heartbeat-interval");
    let election_ms = values.uint("election-timeout");
    let refused = if heartbeat_ms == 0 {
        "--heartbeat-interval must be >0 (set to 0ms)".to_owned()
    } else if election_ms == 0 {
        "--election-timeout must be >0 (set to 0ms)".to_owned()
    } else if heartbeat_ms.saturating_mul(5) > election_ms {
        format!(
            "--election-timeout[{election_ms}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat_ms}ms]"
        )
    } else if election_ms > MAX_ELECTION_MS {
        format!(
            "--election-timeout[{election_ms}ms] is too long, and should be set less than {MAX_ELECTION_MS}ms"
        )
    } else {
        return Ok(());
    };
    Err(Refusal::Verify(refused))
}

fn check_compaction_mode(values: &Values) -> Result<(), Refusal> {
    match values.text("auto-compaction-mode") {
        "periodic" | "revision" => Ok(()),
        "" => Err(Refusal::Verify("undefined auto-compaction-mode".into())),
        other => Err(Refusal::Verify(format!(
            "unknown auto-compaction-mode {}",
            quote(other)
        ))),
    }
}

fn check_gates(values: &Values, notes: &mut Vec<Note>) -> Result<(), Refusal> {
    let gates = values.gates();
    match (
        gates.enabled("LeaseCheckpoint"),
        gates.enabled("LeaseCheckpointPersist"),
    ) {
        (false, true) => Err(Refusal::Verify(
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint".into(),
        )),
        (true, false) => {
            notes.push(Note::warn(
                "Detected that checkpointing is enabled without persistence. Consider enabling feature gate LeaseCheckpointPersist",
            ));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Reports what is accepted without effect.
fn note_without_effect(values: &Values, notes: &mut Vec<Note>) {
    for flag in flags::all() {
        if !asks(flag, values) {
            continue;
        }
        let why = match flag.state {
            FlagSupport::Built => continue,
            FlagSupport::NoEffect(why) => why,
        };
        notes.push(
            Note::info("the flag has no effect in etched")
                .with("flag", flag.name)
                .with("reason", why),
        );
    }
    for (gate, why) in values.gates().without_effect() {
        notes.push(
            Note::info("the feature gate has no effect in etched")
                .with("feature-gate", gate)
                .with("reason", why),
        );
    }
}

/// Whether a flag is set to something else than its default.
fn asks(flag: &Flag, values: &Values) -> bool {
    let value = values.get(flag.name);
    let default = flag.kind.default_value(flag.default);
    *value != default && !names_nothing(flag.kind, value)
}

/// An empty list has several spellings.
fn names_nothing(kind: Kind, value: &Value) -> bool {
    match (kind, value) {
        (Kind::List | Kind::Set, Value::Words(words)) => words.iter().all(String::is_empty),
        _ => false,
    }
}

/// Warnings about accepted settings.
fn remark(values: &Values, notes: &mut Vec<Note>) {
    for (name, warning) in DEPRECATED {
        if values.is_given(name) {
            notes.push(Note::warn(*warning));
        }
    }
    if values.text("name") == "default" {
        notes.push(
            Note::warn("the member has the default name; give every member its own with --name")
                .with("name", "default"),
        );
    }
    let request_bytes = values.uint("max-request-bytes");
    if request_bytes > SUGGESTED_REQUEST_BYTES {
        notes.push(
            Note::warn("exceeded recommended request limit")
                .with("max-request-bytes", request_bytes)
                .with("recommended-request-bytes", SUGGESTED_REQUEST_BYTES),
        );
    }
    if values.bool("unsafe-no-fsync") {
        notes.push(Note::warn(
            "fsync is off: a crash of this machine loses acknowledged writes",
        ));
    }
}
