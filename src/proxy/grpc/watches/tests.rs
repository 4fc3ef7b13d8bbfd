//! Scripts of watches: clients' requests and the cluster's answers go in, and what is sent is
//! printed.

use std::fmt::Write as _;

use super::*;
use crate::proto::{Event, KeyValue};
use crate::script::{self, number};

struct Player {
    watches: Watches,
    streams: BTreeSet<StreamId>,
}

impl Player {
    fn new() -> Self {
        Self {
            watches: Watches::new(Namespace::new("")),
            streams: BTreeSet::new(),
        }
    }

    fn play(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["namespace", prefix] => self.watches = Watches::new(Namespace::new(prefix)),
            ["create", stream, key, options @ ..] => self.create(number(stream), key, options),
            ["cancel", stream, id] => self.watches.cancel(number(stream), number(id) as i64),
            ["close", stream] => self.watches.close_stream(number(stream)),
            ["progress", stream] => self.watches.progress(number(stream)),
            ["begun", revision] => self.hear(revision, |response| response.created = true),
            ["refused", reason] => self.hear("9", |response| {
                response.created = true;
                response.canceled = true;
                response.watch_id = NO_WATCH;
                (*reason).clone_into(&mut response.cancel_reason);
            }),
            ["compacted", id, revision] => self.hear("99", |response| {
                response.canceled = true;
                response.watch_id = number(id) as i64;
                response.compact_revision = number(revision) as i64;
            }),
            ["progressed", "all", revision] => self.hear(revision, |response| {
                response.watch_id = NO_WATCH;
            }),
            ["progressed", id, revision] => self.hear(revision, |response| {
                response.watch_id = number(id) as i64;
            }),
            ["event", id, revision, events @ ..] => self.hear(revision, |response| {
                response.watch_id = number(id) as i64;
                response.events = events.iter().map(|text| event(text)).collect();
            }),
            ["lost"] => self.watches.disconnected(),
            ["counts"] => {
                let counts = self.watches.counted();
                return format!(
                    "{} watches, {} at the cluster, {} answers saved\n",
                    counts.watches, counts.broadcasts, counts.saved
                );
            }
            _ => panic!("unknown command {command}"),
        }
        self.printed()
    }

    fn create(&mut self, stream: StreamId, key: &str, options: &[&str]) {
        if self.streams.insert(stream) {
            self.watches.open_stream(stream);
        }
        let (key, end) = key.split_once("..").unwrap_or((key, ""));
        let mut request = WatchCreateRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(end.as_bytes()),
            ..Default::default()
        };
        for option in options {
            match option.split_once('=').unwrap_or((option, "")) {
                ("from", revision) => request.start_revision = revision.parse().expect("a number"),
                ("id", id) => request.watch_id = number(id) as i64,
                ("progress", _) => request.progress_notify = true,
                ("prev", _) => request.prev_kv = true,
                ("noput", _) => request.filters.push(FilterType::Noput as i32),
                ("nodelete", _) => request.filters.push(FilterType::Nodelete as i32),
                _ => panic!("unknown option {option}"),
            }
        }
        self.watches.create(stream, &request);
    }

    /// The cluster's answer at a revision of the store.
    fn hear(&mut self, revision: &str, fill: impl FnOnce(&mut WatchResponse)) {
        let mut response = WatchResponse {
            header: Some(ResponseHeader {
                revision: number(revision) as i64,
                ..Default::default()
            }),
            ..Default::default()
        };
        fill(&mut response);
        self.watches.answered(&response).expect("is read");
    }

    fn printed(&mut self) -> String {
        let mut printed = String::new();
        for output in self.watches.take_outputs() {
            let line = match output {
                Output::Open {
                    broadcast,
                    range: (key, end),
                    start_revision,
                } => {
                    let range = [key, end].map(|one| String::from_utf8_lossy(&one).into_owned());
                    format!(
                        "open {broadcast}: {} from {start_revision}",
                        range.join("..")
                    )
                }
                Output::Close { broadcast } => format!("close {broadcast}"),
                Output::AskProgress => "ask for progress".to_owned(),
                Output::Answer { stream, response } => format!("{stream}: {}", shown(&response)),
            };
            writeln!(printed, "{}", line.replace('\0', "0")).expect("a text");
        }
        printed
    }
}

/// `put KEY REVISION`, as `KEY@REVISION`, and `-KEY@REVISION` for a deletion; each has a previous pair.
fn event(text: &str) -> EncodedEvent {
    let (deleted, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (key, revision) = text.split_once('@').expect("a revision");
    let pair = |mod_revision| KeyValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        mod_revision,
        ..Default::default()
    };
    let revision = number(revision) as i64;
    EncodedEvent::from(&Event {
        r#type: i32::from(deleted),
        kv: Some(pair(revision)),
        prev_kv: Some(pair(revision - 1)),
    })
}

fn shown(response: &WatchResponse) -> String {
    let mut shown = format!("watch {}", response.watch_id);
    if response.created {
        shown.push_str(" created");
    }
    if response.canceled {
        shown.push_str(" canceled");
    }
    if response.compact_revision != 0 {
        write!(shown, " compacted {}", response.compact_revision).expect("a text");
    }
    if !response.cancel_reason.is_empty() {
        write!(shown, " ({})", response.cancel_reason).expect("a text");
    }
    for event in &response.events {
        let event = event.decoded().expect("an event");
        let pair = event.kv.expect("a pair");
        let sign = if event.r#type == DELETE { "-" } else { "" };
        let key = String::from_utf8_lossy(&pair.key).into_owned();
        write!(shown, " {sign}{key}@{}", pair.mod_revision).expect("a text");
        if let Some(previous) = event.prev_kv {
            let key = String::from_utf8_lossy(&previous.key).into_owned();
            write!(shown, " (was {key}@{})", previous.mod_revision).expect("a text");
        }
    }
    let revision = response.header.map_or(0, |header| header.revision);
    format!("{shown} at {revision}")
}

#[test]
fn scenarios_of_coalescing() {
    let played = script::play_scenarios("proxy/grpc/testdata", Player::new, Player::play);
    assert!(played >= 12, "{played}");
}
