//! How large the answer to a write will be, about, before it is proposed: a view tells what it
//! would read now.

use super::txn;
use crate::mvcc::Result;
use crate::mvcc::read::{PinnedView, RangeRead};
use crate::proto::etcdserverpb::{InternalRaftRequest, RequestOp, TxnRequest, request_op::Request};
use crate::types::KeyRange;

/// Values that are read one by one are no large answer, up to so many.
const FEW_VALUES: usize = 4;

/// True where what a request reads may be much, so that it is measured before it is proposed.
pub fn may_be_large(request: &InternalRaftRequest) -> bool {
    let mut values = 0;
    let delete = request.delete_range.as_ref();
    delete.is_some_and(|delete| delete.prev_kv && !delete.range_end.is_empty())
        || request
            .txn
            .as_ref()
            .is_some_and(|txn| reads_much(txn, &mut values))
        || request.auth_user_get.is_some()
        || request.auth_user_list.is_some()
        || request.auth_role_get.is_some()
        || request.auth_role_list.is_some()
}

fn reads_much(txn: &TxnRequest, values: &mut usize) -> bool {
    let mut ops = txn.success.iter().chain(&txn.failure);
    ops.any(|RequestOp { request }| {
        let (reads, is_range) = match request {
            Some(Request::RequestRange(range)) => (!range.count_only, !range.range_end.is_empty()),
            Some(Request::RequestPut(put)) => (put.prev_kv, false),
            Some(Request::RequestDeleteRange(delete)) => {
                (delete.prev_kv, !delete.range_end.is_empty())
            }
            Some(Request::RequestTxn(nested)) => return reads_much(nested, values),
            None => (false, false),
        };
        *values += usize::from(reads);
        reads && (is_range || *values > FEW_VALUES)
    })
}

/// What the request would answer if it were applied now, about (`AuthView::answer_bytes` knows it of
/// users and roles); what is beyond `most_bytes` is not read.
pub fn of_now(
    pinned: &PinnedView<'_>,
    request: &InternalRaftRequest,
    most_bytes: usize,
) -> Result<usize> {
    if let Some(txn) = &request.txn {
        return txn::size_now(pinned, txn, most_bytes);
    }
    match &request.delete_range {
        Some(delete) if delete.prev_kv => {
            let range = KeyRange::from_wire(&delete.key, &delete.range_end);
            pinned.size(&RangeRead::all(range), most_bytes)
        }
        _ => Ok(0),
    }
}
