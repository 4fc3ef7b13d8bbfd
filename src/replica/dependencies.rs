//! What a member gets from its process or from the simulator: clocks, random numbers, executors, the
//! network, and its timing.

use std::sync::Arc;
use std::time::Duration;

use super::auth_observer::AuthObserver;
use crate::env::{Clock, Executor, Rng};
use crate::metrics::Metrics;
use crate::transport::Network;
use crate::watch;

/// See the module.
pub struct Dependencies {
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub executor: Arc<dyn Executor>,
    pub network: Arc<dyn Network>,
    /// The tokens of this member.
    pub tokens: Arc<dyn AuthObserver>,
    pub metrics: Arc<Metrics>,
    pub timing: Timing,
    pub watch_limits: watch::Limits,
    /// What may wait for the raft thread.
    pub inbox_bytes: usize,
}

/// How raft's time passes, how much of its log is kept, and what counts as slow.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub tick: Duration,
    pub election_timeout: Duration,
    /// The first election after a start does not wait for all of an election timeout.
    pub initial_election_tick_advance: bool,
    /// Entries kept behind the newest for members that lag.
    pub catch_up_entries: u64,
    /// Appends of a leader are refused while this much waits for the disk or to be applied.
    pub max_outstanding_bytes: usize,
    /// An apply that takes longer is logged.
    pub warning_apply_duration: Duration,
    /// What the answer to one write may hold.
    pub answer_limit_bytes: usize,
}

impl Timing {
    /// How many ticks a request may take.
    pub fn request_ticks(&self) -> u64 {
        let limit = request_timeout(self.election_timeout);
        (limit.as_millis() / self.tick.as_millis().max(1)) as u64
    }
}

/// How long a request may take; etcd's rule.
pub fn request_timeout(election_timeout: Duration) -> Duration {
    Duration::from_secs(5) + 2 * election_timeout
}
