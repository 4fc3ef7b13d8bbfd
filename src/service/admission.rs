//! What a member refuses before proposing: requests that are too large or exceed the quota, and any
//! but its own about leases while too much is outstanding.
//!
//! The quota is checked here alone, by the member that was called; it raises the replicated NOSPACE
//! alarm, and apply checks only that. So different quotas never make members diverge.

use crate::budget::requests::{inbox_bytes, proposed_bytes};
use crate::error::Error;
use crate::proto::etcdserverpb::{
    InternalRaftRequest, PutRequest, RequestOp, TxnRequest, request_op::Request,
};

/// The overhead of a put beside key and value, in bytes; etcd's figure.
const PUT_OVERHEAD_BYTES: i64 = 256;
const LEASE_COST_BYTES: i64 = 64;
/// Entries that may be committed and not yet applied, and so many before a revocation is refused as
/// well where it has priority; etcd's figures.
pub const MAX_APPLY_GAP: u64 = 5_000;
const MAX_PRIORITY_GAP: u64 = 2 * MAX_APPLY_GAP;

/// The limits of one member.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    /// Of an encoded request.
    pub max_request_bytes: usize,
    /// Of the state; `None` for no quota.
    pub quota_bytes: Option<i64>,
    /// The memory budget's part of requests.
    pub requests_bytes: usize,
    /// The gate `PriorityRequest`: leases are revoked, which frees space, while other requests wait.
    pub prioritises_revokes: bool,
}

impl AdmissionLimits {
    /// Encoded proposals under way at once, in KiB.
    pub fn max_proposed_kib(&self) -> u32 {
        (proposed_bytes(self.requests_bytes) >> 10).clamp(1, u32::MAX as usize >> 3) as u32
    }

    /// What may wait for the raft thread.
    pub fn max_waiting_bytes(&self) -> usize {
        inbox_bytes(self.requests_bytes)
    }

    pub fn check_size(&self, encoded_bytes: usize) -> Result<(), Error> {
        if encoded_bytes > self.max_request_bytes {
            return Err(Error::RequestTooLarge);
        }
        Ok(())
    }

    /// Whether a state of `size_bytes` has room for the request. A request that adds nothing always
    /// fits.
    pub fn check_quota(&self, request: &InternalRaftRequest, size_bytes: i64) -> Result<(), Error> {
        let cost = cost_bytes(request);
        match self.quota_bytes {
            Some(quota) if cost > 0 && size_bytes.saturating_add(cost) >= quota => {
                Err(Error::NoSpace)
            }
            _ => Ok(()),
        }
    }

    /// Whether apply keeps up well enough for the request.
    pub fn check_gap(
        &self,
        request: &InternalRaftRequest,
        commit_index: u64,
        applied_index: u64,
    ) -> Result<(), Error> {
        // The member's own, few and small: renewals wait for them, and a lease whose checkpoint
        // cannot be taken back would expire while its client does all it can.
        if request.lease_checkpoint.is_some() {
            return Ok(());
        }
        let max_gap = match self.prioritises_revokes && request.lease_revoke.is_some() {
            true => MAX_PRIORITY_GAP,
            false => MAX_APPLY_GAP,
        };
        match commit_index > applied_index + max_gap {
            true => Err(Error::TooManyRequests),
            false => Ok(()),
        }
    }
}

fn cost_bytes(request: &InternalRaftRequest) -> i64 {
    let put = request.put.as_ref().map_or(0, put_cost);
    let txn = request.txn.as_ref().map_or(0, txn_cost);
    let lease = if request.lease_grant.is_some() {
        LEASE_COST_BYTES
    } else {
        0
    };
    put + txn + lease
}

fn put_cost(put: &PutRequest) -> i64 {
    PUT_OVERHEAD_BYTES + (put.key.len() + put.value.len()) as i64
}

fn txn_cost(txn: &TxnRequest) -> i64 {
    let branch = |ops: &[RequestOp]| -> i64 {
        ops.iter()
            .map(|op| match &op.request {
                Some(Request::RequestPut(put)) => put_cost(put),
                Some(Request::RequestTxn(nested)) => txn_cost(nested),
                _ => 0,
            })
            .sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: usize, value: usize) -> PutRequest {
        PutRequest {
            key: vec![b'k'; key].into(),
            value: vec![b'v'; value].into(),
            ..Default::default()
        }
    }

    fn op(request: Request) -> RequestOp {
        RequestOp {
            request: Some(request),
        }
    }

    #[test]
    fn costs_are_etcds() {
        let nested = TxnRequest {
            success: vec![op(Request::RequestPut(put(1, 2)))],
            ..Default::default()
        };
        let txn = TxnRequest {
            success: vec![op(Request::RequestPut(put(10, 0)))],
            failure: vec![
                op(Request::RequestPut(put(1, 1))),
                op(Request::RequestTxn(nested)),
            ],
            ..Default::default()
        };
        assert_eq!(txn_cost(&txn), 256 + 2 + 256 + 3);
        let limits = AdmissionLimits {
            max_request_bytes: 10,
            quota_bytes: Some(1000),
            requests_bytes: 0,
            prioritises_revokes: true,
        };
        let request = InternalRaftRequest {
            txn: Some(txn),
            ..Default::default()
        };
        assert_eq!(limits.check_quota(&request, 482), Ok(()));
        assert_eq!(limits.check_quota(&request, 483), Err(Error::NoSpace));
        let free = InternalRaftRequest::default();
        assert_eq!(limits.check_quota(&free, i64::MAX), Ok(()));
        assert_eq!(limits.check_size(11), Err(Error::RequestTooLarge));
        let revoke = InternalRaftRequest {
            lease_revoke: Some(Default::default()),
            ..Default::default()
        };
        let equal = AdmissionLimits {
            prioritises_revokes: false,
            ..limits
        };
        for (limits, request, max_gap) in [
            (limits, &request, MAX_APPLY_GAP),
            (limits, &revoke, MAX_PRIORITY_GAP),
            (equal, &revoke, MAX_APPLY_GAP),
        ] {
            assert_eq!(limits.check_gap(request, 7 + max_gap, 7), Ok(()));
            let refused = limits.check_gap(request, 8 + max_gap, 7);
            assert_eq!(refused, Err(Error::TooManyRequests));
        }
        let checkpoint = InternalRaftRequest {
            lease_checkpoint: Some(Default::default()),
            ..Default::default()
        };
        assert_eq!(equal.check_gap(&checkpoint, u64::MAX, 7), Ok(()));
    }
}
