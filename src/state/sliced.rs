//! Deletions of many keys, written in several batches: a range, or the keys of a lease.
//!
//! All of them have the one revision of their entry; only the batch behind the last of them ends
//! the entry. Nobody sees a part: readers hold views of states between entries. Every batch
//! before the last brings a record of what is left (`UnfinishedDelete`), so that a state with a
//! part, as a crash or a checkpoint for another member may take it, is finished when it is opened:
//! by the record alone, to the same bytes, however the batches are cut. It counts as the state
//! after the entry, which was committed before its first key was deleted.
//!
//! Memory holds one batch, whatever is deleted, and what is kept for the answer.
//!
//! A transaction is written in several batches by `mvcc::write`. What its rest is only its request
//! says, so a state with a part of one is not finished but made the state before it (`take_back`).

use bytes::Bytes;

use super::answer::AnswerLimit;
use super::lease;
use crate::mvcc::history::decode_revision;
use crate::mvcc::write::{SliceLimit, Sliced, Writer};
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::EncodedKv;
use crate::storage::schema::{
    self, Applied, RevisionRecord, Unfinished, UnfinishedDelete, Version, meta,
};
use crate::storage::{self, Cursor, Engine, Family, Read};
use crate::types::{KeyRange, LeaseId, Revision};

/// See the module.
pub(super) struct Slices {
    record: UnfinishedDelete,
    first: Option<Bytes>,
    last: Bytes,
    bytes: u64,
    previous: Previous,
}

/// The deleted pairs for the answer.
pub(super) struct Previous {
    /// No pairs are asked for, nobody waits for them, or they are too large.
    dropped: bool,
    asked: bool,
    most_bytes: usize,
    bytes: usize,
    kvs: Vec<EncodedKv>,
}

impl Previous {
    pub fn new(asked: bool, kept: &AnswerLimit) -> Self {
        Self {
            dropped: !asked || !kept.keeps_more(),
            asked,
            most_bytes: kept.left_bytes(),
            bytes: 0,
            kvs: Vec::new(),
        }
    }

    pub fn add(&mut self, key: &[u8], record: &[u8]) -> storage::Result<()> {
        self.bytes = self.bytes.saturating_add(key.len() + record.len());
        if self.bytes > self.most_bytes {
            self.dropped = true;
            self.kvs = Vec::new();
        }
        if !self.dropped {
            let record = Bytes::copy_from_slice(record);
            let version = Version::decode(record, Family::Current, key)?;
            self.kvs.push(version.to_kv(key));
        }
        Ok(())
    }

    /// Those of the answer.
    pub fn take(&mut self, kept: &mut AnswerLimit) -> Vec<EncodedKv> {
        match self.asked && kept.takes(self.bytes) {
            true => std::mem::take(&mut self.kvs),
            false => Vec::new(),
        }
    }
}

/// How far a state came in the log.
pub fn applied(read: &dyn Read) -> storage::Result<Applied> {
    let value = read.get(Family::Meta, meta::APPLIED)?;
    value.map_or(Ok(Applied::default()), |value| Applied::decode(&value))
}

impl Slices {
    /// Of nothing yet; `record` names what is to be deleted.
    pub fn begin(record: UnfinishedDelete, previous: Previous) -> Self {
        probe::reached(CoveragePoint::DeleteSliced);
        Self {
            record,
            first: None,
            last: Bytes::new(),
            bytes: 0,
            previous,
        }
    }

    /// Continues one that a state holds a part of. `writer` is of that state.
    pub fn resume(mut record: UnfinishedDelete, writer: &mut Writer) -> Self {
        probe::reached(CoveragePoint::DeleteResumed);
        writer.note_deleted(record.deleted as i64);
        if probe::injected(Defect::SliceResumedFromStart) {
            record.deleted = 0;
        }
        let nobody = AnswerLimit::up_to(0);
        Self::begin(record, Previous::new(false, &nobody))
    }

    pub fn record(&self) -> &UnfinishedDelete {
        &self.record
    }

    pub fn deleted(&self) -> i64 {
        self.record.deleted as i64
    }

    /// Deletes as many keys as a batch may hold, and writes it; `applied` is the entry before.
    /// False once none is left.
    pub fn step(
        &mut self,
        writer: &mut Writer,
        applied: (u64, u64),
        limit: SliceLimit,
    ) -> storage::Result<bool> {
        let before = self.record.deleted;
        let engine = writer.engine().clone();
        let more = match self.record.lease.is_some() {
            true => self.delete_attached(engine.as_ref(), writer, limit)?,
            false => self.delete_range(engine.as_ref(), writer, limit)?,
        };
        if self.record.deleted > before {
            self.record.rest = self.record.rest.behind(&self.last);
            self.bytes += writer.batch().size_bytes() as u64;
            writer.write_part(applied.0, applied.1, &self.record)?;
        }
        Ok(more)
    }

    fn delete_range(
        &mut self,
        engine: &dyn Engine,
        writer: &mut Writer,
        limit: SliceLimit,
    ) -> storage::Result<bool> {
        let rest = self.record.rest.clone();
        let mut cursor = cursor(engine.latest(), Family::Current, &[], &rest)?;
        let (mut keys, mut bytes) = (0, 0);
        while !limit.is_reached_by(keys, bytes) {
            if !cursor.next()? {
                return Ok(false);
            }
            keys += 1;
            bytes += cursor.key().len() + cursor.value().len();
            self.delete(cursor.key(), cursor.value(), writer)?;
        }
        Ok(true)
    }

    fn delete_attached(
        &mut self,
        engine: &dyn Engine,
        writer: &mut Writer,
        limit: SliceLimit,
    ) -> storage::Result<bool> {
        let lease = schema::lease_key(self.record.lease, &[]);
        let rest = self.record.rest.clone();
        let mut cursor = cursor(engine.latest(), Family::LeaseKeys, &lease, &rest)?;
        let mut records = Neighbours::new(engine.latest(), &rest)?;
        let (mut keys, mut bytes) = (0, 0);
        while !limit.is_reached_by(keys, bytes) {
            if !cursor.next()? {
                return Ok(false);
            }
            let key = schema::decode_lease_key(cursor.key());
            if let Some(record) = records.get(key)? {
                keys += 1;
                bytes += key.len() + record.len();
                self.delete(key, record, writer)?;
            }
        }
        Ok(true)
    }

    fn delete(&mut self, key: &[u8], record: &[u8], writer: &mut Writer) -> storage::Result<()> {
        let revision = Revision::new(self.record.revision, self.record.deleted as i64);
        let old = writer.delete_unseen(key, record, revision)?;
        lease::move_key(old.lease, LeaseId::NONE, key, writer);
        self.previous.add(key, record)?;
        self.record.deleted += 1;
        // One of them per batch would do, but which is the last of it shows only at its end.
        self.last = Bytes::copy_from_slice(key);
        if self.first.is_none() {
            self.first = Some(self.last.clone());
        }
        Ok(())
    }

    /// All is deleted: the next commit ends the entry. Returns the deletion and the deleted pairs
    /// for its answer.
    pub fn finish(
        mut self,
        writer: &mut Writer,
        kept: &mut AnswerLimit,
    ) -> (Option<Sliced>, Vec<EncodedKv>) {
        if self.record.deleted == 0 {
            // It made no revision.
            return (None, Vec::new());
        }
        let first = self.first.take().unwrap_or_default();
        let revision = self.record.revision;
        writer.set_head(revision);
        let end = KeyRange::Point(self.last.clone()).behind(&self.last);
        let sliced = Sliced {
            revision,
            span: KeyRange::Span(first, end.start().clone()),
            puts: 0,
            put_bytes: 0,
            bytes: self.bytes,
        };
        (Some(sliced), self.previous.take(kept))
    }
}

/// Finds the records of keys that come in order. The keys of a lease mostly lie beside each other:
/// a step from one to the next costs much less than to look for each.
struct Neighbours<'a> {
    read: &'a dyn Read,
    cursor: Box<dyn Cursor + 'a>,
    /// The cursor stands on a key.
    stands: bool,
    /// How often the next key was not the one that was asked for.
    misses: usize,
    found: Bytes,
}

impl<'a> Neighbours<'a> {
    /// With more misses in a row each key is looked for.
    const MOST_MISSES: usize = 8;

    /// For keys of `range`.
    fn new(read: &'a dyn Read, range: &KeyRange) -> storage::Result<Self> {
        let mut cursor = cursor(read, Family::Current, &[], range)?;
        Ok(Self {
            read,
            stands: cursor.next()?,
            cursor,
            misses: 0,
            found: Bytes::new(),
        })
    }

    fn get(&mut self, key: &[u8]) -> storage::Result<Option<&[u8]>> {
        if self.misses > Self::MOST_MISSES {
            self.found = match self.read.get(Family::Current, key)? {
                Some(record) => record,
                None => return Ok(None),
            };
            return Ok(Some(&self.found));
        }
        if self.stands && self.cursor.key() < key {
            self.stands = self.cursor.next()?;
        }
        self.misses += 1;
        if self.stands && self.cursor.key() < key {
            self.stands = self.cursor.seek(key)?;
        } else {
            self.misses = 0;
        }
        let found = self.stands && self.cursor.key() == key;
        Ok(found.then(|| self.cursor.value()))
    }
}

/// Takes back what is written of a transaction, in batches of `limit`; the last is not written yet.
/// Each leaves a state from which it can continue.
pub fn take_back(
    writer: &mut Writer,
    revision: i64,
    applied: (u64, u64),
    limit: SliceLimit,
) -> storage::Result<()> {
    let engine = writer.engine().clone();
    let lower = schema::revision_key(Revision::new(revision, 0));
    let upper = schema::revision_key(Revision::new(revision + 1, 0));
    loop {
        let read = engine.latest();
        let mut log = read.cursor(Family::Revisions, &lower, Some(&upper))?;
        let mut keys = 0;
        while !limit.is_reached_by(keys, writer.batch().size_bytes()) {
            if !log.next()? {
                return Ok(());
            }
            let record = RevisionRecord::decode(log.key(), log.value())?;
            let (from, to) = writer.take_back(decode_revision(log.key())?, &record)?;
            lease::move_key(from, to, record.key, writer);
            keys += 1;
        }
        drop(log);
        writer.write_unfinished(applied, &Unfinished::Txn { revision })?;
    }
}

/// A cursor over the entries of a family that have `prefix` in front of a key of `range`, which are
/// read once.
fn cursor<'a>(
    read: &'a dyn Read,
    family: Family,
    prefix: &[u8],
    range: &KeyRange,
) -> storage::Result<Box<dyn Cursor + 'a>> {
    let prefixed = |key: &[u8]| [prefix, key].concat();
    let upper = match range {
        KeyRange::Span(_, end) => Some(prefixed(end)),
        KeyRange::From(_) | KeyRange::Point(_) => schema::prefix_end(prefix),
    };
    read.scan(family, &prefixed(range.start()), upper.as_deref())
}
