//! Removes what no read can reach any more.
//!
//! Compaction to C keeps, of each key, the version that is live at C and all later ones. Which
//! entries go can be told from the revision log alone: a change at or below C makes the version
//! it superseded unreachable, and a tombstone below C has nothing left to hide. Every step can
//! be repeated, so a crash in the middle costs nothing but the work.

use super::history::decode_revision;
use crate::probe::{self, Defect};
use crate::storage::schema::{self, ChangeKind, RevisionRecord, meta};
use crate::storage::{self, Batch, Family, Read};
use crate::types::Revision;

/// How far a compaction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The next revision to look at.
    pub next: Revision,
    /// The revision that is compacted to.
    pub target: i64,
}

/// The revision that the last finished compaction went to; -1 where there was none.
pub fn finished(read: &dyn Read) -> storage::Result<i64> {
    number(read, meta::COMPACTION_FINISHED)
}

fn number(read: &dyn Read, key: &[u8]) -> storage::Result<i64> {
    match read.get(Family::Meta, key)? {
        None => Ok(-1),
        Some(value) => Ok(schema::decode_numbers::<1>(&value, key)?[0] as i64),
    }
}

/// Reads where the last finished compaction ended and where the wanted one shall end.
pub fn unfinished(read: &dyn Read) -> storage::Result<Option<Progress>> {
    let target = number(read, meta::COMPACTED)?;
    let finished = finished(read)?;
    Ok((target > finished).then_some(Progress {
        // Tombstones at the old target were kept for its watches and go now.
        next: Revision::new(finished.max(0), 0),
        target,
    }))
}

/// Adds to `batch` the removals that the next `limit` revision records call for. Returns how
/// far it came; `None` at the end, where the batch also says that the compaction is finished.
pub fn step(
    read: &dyn Read,
    progress: Progress,
    limit: usize,
    batch: &mut Batch,
) -> storage::Result<Option<Progress>> {
    let lower = schema::revision_key(progress.next);
    let too_far = i64::from(probe::injected(Defect::CompactionTooFar));
    let upper = schema::revision_key(Revision::new(progress.target + 1 + too_far, 0));
    let mut log = read.cursor(Family::Revisions, &lower, Some(&upper))?;
    let mut seen = 0;
    while log.next()? {
        let revision = decode_revision(log.key())?;
        if seen == limit {
            return Ok(Some(Progress {
                next: revision,
                ..progress
            }));
        }
        seen += 1;
        let record = RevisionRecord::decode(log.key(), log.value())?;
        if let Some(superseded) = record.superseded {
            batch.delete(Family::Undo, &schema::undo_key(record.key, revision));
            batch.delete(Family::Revisions, &schema::revision_key(superseded));
        }
        let hides = revision.main >= progress.target
            && !probe::injected(Defect::TombstoneTakenEarly)
            || probe::injected(Defect::TombstoneForgotten);
        if record.kind == ChangeKind::Delete && !hides {
            batch.delete(Family::Revisions, log.key());
        }
    }
    let finished = schema::encode_numbers(&[progress.target as u64]);
    batch.put(Family::Meta, meta::COMPACTION_FINISHED, &finished);
    Ok(None)
}
