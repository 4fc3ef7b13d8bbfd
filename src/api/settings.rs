//! Limits of the services, fixed at the start: sizes, times, intervals.

use std::time::Duration;

/// gRPC may receive this much more than a request may hold; etcd's figure.
pub const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

/// Limits of the services.
#[derive(Clone, Copy, Debug)]
pub struct ApiSettings {
    pub max_txn_ops: usize,
    pub max_request_bytes: usize,
    /// Where a watch's response is split, if its client allows it, in bytes.
    pub fragment_bytes: usize,
    pub progress_interval: Duration,
    /// Whether running watches end when their users lose the right to them.
    pub recheck_watches: bool,
    /// A unary call that takes longer is logged.
    pub warning_unary_request_duration: Duration,
    /// A read that takes longer is logged.
    pub warning_apply_duration: Duration,
}

impl ApiSettings {
    /// What a message of a request may hold.
    pub fn max_message_bytes(&self) -> usize {
        self.max_request_bytes + GRPC_OVERHEAD_BYTES
    }
}
