//! Flushes the applied state periodically, and truncates the raft log up to the flushed index.
//!
//! With the state the disk gets the mark of how far the log is synced: what the log is cut to, and
//! what the state holds, is then never beyond it.
//!
//! A restart replays what was applied since the last flush, so flushes bound its time. Small
//! flushes are inefficient: below `MIN_FLUSH_BYTES` a flush waits for ten times `--snapshot-count`
//! entries.

use std::sync::Arc;
use std::time::Duration;

use crate::env::{Interval, blocking};
use crate::probe::{self, Defect};
use crate::replica::fatal::Fatal;
use crate::replica::inbox::{Inbox, Input};
use crate::replica::shared::Shared;
use crate::state::Machine;
use crate::storage;
use crate::storage::raft_log::SyncedMark;

const MIN_FLUSH_BYTES: u64 = 16 << 20;
/// A flush is due after this many times `--snapshot-count` entries, however small they were.
const MAX_WAIT_FACTOR: u64 = 10;
const INTERVAL: Duration = Duration::from_millis(100);

/// Runs until the runtime stops.
pub async fn run(shared: Arc<Shared>, inbox: Arc<Inbox>, mark: SyncedMark, snapshot_count: u64) {
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
        let (flushing, marking) = (shared.clone(), mark.clone());
        let flushed = blocking(shared.executor.as_ref(), move || {
            let durable_index = flush(&flushing)?;
            marking.write()?;
            Ok::<_, Fatal>(durable_index)
        });
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
fn flush(shared: &Shared) -> storage::Result<u64> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::{InternalRaftRequest, PutRequest};
    use crate::service::fixture;
    use crate::storage::raft_log::{Batch, LogEntry, LogOptions, MemoryDisk, RaftLog};

    const ENTRIES: u64 = 20;
    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_flush_of_the_state_says_how_far_the_log_is_synced() {
        let options = LogOptions {
            segment_bytes: 64 << 10,
            cluster_id: 1,
            member_id: 1,
            sync: true,
        };
        let mut log = RaftLog::create(Arc::new(MemoryDisk::new()), options).expect("a new log");
        let handle = fixture::single_member();
        let entry = |index| LogEntry {
            index,
            term: 1,
            data: "entry".into(),
        };
        let entries: Vec<_> = (1..=ENTRIES).map(entry).collect();
        let batch = Batch {
            entries: &entries,
            hard_state: None,
        };
        log.append(batch).expect("appends");
        let put = InternalRaftRequest {
            put: Some(PutRequest::default()),
            ..Default::default()
        };
        fixture::apply(&handle, vec![put; ENTRIES as usize]);
        let mark = log.synced_mark();
        assert!(mark.is_behind());
        let shared = handle.shared().clone();
        let inbox = Arc::new(Inbox::new(1 << 20));
        // Ten times as many entries make a flush due, however small they are.
        let job = tokio::spawn(run(shared, inbox.clone(), mark.clone(), ENTRIES / 10));
        let mut inputs = Vec::new();
        let flushed = async {
            while inputs.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
                inbox.take(Duration::ZERO, &mut inputs);
            }
        };
        let flushed = tokio::time::timeout(LIMIT, flushed).await;
        flushed.expect("flushes in time");
        assert!(matches!(inputs[..], [Input::Flushed(ENTRIES)]));
        assert!(!mark.is_behind());
        job.abort();
    }
}
