//! What no crash does to a raft log, tried on a copy of one that a member left behind: a file is cut
//! short, or what was synced long ago reads as zeros to the end. A start must refuse each. The
//! member itself goes on with its own disk, and with a schedule to which this adds nothing.

use std::sync::Arc;

use super::member::CLUSTER;
use super::world::World;
use crate::probe::{self, CoveragePoint};
use crate::storage::raft_log::{Damage, Options, RaftLog};
use crate::types::MemberId;

impl World {
    /// Damages copies of the log of a member that is down, and opens them.
    pub(super) fn try_damaged_logs(&mut self, id: MemberId, seed: u64) {
        let options = Options {
            segment_bytes: self.config.segment_bytes,
            cluster_id: CLUSTER.0,
            member_id: id.0,
            sync: true,
        };
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
}
