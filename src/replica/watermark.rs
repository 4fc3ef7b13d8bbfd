//! A revision that only grows, and tasks that wait until it reaches a value.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::Notify;

/// See the module. Waiting tasks are woken in order, which a channel of the runtime does not
/// guarantee.
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

    /// Completes once the value is reached.
    pub async fn reached(&self, revision: i64) {
        loop {
            let grown = self.grown.notified();
            // Created before the check, so that no later update is missed.
            if self.revision.load(Ordering::Acquire) >= revision {
                return;
            }
            grown.await;
        }
    }
}
