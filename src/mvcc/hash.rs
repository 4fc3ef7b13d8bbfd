//! One number for the whole history, equal to etcd's `HashKV` for the same history.
//!
//! etcd hashes its `key` bucket: the bucket's name, then of each kept revision in order the
//! seventeen (tombstones: eighteen) bytes of its key and the protobuf of its pair. Up to the
//! compacted revision it counts only what is live at the hashed revision, so that members agree
//! however far their compactions have come.
//!
//! Versions are kept in the order of their keys. To look up each revision's would be a read at a
//! random place, so all are read in the order that they have, each record is hashed on its own, and
//! the hashes are put together in the order of the revisions: a CRC is linear. `Hashing` does that
//! in steps. It holds as much memory as a `Sorter`, and a few bytes for each record go to a file
//! where that is not enough.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use bytes::Bytes;
use prost::Message;

use super::history::decode_revision;
use super::read::{PinnedView, parse_head};
use crate::error;
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::KeyValue;
use crate::storage::schema::{self, ChangeKind, Head, RevisionRecord, Version};
use crate::storage::sort::{SortedWalk, Sorter};
use crate::storage::{self, Family, Read};
use crate::types::{KeyRange, Revision};

/// A hash and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryHash {
    pub hash: u32,
    pub compacted: i64,
    /// The newest revision in it.
    pub revision: i64,
    /// The result of etcd's other hash function for the same history: `hash` and that for a
    /// compaction differ if the newest revision deleted all remaining keys.
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

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    #[error(transparent)]
    Refused(#[from] error::Error),
    /// The store failed; the process must stop.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error("cannot sort the hashes of records in the data directory: {0}")]
    Sort(#[from] io::Error),
}

#[cfg(test)]
impl From<HashError> for super::Error {
    fn from(error: HashError) -> Self {
        match error {
            HashError::Refused(error) => Self::Refused(error),
            HashError::Storage(error) => Self::Storage(error),
            HashError::Sort(error) => panic!("{error}"),
        }
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

/// What is hashed, in this order.
const FAMILIES: [Family; 3] = [Family::Revisions, Family::Current, Family::Undo];
/// A step ends when it has read as many bytes.
const STEP_BYTES: usize = 4 << 20;
/// Putting a hash to the others takes a fraction of the time that its record took.
const COMBINED_FOR_READ: usize = 4;

/// A hash on its way.
pub struct Hashing {
    compacted: i64,
    revision: i64,
    stage: Stage,
    /// True where a key is live at the revision that was not changed by it.
    any_live: bool,
    /// True where the revision deleted a key.
    any_deleted: bool,
    /// Without what is dead at the revision, and with it.
    live: HistoryHasher,
    all: HistoryHasher,
}

enum Stage {
    Reading {
        family: usize,
        next: Vec<u8>,
        records: Sorter,
    },
    Combining(SortedWalk),
    Done,
}

impl Hashing {
    /// Begins with the history up to `revision`, which is compacted up to `compacted` and is not
    /// beyond the pinned view that it is read from. Records are sorted in files in `dir` if there
    /// are many.
    pub fn new(compacted: i64, revision: i64, dir: &Path) -> Self {
        let first = Revision::new((compacted + 1).clamp(0, revision.max(0)), 0);
        Self {
            compacted,
            revision,
            stage: Stage::Reading {
                family: 0,
                next: schema::revision_key(first).to_vec(),
                records: Sorter::new(dir),
            },
            any_live: false,
            any_deleted: false,
            live: HistoryHasher::new(),
            all: HistoryHasher::new(),
        }
    }

    /// Takes as many records, and says whether there are more. `read` must be the same in all steps.
    pub fn step(&mut self, read: &dyn Read, limit: usize) -> Result<bool, HashError> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Reading {
                family,
                next,
                mut records,
            } => match self.read(read, FAMILIES[family], &next, limit, &mut records)? {
                Some(next) => Stage::Reading {
                    family,
                    next,
                    records,
                },
                None if family + 1 < FAMILIES.len() => Stage::Reading {
                    family: family + 1,
                    next: Vec::new(),
                    records,
                },
                None => Stage::Combining(records.done()?.walk()?),
            },
            Stage::Combining(mut walk) => {
                match self.combine(&mut walk, limit.saturating_mul(COMBINED_FOR_READ))? {
                    true => Stage::Combining(walk),
                    false => Stage::Done,
                }
            }
            Stage::Done => Stage::Done,
        };
        Ok(!matches!(self.stage, Stage::Done))
    }

    /// Hashes records from `from` on; returns where to continue.
    fn read(
        &mut self,
        read: &dyn Read,
        family: Family,
        from: &[u8],
        limit: usize,
        records: &mut Sorter,
    ) -> Result<Option<Vec<u8>>, HashError> {
        let behind = schema::revision_key(Revision::new(self.revision.max(0) + 1, 0));
        let upper = (family == Family::Revisions).then_some(behind.as_slice());
        let mut cursor = read.scan(family, from, upper)?;
        let (mut seen, mut bytes) = (0, 0);
        while cursor.next()? {
            if seen == limit || bytes >= STEP_BYTES {
                return Ok(Some(cursor.key().to_vec()));
            }
            seen += 1;
            bytes += cursor.key().len() + cursor.value().len();
            match family {
                Family::Revisions => self.change(cursor.key(), cursor.value(), records)?,
                Family::Undo => {
                    let (key, superseded) = schema::decode_undo_key(cursor.key())?;
                    let at = cursor.key();
                    self.version(family, at, &key, cursor.value(), Some(superseded), records)?;
                }
                _ => self.version(
                    family,
                    cursor.key(),
                    cursor.key(),
                    cursor.value(),
                    None,
                    records,
                )?,
            }
        }
        Ok(None)
    }

    /// Of the changes only deletions have no version.
    fn change(&mut self, at: &[u8], record: &[u8], records: &mut Sorter) -> Result<(), HashError> {
        let revision = decode_revision(at)?;
        let record = RevisionRecord::decode(at, record)?;
        if record.kind != ChangeKind::Delete {
            return Ok(());
        }
        self.any_deleted |= revision.main == self.revision;
        if revision.main > self.compacted {
            let pair = KeyValue {
                key: Bytes::copy_from_slice(record.key),
                ..Default::default()
            };
            push(records, revision, true, &pair, false)?;
        }
        Ok(())
    }

    fn version(
        &mut self,
        family: Family,
        at: &[u8],
        key: &[u8],
        record: &[u8],
        superseded: Option<Revision>,
        records: &mut Sorter,
    ) -> Result<(), HashError> {
        let revision = Head::parse(record).map(|head| head.mod_revision);
        if revision.is_some_and(|revision| revision.main > self.revision) {
            return Ok(());
        }
        let superseded = superseded.map_or(i64::MAX, |superseded| superseded.main);
        let version = Version::decode(Bytes::copy_from_slice(record), family, at)?;
        let revision = version.mod_revision;
        self.any_live |= revision.main < self.revision && superseded > self.revision;
        let (mut dead, mut gone) = (false, false);
        if revision.main <= self.compacted {
            dead = superseded <= self.revision;
            // A compaction that runs has not come to it.
            gone = superseded <= self.compacted;
        }
        if !gone {
            push(records, revision, false, &version.to_key_value(key), dead)?;
        }
        Ok(())
    }

    /// Puts hashes together; false when it was the last.
    fn combine(&mut self, walk: &mut SortedWalk, limit: usize) -> Result<bool, HashError> {
        for _ in 0..limit {
            let Some((_, value)) = walk.advance()? else {
                return Ok(false);
            };
            let record = HashedRecord::from_bytes(value);
            self.all.append(record.crc, record.len);
            if !record.dead {
                self.live.append(record.crc, record.len);
            }
        }
        Ok(true)
    }

    /// The hash, and that for a compaction to the revision.
    fn ended(&self, pinned: &PinnedView<'_>) -> storage::Result<(u32, u32)> {
        let any_live =
            self.any_live || self.revision > 0 && pinned.index_finds_any(self.revision)?;
        // If nothing is kept, etcd cannot distinguish dead versions from kept ones and includes all.
        let of = |any_kept| match any_kept {
            true => self.live.crc,
            false => self.all.crc,
        };
        Ok((of(any_live), of(any_live || self.any_deleted)))
    }

    /// The hash of the history, read from `pinned`.
    pub fn finish(&self, pinned: &PinnedView<'_>) -> storage::Result<HistoryHash> {
        let (hash, otherwise) = self.ended(pinned)?;
        Ok(self.hash(hash, otherwise))
    }

    /// The hash of the history as a compaction to its revision finds it. Other than `finish`, etcd's
    /// compaction counts a key that is deleted at the very revision as one that it keeps.
    pub fn finish_for_compaction(&self, pinned: &PinnedView<'_>) -> storage::Result<HistoryHash> {
        let (otherwise, hash) = self.ended(pinned)?;
        Ok(self.hash(hash, otherwise))
    }

    fn hash(&self, hash: u32, otherwise: u32) -> HistoryHash {
        HistoryHash {
            hash,
            compacted: self.compacted,
            revision: self.revision,
            otherwise,
        }
    }
}

/// The hash of one record, on its way into the order of revisions.
struct HashedRecord {
    crc: u32,
    len: u32,
    /// At the revision that is hashed.
    dead: bool,
}

impl HashedRecord {
    fn to_bytes(&self) -> [u8; 9] {
        let mut bytes = [0; 9];
        bytes[..4].copy_from_slice(&self.crc.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8] = u8::from(self.dead);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            crc: number(0),
            len: number(4),
            dead: bytes[8] != 0,
        }
    }
}

fn push(
    records: &mut Sorter,
    revision: Revision,
    tombstone: bool,
    pair: &KeyValue,
    dead: bool,
) -> io::Result<()> {
    let key = RecordKey::new(revision, tombstone);
    let pair = pair.encode_to_vec();
    let record = HashedRecord {
        crc: crc32c::crc32c_append(crc32c::crc32c(key.bytes()), &pair),
        len: (key.bytes().len() + pair.len()) as u32,
        dead,
    };
    records.push(&schema::revision_key(revision), &[&record.to_bytes()])
}

/// CRC-32C over etcd's encoding of the history.
struct HistoryHasher {
    crc: u32,
}

impl HistoryHasher {
    fn new() -> Self {
        Self {
            crc: crc32c::crc32c(b"key"),
        }
    }

    /// Appends bytes whose CRC and number are known: those before them are multiplied by x to
    /// the number of their bits.
    fn append(&mut self, crc: u32, len: u32) {
        let powers = POWERS.iter().enumerate();
        for (_, power) in powers.filter(|(bit, _)| len >> bit & 1 == 1) {
            self.crc = multiply(self.crc, *power);
        }
        self.crc ^= crc;
    }
}

/// CRC-32C's polynomial. The highest bit of a word is the coefficient of 1.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x to the power of 8, 16, 32 and so on: what 1, 2, 4 bytes multiply by.
const POWERS: [u32; 32] = {
    let mut powers = [1 << 23; 32];
    let mut at = 1;
    while at < 32 {
        powers[at] = multiply(powers[at - 1], powers[at - 1]);
        at += 1;
    }
    powers
};

/// The product of two polynomials over GF(2), modulo CRC-32C's.
const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    while a != 0 {
        // Without a branch, which nobody could predict.
        product ^= b & (a >> 31).wrapping_neg();
        b = b >> 1 ^ POLYNOMIAL & (b & 1).wrapping_neg();
        a <<= 1;
    }
    product
}

impl PinnedView<'_> {
    /// Hashes the history up to `revision`; 0 for all of it. As in etcd there is nothing to hash
    /// below it. Records are sorted in files in `dir` if there are many.
    pub fn hash(&self, revision: i64, dir: &Path) -> Result<HistoryHash, HashError> {
        if revision > self.head {
            return Err(error::Error::FutureRevision.into());
        }
        if revision > 0 && revision < self.compacted {
            return Err(error::Error::Compacted.into());
        }
        let revision = if revision == 0 { self.head } else { revision };
        let mut hashing = Hashing::new(self.compacted, revision, dir);
        while hashing.step(self.read, usize::MAX)? {}
        Ok(hashing.finish(self)?)
    }

    /// As a compaction to `revision` hashes the history that it finds.
    #[cfg(test)]
    pub fn hash_for_compaction(&self, revision: i64) -> Result<HistoryHash, HashError> {
        let mut hashing = Hashing::new(self.compacted, revision, &std::env::temp_dir());
        while hashing.step(self.read, 3)? {}
        Ok(hashing.finish_for_compaction(self)?)
    }

    /// Whether etcd's index finds a live key at `revision`: it overlooks a key that the revision
    /// itself deleted, even where the same transaction made it again.
    fn index_finds_any(&self, revision: i64) -> storage::Result<bool> {
        let everything = KeyRange::From(Bytes::from_static(&[0]));
        let mut walk = self.walk(&everything, revision)?;
        // Those that the revision made are few: they were in one request.
        let mut made = BTreeSet::new();
        while walk.advance()? {
            let head = parse_head(walk.key(), walk.record())?;
            if head.mod_revision.main != revision {
                return Ok(true);
            }
            made.insert(walk.key().to_vec());
        }
        if !made.is_empty() {
            self.each_deleted_at(revision, &mut |key| {
                made.remove(key);
                !made.is_empty()
            })?;
        }
        Ok(!made.is_empty())
    }

    /// Hands the keys that `revision` deleted to `each`, until it returns false.
    fn each_deleted_at(
        &self,
        revision: i64,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> storage::Result<()> {
        let lower = schema::revision_key(Revision::new(revision, 0));
        let upper = schema::revision_key(Revision::new(revision + 1, 0));
        let mut log = self.read.cursor(Family::Revisions, &lower, Some(&upper))?;
        while log.next()? {
            let record = RevisionRecord::decode(log.key(), log.value())?;
            if record.kind == ChangeKind::Delete && !each(record.key) {
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_parts_make_the_hash_of_the_whole() {
        let mut whole = crc32c::crc32c(b"key");
        let mut hasher = HistoryHasher::new();
        for len in [0, 1, 17, 18, 255, 256, 70_001, 3] {
            let part: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
            whole = crc32c::crc32c_append(whole, &part);
            hasher.append(crc32c::crc32c(&part), len as u32);
            assert_eq!(hasher.crc, whole, "{len} bytes more");
        }
    }
}
