//! What the router hands out to be done, and how much waits in it: plain data between the router and
//! the threads that work for it.

use super::proposal::{ProposalRefusal, Reply};
use super::reads::ReadReply;
use crate::proto::etchedpeer::Forwarded;
use crate::raft::{Message, Persist};
use crate::state::machine::Entry;
use crate::types::MemberId;

/// What has to be done now, in this order.
#[derive(Default)]
pub struct Work {
    pub messages: Vec<Message>,
    pub forwards: Vec<(MemberId, Forwarded)>,
    pub refusals: Vec<ProposalRefusal>,
    pub persist: Option<Persist>,
    pub entries: Vec<Entry>,
    /// Of each entry, whoever waits for it here.
    pub replies: Vec<Option<Reply>>,
    /// The entries hold the first one of the term in which this member leads.
    pub promoted_in_term: Option<u64>,
    /// Reads that may be made once the index is applied here.
    pub reads: Vec<(u64, Vec<ReadReply>)>,
    /// A member needs a snapshot, and there is none of use.
    pub snapshot_wanted: bool,
}

/// How many wait for what.
#[cfg(any(test, feature = "simulation"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingCounts {
    /// For entries that this member proposed.
    pub proposed: usize,
    /// For entries that the leader was asked to propose.
    pub forwarded: usize,
    pub without_leader: usize,
    /// Changes of membership, for the one before.
    pub changes: usize,
    /// For a quorum.
    pub reads: usize,
}

#[cfg(any(test, feature = "simulation"))]
impl PendingCounts {
    pub fn sum(&self) -> usize {
        self.proposed + self.forwarded + self.without_leader + self.changes + self.reads
    }
}

/// What raft has to know of a group of applied entries.
#[derive(Debug)]
pub struct AppliedGroup {
    /// Of the last entry.
    pub index: u64,
    /// Indexes of the changes of membership that were made.
    pub member_changes: Vec<u64>,
}
