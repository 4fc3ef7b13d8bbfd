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

/// Reads that wait until an index is applied here.
#[derive(Default)]
pub struct WaitingReads {
    waiting: Mutex<ReadsByIndex>,
}

#[derive(Default)]
struct ReadsByIndex {
    by_index: BTreeMap<u64, Vec<ReadReply>>,
    count: usize,
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

    /// The number of waiting reads.
    #[cfg(any(test, feature = "simulation"))]
    pub fn count(&self) -> usize {
        self.waiting.lock().count
    }

    /// Entries up to `index` are applied, and the view shows them.
    pub fn applied(&self, index: u64) {
        let ready = {
            let mut waiting = self.waiting.lock();
            match waiting.by_index.first_key_value() {
                Some((first, _)) if *first <= index => {}
                _ => return,
            }
            let behind = index + u64::from(!probe::injected(Defect::ReadWakesLate));
            let later = waiting.by_index.split_off(&behind);
            let ready = std::mem::replace(&mut waiting.by_index, later);
            waiting.count -= ready.values().map(Vec::len).sum::<usize>();
            ready
        };
        for reply in ready.into_values().flatten() {
            reply(Ok(()));
        }
    }
}
