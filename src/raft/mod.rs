//! Consensus: raft-rs, driven as a pure state machine.
//!
//! `replica` takes inputs (proposals, messages, ticks, "this is durable now") and returns outputs
//! (what to make durable, what to send, what is committed); it never touches a disk, a socket or a
//! clock. `log` is the raft log as raft-rs reads it: recent entries in memory, older ones in the
//! segment files. `unpersisted` tracks what was handed out and is not durable yet. `read_index`
//! groups linearizable reads into rounds. `admit` rejects messages that no correct member sends.
//! `doubt` says how a member takes part in elections whose log may have lost its end, and `votes`
//! counts such votes.

pub mod admit;
pub mod doubt;
mod drain;
pub mod log;
pub mod output;
pub mod read_index;
pub mod replica;
#[cfg(test)]
pub(crate) mod tests;
mod unpersisted;
mod votes;

pub use admit::{Lost, Malformed};
pub use output::{Committed, CommittedKind, Persist};
pub use raft_proto::eraftpb::{
    ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata,
};
pub use replica::Replica;
