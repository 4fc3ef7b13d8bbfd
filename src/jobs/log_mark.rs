//! Has the disk say how far the raft log is synced, beside the log and not with every append: what
//! a log may lose at its end without anybody noticing is what a second brings.

use std::sync::Arc;
use std::time::Duration;

use crate::env::blocking;
use crate::replica::shared::Shared;
use crate::storage::raft_log::SyncedMark;

const INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the runtime stops.
pub async fn run(shared: Arc<Shared>, mark: SyncedMark) {
    loop {
        shared.clock.sleep(INTERVAL).await;
        if !mark.is_behind() {
            continue;
        }
        let writing = mark.clone();
        match blocking(shared.executor.as_ref(), move || writing.write()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                shared.fail(error.to_string());
                return;
            }
            // The runtime is going down.
            Err(_) => return,
        }
    }
}
