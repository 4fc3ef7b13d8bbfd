//! The router's outputs, and counts of what waits in it: plain data between the router and the
//! threads that work for it.

use tracing::Span;

use super::proposal::{ProposalRefusal, Reply};
use super::reads::ReadReply;
use crate::proto::etchedpeer::Forwarded;
use crate::raft::{Message, Persist};
use crate::state::machine::Entry;
use crate::types::MemberId;

/// What has to be done next, in this order.
#[derive(Default)]
pub struct Work {
    pub messages: Vec<Message>,
    pub forwards: Vec<(MemberId, Forwarded)>,
    pub refusals: Vec<ProposalRefusal>,
    pub persist: Option<Persist>,
    /// The spans of those proposals among its entries that are in a trace.
    pub logged_in: Vec<Span>,
    pub entries: Vec<Entry>,
    /// By entry: the reply of a proposal that waits here.
    pub replies: Vec<Option<Reply>>,
    /// The spans of those proposals among the entries that are in a trace.
    pub applied_in: Vec<Span>,
    /// True if the entries contain the first one of this member's term as leader.
    pub promoted_in_term: Option<u64>,
    /// Reads that may be executed once the index is applied here.
    pub reads: Vec<(u64, Vec<ReadReply>)>,
    /// A member needs a raft snapshot message, and there is no checkpoint that is recent enough.
    pub snapshot_wanted: bool,
}

/// The number of waiting requests, by kind.
#[cfg(any(test, feature = "simulation"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingCounts {
    /// Proposed by this member.
    pub proposed: usize,
    /// Forwarded to the leader.
    pub forwarded: usize,
    pub without_leader: usize,
    /// Changes of membership, which wait for the previous one.
    pub changes: usize,
    /// Waiting for a quorum.
    pub reads: usize,
}

#[cfg(any(test, feature = "simulation"))]
impl PendingCounts {
    pub fn sum(&self) -> usize {
        self.proposed + self.forwarded + self.without_leader + self.changes + self.reads
    }
}

/// A group of applied entries, reported to raft.
#[derive(Debug)]
pub struct AppliedGroup {
    /// Of the last entry.
    pub index: u64,
    /// Indexes of the membership changes that were accepted.
    pub member_changes: Vec<u64>,
}
