//! Reads entries back, from any thread, while the log is appended to.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use super::files::{Files, OpenFile};
use super::frame::{FRAME_HEADER_BYTES, FrameHeader, Owner, SegmentKey};
use super::index::{Extent, Index};
use super::segment::{self, io_error};
use super::{Error, LogEntry};

/// What the log and its readers share. The lock is held to look something up or to note it, never
/// over a disk access.
pub(super) struct Shared {
    pub files: Arc<dyn Files>,
    pub owner: Owner,
    index: RwLock<Index>,
}

impl Shared {
    pub fn new(files: Arc<dyn Files>, owner: Owner, index: Index) -> Self {
        let index = RwLock::new(index);
        Self {
            files,
            owner,
            index,
        }
    }

    // A panic under the lock is a defect that ends its thread; the index itself is never left half
    // changed by one that only reads, so readers continue.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the log. Cheap to clone; sees only what is durable.
#[derive(Clone)]
pub struct Reader {
    pub(super) shared: Arc<Shared>,
}

/// The entries that one extent gives to a read.
struct Part {
    entries: Vec<LogEntry>,
    /// Where the next extent continues.
    next: u64,
    full: bool,
}

impl Reader {
    /// The entries from `low` up to, not including, `high`: as many as have no more than
    /// `max_bytes` of data together, but one at least. Fewer only if the log lost its end to a
    /// conflicting one meanwhile. None if `low` = `high`.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Beyond`] if the log does not hold them, [`Error::Damaged`]
    /// if the disk gives back other bytes than were written, [`Error::Io`].
    pub fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<LogEntry>, Error> {
        let mut entries = Vec::new();
        let mut room = max_bytes;
        let mut next = low;
        let mut cuts = None;
        while next < high {
            let (extent, end, file) = {
                let index = self.shared.index();
                if !entries.is_empty() && (cuts != Some(index.cuts) || next <= index.entry_id.index)
                {
                    break;
                }
                cuts = Some(index.cuts);
                locate(&index, next, high)?
            };
            let part = self.read_extent(
                extent,
                &*file,
                next..end.min(high),
                &mut room,
                entries.is_empty(),
            )?;
            entries.extend(part.entries);
            next = part.next;
            if part.full {
                break;
            }
        }
        Ok(entries)
    }

    /// The term of an entry of the log, or of the one compacted last. Costs no disk access.
    #[must_use]
    pub fn term(&self, index: u64) -> Option<u64> {
        self.shared.index().term(index)
    }

    /// The index of the first entry that can be read; one more than the last if there is none.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.shared.index().entry_id.index + 1
    }

    /// The index of the last entry, or of the one compacted last if there is none after it.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.shared.index().last
    }

    fn read_extent(
        &self,
        extent: Extent,
        file: &dyn OpenFile,
        wanted: Range<u64>,
        room: &mut u64,
        must_give: bool,
    ) -> Result<Part, Error> {
        let place = extent.place;
        let name = segment::name(place.sequence);
        // What a file cut short has lost of it reads as zeros, as it does in recovery: the padding
        // of a frame may be gone, anything else fails the checksum.
        let mut block = vec![0; place.bytes as usize];
        file.read_at(&mut block, place.offset).map_err(io_error(
            &*self.shared.files,
            "read",
            &name,
        ))?;
        let frames = Frames {
            key: self.shared.owner.segment_key(place.sequence),
            start: place.offset,
            block: Bytes::from(block),
        };
        frames
            .entries(wanted, room, must_give)
            .map_err(|offset| Error::Damaged {
                file: self.shared.files.describe(&name),
                offset,
                what: "what is read is not what was written".to_owned(),
            })
    }
}

fn locate(index: &Index, next: u64, high: u64) -> Result<(Extent, u64, Arc<dyn OpenFile>), Error> {
    if next <= index.entry_id.index {
        return Err(Error::Compacted {
            index: next,
            first_index: index.entry_id.index + 1,
        });
    }
    if high > index.last + 1 {
        return Err(Error::Beyond {
            index: high - 1,
            last_index: index.last,
        });
    }
    let found = index.extent(next).and_then(|(extent, end)| {
        let file = index.segments.get(&extent.place.sequence)?;
        Some((extent, end, Arc::clone(file)))
    });
    found.ok_or(Error::Beyond {
        index: next,
        last_index: index.last,
    })
}

/// An extent in memory.
struct Frames {
    key: SegmentKey,
    /// The block's offset in its segment.
    start: u64,
    block: Bytes,
}

impl Frames {
    /// The entries of `wanted`. An error is the offset of the frame that is not what was written.
    fn entries(&self, wanted: Range<u64>, room: &mut u64, must_give: bool) -> Result<Part, u64> {
        let mut part = Part {
            entries: Vec::new(),
            next: wanted.start,
            full: false,
        };
        let mut at = 0;
        while part.next < wanted.end && !part.full {
            let offset = self.start + at as u64;
            let header = self
                .block
                .get(at..)
                .and_then(|bytes| FrameHeader::decode(self.key, offset, bytes));
            let header = header.ok_or(offset)?;
            let end = at + header.frame_bytes() as usize;
            if header.entries().is_some_and(|(_, last)| last >= part.next) {
                self.frame_entries(&header, at, wanted.end, room, must_give, &mut part)
                    .ok_or(offset)?;
            }
            at = end;
        }
        self.release(&mut part.entries);
        Ok(part)
    }

    fn frame_entries(
        &self,
        header: &FrameHeader,
        at: usize,
        high: u64,
        room: &mut u64,
        must_give: bool,
        part: &mut Part,
    ) -> Option<()> {
        let start = at + FRAME_HEADER_BYTES as usize;
        let stored = start..start + header.stored_payload_bytes();
        let bytes = self.block.get(stored)?;
        if !header.matches(self.key, self.start + at as u64, bytes) {
            return None;
        }
        let plain = match header.plain(bytes) {
            Cow::Borrowed(plain) => self.block.slice_ref(plain),
            Cow::Owned(plain) => Bytes::from(plain),
        };
        let (first, _) = header.entries()?;
        let payload = header.parse(&plain)?;
        for (index, (term, range)) in (first..).zip(payload.entries) {
            if index < part.next {
                continue;
            }
            let bytes = range.len() as u64;
            part.full = bytes > *room && !(must_give && part.entries.is_empty());
            if part.full || index >= high {
                break;
            }
            *room = room.saturating_sub(bytes);
            let data = plain.slice(range);
            part.entries.push(LogEntry { index, term, data });
            part.next = index + 1;
        }
        Some(())
    }

    /// Copies the data out of the block where less than half of it is wanted, so that a small entry
    /// that is kept does not keep a large block in memory.
    fn release(&self, entries: &mut [LogEntry]) {
        let used: usize = entries.iter().map(|entry| entry.data.len()).sum();
        if used * 2 >= self.block.len() {
            return;
        }
        let mut copy = Vec::with_capacity(used);
        for entry in entries.iter() {
            copy.extend_from_slice(&entry.data);
        }
        let copy = Bytes::from(copy);
        let mut at = 0;
        for entry in entries {
            let end = at + entry.data.len();
            entry.data = copy.slice(at..end);
            at = end;
        }
    }
}
