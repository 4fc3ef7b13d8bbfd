//! A revision that only grows, and the tasks that wait until it is reached.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::Notify;

/// A revision that grows, and those who wait for it. They go on in the order in which they came,
/// which a channel of the runtime's would leave to chance.
pub struct Watermark {
    revision: AtomicI64,
    grown: Notify,
}

impl Default for Watermark {
    fn default() -> Self {
        Self {
            revision: AtomicI64::new(-1),
            grown: Notify::new(),
        }
    }
}

impl Watermark {
    pub fn set(&self, revision: i64) {
        self.revision.store(revision, Ordering::Release);
        self.grown.notify_waiters();
    }

    /// Resolves once it is that far.
    pub async fn reached(&self, revision: i64) {
        loop {
            let grown = self.grown.notified();
            // Made before the look: what is set after it is not missed.
            if self.revision.load(Ordering::Acquire) >= revision {
                return;
            }
            grown.await;
        }
    }
}
