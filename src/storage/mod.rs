//! Where state lives: an ordered key-value engine of a few families, and the raft log's files.
//!
//! The engine is a trait so that the same code runs on RocksDB and, in a simulator, on memory
//! that forgets what was not flushed. `schema` alone knows what keys and values look like.
//!
//! Invariants:
//! - a `Batch` becomes visible and durable as a whole or not at all, over all families;
//! - what a crash loses is a suffix of the batches written, never a hole;
//! - an error of the engine is never survivable: the caller stops the process.

// The fuzz targets use a part of it.
#[cfg_attr(not(any(test, feature = "simulation")), allow(dead_code))]
#[cfg(any(test, feature = "in-memory"))]
pub mod memory;
pub mod once;
pub mod raft_log;
pub mod rocks;
pub mod schema;
pub mod sort;
#[cfg(test)]
mod tests;

use std::path::Path;

use bytes::Bytes;

/// The engine failed: the disk, the file system or the data on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("storage engine: {0}")]
    Engine(String),
    /// Bytes in the store that this program cannot have written.
    #[error(
        "damaged record in family {family:?} at key {key:02x?}: {reason}; restore this member from a backup or from the other members"
    )]
    Damaged {
        family: Family,
        key: Vec<u8>,
        reason: &'static str,
    },
    #[error("{0}")]
    Open(String),
}

pub type Result<T> = std::result::Result<T, Error>;

/// A separately sorted set of keys within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// key → its newest version.
    Current,
    /// key and superseding revision → the version before it.
    Undo,
    /// revision → the key it changed and how.
    Revisions,
    /// lease and key → nothing: the keys attached to a lease.
    LeaseKeys,
    /// Everything that is small: applied index, leases, alarms, members.
    Meta,
    /// How many keys lie between two keys: records that may lag behind, and be lost.
    Counts,
}

impl Family {
    pub const ALL: [Family; 6] = [
        Family::Current,
        Family::Undo,
        Family::Revisions,
        Family::LeaseKeys,
        Family::Meta,
        Family::Counts,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Family::Current => "current",
            Family::Undo => "undo",
            Family::Revisions => "revisions",
            Family::LeaseKeys => "lease_keys",
            Family::Meta => "meta",
            // RocksDB's own, which every directory has: an older program refuses one with a
            // family that it does not know.
            Family::Counts => "default",
        }
    }
}

/// One change of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    Put(Family, &'a [u8], &'a [u8]),
    Delete(Family, &'a [u8]),
}

#[derive(Clone, Copy)]
struct OpHead {
    family: Family,
    delete: bool,
    key_len: u32,
    value_len: u32,
}

/// How much memory a cleared batch keeps: one huge transaction must not hold its own for ever.
const KEPT_BYTES: usize = 4 << 20;
const KEPT_OPS: usize = 64 << 10;

/// Changes that are written together, in order. Its memory is reused after `clear`.
#[derive(Default)]
pub struct Batch {
    heads: Vec<OpHead>,
    bytes: Vec<u8>,
}

impl Batch {
    pub fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.put_parts(family, &[key], &[value]);
    }

    /// A put whose key and value are given in parts, to spare a copy.
    pub fn put_parts(&mut self, family: Family, key: &[&[u8]], value: &[&[u8]]) {
        let key_len = self.append(key);
        let value_len = self.append(value);
        self.heads.push(OpHead {
            family,
            delete: false,
            key_len,
            value_len,
        });
    }

    pub fn delete(&mut self, family: Family, key: &[u8]) {
        let key_len = self.append(&[key]);
        self.heads.push(OpHead {
            family,
            delete: true,
            key_len,
            value_len: 0,
        });
    }

    fn append(&mut self, parts: &[&[u8]]) -> u32 {
        let before = self.bytes.len();
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        // A request is bounded far below 4 GiB before it reaches the store.
        (self.bytes.len() - before) as u32
    }

    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn clear(&mut self) {
        self.heads.clear();
        self.bytes.clear();
        self.heads.shrink_to(KEPT_OPS);
        self.bytes.shrink_to(KEPT_BYTES);
    }

    pub fn iter(&self) -> impl Iterator<Item = Op<'_>> {
        let mut rest = self.bytes.as_slice();
        self.heads.iter().map(move |head| {
            let (key, tail) = rest.split_at(head.key_len as usize);
            let (value, tail) = tail.split_at(head.value_len as usize);
            rest = tail;
            if head.delete {
                Op::Delete(head.family, key)
            } else {
                Op::Put(head.family, key, value)
            }
        })
    }
}

/// What the engine takes on disk and in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes of files and of what is not in a file yet.
    pub total_bytes: u64,
    /// An estimate of the bytes that live data needs of it.
    pub in_use_bytes: u64,
    /// What writes that are not in a file yet take in memory.
    pub memtable_bytes: u64,
    /// What is kept in memory of files.
    pub block_cache_bytes: u64,
}

/// Reads of one consistent state.
pub trait Read: Send + Sync {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>>;

    /// The same for what comes once: it takes no other block's place in memory.
    fn get_once(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        self.get(family, key)
    }

    /// A cursor over `[lower, upper)`; no upper bound where it is `None`. It stands before the
    /// first key.
    fn cursor<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>>;

    /// A cursor for a walk over much that comes once: what it reads takes no other block's place in
    /// memory.
    fn scan<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        self.cursor(family, lower, upper)
    }
}

/// Walks keys upwards.
pub trait Cursor {
    /// Moves to the next key; false at the end.
    fn next(&mut self) -> Result<bool>;
    /// Moves to the first key at or above `key`, which must not be below the lower bound; false
    /// where there is none below the upper one. The next call of `next` continues from there.
    fn seek(&mut self, key: &[u8]) -> Result<bool>;
    /// The key it stands on; empty before the first `next` or `seek`.
    fn key(&self) -> &[u8];
    fn value(&self) -> &[u8];
}

/// An ordered store with atomic batches and consistent views.
pub trait Engine: Send + Sync + 'static {
    /// Reads the newest state; only the thread that writes may take it for one state.
    fn latest(&self) -> &dyn Read;
    /// The state as of now, held until dropped.
    fn view(&self) -> Box<dyn Read>;
    /// Makes the batch visible. It is durable after the next `flush`.
    fn write(&self, batch: &Batch) -> Result<()>;
    /// Makes everything written so far durable, over all families at once.
    fn flush(&self) -> Result<()>;
    /// A value of `Meta` as a crash would leave it now, or, for an instant after a flush, as a
    /// crash would have left it before: RocksDB reports a flush when it is durable and shows it
    /// a moment later.
    fn persisted(&self, key: &[u8]) -> Result<Option<Bytes>>;
    fn size(&self) -> Size;
    /// Bytes written and not yet in a file.
    fn unflushed_bytes(&self) -> u64;
    /// Frees the space of deleted keys; may take long and never blocks readers or writers.
    fn compact(&self) -> Result<()>;
    /// Copies the state as of some moment during the call into files in a directory that does
    /// not exist yet.
    fn checkpoint(&self, dir: &Path) -> Result<()>;
    /// This engine is not used any more: its files are removed with its last reader.
    fn retire(&self);
}
