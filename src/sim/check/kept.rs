//! What a compaction leaves of the history: everything that can still be read, and nothing else.

use super::findings::{self, Findings};
use super::replay::Replay;
use crate::sim::history::{History, Kept};
use crate::state::model::Changed;

pub fn check(history: &History, replay: &Replay, findings: &mut Findings) {
    for kept in &history.kept {
        let there = |change: &&Changed| is_kept(change, kept.compacted);
        let mut expected: Vec<_> = replay.changes.iter().filter(there).collect();
        expected.sort_by_key(|change| change.revision);
        let expected: Vec<_> = expected.iter().map(|change| change.revision).collect();
        compare(kept, &expected, findings);
        let superseded = |change: &&Changed| {
            let at = change.superseded_at;
            change.event.r#type == 0 && at.is_some_and(|at| at > kept.compacted)
        };
        let superseded = replay.changes.iter().filter(superseded).count();
        if superseded != kept.superseded {
            findings.add("superseded versions are not what is left", || {
                format!(
                    "member {}, compacted to {}, has {} instead of {superseded}",
                    kept.member, kept.compacted, kept.superseded
                )
            });
        }
    }
}

fn compare(kept: &Kept, expected: &[crate::types::Revision], findings: &mut Findings) {
    let member = kept.member;
    let lost = expected
        .iter()
        .find(|revision| !kept.revisions.contains(revision));
    if let Some(lost) = lost {
        findings.add("a compaction removed too much", || {
            let compacted = kept.compacted;
            format!("member {member}, compacted to {compacted}, lacks the change {lost:?}")
        });
    }
    let waste = kept.revisions.iter().filter(|one| !expected.contains(one));
    let waste: Vec<_> = waste.collect();
    if !waste.is_empty() {
        findings.add("a compaction left versions that no read can see", || {
            let compacted = kept.compacted;
            let waste = findings::shortened(&waste);
            format!("member {member}, compacted to {compacted}, still has {waste}")
        });
    }
}

/// Whether a change can still be read after a compaction to that revision: newer changes, what is
/// live at the revision, and tombstones at exactly that revision.
fn is_kept(change: &Changed, compacted: i64) -> bool {
    match change.event.r#type {
        0 => change.superseded_at.is_none_or(|at| at > compacted),
        _ => change.revision.main >= compacted,
    }
}
