//! The warning that the state machine, or a read, took longer over a request than it should: one
//! line with etcd's fields, for those who search logs for it.

use std::time::Duration;

use crate::error::Error;
use crate::metrics::Metrics;

/// A request that took long.
pub struct Slow {
    pub took: Duration,
    /// What it was to take at most.
    pub limit: Duration,
    /// What kind of request it was; nothing for one of the log.
    pub prefix: &'static str,
    pub request: String,
    /// The size of its answer, in words.
    pub response: String,
    pub error: Option<Error>,
}

/// Logs and counts it.
pub fn warn(metrics: &Metrics, slow: &Slow) {
    metrics.slow_applies.increment();
    tracing::warn!(
        took = ?slow.took,
        "expected-duration" = ?slow.limit,
        prefix = slow.prefix,
        request = slow.request,
        response = slow.response,
        error = slow.error.map(Error::text),
        "apply request took too long"
    );
}
