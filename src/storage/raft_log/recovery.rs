//! Opens a log that may have been left at any moment. Reading comes first and decides everything;
//! only a log that can be used is written to.
//!
//! Where the frames end, one of these is true:
//! - Zeros follow. That is the end.
//! - A whole frame, or a segment that was begun, follows somewhere. A write begins only when all
//!   before it is durable, so what cannot be read here was durable once: damage.
//! - Nothing whole follows, and a sector of the bad frame is empty. No sector of a frame is written
//!   empty, so the write did not reach the disk as a whole, and it was not acknowledged: it is
//!   cut off. So is what lies about of a frame whose first sector is missing.
//! - Nothing whole follows, but every sector was written. The frame may have been acknowledged and
//!   have suffered since: damage.
//!
//! No crash makes a file shorter: a segment is made at its full size, durably, before it is begun.
//! One that is shorter than its header says is damage. (Version 1 did not say, so there a frame
//! beyond the end of the file is cut off as a torn write.) Behind the last segment that was begun
//! there is one at most, for it is made only then: where there are two, one was emptied. And a log
//! that ends before what `synced` knows to have been durable is damaged, whatever its end looks
//! like.

use std::sync::Arc;

use super::files::{Files, OpenFile};
use super::found::{FIRST_SEQUENCE, Found, damaged, survey};
use super::frame::{Head, SECTOR_BYTES, SEGMENT_HEADER_BYTES, sectors};
use super::index::{FrameLocation, Index};
use super::replay::{Replay, Stop};
use super::segment::{self, Pace, Remains, Window, fill, io_error, is_zero};
use super::synced::{self, Position, Record, Synced};
use super::writer::{Active, segment_bytes, unlink};
use super::{EntryId, Error, LogOptions, TornTail};
use crate::probe::{self, CoveragePoint, Defect};

/// A log that can be appended to.
pub(super) struct Recovery {
    pub index: Index,
    pub hard_state: Option<Vec<u8>>,
    pub active: Active,
    pub ready: Option<Arc<dyn OpenFile>>,
    pub torn_tail: Option<TornTail>,
    pub end_in_doubt: bool,
    pub synced: Arc<Synced>,
}

/// What has to be written before the log can be used.
struct Mending {
    /// Zeros from here to there in the last segment that was begun.
    zero: Option<(u64, u64)>,
    /// Segments never begun that are not as they were made.
    unlink: Vec<u64>,
    ready: Option<Arc<dyn OpenFile>>,
    torn_tail: Option<TornTail>,
}

/// What reading found of a log that can be used.
struct Examined {
    found: Vec<Found>,
    /// How many of them were begun; at least one.
    begun: usize,
    stop: Stop,
    mending: Mending,
    record: Option<Record>,
    last_frame: Option<FrameLocation>,
    index: Index,
    hard_state: Option<Vec<u8>>,
}

/// A log that is only read.
pub(super) struct Inspected {
    pub index: Index,
    pub hard_state: Option<Vec<u8>>,
    pub torn_tail: Option<TornTail>,
    pub end_in_doubt: bool,
}

/// Reads the log that `files` holds; nothing is written.
pub(super) fn inspect(files: &dyn Files, options: &LogOptions) -> Result<Inspected, Error> {
    let examined = examine(files, options)?;
    let (record, offset) = (examined.record, examined.stop.offset);
    Ok(Inspected {
        end_in_doubt: was_in_doubt(record)
            || begins_doubt(record, &examined.mending, offset, files.boot()),
        index: examined.index,
        hard_state: examined.hard_state,
        torn_tail: examined.mending.torn_tail,
    })
}

fn examine(files: &dyn Files, options: &LogOptions) -> Result<Examined, Error> {
    let owner = options.owner();
    let found = survey(files, owner)?;
    let record = synced::read(files, owner)?;
    let mut replay = Replay::new(files);
    let mut last_begun: Option<(&Found, Stop)> = None;
    for segment in &found {
        let Some(header) = segment.header() else {
            break;
        };
        match &last_begun {
            None => replay.start(&header),
            Some((before, stop)) => replay.check_seam(before, stop, segment, &header)?,
        }
        last_begun = Some((segment, replay.segment(segment)?));
    }
    let Some((last, stop)) = last_begun else {
        return Err(no_log(files, &found, record));
    };
    let (begun, spare): (Vec<&Found>, Vec<&Found>) = found
        .iter()
        .partition(|segment| segment.sequence <= last.sequence);
    let mending = judge(files, last, &stop, &spare, segment_bytes(options, 0))?;
    replay.check_complete(&found[0])?;
    check_synced(files, last, stop.offset, record)?;
    if mending.torn_tail.is_some() {
        probe::reached(CoveragePoint::TailTorn);
    }
    let Replay {
        mut index,
        hard_state,
        last_frame,
        ..
    } = replay;
    for segment in &begun {
        index
            .segments
            .insert(segment.sequence, Arc::clone(&segment.file));
    }
    Ok(Examined {
        begun: begun.len(),
        stop,
        mending,
        record,
        last_frame,
        index,
        hard_state,
        found,
    })
}

/// Opens the log that `files` holds.
pub(super) fn recover(
    shared_files: &Arc<dyn Files>,
    options: &LogOptions,
) -> Result<Recovery, Error> {
    let files = &**shared_files;
    let Examined {
        found,
        begun,
        stop,
        mending,
        record,
        last_frame,
        index,
        hard_state,
    } = examine(files, options)?;
    let last = &found[begun - 1];
    let owner = options.owner();
    let synced = match record {
        Some(record) => Synced::open(Arc::clone(shared_files), owner, record)?,
        None => Synced::create(Arc::clone(shared_files), owner, Position::default())?,
    };
    // Written down before what says so is cut off.
    let end_in_doubt = doubt(&synced, record, &mending, stop.offset, files.boot())?;
    let rewrite = last_frame.filter(|place| place.sequence == last.sequence);
    mend(files, last, &mending, rewrite, options.sync)?;
    let active = Active {
        sequence: last.sequence,
        file: Arc::clone(&last.file),
        end: stop.offset,
        capacity: last.capacity(),
        checksum: stop.checksum,
        last: EntryId {
            index: index.last,
            term: index.term(index.last).unwrap_or_default(),
        },
    };
    Ok(Recovery {
        index,
        hard_state,
        active,
        ready: mending.ready,
        end_in_doubt,
        torn_tail: mending.torn_tail,
        synced,
    })
}

/// Whether writes that were acknowledged may be missing behind `offset`; written down before the
/// reason is gone.
fn doubt(
    synced: &Synced,
    record: Option<Record>,
    mending: &Mending,
    offset: u64,
    boot: u32,
) -> Result<bool, Error> {
    let is_kept = was_in_doubt(record);
    if is_kept {
        probe::reached(CoveragePoint::DoubtKept);
    }
    let begins = !is_kept && begins_doubt(record, mending, offset, boot);
    if begins {
        synced.begin_doubt()?;
    }
    Ok(is_kept || begins)
}

fn was_in_doubt(record: Option<Record>) -> bool {
    record.is_some_and(|record| record.in_doubt) && !probe::injected(Defect::DoubtForgotten)
}

fn begins_doubt(record: Option<Record>, mending: &Mending, offset: u64, boot: u32) -> bool {
    // The machine ran on since the log was last used.
    let is_same_boot = boot != 0 && record.is_some_and(|record| record.boot == boot);
    mending.torn_tail.is_some() || (offset.is_multiple_of(SECTOR_BYTES) && !is_same_boot)
}

/// Whether a log whose frames end at `offset` of `last` reaches as far as it was synced.
fn check_synced(
    files: &dyn Files,
    last: &Found,
    offset: u64,
    record: Option<Record>,
) -> Result<(), Error> {
    let Some(Record { position, .. }) = record else {
        return match last.header().and_then(|header| header.link) {
            None => Ok(()),
            Some(_) => Err(damaged(
                files,
                synced::FILE_NAME,
                0,
                "it is missing or neither of its records is whole, so nobody can tell whether the \
                 log lost its end",
            )),
        };
    };
    if (last.sequence, offset) < (position.sequence, position.offset)
        && !probe::injected(Defect::SyncedMarkIgnored)
    {
        return Err(ends_early(files, &last.name, offset, position));
    }
    Ok(())
}

fn ends_early(files: &dyn Files, name: &str, offset: u64, position: Position) -> Error {
    let what = format!(
        "the log ends here, but it was synced up to byte {} of {}, which is entry {} of term {}: \
         writes that were acknowledged are missing",
        position.offset,
        segment::name(position.sequence),
        position.last.index,
        position.last.term,
    );
    damaged(files, name, offset, what)
}

/// The error for segments of which the first was never begun. The very first write of a log fits a
/// sector, so a crash leaves nothing of it but zeros.
fn no_log(files: &dyn Files, found: &[Found], record: Option<Record>) -> Error {
    if let Some(Record { position, .. }) = record
        && position.sequence > 0
        && found.iter().all(|segment| segment.head == Head::Unused)
    {
        let name = segment::name(position.sequence);
        return ends_early(files, &name, 0, position);
    }
    match found {
        [first, next, ..] if first.head == Head::Unused => {
            return emptied(files, first, next);
        }
        [only] if only.sequence > FIRST_SEQUENCE => {
            let file = files.describe(&segment::name(only.sequence - 1));
            return Error::MissingSegment { file };
        }
        _ => {}
    }
    for segment in found {
        match segment.remains(files, 0) {
            Ok(Remains { end: None, .. }) => {}
            Ok(_) => return bad_head(files, &found[0]),
            Err(error) => return error,
        }
    }
    let directory = files.describe("");
    Error::Absent { directory }
}

fn bad_head(files: &dyn Files, segment: &Found) -> Error {
    let what = "its header is not what was written";
    damaged(files, &segment.name, 0, what)
}

/// A segment that should have been begun: the one behind it is made only then.
fn emptied(files: &dyn Files, segment: &Found, next: &Found) -> Error {
    let what = format!(
        "it holds nothing, but {} behind it is made only when this one is in use: what was in it \
         is gone",
        next.name
    );
    damaged(files, &segment.name, 0, what)
}

/// Tells the end of the log from a torn write and from damage. `spare` are the segments behind
/// `last`, of `full_bytes` if they were made as a whole.
fn judge(
    files: &dyn Files,
    last: &Found,
    stop: &Stop,
    spare: &[&Found],
    full_bytes: u64,
) -> Result<Mending, Error> {
    let refuse = |what: String| Err(damaged(files, &last.name, stop.offset, what));
    let behind = last.remains(files, stop.offset)?;
    if let Some(at) = behind.frame {
        let what = format!("this is not what was written, but a whole frame follows at byte {at}");
        return refuse(what);
    }
    if let Some(extent) = stop.bad_extent
        && !is_torn(files, last, stop.offset, extent)?
    {
        return refuse("a frame fails its checksum though all of it was written".to_owned());
    }
    if let [first, second, ..] = spare
        && first.head == Head::Unused
    {
        return Err(emptied(files, first, second));
    }
    let mut torn = behind.end.map(|end| (last, stop.offset, end));
    let mut mending = Mending {
        zero: behind.end.map(|end| (stop.offset, end)),
        unlink: Vec::new(),
        ready: None,
        torn_tail: None,
    };
    for segment in spare {
        if segment.header().is_some() {
            return Err(bad_head(files, spare[0]));
        }
        if let Some(end) = spare_end(files, segment)? {
            // Only one write can have been under way.
            if torn.is_some() {
                let what = "this is not what was written, but the next segment was begun";
                return refuse(what.to_owned());
            }
            torn = Some((segment, 0, end));
            mending.unlink.push(segment.sequence);
        } else if segment.file_bytes >= full_bytes && segment.sequence == last.sequence + 1 {
            mending.ready = Some(Arc::clone(&segment.file));
        } else {
            mending.unlink.push(segment.sequence);
        }
    }
    mending.torn_tail = torn.map(|(segment, offset, end)| TornTail {
        segment: files.describe(&segment.name),
        offset,
        bytes_cut: end - offset,
    });
    Ok(mending)
}

/// The offset after the last byte that a torn write left in a segment that should be unused.
fn spare_end(files: &dyn Files, segment: &Found) -> Result<Option<u64>, Error> {
    let remains = segment.remains(files, 0)?;
    // The header lies in one sector: it is as it was written, or not there at all.
    if segment.head == Head::Unused && remains.frame.is_none() {
        Ok(remains.end)
    } else {
        Err(bad_head(files, segment))
    }
}

/// Whether part of the frame at `offset` never reached the disk.
fn is_torn(files: &dyn Files, segment: &Found, offset: u64, extent: u64) -> Result<bool, Error> {
    if offset + extent > segment.file_bytes {
        return Ok(true);
    }
    let mut window = segment.window(files)?;
    let bytes =
        window
            .get(offset, extent as usize)
            .map_err(io_error(files, "read", &segment.name))?;
    Ok(sectors(offset, bytes).any(is_zero))
}

/// Makes the disk what `mending` says, and the last frame durable: a process that died between
/// writing and syncing, or whose sync failed, leaves a frame that can be read but may not
/// be on the disk.
fn mend(
    files: &dyn Files,
    last: &Found,
    mending: &Mending,
    last_frame: Option<FrameLocation>,
    sync: bool,
) -> Result<(), Error> {
    // From the highest down, so that a crash leaves no hole.
    for sequence in mending.unlink.iter().rev() {
        unlink(files, *sequence)?;
    }
    if let Some((from, to)) = mending.zero {
        fill(&*last.file, from, to, &|| Pace::Hurried).map_err(io_error(
            files,
            "cut the tail of",
            &last.name,
        ))?;
    }
    if !sync || probe::injected(Defect::FoundUnsynced) {
        return Ok(());
    }
    let (from, end) = match last_frame {
        Some(place) if place.offset > SEGMENT_HEADER_BYTES => {
            (place.offset, place.offset + place.bytes)
        }
        Some(place) => (0, place.offset + place.bytes),
        None => (0, SEGMENT_HEADER_BYTES),
    };
    let again = || {
        let mut window = Window::new(&*last.file)?;
        last.file
            .write_at(window.get(from, (end - from) as usize)?, from)?;
        last.file.sync_data()?;
        files.sync_directory()
    };
    again().map_err(io_error(files, "sync", &last.name))
}
