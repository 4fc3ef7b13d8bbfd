//! Raft's outputs as plain data, and how they are extracted from raft-rs's ready.

use bytes::Bytes;
use raft_proto::eraftpb::{ConfChange, Entry, EntryType, Message, MessageType};

use crate::storage::raft_log::{EntryId, LogEntry};

/// To be made durable in one step, in order.
#[derive(Debug, Default)]
pub struct Persist {
    /// To be passed back to `Replica::persisted`.
    pub number: u64,
    /// The last entry of a received state, which replaces the whole log first.
    pub reset: Option<EntryId>,
    pub entries: Vec<LogEntry>,
    pub hard_state: Option<Vec<u8>>,
    /// The hard state names another term or vote than the one before it. A log that lost its end
    /// must not pass for one without them: see `doubt`.
    pub binds: bool,
    /// The doubt about the log's end is over once this is durable.
    pub settles: bool,
    /// To be sent once this is durable.
    pub messages: Vec<Message>,
}

impl Persist {
    /// True if nothing needs the disk.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.hard_state.is_none() && self.reset.is_none()
    }
}

/// No write that was answered before `context` was passed in is after `index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadIndexed {
    pub context: Vec<u8>,
    pub index: u64,
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
    /// The first entry of a leader.
    Empty,
    Request(Bytes),
    ConfChange(ConfChange),
}

/// What has to be done next.
#[derive(Debug, Default)]
pub struct Output {
    pub persist: Option<Persist>,
    pub messages: Vec<Message>,
    pub committed: Vec<Committed>,
    pub reads: Vec<ReadIndexed>,
}

/// True for a follower's messages that claim nothing about its log or vote: they need not wait for
/// a slow disk.
pub fn promises_nothing(message: &Message) -> bool {
    matches!(
        message.get_msg_type(),
        MessageType::MsgHeartbeatResponse | MessageType::MsgReadIndex
    )
}

pub fn take_reads(ready: &mut raft::Ready) -> Vec<ReadIndexed> {
    let states = ready.take_read_states().into_iter();
    states
        .map(|state| ReadIndexed {
            context: state.request_ctx,
            index: state.index,
        })
        .collect()
}

/// A log entry as a committed one; `None` if it cannot be decoded.
pub fn committed(logged: &LogEntry) -> Option<Committed> {
    let entry = super::log::from_disk(logged)?;
    take_committed(vec![entry]).pop()
}

pub fn take_committed(entries: Vec<Entry>) -> Vec<Committed> {
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
        // Only changes that this program encoded get here, so decoding them does not fail.
        _ => match prost_11::Message::decode(entry.data.as_slice()) {
            Ok(change) => CommittedKind::ConfChange(change),
            Err(_) => CommittedKind::Empty,
        },
    }
}
