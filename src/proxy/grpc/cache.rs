//! Answers to ranges, which are given again to who asks for the same. Pure: the time is passed in.
//!
//! As in etcd's proxy every answer is kept that has no error, and only serializable requests are
//! answered by it: those of the same token that ask for exactly the same. A write that passes has the
//! answers forgotten that it may change, when it comes and again when it is answered; one that was
//! under way in between is not kept, nor one of a member that is behind a write that passed. So who
//! writes through a proxy is not answered from the cache with less. What is written elsewhere is not
//! noticed, which serializable reads allow as they allow a member that is behind; `MAX_AGE`, counted
//! from when the cluster was asked, bounds how far, where etcd's cache has no bound. It bounds as well
//! how long a right that was taken away can still be used, for what its token has been answered before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::caller::CallerKey;
use crate::proto::etcdserverpb::RangeRequest;
use crate::types::KeyRange;

/// etcd's.
const MAX_ENTRIES: usize = 2048;
const MAX_BYTES: usize = 64 << 20;
/// A larger answer is not kept.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
/// An answer is given again for so long.
const MAX_AGE: Duration = Duration::from_secs(10);
/// What an entry takes beside its answer, its request and its caller, about.
const ENTRY_BYTES: usize = 512;

/// What an answer is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lookup {
    caller: CallerKey,
    request: Bytes,
}

impl Lookup {
    pub fn new(caller: CallerKey, request: &RangeRequest) -> Self {
        let request = RangeRequest {
            serializable: true,
            ..request.clone()
        };
        Self {
            caller,
            request: request.encode_to_vec().into(),
        }
    }

    fn bytes(&self) -> usize {
        let caller = self.caller.iter().flatten().map(Vec::len);
        self.request.len() + caller.sum::<usize>()
    }
}

/// An answer, as it goes to clients.
#[derive(Clone, Debug)]
pub struct CachedAnswer {
    pub framed: Bytes,
    /// The store's, when it was given.
    pub revision: i64,
}

/// A range that the cluster was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadId(u64);

/// By etcd's metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    pub hits: u64,
    pub misses: u64,
    pub keys: usize,
}

type EntryId = u64;

struct CachedRange {
    lookup: Lookup,
    answer: CachedAnswer,
    /// What changes it; none for a past revision.
    range: Option<KeyRange>,
    asked_revision: i64,
    asked_at: Duration,
    last_use: u64,
}

impl CachedRange {
    fn bytes(&self) -> usize {
        // The lookup is there twice.
        self.answer.framed.len() + 2 * self.lookup.bytes() + ENTRY_BYTES
    }
}

/// See the module.
#[derive(Default)]
pub struct RangeCache {
    entries: HashMap<EntryId, CachedRange>,
    by_lookup: HashMap<Lookup, EntryId>,
    by_use: BTreeMap<u64, EntryId>,
    /// Those that can change, of one key and of several.
    points: BTreeMap<Bytes, BTreeSet<EntryId>>,
    spans: BTreeMap<EntryId, KeyRange>,
    /// Ranges under way that nothing has changed so far.
    unchanged: HashMap<ReadId, KeyRange>,
    bytes: usize,
    next: u64,
    compacted: i64,
    /// The highest revision of a write that passed.
    written: i64,
    hits: u64,
    misses: u64,
}

impl RangeCache {
    /// The answer to a serializable request, if there is one of `at_least` this revision.
    pub fn get(&mut self, lookup: &Lookup, at_least: i64, now: Duration) -> Option<CachedAnswer> {
        let id = self.by_lookup.get(lookup).copied();
        let last_use = self.number();
        let entry = id.and_then(|id| self.entries.get_mut(&id));
        let fresh = |one: &&mut CachedRange| {
            one.answer.revision >= at_least && now < one.asked_at + MAX_AGE
        };
        if let Some((id, entry)) = id.zip(entry.filter(fresh)) {
            self.by_use.remove(&entry.last_use);
            entry.last_use = last_use;
            self.by_use.insert(last_use, id);
            self.hits += 1;
            return Some(entry.answer.clone());
        }
        if let Some(id) = id {
            self.remove(id);
        }
        self.misses += 1;
        None
    }

    /// The cluster is asked for a range.
    pub fn begin(&mut self, request: &RangeRequest) -> ReadId {
        let id = ReadId(self.number());
        if request.revision <= 0 {
            self.unchanged.insert(id, range_of(request));
        }
        id
    }

    /// It is asked no more.
    pub fn end(&mut self, read: ReadId) {
        self.unchanged.remove(&read);
    }

    /// A write was answered at this revision.
    pub fn wrote(&mut self, revision: i64) {
        self.written = self.written.max(revision);
    }

    /// The cluster has answered what it was asked then.
    pub fn add(
        &mut self,
        read: ReadId,
        lookup: Lookup,
        request: &RangeRequest,
        answer: CachedAnswer,
        asked_at: Duration,
    ) {
        let range = self.unchanged.remove(&read);
        let asked_revision = request.revision;
        let is_past = asked_revision > 0 && asked_revision < self.compacted;
        let is_newest = asked_revision <= 0;
        let is_changed = is_newest && (range.is_none() || answer.revision < self.written);
        if let Some(id) = self.by_lookup.get(&lookup).copied() {
            let there = self.entries.get(&id);
            if there.is_some_and(|there| there.asked_at > asked_at) {
                return;
            }
            self.remove(id);
        }
        if is_past || is_changed || answer.framed.len() > MAX_ANSWER_BYTES {
            return;
        }
        let id = self.number();
        match &range {
            Some(KeyRange::Point(key)) => {
                self.points.entry(key.clone()).or_default().insert(id);
            }
            Some(range) => {
                self.spans.insert(id, range.clone());
            }
            None => {}
        }
        let entry = CachedRange {
            lookup: lookup.clone(),
            answer,
            range,
            asked_revision,
            asked_at,
            last_use: id,
        };
        self.bytes += entry.bytes();
        self.by_lookup.insert(lookup, id);
        self.by_use.insert(id, id);
        self.entries.insert(id, entry);
        while self.entries.len() > MAX_ENTRIES || self.bytes > MAX_BYTES {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                break;
            };
            self.remove(oldest);
        }
    }

    /// Keys of these ranges may have changed.
    pub fn forget(&mut self, changed: &[KeyRange]) {
        for changed in changed {
            self.unchanged.retain(|_, range| !range.overlaps(changed));
            let mut found: Vec<EntryId> = match changed {
                KeyRange::Point(key) => self
                    .points
                    .get(key)
                    .into_iter()
                    .flatten()
                    .copied()
                    .collect(),
                span => {
                    let behind = self.points.range(span.start().clone()..);
                    let within = behind.take_while(|(key, _)| span.contains(key));
                    within.flat_map(|(_, ids)| ids).copied().collect()
                }
            };
            let spans = self
                .spans
                .iter()
                .filter(|(_, range)| range.overlaps(changed));
            found.extend(spans.map(|(id, _)| *id));
            for id in found {
                self.remove(id);
            }
        }
    }

    /// Everything may have changed.
    pub fn clear(&mut self) {
        *self = Self {
            next: self.next,
            compacted: self.compacted,
            written: self.written,
            hits: self.hits,
            misses: self.misses,
            ..Self::default()
        };
    }

    /// Revisions below this one are gone.
    pub fn compact(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision);
        let is_gone = |one: &CachedRange| (1..self.compacted).contains(&one.asked_revision);
        let gone = self.entries.iter().filter(|(_, one)| is_gone(one));
        for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.remove(id);
        }
    }

    pub fn counts(&self) -> CacheCounts {
        CacheCounts {
            hits: self.hits,
            misses: self.misses,
            keys: self.entries.len(),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn remove(&mut self, id: EntryId) {
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        self.bytes -= entry.bytes();
        self.by_lookup.remove(&entry.lookup);
        self.by_use.remove(&entry.last_use);
        match &entry.range {
            Some(KeyRange::Point(key)) => {
                if let Some(ids) = self.points.get_mut(key) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        self.points.remove(key);
                    }
                }
            }
            Some(_) => {
                self.spans.remove(&id);
            }
            None => {}
        }
    }
}

/// A copy, as a part of the request would hold all of it.
fn range_of(request: &RangeRequest) -> KeyRange {
    let [key, end] = [&request.key, &request.range_end].map(|part| Bytes::copy_from_slice(part));
    KeyRange::from_wire(&key, &end)
}

#[cfg(test)]
mod tests;
