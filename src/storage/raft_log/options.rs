//! How a log is kept, and what is known of it beside its entries.

use super::frame::Owner;

/// Not the log's, and not remarked upon: a file in its directory by which a process keeps others
/// out.
pub const LOCK_NAME: &str = "LOCK";

/// How a log is kept.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// Bytes of a segment; a batch that needs more gets a segment of its own size.
    pub segment_bytes: u64,
    pub cluster_id: u64,
    pub member_id: u64,
    /// Off: nothing is synced, and a crash of the machine may cost the whole log.
    pub sync: bool,
}

impl LogOptions {
    pub(super) fn owner(&self) -> Owner {
        Owner {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
        }
    }
}

/// A write that did not reach the disk as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The segment file, as a person would name it.
    pub segment: String,
    /// Where the last whole frame ends.
    pub offset: u64,
    /// From there to the last byte that was written.
    pub bytes_cut: u64,
}

/// Counted since the log was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Syncs of frames; not those that make segments.
    pub syncs: u64,
    /// Bytes of frames and segment headers.
    pub bytes_written: u64,
}
