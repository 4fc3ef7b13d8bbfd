//! etcd's raft log and its snap files: read from the directory of an etcd that stopped, and
//! written for one that is to start.
//!
//! A log is a row of segments, `<sequence>-<first index>.wal`. A segment is a row of frames: eight
//! bytes with the length of a record and of what pads it to a multiple of eight, then the record.
//! Zeros in the place of a length end a segment, which was made longer than what was written to
//! it. Each record has the CRC-32C of the contents of all records up to it, across segments: every
//! segment begins with a record that says the checksum of what came before.
//!
//! A later entry with the index of an earlier one replaces it and all behind it, which is what our
//! own log does. Nothing that is read is believed: lengths are held against the size of their file.

pub mod message;
pub mod read;
pub mod snap;
#[cfg(test)]
mod tests;
pub mod write;

use std::io;

/// Why a log or a snap file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{file}: {error}")]
    Io { file: String, error: io::Error },
    #[error("{file} is damaged at byte {offset}: {reason}")]
    Damaged {
        file: String,
        offset: u64,
        reason: &'static str,
    },
    #[error("its segments are not consecutive: {before} is followed by {behind}")]
    Missing { before: String, behind: String },
    #[error("entry {found} follows entry {last}: the entries between them are missing")]
    Gap { last: u64, found: u64 },
    #[error("{what} in it cannot be read")]
    Unreadable { what: &'static str },
}

/// The name of a segment.
pub fn segment_name(sequence: u64, first_index: u64) -> String {
    format!("{sequence:016x}-{first_index:016x}.wal")
}

/// The reverse: a segment's sequence number and the index of the first entry that it was made for.
pub fn parse_segment_name(name: &str) -> Option<(u64, u64)> {
    let (sequence, index) = name.strip_suffix(".wal")?.split_once('-')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    let (sequence, index) = (number(sequence)?, number(index)?);
    (segment_name(sequence, index) == name).then_some((sequence, index))
}
