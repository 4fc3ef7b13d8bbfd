//! The revisioned keyspace: every change makes a revision, and every revision can be read until
//! it is compacted.
//!
//! Invariants:
//! - revisions grow by one a writing transaction; only `write` gives them out;
//! - the version of a key at revision R is its first undo entry superseded above R, else its
//!   current version, and absent where that one is newer than R;
//! - compaction to C removes undo entries superseded at or below C: a test on the key alone;
//! - nothing here knows of raft, leases' lives or clients.

pub mod bulk;
pub mod compaction;
pub mod counts;
mod frame;
pub mod hash;
pub mod history;
mod order;
pub mod pages;
mod parts;
mod pending;
pub mod range;
pub mod read;
#[cfg(test)]
pub(crate) mod tests;
pub mod verify;
pub mod write;

use bytes::Bytes;

use crate::error;
use crate::proto::{EncodedEvent, put_bytes_field, put_varint_field};
use crate::storage;
use crate::storage::schema::{ChangeKind, Version};
use crate::types::Revision;

/// Why a read or a change did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client asked for what cannot be had; nothing was changed.
    #[error(transparent)]
    Refused(#[from] error::Error),
    /// The store failed; the process must stop.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One change of one key, as watches see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub key: Bytes,
    pub revision: Revision,
    pub kind: ChangeKind,
    /// The new version; `None` for a delete.
    pub version: Option<Version>,
    /// The version before the transaction that made this change; `None` where there was none or
    /// it was not asked for.
    pub previous: Option<Version>,
}

impl Change {
    /// The event of this change in `mvccpb.Event`'s encoding.
    pub fn to_event(&self, with_previous: bool) -> EncodedEvent {
        let mut event = Vec::with_capacity(64 + self.key.len());
        match (&self.kind, &self.version) {
            (ChangeKind::Put, Some(version)) => {
                put_bytes_field(&mut event, 2, version.to_kv(&self.key).encoded());
            }
            _ => {
                put_varint_field(&mut event, 1, 1);
                let mut kv = Vec::with_capacity(self.key.len() + 16);
                put_bytes_field(&mut kv, 1, &self.key);
                put_varint_field(&mut kv, 3, self.revision.main);
                put_bytes_field(&mut event, 2, &kv);
            }
        }
        if with_previous
            && !self.is_create()
            && let Some(previous) = &self.previous
        {
            put_bytes_field(&mut event, 3, previous.to_kv(&self.key).encoded());
        }
        EncodedEvent::from_encoded(event.into())
    }

    /// True for a put of a key that was not there.
    pub fn is_create(&self) -> bool {
        self.version
            .as_ref()
            .is_some_and(|version| version.create_revision == self.revision.main)
    }

    /// About how much memory it takes, in bytes.
    pub fn size_bytes(&self) -> usize {
        let record = |version: &Option<Version>| {
            version.as_ref().map_or(0, |version| version.record().len())
        };
        self.key.len() + record(&self.version) + record(&self.previous) + 64
    }
}
