//! What a request asks for, as a span below that of its call: etcd's names and attributes.

use tracing::Span;

use crate::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseRevokeRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, WatchCreateRequest, request_op::Request,
};
use crate::state::txn;
use crate::trace::{self, below};

pub fn range(of: &Span, request: &RangeRequest) -> Span {
    below!(
        of,
        "range",
        range_begin = &*trace::key(&request.key),
        range_end = &*trace::key(&request.range_end),
        rev = request.revision,
        limit = request.limit,
        count_only = request.count_only,
        keys_only = request.keys_only,
    )
}

pub fn range_stream(of: &Span, request: &RangeRequest) -> Span {
    below!(
        of,
        "range_streaming",
        range_begin = &*trace::key(&request.key),
        range_end = &*trace::key(&request.range_end),
        rev = request.revision,
        limit = request.limit,
        count_only = request.count_only,
    )
}

pub fn put(of: &Span, request: &PutRequest) -> Span {
    below!(of, "put", key = &*trace::key(&request.key))
}

pub fn delete_range(of: &Span, request: &DeleteRangeRequest) -> Span {
    below!(
        of,
        "delete_range",
        range_begin = &*trace::key(&request.key),
        range_end = &*trace::key(&request.range_end),
    )
}

pub fn txn(of: &Span, request: &TxnRequest) -> Span {
    below!(
        of,
        "txn",
        compare_first_key = &*trace::key(first_compared(&request.compare)),
        success_first_key = &*trace::key(first_key(&request.success)),
        success_first_type = first_type(&request.success),
        success_first_lease = first_lease(&request.success),
        compare_len = request.compare.len() as i64,
        success_len = request.success.len() as i64,
        failure_len = request.failure.len() as i64,
        read_only = txn::is_read_only(request),
    )
}

pub fn compact(of: &Span, request: &CompactionRequest) -> Span {
    below!(
        of,
        "compact",
        is_physical = request.physical,
        rev = request.revision
    )
}

pub fn lease_revoke(of: &Span, request: &LeaseRevokeRequest) -> Span {
    below!(of, "lease_revoke", id = request.id)
}

/// Of one message of a stream.
pub fn lease_renew(of: &Span, id: i64) -> Span {
    below!(of, "lease_renew", id)
}

/// As long as the watch lasts.
pub fn watch(of: &Span, request: &WatchCreateRequest) -> Span {
    below!(
        of,
        "watch",
        key = &*trace::key(&request.key),
        range_end = &*trace::key(&request.range_end),
        start_rev = request.start_revision,
        progress_notify = request.progress_notify,
        prev_kv = request.prev_kv,
        fragment = request.fragment,
    )
}

fn first_compared(compares: &[Compare]) -> &[u8] {
    let mut keys = compares.iter().map(|compare| &compare.key[..]);
    keys.find(|key| !key.is_empty()).unwrap_or_default()
}

/// The operations that are some.
fn requests(ops: &[RequestOp]) -> impl Iterator<Item = &Request> {
    ops.iter().filter_map(|op| op.request.as_ref())
}

fn first_key(ops: &[RequestOp]) -> &[u8] {
    let mut keys = requests(ops).map(|request| match request {
        Request::RequestPut(put) => &put.key[..],
        Request::RequestRange(range) => &range.key,
        Request::RequestDeleteRange(delete) => &delete.key,
        Request::RequestTxn(_) => &[],
    });
    keys.find(|key| !key.is_empty()).unwrap_or_default()
}

fn first_type(ops: &[RequestOp]) -> &'static str {
    requests(ops).next().map_or("", |request| match request {
        Request::RequestPut(_) => "put",
        Request::RequestRange(_) => "range",
        Request::RequestDeleteRange(_) => "delete_range",
        Request::RequestTxn(_) => "txn",
    })
}

/// That of the first put; -1 where there is none.
fn first_lease(ops: &[RequestOp]) -> i64 {
    let mut leases = requests(ops).filter_map(|request| match request {
        Request::RequestPut(put) => Some(put.lease),
        _ => None,
    });
    leases.next().unwrap_or(-1)
}
