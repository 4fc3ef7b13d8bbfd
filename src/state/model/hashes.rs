//! etcd's hashes of the history, computed from the model.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::{Change, Model};
use crate::proto::KeyValue;
use crate::types::Revision;

impl Model {
    /// etcd's hash of the history up to `revision`, that up to `compacted` removed; computed from
    /// its index of generations. `None` where etcd loses a key (one
    /// made again in the very transaction that deleted it, at the compacted revision).
    pub fn hash(&self, compacted: i64, revision: i64) -> Option<u32> {
        let mut kept = BTreeSet::new();
        for versions in self.keys.values() {
            let generations = generations(versions);
            let (generation, at) = compacted_at(&generations, revision);
            let found = &generations[generation];
            let last = generation + 1 == generations.len();
            kept.extend(
                at.filter(|at| last || at + 1 < found.len())
                    .map(|at| found[at].revision),
            );
        }
        self.hash_of(compacted, revision, &kept)
    }

    /// As `hash`, of the history that a compaction to `revision` finds where the one before it
    /// went to `previous`.
    pub fn compaction_hash(&self, previous: i64, revision: i64) -> Option<u32> {
        let front = |versions| Some(front(versions, revision)?.revision);
        let kept = self.keys.values().filter_map(|versions| front(versions));
        self.hash_of(previous, revision, &kept.collect())
    }

    fn hash_of(&self, compacted: i64, revision: i64, kept: &BTreeSet<Revision>) -> Option<u32> {
        let mut bucket = BTreeMap::new();
        for (key, versions) in &self.keys {
            let front = front(versions, compacted).map(|change| change.revision);
            for change in versions {
                let at = change.revision;
                if at.main == compacted && front.is_some_and(|front| front < at) {
                    return None;
                }
                if at.main > compacted || front == Some(at) {
                    bucket.insert(at, (key, change));
                }
            }
        }
        let mut bytes = b"key".to_vec();
        for (at, (key, change)) in bucket {
            let dead = at.main <= compacted && !kept.is_empty() && !kept.contains(&at);
            let tombstone = change.kv.is_none();
            if at.main > revision || dead || (at.main == compacted && tombstone) {
                continue;
            }
            bytes.extend(at.main.to_be_bytes());
            bytes.push(b'_');
            bytes.extend(at.sub.to_be_bytes());
            if tombstone {
                bytes.push(b't');
            }
            let gone = KeyValue {
                key: key.clone(),
                ..Default::default()
            };
            bytes.extend(change.kv.as_ref().unwrap_or(&gone).encode_to_vec());
        }
        Some(crc32c::crc32c(&bytes))
    }
}

/// The lives of a key, each but the last ending in a tombstone.
fn generations(versions: &[Change]) -> Vec<Vec<&Change>> {
    let mut generations = vec![Vec::new()];
    for change in versions {
        if let Some(last) = generations.last_mut() {
            last.push(change);
        }
        if change.kv.is_none() {
            generations.push(Vec::new());
        }
    }
    generations
}

/// The generation and the change in it that a compaction to `revision` would leave at its front.
fn compacted_at(generations: &[Vec<&Change>], revision: i64) -> (usize, Option<usize>) {
    let ends = |generation: &Vec<&Change>| {
        generation
            .last()
            .is_some_and(|tombstone| tombstone.revision.main >= revision)
    };
    let last = generations.len() - 1;
    let found = generations[..last].iter().position(ends).unwrap_or(last);
    let at = generations[found]
        .iter()
        .rposition(|change| change.revision.main <= revision);
    (found, at)
}

/// The change that a compaction to `revision` leaves at the front of a key's history.
fn front(versions: &[Change], revision: i64) -> Option<&Change> {
    let generations = generations(versions);
    let (generation, at) = compacted_at(&generations, revision);
    Some(generations[generation][at?])
}
