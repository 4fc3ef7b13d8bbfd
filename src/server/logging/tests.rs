//! Lines, levels and thinning out, seen from outside.

use std::cell::Cell;

use parking_lot::Mutex;

use super::*;
use crate::server::traces::tests::{kept, put, sampled_put};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that `log` logs, their times and line numbers replaced.
fn logged(level: Level, format: LogFormat, log: impl FnOnce()) -> Vec<String> {
    let sink = Sink::default();
    let config = LogConfig {
        level,
        format,
        ..LogConfig::default()
    };
    let shared = Arc::new(Log::start(&config, vec![Box::new(sink.clone())]).unwrap());
    let layer = EventLayer::new(Arc::clone(&shared));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
    shared.queue.flush(Duration::from_secs(10));
    let text = String::from_utf8(sink.0.lock().clone()).unwrap();
    text.lines().map(blank).collect()
}

fn blank(line: &str) -> String {
    let year = line.find("20").expect("a time");
    let (head, rest) = line.split_at(year);
    let (time, tail) = rest.split_at("2026-01-02T15:04:05.000000Z".len());
    assert!(time.ends_with('Z') && time.as_bytes()[19] == b'.', "{time}");
    let (before, after) = tail.split_once("tests.rs:").expect("a caller");
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{head}TS{before}tests.rs:N{after}")
}

fn talk() {
    tracing::info!(
        name = "a",
        "data-dir" = %"x\ny",
        size = 5u64,
        on = true,
        forged = %"[1]",
        error = &io::Error::other("broken") as &(dyn std::error::Error + 'static),
        "starting"
    );
    tracing::warn!(target: "raft", "two\nlines");
    tracing::debug!(rate = 0.5, "quiet");
    tracing::trace!("never");
}

#[test]
fn json_lines() {
    assert_eq!(
        logged(Level::Debug, LogFormat::Json, talk),
        [
            r#"{"level":"info","ts":"TS","caller":"logging/tests.rs:N","msg":"starting","name":"a","data-dir":"x\ny","size":5,"on":true,"forged":"[1]","error":"broken"}"#,
            r#"{"level":"warn","ts":"TS","logger":"raft","caller":"logging/tests.rs:N","msg":"two\nlines"}"#,
            r#"{"level":"debug","ts":"TS","caller":"logging/tests.rs:N","msg":"quiet","rate":0.5}"#,
        ]
    );
}

#[test]
fn lists_are_lists() {
    let log = || {
        let none: Vec<String> = Vec::new();
        let names = vec!["a".to_owned(), "\"b\\\n".to_owned()];
        tracing::info!("dns-names" = ?names, "ip-addresses" = ?none, "cipher-suites" = ?["c"], "lists");
        let rare = vec!["\0".to_owned()];
        tracing::info!("dns-names" = ?rare, files = ?["a"], "texts");
    };
    assert_eq!(
        logged(Level::Info, LogFormat::Json, log),
        [
            r#"{"level":"info","ts":"TS","caller":"logging/tests.rs:N","msg":"lists","dns-names":["a","\"b\\\n"],"ip-addresses":[],"cipher-suites":["c"]}"#,
            r#"{"level":"info","ts":"TS","caller":"logging/tests.rs:N","msg":"texts","dns-names":"[\"\\0\"]","files":"[\"a\"]"}"#,
        ]
    );
}

#[test]
fn console_lines() {
    assert_eq!(
        logged(Level::Info, LogFormat::Console, talk),
        [
            "TS\tinfo\tlogging/tests.rs:N\tstarting\t{\"name\": \"a\", \"data-dir\": \"x\\ny\", \"size\": 5, \"on\": true, \"forged\": \"[1]\", \"error\": \"broken\"}",
            "TS\twarn\traft\tlogging/tests.rs:N\ttwo\\nlines",
        ]
    );
}

#[test]
fn levels_switch_events_off_where_they_stand() {
    for (level, expected) in [
        (Level::Debug, 4),
        (Level::Info, 3),
        (Level::Warn, 2),
        (Level::Error, 1),
        (Level::Dpanic, 0),
    ] {
        let evaluated = Cell::new(0);
        let count = || {
            evaluated.set(evaluated.get() + 1);
            1u64
        };
        logged(level, LogFormat::Json, || {
            tracing::error!(n = count(), "e");
            tracing::warn!(n = count(), "w");
            tracing::info!(n = count(), "i");
            tracing::debug!(n = count(), "d");
        });
        assert_eq!(evaluated.get(), expected, "{level:?}");
    }
}

#[test]
fn a_level_is_changed_while_lines_are_logged() {
    let sink = Sink::default();
    let config = LogConfig::default();
    let log = Arc::new(Log::start(&config, vec![Box::new(sink.clone())]).unwrap());
    let registry = tracing_subscriber::registry().with(EventLayer::new(Arc::clone(&log)));
    tracing::subscriber::with_default(registry, || {
        for level in [Level::Info, Level::Debug, Level::Fatal, Level::Error] {
            log.change_level(level, Location::caller());
            for n in 0..2u64 {
                tracing::debug!(n, "debug");
                tracing::error!(n, "error");
            }
        }
    });
    log.queue.flush(Duration::from_secs(10));
    let text = String::from_utf8(sink.0.lock().clone()).unwrap();
    let words = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("a line");
        let to = line["to"].as_str().unwrap_or("");
        format!("{}{to}", line["msg"].as_str().expect("a text"))
    });
    let words: Vec<_> = words.collect();
    let changed = |to: &str| format!("the log's level was changed{to}");
    let [debug, error] = ["debug", "error"].map(str::to_owned);
    assert_eq!(
        words,
        [
            vec![error.clone(), error.clone()],
            vec![
                changed("debug"),
                debug.clone(),
                error.clone(),
                debug,
                error.clone()
            ],
            vec![changed("fatal")],
            vec![changed("error"), error.clone(), error],
        ]
        .concat()
    );
}

#[test]
fn a_flood_from_one_place_is_thinned_out() {
    let lines = logged(Level::Info, LogFormat::Json, || {
        for n in 0..1000u64 {
            tracing::error!(n, "kept");
        }
    });
    assert_eq!(lines.len(), 1000);
    let lines = logged(Level::Info, LogFormat::Json, || {
        for n in 0..1000u64 {
            tracing::info!(n, "thinned");
        }
    });
    // A second may end on the way, which lets another hundred through.
    assert!((109..=209).contains(&lines.len()), "{}", lines.len());
}

#[test]
fn no_level_of_the_log_takes_a_span_from_traces_or_gives_one() {
    for (level, lines) in [(Level::Debug, 2), (Level::Info, 1), (Level::Fatal, 0)] {
        let (traces, kept) = kept(0);
        let sink = Sink::default();
        let config = LogConfig {
            level,
            ..LogConfig::default()
        };
        let log = Arc::new(Log::start(&config, vec![Box::new(sink.clone())]).unwrap());
        let talk = |traced: bool| {
            let span = match traced {
                true => sampled_put(&traces),
                false => put(&traces, None),
            };
            assert_eq!(span.is_disabled(), !traced);
            let stage = crate::trace::below!(&span, "stage");
            crate::trace::event!(&stage, "happened");
            tracing::debug!("quiet");
            tracing::info!("loud");
            drop(tracing::info_span!("of no trace"));
        };
        let logged = || {
            log.queue.flush(Duration::from_secs(10));
            String::from_utf8(sink.0.lock().clone()).unwrap()
        };
        let subscriber = beside(EventLayer::new(Arc::clone(&log)), &traces);
        tracing::subscriber::with_default(subscriber, || {
            talk(true);
            assert_eq!(kept.names(), ["stage", "etcdserverpb.KV/Put"], "{level:?}");
            assert_eq!(logged().lines().count(), lines, "{level:?}");
            talk(false);
            assert_eq!(kept.names().len(), 2);
            assert_eq!(logged().lines().count(), 2 * lines);
            // As at a member that runs.
            let other = match level {
                Level::Debug => Level::Fatal,
                _ => Level::Debug,
            };
            log.level.set(other);
            talk(true);
            assert_eq!(kept.names().len(), 4);
        });
    }
}
