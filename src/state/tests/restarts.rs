//! The same log in other groups, and interrupted anywhere.

use std::sync::Arc;

use prost::Message;

use super::member::{Logged, Member};
use super::show;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{InternalRaftRequest, PutRequest, RequestOp, TxnRequest};
use crate::state::machine::{Entry, Payload};
use crate::state::{Group, Machine};
use crate::storage::Engine;
use crate::storage::memory::MemoryEngine;

/// Answers, changes and events of groups, by index where they have one.
#[derive(Debug, PartialEq, Default)]
struct Reported {
    answers: Vec<(u64, String)>,
    changes: String,
    lease_events: String,
    auth_events: String,
}

impl Reported {
    fn of(groups: &[Group]) -> Self {
        let mut reported = Reported::default();
        for group in groups {
            for applied in &group.applied {
                let answer = show::result(&applied.result);
                reported.answers.push((applied.index, answer));
            }
            reported
                .changes
                .extend(group.changes.iter().map(show::change));
            reported
                .lease_events
                .extend(group.lease_events.iter().map(show::lease_event));
            reported
                .auth_events
                .extend(group.auth_events.iter().map(show::auth_event));
        }
        reported
    }
}

/// Fails where the grouping of the log or a crash between two of its entries shows.
pub fn check(log: &[Logged]) {
    let end = log.len() as u64;
    let mut one_by_one = Member::new();
    let reported = Reported::of(&one_by_one.apply_log(log, end, 1));
    let dump = one_by_one.dump();
    for size in [2, 5, log.len().max(1)] {
        let mut grouped = Member::new();
        assert_eq!(Reported::of(&grouped.apply_log(log, end, size)), reported);
        assert!(grouped.dump() == dump, "groups of {size} differ");
    }
    let settled = one_by_one.settled_dump();
    for kept in 0..end {
        let engine = Arc::new(MemoryEngine::new());
        let mut member = Member::on(engine.clone());
        member.apply_log(log, kept, 4);
        if kept % 3 == 0 {
            member.compact(2, 1);
        }
        engine.flush().expect("flushes");
        let kept_dump = member.dump();
        let durable = Machine::durable_applied_index(engine.as_ref()).expect("reads");
        assert_eq!(durable, kept);
        member.apply_log(log, end, 3);
        member.compact(1, 3);
        engine.crash();
        assert!(member.dump() == kept_dump);
        let mut again = Member::on(engine);
        assert_eq!(again.machine.applied_index(), kept);
        // Entries that are in the state already come again.
        let indexes: Vec<u64> = (1..=end).collect();
        let groups = [again.apply_group(log, &indexes)];
        let mut expected = reported.answers.clone();
        expected.retain(|(index, _)| *index > kept);
        assert_eq!(Reported::of(&groups).answers, expected);
        assert!(again.settled_dump() == settled, "crash after {kept} shows");
    }
}

fn nested(depth: usize) -> TxnRequest {
    let request = match depth {
        1 => Request::RequestPut(PutRequest {
            key: "k".into(),
            ..Default::default()
        }),
        depth => Request::RequestTxn(nested(depth - 1)),
    };
    TxnRequest {
        success: vec![RequestOp {
            request: Some(request),
        }],
        ..Default::default()
    }
}

/// The decoder bounds the depth of messages: what passes it as a client's request and is applied
/// must pass it again as an entry of the log.
#[test]
fn the_deepest_transaction_can_be_read_again() {
    let decodes = |depth: usize| {
        let bytes = nested(depth).encode_to_vec();
        TxnRequest::decode(bytes.as_slice()).is_ok()
    };
    let deepest = (1..1000).take_while(|depth| decodes(*depth)).count();
    assert!((10..999).contains(&deepest));
    let request = InternalRaftRequest {
        txn: Some(nested(deepest)),
        ..Default::default()
    };
    let apply = |payload| {
        let mut member = Member::new();
        let entry = Entry {
            index: 1,
            term: 1,
            payload,
        };
        let group = member.machine.apply(vec![entry]).expect("applies");
        (Reported::of(&[group]), member.dump())
    };
    let bytes = request.encode_to_vec().into();
    assert_eq!(
        apply(Payload::Request(bytes)),
        apply(Payload::Decoded(Arc::new(request)))
    );
}
