//! Changes to the keyspace, gathered into one batch per group of applied entries.
//!
//! This is the only place that gives out revisions. Changes of a group are kept in an overlay
//! over the engine until the group is written, so that a later entry of the group sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::read::parse_head;
use super::{Change, Result};
use crate::probe::{self, Defect};
use crate::storage::schema::{
    self, Applied, ChangeKind, Head, RevisionRecord, UnfinishedDelete, Version, meta,
};
use crate::storage::{self, Batch, Cursor, Engine, Family, Read};
use crate::types::{FIRST_REVISION, KeyRange, LeaseId, Revision};

type Overlay = BTreeMap<Bytes, Option<Version>>;

/// What one batch of a deletion may hold: one that concerns more is written in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceLimit {
    pub keys: usize,
    /// Of keys and versions.
    pub bytes: usize,
}

impl SliceLimit {
    /// Everything in one batch.
    pub const NONE: Self = Self {
        keys: usize::MAX,
        bytes: usize::MAX,
    };

    pub fn is_exceeded_by(&self, keys: usize, bytes: usize) -> bool {
        // A key alone fits whatever its size.
        keys > self.keys || bytes > self.bytes && keys > 1
    }

    /// True where so many keys of so many bytes fill a batch.
    pub fn is_reached_by(&self, keys: usize, bytes: usize) -> bool {
        keys >= self.keys || bytes >= self.bytes
    }
}

impl Default for SliceLimit {
    fn default() -> Self {
        Self {
            keys: 8_192,
            bytes: 4 << 20,
        }
    }
}

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
        let applied = Applied::encode(applied_index, applied_term, Some(left));
        self.batch.put(Family::Meta, meta::APPLIED, &applied);
        self.engine.write(&self.batch)?;
        self.batch.clear();
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
        let head = schema::encode_numbers(&[self.head as u64, self.keys as u64]);
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
        Txn {
            main: self.head + 1,
            writer: self,
            changes: Vec::new(),
        }
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
    main: i64,
    changes: Vec<Change>,
}

impl Txn<'_> {
    /// The revision that a read of this transaction sees: the new one after its first change.
    pub fn revision(&self) -> i64 {
        if self.changes.is_empty() {
            self.writer.head
        } else {
            self.main
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

    /// The state before this transaction; right only where nothing was pending when it began.
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
        let (create_revision, number) = previous
            .as_ref()
            .map_or((self.main, 1), |old| (old.create_revision, old.version + 1));
        let version = Version::encode(create_revision, revision, number, lease, value);
        let batch = &mut self.writer.batch;
        batch.put(Family::Current, key, version.record());
        self.record(key, ChangeKind::Put, Some(version), previous.clone());
        Ok(previous)
    }

    /// Deletes every key of the range and returns what was there, in key order.
    pub fn delete_range(&mut self, range: &KeyRange) -> Result<Vec<(Bytes, Version)>> {
        let found = self.find(range, SliceLimit::NONE)?.unwrap_or_default();
        self.delete(&found);
        Ok(found)
    }

    /// What is there of a range, in key order; `None` where a range holds more than `limit`.
    pub fn find(
        &self,
        range: &KeyRange,
        limit: SliceLimit,
    ) -> Result<Option<Vec<(Bytes, Version)>>> {
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
                    let key = Bytes::copy_from_slice(cursor.key());
                    let record = Bytes::copy_from_slice(cursor.value());
                    bytes += key.len() + record.len();
                    if limit.is_exceeded_by(found.len() + 1, bytes) {
                        return Ok(None);
                    }
                    let version = Version::decode(record, Family::Current, &key)?;
                    found.push((key, version));
                }
            }
        }
        Ok(Some(found))
    }

    /// Deletes what `find` has found.
    pub fn delete(&mut self, found: &[(Bytes, Version)]) {
        for (key, version) in found {
            self.writer.batch.delete(Family::Current, key);
            self.record(key, ChangeKind::Delete, None, Some(version.clone()));
        }
    }

    /// Ends the transaction; returns its changes in order.
    pub fn finish(self) -> Vec<Change> {
        if !self.changes.is_empty() {
            self.writer.head = self.main;
        }
        self.changes
    }

    fn next_revision(&self) -> Revision {
        Revision::new(self.main, self.changes.len() as i64)
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
        let previous = match previous {
            // A watch sees the version before the transaction, not one within it.
            Some(old) if old.mod_revision.main == self.main => self
                .changes
                .iter()
                .find(|change| change.key == *key)
                .and_then(|change| change.previous.clone()),
            previous => previous,
        };
        self.changes.push(Change {
            key: key.clone(),
            revision,
            kind,
            version,
            previous,
        });
    }
}

/// The engine's newest state with the pending changes of `current` laid over it.
pub struct Pending<'a> {
    base: &'a dyn Read,
    overlay: &'a Overlay,
}

impl<'a> Pending<'a> {
    fn current(&'a self, range: &KeyRange) -> storage::Result<Box<dyn Cursor + 'a>> {
        match range {
            KeyRange::Span(start, end) => self.cursor(Family::Current, start, Some(end)),
            KeyRange::From(start) => self.cursor(Family::Current, start, None),
            KeyRange::Point(key) => {
                let mut end = key.to_vec();
                end.push(0);
                self.cursor(Family::Current, key, Some(&end))
            }
        }
    }
}

impl Read for Pending<'_> {
    fn get(&self, family: Family, key: &[u8]) -> storage::Result<Option<Bytes>> {
        if family == Family::Current
            && let Some(version) = self.overlay.get(key)
        {
            return Ok(version.as_ref().map(|version| version.record().clone()));
        }
        self.base.get(family, key)
    }

    fn cursor<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> storage::Result<Box<dyn Cursor + 'a>> {
        let base = self.base.cursor(family, lower, upper)?;
        if family != Family::Current || self.overlay.is_empty() {
            return Ok(base);
        }
        Ok(Box::new(PendingCursor {
            base,
            base_state: BaseState::Unread,
            overlay: self.overlay,
            overlay_from: Bound::Included(Bytes::copy_from_slice(lower)),
            upper: upper.map(Bytes::copy_from_slice),
            entry: None,
        }))
    }
}

#[derive(PartialEq)]
enum BaseState {
    Unread,
    At,
    End,
}

/// Merges the engine's cursor with the overlay, which wins.
struct PendingCursor<'a> {
    base: Box<dyn Cursor + 'a>,
    base_state: BaseState,
    overlay: &'a Overlay,
    overlay_from: Bound<Bytes>,
    upper: Option<Bytes>,
    /// The overlay's entry where that is what it stands on.
    entry: Option<(Bytes, Bytes)>,
}

impl PendingCursor<'_> {
    fn advance_base(&mut self) -> storage::Result<()> {
        self.base_state = if self.base.next()? {
            BaseState::At
        } else {
            BaseState::End
        };
        Ok(())
    }

    fn step(&mut self) -> storage::Result<bool> {
        loop {
            let upper = match &self.upper {
                Some(upper) => Bound::Excluded(upper.clone()),
                None => Bound::Unbounded,
            };
            // An inverted range would panic in the map; the cursors treat it as empty.
            let inverted = match (&self.overlay_from, &upper) {
                (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(upper)) => {
                    from >= upper
                }
                _ => false,
            };
            let pending = if inverted {
                None
            } else {
                self.overlay
                    .range((self.overlay_from.clone(), upper))
                    .next()
            };
            let Some((key, version)) = pending else {
                return Ok(self.base_state == BaseState::At);
            };
            if self.base_state == BaseState::At && self.base.key() < key.as_ref() {
                return Ok(true);
            }
            if self.base_state == BaseState::At && self.base.key() == key.as_ref() {
                self.advance_base()?;
            }
            self.overlay_from = Bound::Excluded(key.clone());
            if let Some(version) = version {
                self.entry = Some((key.clone(), version.record().clone()));
                return Ok(true);
            }
        }
    }
}

impl Cursor for PendingCursor<'_> {
    fn next(&mut self) -> storage::Result<bool> {
        let on_base = self.entry.take().is_none();
        if self.base_state == BaseState::Unread || (on_base && self.base_state == BaseState::At) {
            self.advance_base()?;
        }
        self.step()
    }

    fn seek(&mut self, key: &[u8]) -> storage::Result<bool> {
        self.entry = None;
        self.base_state = if self.base.seek(key)? {
            BaseState::At
        } else {
            BaseState::End
        };
        self.overlay_from = Bound::Included(Bytes::copy_from_slice(key));
        self.step()
    }

    fn key(&self) -> &[u8] {
        match &self.entry {
            Some((key, _)) => key,
            None => self.base.key(),
        }
    }

    fn value(&self) -> &[u8] {
        match &self.entry {
            Some((_, record)) => record,
            None => self.base.value(),
        }
    }
}
