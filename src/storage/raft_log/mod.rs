//! The raft log on disk: what a member has promised to remember.
//!
//! A batch of entries, with the hard state that belongs to it, is one frame: one write and one
//! sync. It is there as a whole after a crash, or not at all. To this module an entry is an index,
//! a term and bytes.
//!
//! Frames go into segment files of a fixed size that were filled with zeros, and synced, before
//! their first use. An append therefore changes data only: no block is allocated, the file does not
//! grow, and a sync need not commit the file system's journal. A segment that is no longer needed
//! is deleted (or kept under another name, see `retired`), not used again, so that nothing old ever
//! lies behind the tail.
//!
//! What always holds:
//! - `append`, `compact` and `reset` return only when what they did is durable (unless
//!   `LogOptions::sync` is off).
//! - At most one write is not yet durable, and what lies behind it is zeros. After an error of the
//!   disk nothing more is written: only recovery can tell what is there.
//! - The first frame of a segment repeats the hard state, and a segment is deleted only after the
//!   compaction that makes it superfluous was written behind it. So those that are left are a log.
//! - Segments are deleted oldest first, each durably before the next one: they never have a hole.
//! - A file says how far the log was synced a while ago: a log that ends before that lost its end.
//!
//! The disk is trusted to write a sector of 512 bytes wholly or not at all, and not to harm a
//! neighbouring one.

mod entry;
mod error;
mod files;
mod filler;
mod found;
mod frame;
mod index;
// The fuzz targets use a part of it.
#[cfg_attr(not(any(test, feature = "simulation")), allow(dead_code))]
#[cfg(any(test, feature = "in-memory"))]
mod memory;
mod options;
mod reader;
mod recovery;
mod replay;
mod retired;
mod segment;
mod synced;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

pub use entry::{EntryId, LogEntry};
pub use error::Error;
pub use files::{Files, OpenFile, RealFiles, Retained};
pub use filler::{Prepare, ZeroFiller};
#[cfg(any(test, feature = "simulation"))]
pub use memory::Damage;
#[cfg(any(test, feature = "in-memory"))]
pub use memory::MemoryDisk;
pub use options::{LOCK_NAME, LogOptions, Stats, TornTail};
pub use reader::Reader;
pub use retired::{Stretch, history};
pub use synced::SyncedMark;

use crate::probe::{self, Defect};
use frame::Content;
use index::{FrameLocation, Index};
use reader::Shared;
use synced::{Position, Synced};
use writer::Writer;

/// The size of a segment, as in etcd.
pub const DEFAULT_SEGMENT_BYTES: u64 = 64_000_000;
/// What is made durable in one step.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch<'a> {
    /// Consecutive entries, the first no later than one after the log's last. They replace all
    /// entries from the first's index on.
    pub entries: &'a [LogEntry],
    /// Replaces the hard state; opaque.
    pub hard_state: Option<&'a [u8]>,
}

/// What recovery found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The last hard state appended, if ever one was.
    pub hard_state: Option<Vec<u8>>,
    pub compacted: EntryId,
    /// Index of the last entry, that of `compacted` if there is none after it.
    pub last_index: u64,
    /// A write that was under way when the machine stopped, and was cut off. It was never
    /// acknowledged.
    pub torn_tail: Option<TornTail>,
    /// Writes that were acknowledged may be missing at the end, if the disk lost them: something
    /// was cut off; or the machine was started anew and the last frame fills its sector, so that
    /// nothing would be left of a next one; or this was so before, and [`RaftLog::settle_doubt`]
    /// was not called since.
    pub end_in_doubt: bool,
}

/// The log, for the one thread that appends to it. Others read through [`RaftLog::reader`].
pub struct RaftLog {
    writer: Writer,
    hard_state: Option<Vec<u8>>,
}

impl RaftLog {
    /// Starts a log in a directory that has none. Its first entry will have index 1, unless it is
    /// reset first.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is a log, whatever its state; [`Error::Io`].
    pub fn create(files: Arc<dyn Files>, options: LogOptions) -> Result<Self, Error> {
        found::ensure_unused(&*files, options.owner())?;
        let synced = Synced::create(Arc::clone(&files), options.owner(), Position::default())?;
        let shared = Arc::new(Shared::new(files, options.owner(), Index::default()));
        let mut log = Self {
            writer: Writer::create(options, shared, synced)?,
            hard_state: None,
        };
        log.write(Content {
            entry_id: Some(EntryId::default()),
            ..Content::default()
        })?;
        Ok(log)
    }

    /// Recovers the log of a directory: cuts off a write that was under way, and makes the rest
    /// durable once more.
    ///
    /// # Errors
    /// [`Error::Absent`] if no log was ever created here. [`Error::Damaged`], [`Error::Gap`],
    /// [`Error::MissingSegment`], [`Error::Foreign`] and [`Error::NewerVersion`] if the log must
    /// not be used: then nothing on disk was changed. [`Error::Io`].
    pub fn open(files: Arc<dyn Files>, options: LogOptions) -> Result<(Self, Recovered), Error> {
        let recovery = recovery::recover(&files, &options)?;
        let recovered = Recovered {
            hard_state: recovery.hard_state.clone(),
            compacted: recovery.index.entry_id,
            last_index: recovery.index.last,
            torn_tail: recovery.torn_tail,
            end_in_doubt: recovery.end_in_doubt,
        };
        let shared = Arc::new(Shared::new(files, options.owner(), recovery.index));
        let writer = Writer::new(
            options,
            shared,
            recovery.synced,
            recovery.active,
            recovery.ready,
        );
        if !probe::injected(Defect::FoundUnsynced) {
            writer.note_synced();
        }
        writer.synced.enter_boot()?;
        let log = Self {
            writer,
            hard_state: recovery.hard_state,
        };
        Ok((log, recovered))
    }

    /// Reads the log of a directory as it is; nothing on disk is changed, whatever is found. What
    /// a crash interrupted is left out, as `open` would cut it off.
    ///
    /// # Errors
    /// As [`RaftLog::open`].
    pub fn inspect(
        files: Arc<dyn Files>,
        options: &LogOptions,
    ) -> Result<(Reader, Recovered), Error> {
        let found = recovery::inspect(&*files, options)?;
        let recovered = Recovered {
            hard_state: found.hard_state,
            compacted: found.index.entry_id,
            last_index: found.index.last,
            torn_tail: found.torn_tail,
            end_in_doubt: found.end_in_doubt,
        };
        let shared = Arc::new(Shared::new(files, options.owner(), found.index));
        Ok((Reader { shared }, recovered))
    }

    /// From now on segments are made ahead by `prepare`.
    #[must_use]
    pub fn with_prepare(mut self, prepare: Box<dyn Prepare>) -> Self {
        self.writer.prepare_with(prepare);
        self
    }

    /// A reader for other threads.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader {
            shared: Arc::clone(&self.writer.shared),
        }
    }

    /// Writes the mark of how far the log is synced, beside the log.
    #[must_use]
    pub fn synced_mark(&self) -> SyncedMark {
        SyncedMark(Arc::clone(&self.writer.synced))
    }

    /// Nothing is missing at the end any more, or nobody minds: durably, with the mark.
    ///
    /// # Errors
    /// As [`SyncedMark::write`].
    pub fn settle_doubt(&self) -> Result<(), Error> {
        self.writer.synced.settle_doubt()
    }

    /// Makes a batch durable. An empty one costs nothing.
    ///
    /// # Errors
    /// [`Error::NotConsecutive`], [`Error::Compacted`] and [`Error::TooLarge`] for a batch that
    /// does not fit the log, which is as it was. After [`Error::Io`] and [`Error::Failed`] the
    /// batch may or may not be there when the log is opened again; this log takes no more.
    pub fn append(&mut self, batch: Batch<'_>) -> Result<(), Error> {
        let Batch {
            entries,
            hard_state,
        } = batch;
        self.check_entries(entries)?;
        if entries.is_empty() && hard_state.is_none() {
            return self.writer.check_usable();
        }
        let place = self.write(Content {
            hard_state,
            entries,
            ..Content::default()
        })?;
        if let Some(first) = entries.first() {
            let terms = entries.iter().map(|entry| entry.term);
            self.writer
                .shared
                .index_mut()
                .append(first.index, terms, place);
        }
        Ok(())
    }

    fn check_entries(&self, entries: &[LogEntry]) -> Result<(), Error> {
        let Some(first) = entries.first() else {
            return Ok(());
        };
        let index = self.writer.shared.index();
        if first.index <= index.entry_id.index {
            return Err(Error::Compacted {
                index: first.index,
                first_index: index.entry_id.index + 1,
            });
        }
        let expected = first.index.min(index.last + 1);
        for (expected, entry) in (expected..).zip(entries) {
            if entry.index != expected {
                let found = entry.index;
                return Err(Error::NotConsecutive { expected, found });
            }
        }
        Ok(())
    }

    /// Gives up the entries up to `to_index`, durably, then deletes the oldest segments that hold
    /// no others, a few at a time. Does nothing where that much was compacted before.
    ///
    /// # Errors
    /// [`Error::Beyond`] if the log does not reach `to_index`; [`Error::Io`] and [`Error::Failed`]
    /// as in [`RaftLog::append`].
    pub fn compact(&mut self, to_index: u64) -> Result<(), Error> {
        let entry_id = {
            let index = self.writer.shared.index();
            if to_index <= index.entry_id.index {
                return Ok(());
            }
            let term = index.term(to_index).ok_or(Error::Beyond {
                index: to_index,
                last_index: index.last,
            })?;
            let index = to_index;
            EntryId { index, term }
        };
        self.write(Content {
            entry_id: Some(entry_id),
            ..Content::default()
        })?;
        self.writer.shared.index_mut().compact(entry_id);
        self.writer.unlink_unneeded()
    }

    /// Empties the log in favour of a received state whose last entry is `entry_id`; the next entry
    /// is the one after it. The hard state that belongs to it is in the same frame: no crash
    /// separates the two.
    ///
    /// # Errors
    /// [`Error::Compacted`] if the log was compacted beyond `entry_id`; [`Error::Io`] and
    /// [`Error::Failed`] as in [`RaftLog::append`].
    pub fn reset(&mut self, entry_id: EntryId, hard_state: Option<&[u8]>) -> Result<(), Error> {
        let first_index = self.first_index();
        if entry_id.index + 1 < first_index {
            let index = entry_id.index;
            return Err(Error::Compacted { index, first_index });
        }
        self.write(Content {
            hard_state,
            entry_id: Some(entry_id),
            reset: true,
            entries: &[],
        })?;
        self.writer.shared.index_mut().reset(entry_id);
        self.writer.unlink_unneeded()
    }

    /// As [`Reader::read`].
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<LogEntry>, Error> {
        self.reader().read(low, high, max_bytes)
    }

    /// As [`Reader::term`].
    #[cfg(any(test, feature = "fuzzing"))]
    #[must_use]
    pub fn term(&self, index: u64) -> Option<u64> {
        self.writer.shared.index().term(index)
    }

    /// As [`Reader::first_index`].
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.writer.shared.index().entry_id.index + 1
    }

    /// As [`Reader::last_index`].
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.writer.shared.index().last
    }

    /// What was compacted away.
    #[must_use]
    pub fn compacted(&self) -> EntryId {
        self.writer.shared.index().entry_id
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        self.writer.stats
    }

    /// Writes a frame, durably, and remembers its hard state.
    fn write(&mut self, content: Content<'_>) -> Result<FrameLocation, Error> {
        let place = self.writer.write(content, self.hard_state.as_deref())?;
        if let Some(hard_state) = content.hard_state {
            let kept = self.hard_state.get_or_insert_default();
            kept.clear();
            kept.extend_from_slice(hard_state);
        }
        Ok(place)
    }
}
