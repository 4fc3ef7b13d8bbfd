//! The proposals that wait at this member, each at one stage: queued until there is a leader,
//! proposed here, or forwarded to the leader.
//!
//! A proposal of this member is identified by the index and term at which it was proposed: the
//! entry committed at that index is the proposal if and only if its term is equal. A forwarded one
//! is identified by its request id, and may be proposed only in the term in which it was forwarded.
//! In both cases a committed entry of a later term proves that it will never be applied, since
//! terms in a log only grow: it is void, and is queued to be proposed again.
//!
//! The work at a committed entry does not depend on the number of waiting proposals.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher};

use tracing::Span;

use super::proposal::{Proposed, Reply, committed_id};
use crate::error::Error;
use crate::probe::{self, CoveragePoint, Defect};
use crate::raft::Committed;

/// Limits of the queued and of the forwarded proposals, each. Those proposed here are bounded by
/// raft.
const MAX_PENDING_PROPOSALS: usize = 20_000;

/// A proposal that waits for its result.
pub struct PendingProposal {
    pub what: Proposed,
    /// Never to be proposed again.
    pub fenced: bool,
    pub expires_at_tick: u64,
    /// The caller shares the request while it waits; if false, the proposal is made whether or not
    /// anyone waits.
    pub awaited: bool,
    /// See `Proposal`.
    pub span: Span,
    pub reply: Reply,
}

impl PendingProposal {
    /// True if no caller waits for it any more, so that it need not be proposed.
    pub fn is_abandoned(&self) -> bool {
        self.awaited && self.what.is_left_alone()
    }

    fn fail(self, error: Error) {
        (self.reply)(Err(error));
    }
}

/// The stage of a proposal.
#[derive(Clone, Copy, Debug)]
pub enum ProposalStage {
    Queued,
    /// At this index of this member's log.
    Proposed {
        index: u64,
        term: u64,
    },
    /// With the leader of this term.
    Forwarded {
        term: u64,
    },
}

/// Proposed here.
struct AtIndex {
    index: u64,
    term: u64,
    proposal: PendingProposal,
}

struct AtLeader {
    term: u64,
    proposal: PendingProposal,
}

/// See the module.
#[derive(Default)]
pub struct PendingProposals {
    queued: VecDeque<PendingProposal>,
    /// In log order.
    proposed: VecDeque<AtIndex>,
    /// By request id. A deterministic hasher keeps iteration order equal in every run.
    forwarded: HashMap<u64, AtLeader, BuildHasherDefault<DefaultHasher>>,
    /// No forwarded proposal has an earlier term.
    least_forwarded_term: u64,
    /// Something was queued that can be proposed at once.
    retry: bool,
    /// The last index at which a proposal was made that is in a trace.
    last_traced: u64,
}

impl PendingProposals {
    /// Adds a proposal. False if there are too many; it has been answered then.
    pub fn wait(&mut self, proposal: PendingProposal, place: ProposalStage) -> bool {
        let waiting = match place {
            ProposalStage::Queued => self.queued.len(),
            ProposalStage::Forwarded { .. } => self.forwarded.len(),
            ProposalStage::Proposed { .. } => 0,
        };
        if waiting >= MAX_PENDING_PROPOSALS {
            proposal.fail(Error::TooManyRequests);
            return false;
        }
        match place {
            ProposalStage::Queued => {
                probe::reached(CoveragePoint::ProposalQueued);
                self.queued.push_back(proposal);
            }
            ProposalStage::Proposed { index, term } => {
                if !proposal.span.is_disabled() {
                    self.last_traced = index;
                }
                self.proposed.push_back(AtIndex {
                    index,
                    term,
                    proposal,
                });
            }
            ProposalStage::Forwarded { term } => {
                probe::reached(CoveragePoint::ProposalForwarded);
                self.least_forwarded_term = self.least_forwarded_term.min(term);
                let id = proposal.what.request_id();
                self.forwarded.insert(id, AtLeader { term, proposal });
            }
        }
        true
    }

    /// The spans of the proposals from this index on that are in a trace.
    pub fn spans_from(&self, index: u64) -> Vec<Span> {
        if self.last_traced < index {
            return Vec::new();
        }
        let from = self.proposed.partition_point(|one| one.index < index);
        let spans = self.proposed.range(from..).map(|one| &one.proposal.span);
        let traced = spans.filter(|span| !span.is_disabled());
        traced.cloned().collect()
    }

    /// Takes all queued proposals, in order.
    pub fn take_queued(&mut self) -> VecDeque<PendingProposal> {
        std::mem::take(&mut self.queued)
    }

    pub fn queues_a_change(&self) -> bool {
        let is_change = |queued: &PendingProposal| matches!(queued.what, Proposed::Member(_));
        self.queued.iter().any(is_change)
    }

    /// True once after something was queued that can be proposed at once.
    pub fn take_retry(&mut self) -> bool {
        std::mem::take(&mut self.retry)
    }

    /// Takes the proposal that was committed as this entry, if it waits here, and queues those that
    /// the entry proves void.
    pub fn committed(&mut self, committed: &Committed) -> Option<PendingProposal> {
        if !self.forwarded.is_empty() {
            let found = committed_id(committed).and_then(|id| self.forwarded.remove(&id));
            if let Some(found) = found {
                return Some(found.proposal);
            }
            self.queue_void_forwarded(committed.term);
        }
        while let Some(first) = pop_if(&mut self.proposed, |first| {
            first.index <= committed.index || first.term < committed.term
        }) {
            if first.index == committed.index && first.term == committed.term {
                return Some(first.proposal);
            }
            if first.proposal.fenced {
                probe::reached(CoveragePoint::LeaseFencedInVain);
                first.proposal.fail(Error::LeaderChanged);
                continue;
            }
            self.retry = true;
            probe::reached(CoveragePoint::ProposedAgain);
            self.wait(first.proposal, ProposalStage::Queued);
        }
        None
    }

    /// Checks all forwarded proposals, once per term.
    fn queue_void_forwarded(&mut self, term: u64) {
        // Those of the present term may still be applied.
        let term = term + u64::from(probe::injected(Defect::ForwardedTwice));
        if self.least_forwarded_term >= term {
            return;
        }
        self.least_forwarded_term = term;
        let is_void = |_: &u64, forwarded: &mut AtLeader| forwarded.term < term;
        let void: Vec<_> = self.forwarded.extract_if(is_void).collect();
        self.retry |= !void.is_empty();
        for (_, forwarded) in void {
            probe::reached(CoveragePoint::ForwardedAgain);
            self.wait(forwarded.proposal, ProposalStage::Queued);
        }
    }

    /// The leader of this term did not propose what was forwarded to it.
    pub fn refused(&mut self, request_id: u64, term: u64, error: Error) {
        let Slot::Occupied(forwarded) = self.forwarded.entry(request_id) else {
            return;
        };
        // It may have been forwarded to another leader since, which may have proposed it.
        if forwarded.get().term != term && !probe::injected(Defect::RefusalUnchecked) {
            return probe::reached(CoveragePoint::RefusalStale);
        }
        let proposal = forwarded.remove().proposal;
        if matches!(error, Error::NotLeader | Error::NoLeader) {
            probe::reached(CoveragePoint::ProposalRefused);
            self.wait(proposal, ProposalStage::Queued);
        } else {
            proposal.fail(error);
        }
    }

    /// A received state replaced entries that this member will not see; which proposals were among
    /// them is unknown.
    pub fn lose_sight(&mut self) {
        if !self.proposed.is_empty() || !self.forwarded.is_empty() {
            probe::reached(CoveragePoint::ProposalsLostFromSight);
        }
        for sent in self.take_sent() {
            sent.fail(Error::Timeout);
        }
    }

    /// Fails expired proposals. Those that were proposed or forwarded may still be applied.
    pub fn expire(&mut self, tick: u64) {
        let is_expired = |proposal: &PendingProposal| proposal.expires_at_tick <= tick;
        for expired in take_such(&mut self.proposed, |one| is_expired(&one.proposal)) {
            expired.proposal.fail(Error::Timeout);
        }
        let kept = probe::injected(Defect::ForwardedKept);
        let expired = |_: &u64, one: &mut AtLeader| is_expired(&one.proposal) && !kept;
        for (_, forwarded) in self.forwarded.extract_if(expired) {
            forwarded.proposal.fail(Error::Timeout);
        }
        for expired in take_such(&mut self.queued, is_expired) {
            expired.fail(Error::DeadlineExceeded);
        }
    }

    /// Fails all proposals when the member stops.
    pub fn stop(&mut self) {
        let sent = self.take_sent();
        for proposal in sent.into_iter().chain(self.take_queued()) {
            proposal.fail(Error::Stopped);
        }
    }

    /// Counts the waiting proposals.
    #[cfg(any(test, feature = "simulation"))]
    pub fn count(&self, waiting: &mut super::work::PendingCounts) {
        waiting.proposed = self.proposed.len();
        waiting.forwarded = self.forwarded.len();
        waiting.without_leader = self.queued.len();
    }

    /// All proposed and forwarded proposals.
    fn take_sent(&mut self) -> Vec<PendingProposal> {
        let proposed = self.proposed.drain(..).map(|one| one.proposal);
        let forwarded = self.forwarded.drain().map(|(_, one)| one.proposal);
        proposed.chain(forwarded).collect()
    }
}

/// Takes all proposals for which `is_such` holds, at every stage: one that was queued again keeps
/// its expiry and is behind later ones.
fn take_such<T>(queue: &mut VecDeque<T>, is_such: impl Fn(&T) -> bool) -> VecDeque<T> {
    if !queue.iter().any(&is_such) {
        return VecDeque::new();
    }
    let (such, others) = std::mem::take(queue).into_iter().partition(is_such);
    *queue = others;
    such
}

/// Takes the first one if the condition holds.
pub fn pop_if<T>(queue: &mut VecDeque<T>, is_such: impl FnOnce(&T) -> bool) -> Option<T> {
    let taken = queue.front().is_some_and(is_such);
    taken.then(|| queue.pop_front()).flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use prost::Message as _;

    use super::*;
    use crate::proto::etcdserverpb::{InternalRaftRequest, RequestHeader};
    use crate::raft::CommittedKind;
    use crate::state::Response;

    fn request(id: u64) -> InternalRaftRequest {
        InternalRaftRequest {
            header: Some(RequestHeader {
                id,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// An entry that holds the request with this id.
    fn entry(index: u64, term: u64, id: u64) -> Committed {
        Committed {
            index,
            term,
            kind: CommittedKind::Request(request(id).encode_to_vec().into()),
        }
    }

    /// The first entry of a leader.
    fn empty(index: u64, term: u64) -> Committed {
        Committed {
            index,
            term,
            kind: CommittedKind::Empty,
        }
    }

    /// To the proposal of this id.
    type Answer = (u64, Result<Response, Error>);

    #[derive(Default)]
    struct Fixture {
        pending: PendingProposals,
        answers: Arc<Mutex<Vec<Answer>>>,
    }

    impl Fixture {
        fn wait_until(&mut self, id: u64, place: ProposalStage, expires_at_tick: u64) -> bool {
            self.add(id, place, expires_at_tick, false)
        }

        fn wait(&mut self, id: u64, place: ProposalStage) -> bool {
            self.add(id, place, 100, false)
        }

        fn add(
            &mut self,
            id: u64,
            place: ProposalStage,
            expires_at_tick: u64,
            fenced: bool,
        ) -> bool {
            let answers = self.answers.clone();
            let request = request(id);
            let encoded = request.encode_to_vec();
            let proposal = PendingProposal {
                what: Proposed::Request(Arc::new(request), encoded),
                fenced,
                expires_at_tick,
                awaited: false,
                span: Span::none(),
                reply: Box::new(move |answer| answers.lock().push((id, answer))),
            };
            self.pending.wait(proposal, place)
        }

        /// The id of the proposal that was committed as this entry.
        fn committed(&mut self, entry: &Committed) -> Option<u64> {
            let found = self.pending.committed(entry)?;
            Some(found.what.request_id())
        }

        /// Takes the queued proposals; returns their ids.
        fn queued(&mut self) -> Vec<u64> {
            let queued = self.pending.take_queued().into_iter();
            queued.map(|one| one.what.request_id()).collect()
        }

        /// The errors answered since the last call.
        fn errors(&self) -> Vec<(u64, Error)> {
            let answers = std::mem::take(&mut *self.answers.lock());
            let errors = answers.into_iter().map(|(id, answer)| match answer {
                Ok(_) => panic!("{id} has no error"),
                Err(error) => (id, error),
            });
            errors.collect()
        }
    }

    const fn at(index: u64, term: u64) -> ProposalStage {
        ProposalStage::Proposed { index, term }
    }

    const fn leader(term: u64) -> ProposalStage {
        ProposalStage::Forwarded { term }
    }

    #[test]
    fn an_entry_is_the_proposal_made_at_its_index_and_term() {
        let mut world = Fixture::default();
        world.wait(1, at(5, 2));
        world.wait(2, at(6, 2));
        assert_eq!(world.committed(&entry(4, 2, 9)), None);
        assert_eq!(world.committed(&entry(5, 2, 1)), Some(1));
        assert_eq!(world.committed(&entry(6, 2, 2)), Some(2));
        assert_eq!(world.queued(), [0; 0]);
        assert!(!world.pending.take_retry());
    }

    #[test]
    fn an_entry_in_its_place_makes_a_proposal_void() {
        let mut world = Fixture::default();
        world.wait(1, at(5, 2));
        world.wait(2, at(6, 2));
        // Both: the log continues in a later term.
        assert_eq!(world.committed(&empty(5, 3)), None);
        assert!(world.pending.take_retry());
        assert!(!world.pending.take_retry());
        assert_eq!(world.queued(), [1, 2]);
        assert_eq!(world.errors(), []);
    }

    #[test]
    fn a_fenced_one_is_never_proposed_again() {
        let mut world = Fixture::default();
        world.add(1, at(5, 2), 100, true);
        assert_eq!(world.committed(&empty(5, 3)), None);
        assert_eq!(world.errors(), [(1, Error::LeaderChanged)]);
        assert_eq!(world.queued(), [0; 0]);
        assert!(!world.pending.take_retry());
    }

    #[test]
    fn a_forwarded_one_is_known_by_its_id_in_any_term() {
        let mut world = Fixture::default();
        world.wait(1, leader(2));
        world.wait(2, leader(2));
        assert_eq!(world.committed(&entry(5, 2, 2)), Some(2));
        // Of its own term: it may still be committed.
        assert_eq!(world.committed(&entry(6, 2, 9)), None);
        assert_eq!(world.queued(), [0; 0]);
        assert_eq!(world.committed(&empty(7, 3)), None);
        assert!(world.pending.take_retry());
        assert_eq!(world.queued(), [1]);
    }

    #[test]
    fn each_term_makes_those_of_the_terms_before_void() {
        let mut world = Fixture::default();
        for term in 2..5 {
            world.wait(term, leader(term));
            assert_eq!(world.committed(&empty(5 + term, term)), None);
            let before: Vec<u64> = (term > 2).then_some(term - 1).into_iter().collect();
            assert_eq!(world.queued(), before);
            // A repetition has no effect.
            assert_eq!(world.committed(&entry(15 + term, term, 99)), None);
            assert_eq!(world.queued(), [0; 0]);
        }
    }

    #[test]
    fn a_refusal_counts_for_the_term_that_it_is_about() {
        let mut world = Fixture::default();
        world.wait(1, leader(3));
        world.pending.refused(1, 2, Error::NotLeader);
        world.pending.refused(7, 3, Error::NotLeader);
        assert_eq!(world.queued(), [0; 0]);
        world.pending.refused(1, 3, Error::NotLeader);
        assert_eq!(world.queued(), [1]);
        // The leader that refused it will not lead until something changes.
        assert!(!world.pending.take_retry());
        world.wait(2, leader(3));
        world.pending.refused(2, 3, Error::TooManyRequests);
        assert_eq!(world.errors(), [(2, Error::TooManyRequests)]);
        assert_eq!(world.queued(), [0; 0]);
    }

    #[test]
    fn what_waits_too_long_is_given_up_wherever_it_waits() {
        let mut world = Fixture::default();
        for (id, place) in [(1, at(5, 2)), (2, leader(2)), (3, ProposalStage::Queued)] {
            world.wait_until(id, place, 10);
            world.wait_until(id + 10, place, 11);
        }
        world.pending.expire(9);
        assert_eq!(world.errors(), []);
        world.pending.expire(10);
        let (open, never) = (Error::Timeout, Error::DeadlineExceeded);
        assert_eq!(world.errors(), [(1, open), (2, open), (3, never)]);
        world.pending.expire(11);
        assert_eq!(world.errors(), [(11, open), (12, open), (13, never)]);
    }

    #[test]
    fn what_is_proposed_again_expires_no_later() {
        let (open, never) = (Error::Timeout, Error::DeadlineExceeded);
        for (place, error) in [
            (at(7, 2), open),
            (leader(2), open),
            (ProposalStage::Queued, never),
        ] {
            let mut world = Fixture::default();
            world.wait_until(1, place, 20);
            world.wait_until(2, place, 10);
            world.wait_until(3, place, 20);
            world.pending.expire(10);
            assert_eq!(world.errors(), [(2, error)], "{place:?}");
            world.pending.expire(20);
            let mut rest = world.errors();
            rest.sort_by_key(|(id, _)| *id);
            assert_eq!(rest, [(1, error), (3, error)], "{place:?}");
        }
    }

    #[test]
    fn a_snapshot_leaves_what_is_queued() {
        let mut world = Fixture::default();
        for (id, place) in [(1, at(5, 2)), (2, leader(2)), (3, ProposalStage::Queued)] {
            world.wait(id, place);
        }
        world.pending.lose_sight();
        assert_eq!(world.errors(), [(1, Error::Timeout), (2, Error::Timeout)]);
        assert_eq!(world.queued(), [3]);
    }

    #[test]
    fn every_proposal_fails_when_the_member_stops() {
        let mut world = Fixture::default();
        for (id, place) in [(1, at(5, 2)), (2, leader(2)), (3, ProposalStage::Queued)] {
            world.wait(id, place);
        }
        world.pending.stop();
        assert_eq!(world.errors(), [1, 2, 3].map(|id| (id, Error::Stopped)));
        let mut waiting = super::super::work::PendingCounts::default();
        world.pending.count(&mut waiting);
        assert_eq!(waiting.sum(), 0);
    }

    #[test]
    fn the_places_without_a_bound_of_raft_have_their_own() {
        for (place, bounded) in [
            (ProposalStage::Queued, true),
            (leader(1), true),
            (at(1, 1), false),
        ] {
            let mut world = Fixture::default();
            for id in 0..MAX_PENDING_PROPOSALS as u64 {
                assert!(world.wait(id, place));
            }
            assert_eq!(world.wait(u64::MAX, place), !bounded, "{place:?}");
            let refused = bounded.then_some((u64::MAX, Error::TooManyRequests));
            assert_eq!(world.errors(), Vec::from_iter(refused));
        }
    }
}
