//! Removes compacted history in small steps with pauses between them, so that requests hardly
//! notice. A step can be repeated: after a restart it continues from the last finished compaction.
//!
//! Before the first step the history is hashed as the compaction finds it, in steps as well, all of
//! them from one view: members that compact to the same revision can be compared by that later.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::counts;
use crate::env::blocking;
use crate::failpoints::{self, Failpoint};
use crate::metrics::Metrics;
use crate::mvcc::compaction::{self, Progress};
use crate::mvcc::hash::{HashError, Hashing};
use crate::mvcc::read::PinnedView;
use crate::probe::{self, CoveragePoint, Defect};
use crate::replica::shared::{NumberedEngine, Shared};
use crate::storage::{self, Batch, Engine, Family, Op};

/// Hashes kept; etcd's figure.
const MAX_KEPT_HASHES: usize = 10;
/// A hash reads the whole state. With more than an etcd holds at most (its documentation's limit)
/// that would take longer than the time between two compactions.
const MAX_HASHED_BYTES: u64 = 8 << 30;
/// To hash a record takes a part of the time that it takes to remove one.
const HASHED_FOR_REMOVED: usize = 4;

/// How fast history is removed.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Revision records a step.
    pub batch_limit: usize,
    /// The pause between two steps.
    pub sleep: Duration,
    /// True where a pause need not be longer than the step before it: half of the time is left to
    /// requests. Where none came for a while it is a part of that: steps do not wait for nobody.
    pub shorter: bool,
}

/// What a pause is shorter by where no request came.
const FOR_NOBODY: u32 = 8;
/// Where one came, others may be about to come for so long.
const QUIET: Duration = Duration::from_millis(100);

impl Pace {
    fn pause_after(&self, step: Duration, is_quiet: bool) -> Duration {
        match (self.shorter, is_quiet) {
            (true, true) => self.sleep.min(step / FOR_NOBODY),
            (true, false) => self.sleep.min(step),
            (false, _) => self.sleep,
        }
    }
}

/// Steps with pauses between them, which leave time to others.
struct Steps<'a> {
    shared: &'a Shared,
    pace: Pace,
    began: Duration,
    requests: u64,
    /// No request came since then.
    quiet_since: Duration,
}

impl<'a> Steps<'a> {
    fn new(shared: &'a Shared, pace: Pace) -> Self {
        let now = shared.clock.now();
        Self {
            shared,
            pace,
            began: now,
            requests: requests(&shared.metrics),
            quiet_since: now,
        }
    }

    fn begin(&mut self) {
        self.began = self.shared.clock.now();
    }

    fn took(&self) -> Duration {
        self.shared.clock.now() - self.began
    }

    async fn pause(&mut self) {
        let now = self.shared.clock.now();
        let requests = requests(&self.shared.metrics);
        if requests != self.requests {
            (self.requests, self.quiet_since) = (requests, now);
        }
        let is_quiet = now >= self.quiet_since + QUIET;
        let pause = self.pace.pause_after(self.took(), is_quiet);
        self.shared.clock.sleep(pause).await;
    }
}

/// Reads and writes so far.
fn requests(metrics: &Metrics) -> u64 {
    metrics.ranges.get() + metrics.puts.get() + metrics.deletes.get()
}

/// Runs until the runtime stops. Hashes are sorted in files in `scratch_dir`.
pub async fn run(shared: Arc<Shared>, pace: Pace, scratch_dir: PathBuf) {
    let mut seen = None;
    loop {
        let caught_up = catch_up(&shared, pace, &scratch_dir, &mut seen).await;
        if let Err(error) = caught_up {
            shared.fail(error.to_string());
            return;
        }
        shared.compaction_wanted.notified().await;
    }
}

/// Keeps the hash of the history as this compaction finds it, unless that is very large. None where
/// the runtime ends.
async fn keep_hash(
    shared: &Arc<Shared>,
    pace: Pace,
    scratch_dir: &Path,
    progress: Progress,
) -> Result<Option<()>, HashError> {
    let NumberedEngine { number, engine } = shared.numbered_engine();
    if engine.size().total_bytes > MAX_HASHED_BYTES {
        return Ok(Some(()));
    }
    let view = shared.view();
    let compacted = compaction::finished(engine.latest())?;
    let limit = pace.batch_limit.saturating_mul(HASHED_FOR_REMOVED);
    let mut hashing = Hashing::new(compacted, progress.target, scratch_dir);
    let mut steps = Steps::new(shared, pace);
    let hash = loop {
        let view = view.clone();
        steps.begin();
        let stepped = blocking(shared.executor.as_ref(), move || {
            let pinned = PinnedView {
                compacted,
                ..view.pinned()
            };
            let ended = match hashing.step(pinned.read, limit)? {
                true => None,
                false => Some(hashing.finish_for_compaction(&pinned)?),
            };
            Ok::<_, HashError>((hashing, ended))
        });
        let Ok(stepped) = stepped.await else {
            return Ok(None);
        };
        let (rest, ended) = stepped?;
        if let Some(hash) = ended {
            break hash;
        }
        hashing = rest;
        steps.pause().await;
    };
    let mut hashes = shared.compaction_hashes.lock();
    if number != shared.numbered_engine().number {
        // A received state took this one's place: what was hashed may be either's.
        return Ok(Some(()));
    }
    hashes.push(hash);
    let surplus = hashes.len().saturating_sub(MAX_KEPT_HASHES);
    hashes.drain(..surplus);
    Ok(Some(()))
}

fn tell_finished(shared: &Shared, engine: &dyn Engine) -> storage::Result<()> {
    let finished = compaction::finished(engine.latest())?;
    if !probe::injected(Defect::CompactionUnannounced) {
        shared.compaction_finished.set(finished);
    }
    Ok(())
}

/// `seen` is the number of the engine that this run has inspected before: a compaction that is
/// found begun in another one, an earlier run's or the leader's, has lost what its hash would need.
async fn catch_up(
    shared: &Arc<Shared>,
    pace: Pace,
    scratch_dir: &Path,
    seen: &mut Option<u64>,
) -> storage::Result<()> {
    loop {
        // One engine for all steps: a received state may bring another meanwhile, and what
        // is dead in this one may live there.
        let NumberedEngine { number, engine } = shared.numbered_engine();
        let before = seen.replace(number);
        let hashes = before == Some(number);
        let Some(start) = compaction::unfinished(engine.latest())? else {
            // A state of the leader's may have brought it: somebody may wait for it here.
            return tell_finished(shared, engine.as_ref());
        };
        if shared.view().compacted < start.target {
            // A batch is written before the view shows it, and a hash of the view would lack the
            // last revisions. The job is woken once they are shown.
            return Ok(());
        }
        let started = shared.clock.now();
        match before {
            _ if hashes => {}
            None => probe::reached(CoveragePoint::CompactionResumed),
            Some(_) => probe::reached(CoveragePoint::CompactionOfSnapshot),
        }
        if hashes || probe::injected(Defect::HashTooLate) {
            match keep_hash(shared, pace, scratch_dir, start).await {
                Ok(Some(())) => {}
                // The runtime is going down.
                Ok(None) => return Ok(()),
                Err(HashError::Storage(error)) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, revision = start.target, "kept no hash of the history before its compaction");
                }
            }
        }
        if (counts::before_removal(shared, &engine, start.target).await).is_err() {
            return Ok(());
        }
        let mut progress = Some(start);
        let mut steps = Steps::new(shared, pace);
        while let Some(at) = progress {
            let engine = engine.clone();
            steps.begin();
            let stepped = blocking(shared.executor.as_ref(), move || {
                remove(engine.as_ref(), at, pace.batch_limit)
            });
            progress = match stepped.await {
                Ok(stepped) => {
                    let (next, removed) = stepped?;
                    shared.metrics.compacted_keys.add(removed);
                    next
                }
                // The runtime is going down.
                Err(_) => return Ok(()),
            };
            shared.metrics.compaction_pause.observe(steps.took());
            if progress.is_some() {
                steps.pause().await;
            }
        }
        tracing::info!(
            compact_revision = start.target,
            "finished scheduled compaction"
        );
        let metrics = &shared.metrics;
        metrics
            .compaction_total
            .observe(shared.clock.now() - started);
        metrics
            .last_compaction_s
            .set(shared.clock.wall().as_secs() as i64);
        tell_finished(shared, engine.as_ref())?;
    }
}

/// Makes a step; returns what is left, and how many records it removed.
fn remove(
    engine: &dyn Engine,
    at: Progress,
    limit: usize,
) -> storage::Result<(Option<Progress>, u64)> {
    let view = engine.view();
    let mut batch = Batch::default();
    let next = compaction::step(view.as_ref(), at, limit, &mut batch)?;
    let (before, after) = failpoints_of(next.is_none());
    failpoints::hit(before);
    engine.write(&batch)?;
    failpoints::hit(after);
    let removed = |op: &Op<'_>| matches!(op, Op::Delete(Family::Revisions, _));
    let removed = batch.iter().filter(removed).count() as u64;
    Ok((next, removed))
}

/// Those around the write of a step.
const fn failpoints_of(is_last: bool) -> (Failpoint, Failpoint) {
    match is_last {
        false => (
            Failpoint::CompactBeforeCommitBatch,
            Failpoint::CompactAfterCommitBatch,
        ),
        true => (
            Failpoint::CompactBeforeSetFinishedCompact,
            Failpoint::CompactAfterSetFinishedCompact,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_as_long_as_its_step_unless_it_was_asked_for() {
        let ms = Duration::from_millis;
        let mut pace = Pace {
            batch_limit: 1_000,
            sleep: ms(10),
            shorter: true,
        };
        assert_eq!(pace.pause_after(ms(2), false), ms(2));
        assert_eq!(pace.pause_after(ms(70), false), ms(10));
        assert_eq!(pace.pause_after(ms(16), true), ms(2));
        pace.shorter = false;
        assert_eq!(pace.pause_after(ms(2), true), ms(10));
    }
}
