//! Opens a log that may have been left at any moment. Reading comes first and decides everything;
//! only a log that can be used is written to.
//!
//! Where the frames end, one of these is true:
//! - Zeros follow. That is the end.
//! - A whole frame, or a segment that was begun, follows somewhere. A write begins only when all
//!   before it is durable, so what cannot be read here was durable once: damage.
//! - Nothing whole follows, and a sector of the bad frame is empty. No sector of a frame is written
//!   empty, so the write did not reach the disk as a whole, and nobody was told that it had: it is
//!   cut off. So is what lies about of a frame whose first sector is missing, and a frame beyond
//!   the end of a file cut short.
//! - Nothing whole follows, but every sector was written. The frame may have been acknowledged and
//!   have suffered since: damage.

use std::sync::Arc;

use super::files::{Files, OpenFile};
use super::found::{Found, damaged, survey};
use super::frame::{Head, SEGMENT_HEADER_BYTES, sectors};
use super::index::{Index, Place};
use super::replay::{Replay, Stop};
use super::segment::{Pace, Remains, Window, fill, io_error, is_zero};
use super::writer::{Active, segment_bytes, unlink};
use super::{Error, Options, TornTail};

/// A log that can be appended to.
pub(super) struct Recovery {
    pub index: Index,
    pub hard_state: Option<Vec<u8>>,
    pub active: Active,
    pub ready: Option<Arc<dyn OpenFile>>,
    pub torn_tail: Option<TornTail>,
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

pub(super) fn recover(files: &dyn Files, options: &Options) -> Result<Recovery, Error> {
    let found = survey(files, options.owner())?;
    let begun = found
        .iter()
        .take_while(|segment| segment.header().is_some())
        .count();
    let mut replay = Replay::new(files);
    let mut stop = Stop {
        offset: 0,
        bad_extent: None,
    };
    for segment in &found[..begun] {
        replay.check_seam(segment, &found, &stop)?;
        stop = replay.segment(segment)?;
    }
    let Some(last) = found[..begun].last() else {
        return Err(no_log(files, &found));
    };
    let mending = judge(
        files,
        last,
        &found[begun..],
        &stop,
        segment_bytes(options, 0),
    )?;
    replay.check_complete(&found[0])?;

    let rewrite = replay
        .last_frame
        .filter(|place| place.sequence == last.sequence);
    mend(files, last, &mending, rewrite, options.sync)?;
    let Replay {
        mut index,
        hard_state,
        ..
    } = replay;
    for segment in &found[..begun] {
        index
            .segments
            .insert(segment.sequence, Arc::clone(&segment.file));
    }
    Ok(Recovery {
        index,
        hard_state,
        active: Active {
            sequence: last.sequence,
            file: Arc::clone(&last.file),
            end: stop.offset,
            capacity: last.file_bytes,
        },
        ready: mending.ready,
        torn_tail: mending.torn_tail,
    })
}

/// The error for segments of which none was begun. The very first write of a log fits a sector, so
/// a crash leaves nothing but zeros of it.
fn no_log(files: &dyn Files, found: &[Found]) -> Error {
    for segment in found {
        match segment.remains(files, 0) {
            Ok(Remains { end: None, .. }) => {}
            Ok(_) => {
                return damaged(
                    files,
                    &segment.name,
                    0,
                    "its header is not what was written",
                );
            }
            Err(error) => return error,
        }
    }
    let directory = files.describe("");
    Error::Absent { directory }
}

/// Tells the end of the log from a torn write and from damage. `spare` are the segments behind
/// `last`.
fn judge(
    files: &dyn Files,
    last: &Found,
    spare: &[Found],
    stop: &Stop,
    full_bytes: u64,
) -> Result<Mending, Error> {
    let behind = last.remains(files, stop.offset)?;
    let mut mending = Mending {
        zero: behind.end.map(|end| (stop.offset, end)),
        unlink: Vec::new(),
        ready: None,
        torn_tail: behind
            .end
            .map(|end| torn_tail(files, last, stop.offset, end)),
    };
    let refuse = |what: String| Err(damaged(files, &last.name, stop.offset, what));
    if let Some(at) = behind.frame {
        return refuse(format!(
            "this is not what was written, but a whole frame follows at byte {at}"
        ));
    }
    for segment in spare {
        let remains = segment.remains(files, 0)?;
        if segment.header().is_some() || remains.frame.is_some() {
            return refuse(format!(
                "this is not the log's end, the segment {} follows",
                segment.name
            ));
        }
        if matches!(segment.head, Head::Bad) && segment.file_bytes >= SEGMENT_HEADER_BYTES {
            return Err(damaged(
                files,
                &segment.name,
                0,
                "its header is not what was written",
            ));
        }
        if let Some(end) = remains.end {
            // Only one write can have been under way.
            if mending.torn_tail.is_some() {
                return refuse(format!(
                    "this is not what was written, but {} was written to",
                    segment.name
                ));
            }
            mending.torn_tail = Some(torn_tail(files, segment, 0, end));
        }
        if remains.end.is_none()
            && segment.file_bytes >= full_bytes
            && segment.sequence == last.sequence + 1
        {
            mending.ready = Some(Arc::clone(&segment.file));
        } else {
            mending.unlink.push(segment.sequence);
        }
    }
    if let Some(extent) = stop.bad_extent
        && !is_torn(files, last, stop.offset, extent)?
    {
        return refuse("a frame fails its checksum though all of it was written".to_owned());
    }
    Ok(mending)
}

fn torn_tail(files: &dyn Files, segment: &Found, offset: u64, end: u64) -> TornTail {
    TornTail {
        segment: files.describe(&segment.name),
        offset,
        bytes_cut: end - offset,
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
/// writing and syncing, or that was told a sync failed, leaves a frame that can be read but may not
/// be on the disk.
fn mend(
    files: &dyn Files,
    last: &Found,
    mending: &Mending,
    last_frame: Option<Place>,
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
    if !sync {
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
