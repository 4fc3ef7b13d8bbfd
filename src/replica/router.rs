//! Routes between raft and the other threads, without I/O: proposals and reads in; entries to
//! persist, entries to apply, messages and replies out.
//!
//! A proposal is passed to raft if this member leads, forwarded to the leader if another one does,
//! and queued if there is none. It waits in `pending` for its entry; one that certainly was not
//! applied is proposed again, so that a client notices a change of leaders only as a longer call.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::pending::{PendingProposal, PendingProposals, ProposalStage, pop_if};
use super::proposal::{
    Proposal, ProposalRefusal, Proposed, conf_change, is_forwarded, member_change, take_encoded,
};
use super::reads::ReadReply;
use super::traced::TracedForOthers;
use super::work::Work;
use crate::error::Error;
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::etchedpeer::{Forwarded, MemberChange, forwarded, member_change::Change};
use crate::raft::read_index::ReadIndex;
use crate::raft::replica::MemberProgress;
use crate::raft::{Committed, CommittedKind, Lost, Message, Replica, Snapshot, replica};
use crate::state::machine::{Entry, Payload};
use crate::trace;
use crate::types::MemberId;

/// Ticks of silence after which a leader whose connection broke is suspected dead.
const SUSPECT_TICKS: u64 = 3;
/// See the module.
pub struct Router {
    member: MemberId,
    replica: Replica,
    reads: ReadIndex<ReadReply>,
    pending: PendingProposals,
    traced: TracedForOthers,
    /// Committed changes of membership that are not applied yet.
    changes: VecDeque<(u64, MemberChange)>,
    applied: u64,
    forwards: Vec<(MemberId, Forwarded)>,
    refusals: Vec<ProposalRefusal>,
    tick: u64,
    /// The connected peers and since when, as last reported by the transport; none before its first
    /// report.
    connected: Option<BTreeMap<MemberId, Duration>>,
    /// The tick at which the leader's connection broke, unless a message came since.
    leader_suspected_at: Option<u64>,
    /// Ticks that a request may take.
    limit_ticks: u64,
    /// Term, leader and whether this member accepted proposals when queued ones were last retried.
    leadership: (u64, u64, bool),
}

impl Router {
    /// `first_request`: see `ReadIndex::new`.
    pub fn new(member: MemberId, replica: Replica, first_request: u64, limit_ticks: u64) -> Self {
        Self {
            member,
            replica,
            reads: ReadIndex::new(member, first_request, limit_ticks),
            pending: PendingProposals::default(),
            traced: TracedForOthers::default(),
            changes: VecDeque::new(),
            applied: 0,
            forwards: Vec::new(),
            refusals: Vec::new(),
            tick: 0,
            connected: None,
            leader_suspected_at: None,
            limit_ticks,
            leadership: (0, 0, false),
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
        if self.replica.wants_later_term() && self.hand_over().is_some() {
            probe::reached(CoveragePoint::DoubtHandedOver);
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

    /// Counts of what waits here.
    #[cfg(any(test, feature = "simulation"))]
    pub fn waiting(&self) -> super::work::PendingCounts {
        let mut waiting = super::work::PendingCounts {
            changes: self.changes.len(),
            reads: self.reads.len(),
            ..Default::default()
        };
        self.pending.count(&mut waiting);
        waiting
    }

    pub fn progress(&self) -> Vec<MemberProgress> {
        self.replica.progress()
    }

    /// # Errors
    /// A message has shown that this member has lost acknowledged log entries.
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

    /// Proposes, forwards, queues, or replies with an error.
    pub fn propose(&mut self, mut proposal: Proposal) {
        if probe::injected(Defect::RevokeUnfenced) {
            proposal.fence_term = None;
        }
        let status = self.replica.status();
        // A fenced proposal is proposed now or never: it must not wait for another leader.
        let fenced = proposal
            .fence_term
            .is_some_and(|term| term != status.term || !self.replica.takes_proposals());
        if fenced {
            probe::reached(CoveragePoint::LeaseFenced);
            return (proposal.reply)(Err(Error::NotLeader));
        }
        self.route(PendingProposal {
            what: proposal.what,
            fenced: proposal.fence_term.is_some(),
            expires_at_tick: self.tick + self.limit_ticks,
            awaited: proposal.awaited_until.is_some(),
            span: proposal.span,
            reply: proposal.reply,
        });
    }

    fn route(&mut self, proposal: PendingProposal) {
        if proposal.is_abandoned() {
            return;
        }
        let leaves = match &proposal.what {
            Proposed::Member(change) => self.steps_aside_for(change),
            Proposed::Request(..) => false,
        };
        let status = self.replica.status();
        if self.replica.takes_proposals() && !leaves {
            self.propose_here(proposal);
        } else if status.is_leader || status.leader == 0 {
            trace::event!(&proposal.span, "waits for a leader");
            self.pending.wait(proposal, ProposalStage::Queued);
        } else {
            self.forward(proposal);
        }
    }

    /// Raft would let a removed leader keep leading. If this member is to be removed and another
    /// one can lead, that one has to propose it.
    fn steps_aside_for(&mut self, change: &MemberChange) -> bool {
        let removes_self =
            change.member_id == self.member.0 && matches!(change.change, Some(Change::Remove(_)));
        let aside = removes_self && self.hand_over().is_some();
        if aside {
            probe::reached(CoveragePoint::LeaderSteppedAside);
        }
        aside
    }

    fn propose_here(&mut self, mut proposal: PendingProposal) {
        let proposed = match &mut proposal.what {
            Proposed::Request(request, encoded) => {
                let proposed = self.replica.propose(take_encoded(request, encoded));
                proposed.map(|_| ())
            }
            Proposed::Member(change) => self.replica.propose_conf_change(conf_change(change)),
        };
        if let Err(error) = proposed {
            return (proposal.reply)(Err(error));
        }
        let replica::Status {
            last_index, term, ..
        } = self.replica.status();
        trace::event!(&proposal.span, index = last_index as i64, "proposed");
        let place = ProposalStage::Proposed {
            index: last_index,
            term,
        };
        self.pending.wait(proposal, place);
    }

    /// Forwards a proposal to the leader.
    fn forward(&mut self, mut proposal: PendingProposal) {
        let replica::Status { leader, term, .. } = self.replica.status();
        trace::event!(&proposal.span, leader = %MemberId(leader), "forwarded to the leader");
        let (request_id, trace) = (proposal.what.request_id(), trace::carried(&proposal.span));
        let sent = match &mut proposal.what {
            Proposed::Request(request, encoded) => {
                forwarded::Proposal::Request(take_encoded(request, encoded).into())
            }
            Proposed::Member(change) => {
                forwarded::Proposal::MemberChange(MemberChange::clone(change))
            }
        };
        if self
            .pending
            .wait(proposal, ProposalStage::Forwarded { term })
        {
            let message = Forwarded {
                request_id,
                term,
                proposal: Some(sent),
                trace,
            };
            self.forwards.push((MemberId(leader), message));
        }
    }

    /// Proposes what another member forwarded: for members only, and only what members forward.
    pub fn propose_for(&mut self, from: MemberId, message: Forwarded) {
        let leaves = match &message.proposal {
            Some(forwarded::Proposal::MemberChange(change)) => self.steps_aside_for(change),
            _ => false,
        };
        let span = trace::continued(
            &message.trace,
            || tracing::trace_span!(parent: None, "forwarded", from = %from),
        );
        let status = self.replica.status();
        let takes = self.replica.takes_proposals() && !leaves && self.replica.has_member(from);
        let proposed = if !takes || message.term != status.term {
            Err(Error::NotLeader)
        } else {
            match message.proposal {
                // Once in the log, an entry that cannot be decoded would stop every member.
                Some(forwarded::Proposal::Request(request)) if !is_forwarded(&request) => {
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
        match proposed {
            Ok(()) => {
                let index = self.replica.status().last_index;
                trace::event!(&span, index = index as i64, "proposed");
                self.traced.proposed(index, status.term, span);
            }
            Err(error) => {
                trace::event!(&span, error = %error, "refused");
                self.refusals.push(ProposalRefusal {
                    to: from,
                    request_id: message.request_id,
                    term: message.term,
                    error,
                });
            }
        }
    }

    /// A proposal that was forwarded to another member in this term was not proposed there.
    pub fn refused(&mut self, request_id: u64, term: u64, error: Error) {
        self.pending.refused(request_id, term, error);
    }

    /// Whether a change of membership waits for a leader.
    pub fn queues_a_change(&self) -> bool {
        self.pending.queues_a_change()
    }

    fn propose_queued(&mut self) {
        for proposal in self.pending.take_queued() {
            self.route(proposal);
        }
    }

    /// Replies once this member may read everything that was written before this call.
    pub fn read_index(&mut self, reply: ReadReply) {
        if let Err(reply) = self.reads.push(reply, self.tick) {
            reply(Err(Error::TooManyRequests));
        }
    }

    /// Transfers leadership; raft gives up after an election timeout.
    pub fn transfer_leader(&mut self, to: MemberId) {
        self.replica.transfer_leader(to);
    }

    /// Sets which peers are connected, and since when. Needed before leadership is transferred or
    /// an election brought forward: raft considers a dead member active for another election
    /// timeout.
    pub fn set_connected(&mut self, connected: BTreeMap<MemberId, Duration>) {
        self.connected = Some(connected);
    }

    /// Brings the first election after a start forward, where this member and the voters that it
    /// is connected to are enough to hold it; false where they are not.
    pub fn advance_election(&mut self) -> bool {
        let (mut voters, mut present) = (0, 0);
        for voter in self.replica.progress().iter().filter(|other| other.voter) {
            let connected = self.connected.as_ref();
            let is_connected = connected.is_some_and(|peers| peers.contains_key(&voter.member));
            voters += 1;
            present += usize::from(is_connected || voter.member == self.member);
        }
        let suffice = present > voters / 2;
        if suffice {
            probe::reached(CoveragePoint::ElectionAdvanced);
            self.replica.advance_election();
        }
        suffice
    }

    /// Transfers leadership to the most up-to-date connected voter, and among equals to the one
    /// connected longest; returns it, if there is one.
    pub fn hand_over(&mut self) -> Option<MemberId> {
        if !self.status().is_leader || self.replica.is_transferring() {
            return None;
        }
        let fit = |other: &MemberProgress| {
            other.member != self.member
                && other.voter
                && other.active
                && !other.in_snapshot
                && !other.in_doubt
        };
        let others = self.replica.progress().into_iter().filter(fit);
        let since = |other: &MemberProgress| match &self.connected {
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

    /// Something sent to the member may have been lost. If it is the leader and stays silent, it is
    /// suspected before the election timeout: a process that dies breaks its connections at once.
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
            // It is sent again with the next heartbeat response.
            self.replica.ping();
        }
        self.replica.offer_snapshot(snapshot);
    }

    /// Steps a raft snapshot message whose files have been received. False if raft rejects it.
    pub fn restore(&mut self, message: Message) -> bool {
        self.replica.restore(message)
    }

    /// Steps a raft snapshot message whose state is already applied here.
    pub fn decline(&mut self, message: Message) {
        self.replica.decline(message);
    }

    /// The next work; `None` if there is none. To be called until then.
    pub fn work(&mut self) -> Option<Work> {
        let status = self.replica.status();
        let leadership = (status.term, status.leader, self.replica.takes_proposals());
        if self.pending.take_retry() || leadership != self.leadership {
            self.leadership = leadership;
            self.propose_queued();
        }
        self.ask_for_reads();
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
            self.pending.lose_sight();
            self.traced.clear();
        }
        work.messages = output.messages;
        let appended = output.persist.as_ref().and_then(|p| p.entries.first());
        if let Some(first) = appended {
            work.logged_in = self.pending.spans_from(first.index);
            work.logged_in.extend(self.traced.spans_from(first.index));
        }
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

    /// Starts a read index round for waiting reads, if there is a leader that can answer.
    fn ask_for_reads(&mut self) {
        if self.reads.is_empty() || !self.replica.takes_reads() {
            return;
        }
        if let Some(context) = self.reads.ask(self.tick, self.replica.status().term) {
            self.replica.read_index(context);
        }
    }

    fn take_committed(&mut self, committed: Committed, work: &mut Work) {
        let status = self.replica.status();
        let first_of_term = matches!(committed.kind, CommittedKind::Empty);
        if first_of_term && status.is_leader && status.term == committed.term {
            work.promoted_in_term = Some(committed.term);
        }
        let (what, reply) = match self.pending.committed(&committed) {
            Some(proposal) => {
                trace::event!(&proposal.span, index = committed.index as i64, "committed");
                if !proposal.span.is_disabled() {
                    work.applied_in.push(proposal.span);
                }
                (Some(proposal.what), Some(proposal.reply))
            }
            None => (None, None),
        };
        if let Some(span) = self.traced.committed(committed.index, committed.term) {
            trace::event!(&span, index = committed.index as i64, "committed");
            work.applied_in.push(span);
        }
        let payload = match (committed.kind, what) {
            (CommittedKind::Empty, _) => Payload::Empty,
            (CommittedKind::Request(_), Some(Proposed::Request(request, _))) => {
                Payload::Decoded(request)
            }
            (CommittedKind::Request(bytes), _) => Payload::Request(bytes),
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

    /// Fails what has expired.
    fn expire(&mut self) {
        self.pending.expire(self.tick);
        for reply in self.reads.expired(self.tick) {
            reply(Err(Error::Timeout));
        }
    }

    /// Everything up to the part `number` is durable.
    pub fn persisted(&mut self, number: u64) {
        self.replica.persisted(number);
    }

    /// Entries up to `index` are applied, and of the membership changes among them those with an
    /// index in `made` were accepted.
    pub fn applied(&mut self, index: u64, made: &[u64]) -> Result<(), raft::Error> {
        while let Some((at, change)) = pop_if(&mut self.changes, |first| first.0 <= index) {
            let made = made.contains(&at) || probe::injected(Defect::RefusedChangeMade);
            if made && !matches!(change.change, Some(Change::Update(_))) {
                self.replica.apply_conf_change(&conf_change(&change))?;
            }
        }
        // A thread that reports later may be behind what this one applied inline.
        if index > self.applied {
            self.applied = index;
            self.replica.applied(index);
        }
        Ok(())
    }

    pub fn is_sole_voter(&self) -> bool {
        self.replica.is_sole_voter()
    }

    /// True if there is no other member.
    pub fn is_single_member(&self) -> bool {
        self.replica.is_single_member()
    }

    /// Replies to everything that waits that the member is stopping.
    pub fn stop(&mut self) {
        self.pending.stop();
        for reply in self.reads.drain() {
            reply(Err(Error::Stopped));
        }
    }
}
