//! Puts frames on the disk: in the active segment, or in the next one when it is full; and deletes
//! segments.

use std::io;
use std::sync::Arc;

use super::files::{Files, OpenFile};
use super::filler::Prepare;
use super::found::FIRST_SEQUENCE;
use super::frame::{
    ALIGNMENT, Content, Link, MAX_PAYLOAD_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use super::index::FrameLocation;
use super::reader::Shared;
use super::segment::{self, Pace, io_error, make_zeroed};
use super::synced::{Position, Synced};
use super::{EntryId, Error, LogEntry, LogOptions, Stats};
use crate::failpoints::{self, Failpoint};
use crate::probe::{self, CoveragePoint, Defect};

/// Bounds the work of one compaction; the next one deletes what is left.
const MAX_UNLINKS: usize = 8;
/// A larger encode buffer is given back after use.
const KEPT_BUFFER_BYTES: usize = 4 << 20;
const PAGE_BYTES: u64 = 4096;
/// A log begins with a small segment, so that a new member does not wait for a large one.
const FIRST_SEGMENT_BYTES: u64 = 4 << 20;
/// The next segment is made when this part of the active one is used: a member that writes little
/// does not fill its disk, one that writes much has it in time.
const PREPARE_AFTER: u64 = 4;

/// The segment that is appended to.
pub(super) struct Active {
    pub sequence: u64,
    pub file: Arc<dyn OpenFile>,
    /// Where the next frame is written.
    pub end: u64,
    /// What the file can hold.
    pub capacity: u64,
    /// That of the last frame's header, 0 without one.
    pub checksum: u32,
    /// The log's last entry, that of a reset or none at all where there is none after it.
    pub last: EntryId,
}

pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub stats: Stats,
    pub synced: Arc<Synced>,
    options: LogOptions,
    active: Active,
    /// The next segment, if it was found made already.
    ready: Option<Arc<dyn OpenFile>>,
    prepare: Option<Box<dyn Prepare>>,
    /// The next segment is made, or being made.
    preparing: bool,
    buffer: Vec<u8>,
    /// A write was begun and not seen to succeed.
    failed: bool,
}

impl Writer {
    pub fn new(
        options: LogOptions,
        shared: Arc<Shared>,
        synced: Arc<Synced>,
        active: Active,
        ready: Option<Arc<dyn OpenFile>>,
    ) -> Self {
        Self {
            shared,
            stats: Stats::default(),
            synced,
            options,
            active,
            preparing: ready.is_some(),
            ready,
            prepare: None,
            buffer: Vec::new(),
            failed: false,
        }
    }

    /// A writer whose first frame begins segment 1.
    pub fn create(
        options: LogOptions,
        shared: Arc<Shared>,
        synced: Arc<Synced>,
    ) -> Result<Self, Error> {
        let name = segment::name(FIRST_SEQUENCE);
        let bytes = segment_bytes(&options, 0).min(FIRST_SEGMENT_BYTES);
        let file = make_zeroed(&*shared.files, &name, bytes, &|| Pace::Hurried)
            .map_err(io_error(&*shared.files, "create", &name))?;
        let none = Active {
            sequence: FIRST_SEQUENCE - 1,
            file: Arc::clone(&file),
            end: 0,
            capacity: 0,
            checksum: 0,
            last: EntryId::default(),
        };
        Ok(Self::new(options, shared, synced, none, Some(file)))
    }

    pub fn prepare_with(&mut self, prepare: Box<dyn Prepare>) {
        self.prepare = Some(prepare);
        self.prepare_next();
    }

    pub fn check_usable(&self) -> Result<(), Error> {
        if self.failed {
            Err(Error::Failed)
        } else {
            Ok(())
        }
    }

    /// Writes a frame, durably. The first of a segment repeats the `last` hard state.
    pub fn write<'a>(
        &mut self,
        mut content: Content<'a>,
        last: Option<&'a [u8]>,
    ) -> Result<FrameLocation, Error> {
        self.check_usable()?;
        let mut bytes = frame_bytes(&content)?;
        if self.active.end == SEGMENT_HEADER_BYTES || !self.fits(bytes) {
            content.hard_state = content.hard_state.or(last);
            bytes = frame_bytes(&content)?;
        }
        self.failed = true;
        let begins = !self.fits(bytes);
        let place = if begins {
            self.write_in_next(&content, bytes)?
        } else {
            self.write_in_active(&content, bytes)?
        };
        self.active.last = last_of(&content).unwrap_or(self.active.last);
        self.note_synced();
        if begins && self.syncs() {
            self.synced.write()?;
        }
        self.failed = false;
        self.prepare_next();
        Ok(place)
    }

    /// What was written is synced: notes how far the log is.
    pub fn note_synced(&self) {
        if self.syncs() {
            self.synced.reached(self.position());
        }
    }

    /// Where the frames end.
    pub fn position(&self) -> Position {
        Position {
            sequence: self.active.sequence,
            offset: self.active.end,
            last: self.active.last,
        }
    }

    fn syncs(&self) -> bool {
        self.options.sync && !probe::injected(Defect::LogUnsynced)
    }

    fn fits(&self, frame_bytes: u64) -> bool {
        self.active.end + frame_bytes <= self.active.capacity
    }

    fn write_in_active(
        &mut self,
        content: &Content<'_>,
        bytes: u64,
    ) -> Result<FrameLocation, Error> {
        let sequence = self.active.sequence;
        let offset = self.active.end;
        let file = Arc::clone(&self.active.file);
        self.buffer.clear();
        let checksum = content.encode(
            self.shared.owner.segment_key(sequence),
            offset,
            &mut self.buffer,
        );
        self.write_buffer(&*file, sequence, offset)?;
        self.active.end += bytes;
        self.active.checksum = checksum;
        Ok(FrameLocation {
            sequence,
            offset,
            bytes,
        })
    }

    /// Begins the next segment. Its header is written with its first frame: a crash leaves both, or
    /// a segment never begun, or a header with a torn frame.
    fn write_in_next(&mut self, content: &Content<'_>, bytes: u64) -> Result<FrameLocation, Error> {
        let sequence = self.active.sequence + 1;
        let offset = SEGMENT_HEADER_BYTES;
        let (file, capacity) = self.next_file(sequence, bytes)?;
        let header = SegmentHeader {
            owner: self.shared.owner,
            sequence,
            first_index: self.shared.index().last + 1,
            previous_end: self.active.end,
            link: Some(Link {
                previous_checksum: self.active.checksum,
                made_bytes: capacity,
            }),
        };
        self.buffer.clear();
        header.encode(&mut self.buffer);
        let checksum = content.encode(
            self.shared.owner.segment_key(sequence),
            offset,
            &mut self.buffer,
        );
        self.write_buffer(&*file, sequence, 0)?;
        self.shared
            .index_mut()
            .segments
            .insert(sequence, Arc::clone(&file));
        self.active = Active {
            sequence,
            file,
            end: offset + bytes,
            capacity,
            checksum,
            last: self.active.last,
        };
        self.preparing = false;
        Ok(FrameLocation {
            sequence,
            offset,
            bytes,
        })
    }

    fn write_buffer(
        &mut self,
        file: &dyn OpenFile,
        sequence: u64,
        offset: u64,
    ) -> Result<(), Error> {
        let failed =
            |action, error| io_error(&*self.shared.files, action, &segment::name(sequence))(error);
        file.write_at(&self.buffer, offset)
            .map_err(|error| failed("write to", error))?;
        if self.syncs() {
            failpoints::hit(Failpoint::WalBeforeSync);
            file.sync_data().map_err(|error| failed("sync", error))?;
            failpoints::hit(Failpoint::WalAfterSync);
            self.stats.syncs += 1;
        }
        self.stats.bytes_written += self.buffer.len() as u64;
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// A file of zeros, large enough for a first frame of `frame_bytes`, and its size.
    fn next_file(
        &mut self,
        sequence: u64,
        frame_bytes: u64,
    ) -> Result<(Arc<dyn OpenFile>, u64), Error> {
        let name = segment::name(sequence);
        let needed = segment_bytes(&self.options, frame_bytes);
        let prepared = self
            .prepare
            .as_mut()
            .and_then(|prepare| prepare.take(&name));
        let made = self.ready.take().or(prepared);
        let files = &*self.shared.files;
        let make = || -> io::Result<(Arc<dyn OpenFile>, u64)> {
            let Some(file) = made else {
                return Ok((
                    make_zeroed(files, &name, needed, &|| Pace::Hurried)?,
                    needed,
                ));
            };
            let bytes = file.bytes()?;
            let needed = least_bytes(frame_bytes).max(bytes);
            segment::fill(&*file, bytes, needed, &|| Pace::Hurried)?;
            Ok((file, needed))
        };
        make().map_err(io_error(files, "create", &name))
    }

    fn prepare_next(&mut self) {
        if let Some(prepare) = &mut self.prepare
            && !self.preparing
            && self.active.end >= self.active.capacity / PREPARE_AFTER
        {
            self.preparing = true;
            let name = segment::name(self.active.sequence + 1);
            prepare.begin(&name, segment_bytes(&self.options, 0));
        }
    }

    /// Retires the oldest segments without a live entry, each durably before the next, so that a
    /// crash leaves no hole.
    pub fn unlink_unneeded(&mut self) -> Result<(), Error> {
        let unneeded: Vec<u64> = {
            let index = self.shared.index();
            let needed = index.first_needed_segment().unwrap_or(self.active.sequence);
            index
                .segments
                .range(..needed)
                .map(|(sequence, _)| *sequence)
                .take(MAX_UNLINKS)
                .collect()
        };
        for sequence in unneeded {
            self.failed = true;
            retire(&*self.shared.files, sequence)?;
            self.failed = false;
            probe::reached(CoveragePoint::SegmentDeleted);
            self.shared.index_mut().segments.remove(&sequence);
        }
        Ok(())
    }
}

/// The log's last entry after a frame; `None` where the frame does not change it.
fn last_of(content: &Content<'_>) -> Option<EntryId> {
    match content.entries.last() {
        Some(LogEntry { index, term, .. }) => Some(EntryId {
            index: *index,
            term: *term,
        }),
        None => content.entry_id.filter(|_| content.reset),
    }
}

/// Deletes a segment, durably. One that is gone already is as good.
pub(super) fn unlink(files: &dyn Files, sequence: u64) -> Result<(), Error> {
    let name = segment::name(sequence);
    gone(files, &name, files.unlink(&name))
}

/// The same for a segment that was used and is not needed any more.
fn retire(files: &dyn Files, sequence: u64) -> Result<(), Error> {
    let name = segment::name(sequence);
    gone(files, &name, files.retire(&name))
}

fn gone(files: &dyn Files, name: &str, taken: io::Result<()>) -> Result<(), Error> {
    match taken {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(files, "delete", name)(error));
        }
        _ => {}
    }
    files
        .sync_directory()
        .map_err(io_error(files, "sync the directory of", name))
}

fn frame_bytes(content: &Content<'_>) -> Result<u64, Error> {
    content.frame_bytes().map_err(|bytes| Error::TooLarge {
        bytes,
        limit: MAX_PAYLOAD_BYTES,
    })
}

/// What a segment must hold so that a first frame of `frame_bytes` fits.
pub(super) fn segment_bytes(options: &LogOptions, frame_bytes: u64) -> u64 {
    options
        .segment_bytes
        .next_multiple_of(ALIGNMENT)
        .max(least_bytes(frame_bytes))
}

fn least_bytes(frame_bytes: u64) -> u64 {
    (SEGMENT_HEADER_BYTES + frame_bytes).next_multiple_of(PAGE_BYTES)
}
