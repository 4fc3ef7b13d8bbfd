//! Background work: what follows a schedule or can wait.

pub mod auto_compaction;
pub mod compactor;
pub mod corruption;
pub mod counts;
pub mod flush;
pub mod lease_expiry;
pub mod log_mark;
pub mod version;

use std::sync::Arc;
use std::time::Duration;

use crate::replica::inbox::Inbox;
use crate::service::handle::Handle;
use crate::storage::raft_log::SyncedMark;

/// Intervals and limits of the jobs.
#[derive(Clone, Copy, Debug)]
pub struct JobSettings {
    /// Entries after which the state is flushed.
    pub snapshot_count: u64,
    pub compaction: compactor::Pace,
    pub corruption: corruption::CheckIntervals,
    pub retention: auto_compaction::Retention,
    /// See `Deadlines`.
    pub lease_checkpoint_interval: Duration,
}

/// Starts all jobs. They end with the runtime.
pub fn spawn(handle: &Handle, inbox: &Arc<Inbox>, mark: SyncedMark, settings: JobSettings) {
    let shared = handle.shared().clone();
    let scratch_dir = handle.settings().scratch_dir.clone();
    let flushing = flush::run(
        shared.clone(),
        inbox.clone(),
        mark.clone(),
        settings.snapshot_count,
    );
    handle.spawn(flushing);
    handle.spawn(log_mark::run(shared.clone(), mark));
    handle.spawn(counts::run(shared.clone()));
    handle.spawn(compactor::run(shared, settings.compaction, scratch_dir));
    handle.spawn(lease_expiry::run(
        handle.clone(),
        settings.lease_checkpoint_interval,
    ));
    handle.spawn(version::run(handle.clone()));
    handle.spawn(corruption::run(handle.clone(), settings.corruption));
    handle.spawn(auto_compaction::run(handle.clone(), settings.retention));
}
