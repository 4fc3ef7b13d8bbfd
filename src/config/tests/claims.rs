//! What a setting claims and what the code does with it: read from the sources, because a field
//! that nobody reads compiles as well as any other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::flags::{self, FlagSupport};
use super::super::gates::Gates;
use super::{Case, run};

/// Fields that no code outside this module names, although something is done with them.
const READ_WITHIN: &[(&str, &str)] = &[
    ("initial_cluster", "Config::listed_cluster reads it"),
    ("enable_pprof", "Config::serves_profiles reads it"),
];

/// Flags that are read by a name of their own, or checked and then decide nothing, as in etcd.
const READ_APART: &[&str] = &[
    "config-file",
    "feature-gates",
    "discovery-fallback",
    "logger",
    "version",
];

/// Where flags become settings.
const SETTLING: [&str; 6] = [
    include_str!("../auth.rs"),
    include_str!("../discovery.rs"),
    include_str!("../settle.rs"),
    include_str!("../tls.rs"),
    include_str!("../tracing.rs"),
    include_str!("../validate.rs"),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(dir).expect("a directory of sources");
    for entry in entries {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// All code outside `src/config`, tests left out.
fn code_outside() -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    let texts: Vec<String> = paths
        .iter()
        .filter(|path| !path.starts_with(src.join("config")))
        .map(|path| fs::read_to_string(path).expect("a source"))
        .collect();
    assert!(texts.len() > 100);
    // rustfmt breaks a chain before its point.
    let lines = texts.iter().flat_map(|text| text.lines()).map(str::trim);
    let mut code = String::new();
    for line in lines {
        let apart = if line.starts_with('.') { "" } else { "\n" };
        code.push_str(apart);
        code.push_str(line);
    }
    code
}

/// The fields of `Config`.
fn fields() -> Vec<&'static str> {
    let (_, behind) = include_str!("../settings.rs")
        .split_once("pub struct Config {\n")
        .expect("the structure");
    let (body, _) = behind.split_once("\n}").expect("its end");
    let names = body
        .lines()
        .filter_map(|line| line.strip_prefix("    pub ")?.split_once(':'))
        .map(|(name, _)| name);
    names.collect()
}

/// Whether `text` has `prefix` and `name`, and no longer name, in one place.
fn names(text: &str, prefix: &str, name: &str) -> bool {
    let wanted = format!("{prefix}{name}");
    let ends = |at: usize| {
        let next = text[at + wanted.len()..].chars().next();
        next.is_none_or(|c| !c.is_alphanumeric() && c != '_')
    };
    text.match_indices(&wanted).any(|(at, _)| ends(at))
}

#[test]
fn a_setting_that_nothing_reads_says_so() {
    let code = code_outside();
    let fields = fields();
    assert!(fields.len() > 40, "{fields:?}");
    let mut wrong = Vec::new();
    for field in fields {
        let is_read = names(&code, "config.", field);
        let excepted = READ_WITHIN.iter().any(|(name, _)| *name == field);
        let said = flags::find(&field.replace('_', "-"))
            .is_some_and(|flag| matches!(flag.state, FlagSupport::NoEffect(_)));
        match (is_read, said, excepted) {
            (true, false, false) | (false, true, false) | (false, false, true) => {}
            (false, false, false) => wrong.push(format!("nothing reads {field}")),
            (true, true, _) => wrong.push(format!("{field} has an effect, its flag says none")),
            (_, _, true) => wrong.push(format!("{field} needs no exception any more")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_flag_that_nothing_settles_says_so() {
    let mut wrong = Vec::new();
    for flag in flags::all().filter(|flag| !flag.usage.is_empty()) {
        if flag.state != FlagSupport::Built || READ_APART.contains(&flag.name) {
            continue;
        }
        let quoted = format!("\"{}\"", flag.name);
        if !SETTLING.iter().any(|source| source.contains(&quoted)) {
            wrong.push(flag.name);
        }
    }
    assert!(wrong.is_empty(), "nothing reads {wrong:?}");
}

#[test]
fn a_gate_that_nothing_asks_says_so() {
    let code = code_outside();
    let mut gates = Gates::default();
    let opposite: Vec<String> = gates
        .in_force()
        .iter()
        .filter(|(name, ..)| !name.starts_with("All"))
        .map(|(name, _, on)| format!("{name}={}", !on))
        .collect();
    gates.set(&opposite.join(",")).expect("known gates");
    let silent: BTreeSet<&str> = gates
        .without_effect()
        .iter()
        .map(|(name, _)| *name)
        .collect();
    let asked: BTreeSet<&str> = gates
        .in_force()
        .iter()
        .map(|(name, ..)| *name)
        .filter(|name| names(&code, "\"", name))
        .collect();
    let all: BTreeSet<&str> = gates.in_force().iter().map(|(name, ..)| *name).collect();
    let stages = BTreeSet::from(["AllAlpha", "AllBeta"]);
    assert_eq!(
        silent.intersection(&asked).count(),
        0,
        "{silent:?} {asked:?}"
    );
    let mut said: BTreeSet<&str> = silent.union(&asked).copied().collect();
    said.extend(stages);
    assert_eq!(said, all);
}

/// What etcd v3.7.3 logs on a start with a discovery service, in its order.
const ETCD_NAMES: &str = "etcd-version git-sha go-version go-os go-arch max-cpu-set \
    max-cpu-available member-initialized name data-dir wal-dir wal-dir-dedicated member-dir \
    force-new-cluster heartbeat-interval election-timeout initial-election-tick-advance \
    snapshot-count max-wals max-snapshots snapshot-catchup-entries initial-advertise-peer-urls \
    listen-peer-urls advertise-client-urls listen-client-urls listen-metrics-urls local-address \
    cors host-whitelist initial-cluster initial-cluster-state initial-cluster-token \
    quota-backend-bytes max-request-bytes max-concurrent-streams pre-vote feature-gates \
    initial-corrupt-check corrupt-check-time-interval compact-check-time-interval \
    auto-compaction-mode auto-compaction-retention auto-compaction-interval discovery-token \
    discovery-endpoints discovery-dial-timeout discovery-request-timeout \
    discovery-keepalive-time discovery-keepalive-timeout discovery-insecure-transport \
    discovery-insecure-skip-tls-verify discovery-cert discovery-key discovery-cacert \
    discovery-user downgrade-check-interval max-learners v2-deprecation";

/// Of these, what etched's log lacks: it logs `rust-version` instead.
const NOT_LOGGED: &[&str] = &["go-version"];

#[test]
fn the_log_of_a_start_has_every_setting() {
    let words = "etched --discovery-token t --discovery-endpoints http://a:1";
    let case = Case {
        args: words.split(' ').map(Into::into).collect(),
        ..Case::default()
    };
    let config = run(&case).expect("is accepted").config;
    let note = config.starting(std::path::Path::new("data/member"), true, 2);
    let ours: Vec<&str> = note.fields.iter().map(|(name, _)| *name).collect();
    let etcd: Vec<&str> = ETCD_NAMES
        .split_whitespace()
        .filter(|name| !NOT_LOGGED.contains(name))
        .collect();
    // An exception that is logged nevertheless is in `shared` and not in `etcd`.
    let shared: Vec<&str> = ours
        .iter()
        .copied()
        .filter(|name| ETCD_NAMES.split_whitespace().any(|known| known == *name))
        .collect();
    assert_eq!(shared, etcd);
    let unique: BTreeSet<&str> = ours.iter().copied().collect();
    assert_eq!(unique.len(), ours.len(), "a name comes twice");
    let shown = include_str!("../summary.rs");
    let missing: Vec<&str> = fields()
        .into_iter()
        .filter(|field| !names(shown, "self.", field))
        .collect();
    assert!(missing.is_empty(), "not logged: {missing:?}");
}
