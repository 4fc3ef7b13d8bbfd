//! Random requests, of every shape that the API allows.

use super::load::Load;

use bytes::Bytes;

use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use crate::sim::client::Client;
use crate::sim::history::{Answer, Outcome};
use crate::sim::random::Random;

/// Keys of the mixed clients; some are prefixes of others, and one has a byte that the engine's
/// keys have to escape.
pub(super) const KEYS: [&str; 10] = [
    "a", "aa", "a\0", "b", "b/1", "b/2", "b/3", "c", "c\0\0", "d",
];
/// Registers.
pub(super) const REGISTERS: u64 = 4;

pub fn put(key: impl Into<Bytes>, value: Bytes) -> PutRequest {
    PutRequest {
        key: key.into(),
        value,
        ..Default::default()
    }
}

pub fn get(key: impl Into<Bytes>) -> RangeRequest {
    RangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

pub(super) fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

pub(super) fn compare(
    key: impl Into<Bytes>,
    result: CompareResult,
    target: CompareTarget,
    union: TargetUnion,
) -> Compare {
    Compare {
        key: key.into(),
        result: result as i32,
        target: target as i32,
        target_union: Some(union),
        ..Default::default()
    }
}

pub(super) fn random_value(client: &mut Client, load: Load) -> Bytes {
    let unique = client.unique_value();
    if load.value_bytes == 0 || client.random.chance(700) {
        return unique;
    }
    let mut value = unique.to_vec();
    let extra = client.random.below(load.value_bytes) as usize;
    value.resize(value.len() + 1 + extra, b'.');
    value.into()
}

/// A key range: one key, some, or all.
pub(super) fn random_range(random: &mut Random) -> (Bytes, Bytes) {
    let key = *random.pick(&KEYS);
    let end: Bytes = match random.below(5) {
        0 => Bytes::from_static(b"\0"),
        1 => (*random.pick(&KEYS)).into(),
        2 => {
            // A prefix.
            let mut end = key.as_bytes().to_vec();
            if let Some(last) = end.last_mut() {
                *last += 1;
            }
            end.into()
        }
        _ => Bytes::new(),
    };
    (key.into(), end)
}

/// How pairs can be ordered.
pub(super) const ORDERS: [SortOrder; 3] = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
pub(super) const TARGETS: [SortTarget; 5] = [
    SortTarget::Key,
    SortTarget::Version,
    SortTarget::Create,
    SortTarget::Mod,
    SortTarget::Value,
];

/// Filters by create and mod revision.
pub(super) fn random_filters(random: &mut Random, head: i64, read: &mut RangeRequest) {
    let mut near = || match random.chance(500) {
        true => (head - random.below(60) as i64).max(0),
        false => 0,
    };
    read.min_mod_revision = near();
    read.max_mod_revision = near();
    read.min_create_revision = near();
    read.max_create_revision = near();
}

pub(super) fn random_read(random: &mut Random, head: i64) -> RangeRequest {
    let mut read = plain_read(random, head);
    if random.chance(200) {
        read.sort_order = *random.pick(&ORDERS) as i32;
        read.sort_target = *random.pick(&TARGETS) as i32;
    }
    if random.chance(100) {
        random_filters(random, head, &mut read);
    }
    read
}

pub(super) fn plain_read(random: &mut Random, head: i64) -> RangeRequest {
    let (key, range_end) = random_range(random);
    let revision = match random.below(6) {
        0 => (head - random.below(50) as i64).max(0),
        _ => 0,
    };
    RangeRequest {
        key,
        range_end,
        limit: match random.below(4) {
            0 => random.between(1, 4) as i64,
            _ => 0,
        },
        revision,
        serializable: random.chance(200),
        keys_only: random.chance(100),
        count_only: random.chance(100),
        ..Default::default()
    }
}

pub(super) fn random_put(client: &mut Client, load: Load, key: &str) -> PutRequest {
    let mut request = PutRequest {
        prev_kv: client.random.chance(300),
        ..put(key.to_owned(), random_value(client, load))
    };
    if client.random.chance(100) {
        request.lease = some_lease(client);
    }
    match client.random.below(20) {
        0 => {
            request.ignore_value = true;
            request.value = Bytes::new();
        }
        1 => {
            request.ignore_lease = true;
            request.lease = 0;
        }
        _ => {}
    }
    request
}

/// A recently granted lease, which may have ended; 0 for none.
pub(super) fn some_lease(client: &mut Client) -> i64 {
    let lease = client.clients.clone().some_lease(&mut client.random);
    lease.unwrap_or_default()
}

pub(super) fn random_delete(random: &mut Random) -> DeleteRangeRequest {
    let (key, range_end) = match random.chance(600) {
        true => ((*random.pick(&KEYS)).into(), Bytes::new()),
        false => random_range(random),
    };
    DeleteRangeRequest {
        key,
        range_end,
        prev_kv: random.chance(300),
    }
}

pub(super) fn random_compare(client: &mut Client, head: i64) -> Compare {
    let lease = some_lease(client);
    let number = client.random.below(u64::from(client.number) + 1);
    let random = &mut client.random;
    let key = *random.pick(&KEYS);
    let result = *random.pick(&[
        CompareResult::Equal,
        CompareResult::Greater,
        CompareResult::Less,
        CompareResult::NotEqual,
    ]);
    let near = (head - random.below(30) as i64).max(0);
    let (target, union) = match random.below(5) {
        0 => (
            CompareTarget::Version,
            TargetUnion::Version(random.below(4) as i64),
        ),
        1 => (CompareTarget::Create, TargetUnion::CreateRevision(near)),
        2 => (CompareTarget::Mod, TargetUnion::ModRevision(near)),
        3 => {
            // Close to the values that this client wrote.
            let value = format!("{number}-{}", random.below(100));
            (CompareTarget::Value, TargetUnion::Value(value.into()))
        }
        _ => {
            let lease = if random.chance(300) { lease } else { 0 };
            (CompareTarget::Lease, TargetUnion::Lease(lease))
        }
    };
    let mut compare = compare(key, result, target, union);
    compare.range_end = match random.below(12) {
        0 => Bytes::from_static(b"\0"),
        // An empty range if it does not sort after the key.
        1 => (*random.pick(&KEYS)).into(),
        _ => Bytes::new(),
    };
    compare
}

/// The deletion of a key; mostly as a range, so that the transaction may be written in parts.
fn random_op_delete(client: &mut Client, key: &str) -> DeleteRangeRequest {
    let prev_kv = client.random.chance(300);
    let range_end = match prev_kv {
        true => Bytes::new(),
        false => [key.as_bytes(), b"\0"].concat().into(),
    };
    DeleteRangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end,
        prev_kv,
    }
}

/// Operations of a transaction; at most one of them puts each key.
pub(super) fn random_ops(
    client: &mut Client,
    load: Load,
    keys: &[&str],
    depth: u32,
    head: i64,
) -> Vec<RequestOp> {
    let mut ops = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        let request = match client.random.below(6) {
            0 | 1 => Request::RequestPut(random_put(client, load, key)),
            2 if number == 0 => Request::RequestDeleteRange(random_op_delete(client, key)),
            3 if depth > 0 && keys.len() > 1 => {
                let rest = &keys[number..];
                let txn = random_txn(client, load, rest, depth - 1, head);
                ops.push(op(Request::RequestTxn(txn)));
                return ops;
            }
            _ => {
                let mut read = random_read(&mut client.random, head);
                read.revision = match client.random.chance(150) {
                    // Close to the current revision.
                    true => (head + client.random.below(10) as i64 - 3).max(0),
                    false => 0,
                };
                read.serializable = false;
                Request::RequestRange(read)
            }
        };
        ops.push(op(request));
    }
    ops
}

pub(super) fn random_txn(
    client: &mut Client,
    load: Load,
    keys: &[&str],
    depth: u32,
    head: i64,
) -> TxnRequest {
    let compares = client.random.below(3);
    TxnRequest {
        compare: (0..compares)
            .map(|_| random_compare(client, head))
            .collect(),
        success: random_ops(client, load, keys, depth, head),
        failure: random_ops(client, load, keys, depth, head),
    }
}

/// The range of all keys.
pub(super) fn everything() -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..Default::default()
    }
}

/// Waits between two requests.
pub(super) async fn think(client: &mut Client, load: Load) {
    let us = load.think_ms * 1_000;
    client.pause(us / 20, us).await;
}

/// The newest revision in the answer's header.
pub(super) fn head_of(outcome: Option<&Outcome>, head: i64) -> i64 {
    let header = match outcome {
        Some(Outcome::Answered(answer)) => match answer {
            Answer::Range(response) => response.header.as_ref(),
            Answer::Put(response) => response.header.as_ref(),
            Answer::DeleteRange(response) => response.header.as_ref(),
            Answer::Txn(response) => response.header.as_ref(),
            _ => None,
        },
        _ => None,
    };
    header.map_or(head, |header| header.revision.max(head))
}
