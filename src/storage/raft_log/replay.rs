//! Reads a log's frames in order and keeps what they make of it. Writes nothing.

use super::files::Files;
use super::found::{Found, damaged};
use super::frame::{FORMAT_VERSION, FrameHeader, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::index::{FrameLocation, Index};
use super::segment::{At, Window, io_error};
use super::{EntryId, Error};

/// Where the frames of a segment end, and how far the bad one reaches if one is the reason.
pub(super) struct Stop {
    pub offset: u64,
    pub bad_extent: Option<u64>,
    /// That of the last frame's header, 0 without one.
    pub checksum: u32,
}

/// The log as the frames read so far make it.
pub(super) struct Replay<'a> {
    files: &'a dyn Files,
    pub index: Index,
    pub hard_state: Option<Vec<u8>>,
    /// Entries up to this one lay in segments that are deleted; compaction must have covered them.
    base: u64,
    pub last_frame: Option<FrameLocation>,
    /// True where entries stay that were compacted.
    whole: bool,
}

impl<'a> Replay<'a> {
    pub fn new(files: &'a dyn Files) -> Self {
        Self {
            files,
            index: Index::default(),
            hard_state: None,
            base: 0,
            last_frame: None,
            whole: false,
        }
    }

    /// For a log that is only inspected: entries stay when they were compacted.
    pub fn of_all(files: &'a dyn Files) -> Self {
        Self {
            whole: true,
            ..Self::new(files)
        }
    }

    /// Takes the oldest segment's word for where the log stood.
    pub fn start(&mut self, header: &SegmentHeader) {
        self.base = header.first_index.saturating_sub(1);
        self.index.last = self.base;
    }

    /// Whether the segment of `header` continues where `before` stopped.
    pub fn check_seam(
        &self,
        before: &Found,
        stop: &Stop,
        segment: &Found,
        header: &SegmentHeader,
    ) -> Result<(), Error> {
        if stop.bad_extent.is_some() || stop.offset != header.previous_end {
            let what = format!(
                "a frame is not what was written, but the next segment, {}, was begun",
                segment.name
            );
            return Err(damaged(self.files, &before.name, stop.offset, what));
        }
        if let Some(end) = before.remains(self.files, stop.offset)?.end {
            return Err(damaged(
                self.files,
                &before.name,
                end - 1,
                "there should be zeros behind the last frame",
            ));
        }
        if header
            .link
            .is_some_and(|link| link.previous_checksum != stop.checksum)
        {
            let what = format!(
                "it ends with another frame than the one behind which the next segment, {}, was \
                 begun",
                segment.name
            );
            return Err(damaged(self.files, &before.name, stop.offset, what));
        }
        if header.first_index != self.index.last + 1 {
            return Err(Error::Gap {
                file: self.files.describe(&segment.name),
                offset: 0,
                expected: self.index.last + 1,
                found: header.first_index,
            });
        }
        Ok(())
    }

    /// Adds the whole frames of a segment.
    pub fn segment(&mut self, segment: &Found) -> Result<Stop, Error> {
        let mut window = segment.window(self.files)?;
        let mut offset = SEGMENT_HEADER_BYTES;
        let mut checksum = 0;
        loop {
            let at = window.frame(segment.key, offset).map_err(io_error(
                self.files,
                "read",
                &segment.name,
            ))?;
            let bad_extent = match at {
                At::Frame(header) => {
                    self.frame(segment, &mut window, &header, offset)?;
                    offset += header.frame_bytes();
                    checksum = header.checksum;
                    continue;
                }
                At::End => None,
                At::Bad { extent } => Some(extent),
            };
            return Ok(Stop {
                offset,
                bad_extent,
                checksum,
            });
        }
    }

    fn frame(
        &mut self,
        segment: &Found,
        window: &mut Window<'_>,
        header: &FrameHeader,
        offset: u64,
    ) -> Result<(), Error> {
        let name = &segment.name;
        if header.has_unknown_flags() {
            return Err(Error::NewerVersion {
                file: self.files.describe(name),
                needed: FORMAT_VERSION + 1,
                supported: FORMAT_VERSION,
            });
        }
        let place = FrameLocation {
            sequence: segment.sequence,
            offset,
            bytes: header.frame_bytes(),
        };
        let stored = window
            .payload(header, offset)
            .map_err(io_error(self.files, "read", name))?;
        let plain = header.plain(stored);
        let payload = header.parse(&plain).ok_or_else(|| {
            damaged(
                self.files,
                name,
                offset,
                "a frame passes its checksum but cannot be understood",
            )
        })?;
        if let Some(range) = payload.hard_state {
            self.hard_state = Some(plain[range].to_vec());
        }
        if let Some(entry_id) = payload.entry_id {
            self.check_mark(name, offset, entry_id, header.is_reset())?;
        }
        match payload.entry_id {
            Some(entry_id) if header.is_reset() => {
                self.index.reset(entry_id);
                self.base = entry_id.index;
            }
            Some(entry_id) if !self.whole => self.index.compact(entry_id),
            _ => {}
        }
        if let Some((first, _)) = header.entries() {
            self.check_entries(name, offset, first)?;
            let terms = payload.entries.iter().map(|(term, _)| *term);
            self.index.append(first, terms, place);
            // Entries of deleted segments may be replaced as any others.
            self.base = self.base.min(first - 1);
        }
        self.last_frame = Some(place);
        Ok(())
    }

    /// A log is compacted forwards, and in agreement with its entries.
    fn check_mark(
        &self,
        name: &str,
        offset: u64,
        entry_id: EntryId,
        resets: bool,
    ) -> Result<(), Error> {
        let before = self.index.entry_id;
        let known = self.index.term(entry_id.index).filter(|_| !resets);
        if entry_id.index < before.index || known.is_some_and(|term| term != entry_id.term) {
            let what = format!(
                "it was compacted to entry {} of term {}, which contradicts what is before",
                entry_id.index, entry_id.term
            );
            return Err(damaged(self.files, name, offset, what));
        }
        Ok(())
    }

    fn check_entries(&self, name: &str, offset: u64, first: u64) -> Result<(), Error> {
        if first <= self.index.entry_id.index {
            let what = format!("entry {first} was written after it had been compacted");
            return Err(damaged(self.files, name, offset, what));
        }
        if first > self.index.last + 1 {
            return Err(Error::Gap {
                file: self.files.describe(name),
                offset,
                expected: self.index.last + 1,
                found: first,
            });
        }
        Ok(())
    }

    /// Whether the log is whole from its compaction entry_id on.
    pub fn check_complete(&self, first: &Found) -> Result<(), Error> {
        let Index { entry_id, last, .. } = self.index;
        if entry_id.index < self.base {
            return Err(Error::Gap {
                file: self.files.describe(&first.name),
                offset: 0,
                expected: entry_id.index + 1,
                found: self.base + 1,
            });
        }
        if entry_id.index > last {
            let what = format!(
                "it was compacted to entry {} but ends with entry {last}",
                entry_id.index
            );
            return Err(damaged(self.files, &first.name, 0, what));
        }
        Ok(())
    }
}
