//! One member's raft state machine: inputs in, outputs out, no I/O.
//!
//! It uses raft-rs's asynchronous ready: what is to be made durable is handed out, and raft
//! continues; the caller reports later how far the disk is. Entries commit only when a quorum,
//! including this member if it counts, has reported them durable.

use bytes::Bytes;
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};
use raft_proto::eraftpb::{
    ConfChange, ConfState, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
};

use super::admit::{self, Lost, Malformed, RejectedMessages};
use super::doubt::{self, Doubt, InDoubt};
use super::drain::TracingDrain;
use super::log::{LogView, to_disk};
use super::output::{Output, Persist, promises_nothing, take_committed, take_reads};
use super::unpersisted::Unpersisted;
use super::votes::Votes;
use crate::error::Error;
use crate::probe::{self, CoveragePoint, Defect};
use crate::storage::raft_log::{EntryId, Reader};
use crate::types::MemberId;

/// Bytes of committed entries handed out at once: bounds the memory of a replay.
const MAX_COMMITTED_BYTES: u64 = 4 << 20;
/// Bytes of uncommitted proposals.
const MAX_UNCOMMITTED_BYTES: u64 = 256 << 20;
const MAX_MESSAGE_BYTES: u64 = 1 << 20;
const MAX_INFLIGHT_MESSAGES: usize = 256;
/// What a leader is given when the first election is brought forward; etcd's figure.
const TICKS_TO_BE_HEARD: usize = 2;

/// Parameters of a replica; counts are in ticks.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaOptions {
    pub member: MemberId,
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    pub pre_vote: bool,
    /// Election timeouts are a function of this, the member and the term alone.
    pub election_seed: u64,
    /// Applied entries kept in memory for followers that lag, `log::RECENT_ENTRIES` in a server.
    pub recent_entries: usize,
}

/// What the log and the state machine contain at a start.
pub struct InitialState {
    pub reader: Reader,
    /// raft's hard state as it was last made durable.
    pub hard_state: Option<Bytes>,
    pub conf_state: ConfState,
    pub applied_index: u64,
}

/// The status of this member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub term: u64,
    /// The term on disk: this member may send messages in it.
    pub durable_term: u64,
    /// 0: none.
    pub leader: u64,
    pub is_leader: bool,
    pub commit_index: u64,
    pub last_index: u64,
    /// The log may lack what this member had acknowledged: see `doubt`.
    pub in_doubt: bool,
}

/// A leader's knowledge of another member's progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberProgress {
    pub member: MemberId,
    pub matched: u64,
    pub voter: bool,
    /// It responded within the last election timeout.
    pub active: bool,
    /// A checkpoint is being sent to it, before its raft snapshot message.
    pub in_snapshot: bool,
    /// Its log may lack what it had acknowledged: see `doubt`.
    pub in_doubt: bool,
}

/// A raft member.
pub struct Replica {
    node: RawNode<LogView>,
    unpersisted: Unpersisted,
    /// A hard state in which only the commit index changed: it is written with the next part.
    lazy_hard_state: bool,
    election_seed: u64,
    /// The term on disk.
    durable_term: u64,
    /// Term and vote of the hard state that was handed out last.
    bound: (u64, u64),
    refused: RejectedMessages,
    doubt: Doubt,
    votes: Votes,
    in_doubt: InDoubt,
}

impl Replica {
    /// Restores the member from its log and state.
    pub fn new(options: ReplicaOptions, restored: InitialState) -> Result<Self, raft::Error> {
        let mut hard_state = match &restored.hard_state {
            Some(bytes) => prost_11::Message::decode(bytes.as_ref())
                .map_err(|error| raft::Error::ConfigInvalid(format!("hard state: {error}")))?,
            None => HardState::default(),
        };
        // The commit index on disk may lag; applied entries are committed.
        hard_state.commit = hard_state.commit.max(restored.applied_index);
        let bound = (hard_state.term, hard_state.vote);
        let config = raft::Config {
            id: options.member.0,
            election_tick: options.election_ticks,
            heartbeat_tick: options.heartbeat_ticks,
            applied: restored.applied_index,
            max_size_per_msg: MAX_MESSAGE_BYTES,
            max_inflight_msgs: MAX_INFLIGHT_MESSAGES,
            check_quorum: true,
            pre_vote: options.pre_vote,
            max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
            max_committed_size_per_ready: MAX_COMMITTED_BYTES,
            ..Default::default()
        };
        let log = LogView::new(
            restored.reader,
            hard_state,
            restored.conf_state,
            options.recent_entries,
        );
        let logger = slog::Logger::root(TracingDrain, slog::o!());
        let mut replica = Self {
            node: RawNode::new(&config, log, &logger)?,
            unpersisted: Unpersisted::default(),
            lazy_hard_state: false,
            election_seed: options.election_seed,
            durable_term: bound.0,
            bound,
            refused: RejectedMessages::default(),
            doubt: Doubt::default(),
            votes: Votes::default(),
            in_doubt: InDoubt::default(),
        };
        replica.draw_election_timeout();
        Ok(replica)
    }

    /// The log may have lost its end: this member is in doubt until it knows that it lacks nothing.
    pub fn doubt_log(&mut self) {
        if !probe::injected(Defect::DoubtIgnored) {
            let needs_others = !self.is_sole_voter();
            let raft = &self.node.raft;
            let term = raft.term.max(raft.raft_log.last_term());
            self.doubt.begin(term, needs_others);
        }
    }

    fn update_doubt(&mut self) {
        if self.doubt.is_open() {
            self.doubt.end_if_later(self.node.raft.raft_log.last_term());
        }
    }

    pub fn tick(&mut self) {
        // raft-rs expects a sole voter's log to be durable before it elects itself.
        let elects_itself = self.is_sole_voter() && self.node.raft.state != StateRole::Leader;
        if elects_itself && !self.unpersisted.is_empty() {
            return;
        }
        let raft = &self.node.raft;
        let is_silent = self
            .doubt
            .tick(raft.leader_id != 0, raft.election_timeout());
        if is_silent {
            self.votes.explain(self.doubt.is_open(), raft);
        }
        self.in_doubt.tick();
        if admit::lacks_state(&self.node.raft) {
            // Like a long time without a leader, so that it grants votes; but it does not become a
            // candidate itself.
            self.node.raft.election_elapsed += 1;
            return;
        }
        self.node.tick();
        self.draw_election_timeout();
    }

    /// Replaces the election timeout that raft-rs draws from a generator of its own whenever it
    /// restarts the timer.
    fn draw_election_timeout(&mut self) {
        let raft = &mut self.node.raft;
        let shortest = raft.election_timeout();
        let drawn = scatter(self.election_seed ^ raft.id.rotate_left(32), raft.term);
        raft.set_randomized_election_timeout(shortest + (drawn % shortest as u64) as usize);
    }

    /// Considers the leader dead, as if it had been silent for an election timeout. The random part
    /// of the timeout, which keeps members from campaigning at once, still has to pass, and the
    /// pre-vote asks the others whether they miss the leader as well.
    pub fn give_up_leader(&mut self) {
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Follower {
            raft.election_elapsed = raft.election_elapsed.max(raft.election_timeout());
        }
    }

    /// Counts the time before a start as waited for, as if the leader had been silent for all but
    /// two ticks of an election timeout: in those a leader that is there makes itself heard.
    pub fn advance_election(&mut self) {
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Follower {
            let advanced = raft.election_timeout().saturating_sub(TICKS_TO_BE_HEARD);
            raft.election_elapsed = raft.election_elapsed.max(advanced);
        }
    }

    /// Makes a leader send heartbeats now.
    pub fn ping(&mut self) {
        self.node.raft.ping();
    }

    /// Campaigns now, unless a received state is not installed yet.
    pub fn campaign(&mut self) -> Result<(), raft::Error> {
        if admit::lacks_state(&self.node.raft) {
            return Ok(());
        }
        let result = self.node.campaign();
        self.draw_election_timeout();
        result
    }

    /// Steps a message of another member; false if it changed nothing.
    pub fn step(&mut self, message: Message) -> bool {
        if is_snapshot(&message) {
            // Without its files it would reset the log to a state that does not exist.
            self.refused
                .note_by(&message, &self.node.raft, Malformed::SnapshotMessage);
            return false;
        }
        self.step_any(message)
    }

    /// Steps a raft snapshot message whose files have been received. False if raft rejects it.
    pub fn restore(&mut self, message: Message) -> bool {
        if !is_snapshot(&message) {
            self.refused
                .note_by(&message, &self.node.raft, Malformed::SnapshotMessage);
            return false;
        }
        let entry_id = entry_id_of(message.get_snapshot().get_metadata());
        self.step_any(message) && self.pending_snapshot() == Some(entry_id)
    }

    /// Steps a raft snapshot message whose entry is applied here already; it has no files.
    pub fn decline(&mut self, message: Message) {
        let index = message.get_snapshot().get_metadata().index;
        if is_snapshot(&message) && index <= self.node.raft.raft_log.committed {
            self.step_any(message);
        }
    }

    fn step_any(&mut self, mut message: Message) -> bool {
        if let Err(fault) = admit::check(&message, &self.node.raft) {
            self.refused.note_by(&message, &self.node.raft, fault);
            return false;
        }
        if !self.doubt.admits(&message) {
            return false;
        }
        let doubtful = doubt::unmark(&mut message);
        match message.get_msg_type() {
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse
                if !message.reject =>
            {
                let raft = &self.node.raft;
                let counted = self
                    .votes
                    .take(message, doubtful, self.doubt.is_open(), raft);
                let mut stepped = false;
                for vote in counted {
                    stepped |= self.step_raft(vote);
                }
                stepped
            }
            MessageType::MsgHeartbeatResponse if message.term == self.node.raft.term => {
                self.in_doubt.note(message.term, message.from, doubtful);
                self.step_raft(message)
            }
            _ => self.step_raft(message),
        }
    }

    fn step_raft(&mut self, message: Message) -> bool {
        let stepped = self.node.step(message);
        // Before the doubt ends: a vote is of the log that it was given with.
        for answer in &mut self.node.raft.msgs {
            self.doubt.mark(answer);
        }
        self.update_doubt();
        self.draw_election_timeout();
        if let Err(error) = &stepped {
            tracing::debug!(%error, "raft did not take a message");
        }
        stepped.is_ok()
    }

    /// True now and then while this member leads and another one is in doubt, which a leader of a
    /// later term can end.
    pub fn wants_later_term(&mut self) -> bool {
        let raft = &self.node.raft;
        let (term, election_ticks) = (raft.term, raft.election_timeout());
        raft.state == StateRole::Leader
            && raft.commit_to_current_term()
            && self.in_doubt.wants_later_term(term, election_ticks)
    }

    /// # Errors
    /// This member's log has lost acknowledged entries. It must not continue.
    pub fn check_log(&self) -> Result<(), Lost> {
        self.refused.lost().map_or(Ok(()), Err)
    }

    /// True if a proposal would be accepted: this member leads and is not transferring leadership.
    pub fn takes_proposals(&self) -> bool {
        let raft = &self.node.raft;
        raft.state == StateRole::Leader && raft.lead_transferee.is_none()
    }

    /// Proposes a request; only a leader accepts one. Returns the term in which it was proposed.
    pub fn propose(&mut self, request: Vec<u8>) -> Result<u64, Error> {
        if !self.takes_proposals() {
            return Err(Error::NoLeader);
        }
        match self.node.propose(Vec::new(), request) {
            Ok(()) => Ok(self.node.raft.term),
            Err(raft::Error::ProposalDropped) => Err(Error::TooManyRequests),
            Err(_) => Err(Error::NoLeader),
        }
    }

    /// Proposes a change of membership; only a leader accepts one.
    pub fn propose_conf_change(&mut self, change: ConfChange) -> Result<(), Error> {
        if !self.takes_proposals() {
            return Err(Error::NoLeader);
        }
        if self.node.raft.has_pending_conf() {
            // raft-rs would replace it by an empty entry.
            return Err(Error::TooManyRequests);
        }
        self.node
            .propose_conf_change(Vec::new(), change)
            .map_err(|_| Error::TooManyRequests)
    }

    /// Enacts a committed change of membership.
    pub fn apply_conf_change(&mut self, change: &ConfChange) -> Result<(), raft::Error> {
        self.node.apply_conf_change(change).map(|_| ())
    }

    /// True if a read index request would not be dropped silently.
    pub fn takes_reads(&self) -> bool {
        let raft = &self.node.raft;
        match raft.state {
            StateRole::Leader => raft.commit_to_current_term(),
            _ => raft.leader_id != 0,
        }
    }

    /// Requests an index that covers all earlier writes; the response is a `ReadIndexed`, or never
    /// arrives. A context must not be used twice in a cluster.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.node.read_index(context);
    }

    /// Transfers leadership, if this member leads.
    pub fn transfer_leader(&mut self, to: MemberId) {
        self.node.transfer_leader(to.0);
    }

    /// True while leadership is being transferred.
    pub fn is_transferring(&self) -> bool {
        self.node.raft.lead_transferee.is_some()
    }

    pub fn report_unreachable(&mut self, member: MemberId) {
        self.node.report_unreachable(member.0);
    }

    pub fn report_snapshot(&mut self, member: MemberId, taken: bool) {
        let status = match taken {
            true => SnapshotStatus::Finish,
            false => SnapshotStatus::Failure,
        };
        self.node.report_snapshot(member.0, status);
    }

    /// The progress of all members, this one included; known to a leader.
    pub fn progress(&self) -> Vec<MemberProgress> {
        let raft = &self.node.raft;
        let conf = raft.prs().conf().to_conf_state();
        let progress = raft.prs().iter().map(|(id, progress)| MemberProgress {
            member: MemberId(*id),
            matched: progress.matched,
            voter: conf.voters.contains(id),
            active: progress.recent_active || *id == raft.id,
            in_snapshot: progress.state == ProgressState::Snapshot,
            in_doubt: self.in_doubt.has(raft.term, *id),
        });
        progress.collect()
    }

    /// True for a voter or learner of the configuration that is in force here.
    pub fn has_member(&self, member: MemberId) -> bool {
        self.node.raft.prs().get(member.0).is_some()
    }

    /// Sets or removes the raft snapshot message for members that lag too far behind.
    pub fn offer_snapshot(&mut self, snapshot: Option<Snapshot>) {
        self.node.mut_store().offer(snapshot);
    }

    /// True once after a member needed a raft snapshot message and there was none.
    pub fn take_snapshot_wanted(&mut self) -> bool {
        self.node.mut_store().take_wanted()
    }

    /// Index and term of a raft snapshot message that was stepped and is not in `output` yet.
    pub fn pending_snapshot(&self) -> Option<EntryId> {
        Some(entry_id_of(self.node.snap()?.get_metadata()))
    }

    /// The next output; `None` when there is nothing to do. To be called until then.
    pub fn output(&mut self) -> Option<Output> {
        if !self.node.has_ready() {
            return None;
        }
        self.update_doubt();
        let mut ready = self.node.ready();
        let entries = ready.take_entries();
        let (at_once, after_sync) = ready
            .take_persisted_messages()
            .into_iter()
            .partition(promises_nothing);
        let metadata = ready.snapshot().get_metadata();
        let reset = (metadata.index > 0).then(|| entry_id_of(metadata));
        let mut persist = Persist {
            number: ready.number(),
            reset,
            entries: entries.iter().map(to_disk).collect(),
            hard_state: None,
            binds: false,
            settles: false,
            messages: after_sync,
        };
        if ready.hs().is_some() {
            self.lazy_hard_state = true;
        }
        let mut messages = ready.take_messages();
        messages.extend::<Vec<Message>>(at_once);
        if self.node.raft.term > self.durable_term && self.node.raft.state == StateRole::Leader {
            // A sole voter becomes the leader before its term is durable. If a member learned of a
            // term that is lost in a crash, it could receive two entries for one index in it.
            // (There is no raft snapshot message among them: its receiver has responded in the term.)
            probe::reached(CoveragePoint::LeaderUnheard);
            persist.messages.append(&mut messages);
        }
        let mut output = Output {
            messages,
            committed: take_committed(ready.take_committed_entries()),
            reads: take_reads(&mut ready),
            persist: None,
        };
        if ready.must_sync() && self.lazy_hard_state {
            self.lazy_hard_state = false;
            let mut hard_state = self.node.raft.hard_state();
            if probe::injected(Defect::VoteForgotten) {
                hard_state.vote = 0;
            }
            let bound = (hard_state.term, hard_state.vote);
            persist.binds = std::mem::replace(&mut self.bound, bound) != bound;
            persist.hard_state = Some(prost_11::Message::encode_to_vec(&hard_state));
        }
        // Not alone: what ended the doubt is in this part or in an earlier one.
        persist.settles = !persist.is_empty() && self.doubt.take_ended();
        if let Some(entry_id) = reset {
            self.node.mut_store().reset(entry_id);
        }
        self.node.mut_store().append(&entries);
        self.node.advance_append_async(ready);
        // Without an earlier part to wait for, an empty part is durable at once.
        let waits_for_nothing = self.unpersisted.is_empty();
        self.unpersisted.push(&persist, self.node.raft.term);
        if !persist.is_empty() || !persist.messages.is_empty() {
            output.persist = Some(persist);
        } else if waits_for_nothing {
            self.persisted(persist.number);
        }
        Some(output)
    }

    /// Everything up to the part `number` is durable.
    pub fn persisted(&mut self, number: u64) {
        let mut until = number;
        while let Some(part) = self.unpersisted.pop(number) {
            until = until.max(part.number);
            let log = self.node.mut_store();
            if let Some(entry_id) = part.reset {
                log.reset_persisted(entry_id);
            }
            log.persisted(part.last_index);
            self.durable_term = part.term.unwrap_or(self.durable_term);
        }
        self.node.on_persist_ready(until);
    }

    /// Entries up to `index` are applied.
    pub fn applied(&mut self, index: u64) {
        self.node.advance_apply_to(index);
        self.node.mut_store().applied(index);
    }

    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        Status {
            term: raft.term,
            durable_term: self.durable_term,
            leader: raft.leader_id,
            is_leader: raft.state == StateRole::Leader,
            commit_index: raft.raft_log.committed,
            last_index: raft.raft_log.last_index(),
            in_doubt: self.doubt.is_open(),
        }
    }

    /// True if this member alone decides: committing needs no other member, and no other can have
    /// become the leader.
    pub fn is_sole_voter(&self) -> bool {
        let conf = self.node.raft.prs().conf().to_conf_state();
        conf.voters == [self.node.raft.id] && conf.voters_outgoing.is_empty()
    }

    /// True if there is no other member, not even a learner.
    pub fn is_single_member(&self) -> bool {
        self.is_sole_voter() && self.node.raft.prs().conf().learners().is_empty()
    }
}

/// A pseudorandom function of both.
fn scatter(seed: u64, number: u64) -> u64 {
    let mut mixed = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn is_snapshot(message: &Message) -> bool {
    message.msg_type == MessageType::MsgSnapshot as i32
}

fn entry_id_of(metadata: &SnapshotMetadata) -> EntryId {
    EntryId {
        index: metadata.index,
        term: metadata.term,
    }
}

/// A conf state with these members.
pub fn conf_state_of(
    voters: impl Iterator<Item = MemberId>,
    learners: impl Iterator<Item = MemberId>,
) -> ConfState {
    ConfState {
        voters: voters.map(|member| member.0).collect(),
        learners: learners.map(|member| member.0).collect(),
        ..Default::default()
    }
}

/// A hard state in which everything up to `commit` is committed, without a vote.
pub fn encode_hard_state(term: u64, commit: u64) -> Vec<u8> {
    encode_vote(term, 0, commit)
}

/// The same with a vote; 0 for none.
pub fn encode_vote(term: u64, vote: u64, commit: u64) -> Vec<u8> {
    prost_11::Message::encode_to_vec(&HardState { term, vote, commit })
}

/// The vote of a hard state; `None` if the bytes are invalid.
pub fn decode_vote(bytes: &[u8]) -> Option<u64> {
    let state: HardState = prost_11::Message::decode(bytes).ok()?;
    Some(state.vote)
}

/// Term and commit index of a hard state; `None` if the bytes are invalid.
pub fn decode_hard_state(bytes: &[u8]) -> Option<(u64, u64)> {
    let state: HardState = prost_11::Message::decode(bytes).ok()?;
    Some((state.term, state.commit))
}
