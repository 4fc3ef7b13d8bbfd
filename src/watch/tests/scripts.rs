//! Plays the scripts of `scripts/`: lines that begin with `>` are commands, the lines below one
//! are what it prints.
//!
//! | command | does |
//! |---|---|
//! | `limits NAME=N...` | sets limits; before everything else |
//! | `put K V`, `del RANGE`, `txn put K V; del RANGE` | writes and publishes one revision |
//! | `fill K N` | writes and publishes N revisions of a key |
//! | `hold`, `publish` | keeps written changes back; publishes them |
//! | `compact R`, `resync` | compacts; makes all watches catch up |
//! | `open S`, `close S` | opens and drops a stream |
//! | `watch S RANGE [id=N] [start=N] [current=N] [prev] [noput] [nodelete] [fragment] [notify]` | |
//! | `cancel S ID`, `progress S [CURRENT]`, `tick S` | |
//! | `step S`, `drain S` | one output; all of them, with a mark for wake-ups before |
//! | `counters` | prints what is counted |
//!
//! A range is `k` for a key, `a..c` for `[a, c)`, `a..` for everything from `a`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use bytes::Bytes;

use super::world::{Op, WatchWorld};
use crate::mvcc::Change;
use crate::proto::{Event, KeyValue};
use crate::types::KeyRange;
use crate::watch::{Hub, Limits, Output, Request, Stream};

struct Player {
    limits: Limits,
    world: WatchWorld,
    hub: Option<Arc<Hub>>,
    streams: BTreeMap<String, (Stream, Arc<AtomicUsize>)>,
    holds: bool,
    held: Vec<Change>,
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn range(text: &str) -> KeyRange {
    match text.split_once("..") {
        None => KeyRange::Point(bytes(text)),
        Some((start, "")) => KeyRange::From(bytes(start)),
        Some((start, end)) => KeyRange::Span(bytes(start), bytes(end)),
    }
}

fn op(text: &str) -> Op {
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        ["put", key, value] => Op::Put(bytes(key), bytes(value)),
        ["del", keys] => Op::Delete(range(keys)),
        _ => panic!("not an operation: {text}"),
    }
}

impl Player {
    fn new() -> Self {
        Self {
            limits: Limits::default(),
            world: WatchWorld::new(),
            hub: None,
            streams: BTreeMap::new(),
            holds: false,
            held: Vec::new(),
        }
    }

    fn hub(&mut self) -> Arc<Hub> {
        let (head, limits) = (self.world.head(), self.limits);
        self.hub
            .get_or_insert_with(|| Hub::new(head, limits))
            .clone()
    }

    fn play(&mut self, command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        match words[0] {
            "limits" => self.set_limits(&words[1..]),
            "put" | "del" => self.write(&[op(command)]),
            "txn" => {
                let ops: Vec<_> = command["txn".len()..].split(';').map(op).collect();
                self.write(&ops)
            }
            "fill" => {
                let count: usize = words[2].parse().unwrap();
                (0..count)
                    .map(|number| self.write(&[op(&format!("put {} {number}", words[1]))]))
                    .collect()
            }
            "hold" => self.hold(true),
            "publish" => self.hold(false),
            "compact" => {
                self.world.compact(words[1].parse().unwrap());
                String::new()
            }
            "resync" => {
                let head = self.world.head();
                self.hub().resync(head);
                String::new()
            }
            "open" => self.open(words[1]),
            "close" => {
                self.streams.remove(words[1]).expect("an open stream");
                String::new()
            }
            "counters" => self.counters(),
            _ => self.play_stream(&words),
        }
    }

    fn play_stream(&mut self, words: &[&str]) -> String {
        let head = self.world.head();
        let view = self.world.view();
        let (stream, wakes) = self.streams.get_mut(words[1]).expect("an open stream");
        let number = |at: usize| words.get(at).map(|word| word.parse::<i64>().unwrap());
        match words[0] {
            "watch" => {
                let (request, current) = request(&words[2..], head);
                match stream.create(request, current) {
                    Ok(id) => format!("watch {id}\n"),
                    Err(error) => format!("{error}\n"),
                }
            }
            "cancel" => format!("{}\n", stream.cancel(number(2).unwrap())),
            "progress" => {
                stream.request_progress(number(2).unwrap_or(head));
                String::new()
            }
            "tick" => {
                stream.progress_tick();
                String::new()
            }
            "step" => match stream.next(&view.pinned()).unwrap() {
                Some(output) => show(&output),
                None => "nothing\n".to_owned(),
            },
            "drain" => {
                let mut text = String::new();
                for _ in 0..wakes.swap(0, SeqCst) {
                    text.push_str("woken\n");
                }
                while let Some(output) = stream.next(&view.pinned()).unwrap() {
                    if output != Output::Again {
                        text.push_str(&show(&output));
                    }
                }
                text
            }
            other => panic!("no such command: {other}"),
        }
    }

    fn set_limits(&mut self, words: &[&str]) -> String {
        assert!(self.hub.is_none(), "too late");
        for word in words {
            let (name, value) = word.split_once('=').unwrap();
            let place = match name {
                "queue_events" => &mut self.limits.queue_events,
                "queue_bytes" => &mut self.limits.queue_bytes,
                "total_bytes" => &mut self.limits.total_bytes,
                "page_revisions" => &mut self.limits.page_revisions,
                "page_records" => &mut self.limits.page_records,
                "page_bytes" => &mut self.limits.page_bytes,
                "whole_bytes" => &mut self.limits.whole_bytes,
                _ => panic!("no such limit: {name}"),
            };
            *place = value.parse().unwrap();
        }
        String::new()
    }

    fn write(&mut self, ops: &[Op]) -> String {
        let changes = self.world.txn(ops);
        self.held.extend(changes);
        let holds = self.holds;
        self.hold(holds)
    }

    fn hold(&mut self, holds: bool) -> String {
        self.holds = holds;
        if !holds {
            let changes = std::mem::take(&mut self.held);
            let head = self.world.head();
            self.hub().publish(head, &changes);
        }
        String::new()
    }

    fn open(&mut self, name: &str) -> String {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let stream = self.hub().open(Arc::new(move || {
            counted.fetch_add(1, SeqCst);
        }));
        self.streams.insert(name.to_owned(), (stream, wakes));
        String::new()
    }

    fn counters(&mut self) -> String {
        let hub = self.hub();
        let counters = hub.counters();
        format!(
            "streams {} watches {} slow {} pending {} events {}\n",
            counters.streams.load(Relaxed),
            counters.watches.load(Relaxed),
            counters.slow_watches.load(Relaxed),
            counters.pending_events.load(Relaxed),
            counters.events.load(Relaxed),
        )
    }
}

fn request(words: &[&str], head: i64) -> (Request, i64) {
    let mut current = head;
    let mut request = Request {
        watch_id: 0,
        range: range(words[0]),
        start_revision: 0,
        prev_kv: false,
        no_put: false,
        no_delete: false,
        fragment: false,
        progress_notify: false,
    };
    for word in &words[1..] {
        match word.split_once('=') {
            Some(("id", id)) => request.watch_id = id.parse().unwrap(),
            Some(("start", start)) => request.start_revision = start.parse().unwrap(),
            Some(("current", revision)) => current = revision.parse().unwrap(),
            _ => match *word {
                "prev" => request.prev_kv = true,
                "noput" => request.no_put = true,
                "nodelete" => request.no_delete = true,
                "fragment" => request.fragment = true,
                "notify" => request.progress_notify = true,
                _ => panic!("no such option: {word}"),
            },
        }
    }
    (request, current)
}

fn show(output: &Output) -> String {
    match output {
        Output::Events {
            watch_id,
            header_revision,
            events,
            fragment,
        } => {
            let mut text = format!("w{watch_id} @{header_revision}");
            for event in events {
                let separator = if text.contains(':') { "," } else { ":" };
                let event = show_event(&event.decoded().unwrap());
                write!(text, "{separator} {event}").unwrap();
            }
            text + if *fragment { " (may be split)\n" } else { "\n" }
        }
        Output::Compacted {
            watch_id,
            compact_revision,
        } => format!("w{watch_id} compacted to {compact_revision}\n"),
        Output::Progress {
            watch_id,
            header_revision,
        } => format!("w{watch_id} progress @{header_revision}\n"),
        Output::Again => "again\n".to_owned(),
    }
}

fn show_event(event: &Event) -> String {
    let kv = event.kv.clone().unwrap_or_default();
    let mut text = match event.r#type {
        0 => format!("put {}", show_pair(&kv)),
        _ => format!("del {} m{}", kv.key.escape_ascii(), kv.mod_revision),
    };
    if let Some(previous) = &event.prev_kv {
        write!(text, " was {}", show_pair(previous)).unwrap();
    }
    text
}

fn show_pair(kv: &KeyValue) -> String {
    format!(
        "{}={} c{} m{} v{}",
        kv.key.escape_ascii(),
        kv.value.escape_ascii(),
        kv.create_revision,
        kv.mod_revision,
        kv.version
    )
}

/// Plays a script; returns it as it should read.
fn play(script: &str) -> String {
    let mut player = Player::new();
    let mut actual = String::new();
    for line in script.lines() {
        match line.strip_prefix("> ") {
            Some(command) => {
                writeln!(actual, "{line}").unwrap();
                actual.push_str(&player.play(command));
            }
            None if line.is_empty() || line.starts_with('#') => {
                writeln!(actual, "{line}").unwrap();
            }
            None => {}
        }
    }
    actual
}

macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let script = include_str!(concat!("scripts/", stringify!($name), ".txt"));
            let actual = play(script);
            assert!(actual == script, "it plays like this:\n{actual}");
        })*
    };
}

scripts! {
    live
    catching_up
    slow_reader
    progress
    compaction
    transactions
    large
}
