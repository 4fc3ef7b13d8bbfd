//! The segment files of a directory as recovery finds them.

use std::sync::Arc;

use super::files::{Files, OpenFile};
use super::frame::{
    FORMAT_VERSION, Head, Link, Owner, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKey,
};
use super::segment::{self, Remains, Window, io_error, is_zero};
use super::synced;
use super::{Error, LOCK_NAME};
use crate::probe::{self, Defect};

/// That of a log's first segment.
pub(super) const FIRST_SEQUENCE: u64 = 1;

/// A segment file as it was found.
pub(super) struct Found {
    pub sequence: u64,
    pub name: String,
    pub file: Arc<dyn OpenFile>,
    pub file_bytes: u64,
    pub head: Head,
    pub key: SegmentKey,
}

/// Refuses a directory in which a segment was ever begun: one that is not zeros was, and the first
/// was where there is another, or where the file of how far the log was synced names one.
pub(super) fn ensure_unused(files: &dyn Files, owner: Owner) -> Result<(), Error> {
    let synced = synced::read(files, owner)?;
    if synced.is_some_and(|record| record.position.sequence > 0) {
        let file = files.describe(synced::FILE_NAME);
        return Err(Error::Exists { file });
    }
    for (sequence, name) in segment_names(files)? {
        let found = files.open(&name).map_err(io_error(files, "open", &name))?;
        let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
        found
            .read_at(&mut bytes, 0)
            .map_err(io_error(files, "read", &name))?;
        if sequence > FIRST_SEQUENCE || !is_zero(&bytes) {
            let file = files.describe(&name);
            return Err(Error::Exists { file });
        }
    }
    Ok(())
}

pub(super) fn segment_names(files: &dyn Files) -> Result<Vec<(u64, String)>, Error> {
    let names = files.list().map_err(io_error(files, "list", ""))?;
    let segment = |name: String| Some((segment::sequence(&name)?, name));
    let mut segments: Vec<_> = names.into_iter().filter_map(segment).collect();
    segments.sort_unstable();
    Ok(segments)
}

/// Names files that are not the log's: its directory is no place for them.
fn warn_of_others(files: &dyn Files) -> Result<(), Error> {
    for name in files.list().map_err(io_error(files, "list", ""))? {
        let is_ours = [LOCK_NAME, synced::FILE_NAME].contains(&name.as_str());
        let is_segment =
            segment::sequence(&name).is_some() || segment::retired_sequence(&name).is_some();
        if !is_segment && !is_ours {
            tracing::warn!(
                file = files.describe(&name),
                "found a file that is not the raft log's"
            );
        }
    }
    Ok(())
}

/// Opens all segments, in order, and checks that they belong together.
pub(super) fn survey(files: &dyn Files, owner: Owner) -> Result<Vec<Found>, Error> {
    warn_of_others(files)?;
    let mut found: Vec<Found> = Vec::new();
    for (sequence, name) in segment_names(files)? {
        if let Some(before) = found.last()
            && before.sequence + 1 != sequence
        {
            let file = files.describe(&segment::name(before.sequence + 1));
            return Err(Error::MissingSegment { file });
        }
        let segment = examine(files, owner, sequence, name)?;
        found.push(segment);
    }
    Ok(found)
}

pub(super) fn examine(
    files: &dyn Files,
    owner: Owner,
    sequence: u64,
    name: String,
) -> Result<Found, Error> {
    let file = files.open(&name).map_err(io_error(files, "open", &name))?;
    let file_bytes = file.bytes().map_err(io_error(files, "examine", &name))?;
    let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
    file.read_at(&mut bytes, 0)
        .map_err(io_error(files, "read", &name))?;
    let head = SegmentHeader::decode(&bytes);
    match head {
        Head::Newer(needed) => Err(Error::NewerVersion {
            file: files.describe(&name),
            needed,
            supported: FORMAT_VERSION,
        }),
        Head::Valid(header) if header.owner != owner => Err(Error::Foreign {
            file: files.describe(&name),
            cluster_id: header.owner.cluster_id,
            member_id: header.owner.member_id,
            own_cluster_id: owner.cluster_id,
            own_member_id: owner.member_id,
        }),
        Head::Valid(header) if header.sequence != sequence => {
            let what = format!(
                "it is named as segment {sequence:x} but is segment {:x}",
                header.sequence
            );
            Err(damaged(files, &name, 0, what))
        }
        Head::Valid(SegmentHeader {
            link: Some(Link { made_bytes, .. }),
            ..
        }) if file_bytes < made_bytes && !probe::injected(Defect::ShortFileTaken) => {
            let what = format!(
                "the file ends here but was made with {made_bytes} bytes before its first use: \
                 somebody or the disk has cut it short"
            );
            Err(damaged(files, &name, file_bytes, what))
        }
        Head::Valid(_) | Head::Unused | Head::Bad => Ok(Found {
            key: owner.segment_key(sequence),
            sequence,
            name,
            file,
            file_bytes,
            head,
        }),
    }
}

impl Found {
    pub fn header(&self) -> Option<SegmentHeader> {
        match self.head {
            Head::Valid(header) => Some(header),
            Head::Unused | Head::Bad | Head::Newer(_) => None,
        }
    }

    /// What a segment that was begun can hold.
    pub fn capacity(&self) -> u64 {
        let link = self.header().and_then(|header| header.link);
        link.map_or(self.file_bytes, |link| link.made_bytes)
    }

    pub fn window<'a>(&'a self, files: &dyn Files) -> Result<Window<'a>, Error> {
        Window::new(&*self.file).map_err(io_error(files, "examine", &self.name))
    }

    pub fn remains(&self, files: &dyn Files, from: u64) -> Result<Remains, Error> {
        let remains = self.window(files)?.remains(self.key, from);
        remains.map_err(io_error(files, "read", &self.name))
    }
}

pub(super) fn damaged(
    files: &dyn Files,
    name: &str,
    offset: u64,
    what: impl Into<String>,
) -> Error {
    Error::Damaged {
        file: files.describe(name),
        offset,
        what: what.into(),
    }
}
