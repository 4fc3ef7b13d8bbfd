//! Segment files: their names, how they are made ahead, and how their bytes are walked.

use std::io;
use std::sync::Arc;

use super::Error;
use super::files::{Files, OpenFile, RETIRED_SUFFIX};
use super::frame::{
    ALIGNMENT, FRAME_HEADER_BYTES, FrameHeader, SECTOR_BYTES, SEGMENT_HEADER_BYTES, SegmentKey,
    begins_frame,
};

const SUFFIX: &str = ".raftlog";
const SEQUENCE_DIGITS: usize = 16;

/// What is written at a time while a segment is filled.
const FILL_BYTES: u64 = 256 << 10;
/// What is read at a time to walk a segment.
const WINDOW_BYTES: u64 = 1 << 20;
/// What is tested for zeros at a time.
const BLOCK_BYTES: usize = 4096;
static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// The file name of a segment: its sequence number in hexadecimal, so that names sort as numbers
/// do.
pub(super) fn name(sequence: u64) -> String {
    format!("{sequence:016x}{SUFFIX}")
}

/// The sequence number in a segment's name; `None` for any other file.
pub(super) fn sequence(file_name: &str) -> Option<u64> {
    let digits = file_name.strip_suffix(SUFFIX)?;
    if digits.len() != SEQUENCE_DIGITS {
        return None;
    }
    let sequence = u64::from_str_radix(digits, 16).ok()?;
    (name(sequence) == file_name).then_some(sequence)
}

/// The same of one that the log no longer needs.
pub(super) fn retired_sequence(file_name: &str) -> Option<u64> {
    sequence(file_name.strip_suffix(RETIRED_SUFFIX)?)
}

/// Attaches what was done to which file.
pub(super) fn io_error<'a>(
    files: &'a dyn Files,
    action: &'static str,
    name: &'a str,
) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io {
        action,
        file: files.describe(name),
        source,
    }
}

/// How a file is filled with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Synced piece by piece: a large write at once would hold up the log's own syncs.
    Gentle,
    /// Somebody waits.
    Hurried,
    /// Not at all any more.
    Stopped,
}

/// Writes zeros from `from` up to `to`, durably, at the pace that is asked for before each piece.
pub(super) fn fill(
    file: &dyn OpenFile,
    from: u64,
    to: u64,
    pace: &dyn Fn() -> Pace,
) -> io::Result<()> {
    let zeros = vec![0; FILL_BYTES.min(to.saturating_sub(from)) as usize];
    let mut at = from;
    while at < to {
        let pace = pace();
        if pace == Pace::Stopped {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let bytes = FILL_BYTES.min(to - at);
        file.write_at(&zeros[..bytes as usize], at)?;
        at += bytes;
        if pace == Pace::Gentle || at == to {
            file.sync_data()?;
        }
    }
    Ok(())
}

/// Makes a segment file of `bytes` zeros, durable with its name. A file that has the name is
/// replaced: the caller knows that it was never begun.
pub(super) fn make_zeroed(
    files: &dyn Files,
    name: &str,
    bytes: u64,
    pace: &dyn Fn() -> Pace,
) -> io::Result<Arc<dyn OpenFile>> {
    let file = match files.create(name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            files.unlink(name)?;
            files.sync_directory()?;
            files.create(name)?
        }
        created => created?,
    };
    fill(&*file, 0, bytes, pace)?;
    files.sync_directory()?;
    Ok(file)
}

/// A file's bytes, read through a window of memory; behind the file's end there are zeros without
/// end.
pub(super) struct Window<'a> {
    file: &'a dyn OpenFile,
    pub file_bytes: u64,
    start: u64,
    buffer: Vec<u8>,
}

/// What stands at a frame's place.
pub(super) enum At {
    /// A header of zeros.
    End,
    /// `extent` is how far the frame reaches, as far as that is known.
    Bad {
        extent: u64,
    },
    Frame(FrameHeader),
}

/// What a stretch of a segment holds.
#[derive(Debug, Default)]
pub(super) struct Remains {
    /// The offset after the last byte that is not zero.
    pub end: Option<u64>,
    /// The first place of a whole frame.
    pub frame: Option<u64>,
}

impl<'a> Window<'a> {
    pub fn new(file: &'a dyn OpenFile) -> io::Result<Self> {
        Ok(Self {
            file,
            file_bytes: file.bytes()?,
            start: 0,
            buffer: Vec::new(),
        })
    }

    /// The bytes at `offset`.
    pub fn get(&mut self, offset: u64, bytes: usize) -> io::Result<&[u8]> {
        let end = offset + bytes as u64;
        if offset < self.start || end > self.start + self.buffer.len() as u64 {
            let left = self.file_bytes.saturating_sub(offset);
            let window = WINDOW_BYTES.min(left.next_multiple_of(ALIGNMENT)) as usize;
            self.buffer.clear();
            self.buffer.resize(window.max(bytes), 0);
            self.start = offset;
            let read = self.file.read_at(&mut self.buffer, offset)?;
            self.buffer[read..].fill(0);
        }
        let at = (offset - self.start) as usize;
        Ok(&self.buffer[at..at + bytes])
    }

    /// What stands at `offset`, where a frame may begin.
    pub fn frame(&mut self, key: SegmentKey, offset: u64) -> io::Result<At> {
        if offset >= self.file_bytes {
            return Ok(At::End);
        }
        let bytes = self.get(offset, FRAME_HEADER_BYTES as usize)?;
        if is_zero(bytes) {
            return Ok(At::End);
        }
        let Some(header) = FrameHeader::decode(key, offset, bytes) else {
            let extent = FRAME_HEADER_BYTES;
            return Ok(At::Bad { extent });
        };
        let extent = header.frame_bytes();
        // No sector of a frame is empty: one that reaches into a sector behind the file's end was
        // not written as a whole. Nor is memory taken for all that a header promises.
        if offset + extent > self.file_bytes.next_multiple_of(SECTOR_BYTES) {
            return Ok(At::Bad { extent });
        }
        let stored = self.payload(&header, offset)?;
        if header.matches(key, offset, stored) {
            Ok(At::Frame(header))
        } else {
            Ok(At::Bad { extent })
        }
    }

    /// The stored payload of the frame at `offset`.
    pub fn payload(&mut self, header: &FrameHeader, offset: u64) -> io::Result<&[u8]> {
        self.get(offset + FRAME_HEADER_BYTES, header.stored_payload_bytes())
    }

    /// Inspects everything from `from` to the file's end.
    pub fn remains(&mut self, key: SegmentKey, from: u64) -> io::Result<Remains> {
        let mut remains = Remains::default();
        let file_bytes = self.file_bytes;
        let mut at = from;
        while at < file_bytes {
            let block = self.get(at, BLOCK_BYTES)?;
            if is_zero(block) {
                at += BLOCK_BYTES as u64;
                continue;
            }
            let last = block.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            remains.end = Some((at + last as u64 + 1).min(file_bytes));
            if remains.frame.is_none() {
                // Testing a frame moves the window, so the candidates are taken down first.
                let candidates: Vec<u64> = (at..)
                    .step_by(ALIGNMENT as usize)
                    .zip(block.chunks(ALIGNMENT as usize))
                    .filter(|(offset, bytes)| {
                        *offset >= SEGMENT_HEADER_BYTES && begins_frame(bytes)
                    })
                    .map(|(offset, _)| offset)
                    .collect();
                for offset in candidates {
                    if let At::Frame(_) = self.frame(key, offset)? {
                        remains.frame = Some(offset);
                        break;
                    }
                }
            }
            at += BLOCK_BYTES as u64;
        }
        Ok(remains)
    }
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Comparing blocks is as fast as memory, at any level of optimisation.
    bytes
        .chunks(BLOCK_BYTES)
        .all(|block| *block == ZEROS[..block.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbers_in_order() {
        for number in [0, 1, 0xabc, u64::MAX] {
            assert_eq!(sequence(&name(number)), Some(number));
        }
        assert!(name(9) < name(10) && name(0xff) < name(0x100));
        for other in [
            "",
            ".raftlog",
            "1.raftlog",
            "000000000000000G.raftlog",
            "000000000000000A.raftlog",
            "+00000000000000a.raftlog",
            "0000000000000001.wal",
        ] {
            assert_eq!(sequence(other), None, "{other}");
        }
    }
}
