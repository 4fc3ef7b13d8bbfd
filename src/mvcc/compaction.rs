//! Removes what no read can reach any more.
//!
//! Compaction to C keeps, of each key, the version that is live at C and all later ones. The
//! revision log alone shows what to remove: a change at or below C makes the version it superseded
//! unreachable, and a tombstone below C hides nothing any more. Every step can be repeated, so a
//! crash costs only the work of a step.

use super::history::decode_revision;
use crate::probe::{self, Defect};
use crate::storage::schema::{self, ChangeKind, RevisionRecord, meta};
use crate::storage::{self, Batch, Family, Read};
use crate::types::Revision;

/// The progress of a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The next revision to inspect.
    pub next: Revision,
    /// The revision that is compacted to.
    pub target: i64,
}

/// The revision that the last finished compaction went to; -1 where there was none.
pub fn finished(read: &dyn Read) -> storage::Result<i64> {
    number(read, meta::COMPACTION_FINISHED)
}

/// The revision that the history was asked to be compacted to; -1 where it never was.
pub fn requested(read: &dyn Read) -> storage::Result<i64> {
    number(read, meta::COMPACTED)
}

fn number(read: &dyn Read, key: &[u8]) -> storage::Result<i64> {
    match read.get(Family::Meta, key)? {
        None => Ok(-1),
        Some(value) => Ok(schema::decode_numbers::<1>(&value, key)?[0] as i64),
    }
}

/// Reads the end of the last finished compaction and the target of the next.
pub fn unfinished(read: &dyn Read) -> storage::Result<Option<Progress>> {
    let target = requested(read)?;
    let finished = finished(read)?;
    Ok((target > finished).then_some(Progress {
        // Tombstones at the old target were kept for its watches and go now.
        next: Revision::new(finished.max(0), 0),
        target,
    }))
}

/// Adds to `batch` the removals for the next `limit` revision records. Returns the progress; `None`
/// at the end, when the batch also records that the compaction is finished.
pub fn step(
    read: &dyn Read,
    progress: Progress,
    limit: usize,
    batch: &mut Batch,
) -> storage::Result<Option<Progress>> {
    let lower = schema::revision_key(progress.next);
    let too_far = i64::from(probe::injected(Defect::CompactionTooFar));
    let upper = schema::revision_key(Revision::new(progress.target + 1 + too_far, 0));
    let mut log = read.scan(Family::Revisions, &lower, Some(&upper))?;
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
