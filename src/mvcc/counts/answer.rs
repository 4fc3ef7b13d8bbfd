//! How many keys a range has: the sum of its whole blocks, what the history says that they had more or
//! less at another revision, and a walk over what of two blocks is left at the ends.

use super::catch_up::history;
use super::{KeyCounts, WholeBlocks, added_keys};
use crate::mvcc::read::PinnedView;
use crate::probe::{self, CoveragePoint, Defect};
use crate::storage;
use crate::storage::schema::RevisionRecord;
use crate::types::KeyRange;

/// A change of the history is read in the time in which a few keys are walked over.
const KEYS_FOR_CHANGE: u64 = 4;
/// Changes that are read in any case.
const FREE_CHANGES: u64 = 16;

impl PinnedView<'_> {
    /// How many keys a range has at a revision that is not compacted, where that is known without a
    /// walk over all of them.
    pub fn count(&self, range: &KeyRange, revision: i64) -> storage::Result<Option<i64>> {
        let (lower, upper) = match range {
            KeyRange::Point(_) => return Ok(None),
            KeyRange::Span(lower, upper) => (lower, Some(upper)),
            KeyRange::From(lower) => (lower, None),
        };
        let known = self.counts;
        let known = known.and_then(|known| known.nearest(revision, self.compacted, self.head));
        let Some(counts) = known else {
            return Ok(None);
        };
        let Some(whole) = counts.whole_blocks(lower, upper.map(AsRef::as_ref)) else {
            return Ok(None);
        };
        let Some(change) = self.change_of(&whole, &counts, revision)? else {
            probe::reached(CoveragePoint::CountsTooFar);
            return Ok(None);
        };
        let mut count = whole.keys as i64 + change;
        if *lower != whole.from {
            let before = KeyRange::Span(lower.clone(), whole.from);
            count += self.walked(&before, revision)?;
        }
        let behind = match (whole.to, upper) {
            (Some(to), Some(upper)) if to != *upper => Some(KeyRange::Span(to, upper.clone())),
            _ => None,
        };
        if let Some(behind) = behind {
            count += self.walked(&behind, revision)?;
        }
        probe::reached(CoveragePoint::CountAnswered);
        Ok((count >= 0).then_some(count))
    }

    fn walked(&self, range: &KeyRange, revision: i64) -> storage::Result<i64> {
        let mut walk = self.walk(range, revision)?;
        let mut count = 0;
        while walk.advance()? {
            count += 1;
        }
        Ok(count)
    }

    /// How many keys more these blocks have at `revision`; `None` where so much was changed between
    /// that a walk is as good.
    fn change_of(
        &self,
        whole: &WholeBlocks,
        counts: &KeyCounts,
        revision: i64,
    ) -> storage::Result<Option<i64>> {
        let (from, to) = match counts.revision <= revision {
            true => (counts.revision, revision),
            false => (revision, counts.revision),
        };
        if from == to || probe::injected(Defect::RecordsNotCaughtUp) {
            return Ok(Some(0));
        }
        let most = whole.keys / KEYS_FOR_CHANGE + FREE_CHANGES;
        // A revision has one change at least.
        if to.abs_diff(from) > most {
            return Ok(None);
        }
        let mut log = history(self.read, from, to)?;
        let (mut records, mut change) = (0, 0);
        while log.next()? {
            records += 1;
            if records > most {
                return Ok(None);
            }
            let record = RevisionRecord::decode(log.key(), log.value())?;
            let added = added_keys(&record);
            if added > 0 && probe::injected(Defect::KeyNotCounted) {
                continue;
            }
            if added != 0 && whole.contains(record.key) {
                change += added;
            }
        }
        if change != 0 {
            probe::reached(CoveragePoint::CountCorrected);
        }
        Ok(Some(match counts.revision <= revision {
            true => change,
            false => -change,
        }))
    }
}
