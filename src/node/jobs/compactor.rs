//! Removes compacted history in small steps with pauses between them, so that requests hardly
//! notice. A step can be repeated: after a restart it goes on from the last finished compaction.

use std::sync::Arc;
use std::time::Duration;

use crate::mvcc::compaction;
use crate::node::Shared;
use crate::storage::{self, Batch};

/// How fast history is removed.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Revision records a step.
    pub batch_limit: usize,
    pub sleep: Duration,
}

/// Runs until the runtime stops.
pub async fn run(shared: Arc<Shared>, pace: Pace) {
    loop {
        if let Err(error) = catch_up(&shared, pace).await {
            shared.fail(error.to_string());
            return;
        }
        shared.compaction_wanted.notified().await;
    }
}

async fn catch_up(shared: &Arc<Shared>, pace: Pace) -> storage::Result<()> {
    while let Some(start) = compaction::unfinished(shared.view().read())? {
        let started = shared.clock.now();
        let mut progress = Some(start);
        while let Some(at) = progress {
            let shared = shared.clone();
            let stepped = tokio::task::spawn_blocking(move || {
                let view = shared.view();
                let mut batch = Batch::default();
                let next = compaction::step(view.read(), at, pace.batch_limit, &mut batch)?;
                shared.engine.write(&batch)?;
                Ok::<_, storage::Error>(next)
            });
            progress = match stepped.await {
                Ok(next) => next?,
                // The runtime is going down.
                Err(_) => return Ok(()),
            };
            if progress.is_some() {
                tokio::time::sleep(pace.sleep).await;
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
        shared.compaction_finished.send_replace(start.target);
        if shared.view().compacted <= start.target {
            return Ok(());
        }
    }
    Ok(())
}
