//! Linearizable reads after the quorum's confirmation: they wait until the confirmed index is
//! applied here. The steps before are in `raft::read_index`.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::raft_status::RaftStatus;
use crate::error::Error;
use crate::probe::{self, CoveragePoint, Defect};

/// Called once the read may be executed, or with an error.
pub type ReadReply = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Reads that may wait at once.
const MAX_WAITING: usize = 100_000;
/// And others, for indexes that clients name.
const MAX_NAMED: usize = 16_384;

/// Reads that wait until an index is applied here.
#[derive(Default)]
pub struct WaitingReads {
    waiting: Mutex<ReadsByIndex>,
}

#[derive(Default)]
struct ReadsByIndex {
    by_index: BTreeMap<u64, Vec<ReadReply>>,
    count: usize,
    /// By index and number.
    named: BTreeMap<(u64, u64), ReadReply>,
    last_number: u64,
}

/// One of those that wait; given up when it is dropped.
pub struct WaitingRead<'a> {
    reads: &'a WaitingReads,
    at: (u64, u64),
}

impl Drop for WaitingRead<'_> {
    fn drop(&mut self) {
        self.reads.waiting.lock().named.remove(&self.at);
    }
}

impl WaitingReads {
    /// Replies once `index` is applied, possibly at once.
    pub fn wait(&self, index: u64, replies: Vec<ReadReply>, raft: &RaftStatus) {
        let result = {
            let mut waiting = self.waiting.lock();
            // Checked under the lock, so that `applied` does not miss them.
            if raft.applied_index() >= index || probe::injected(Defect::ReadBeforeApplied) {
                Ok(())
            } else if waiting.count >= MAX_WAITING {
                Err(Error::TooManyRequests)
            } else {
                probe::reached(CoveragePoint::ReadWaited);
                waiting.count += replies.len();
                waiting.by_index.entry(index).or_default().extend(replies);
                return;
            }
        };
        for reply in replies {
            reply(result);
        }
    }

    /// Waits for an index that nobody has confirmed, which may never come: for as long as the place
    /// is kept. None, without a reply, where it is applied, or too many wait.
    pub fn wait_for(
        &self,
        index: u64,
        reply: ReadReply,
        raft: &RaftStatus,
    ) -> Option<WaitingRead<'_>> {
        let mut waiting = self.waiting.lock();
        if raft.applied_index() >= index || waiting.named.len() >= MAX_NAMED {
            return None;
        }
        waiting.last_number += 1;
        let at = (index, waiting.last_number);
        waiting.named.insert(at, reply);
        Some(WaitingRead { reads: self, at })
    }

    /// The number of waiting reads.
    #[cfg(any(test, feature = "simulation"))]
    pub fn count(&self) -> usize {
        let waiting = self.waiting.lock();
        waiting.count + waiting.named.len()
    }

    /// Entries up to `index` are applied, and the view shows them.
    pub fn applied(&self, index: u64) {
        let ready = {
            let mut waiting = self.waiting.lock();
            let first_read = waiting.by_index.first_key_value().map(|(first, _)| *first);
            let first_named = waiting.named.first_key_value().map(|(at, _)| at.0);
            if first_read
                .into_iter()
                .chain(first_named)
                .all(|first| first > index)
            {
                return;
            }
            let later = waiting.named.split_off(&(index.saturating_add(1), 0));
            let named = std::mem::replace(&mut waiting.named, later);
            let behind = index + u64::from(!probe::injected(Defect::ReadWakesLate));
            let later = waiting.by_index.split_off(&behind);
            let ready = std::mem::replace(&mut waiting.by_index, later);
            waiting.count -= ready.values().map(Vec::len).sum::<usize>();
            ready.into_values().flatten().chain(named.into_values())
        };
        for reply in ready {
            reply(Ok(()));
        }
    }
}
