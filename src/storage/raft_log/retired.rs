//! Segments that the log no longer needs, where somebody wants to keep some: they get another name, and
//! are no part of the log. No start reads them, and no error in them matters to one.

use std::ops::Range;
use std::sync::Arc;

use super::files::Files;
use super::found::{self, Found};
use super::options::LogOptions;
use super::reader::{Reader, Shared};
use super::replay::Replay;
use super::{Error, segment};

/// Entries that one segment holds.
pub struct Stretch {
    pub reader: Reader,
    pub indexes: Range<u64>,
}

/// What all segments of a directory hold, the retired ones and what is compacted included, in order:
/// without entries that later ones replaced. Nothing is written. A retired segment of another member
/// is left out.
///
/// # Errors
/// As [`super::RaftLog::inspect`].
pub fn history(files: &Arc<dyn Files>, options: &LogOptions) -> Result<Vec<Stretch>, Error> {
    let shown = &**files;
    let list = |error| segment::io_error(shown, "list", "")(error);
    let names = shown.list().map_err(list)?.into_iter();
    let mut retired: Vec<_> = names
        .filter_map(|name| Some((segment::retired_sequence(&name)?, name)))
        .collect();
    retired.sort_unstable();
    let mut stretches: Vec<Stretch> = Vec::new();
    for (sequence, name) in retired.into_iter().chain(found::segment_names(shown)?) {
        let found = match found::examine(shown, options.owner(), sequence, name) {
            Ok(found) => found,
            Err(Error::Foreign { .. }) => continue,
            Err(error) => return Err(error),
        };
        let Some(stretch) = stretch(files, options, &found)? else {
            continue;
        };
        for before in &mut stretches {
            before.indexes.end = before.indexes.end.min(stretch.indexes.start);
        }
        stretches.push(stretch);
    }
    stretches.retain(|stretch| !stretch.indexes.is_empty());
    Ok(stretches)
}

fn stretch(
    files: &Arc<dyn Files>,
    options: &LogOptions,
    found: &Found,
) -> Result<Option<Stretch>, Error> {
    let Some(header) = found.header() else {
        return Ok(None);
    };
    let mut replay = Replay::of_all(&**files);
    replay.start(&header);
    replay.segment(found)?;
    let mut index = replay.index;
    let Some(first) = index.first() else {
        return Ok(None);
    };
    let indexes = first..index.last + 1;
    index
        .segments
        .insert(found.sequence, Arc::clone(&found.file));
    let shared = Shared::new(Arc::clone(files), options.owner(), index);
    let reader = Reader {
        shared: Arc::new(shared),
    };
    Ok(Some(Stretch { reader, indexes }))
}
