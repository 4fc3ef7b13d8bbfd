//! One number for the whole history, equal to etcd's `HashKV` for the same history.
//!
//! etcd hashes its `key` bucket: the bucket's name, then of each kept revision in order the
//! seventeen (tombstones: eighteen) bytes of its key and the protobuf of its pair. Up to the
//! compacted revision it counts only what is live at the hashed revision, so that members agree
//! however far their compactions have come.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use super::Result;
use super::history::decode_revision;
use super::read::Snapshot;
use crate::error;
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::KeyValue;
use crate::storage::schema::{self, ChangeKind, RevisionRecord};
use crate::storage::{self, Family};
use crate::types::{KeyRange, Revision};

/// A hash and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryHash {
    pub hash: u32,
    pub compacted: i64,
    /// The newest revision in it.
    pub revision: i64,
    /// The result of etcd's other hash function for the same history: `hash` and
    /// `hash_for_compaction` differ if the newest revision deleted all remaining keys.
    pub otherwise: u32,
}

impl HistoryHash {
    /// Whether another member's hash can be of the same history, with the same compaction. Members
    /// that have compacted to the revision report that hash, others compute one.
    pub fn agrees_with(&self, hash: u32) -> bool {
        if hash == self.hash {
            return true;
        }
        let agrees = hash == self.otherwise && !probe::injected(Defect::CompactionHashAlone);
        if agrees {
            probe::reached(CoveragePoint::CompactionHashMet);
        }
        agrees
    }
}

/// The key of a change in etcd's `key` bucket: the revision, and a mark if it is a tombstone.
pub struct RecordKey {
    bytes: [u8; 18],
    tombstone: bool,
}

impl RecordKey {
    pub fn new(revision: Revision, tombstone: bool) -> Self {
        let mut bytes = [0u8; 18];
        bytes[..8].copy_from_slice(&(revision.main as u64).to_be_bytes());
        bytes[8] = b'_';
        bytes[9..17].copy_from_slice(&(revision.sub as u64).to_be_bytes());
        bytes[17] = b't';
        Self { bytes, tombstone }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..if self.tombstone { 18 } else { 17 }]
    }
}

/// CRC-32C over etcd's encoding of the history.
pub struct HistoryHasher {
    crc: u32,
}

impl HistoryHasher {
    pub fn new() -> Self {
        Self {
            crc: crc32c::crc32c(b"key"),
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
    }

    pub fn change(&mut self, revision: Revision, tombstone: bool, pair: &KeyValue) {
        self.write(RecordKey::new(revision, tombstone).bytes());
        self.write(&pair.encode_to_vec());
    }

    pub fn finish(self) -> u32 {
        self.crc
    }
}

impl Default for HistoryHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl Snapshot<'_> {
    /// Hashes the history up to `revision`; 0 for all of it. As in etcd there is nothing to hash
    /// below it.
    pub fn hash(&self, revision: i64) -> Result<HistoryHash> {
        if revision > self.head {
            return Err(error::Error::FutureRevision.into());
        }
        if revision > 0 && revision < self.compacted {
            return Err(error::Error::Compacted.into());
        }
        let revision = if revision == 0 { self.head } else { revision };
        let (any_live, any_kept) = self.finds_any(revision)?;
        Ok(self.hash_up_to(revision, any_live, any_kept)?)
    }

    /// Hashes the history up to `revision` as a compaction to it finds it. Other than `hash`,
    /// etcd's compaction counts a key that is deleted at the very revision as one that it keeps.
    pub fn hash_for_compaction(&self, revision: i64) -> storage::Result<HistoryHash> {
        let (any_live, any_kept) = self.finds_any(revision)?;
        self.hash_up_to(revision, any_kept, any_live)
    }

    /// Whether etcd's index finds a live key at `revision`, and whether its compaction to it
    /// would keep one.
    fn finds_any(&self, revision: i64) -> storage::Result<(bool, bool)> {
        let any_live = revision > 0 && self.index_finds_any(revision)?;
        Ok((any_live, any_live || !self.deleted_at(revision)?.is_empty()))
    }

    /// `otherwise`: what the other way has for `any_kept`.
    fn hash_up_to(
        &self,
        revision: i64,
        any_kept: bool,
        otherwise: bool,
    ) -> storage::Result<HistoryHash> {
        let hash = self.hash_records(revision, any_kept)?;
        Ok(HistoryHash {
            hash,
            compacted: self.compacted,
            revision,
            otherwise: match otherwise == any_kept {
                true => hash,
                false => self.hash_records(revision, otherwise)?,
            },
        })
    }

    fn hash_records(&self, revision: i64, any_kept: bool) -> storage::Result<u32> {
        let mut hasher = HistoryHasher::new();
        if revision <= 0 {
            return Ok(hasher.finish());
        }
        // If nothing is kept, etcd cannot distinguish dead versions from kept ones and includes
        // all.
        let live_at = if any_kept { revision } else { self.compacted };
        let upper = schema::revision_key(Revision::new(revision + 1, 0));
        let mut log = self.read.cursor(Family::Revisions, &[], Some(&upper))?;
        while log.next()? {
            let at = decode_revision(log.key())?;
            let record = RevisionRecord::decode(log.key(), log.value())?;
            self.hash_record(&mut hasher, at, &record, live_at)?;
        }
        Ok(hasher.finish())
    }

    /// Whether etcd's index finds a live key at `revision`: it overlooks a key that the revision
    /// itself deleted, even where the same transaction made it again.
    fn index_finds_any(&self, revision: i64) -> storage::Result<bool> {
        let deleted = self.deleted_at(revision)?;
        let everything = KeyRange::From(Bytes::from_static(&[0]));
        let mut walk = self.walk(&everything, revision)?;
        while walk.advance()? {
            if !deleted.contains(walk.key()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The keys that `revision` deleted.
    fn deleted_at(&self, revision: i64) -> storage::Result<BTreeSet<Vec<u8>>> {
        let lower = schema::revision_key(Revision::new(revision, 0));
        let upper = schema::revision_key(Revision::new(revision + 1, 0));
        let mut log = self.read.cursor(Family::Revisions, &lower, Some(&upper))?;
        let mut deleted = BTreeSet::new();
        while log.next()? {
            let record = RevisionRecord::decode(log.key(), log.value())?;
            if record.kind == ChangeKind::Delete {
                deleted.insert(record.key.to_vec());
            }
        }
        Ok(deleted)
    }

    fn hash_record(
        &self,
        hasher: &mut HistoryHasher,
        at: Revision,
        record: &RevisionRecord<'_>,
        live_at: i64,
    ) -> storage::Result<()> {
        let kept_only = at.main <= self.compacted;
        match record.kind {
            ChangeKind::Delete if kept_only => {}
            ChangeKind::Delete => {
                let pair = KeyValue {
                    key: Bytes::copy_from_slice(record.key),
                    ..Default::default()
                };
                hasher.change(at, true, &pair);
            }
            ChangeKind::Put => {
                let Some((version, superseded)) = self.find_version(record.key, at)? else {
                    // Only a compaction that is still running leaves a record without a version.
                    return Ok(());
                };
                let dead = superseded.is_some_and(|superseded| superseded.main <= live_at);
                if !(kept_only && dead) {
                    hasher.change(at, false, &version.to_key_value(record.key));
                }
            }
        }
        Ok(())
    }
}
