//! Checks that need the request alone, in etcd's order.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use crate::error::Error;
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmType, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    alarm_request::AlarmAction, request_op::Request,
};
use crate::state::kv::range_read;

pub fn range(request: &RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    range_read(request).map(|_| ())
}

pub fn range_stream(request: &RangeRequest) -> Result<(), Error> {
    range(request)?;
    let ascending_keys = request.sort_order == 1 && request.sort_target == 0;
    if request.sort_order != 0 && !ascending_keys {
        return Err(Error::RangeStreamSort);
    }
    let filtered = request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0;
    if filtered {
        return Err(Error::RangeStreamFilters);
    }
    Ok(())
}

pub fn put(request: &PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    Ok(())
}

/// Values outside an enumeration are refused here, where etcd would stop: but for a type that
/// alarms are listed by, of which there are none.
pub fn alarm(request: &AlarmRequest) -> Result<(), Error> {
    match AlarmAction::try_from(request.action) {
        Ok(AlarmAction::Get) => Ok(()),
        Ok(_) if AlarmType::try_from(request.alarm).is_ok() => Ok(()),
        _ => Err(Error::InvalidAlarmAction),
    }
}

pub fn txn(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    txn_ops(request, max_ops)?;
    writes(&request.success)?;
    writes(&request.failure)?;
    Ok(())
}

fn txn_ops(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    let ops = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let left = max_ops.checked_sub(ops).ok_or(Error::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(request)) => txn_ops(request, left)?,
            None => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys that a branch puts and the ranges that it deletes.
#[derive(Default)]
struct Writes {
    puts: HashSet<Bytes>,
    deletes: Spans,
}

/// Refuses a branch that puts a key twice, or puts a key that it deletes, nested branches
/// included. As in etcd a nested delete counts against later puts, not against earlier ones,
/// and the two branches of one nested transaction do not count against each other.
fn writes(ops: &[RequestOp]) -> Result<Writes, Error> {
    let mut writes = Writes::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            writes.deletes.insert(&delete.key, &delete.range_end);
        }
    }
    for op in ops {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            let success = self::writes(&nested.success)?;
            let failure = self::writes(&nested.failure)?;
            for key in &success.puts {
                if writes.puts.contains(key) || writes.deletes.contains(key) {
                    return Err(Error::DuplicateKey);
                }
            }
            for key in &failure.puts {
                if writes.puts.contains(key) || writes.deletes.contains(key) {
                    return Err(Error::DuplicateKey);
                }
            }
            writes.puts.extend(success.puts);
            writes.puts.extend(failure.puts);
            writes.deletes.merge(success.deletes);
            writes.deletes.merge(failure.deletes);
        }
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request
            && (writes.deletes.contains(&put.key) || !writes.puts.insert(put.key.clone()))
        {
            return Err(Error::DuplicateKey);
        }
    }
    Ok(writes)
}

/// A set of keys made of spans that do not touch.
#[derive(Default)]
struct Spans {
    /// Start to end, exclusive.
    spans: BTreeMap<Bytes, Bytes>,
}

impl Spans {
    /// Adds what a delete names. As in etcd an open end (`"\0"`) is not looked through here.
    fn insert(&mut self, key: &Bytes, range_end: &Bytes) {
        if range_end.is_empty() {
            let mut end = key.to_vec();
            end.push(0);
            self.insert_span(key.clone(), end.into());
        } else if key < range_end {
            self.insert_span(key.clone(), range_end.clone());
        }
    }

    fn insert_span(&mut self, mut start: Bytes, mut end: Bytes) {
        while let Some((before, before_end)) = self.spans.range(..=end.clone()).next_back() {
            if *before_end < start {
                break;
            }
            let (before, before_end) = (before.clone(), before_end.clone());
            self.spans.remove(&before);
            start = start.min(before);
            end = end.max(before_end);
        }
        self.spans.insert(start, end);
    }

    fn contains(&self, key: &Bytes) -> bool {
        self.spans
            .range(..=key.clone())
            .next_back()
            .is_some_and(|(_, end)| key < end)
    }

    fn merge(&mut self, other: Spans) {
        for (start, end) in other.spans {
            self.insert_span(start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_op(key: &'static str) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: key.into(),
                ..Default::default()
            })),
        }
    }

    fn delete_op(key: &'static str, range_end: &'static str) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestDeleteRange(DeleteRangeRequest {
                key: key.into(),
                range_end: range_end.into(),
                ..Default::default()
            })),
        }
    }

    fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestTxn(TxnRequest {
                success,
                failure,
                ..Default::default()
            })),
        }
    }

    #[test]
    fn overlaps_are_etcds() {
        let duplicate = Err(Error::DuplicateKey);
        let cases = [
            (vec![put_op("a"), put_op("b")], Ok(())),
            (vec![put_op("a"), put_op("a")], duplicate),
            (vec![put_op("b"), delete_op("a", "c")], duplicate),
            (vec![put_op("c"), delete_op("a", "c")], Ok(())),
            (vec![put_op("b"), delete_op("a", "\0")], Ok(())),
            (vec![put_op("b"), delete_op("c", "a")], Ok(())),
            (vec![txn_op(vec![put_op("a")], vec![put_op("a")])], Ok(())),
            (
                vec![
                    txn_op(vec![put_op("a")], vec![]),
                    txn_op(vec![], vec![put_op("a")]),
                ],
                duplicate,
            ),
            (
                vec![
                    txn_op(vec![delete_op("a", "")], vec![]),
                    txn_op(vec![put_op("a")], vec![]),
                ],
                duplicate,
            ),
            (
                vec![
                    txn_op(vec![put_op("a")], vec![]),
                    txn_op(vec![delete_op("a", "")], vec![]),
                ],
                Ok(()),
            ),
            (
                vec![txn_op(vec![delete_op("a", "")], vec![]), put_op("a")],
                duplicate,
            ),
        ];
        for (index, (ops, expected)) in cases.into_iter().enumerate() {
            assert_eq!(writes(&ops).map(|_| ()), expected, "case {index}");
        }
    }

    #[test]
    fn nested_transactions_share_the_limit() {
        let leaf = || txn_op(vec![put_op("a"), put_op("b")], vec![]);
        let request = |ops| TxnRequest {
            success: ops,
            ..Default::default()
        };
        assert_eq!(txn_ops(&request(vec![leaf()]), 3), Ok(()));
        assert_eq!(txn_ops(&request(vec![leaf()]), 2), Err(Error::TooManyOps));
        let empty = RequestOp { request: None };
        assert_eq!(txn_ops(&request(vec![empty]), 9), Err(Error::KeyNotFound));
    }

    #[test]
    fn spans_merge() {
        let mut spans = Spans::default();
        for (start, end) in [("a", "c"), ("e", "g"), ("b", "e"), ("x", "y")] {
            spans.insert(&start.into(), &end.into());
        }
        assert_eq!(spans.spans.len(), 2);
        for (key, inside) in [
            ("a", true),
            ("f", true),
            ("g", false),
            ("x", true),
            ("z", false),
        ] {
            assert_eq!(spans.contains(&key.into()), inside, "{key}");
        }
    }
}
