//! How far the log was synced, in a file of its own: what lets recovery tell a log that lost its
//! end from one whose last write a crash tore. Zeros behind the last frame look the same in both.
//!
//! The mark lags, so it costs an append nothing: it is written when a segment is begun, at an
//! orderly stop, and by the holders of a [`SyncedMark`], every second and with each flush of the state. It only ever names what was
//! durable when it was written, and the place where frames end never moves back: not where entries
//! are replaced, compacted or reset, all of which are frames of their own. So a log that ends
//! before its mark lost something.
//!
//! The file has two records, written in turn, each in a sector of its own: a torn write harms one
//! of them, and the other is at most one write older.
//!
//! | at | bytes | record |
//! |---|---|---|
//! | 0 | 8 | `etchedSY` |
//! | 8 | 4 | format version |
//! | 12 | 4 | the start of the machine (`Files::boot`), 0 where it is not known |
//! | 16, 24 | 8, 8 | cluster id, member id |
//! | 32 | 8 | number of the record; even ones stand at 0, odd ones at 4096 |
//! | 40, 48 | 8, 8 | sequence number of the last segment that was begun, and where its frames end |
//! | 56, 64 | 8, 8 | index and term of the last entry, for people |
//! | 72 | 4 | 1 where the log's end is in doubt, else 0 |
//! | 76 | 4 | CRC-32 of the 76 bytes before |
//!
//! The doubt is written before a torn tail is cut off, of which nothing tells afterwards, and stays
//! until it is settled. As long as the machine runs what a process wrote can be read, synced or not,
//! so a log that is opened again in the same boot lacks nothing that does not show.
//!
//! A log of segments of version 2 always has the file: it is made before the first of them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::files::{Files, OpenFile};
use super::frame::Owner;
use super::segment::io_error;
use super::{EntryId, Error};

pub(super) const FILE_NAME: &str = "SYNCED";

const MAGIC: &[u8; 8] = b"etchedSY";
const FORMAT_VERSION: u32 = 1;
const RECORD_BYTES: usize = 80;
/// A page each: no disk tears a write in one into the other.
const SLOT_BYTES: u64 = 4096;
const FILE_BYTES: usize = 2 * SLOT_BYTES as usize;

/// Where the log's frames end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    /// Of the last segment that was begun; 0 where there was none.
    pub sequence: u64,
    pub offset: u64,
    pub last: EntryId,
}

/// A record as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    number: u64,
    pub position: Position,
    pub boot: u32,
    pub in_doubt: bool,
}

impl Record {
    fn encode(self, owner: Owner) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.boot.to_le_bytes());
        let Position {
            sequence,
            offset,
            last,
        } = self.position;
        for number in [
            owner.cluster_id,
            owner.member_id,
            self.number,
            sequence,
            offset,
            last.index,
            last.term,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&u32::from(self.in_doubt).to_le_bytes());
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The record in a slot; `None` for what is not as it was written.
    fn decode(files: &dyn Files, owner: Owner, slot: &[u8]) -> Result<Option<Self>, Error> {
        let Some((checked, checksum)) = slot
            .get(..RECORD_BYTES)
            .and_then(|record| record.split_last_chunk::<4>())
        else {
            return Ok(None);
        };
        let number = |at: usize| {
            let bytes = checked.get(at..).and_then(|bytes| bytes.first_chunk());
            u64::from_le_bytes(bytes.copied().unwrap_or_default())
        };
        if !checked.starts_with(MAGIC) || crc32fast::hash(checked) != u32::from_le_bytes(*checksum)
        {
            return Ok(None);
        }
        let version = number(8) as u32;
        if version != FORMAT_VERSION {
            return Err(Error::NewerVersion {
                file: files.describe(FILE_NAME),
                needed: version,
                supported: FORMAT_VERSION,
            });
        }
        let found = Owner {
            cluster_id: number(16),
            member_id: number(24),
        };
        if found != owner {
            return Err(Error::Foreign {
                file: files.describe(FILE_NAME),
                cluster_id: found.cluster_id,
                member_id: found.member_id,
                own_cluster_id: owner.cluster_id,
                own_member_id: owner.member_id,
            });
        }
        Ok(Some(Self {
            number: number(32),
            position: Position {
                sequence: number(40),
                offset: number(48),
                last: EntryId {
                    index: number(56),
                    term: number(64),
                },
            },
            boot: (number(8) >> 32) as u32,
            in_doubt: number(68) >> 32 != 0,
        }))
    }

    fn slot(self) -> u64 {
        self.number % 2 * SLOT_BYTES
    }
}

/// The newer of the records that are whole; `None` where neither is, or there is no file.
pub(super) fn read(files: &dyn Files, owner: Owner) -> Result<Option<Record>, Error> {
    let file = match files.open(FILE_NAME) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io_error(files, "open", FILE_NAME))?,
    };
    let mut bytes = [0; FILE_BYTES];
    file.read_at(&mut bytes, 0)
        .map_err(io_error(files, "read", FILE_NAME))?;
    let mut newest: Option<Record> = None;
    for slot in bytes.chunks(SLOT_BYTES as usize) {
        if let Some(record) = Record::decode(files, owner, slot)?
            && newest.is_none_or(|newest| newest.number < record.number)
        {
            newest = Some(record);
        }
    }
    Ok(newest)
}

/// The file, and how far the log that it belongs to is synced.
pub(super) struct Synced {
    files: Arc<dyn Files>,
    owner: Owner,
    boot: u32,
    reached: Mutex<Reached>,
    /// What the file says. Locked over a write to it, which the log thread waits for when it begins
    /// a segment.
    written: Mutex<Written>,
}

/// What is so now, and is to be written.
#[derive(Clone, Copy)]
struct Reached {
    /// How far the log is synced.
    position: Position,
    in_doubt: bool,
}

struct Written {
    file: Arc<dyn OpenFile>,
    record: Record,
    /// A write was begun and not seen to succeed: what the disk holds is not known any more.
    failed: bool,
}

impl Synced {
    /// Makes the file, durably, in the place of one that says nothing.
    pub fn create(
        files: Arc<dyn Files>,
        owner: Owner,
        position: Position,
    ) -> Result<Arc<Self>, Error> {
        let record = Record {
            number: 0,
            position,
            boot: files.boot(),
            in_doubt: false,
        };
        let mut bytes = record.encode(owner);
        bytes.resize(FILE_BYTES, 0);
        let make = || -> io::Result<Arc<dyn OpenFile>> {
            let file = match files.create(FILE_NAME) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    files.open(FILE_NAME)?
                }
                created => created?,
            };
            file.write_at(&bytes, 0)?;
            file.sync_data()?;
            files.sync_directory()?;
            Ok(file)
        };
        let file = make().map_err(io_error(&*files, "create", FILE_NAME))?;
        Ok(Self::new(files, owner, file, record))
    }

    /// Continues the file that `record` was read from.
    pub fn open(files: Arc<dyn Files>, owner: Owner, record: Record) -> Result<Arc<Self>, Error> {
        let file = files
            .open(FILE_NAME)
            .map_err(io_error(&*files, "open", FILE_NAME))?;
        Ok(Self::new(files, owner, file, record))
    }

    fn new(
        files: Arc<dyn Files>,
        owner: Owner,
        file: Arc<dyn OpenFile>,
        record: Record,
    ) -> Arc<Self> {
        Arc::new(Self {
            boot: files.boot(),
            files,
            owner,
            reached: Mutex::new(Reached {
                position: record.position,
                in_doubt: record.in_doubt,
            }),
            written: Mutex::new(Written {
                file,
                record,
                failed: false,
            }),
        })
    }

    /// The log is synced up to `position`.
    pub fn reached(&self, position: Position) {
        lock(&self.reached).position = position;
    }

    /// The log's end is in doubt, durably.
    pub fn begin_doubt(&self) -> Result<(), Error> {
        lock(&self.reached).in_doubt = true;
        self.write()
    }

    /// It is not any more, durably.
    pub fn settle_doubt(&self) -> Result<(), Error> {
        lock(&self.reached).in_doubt = false;
        self.write()
    }

    /// Has the file name this start of the machine: what an earlier one may have lost is decided.
    pub fn enter_boot(&self) -> Result<(), Error> {
        let boot = lock(&self.written).record.boot;
        if boot == self.boot {
            return Ok(());
        }
        self.write()
    }

    /// Has the file say how far the log is synced.
    pub fn write(&self) -> Result<(), Error> {
        let mut written = lock(&self.written);
        if written.failed {
            return Err(Error::Failed);
        }
        let Reached { position, in_doubt } = *lock(&self.reached);
        let record = Record {
            number: written.record.number + 1,
            position,
            boot: self.boot,
            in_doubt,
        };
        let same = Record {
            number: written.record.number,
            ..record
        };
        if same == written.record {
            return Ok(());
        }
        written.failed = true;
        let put = || {
            written
                .file
                .write_at(&record.encode(self.owner), record.slot())?;
            written.file.sync_data()
        };
        put().map_err(io_error(&*self.files, "write to", FILE_NAME))?;
        written.record = record;
        written.failed = false;
        Ok(())
    }
}

// Neither lock is held over anything that panics half way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the mark from any thread, while the log is appended to.
#[derive(Clone)]
pub struct SyncedMark(pub(super) Arc<Synced>);

impl SyncedMark {
    /// False where the log is synced no further than the file says, or never syncs.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        // The log's thread may hold the lock over a write: then there is nothing to do.
        let Ok(written) = self.0.written.try_lock() else {
            return false;
        };
        !written.failed && written.record.position != lock(&self.0.reached).position
    }

    /// Has the file say how far the log is synced; waits for the disk.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Failed`] after it.
    pub fn write(&self) -> Result<(), Error> {
        self.0.write()
    }
}
