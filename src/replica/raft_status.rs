//! Raft's status, published by the raft thread and read by all others without a lock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::raft::replica::{self, MemberProgress};

/// See the module.
#[derive(Default)]
pub struct RaftStatus {
    term: AtomicU64,
    leader: AtomicU64,
    is_leader: AtomicBool,
    single_member: AtomicBool,
    commit_index: AtomicU64,
    applied_index: AtomicU64,
    /// Since when there has been this leader, or none, by the member's clock in nanoseconds.
    leader_since_ns: AtomicU64,
    /// Notified whenever the leader or the term changes.
    changed: Notify,
    /// The progress of the members, as of this member's last leadership.
    progress: Mutex<Vec<MemberProgress>>,
}

impl RaftStatus {
    pub fn publish(&self, status: &replica::Status, single_member: bool, now: Duration) {
        let changed = self.leader() != status.leader || self.term() != status.term;
        if self.leader() != status.leader {
            let now_ns = now.as_nanos() as u64;
            self.leader_since_ns.store(now_ns, Ordering::Release);
        }
        self.set_single_member(single_member);
        self.term.store(status.term, Ordering::Release);
        self.leader.store(status.leader, Ordering::Release);
        self.is_leader.store(status.is_leader, Ordering::Release);
        self.commit_index
            .store(status.commit_index, Ordering::Release);
        if changed {
            self.changed.notify_waiters();
        }
    }

    pub fn publish_progress(&self, progress: Vec<MemberProgress>) {
        *self.progress.lock() = progress;
    }

    /// The progress of the members; valid while this member leads.
    pub fn progress(&self) -> Vec<MemberProgress> {
        self.progress.lock().clone()
    }

    /// Since when there has been this leader, or none, by the member's clock.
    pub fn leader_since(&self) -> Duration {
        Duration::from_nanos(self.leader_since_ns.load(Ordering::Acquire))
    }

    /// True if there is no other member, not even a learner.
    pub fn is_single_member(&self) -> bool {
        self.single_member.load(Ordering::Acquire)
    }

    pub fn set_single_member(&self, single_member: bool) {
        self.single_member.store(single_member, Ordering::Release);
    }

    /// Completes when the leader or the term next changes.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn term(&self) -> u64 {
        self.term.load(Ordering::Acquire)
    }

    /// 0 where there is none.
    pub fn leader(&self) -> u64 {
        self.leader.load(Ordering::Acquire)
    }

    pub fn is_leader(&self) -> bool {
        self.is_leader.load(Ordering::Acquire)
    }

    /// The commit index and the applied index, the second never beyond the first. Each is published
    /// by a thread of its own, the applied index often first. Applied entries are committed, so the
    /// maximum is a valid commit index.
    pub fn indexes(&self) -> (u64, u64) {
        let applied = self.applied_index();
        let committed = self.commit_index.load(Ordering::Acquire);
        (committed.max(applied), applied)
    }

    pub fn applied_index(&self) -> u64 {
        self.applied_index.load(Ordering::Acquire)
    }

    pub fn set_applied_index(&self, index: u64) {
        self.applied_index.store(index, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_applied_is_committed_whichever_is_published_first() {
        let raft = RaftStatus::default();
        let publish = |commit_index| {
            let status = replica::Status {
                term: 2,
                durable_term: 2,
                in_doubt: false,
                leader: 1,
                is_leader: true,
                commit_index,
                last_index: commit_index,
            };
            raft.publish(&status, true, Duration::ZERO);
        };
        publish(20);
        raft.set_applied_index(21);
        assert_eq!(raft.indexes(), (21, 21));
        publish(23);
        assert_eq!(raft.indexes(), (23, 21));
    }
}
