//! Consensus: raft-rs, driven as a pure state machine.
//!
//! `replica` takes inputs (proposals, messages, ticks, "this is on disk now") and returns
//! outputs (what to make durable, what to send, what is committed); it never touches a disk, a
//! socket or a clock. `log` is what raft-rs reads of the raft log: recent entries in memory,
//! older ones from the segment files. `unpersisted` knows what is handed out and not on disk yet.
//! `read_index` gathers linearizable reads into rounds. `admit` keeps from raft what no member
//! that works would send. `doubt` withholds the vote of a member whose log was cut at its start.

pub mod admit;
mod doubt;
mod drain;
pub mod log;
pub mod output;
pub mod read_index;
pub mod replica;
#[cfg(test)]
pub(crate) mod tests;
mod unpersisted;

pub use admit::{Lost, Malformed};
pub use output::{Committed, CommittedKind, Persist};
pub use raft_proto::eraftpb::{
    ConfChange, ConfChangeType, Message, MessageType, Snapshot, SnapshotMetadata,
};
pub use replica::Replica;
