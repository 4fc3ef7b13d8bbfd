//! Changes of membership that need more than the log: only the leader knows whether a learner
//! has caught up.

use super::handle::Handle;
use crate::error::Error;
use crate::proto::etcdserverpb;
use crate::proto::etchedpeer::{Nothing, member_change::Change};
use crate::proto::membershippb;
use crate::types::MemberId;

/// A member as the cluster's services show it.
pub fn shown(member: &membershippb::Member) -> etcdserverpb::Member {
    let attributes = member.member_attributes.clone().unwrap_or_default();
    let raft = member.raft_attributes.clone().unwrap_or_default();
    etcdserverpb::Member {
        id: member.id,
        name: attributes.name,
        peer_ur_ls: raft.peer_urls,
        client_ur_ls: attributes.client_urls,
        is_learner: raft.is_learner,
    }
}

impl Handle {
    /// Makes a learner a voter, if this member leads and the learner has caught up; etcd's rule:
    /// it has nine tenths of the leader's log.
    pub async fn promote_here(&self, id: MemberId) -> Result<Vec<membershippb::Member>, Error> {
        let shared = self.shared();
        if !shared.raft.is_leader() {
            return Err(Error::NotLeader);
        }
        let status = shared.status();
        status.member(id).ok_or(Error::MemberNotFound)?;
        if !status.is_learner(id) {
            return Err(Error::MemberNotLearner);
        }
        let progress = shared.raft.progress();
        let matched = |id: MemberId| {
            let found = progress.iter().find(|progress| progress.member == id);
            found.map_or(0, |progress| progress.matched)
        };
        if (matched(id) as f64) < 0.9 * matched(shared.member) as f64 {
            return Err(Error::LearnerNotReady);
        }
        self.change_members(id, Change::Promote(Nothing {}), 0)
            .await
    }
}
