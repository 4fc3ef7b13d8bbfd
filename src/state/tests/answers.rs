//! What is kept for an answer decides nothing but the answer.

use std::sync::Arc;

use super::member::{Logged, dump, entry};
use super::show;
use crate::error::Error;
use crate::mvcc::read::PinnedView;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, InternalRaftRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use crate::state::machine::Staged;
use crate::state::{Group, Machine, answer_size};
use crate::storage::Engine;
use crate::storage::memory::MemoryEngine;

fn put(key: &'static str, value_bytes: usize, prev_kv: bool) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: vec![b'v'; value_bytes].into(),
        prev_kv,
        ..Default::default()
    }
}

fn range() -> RangeRequest {
    RangeRequest {
        key: "a".into(),
        range_end: "z".into(),
        ..Default::default()
    }
}

fn delete(prev_kv: bool) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: "a".into(),
        range_end: "z".into(),
        prev_kv,
    }
}

fn txn(ops: Vec<Request>) -> InternalRaftRequest {
    let op = |request| RequestOp {
        request: Some(request),
    };
    InternalRaftRequest {
        txn: Some(TxnRequest {
            success: ops.into_iter().map(op).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn requests() -> Vec<InternalRaftRequest> {
    let one = |put| InternalRaftRequest {
        put: Some(put),
        ..Default::default()
    };
    vec![
        one(put("a", 60, false)),
        one(put("b", 60, true)),
        one(put("b", 10, true)),
        txn(vec![
            Request::RequestPut(put("c", 30, false)),
            Request::RequestRange(range()),
            Request::RequestPut(put("c", 30, true)),
        ]),
        txn(vec![
            Request::RequestRange(range()),
            Request::RequestDeleteRange(delete(true)),
            Request::RequestPut(put("d", 1, false)),
        ]),
        InternalRaftRequest {
            delete_range: Some(delete(true)),
            ..Default::default()
        },
    ]
}

#[test]
fn what_is_not_kept_is_applied_all_the_same() {
    let apply = |answer_bytes: usize| {
        let engine = Arc::new(MemoryEngine::new());
        let mut machine = Machine::open(engine.clone()).expect("opens");
        let requests = requests().into_iter().map(Logged::Request);
        let entries: Vec<_> = (1..).zip(requests).collect();
        let entries: Vec<_> = entries
            .iter()
            .map(|(at, logged)| entry(*at, logged))
            .collect();
        let mut group = Group::default();
        let staged = machine.stage(&entries, &mut group, |_| answer_bytes, |_| ());
        assert_eq!(staged.expect("applies"), Staged::All);
        machine.commit().expect("writes");
        let changes: Vec<_> = group.changes.iter().map(show::change).collect();
        let results: Vec<_> = group
            .applied
            .into_iter()
            .map(|applied| applied.result)
            .collect();
        (dump(engine.latest()), changes, results)
    };
    let (state, changes, whole) = apply(usize::MAX);
    assert!(whole.iter().all(Result::is_ok));
    let (little, nobody) = (apply(80), apply(0));
    assert!(little.0 == state && nobody.0 == state);
    assert!(little.1 == changes && nobody.1 == changes);
    let not_kept = |result: &Result<_, _>| *result == Err(Error::AnswerNotKept);
    let refused: Vec<_> = little.2.iter().map(not_kept).collect();
    assert_eq!(refused, [false, false, false, true, true, false]);
    for (kept, whole) in little.2.iter().zip(&whole) {
        assert!(not_kept(kept) || kept == whole);
    }
    assert!(nobody.2.iter().all(Result::is_ok));
}

#[test]
fn the_size_of_an_answer_is_foreseen() {
    let engine = Arc::new(MemoryEngine::new());
    let mut machine = Machine::open(engine.clone()).expect("opens");
    let mut sizes = Vec::new();
    for (index, request) in (1..).zip(requests()) {
        let pinned = PinnedView {
            read: engine.latest(),
            head: machine.head(),
            compacted: machine.compacted(),
            counts: None,
        };
        let size = |most| answer_size::of_now(&pinned, &request, most).expect("reads");
        sizes.push((
            answer_size::may_be_large(&request),
            size(usize::MAX),
            size(10),
        ));
        let entries = vec![entry(index, &Logged::Request(request.clone()))];
        machine.apply(entries).expect("applies");
    }
    // Whether it has to be measured, all, and what is seen where little may be answered.
    let pair = |value_bytes: usize| value_bytes + 13;
    let two = pair(60) + pair(10);
    let three = two + pair(30);
    assert_eq!(
        sizes,
        [
            (false, 0, 0),
            (false, 0, 0),
            (false, 0, 0),
            (true, two, pair(60)),
            (true, 2 * three, pair(60)),
            (true, pair(1), pair(1)),
        ]
    );
}
