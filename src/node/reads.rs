//! Linearizable reads on their way: those that ask a quorum, and those that wait until what the
//! quorum answered is applied here.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::shared::RaftState;
use crate::error::Error;
use crate::raft::Replica;
use crate::raft::read_index::ReadIndex;
use crate::types::MemberId;

/// Called once when a read may be made, or why not.
pub type ReadReply = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Reads that ask a quorum.
pub struct Reads {
    index: ReadIndex<ReadReply>,
}

impl Reads {
    pub fn new(member: MemberId, first_question: u64, limit_ticks: u64) -> Self {
        Self {
            index: ReadIndex::new(member, first_question, limit_ticks),
        }
    }

    pub fn push(&mut self, reply: ReadReply, tick: u64) {
        self.index.push(reply, tick);
    }

    /// Has raft ask, where there is something to ask and someone to answer.
    pub fn ask(&mut self, replica: &mut Replica, tick: u64) {
        if self.index.is_empty() || !replica.takes_reads() {
            return;
        }
        if let Some(context) = self.index.ask(tick, replica.status().term) {
            replica.read_index(context);
        }
    }

    pub fn answered(&mut self, context: &[u8]) -> Vec<ReadReply> {
        self.index.answered(context)
    }

    pub fn expired(&mut self, tick: u64) -> Vec<ReadReply> {
        self.index.expired(tick)
    }

    pub fn drain(&mut self) -> Vec<ReadReply> {
        self.index.drain()
    }
}

/// Reads that wait until an index is applied here.
#[derive(Default)]
pub struct WaitingReads {
    by_index: Mutex<BTreeMap<u64, Vec<ReadReply>>>,
}

impl WaitingReads {
    /// Replies once `index` is applied, which may be now.
    pub fn wait(&self, index: u64, replies: Vec<ReadReply>, raft: &RaftState) {
        {
            let mut by_index = self.by_index.lock();
            // Looked at under the lock, so that `applied` does not miss them.
            if raft.applied_index() < index {
                by_index.entry(index).or_default().extend(replies);
                return;
            }
        }
        for reply in replies {
            reply(Ok(()));
        }
    }

    /// Entries up to `index` are applied, and the view shows them.
    pub fn applied(&self, index: u64) {
        let ready = {
            let mut by_index = self.by_index.lock();
            match by_index.first_key_value() {
                Some((first, _)) if *first <= index => {}
                _ => return,
            }
            let later = by_index.split_off(&(index + 1));
            std::mem::replace(&mut *by_index, later)
        };
        for reply in ready.into_values().flatten() {
            reply(Ok(()));
        }
    }
}
