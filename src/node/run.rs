//! The raft thread: takes what came, lets `core` decide, and carries it out.

use std::sync::Arc;
use std::time::Duration;

use super::apply::Applier;
use super::core::{Core, Work};
use super::inbox::{Inbox, Input};
use super::shared::Shared;
use crate::raft::Persist;
use crate::storage;
use crate::storage::raft_log::{self, RaftLog};

/// Why the raft thread ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error("raft log: {0}")]
    Log(#[from] raft_log::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
}

/// Proposals that go to the disk in one write, about.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// How raft's time passes and how much of its log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub tick: Duration,
    /// Entries kept behind the newest for members that lag.
    pub catch_up_entries: u64,
}

/// Everything that the raft thread owns.
pub struct RaftThread {
    pub core: Core,
    pub log: RaftLog,
    pub applier: Applier,
    pub inbox: Arc<Inbox>,
    pub shared: Arc<Shared>,
    pub timing: Timing,
}

impl RaftThread {
    /// Brings the machine up to what the log says is committed, and takes the lead where this
    /// member alone decides. Must be done before the first tick: raft looks for changes of
    /// membership that are not applied yet when it campaigns.
    pub fn recover(&mut self) -> Result<(), Fatal> {
        self.carry_out()?;
        if self.core.is_sole_voter() {
            self.core.campaign()?;
            self.carry_out()?;
        }
        self.publish();
        Ok(())
    }

    /// Runs until it is told to stop, then makes the state durable.
    pub fn run(mut self) -> Result<(), Fatal> {
        let mut inputs = Vec::new();
        let mut next_tick = self.shared.clock.now() + self.timing.tick;
        loop {
            let now = self.shared.clock.now();
            let wait = next_tick.saturating_sub(now);
            self.inbox.take(wait, &mut inputs);
            let now = self.shared.clock.now();
            if now >= next_tick {
                // After a stall one tick, not all that were missed: a stalled leader must not
                // take its own silence for that of the others.
                self.core.tick();
                next_tick = now + self.timing.tick;
            }
            let mut stopping = false;
            let mut batch_bytes = 0;
            for input in inputs.drain(..) {
                match input {
                    Input::Propose(proposal) => {
                        batch_bytes += proposal.encoded_bytes();
                        self.core.propose(proposal);
                        if batch_bytes >= MAX_BATCH_BYTES {
                            self.carry_out()?;
                            batch_bytes = 0;
                        }
                    }
                    Input::Flushed(index) => self.cut_log(index)?,
                    Input::Stop => stopping = true,
                }
            }
            self.carry_out()?;
            self.publish();
            if stopping {
                self.core.stop();
                return Ok(self.shared.engine.flush()?);
            }
        }
    }

    fn carry_out(&mut self) -> Result<(), Fatal> {
        while let Some(work) = self.core.work()? {
            let Work {
                messages: _, // A sole voter has nobody to write to.
                persist,
                entries,
                replies,
            } = work;
            if let Some(persist) = persist {
                self.persist(&persist)?;
                self.core.persisted(persist.number);
            }
            if let Some(last) = entries.last().map(|entry| entry.index) {
                self.applier.apply(entries, replies)?;
                self.core.applied(last);
            }
        }
        Ok(())
    }

    fn persist(&mut self, persist: &Persist) -> Result<(), Fatal> {
        let clock = &self.shared.clock;
        let start = clock.now();
        let bytes_before = self.log.stats().bytes_written;
        self.log.append(raft_log::Batch {
            entries: &persist.entries,
            hard_state: persist.hard_state.as_deref(),
        })?;
        let metrics = &self.shared.metrics;
        metrics.wal_fsync.observe(clock.now() - start);
        let bytes = self.log.stats().bytes_written - bytes_before;
        metrics.wal_write_bytes.add(bytes as i64);
        Ok(())
    }

    /// Lets go of entries that a durable state holds, but for those kept for members that lag.
    fn cut_log(&mut self, durable_index: u64) -> Result<(), Fatal> {
        let applied = self.applier.machine().applied_index();
        let kept = applied.saturating_sub(self.timing.catch_up_entries);
        let cut = durable_index.min(kept);
        if cut + 1 > self.log.first_index() {
            self.log.compact(cut)?;
            tracing::info!(compact_index = cut, "compacted raft log");
        }
        Ok(())
    }

    fn publish(&self) {
        let status = self.core.status();
        if status.leader != 0 && status.leader != self.shared.raft.leader() {
            self.shared.metrics.leader_changes.increment();
        }
        self.shared.raft.publish(&status);
    }
}
