//! How much one batch may hold, and what is known of changes that were written in several.

use bytes::Bytes;

use super::Change;
use crate::types::KeyRange;

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

/// The changes of a revision that are only in the revision log, for those who look for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sliced {
    pub revision: i64,
    /// Holds every key that it changed.
    pub span: KeyRange,
    /// How many of the changes are puts, and what these put.
    pub puts: u64,
    pub put_bytes: u64,
    /// What it wrote, about.
    pub bytes: u64,
}

/// How a transaction is written in parts, and what was.
pub(super) struct Parts {
    /// Index and term of the entry before it.
    pub applied: (u64, u64),
    /// The keyspace's head and number of keys before it.
    pub before: [u64; 2],
    pub limit: SliceLimit,
    /// What the batch holds of the entries before it.
    pub earlier_bytes: usize,
    /// The first and the last key that were written.
    keys: Option<(Bytes, Bytes)>,
    puts: u64,
    put_bytes: u64,
    bytes: u64,
}

impl Parts {
    pub fn none(
        applied: (u64, u64),
        before: [u64; 2],
        limit: SliceLimit,
        earlier_bytes: usize,
    ) -> Self {
        Self {
            applied,
            before,
            limit,
            earlier_bytes,
            keys: None,
            puts: 0,
            put_bytes: 0,
            bytes: 0,
        }
    }

    pub fn are_written(&self) -> bool {
        self.keys.is_some()
    }

    /// Notes what a batch of so many bytes writes, of which the log knows the rest.
    pub fn note(&mut self, changes: impl Iterator<Item = Change>, batch_bytes: usize) {
        self.bytes += (batch_bytes - self.earlier_bytes) as u64;
        self.earlier_bytes = 0;
        for Change { key, version, .. } in changes {
            if let Some(version) = version {
                self.puts += 1;
                self.put_bytes += (key.len() + version.value().len()) as u64;
            }
            let (first, last) = self.keys.get_or_insert_with(|| (key.clone(), key.clone()));
            if key < *first {
                *first = key;
            } else if key > *last {
                *last = key;
            }
        }
    }

    pub fn sliced(self, revision: i64) -> Option<Sliced> {
        let (first, last) = self.keys?;
        let end = KeyRange::Point(last.clone()).behind(&last);
        Some(Sliced {
            revision,
            span: KeyRange::Span(first, end.start().clone()),
            puts: self.puts,
            put_bytes: self.put_bytes,
            bytes: self.bytes,
        })
    }
}
