//! Checks that generated histories contain enough of everything: a checker without input finds
//! nothing.

use std::collections::BTreeMap;

use super::{cluster, seeds};
use crate::sim::history::{Answer, ClientRequest, History, Outcome};

fn operations(history: &History, seen: &mut BTreeMap<String, u64>) {
    for operation in &history.operations {
        let asked = format!("{:?}", operation.request);
        let asked: String = asked
            .chars()
            .take_while(char::is_ascii_alphabetic)
            .collect();
        let outcome = match &operation.outcome {
            Outcome::Answered(Answer::LeaseKeepAlive { ttl }) => format!("ttl {}", ttl.signum()),
            Outcome::Answered(Answer::LeaseTimeToLive(left)) if left.ttl < 0 => "gone".to_owned(),
            Outcome::Answered(_) => "answered".to_owned(),
            Outcome::Refused(text) => text.clone(),
            Outcome::Unknown => "unknown".to_owned(),
        };
        let serializable = match &operation.request {
            ClientRequest::Range(range) if range.serializable => " serializable",
            _ => "",
        };
        *seen
            .entry(format!("{asked}{serializable}: {outcome}"))
            .or_default() += 1;
    }
}

fn watches(history: &History, seen: &mut BTreeMap<String, u64>) {
    for watched in &history.watches {
        for (_, response) in &watched.responses {
            let kind = match response {
                response if response.created => "created",
                response if response.compact_revision > 0 => "compacted",
                response if response.fragment => "fragment",
                response if response.watch_id == -1 => "progress of all",
                response if response.events.is_empty() => "progress",
                _ => "events",
            };
            *seen.entry(kind.to_owned()).or_default() += 1;
            for event in &response.events {
                let event = event.decoded().expect("an event");
                let previous = if event.prev_kv.is_some() {
                    "with"
                } else {
                    "without"
                };
                let kind = format!("event {} {previous} previous", event.r#type);
                *seen.entry(kind).or_default() += 1;
            }
        }
        let ends = if watched.to_the_end {
            "whole watch"
        } else {
            "lost watch"
        };
        *seen.entry(ends.to_owned()).or_default() += 1;
    }
}

const EXPECTED: &[&str] = &[
    "Alarm: answered",
    "Alarm: unknown",
    "Compaction: answered",
    "Compaction: etcdserver: mvcc: required revision has been compacted",
    "Compaction: etcdserver: mvcc: required revision is a future revision",
    "DeleteRange: answered",
    "DeleteRange: etcdserver: too many requests",
    "LeaseGrant: answered",
    "LeaseGrant: etcdserver: mvcc: database space exceeded",
    "LeaseKeepAlive: ttl 0",
    "LeaseKeepAlive: ttl 1",
    "LeaseRevoke: answered",
    "LeaseRevoke: etcdserver: requested lease not found",
    "LeaseTimeToLive: answered",
    "LeaseTimeToLive: gone",
    "Put: answered",
    "Put: etcdserver: mvcc: database space exceeded",
    "Put: etcdserver: requested lease not found",
    "Put: unknown",
    "Range serializable: answered",
    "Range serializable: etcdserver: mvcc: required revision is a future revision",
    "Range: answered",
    "Range: etcdserver: mvcc: required revision has been compacted",
    "Range: etcdserver: mvcc: required revision is a future revision",
    "Txn: answered",
    "Txn: etcdserver: mvcc: required revision has been compacted",
    "Txn: etcdserver: mvcc: required revision is a future revision",
    "Txn: unknown",
    "compacted",
    "created",
    "event 0 with previous",
    "event 0 without previous",
    "event 1 with previous",
    "event 1 without previous",
    "events",
    "fragment",
    "lost watch",
    "progress",
    "progress of all",
    "whole watch",
];

#[test]
fn blameless_histories_hold_everything() {
    let mut seen = BTreeMap::new();
    for seed in seeds(40) {
        let made = cluster::make(seed, cluster::Trick::None);
        operations(&made.history, &mut seen);
        watches(&made.history, &mut seen);
    }
    let missing: Vec<_> = EXPECTED
        .iter()
        .filter(|kind| !seen.contains_key(**kind))
        .collect();
    assert!(missing.is_empty(), "{missing:#?} among {seen:#?}");
}
