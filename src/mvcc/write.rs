//! Changes to the keyspace, gathered into one batch per group of applied entries.
//!
//! This is the only place that gives out revisions. Changes of a group are kept in an overlay
//! over the engine until the group is written, so that a later entry of the group sees them.
//!
//! A transaction that changes much is written in several batches, of which memory holds one. Who
//! looks for its changes finds them in the revision log (`Sliced`). Every batch but the last says
//! that it is a part (`Unfinished::Txn`), so that a state with a part, as a crash may leave it, is
//! made the one before the transaction: `take_back`. Between two of them it can be put aside.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::parts::Parts;
pub use super::parts::{SliceLimit, Sliced};
use super::pending::{Overlay, Pending};
use super::read::parse_head;
use super::{Change, Result};
use crate::probe::{self, CoveragePoint, Defect};
use crate::storage::schema::{
    self, Applied, ChangeKind, Head, RevisionRecord, Unfinished, UnfinishedDelete, Version, meta,
};
use crate::storage::{self, Batch, Engine, Family, Read};
use crate::types::{FIRST_REVISION, KeyRange, LeaseId, Revision};

/// The keyspace's only writer.
pub struct Writer {
    engine: Arc<dyn Engine>,
    batch: Batch,
    overlay: Overlay,
    /// Leases whose attached keys changed in the batch.
    moved: BTreeSet<LeaseId>,
    head: i64,
    compacted: i64,
    keys: i64,
}

impl Writer {
    /// Takes up the keyspace of `engine` where it stands.
    pub fn open(engine: Arc<dyn Engine>) -> storage::Result<Self> {
        let [head, keys] = match engine.latest().get(Family::Meta, meta::HEAD)? {
            Some(value) => schema::decode_numbers(&value, meta::HEAD)?,
            None => [FIRST_REVISION as u64, 0],
        };
        let compacted = read_i64(engine.as_ref(), meta::COMPACTED)?.unwrap_or(-1);
        Ok(Self {
            engine,
            batch: Batch::default(),
            overlay: Overlay::new(),
            moved: BTreeSet::new(),
            head: head as i64,
            compacted,
            keys: keys as i64,
        })
    }

    /// The newest revision.
    pub fn head(&self) -> i64 {
        self.head
    }

    /// How many keys there are at the newest revision.
    pub fn keys(&self) -> i64 {
        self.keys
    }

    /// The revision that the history is compacted to; -1 before the first compaction.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    pub fn set_compacted(&mut self, revision: i64) {
        self.compacted = revision;
        let value = schema::encode_numbers(&[revision as u64]);
        self.batch.put(Family::Meta, meta::COMPACTED, &value);
    }

    /// The batch of the group, for records that must change together with the keyspace.
    pub fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// True where anything waits to be written.
    pub fn is_pending(&self) -> bool {
        self.batch.size_bytes() > 0
    }

    /// True where changes wait to be written.
    pub fn has_pending_keys(&self) -> bool {
        !self.overlay.is_empty()
    }

    /// True where the engine does not have all changes of a lease's keys yet.
    pub fn has_pending_attachments(&self, lease: LeaseId) -> bool {
        self.moved.contains(&lease)
    }

    /// Notes that the batch changes the keys of a lease.
    pub fn note_attachment(&mut self, lease: LeaseId) {
        self.moved.insert(lease);
    }

    /// Writes a part of a deletion with what is `left` of it; the entry before its own is still
    /// the last applied. Nothing else may be pending.
    pub fn write_part(
        &mut self,
        applied_index: u64,
        applied_term: u64,
        left: &UnfinishedDelete,
    ) -> storage::Result<()> {
        debug_assert!(!self.has_pending_keys(), "they would be lost from sight");
        let left = Unfinished::Delete(left.clone());
        self.write_unfinished((applied_index, applied_term), &left)
    }

    /// Writes the batch as a part of what follows the entry `applied`.
    pub fn write_unfinished(
        &mut self,
        (index, term): (u64, u64),
        unfinished: &Unfinished,
    ) -> storage::Result<()> {
        let applied = Applied::encode(index, term, Some(unfinished));
        self.batch.put(Family::Meta, meta::APPLIED, &applied);
        self.engine.write(&self.batch)?;
        self.batch.clear();
        self.overlay.clear();
        self.moved.clear();
        Ok(())
    }

    /// Puts the deletion of a key into the batch alone: not to be read before it is written.
    /// Returns the head of the version that it had.
    pub fn delete_unseen(
        &mut self,
        key: &[u8],
        record: &[u8],
        revision: Revision,
    ) -> storage::Result<Head> {
        let old = parse_head(key, record)?;
        self.batch.delete(Family::Current, key);
        self.log_change(
            key,
            ChangeKind::Delete,
            revision,
            Some((old.mod_revision, record)),
        );
        self.keys -= 1;
        Ok(old)
    }

    /// The keys that a deletion which is taken up again has deleted before.
    pub fn note_deleted(&mut self, keys: i64) {
        self.keys -= keys;
    }

    /// Takes back a change of a transaction of which only a part was written; its changes come in
    /// order. Returns the leases that its key has left and is attached to again.
    pub fn take_back(
        &mut self,
        revision: Revision,
        record: &RevisionRecord<'_>,
    ) -> storage::Result<(LeaseId, LeaseId)> {
        let key = record.key;
        let now = self.get(key)?;
        self.batch
            .delete(Family::Revisions, &schema::revision_key(revision));
        let mut before = None;
        if let Some(superseded) = record.superseded {
            let undo = schema::undo_key(key, revision);
            if superseded.main < revision.main {
                let kept = self.engine.latest().get(Family::Undo, &undo)?;
                let kept = kept.ok_or_else(|| storage::Error::Damaged {
                    family: Family::Undo,
                    key: undo.clone(),
                    reason: "the version before an unfinished transaction is gone",
                })?;
                before = Some(Version::decode(kept, Family::Undo, &undo)?);
            }
            self.batch.delete(Family::Undo, &undo);
        }
        let is_its = |version: &Version| version.mod_revision.main == revision.main;
        if before.is_none() && !now.as_ref().is_some_and(is_its) {
            // A change before it of the same key has put back what there was.
            return Ok((LeaseId::NONE, LeaseId::NONE));
        }
        match &before {
            Some(version) => self.batch.put(Family::Current, key, version.record()),
            None => self.batch.delete(Family::Current, key),
        }
        let lease =
            |version: &Option<Version>| version.as_ref().map_or(LeaseId::NONE, |it| it.lease);
        let leases = (lease(&now), lease(&before));
        self.overlay.insert(Bytes::copy_from_slice(key), before);
        Ok(leases)
    }

    /// Everything of `revision` is written.
    pub fn set_head(&mut self, revision: i64) {
        self.head = revision;
    }

    /// Writes undo entry and revision record of a change; `old` is what it supersedes.
    fn log_change(
        &mut self,
        key: &[u8],
        kind: ChangeKind,
        revision: Revision,
        old: Option<(Revision, &[u8])>,
    ) {
        if let Some((_, record)) = old {
            let undo = schema::undo_key(key, revision);
            self.batch.put(Family::Undo, &undo, record);
        }
        let head = RevisionRecord::encode_head(kind, old.map(|(superseded, _)| superseded));
        self.batch.put_parts(
            Family::Revisions,
            &[&schema::revision_key(revision)],
            &[&head, key],
        );
    }

    /// Writes the group: what it changed and the entry that it ends with, in one batch.
    pub fn commit(&mut self, applied_index: u64, applied_term: u64) -> storage::Result<()> {
        let applied = Applied::encode(applied_index, applied_term, None);
        if !probe::injected(Defect::AppliedIndexLeftOut) {
            self.batch.put(Family::Meta, meta::APPLIED, &applied);
        }
        let head = schema::encode_numbers(&self.totals());
        self.batch.put(Family::Meta, meta::HEAD, &head);
        self.engine.write(&self.batch)?;
        self.batch.clear();
        self.overlay.clear();
        self.moved.clear();
        Ok(())
    }

    /// Reads the newest state, pending changes included.
    pub fn pending(&self) -> Pending<'_> {
        Pending {
            base: self.engine.latest(),
            overlay: &self.overlay,
        }
    }

    pub fn begin(&mut self) -> Txn<'_> {
        let state = TxnState {
            main: self.head + 1,
            changes: Vec::new(),
            made: 0,
            parts: None,
        };
        self.resume(state)
    }

    /// Continues one behind a part of it.
    pub fn resume(&mut self, state: TxnState) -> Txn<'_> {
        Txn {
            writer: self,
            state,
        }
    }

    /// A transaction that is written in parts where it changes more than `limit`; `applied` is the
    /// entry before. What is pending is written with the first part.
    pub fn begin_in_parts(&mut self, applied: (u64, u64), limit: SliceLimit) -> Txn<'_> {
        let parts = Parts::none(applied, self.totals(), limit, self.batch.size_bytes());
        let mut txn = self.begin();
        txn.state.parts = Some(parts);
        txn
    }

    /// The value of `meta::HEAD`.
    fn totals(&self) -> [u64; 2] {
        [self.head as u64, self.keys as u64]
    }

    fn get(&self, key: &[u8]) -> storage::Result<Option<Version>> {
        if let Some(version) = self.overlay.get(key) {
            return Ok(version.clone());
        }
        self.engine
            .latest()
            .get(Family::Current, key)?
            .map(|record| Version::decode(record, Family::Current, key))
            .transpose()
    }
}

fn read_i64(engine: &dyn Engine, key: &[u8]) -> storage::Result<Option<i64>> {
    let Some(value) = engine.latest().get(Family::Meta, key)? else {
        return Ok(None);
    };
    let [number] = schema::decode_numbers(&value, key)?;
    Ok(Some(number as i64))
}

/// One transaction: all its changes share a main revision, and it makes none without a change.
pub struct Txn<'a> {
    writer: &'a mut Writer,
    state: TxnState,
}

/// Gets what a piece of a deletion has found, in key order.
pub type Deleted<'a> = dyn FnMut(&mut Writer, &[(Bytes, Version)]) -> storage::Result<()> + 'a;

/// A transaction between two of its parts.
pub struct TxnState {
    main: i64,
    /// Those that no part was written of.
    changes: Vec<Change>,
    /// How many changes there were.
    made: i64,
    parts: Option<Parts>,
}

impl Txn<'_> {
    /// The revision that a read of this transaction sees: the new one after its first change.
    pub fn revision(&self) -> i64 {
        match self.state.made {
            0 => self.writer.head,
            _ => self.state.main,
        }
    }

    pub fn writer(&mut self) -> &mut Writer {
        self.writer
    }

    pub fn compacted(&self) -> i64 {
        self.writer.compacted
    }

    /// The state that this transaction sees, its own changes included.
    pub fn pending(&self) -> Pending<'_> {
        self.writer.pending()
    }

    /// What is written, for reads of the revisions before this transaction; right only where nothing
    /// was pending when it began.
    pub fn base(&self) -> &dyn Read {
        self.writer.engine.latest()
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Version>> {
        Ok(self.writer.get(key)?)
    }

    /// Writes a new version and returns the one before.
    pub fn put(&mut self, key: &Bytes, value: &[u8], lease: LeaseId) -> Result<Option<Version>> {
        let previous = self.writer.get(key)?;
        let revision = self.next_revision();
        let (create_revision, number) = previous.as_ref().map_or((self.state.main, 1), |old| {
            (old.create_revision, old.version + 1)
        });
        let version = Version::encode(create_revision, revision, number, lease, value);
        let batch = &mut self.writer.batch;
        batch.put(Family::Current, key, version.record());
        self.record(key, ChangeKind::Put, Some(version), previous.clone());
        Ok(previous)
    }

    /// Deletes the next keys of `rest`, as many as a part may hold, and sets it to what is behind
    /// them; `deleted` gets what was there. False once none is left.
    pub fn delete_piece(&mut self, rest: &mut KeyRange, deleted: &mut Deleted<'_>) -> Result<bool> {
        let parts = self.state.parts.as_ref();
        let limit = parts.map_or(SliceLimit::NONE, |parts| parts.limit);
        let (found, more) = self.gather(rest, limit)?;
        if let Some((last, _)) = found.last() {
            *rest = rest.behind(last);
        }
        self.delete(&found);
        deleted(self.writer, &found)?;
        Ok(more)
    }

    /// What is there of a range, in key order; `None` where a range holds more than `limit`.
    pub fn find(
        &self,
        range: &KeyRange,
        limit: SliceLimit,
    ) -> Result<Option<Vec<(Bytes, Version)>>> {
        let (found, more) = self.gather(range, limit)?;
        Ok((!more).then_some(found))
    }

    /// The first of a range, as many as `limit` lets be, and whether there are more.
    fn gather(&self, range: &KeyRange, limit: SliceLimit) -> Result<(Vec<(Bytes, Version)>, bool)> {
        let mut found = Vec::new();
        let mut bytes = 0;
        match range {
            KeyRange::Point(key) => {
                if let Some(version) = self.writer.get(key)? {
                    found.push((key.clone(), version));
                }
            }
            range if range.is_empty() => {}
            range => {
                let pending = self.writer.pending();
                let mut cursor = pending.current(range)?;
                while cursor.next()? {
                    bytes += cursor.key().len() + cursor.value().len();
                    if limit.is_exceeded_by(found.len() + 1, bytes) {
                        return Ok((found, true));
                    }
                    let key = Bytes::copy_from_slice(cursor.key());
                    let record = Bytes::copy_from_slice(cursor.value());
                    let version = Version::decode(record, Family::Current, &key)?;
                    found.push((key, version));
                }
            }
        }
        Ok((found, false))
    }

    /// Deletes what `find` has found.
    pub fn delete(&mut self, found: &[(Bytes, Version)]) {
        for (key, version) in found {
            self.writer.batch.delete(Family::Current, key);
            self.record(key, ChangeKind::Delete, None, Some(version.clone()));
        }
    }

    /// Between two changes, whose leases know of them: writes a part where one is full; true if so.
    pub fn end_piece(&mut self) -> storage::Result<bool> {
        let state = &mut self.state;
        let Some(parts) = &mut state.parts else {
            return Ok(false);
        };
        let batch = &mut self.writer.batch;
        let bytes = batch.size_bytes();
        if !(parts.limit).is_reached_by(state.changes.len(), bytes - parts.earlier_bytes) {
            return Ok(false);
        }
        probe::reached(CoveragePoint::TxnSliced);
        parts.note(state.changes.drain(..), bytes);
        let part = Unfinished::Txn {
            revision: state.main,
        };
        let head = schema::encode_numbers(&parts.before);
        batch.put(Family::Meta, meta::HEAD, &head);
        self.writer.write_unfinished(parts.applied, &part)?;
        Ok(true)
    }

    /// Puts it aside behind a part.
    pub fn suspend(self) -> TxnState {
        debug_assert!(!self.writer.is_pending(), "it would be lost from sight");
        self.state
    }

    /// Ends the transaction; returns its changes in order, or where they are if a part of it was
    /// written.
    pub fn finish(self) -> (Vec<Change>, Option<Sliced>) {
        let (writer, mut state) = (self.writer, self.state);
        if state.made > 0 {
            writer.head = state.main;
        }
        let Some(mut parts) = state.parts.filter(Parts::are_written) else {
            return (state.changes, None);
        };
        if !probe::injected(Defect::LastPartUnseen) {
            parts.note(state.changes.drain(..), writer.batch.size_bytes());
        }
        (Vec::new(), parts.sliced(state.main))
    }

    fn next_revision(&self) -> Revision {
        Revision::new(self.state.main, self.state.made)
    }

    /// Writes undo entry, revision record and overlay of a change.
    fn record(
        &mut self,
        key: &Bytes,
        kind: ChangeKind,
        version: Option<Version>,
        previous: Option<Version>,
    ) {
        let revision = self.next_revision();
        let old = previous.as_ref();
        let old = old.map(|old| (old.mod_revision, old.record().as_ref()));
        self.writer.log_change(key, kind, revision, old);
        self.writer.overlay.insert(key.clone(), version.clone());
        self.writer.keys += match (kind, &previous) {
            (ChangeKind::Put, None) => 1,
            (ChangeKind::Put, Some(_)) => 0,
            (ChangeKind::Delete, _) => -1,
        };
        self.state.made += 1;
        let previous = match previous {
            // A watch sees the version before the transaction, not one within it.
            Some(old) if old.mod_revision.main == self.state.main => self
                .state
                .changes
                .iter()
                .find(|change| change.key == *key)
                .and_then(|change| change.previous.clone()),
            previous => previous,
        };
        self.state.changes.push(Change {
            key: key.clone(),
            revision,
            kind,
            version,
            previous,
        });
    }
}
