//! What can go wrong with the raft log. Every text is one sentence that names the file, and says
//! what to do about it where something can be done.

use std::io;

/// What a person can do about a log that must not be used as it is. Not: put back an older copy. A
/// member that forgets what it acknowledged can undo what its cluster agreed on.
const RESTORE: &str = "nothing was changed; remove this member from its cluster and add it again \
    with an empty data directory or, if it is the only member, restore a backup";

/// An error of the raft log. `file` is the whole path where there is one, `offset` counts bytes
/// from the file's start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `open` found no segment that was ever written to.
    #[error(
        "there is no raft log in {directory}; name the directory that holds it with --wal-dir or, \
         if it is lost, remove this member from its cluster and add it again with an empty data \
         directory"
    )]
    Absent { directory: String },
    /// `create` found a log.
    #[error("there is a raft log already: {file}; open it, or name an empty directory")]
    Exists { file: String },
    /// Bytes that may have been acknowledged no longer read as they were written.
    #[error("the raft log {file} is damaged at byte {offset}: {what}; {RESTORE}")]
    Damaged {
        file: String,
        offset: u64,
        what: String,
    },
    /// A segment behind it is there.
    #[error("the raft log segment {file} is missing, though there is one behind it; {RESTORE}")]
    MissingSegment { file: String },
    /// Entries are missing though every frame is whole.
    #[error(
        "the raft log {file} continues at byte {offset} with entry {found} \
         where entry {expected} is due; {RESTORE}"
    )]
    Gap {
        file: String,
        offset: u64,
        expected: u64,
        found: u64,
    },
    /// The ids in the segment are not the ones handed in.
    #[error(
        "the raft log {file} belongs to member {member_id:x} of cluster {cluster_id:x}, \
         but this is member {own_member_id:x} of cluster {own_cluster_id:x}; \
         name this member's own data directory"
    )]
    Foreign {
        file: String,
        cluster_id: u64,
        member_id: u64,
        own_cluster_id: u64,
        own_member_id: u64,
    },
    /// Written by a later etched.
    #[error(
        "the raft log {file} needs an etched that reads log format version {needed}, \
         this one reads up to version {supported}; start the newer etched"
    )]
    NewerVersion {
        file: String,
        needed: u32,
        supported: u32,
    },
    /// The entry was compacted away.
    #[error("entry {index} of the raft log was compacted; the first one kept is {first_index}")]
    Compacted { index: u64, first_index: u64 },
    /// The entry was never appended.
    #[error("entry {index} is beyond the raft log's last entry {last_index}")]
    Beyond { index: u64, last_index: u64 },
    /// The batch would leave a gap, or its own indexes are not consecutive. Nothing was written.
    #[error("entry {found} cannot be appended to the raft log where entry {expected} is due")]
    NotConsecutive { expected: u64, found: u64 },
    /// Nothing was written.
    #[error("a batch of {bytes} bytes is too large for the raft log, whose limit is {limit} bytes")]
    TooLarge { bytes: u64, limit: u64 },
    /// An earlier write failed, so nobody knows what the disk holds. Only recovery can tell.
    #[error(
        "an earlier write to the raft log failed; \
         restart the member, which recovers what is durable"
    )]
    Failed,
    /// The disk refused.
    #[error(
        "cannot {action} the raft log's {file}: {source}; check the disk, then restart the member"
    )]
    Io {
        action: &'static str,
        file: String,
        source: io::Error,
    },
}
