//! What no crash does to a raft log: a file is cut short, or what was synced reads as zeros. Tried on
//! copies of each log that a member leaves behind, which must not open, with a schedule to which
//! this adds nothing; and, where `faults` says so, on a member's own disk.

use std::sync::Arc;

use super::faults::plan::Phase;
use super::member::CLUSTER;
use super::world::World;
use crate::probe::{self, CoveragePoint};
use crate::replica::state_store::entry_id_of;
use crate::storage::Engine as _;
use crate::storage::raft_log::{Damage, LogOptions, RaftLog};
use crate::types::MemberId;

/// How a member ends that the leader has shown to lack entries: see `raft::admit::Lost`.
const LACKS: &str = "the raft log ends with entry";

impl World {
    /// Damages copies of the log of a member that is down, and opens them.
    pub(super) fn try_damaged_logs(&mut self, id: MemberId, seed: u64) {
        let options = self.log_options(id);
        let Some(log) = self.members.get(&id).map(|member| member.disk.log()) else {
            return;
        };
        for (damage, refused) in [
            (Damage::CutShort, CoveragePoint::ShortLogRefused),
            (Damage::EndZeroed, CoveragePoint::LostEndRefused),
        ] {
            let copy = log.copy();
            let Some(what) = copy.damage(damage, options, seed) else {
                continue;
            };
            match RaftLog::open(Arc::new(copy), options) {
                Err(_) => probe::reached(refused),
                Ok((_, recovered)) => {
                    let last = recovered.last_index;
                    let details = format!("{id}: {what}; it opens and ends with entry {last}");
                    self.find("a damaged log passes for a short one", details);
                }
            }
        }
    }
    /// Damages the log of a member that is down; false where there is nothing to damage.
    pub(super) fn damage_log(&mut self, id: MemberId, damage: Damage, seed: u64) -> bool {
        let options = self.log_options(id);
        let Some(disk) = self.members.get(&id).map(|member| &member.disk) else {
            return false;
        };
        let log = disk.log();
        if damage == Damage::EndLost {
            // A state that was flushed behind the mark shows what the log lacks: the member does
            // not start again. The schedule counts on it, since others may be in doubt by then.
            let copy = log.copy();
            let left = copy.damage(damage, options, seed);
            let left = left.and_then(|_| RaftLog::open(Arc::new(copy), options).ok());
            let applied = entry_id_of(disk.state().latest()).map_or(u64::MAX, |id| id.index);
            if left.is_none_or(|(_, recovered)| recovered.last_index < applied) {
                return false;
            }
        }
        let done = log.damage(damage, options, seed);
        self.trace.note(format_args!("the log of {id}: {done:?}"));
        done.is_some()
    }

    /// A member has started, and this had happened to its log.
    pub(super) fn note_damaged_start(&mut self, id: MemberId, damage: Option<Phase>) {
        match damage {
            Some(Phase::Refusing) => {
                let details = format!("{id} starts");
                self.find("a damaged log passes for a short one", details);
            }
            Some(Phase::Lacking) => probe::reached(CoveragePoint::EndLostUnseen),
            _ => {}
        }
    }

    /// True for a member that has ended as it lacks entries.
    pub(super) fn ends_for_damage(&mut self, id: MemberId, reason: &str) -> bool {
        let lacks = self.faults.damage_of(id) == Some(Phase::Lacking);
        let ends = lacks && reason.starts_with(LACKS);
        if ends {
            probe::reached(CoveragePoint::EndLostNoticed);
            self.lose(id);
        }
        ends
    }

    /// The damage to a member's log was noticed: it is never started again.
    pub(super) fn lose(&mut self, id: MemberId) {
        self.faults.noticed_damage();
        if let Some(condition) = self.conditions.get_mut(&id) {
            condition.gone = true;
        }
    }

    fn log_options(&self, id: MemberId) -> LogOptions {
        LogOptions {
            segment_bytes: self.config.segment_bytes,
            cluster_id: CLUSTER.0,
            member_id: id.0,
            sync: true,
        }
    }
}
