//! One member's part in raft: inputs go in, outputs come out, nothing else happens.
//!
//! raft-rs's asynchronous ready is used throughout: what is to be made durable is handed out,
//! and raft goes on; the caller says later how far the disk has come. Entries commit only when
//! a quorum, this member included where it counts, has said so.

use bytes::Bytes;
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};
use raft_proto::eraftpb::{
    ConfChange, ConfState, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
};

use super::admit::{self, Lost, Malformed, Refused};
use super::doubt::{Doubt, Shown};
use super::drain::TracingDrain;
use super::log::{LogView, to_disk};
use super::output::{Output, Persist, promises_nothing, take_committed, take_reads};
use super::unpersisted::Unpersisted;
use crate::error::Error;
use crate::probe::{self, CoveragePoint, Defect};
use crate::storage::raft_log::{EntryId, Reader};
use crate::types::MemberId;

/// Bytes of committed entries handed out at once: bounds the memory of a replay.
const MAX_COMMITTED_BYTES: u64 = 8 << 20;
/// Bytes of proposals that may wait for a quorum.
const MAX_UNCOMMITTED_BYTES: u64 = 256 << 20;
const MAX_MESSAGE_BYTES: u64 = 1 << 20;
const MAX_INFLIGHT_MESSAGES: usize = 256;

/// How a replica behaves; counts are in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub member: MemberId,
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    pub pre_vote: bool,
    /// Election timeouts follow from this, the member and the term, and from nothing else.
    pub election_seed: u64,
    /// Applied entries kept in memory for followers that lag, `log::RECENT_ENTRIES` in a server.
    pub recent_entries: usize,
}

/// What the log and the state machine held when the member stopped.
pub struct Restored {
    pub reader: Reader,
    /// raft's hard state as it was last made durable.
    pub hard_state: Option<Bytes>,
    pub conf_state: ConfState,
    pub applied_index: u64,
}

/// Where this member stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub term: u64,
    /// The term on disk, which is what this member may speak in.
    pub durable_term: u64,
    /// 0: none.
    pub leader: u64,
    pub is_leader: bool,
    pub commit_index: u64,
    pub last_index: u64,
}

/// How far a leader knows another member to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub member: MemberId,
    pub matched: u64,
    pub voter: bool,
    /// It answered within the last election timeout.
    pub active: bool,
    /// It is being sent a snapshot.
    pub in_snapshot: bool,
}

/// A raft member.
pub struct Replica {
    node: RawNode<LogView>,
    unpersisted: Unpersisted,
    /// A hard state whose only news is a commit index: goes with the next write.
    lazy_hard_state: bool,
    election_seed: u64,
    /// The term on disk.
    durable_term: u64,
    refused: Refused,
    doubt: Doubt,
}

impl Replica {
    /// Takes up the member where it stopped.
    pub fn new(options: Options, restored: Restored) -> Result<Self, raft::Error> {
        let mut hard_state = match &restored.hard_state {
            Some(bytes) => prost_11::Message::decode(bytes.as_ref())
                .map_err(|error| raft::Error::ConfigInvalid(format!("hard state: {error}")))?,
            None => HardState::default(),
        };
        // The commit index on disk may lag; whatever was applied was committed.
        hard_state.commit = hard_state.commit.max(restored.applied_index);
        let hard_state_term = hard_state.term;
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
            durable_term: hard_state_term,
            refused: Refused::default(),
            doubt: Doubt::default(),
        };
        replica.draw_election_timeout();
        Ok(replica)
    }

    /// The log was cut at the start: this member does not vote before a leader has shown that it
    /// lacks nothing.
    pub fn doubt_log(&mut self) {
        if !self.is_sole_voter() {
            self.doubt.begin();
        }
    }

    pub fn tick(&mut self) {
        // raft-rs expects a sole voter's log to be on disk before it elects itself.
        let elects_itself = self.is_sole_voter() && self.node.raft.state != StateRole::Leader;
        if elects_itself && !self.unpersisted.is_empty() {
            return;
        }
        let sole_voter = self.is_sole_voter();
        let election_ticks = self.node.raft.election_timeout();
        if self.doubt.waits(election_ticks, sole_voter) {
            // Then a random part of the timeout is left, as after any leader's silence.
            let raft = &mut self.node.raft;
            raft.election_elapsed = election_ticks.min(raft.election_elapsed + 1);
            return;
        }
        if admit::lacks_state(&self.node.raft) {
            // As long without a leader as it is, so that it votes for others; but it does not
            // stand itself.
            self.node.raft.election_elapsed += 1;
            return;
        }
        self.node.tick();
        self.draw_election_timeout();
    }

    /// Puts a timeout of ours in the place of the one that raft-rs draws, from a generator of its
    /// own, whenever it starts to wait anew.
    fn draw_election_timeout(&mut self) {
        let raft = &mut self.node.raft;
        let shortest = raft.election_timeout();
        let drawn = scatter(self.election_seed ^ raft.id.rotate_left(32), raft.term);
        raft.set_randomized_election_timeout(shortest + (drawn % shortest as u64) as usize);
    }

    /// Takes the leader for dead, as if it had been silent for an election timeout. The random
    /// part of the timeout, which keeps members from standing all at once, is still waited for,
    /// and before an election the others are asked whether they miss the leader too.
    pub fn give_up_leader(&mut self) {
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Follower {
            raft.election_elapsed = raft.election_elapsed.max(raft.election_timeout());
        }
    }

    /// Has a leader send heartbeats now.
    pub fn ping(&mut self) {
        self.node.raft.ping();
    }

    /// Stands for election now, unless the state of a snapshot is still on its way, or the end of
    /// the log in doubt.
    pub fn campaign(&mut self) -> Result<(), raft::Error> {
        if admit::lacks_state(&self.node.raft) || self.doubt.is_open() {
            return Ok(());
        }
        let result = self.node.campaign();
        self.draw_election_timeout();
        result
    }

    /// Takes a message of another member; false where it changed nothing.
    pub fn step(&mut self, message: Message) -> bool {
        if is_snapshot(&message) {
            // Without its files it would empty the log of a state that is not there.
            self.refused.note(&message, Malformed::Snapshot);
            return false;
        }
        self.step_any(message)
    }

    /// Takes a snapshot's message, whose files are here. False where raft does not want it.
    pub fn restore(&mut self, message: Message) -> bool {
        if !is_snapshot(&message) {
            self.refused.note(&message, Malformed::Snapshot);
            return false;
        }
        let entry_id = entry_id_of(message.get_snapshot().get_metadata());
        self.step_any(message) && self.pending_snapshot() == Some(entry_id)
    }

    /// Takes the message of a snapshot whose state is here; there are no files to go with it.
    pub fn decline(&mut self, message: Message) {
        let index = message.get_snapshot().get_metadata().index;
        if is_snapshot(&message) && index <= self.node.raft.raft_log.committed {
            self.step_any(message);
        }
    }

    fn step_any(&mut self, message: Message) -> bool {
        if let Err(fault) = admit::check(&message, &self.node.raft) {
            self.refused.note(&message, fault);
            return false;
        }
        if !self.doubt.admits(&message) {
            return false;
        }
        let shown = Shown::of(&message);
        let stepped = self.node.step(message);
        self.doubt.stepped(&shown, &self.node.raft);
        self.draw_election_timeout();
        if let Err(error) = &stepped {
            tracing::debug!(%error, "raft did not take a message");
        }
        stepped.is_ok()
    }

    /// # Errors
    /// This member's log has lost what it had acknowledged. It must not go on.
    pub fn check_log(&self) -> Result<(), Lost> {
        self.refused.lost().map_or(Ok(()), Err)
    }

    /// True where a proposal would be taken: this member leads and does not hand over.
    pub fn takes_proposals(&self) -> bool {
        let raft = &self.node.raft;
        raft.state == StateRole::Leader && raft.lead_transferee.is_none()
    }

    /// Proposes a request; only a leader takes one. Returns the term it was proposed in.
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

    /// Proposes a change of membership; only a leader takes one.
    pub fn propose_conf_change(&mut self, change: ConfChange) -> Result<(), Error> {
        if !self.takes_proposals() {
            return Err(Error::NoLeader);
        }
        if self.node.raft.has_pending_conf() {
            // raft-rs would put an empty entry in its place.
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

    /// True where a read index would be asked for and not silently dropped.
    pub fn takes_reads(&self) -> bool {
        let raft = &self.node.raft;
        match raft.state {
            StateRole::Leader => raft.commit_to_current_term(),
            _ => raft.leader_id != 0,
        }
    }

    /// Asks for an index that no earlier write lies behind; the answer comes as `ReadIndexed`,
    /// or never. A context must not be used twice in a cluster.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.node.read_index(context);
    }

    /// Hands leadership over, if this member leads.
    pub fn transfer_leader(&mut self, to: MemberId) {
        self.node.transfer_leader(to.0);
    }

    /// The leader hands over just now.
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

    /// How far the members are, this one included; known to a leader.
    pub fn progress(&self) -> Vec<Progress> {
        let raft = &self.node.raft;
        let conf = raft.prs().conf().to_conf_state();
        let progress = raft.prs().iter().map(|(id, progress)| Progress {
            member: MemberId(*id),
            matched: progress.matched,
            voter: conf.voters.contains(id),
            active: progress.recent_active || *id == raft.id,
            in_snapshot: progress.state == ProgressState::Snapshot,
        });
        progress.collect()
    }

    /// Sets or takes back the snapshot that members which are too far behind are sent.
    pub fn offer_snapshot(&mut self, snapshot: Option<Snapshot>) {
        self.node.mut_store().offer(snapshot);
    }

    /// True once after a member needed a snapshot and there was none.
    pub fn take_snapshot_wanted(&mut self) -> bool {
        self.node.mut_store().take_wanted()
    }

    /// Index and term of a snapshot that was stepped in and is not in `output` yet.
    pub fn pending_snapshot(&self) -> Option<EntryId> {
        Some(entry_id_of(self.node.snap()?.get_metadata()))
    }

    /// The next thing to do; `None` when there is nothing. Must be called again until then.
    pub fn output(&mut self) -> Option<Output> {
        if !self.node.has_ready() {
            return None;
        }
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
            messages: after_sync,
        };
        if ready.hs().is_some() {
            self.lazy_hard_state = true;
        }
        let mut messages = ready.take_messages();
        messages.extend::<Vec<Message>>(at_once);
        if self.node.raft.term > self.durable_term && self.node.raft.state == StateRole::Leader {
            // A sole voter leads before its term is on disk. Whoever hears of a term that is
            // forgotten again could get two entries for one place in it. (No snapshot is among
            // them: its receiver has answered in the term.)
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
            persist.hard_state = Some(prost_11::Message::encode_to_vec(&hard_state));
        }
        if let Some(entry_id) = reset {
            self.node.mut_store().reset(entry_id);
        }
        self.node.mut_store().append(&entries);
        self.node.advance_append_async(ready);
        // With nothing before it that has to come first, what is empty is as good as on disk.
        let waits_for_nothing = self.unpersisted.is_empty();
        self.unpersisted.push(&persist, self.node.raft.term);
        if !persist.is_empty() || !persist.messages.is_empty() {
            output.persist = Some(persist);
        } else if waits_for_nothing {
            self.persisted(persist.number);
        }
        Some(output)
    }

    /// Everything up to the persist `number` is on disk.
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
        }
    }

    /// True where this member alone decides: no round over the network is needed to commit, and
    /// no other member can have become leader.
    pub fn is_sole_voter(&self) -> bool {
        let conf = self.node.raft.prs().conf().to_conf_state();
        conf.voters == [self.node.raft.id] && conf.voters_outgoing.is_empty()
    }

    /// True where there is no other member, not even a learner.
    pub fn is_single_member(&self) -> bool {
        self.is_sole_voter() && self.node.raft.prs().conf().learners().is_empty()
    }
}

/// A number that follows from both, and looks like chance.
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

/// A conf state of these members.
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

/// A hard state in which everything up to `commit` is committed and nobody was voted for.
pub fn encode_hard_state(term: u64, commit: u64) -> Vec<u8> {
    prost_11::Message::encode_to_vec(&HardState {
        term,
        commit,
        ..Default::default()
    })
}

/// Term and commit index of a hard state; `None` where the bytes are none.
pub fn decode_hard_state(bytes: &[u8]) -> Option<(u64, u64)> {
    let state: HardState = prost_11::Message::decode(bytes).ok()?;
    Some((state.term, state.commit))
}
