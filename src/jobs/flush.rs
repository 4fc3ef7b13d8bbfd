//! Flushes the applied state periodically, and truncates the raft log up to the flushed index.
//!
//! A restart replays what was applied since the last flush, so flushes bound its time. Small
//! flushes are inefficient: below `MIN_FLUSH_BYTES` a flush waits for ten times `--snapshot-count`
//! entries.

use std::sync::Arc;
use std::time::Duration;

use crate::env::{Interval, blocking};
use crate::probe::{self, Defect};
use crate::replica::inbox::{Inbox, Input};
use crate::replica::shared::Shared;
use crate::state::Machine;
use crate::storage;

const MIN_FLUSH_BYTES: u64 = 16 << 20;
/// A flush is due after this many times `--snapshot-count` entries, however small they were.
const MAX_WAIT_FACTOR: u64 = 10;
const INTERVAL: Duration = Duration::from_millis(100);

/// Runs until the runtime stops.
pub async fn run(shared: Arc<Shared>, inbox: Arc<Inbox>, snapshot_count: u64) {
    let mut flushed_index = match Machine::durable_applied_index(shared.engine().as_ref()) {
        Ok(index) => index,
        Err(error) => {
            shared.fail(error.to_string());
            return;
        }
    };
    let mut interval = Interval::new(&shared.clock, INTERVAL);
    loop {
        interval.tick().await;
        let applied = shared.raft.applied_index();
        let entries = applied.saturating_sub(flushed_index);
        let due = entries >= snapshot_count
            && (shared.engine().unflushed_bytes() >= MIN_FLUSH_BYTES
                || entries >= snapshot_count.saturating_mul(MAX_WAIT_FACTOR));
        if !due {
            continue;
        }
        let flushing = shared.clone();
        let flushed = blocking(shared.executor.as_ref(), move || flush(&flushing));
        match flushed.await {
            Ok(Ok(durable_index)) => {
                flushed_index = durable_index;
                tracing::info!(index = durable_index, "flushed the state");
                // A closed inbox means that the member is stopping.
                if inbox.push(Input::Flushed(durable_index)).is_err() {
                    return;
                }
            }
            Ok(Err(error)) => {
                shared.fail(error.to_string());
                return;
            }
            // The runtime is shutting down.
            Err(_) => return,
        }
    }
}

/// Flushes everything applied; returns the index from which a restart would replay.
pub fn flush(shared: &Shared) -> storage::Result<u64> {
    let engine = shared.engine();
    if probe::injected(Defect::CutBeyondDurable) {
        return Ok(shared.raft.applied_index());
    }
    match engine.flush() {
        Err(_) if probe::injected(Defect::FlushFailureMissed) => {
            return Ok(shared.raft.applied_index());
        }
        flushed => flushed?,
    }
    shared.refresh_size();
    Machine::durable_applied_index(engine.as_ref())
}
