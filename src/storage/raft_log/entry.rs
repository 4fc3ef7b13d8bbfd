//! Entries as the log keeps them: an index, a term and bytes.

use bytes::Bytes;

/// An entry. `data` is opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    pub index: u64,
    pub term: u64,
    pub data: Bytes,
}

/// The last entry that is not in the log because it was compacted, or replaced by a received
/// state. Zeros for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntryId {
    pub index: u64,
    pub term: u64,
}
