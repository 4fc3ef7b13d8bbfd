//! How many connections the listeners of one kind keep open.
//!
//! Every connection takes a descriptor, and the listeners of a member share one limit with its log
//! and its state. Each kind of listener has an allowance of its own, so that those who hold the
//! connections of one cannot shut out the callers of another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::metrics::Metrics;

/// See the module.
pub struct Allowance {
    limit: usize,
    open: AtomicUsize,
    /// Refused and not yet reported in the log.
    unreported: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// Lets one connection be open; free again when it is dropped.
pub struct ConnectionPermit(Arc<Allowance>);

impl Allowance {
    pub fn new(limit: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            open: AtomicUsize::new(0),
            unreported: AtomicUsize::new(0),
            metrics,
        })
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// A place, or none where all are taken.
    pub(super) fn enter(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let entered = self
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < self.limit).then_some(open + 1)
            });
        match entered {
            Ok(_) => Some(ConnectionPermit(self.clone())),
            Err(_) => {
                self.unreported.fetch_add(1, Ordering::Relaxed);
                self.metrics.connections_refused.increment();
                None
            }
        }
    }

    /// How many were refused since the last call.
    pub(super) fn take_unreported(&self) -> usize {
        self.unreported.swap(0, Ordering::Relaxed)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
