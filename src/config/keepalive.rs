//! Pings on idle connections, of clients and to a discovery service.

use std::time::Duration;

use super::values::Values;

/// How an idle connection is pinged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    pub interval: Duration,
    /// How long the answer may take before the connection is closed.
    pub timeout: Duration,
}

impl Keepalive {
    /// From a pair of flags; none where one of them is 0.
    pub fn of(values: &Values, interval: &str, timeout: &str) -> Option<Keepalive> {
        let (interval, timeout) = (values.positive(interval)?, values.positive(timeout)?);
        Some(Keepalive { interval, timeout })
    }
}
