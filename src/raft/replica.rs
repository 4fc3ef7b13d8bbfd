//! One member's part in raft: inputs go in, outputs come out, nothing else happens.
//!
//! raft-rs's asynchronous ready is used throughout: what is to be made durable is handed out,
//! and raft goes on; the caller says later how far the disk has come. Entries commit only when
//! a quorum, this member included where it counts, has said so.

use std::fmt::Write as _;

use bytes::Bytes;
use raft::{RawNode, StateRole};
use raft_proto::eraftpb::{ConfChange, ConfState, Entry, EntryType, HardState, Message};

use super::log::{LogView, to_disk};
use crate::error::Error;
use crate::storage::raft_log::{LogEntry, Reader};
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
}

/// What the log and the state machine held when the member stopped.
pub struct Restored {
    pub reader: Reader,
    /// raft's hard state as it was last made durable.
    pub hard_state: Option<Bytes>,
    pub conf_state: ConfState,
    pub applied_index: u64,
}

/// To be made durable, in order, in one step.
#[derive(Debug, Default)]
pub struct Persist {
    /// To be given back to `Replica::persisted`.
    pub number: u64,
    pub entries: Vec<LogEntry>,
    pub hard_state: Option<Vec<u8>>,
    /// To be sent once this is durable.
    pub messages: Vec<Message>,
}

impl Persist {
    /// True where nothing needs the disk.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.hard_state.is_none()
    }
}

/// An entry that a quorum holds.
#[derive(Debug)]
pub struct Committed {
    pub index: u64,
    pub term: u64,
    pub kind: CommittedKind,
}

#[derive(Debug)]
pub enum CommittedKind {
    /// A leader's first entry.
    Empty,
    Request(Bytes),
    ConfChange(ConfChange),
}

/// What has to be done now.
#[derive(Debug, Default)]
pub struct Output {
    pub persist: Option<Persist>,
    pub messages: Vec<Message>,
    pub committed: Vec<Committed>,
}

/// Where this member stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub term: u64,
    /// 0: none.
    pub leader: u64,
    pub is_leader: bool,
    pub commit_index: u64,
    pub last_index: u64,
}

/// A raft member.
pub struct Replica {
    node: RawNode<LogView>,
    /// The part of a ready that is not on disk yet: number and last index.
    unpersisted: std::collections::VecDeque<(u64, u64)>,
    /// A hard state whose only news is a commit index: goes with the next write.
    lazy_hard_state: bool,
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
        let log = LogView::new(restored.reader, hard_state, restored.conf_state);
        let logger = slog::Logger::root(TracingDrain, slog::o!());
        Ok(Self {
            node: RawNode::new(&config, log, &logger)?,
            unpersisted: Default::default(),
            lazy_hard_state: false,
        })
    }

    pub fn tick(&mut self) {
        self.node.tick();
    }

    /// Stands for election now.
    pub fn campaign(&mut self) -> Result<(), raft::Error> {
        self.node.campaign()
    }

    pub fn step(&mut self, message: Message) -> Result<(), raft::Error> {
        self.node.step(message)
    }

    /// Proposes a request; only a leader takes one. Returns the term it was proposed in.
    pub fn propose(&mut self, request: Vec<u8>) -> Result<u64, Error> {
        if self.node.raft.state != StateRole::Leader {
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
        if self.node.raft.state != StateRole::Leader {
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

    /// Enacts a committed change of membership and returns the new conf state, encoded.
    pub fn apply_conf_change(&mut self, change: &ConfChange) -> Result<Vec<u8>, raft::Error> {
        let state = self.node.apply_conf_change(change)?;
        Ok(encode_conf_state(&state))
    }

    /// The next thing to do; `None` when there is nothing. Must be called again until then.
    pub fn output(&mut self) -> Option<Output> {
        if !self.node.has_ready() {
            return None;
        }
        let mut ready = self.node.ready();
        let entries = ready.take_entries();
        let mut persist = Persist {
            number: ready.number(),
            entries: entries.iter().map(to_disk).collect(),
            hard_state: None,
            messages: ready.take_persisted_messages(),
        };
        if ready.hs().is_some() {
            self.lazy_hard_state = true;
        }
        let mut output = Output {
            messages: ready.take_messages(),
            committed: take_committed(ready.take_committed_entries()),
            persist: None,
        };
        if ready.must_sync() && self.lazy_hard_state {
            self.lazy_hard_state = false;
            let hard_state = self.node.raft.hard_state();
            persist.hard_state = Some(prost_11::Message::encode_to_vec(&hard_state));
        }
        self.node.mut_store().append(&entries);
        self.node.advance_append_async(ready);
        let last = entries.last().map_or(0, |entry| entry.index);
        self.unpersisted.push_back((persist.number, last));
        if persist.is_empty() && persist.messages.is_empty() && self.unpersisted.len() == 1 {
            // Nothing for the disk, and nothing before it that has to come first.
            self.persisted(persist.number);
        } else {
            output.persist = Some(persist);
        }
        Some(output)
    }

    /// Everything up to the persist `number` is on disk.
    pub fn persisted(&mut self, number: u64) {
        while let Some((first, last_index)) = self.unpersisted.front().copied() {
            if first > number {
                break;
            }
            self.unpersisted.pop_front();
            self.node.mut_store().persisted(last_index);
        }
        self.node.on_persist_ready(number);
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
}

/// A conf state in which `voters` decide.
pub fn conf_state_of(voters: &[MemberId]) -> ConfState {
    ConfState {
        voters: voters.iter().map(|member| member.0).collect(),
        ..Default::default()
    }
}

pub fn encode_conf_state(state: &ConfState) -> Vec<u8> {
    prost_11::Message::encode_to_vec(state)
}

/// `None` where the bytes are no conf state.
pub fn decode_conf_state(bytes: &[u8]) -> Option<ConfState> {
    prost_11::Message::decode(bytes).ok()
}

fn take_committed(entries: Vec<Entry>) -> Vec<Committed> {
    entries
        .into_iter()
        .map(|entry| Committed {
            index: entry.index,
            term: entry.term,
            kind: committed_kind(entry),
        })
        .collect()
}

fn committed_kind(entry: Entry) -> CommittedKind {
    match EntryType::from_i32(entry.entry_type) {
        Some(EntryType::EntryNormal) if entry.data.is_empty() => CommittedKind::Empty,
        Some(EntryType::EntryNormal) => CommittedKind::Request(entry.data.into()),
        // Only changes that this program encoded get here; one that cannot be read is none.
        _ => match prost_11::Message::decode(entry.data.as_slice()) {
            Ok(change) => CommittedKind::ConfChange(change),
            Err(_) => CommittedKind::Empty,
        },
    }
}

/// raft-rs logs through slog; its lines go to the same place as ours.
struct TracingDrain;

impl slog::Drain for TracingDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(
        &self,
        record: &slog::Record<'_>,
        values: &slog::OwnedKVList,
    ) -> Result<(), slog::Never> {
        let mut text = Fields(record.msg().to_string());
        // Writing to a string cannot fail.
        let _ = slog::KV::serialize(&record.kv(), record, &mut text);
        let _ = slog::KV::serialize(values, record, &mut text);
        let text = text.0;
        match record.level() {
            slog::Level::Critical | slog::Level::Error => {
                tracing::error!(logger = "raft", "{text}")
            }
            slog::Level::Warning => tracing::warn!(logger = "raft", "{text}"),
            slog::Level::Info => tracing::info!(logger = "raft", "{text}"),
            slog::Level::Debug | slog::Level::Trace => tracing::trace!(logger = "raft", "{text}"),
        }
        Ok(())
    }
}

struct Fields(String);

impl slog::Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        let _ = write!(self.0, " {key}={value}");
        Ok(())
    }
}
