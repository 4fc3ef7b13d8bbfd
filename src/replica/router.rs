//! Long because proposals of every kind meet here.
//!
//! Routes between raft and the rest, without I/O: proposals and reads in; entries to persist,
//! entries to apply, messages and replies out.
//!
//! A proposal that this member makes as leader is remembered by the index and term it was
//! proposed at: the entry that is committed there is the proposal exactly if its term is the
//! same. One that goes to another leader is remembered by its request's id, and is only to be
//! proposed in the term in which it was sent. Either way a committed entry of a later term tells
//! that it will never be applied: terms in a log only grow. So it is proposed again, and a client
//! notices a change of leaders by the time it takes. Without a leader proposals wait.

use std::cmp::Reverse;
use std::collections::hash_map::Entry as Place;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;

use super::proposal::{
    Proposal, Proposed, Refusal, Reply, committed_id, conf_change, is_request, member_change,
};
use super::reads::{ReadReply, Reads};
use super::work::{Waiting, Work};
use crate::error::Error;
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::etcdserverpb::InternalRaftRequest;
use crate::proto::etchedpeer::{Forwarded, MemberChange, forwarded, member_change::Change};
use crate::raft::replica::Progress;
use crate::raft::{Committed, CommittedKind, Lost, Message, Replica, Snapshot, replica};
use crate::state::machine::{Entry, Payload};
use crate::types::MemberId;

/// A leader whose connection broke and who is silent for so many ticks is taken for dead.
const SUSPECT_TICKS: u64 = 3;
/// Proposals that wait for a leader, or for another member's.
const MAX_PENDING_PROPOSALS: usize = 20_000;

/// Waits for an entry that this member proposed.
struct Waiter {
    index: u64,
    term: u64,
    expires_at_tick: u64,
    awaited_until: Option<Duration>,
    what: Awaited,
    fenced: bool,
    reply: Reply,
}

/// A proposal whose encoding raft has.
enum Awaited {
    Request(Arc<InternalRaftRequest>),
    Member(MemberChange),
}

/// Waits for an entry that another member was asked to propose. A deterministic hasher keeps
/// iteration order equal in every run.
struct ForwardedProposal {
    term: u64,
    expires_at_tick: u64,
    awaited_until: Option<Duration>,
    what: Proposed,
    reply: Reply,
}

/// See the module.
pub struct Router {
    member: MemberId,
    replica: Replica,
    reads: Reads,
    waiters: VecDeque<Waiter>,
    forwarded: HashMap<u64, ForwardedProposal, BuildHasherDefault<DefaultHasher>>,
    queued: VecDeque<(Proposal, u64)>,
    /// Committed changes of membership that are not applied yet.
    changes: VecDeque<(u64, MemberChange)>,
    applied: u64,
    forwards: Vec<(MemberId, Forwarded)>,
    refusals: Vec<Refusal>,
    tick: u64,
    /// The peers that are connected and since when, as the transport last said; none: it never did.
    connected: Option<BTreeMap<MemberId, Duration>>,
    /// Since when, in ticks, the leader was not heard of after its connection broke.
    leader_suspected_at: Option<u64>,
    /// Ticks that a request may take.
    limit_ticks: u64,
    /// Term, leader, and whether this member took proposals, when queued ones were looked at.
    leadership: (u64, u64, bool),
    /// Something waits that may be proposed at once.
    retry_queued: bool,
}

impl Router {
    /// `first_question`: see `ReadIndex::new`.
    pub fn new(member: MemberId, replica: Replica, first_question: u64, limit_ticks: u64) -> Self {
        Self {
            member,
            replica,
            reads: Reads::new(member, first_question, limit_ticks),
            waiters: VecDeque::new(),
            forwarded: HashMap::default(),
            queued: VecDeque::new(),
            changes: VecDeque::new(),
            applied: 0,
            forwards: Vec::new(),
            refusals: Vec::new(),
            tick: 0,
            connected: None,
            leader_suspected_at: None,
            limit_ticks,
            leadership: (0, 0, false),
            retry_queued: false,
        }
    }

    pub fn tick(&mut self) {
        self.tick += 1;
        self.replica.tick();
        if self
            .leader_suspected_at
            .take_if(|at| *at + SUSPECT_TICKS <= self.tick)
            .is_some()
        {
            probe::reached(CoveragePoint::LeaderGivenUp);
            self.replica.give_up_leader();
        }
        self.expire();
        self.propose_queued();
    }

    pub fn campaign(&mut self) -> Result<(), raft::Error> {
        self.replica.campaign()
    }

    pub fn status(&self) -> replica::Status {
        self.replica.status()
    }

    /// Who waits for what here.
    pub fn waiting(&self) -> Waiting {
        Waiting {
            proposed: self.waiters.len(),
            forwarded: self.forwarded.len(),
            without_leader: self.queued.len(),
            changes: self.changes.len(),
            reads: self.reads.count(),
        }
    }

    pub fn progress(&self) -> Vec<Progress> {
        self.replica.progress()
    }

    /// # Errors
    /// A message has shown that this member's log is not what it was.
    pub fn check_log(&self) -> Result<(), Lost> {
        self.replica.check_log()
    }

    /// Takes a message of another member. Messages that raft rejects are ignored.
    pub fn step(&mut self, message: Message) {
        let of_leader = message.from == self.replica.status().leader;
        if self.replica.step(message) && of_leader {
            self.leader_suspected_at = None;
        }
    }

    /// Proposes, has the leader propose, waits for a leader, or replies why not.
    pub fn propose(&mut self, mut proposal: Proposal) {
        if probe::injected(Defect::RevokeUnfenced) {
            proposal.fence_term = None;
        }
        let status = self.replica.status();
        // What is fenced is proposed here and now, or never: it must not wait for another leader.
        let fenced = proposal
            .fence_term
            .is_some_and(|term| term != status.term || !self.replica.takes_proposals());
        if fenced {
            probe::reached(CoveragePoint::LeaseFenced);
            (proposal.reply)(Err(Error::NotLeader));
        } else {
            self.route(proposal, self.tick + self.limit_ticks);
        }
    }

    fn route(&mut self, proposal: Proposal, expires_at_tick: u64) {
        if proposal.is_abandoned() {
            return;
        }
        let leaves = match &proposal.what {
            Proposed::Member(change) => self.steps_aside_for(change),
            Proposed::Request(..) => false,
        };
        let status = self.replica.status();
        if self.replica.takes_proposals() && !leaves {
            self.propose_here(proposal, expires_at_tick);
        } else if status.is_leader || status.leader == 0 {
            self.queue(proposal, expires_at_tick);
        } else {
            self.forward(proposal, expires_at_tick);
        }
    }

    /// A removed leader would go on leading, to raft: where this one is to be removed and
    /// another member can lead, that one is to propose it.
    fn steps_aside_for(&mut self, change: &MemberChange) -> bool {
        let removes_self =
            change.member_id == self.member.0 && matches!(change.change, Some(Change::Remove(_)));
        let aside = removes_self && self.hand_over().is_some();
        if aside {
            probe::reached(CoveragePoint::LeaderSteppedAside);
        }
        aside
    }

    fn propose_here(&mut self, proposal: Proposal, expires_at_tick: u64) {
        let (proposed, what) = match proposal.what {
            Proposed::Request(request, encoded) => {
                let proposed = self.replica.propose(encoded);
                (proposed.map(|_| ()), Awaited::Request(request))
            }
            Proposed::Member(change) => {
                let proposed = self.replica.propose_conf_change(conf_change(&change));
                (proposed, Awaited::Member(change))
            }
        };
        if let Err(error) = proposed {
            (proposal.reply)(Err(error));
            return;
        }
        let status = self.replica.status();
        self.waiters.push_back(Waiter {
            index: status.last_index,
            term: status.term,
            expires_at_tick,
            awaited_until: proposal.awaited_until,
            what,
            fenced: proposal.fence_term.is_some(),
            reply: proposal.reply,
        });
    }

    /// Proposes again what will certainly not be applied as it was proposed.
    fn again(
        &mut self,
        what: Proposed,
        awaited_until: Option<Duration>,
        reply: Reply,
        expires_at_tick: u64,
    ) {
        let proposal = Proposal {
            what,
            fence_term: None,
            awaited_until,
            reply,
        };
        self.queue(proposal, expires_at_tick);
    }

    fn queue(&mut self, proposal: Proposal, expires_at_tick: u64) {
        if self.queued.len() >= MAX_PENDING_PROPOSALS {
            (proposal.reply)(Err(Error::TooManyRequests));
            return;
        }
        probe::reached(CoveragePoint::ProposalParked);
        self.queued.push_back((proposal, expires_at_tick));
    }

    /// Sends a proposal to the leader, which is another member.
    fn forward(&mut self, proposal: Proposal, expires_at_tick: u64) {
        let replica::Status { leader, term, .. } = self.replica.status();
        if self.forwarded.len() >= MAX_PENDING_PROPOSALS {
            (proposal.reply)(Err(Error::TooManyRequests));
            return;
        }
        probe::reached(CoveragePoint::ProposalForwarded);
        let request_id = proposal.what.request_id();
        let sent = match &proposal.what {
            Proposed::Request(_, encoded) => forwarded::Proposal::Request(encoded.clone().into()),
            Proposed::Member(change) => forwarded::Proposal::MemberChange(change.clone()),
        };
        let message = Forwarded {
            request_id,
            term,
            proposal: Some(sent),
        };
        self.forwards.push((MemberId(leader), message));
        self.forwarded.insert(
            request_id,
            ForwardedProposal {
                term,
                expires_at_tick,
                awaited_until: proposal.awaited_until,
                what: proposal.what,
                reply: proposal.reply,
            },
        );
    }

    /// Proposes what another member was asked for.
    pub fn propose_for(&mut self, from: MemberId, message: Forwarded) {
        let leaves = match &message.proposal {
            Some(forwarded::Proposal::MemberChange(change)) => self.steps_aside_for(change),
            _ => false,
        };
        let status = self.replica.status();
        let takes = self.replica.takes_proposals() && !leaves;
        let proposed = if !takes || message.term != status.term {
            Err(Error::NotLeader)
        } else {
            match message.proposal {
                // Once it is in the log, every member stops at what cannot be read.
                Some(forwarded::Proposal::Request(request)) if !is_request(&request) => {
                    Err(Error::UnknownMethod)
                }
                Some(forwarded::Proposal::Request(request)) => {
                    self.replica.propose(request.into()).map(|_| ())
                }
                Some(forwarded::Proposal::MemberChange(change)) => {
                    self.replica.propose_conf_change(conf_change(&change))
                }
                None => Err(Error::UnknownMethod),
            }
        };
        if let Err(error) = proposed {
            self.refusals.push(Refusal {
                to: from,
                request_id: message.request_id,
                term: message.term,
                error,
            });
        }
    }

    /// A proposal that was sent to another member in this term was not proposed there.
    pub fn refused(&mut self, request_id: u64, term: u64, error: Error) {
        // It may have been sent to another leader since, who may well have proposed it.
        let sent_then = |forwarded: &ForwardedProposal| forwarded.term == term;
        let unchecked = probe::injected(Defect::RefusalUnchecked);
        let Place::Occupied(forwarded) = self.forwarded.entry(request_id) else {
            return;
        };
        if !sent_then(forwarded.get()) && !unchecked {
            return probe::reached(CoveragePoint::RefusalStale);
        }
        let forwarded = forwarded.remove();
        if matches!(error, Error::NotLeader | Error::NoLeader) {
            probe::reached(CoveragePoint::ProposalRefused);
            // It was certainly not proposed.
            self.again(
                forwarded.what,
                forwarded.awaited_until,
                forwarded.reply,
                forwarded.expires_at_tick,
            );
        } else {
            (forwarded.reply)(Err(error));
        }
    }

    fn propose_queued(&mut self) {
        for (proposal, expires_at_tick) in std::mem::take(&mut self.queued) {
            self.route(proposal, expires_at_tick);
        }
    }

    /// Replies once this member may read what was written before this call.
    pub fn read_index(&mut self, reply: ReadReply) {
        self.reads.push(reply, self.tick);
    }

    /// Hands leadership over; raft gives up after an election timeout.
    pub fn transfer_leader(&mut self, to: MemberId) {
        self.replica.transfer_leader(to);
    }

    /// Which peers the transport is connected to, and since when. To be told before leadership may
    /// be handed over: raft counts a member as active for an election timeout after its death.
    pub fn set_connected(&mut self, connected: BTreeMap<MemberId, Duration>) {
        self.connected = Some(connected);
    }

    /// Hands leadership over to a connected voter, the furthest, and of those the one connected
    /// for longest; returns whom, if there is anyone.
    pub fn hand_over(&mut self) -> Option<MemberId> {
        if !self.status().is_leader || self.replica.is_transferring() {
            return None;
        }
        let fit = |other: &Progress| {
            other.member != self.member && other.voter && other.active && !other.in_snapshot
        };
        let others = self.replica.progress().into_iter().filter(fit);
        let since = |other: &Progress| match &self.connected {
            Some(connected) => connected.get(&other.member).copied(),
            None => Some(Duration::ZERO),
        };
        let connected = others.filter_map(|other| Some((since(&other)?, other)));
        let (_, furthest) = connected
            .max_by_key(|(since, other)| (other.matched, Reverse(*since), other.member))?;
        probe::reached(CoveragePoint::LeaderHandedOver);
        self.replica.transfer_leader(furthest.member);
        Some(furthest.member)
    }

    /// Something that was sent to the member may be lost. A leader of whom nothing is heard
    /// after that for a while is given up before its time: a process that died breaks its
    /// connections at once.
    pub fn report_unreachable(&mut self, member: MemberId) {
        self.replica.report_unreachable(member);
        if member.0 == self.replica.status().leader && self.leader_suspected_at.is_none() {
            self.leader_suspected_at = Some(self.tick);
        }
    }

    pub fn report_snapshot(&mut self, member: MemberId, taken: bool) {
        self.replica.report_snapshot(member, taken);
    }

    pub fn offer_snapshot(&mut self, snapshot: Option<Snapshot>) {
        if snapshot.is_some() {
            // Whoever needs it is sent it with the answer to a heartbeat.
            self.replica.ping();
        }
        self.replica.offer_snapshot(snapshot);
    }

    /// Takes a snapshot's message, whose files are here. False where raft does not want it.
    pub fn restore(&mut self, message: Message) -> bool {
        self.replica.restore(message)
    }

    /// Takes the message of a snapshot whose state is applied here.
    pub fn decline(&mut self, message: Message) {
        self.replica.decline(message);
    }

    /// The next work; `None` when there is none. Must be called again until then.
    pub fn work(&mut self) -> Option<Work> {
        let status = self.replica.status();
        let leadership = (status.term, status.leader, self.replica.takes_proposals());
        if leadership != self.leadership || self.retry_queued {
            self.leadership = leadership;
            self.retry_queued = false;
            self.propose_queued();
        }
        self.reads.ask(&mut self.replica, self.tick);
        let mut work = Work {
            forwards: std::mem::take(&mut self.forwards),
            refusals: std::mem::take(&mut self.refusals),
            ..Default::default()
        };
        let output = self.replica.output();
        work.snapshot_wanted = self.replica.take_snapshot_wanted();
        let Some(output) = output else {
            let nothing =
                work.forwards.is_empty() && work.refusals.is_empty() && !work.snapshot_wanted;
            return (!nothing).then_some(work);
        };
        if output.persist.as_ref().is_some_and(|p| p.reset.is_some()) {
            self.lose_sight();
        }
        work.messages = output.messages;
        work.persist = output.persist;
        work.entries.reserve(output.committed.len());
        work.replies.reserve(output.committed.len());
        for committed in output.committed {
            self.take_committed(committed, &mut work);
        }
        for read in output.reads {
            let replies = self.reads.answered(&read.context);
            if !replies.is_empty() {
                work.reads.push((read.index, replies));
            }
        }
        Some(work)
    }

    fn take_committed(&mut self, committed: Committed, work: &mut Work) {
        let status = self.replica.status();
        let first_of_term = matches!(committed.kind, CommittedKind::Empty);
        if first_of_term && status.is_leader && status.term == committed.term {
            work.promoted_in_term = Some(committed.term);
        }
        let (request, reply) = self.take_waiter(&committed);
        let payload = match (committed.kind, request) {
            (CommittedKind::Empty, _) => Payload::Empty,
            (CommittedKind::Request(_), Some(request)) => Payload::Decoded(request),
            (CommittedKind::Request(bytes), None) => Payload::Request(bytes),
            (CommittedKind::ConfChange(change), _) => {
                let change = member_change(&change);
                self.changes.push_back((committed.index, change.clone()));
                Payload::Membership(change)
            }
        };
        work.entries.push(Entry {
            index: committed.index,
            term: committed.term,
            payload,
        });
        work.replies.push(reply);
    }

    /// Finds who waits for the entry here, and tells those that it shows to wait in vain.
    fn take_waiter(
        &mut self,
        committed: &Committed,
    ) -> (Option<Arc<InternalRaftRequest>>, Option<Reply>) {
        if !self.forwarded.is_empty() {
            if let Some(forwarded) =
                committed_id(committed).and_then(|id| self.forwarded.remove(&id))
            {
                let request = match forwarded.what {
                    Proposed::Request(request, _) => Some(request),
                    Proposed::Member(_) => None,
                };
                return (request, Some(forwarded.reply));
            }
            // Those of its own term may be applied yet.
            let term = committed.term + u64::from(probe::injected(Defect::ForwardedTwice));
            let passed = |_: &u64, forwarded: &mut ForwardedProposal| forwarded.term < term;
            let passed: Vec<_> = self.forwarded.extract_if(passed).collect();
            self.retry_queued |= !passed.is_empty();
            for (_, forwarded) in passed {
                probe::reached(CoveragePoint::ForwardedAgain);
                self.again(
                    forwarded.what,
                    forwarded.awaited_until,
                    forwarded.reply,
                    forwarded.expires_at_tick,
                );
            }
        }
        while let Some(waiter) = pop_if(&mut self.waiters, |first| {
            first.index <= committed.index || first.term < committed.term
        }) {
            if waiter.index == committed.index && waiter.term == committed.term {
                let request = match waiter.what {
                    Awaited::Request(request) => Some(request),
                    Awaited::Member(_) => None,
                };
                return (request, Some(waiter.reply));
            }
            if waiter.fenced {
                probe::reached(CoveragePoint::LeaseFencedInVain);
                (waiter.reply)(Err(Error::LeaderChanged));
                continue;
            }
            self.retry_queued = true;
            probe::reached(CoveragePoint::ProposedAgain);
            let what = match waiter.what {
                Awaited::Request(request) => {
                    let encoded = request.encode_to_vec();
                    Proposed::Request(request, encoded)
                }
                Awaited::Member(change) => Proposed::Member(change),
            };
            self.again(
                what,
                waiter.awaited_until,
                waiter.reply,
                waiter.expires_at_tick,
            );
        }
        (None, None)
    }

    /// A snapshot took the place of entries that nobody here will see: whose proposals were
    /// among them is not known.
    fn lose_sight(&mut self) {
        if !self.waiters.is_empty() || !self.forwarded.is_empty() {
            probe::reached(CoveragePoint::ProposalsLostFromSight);
        }
        for waiter in self.waiters.drain(..) {
            (waiter.reply)(Err(Error::Timeout));
        }
        for (_, forwarded) in self.forwarded.drain() {
            (forwarded.reply)(Err(Error::Timeout));
        }
    }

    /// Gives up what has waited for too long. It may be applied all the same.
    fn expire(&mut self) {
        let tick = self.tick;
        while let Some(waiter) = pop_if(&mut self.waiters, |first| first.expires_at_tick <= tick) {
            (waiter.reply)(Err(Error::Timeout));
        }
        let kept = probe::injected(Defect::ForwardedKept);
        let expired =
            |_: &u64, forwarded: &mut ForwardedProposal| forwarded.expires_at_tick <= tick && !kept;
        for (_, forwarded) in self.forwarded.extract_if(expired) {
            (forwarded.reply)(Err(Error::Timeout));
        }
        while let Some((proposal, _)) = pop_if(&mut self.queued, |first| first.1 <= tick) {
            (proposal.reply)(Err(Error::DeadlineExceeded));
        }
        for reply in self.reads.expired(tick) {
            reply(Err(Error::Timeout));
        }
    }

    /// Everything up to the persist `number` is on disk.
    pub fn persisted(&mut self, number: u64) {
        self.replica.persisted(number);
    }

    /// Entries up to `index` are applied, and of the changes of membership among them those
    /// were made whose indexes are in `made`.
    pub fn applied(&mut self, index: u64, made: &[u64]) -> Result<(), raft::Error> {
        while let Some((at, change)) = pop_if(&mut self.changes, |first| first.0 <= index) {
            let made = made.contains(&at) || probe::injected(Defect::RefusedChangeMade);
            if made && !matches!(change.change, Some(Change::Update(_))) {
                self.replica.apply_conf_change(&conf_change(&change))?;
            }
        }
        // What this thread did by itself may be ahead of what another reports.
        if index > self.applied {
            self.applied = index;
            self.replica.applied(index);
        }
        Ok(())
    }

    pub fn is_sole_voter(&self) -> bool {
        self.replica.is_sole_voter()
    }

    /// True where there is no other member at all.
    pub fn is_single_member(&self) -> bool {
        self.replica.is_single_member()
    }

    /// Replies to all who wait that the member stops.
    pub fn stop(&mut self) {
        let waiters = self.waiters.drain(..).map(|waiter| waiter.reply);
        let forwarded = self.forwarded.drain().map(|(_, forwarded)| forwarded.reply);
        let queued = self.queued.drain(..).map(|(proposal, _)| proposal.reply);
        for reply in waiters.chain(forwarded).chain(queued) {
            reply(Err(Error::Stopped));
        }
        for reply in self.reads.drain() {
            reply(Err(Error::Stopped));
        }
    }
}

/// Takes out the first if it is such a one.
fn pop_if<T>(queue: &mut VecDeque<T>, is_such: impl FnOnce(&T) -> bool) -> Option<T> {
    let taken = queue.front().is_some_and(is_such);
    taken.then(|| queue.pop_front()).flatten()
}
