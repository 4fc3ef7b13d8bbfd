//! Runs `golden.txt`; `claims` finds settings that claim what nothing does, `reference` holds
//! docs/FLAGS.md to the table of flags.

mod claims;
mod reference;

use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::path::Path;

use super::{Bootstrap, Config, Exit, Loaded, Note, Refusal, Surroundings, command, load};
use crate::types::{ETCD_VERSION, VERSION};

#[derive(Default)]
struct Case {
    line: usize,
    env: Vec<(OsString, OsString)>,
    args: Vec<OsString>,
    file: Option<String>,
    expected: Vec<String>,
}

/// The words of a command line: single quotes and the escapes that the head of the script names.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut escaped) = (false, Cell::new(false));
    for c in line.chars().chain([' ']) {
        match c {
            'n' if escaped.take() => word.push('\n'),
            'x' if escaped.get() => {
                escaped.set(false);
                word.push('\u{fffd}');
            }
            '\\' if escaped.take() => word.push('\\'),
            '\\' => *escaped.get_mut() = true,
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            c => word.push(c),
        }
    }
    // The script has one such byte, and it is 01.
    words
        .iter()
        .map(|word| word.replace("\u{fffd}01", "\x01"))
        .collect()
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (at, line) in include_str!("../golden.txt").lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(line) = line.strip_prefix("  ") {
            let case = cases.last_mut().expect("a case before its lines");
            match line.strip_prefix("| ") {
                Some(text) => {
                    let file = case.file.get_or_insert_default();
                    file.push_str(text);
                    file.push('\n');
                }
                None => case.expected.push(line.replace("VERSION", VERSION)),
            }
            continue;
        }
        let words = words(line);
        let program = words.iter().position(|word| word == "etched");
        let program = program.unwrap_or_else(|| panic!("no command in line {}", at + 1));
        let variables = words[..program]
            .iter()
            .filter_map(|word| word.split_once('='));
        cases.push(Case {
            line: at + 1,
            env: variables.map(|(k, v)| (k.into(), v.into())).collect(),
            args: words[program..].iter().map(OsString::from).collect(),
            ..Case::default()
        });
    }
    cases
}

fn run(case: &Case) -> Result<Loaded, Box<Exit>> {
    let read_file = |path: &Path| match (&case.file, path.to_str()) {
        (_, Some("nowhere.yml")) => Err(io::ErrorKind::NotFound.into()),
        (file, _) => Ok(file.clone().unwrap_or_default()),
    };
    let around = Surroundings {
        env: case.env.clone(),
        read_file: &read_file,
        default_host: &|| Some("10.1.2.3".to_owned()),
        memory_bytes: &|| Some(64 << 30),
    };
    load(case.args.clone(), &around)
}

fn first_line(exit: &Exit) -> String {
    // What is asked of a command is printed to stdout alone.
    let printed = match exit.stderr.is_empty() && exit.notes.is_empty() {
        true => &exit.stdout,
        false => &exit.stderr,
    };
    if let Some(line) = printed.lines().next() {
        return line.to_owned();
    }
    let Some(note) = exit.notes.last() else {
        return String::new();
    };
    let field = note.fields.first().and_then(|(_, value)| value.as_str());
    format!("{}: {}", note.msg, field.unwrap_or_default())
}

/// A note's message and its texts.
fn in_full(note: &Note) -> String {
    let texts = note.fields.iter().filter_map(|(_, value)| value.as_str());
    let parts: Vec<&str> = std::iter::once(note.msg.as_str()).chain(texts).collect();
    parts.join(": ")
}

fn resolve(address: &str) -> io::Result<String> {
    match address {
        "host.test:33380" => Ok("10.9.9.9:33380".to_owned()),
        address => Ok(address.to_owned()),
    }
}

/// What a start without data makes of the flags, as far as they alone decide.
fn start(config: &Config) -> Result<Bootstrap, Refusal> {
    let cluster = config.listed_cluster()?;
    config.found(&cluster, &resolve)
}

/// What the last line of a refusal names as commands.
fn commands_in(exit: &Exit) -> String {
    let fields = exit.notes.last().map(|note| note.fields.as_slice());
    let named = fields
        .unwrap_or_default()
        .iter()
        .find(|(name, _)| *name == "commands");
    let names = named.and_then(|(_, value)| value.as_array());
    let names = names.map(|names| names.iter().filter_map(|name| name.as_str()).collect());
    let names: Vec<&str> = names.unwrap_or_default();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

/// What a case came to, in the words of the expectation, so that a difference reads well.
fn found(expected: &str, outcome: &Result<Loaded, Box<Exit>>) -> String {
    let loaded = match outcome {
        Ok(loaded) => loaded,
        Err(exit) if expected.starts_with("commands ") => {
            return format!("commands {}", commands_in(exit));
        }
        Err(exit) => {
            let line = format!("exit {} {}", exit.code, first_line(exit));
            return line.trim_end().to_owned();
        }
    };
    let config = &loaded.config;
    let (kind, rest) = expected.split_once(' ').unwrap_or((expected, ""));
    match kind {
        "has" => {
            let key = rest.split('=').next().unwrap_or_default();
            let settings = config.settings();
            let value = settings.iter().find(|(name, _)| *name == key);
            value.map_or_else(
                || format!("has no {key}"),
                |(_, value)| format!("has {key}={value}"),
            )
        }
        "note" => {
            let notes: Vec<String> = loaded
                .notes
                .iter()
                .map(|note| format!("note {} {}", note.level.name(), in_full(note)))
                .collect();
            match notes.iter().any(|note| note.starts_with(expected)) {
                true => expected.to_owned(),
                false => notes.join("; "),
            }
        }
        "no-note" => match loaded
            .notes
            .iter()
            .find(|note| in_full(note).starts_with(rest))
        {
            None => expected.to_owned(),
            Some(note) => format!("note {}", in_full(note)),
        },
        "ids" | "start" => match start(config) {
            Ok(found) => format!("ids {} {}", found.member_id.0, found.cluster_id.0),
            Err(Refusal::Start(text) | Refusal::Verify(text)) => {
                format!("start {text}").trim_end().to_owned()
            }
            Err(other) => format!("{other:?}"),
        },
        "joins" => match config.listed_cluster().and_then(|cluster| {
            config.check_joining(&cluster)?;
            Ok(cluster.urls_beside(&config.name).join(" "))
        }) {
            Ok(urls) => format!("joins {urls}").trim_end().to_owned(),
            Err(refusal) => format!("joins not: {refusal}").trim_end().to_owned(),
        },
        "discovery" => format!("discovery {:?}", config.discovery),
        _ => format!("accepted as {config:?}"),
    }
}

#[test]
fn golden() {
    let cases = cases();
    assert!(cases.len() > 100);
    let mut wrong = Vec::new();
    for case in &cases {
        let outcome = match command(&case.args) {
            None => run(case),
            Some(Err(exit)) => Err(exit),
            Some(Ok(command)) => {
                let found = format!("command {command:?} (ours)");
                assert_eq!(case.expected, [found], "line {}", case.line);
                continue;
            }
        };
        assert!(
            !case.expected.is_empty(),
            "line {} expects nothing",
            case.line
        );
        for expected in &case.expected {
            let expected = expected.trim_end_matches(" (ours)").trim_end();
            let found = found(expected, &outcome);
            if found != expected {
                wrong.push(format!("line {}:\n  {expected}\n  {found}", case.line));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn typed_fields_follow_the_flags() {
    use std::time::Duration;

    use super::{AutoCompaction, Level, LogFormat, LogOutput, Metrics};

    let line = "etched --grpc-keepalive-timeout 0s --grpc-keepalive-min-time 0 --compaction-batch-limit -5 \
        --compaction-sleep-interval 0s --watch-progress-notify-interval 1ms --warning-apply-duration -1s \
        --warning-unary-request-duration 0s --metrics extensive --log-level WARNING --log-format console \
        --log-outputs stdout,/dev/null --wal-dir w --feature-gates LeaseCheckpoint=false \
        --election-timeout 999 --socket-reuse-port --max-txn-ops 7";
    let case = Case {
        args: words(line).iter().map(OsString::from).collect(),
        ..Case::default()
    };
    let config = run(&case).expect("accepted").config;
    assert_eq!(
        (config.grpc_keepalive, config.grpc_keepalive_min_time),
        (None, None)
    );
    assert_eq!(config.compaction_batch_limit, 1000);
    assert_eq!(config.compaction_sleep_interval, Duration::from_millis(10));
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_millis(100)
    );
    assert_eq!(config.warning_apply_duration, Duration::ZERO);
    assert_eq!(
        config.warning_unary_request_duration,
        Duration::from_millis(300)
    );
    assert_eq!(config.metrics, Metrics::Extensive);
    assert_eq!(
        (config.log.level, config.log.format),
        (Level::Warn, LogFormat::Console)
    );
    assert_eq!(config.log.outputs, []);
    assert_eq!(config.wal_dir.as_deref(), Some(Path::new("w")));
    assert!(!config.feature_gates.enabled("LeaseCheckpointPersist"));
    assert_eq!(config.election_ticks(), 9);
    assert!(config.socket_reuse_port && !config.socket_reuse_address);
    assert_eq!(config.max_txn_ops, 7);

    let plain = Case {
        args: vec!["etched".into()],
        ..Case::default()
    };
    let config = run(&plain).expect("accepted").config;
    assert_eq!(config.auto_compaction, AutoCompaction::Off);
    assert_eq!(config.log.outputs, [LogOutput::Stderr]);
    let keepalive = config.grpc_keepalive.expect("on by default");
    assert_eq!(keepalive.interval, Duration::from_secs(7200));
    assert_eq!(
        config.listen_client_urls[0].address.to_string(),
        "127.0.0.1:2379"
    );
    assert!(config.feature_gates.enabled("LeaseCheckpointPersist"));
}

#[test]
fn help_and_version_print_to_stdout() {
    let exit_of = |word: &str| {
        let args = vec!["etched".into(), word.into()];
        run(&Case {
            args,
            ..Case::default()
        })
        .expect_err("exits")
    };
    let help = exit_of("--help");
    assert!(help.stderr.starts_with("Usage:"));
    for flag in super::flags::all().filter(|flag| !flag.usage.is_empty()) {
        let (name, text) = (format!("--{} ", flag.name), flag.usage);
        assert!(
            help.stdout.contains(&name) && help.stdout.contains(text),
            "{name}"
        );
    }
    let version = exit_of("--version");
    assert_eq!((version.code, version.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = version.stdout.lines().collect();
    let heads: Vec<&str> = lines
        .iter()
        .filter_map(|line| Some(line.split_once(": ")?.0))
        .collect();
    assert_eq!(lines[0], format!("etcd Version: {ETCD_VERSION}"));
    assert_eq!(
        heads,
        [
            "etcd Version",
            "Git SHA",
            "Go Version",
            "Go OS/Arch",
            "etched Version"
        ]
    );
    assert_eq!(lines[4], format!("etched Version: {VERSION}"));
}
