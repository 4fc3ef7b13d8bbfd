//! When leases expire, by the leader's monotonic clock. Only the leader's deadlines are valid: a
//! new leader restarts them from the full TTL or from a checkpoint.
//!
//! A pure structure: the time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::probe::{self, CoveragePoint, Defect};
use crate::state::lease::{Lease, LeaseEvent};
use crate::types::LeaseId;

/// The default interval between checkpoints of a lease; as in etcd.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);
/// The longest TTL that is added to a clock: a lease of three centuries need not expire on time.
const MAX_TTL: Duration = Duration::from_secs(9_000_000_000);

#[derive(Clone, Copy, Debug)]
struct TrackedLease {
    lease: Lease,
    deadline: Duration,
    checkpoint_at: Duration,
    /// The number of the last checkpoint that the log may hold and that was not taken back; 0 for
    /// none. What is proposed counts, applied or not: once agreed upon, a new leader uses it.
    checkpoint: u64,
    /// It was found expired: its revocation may be in the log.
    ended: bool,
}

/// A lease that was renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    pub ttl_s: i64,
    /// The number of a checkpoint that has to be taken back before the renewal is answered.
    pub checkpoint: Option<u64>,
}

/// See the module.
pub struct Deadlines {
    leases: BTreeMap<LeaseId, TrackedLease>,
    by_deadline: BTreeSet<(Duration, LeaseId)>,
    by_checkpoint: BTreeSet<(Duration, LeaseId)>,
    /// The term in which this member became the lessor as leader; 0 for none.
    term: u64,
    checkpoint_interval: Duration,
    /// The number of the last checkpoint.
    checkpoints: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            leases: BTreeMap::new(),
            by_deadline: BTreeSet::new(),
            by_checkpoint: BTreeSet::new(),
            term: 0,
            checkpoint_interval: CHECKPOINT_INTERVAL,
            checkpoints: 0,
        }
    }
}

impl Deadlines {
    /// The interval between two checkpoints of a lease, from its next renewal on.
    pub fn checkpoint_every(&mut self, interval: Duration) {
        self.checkpoint_interval = interval;
    }

    /// This member leads from this term on, and everything applied before is included: its clock
    /// decides, for every lease anew. `extra` makes up for the time without a leader.
    pub fn take_over(
        &mut self,
        leases: impl Iterator<Item = (LeaseId, Lease)>,
        term: u64,
        now: Duration,
        extra: Duration,
    ) {
        probe::reached(CoveragePoint::LeasesTakenOver);
        if !probe::injected(Defect::LeasesNotRestarted) {
            self.restart(leases, now, extra);
        }
        if !probe::injected(Defect::LeasesNotOwned) {
            self.term = term;
        }
    }

    /// What an applied entry did to a lease.
    pub fn applied(&mut self, event: LeaseEvent, now: Duration) {
        match event {
            LeaseEvent::Granted(id, lease) => self.granted(id, lease, now),
            LeaseEvent::Revoked(id) => self.revoked(id),
            LeaseEvent::Checkpointed(id, lease) => self.checkpointed(id, lease),
        }
    }

    /// The term for which these deadlines are valid.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Extends every lease by a time in which it could not be renewed. One that was found expired
    /// stays so: it may be revoked behind a renewal.
    pub fn extend_all(&mut self, by: Duration) {
        let entries: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, entry)| !entry.ended)
            .map(|(id, entry)| (*id, *entry))
            .collect();
        for (id, entry) in entries {
            let deadline = entry.deadline + by;
            self.set(id, TrackedLease { deadline, ..entry });
        }
    }

    /// Begins anew with these leases, which are nobody's to decide about until a leader takes them
    /// over: at a start, and where a received state takes the place of this one.
    pub fn restart(
        &mut self,
        leases: impl Iterator<Item = (LeaseId, Lease)>,
        now: Duration,
        extra: Duration,
    ) {
        *self = Self {
            checkpoint_interval: self.checkpoint_interval,
            checkpoints: self.checkpoints + 1,
            ..Self::default()
        };
        for (id, lease) in leases {
            let entry = TrackedLease {
                lease,
                deadline: now + seconds(lease.restart_ttl_s()) + extra,
                checkpoint_at: now + self.checkpoint_interval,
                checkpoint: match lease.remaining_ttl_s > 0 {
                    true => self.checkpoints,
                    false => 0,
                },
                ended: false,
            };
            self.set(id, entry);
        }
    }

    fn granted(&mut self, id: LeaseId, lease: Lease, now: Duration) {
        let entry = TrackedLease {
            lease,
            deadline: now + seconds(lease.ttl_s),
            checkpoint_at: now + self.checkpoint_interval,
            checkpoint: 0,
            ended: false,
        };
        self.set(id, entry);
    }

    fn revoked(&mut self, id: LeaseId) {
        if let Some(entry) = self.leases.remove(&id) {
            self.by_deadline.remove(&(entry.deadline, id));
            self.by_checkpoint.remove(&(entry.checkpoint_at, id));
        }
    }

    /// Records a checkpoint; the deadline here is more precise and stays.
    fn checkpointed(&mut self, id: LeaseId, lease: Lease) {
        if let Some(entry) = self.leases.get_mut(&id) {
            entry.lease = lease;
        }
    }

    /// Renews a lease to its full TTL; `None` if it does not exist or has expired.
    pub fn renew(&mut self, id: LeaseId, now: Duration) -> Option<Renewed> {
        let entry = *self.leases.get(&id)?;
        if entry.deadline <= now {
            return None;
        }
        let renewed = TrackedLease {
            deadline: now + seconds(entry.lease.ttl_s),
            checkpoint_at: now + self.checkpoint_interval,
            ..entry
        };
        self.set(id, renewed);
        Some(Renewed {
            ttl_s: entry.lease.ttl_s,
            checkpoint: (entry.checkpoint > 0).then_some(entry.checkpoint),
        })
    }

    /// The checkpoints of a lease up to this number were taken back, and that was applied.
    pub fn taken_back(&mut self, id: LeaseId, checkpoint: u64) {
        if let Some(entry) = self.leases.get_mut(&id)
            && entry.checkpoint == checkpoint
        {
            entry.checkpoint = 0;
        }
    }

    /// The granted and the remaining TTL; `None` if the lease does not exist or has expired.
    pub fn remaining(&self, id: LeaseId, now: Duration) -> Option<(Lease, Duration)> {
        let entry = self.leases.get(&id)?;
        let left = entry.deadline.checked_sub(now)?;
        (!left.is_zero()).then_some((entry.lease, left))
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.by_deadline.len()
    }

    /// All leases by remaining time, the shortest first.
    pub fn ids(&self) -> Vec<LeaseId> {
        self.by_deadline.iter().map(|(_, id)| *id).collect()
    }

    /// Up to `limit` expired leases, which stay expired from here on.
    pub fn expired(&mut self, now: Duration, limit: usize) -> Vec<LeaseId> {
        let expired: Vec<_> = self
            .by_deadline
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .take(limit)
            .map(|(_, id)| *id)
            .collect();
        for id in &expired {
            if let Some(entry) = self.leases.get_mut(id) {
                entry.ended = true;
            }
        }
        expired
    }

    /// Up to `limit` leases that are due for a checkpoint, with their remaining seconds. Each is
    /// due again after another interval. From here on a renewal takes the checkpoint back; the
    /// caller sees to it that it comes behind the checkpoint.
    pub fn due_checkpoints(&mut self, now: Duration, limit: usize) -> Vec<(LeaseId, i64)> {
        let due: Vec<LeaseId> = self
            .by_checkpoint
            .iter()
            .take_while(|(at, _)| *at <= now)
            .take(limit)
            .map(|(_, id)| *id)
            .collect();
        self.checkpoints += 1;
        let mut checkpoints = Vec::with_capacity(due.len());
        for id in due {
            let Some(entry) = self.leases.get(&id).copied() else {
                continue;
            };
            let left = entry.deadline.saturating_sub(now).as_secs() as i64;
            // A TTL shorter than the interval is not worth an entry.
            let is_worth_it = left > 0 && left < entry.lease.ttl_s;
            if is_worth_it {
                checkpoints.push((id, left));
            }
            let checkpoint = match is_worth_it {
                true => self.checkpoints,
                false => entry.checkpoint,
            };
            let checkpoint_at = now + self.checkpoint_interval;
            let entry = TrackedLease {
                checkpoint_at,
                checkpoint,
                ..entry
            };
            self.set(id, entry);
        }
        checkpoints
    }

    fn set(&mut self, id: LeaseId, entry: TrackedLease) {
        self.revoked(id);
        self.leases.insert(id, entry);
        self.by_deadline.insert((entry.deadline, id));
        self.by_checkpoint.insert((entry.checkpoint_at, id));
    }
}

fn seconds(ttl_s: i64) -> Duration {
    Duration::from_secs(ttl_s.max(0) as u64).min(MAX_TTL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn lease(ttl_s: i64, remaining_ttl_s: i64) -> Lease {
        Lease {
            ttl_s,
            remaining_ttl_s,
        }
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_ends_on_time_unless_renewed() {
        let mut deadlines = Deadlines::default();
        let id = LeaseId(1);
        deadlines.granted(id, lease(10, 0), at(100));
        assert_eq!(deadlines.expired(at(109), 9), vec![]);
        assert_eq!(
            deadlines.remaining(id, at(109)).map(|left| left.1),
            Some(at(1))
        );
        assert!(deadlines.renew(id, at(109)).is_some());
        assert_eq!(deadlines.expired(at(118), 9), vec![]);
        assert_eq!(deadlines.expired(at(119), 9), vec![id]);
        assert!(deadlines.renew(id, at(119)).is_none());
        assert!(deadlines.remaining(id, at(119)).is_none());
        deadlines.revoked(id);
        assert_eq!(deadlines.expired(at(999), 9), vec![]);
    }

    #[test]
    fn a_restart_continues_from_the_checkpoint() {
        let mut deadlines = Deadlines::default();
        let leases = [(LeaseId(1), lease(1000, 400)), (LeaseId(2), lease(50, 0))];
        deadlines.restart(leases.into_iter(), at(0), at(1));
        assert_eq!(deadlines.ids(), vec![LeaseId(2), LeaseId(1)]);
        assert_eq!(deadlines.expired(at(51), 9), vec![LeaseId(2)]);
        assert_eq!(deadlines.expired(at(400), 9), vec![LeaseId(2)]);
        assert_eq!(deadlines.expired(at(401), 9), vec![LeaseId(2), LeaseId(1)]);
    }

    #[test]
    fn a_renewal_takes_checkpoints_back_that_may_be_in_the_log() {
        let id = LeaseId(1);
        let taken_back = |deadlines: &mut Deadlines, now| {
            let renewed = deadlines.renew(id, now).expect("a lease that lives");
            assert_eq!(renewed.ttl_s, 1000);
            renewed.checkpoint
        };
        let mut deadlines = Deadlines::default();
        deadlines.granted(id, lease(1000, 0), at(0));
        assert_eq!(taken_back(&mut deadlines, at(1)), None);
        assert_eq!(deadlines.due_checkpoints(at(301), 9), vec![(id, 700)]);
        // It is on its way, and nobody knows whether it will be applied.
        let first = taken_back(&mut deadlines, at(302)).expect("a checkpoint");
        assert_eq!(taken_back(&mut deadlines, at(303)), Some(first));
        deadlines.checkpointed(id, lease(1000, 700));
        assert_eq!(taken_back(&mut deadlines, at(304)), Some(first));
        // The next one is on its way before the first one is known to be taken back.
        assert_eq!(deadlines.due_checkpoints(at(604), 9), vec![(id, 700)]);
        deadlines.checkpointed(id, lease(1000, 0));
        deadlines.taken_back(id, first);
        let second = taken_back(&mut deadlines, at(605)).expect("another");
        assert_ne!(second, first);
        deadlines.taken_back(id, second);
        assert_eq!(taken_back(&mut deadlines, at(606)), None);
        // One that a leader finds; what its predecessor's was called does not matter.
        deadlines.restart([(id, lease(1000, 400))].into_iter(), at(700), at(0));
        let found = taken_back(&mut deadlines, at(701)).expect("the one found");
        deadlines.taken_back(id, second);
        assert_eq!(taken_back(&mut deadlines, at(702)), Some(found));
        deadlines.restart([(id, lease(1000, 0))].into_iter(), at(800), at(0));
        assert_eq!(taken_back(&mut deadlines, at(801)), None);
    }

    #[test]
    fn long_leases_are_checkpointed_and_short_ones_are_not() {
        let mut deadlines = Deadlines::default();
        deadlines.granted(LeaseId(1), lease(3600, 0), at(0));
        deadlines.granted(LeaseId(2), lease(60, 0), at(0));
        assert_eq!(deadlines.due_checkpoints(at(299), 9), vec![]);
        assert_eq!(
            deadlines.due_checkpoints(at(300), 9),
            vec![(LeaseId(1), 3300)]
        );
        assert_eq!(deadlines.due_checkpoints(at(301), 9), vec![]);
        assert_eq!(
            deadlines.due_checkpoints(at(600), 9),
            vec![(LeaseId(1), 3000)]
        );
    }

    #[test]
    fn time_that_nobody_had_is_given_back() {
        let mut deadlines = Deadlines::default();
        deadlines.granted(LeaseId(1), lease(10, 0), at(100));
        deadlines.extend_all(at(5));
        assert_eq!(deadlines.expired(at(114), 9), vec![]);
        assert_eq!(deadlines.expired(at(115), 9), vec![LeaseId(1)]);
    }

    #[test]
    fn a_lease_whose_revocation_is_on_its_way_gets_no_time_back() {
        let mut deadlines = Deadlines::default();
        deadlines.granted(LeaseId(1), lease(10, 0), at(100));
        deadlines.granted(LeaseId(2), lease(20, 0), at(100));
        assert_eq!(deadlines.expired(at(110), 9), vec![LeaseId(1)]);
        deadlines.extend_all(at(50));
        assert_eq!(deadlines.renew(LeaseId(1), at(111)), None);
        assert_eq!(deadlines.expired(at(169), 9), vec![LeaseId(1)]);
        assert_eq!(deadlines.expired(at(170), 9), vec![LeaseId(1), LeaseId(2)]);
    }

    #[test]
    fn a_huge_lease_does_not_overflow() {
        let mut deadlines = Deadlines::default();
        deadlines.granted(LeaseId(1), lease(i64::MAX, 0), at(1));
        deadlines.granted(LeaseId(2), lease(-5, 0), at(1));
        assert_eq!(deadlines.expired(at(1), 9), vec![LeaseId(2)]);
    }
}
