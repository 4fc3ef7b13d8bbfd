//! The transactions that locks and elections are made of; etcd's clients make the same ones, so
//! that both can contend for one name.

use bytes::Bytes;

use crate::error::Error;
use crate::proto::KeyValue;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
    request_op::Request, response_op::Response,
};

/// What lies below a name begins with it and this.
const SEPARATOR: u8 = b'/';

/// All keys of a name begin with this.
pub fn prefix(name: &[u8]) -> Bytes {
    [name, &[SEPARATOR]].concat().into()
}

/// Where what begins with a prefix ends. It ends with the separator.
pub fn end(prefix: &[u8]) -> Bytes {
    let before = prefix.len().saturating_sub(1);
    [&prefix[..before], &[SEPARATOR + 1]].concat().into()
}

/// The key of a lease below a prefix.
pub fn key(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    let lease = format!("{sign}{:x}", lease.unsigned_abs());
    [prefix, lease.as_bytes()].concat().into()
}

/// Makes a key that is not there, and reads one that is. With `reads`, who may not read what lies
/// below that prefix is refused at once.
pub fn enter(key: &Bytes, value: Bytes, lease: i64, reads: Option<&Bytes>) -> TxnRequest {
    let mut success = vec![put(key, value, lease)];
    success.extend(reads.map(asks_to_read));
    TxnRequest {
        compare: vec![created(key, 0)],
        success,
        failure: vec![range(key.clone(), Bytes::new())],
    }
}

/// Puts a value if the key is still the one created at `revision`.
pub fn proclaim(key: &Bytes, revision: i64, value: Bytes, lease: i64) -> TxnRequest {
    TxnRequest {
        compare: vec![created(key, revision)],
        success: vec![put(key, value, lease)],
        failure: Vec::new(),
    }
}

/// Deletes a key if it is still the one created at `revision`.
pub fn resign(key: &Bytes, revision: i64) -> TxnRequest {
    TxnRequest {
        compare: vec![created(key, revision)],
        success: vec![op(Request::RequestDeleteRange(delete(key.clone())))],
        failure: Vec::new(),
    }
}

pub fn delete(key: Bytes) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key,
        ..Default::default()
    }
}

/// What was there before `enter`, if it found the key.
///
/// # Errors
/// It is no answer to that.
pub fn found(mut response: TxnResponse) -> Result<Option<KeyValue>, Error> {
    if response.succeeded {
        return Ok(None);
    }
    let first = response.responses.drain(..).next();
    let Some(Response::ResponseRange(range)) = first.and_then(|first| first.response) else {
        return Err(Error::UnknownMethod);
    };
    let pairs = range.kvs.decoded().map_err(|_| Error::UnknownMethod)?;
    pairs
        .into_iter()
        .next()
        .map(Some)
        .ok_or(Error::UnknownMethod)
}

/// What asks for the right to read all below a prefix and reads nothing: rights are asked for both
/// branches, and no version is below 0.
fn asks_to_read(prefix: &Bytes) -> RequestOp {
    op(Request::RequestTxn(TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Less as i32,
            target: CompareTarget::Version as i32,
            key: prefix.clone(),
            target_union: Some(TargetUnion::Version(0)),
            ..Default::default()
        }],
        success: vec![range(prefix.clone(), end(prefix))],
        failure: Vec::new(),
    }))
}

fn created(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

fn put(key: &Bytes, value: Bytes, lease: i64) -> RequestOp {
    op(Request::RequestPut(PutRequest {
        key: key.clone(),
        value,
        lease,
        ..Default::default()
    }))
}

fn range(key: Bytes, range_end: Bytes) -> RequestOp {
    op(Request::RequestRange(RangeRequest {
        key,
        range_end,
        ..Default::default()
    }))
}

fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_etcd_writes_them() {
        for (name, lease, expected) in [
            ("lock", 0x1234_abcd, "lock/1234abcd"),
            ("lock/", 1, "lock//1"),
            ("", i64::MAX, "/7fffffffffffffff"),
            ("a", -5, "a/-5"),
            ("a", i64::MIN, "a/-8000000000000000"),
        ] {
            assert_eq!(key(&prefix(name.as_bytes()), lease), expected.as_bytes());
        }
    }
}
