//! Answers about locks and elections, right and wrong, each to one small history.

use bytes::Bytes;
use prost::Message;

use super::cluster::{SECOND, header};
use super::kinds;
use crate::error::Error;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, InternalRaftRequest, PutRequest,
    RequestHeader, RequestOp, TxnRequest,
};
use crate::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use crate::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use crate::proto::{EncodedKv, KeyValue};
use crate::sim::call::{Ask, LockAnswer};
use crate::sim::history::{
    Answer, AppliedEntry, ClientRequest, History, Moment, Observed, Operation, Outcome,
    RecordedPayload,
};
use crate::state::model::auth::Who;
use crate::types::MemberId;

/// What is put or deleted each second from the first on, at revisions from 2 on.
const CHANGES: [(&str, Option<&str>); 8] = [
    ("lock/x/a", Some("")),
    ("lock/x/b", Some("")),
    ("lock/x/a", None),
    ("elect/e/1", Some("v1")),
    ("elect/e/2", Some("v2")),
    ("elect/e/1", Some("w1")),
    ("elect/e/1", None),
    ("lock/x/b", None),
];

fn entry(key: &'static str, value: Option<&'static str>) -> InternalRaftRequest {
    let key = Bytes::from(key);
    let Some(value) = value else {
        return InternalRaftRequest {
            delete_range: Some(DeleteRangeRequest {
                key,
                ..Default::default()
            }),
            ..Default::default()
        };
    };
    let compare = Compare {
        result: CompareResult::Greater as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(-1)),
        ..Default::default()
    };
    let put = PutRequest {
        key,
        value: value.into(),
        ..Default::default()
    };
    InternalRaftRequest {
        txn: Some(TxnRequest {
            compare: vec![compare],
            success: vec![RequestOp {
                request: Some(Request::RequestPut(put)),
            }],
            failure: Vec::new(),
        }),
        ..Default::default()
    }
}

fn append(history: &mut History, at: Moment, mut request: InternalRaftRequest) {
    let index = history.entries.len() as u64 + 1;
    request.header = Some(RequestHeader {
        id: 1000 + index,
        ..Default::default()
    });
    let payload = RecordedPayload::Request(request.encode_to_vec().into());
    let entry = AppliedEntry {
        index,
        term: 1,
        payload,
    };
    history.entries.push((at, entry));
}

fn of_changes() -> History {
    let mut history = History::default();
    for (number, (key, value)) in (1..).zip(CHANGES) {
        append(&mut history, number * SECOND, entry(key, value));
    }
    history
}

/// Called after the change of one revision, and answered after that of another.
fn asked((from, to): (i64, i64), ask: Ask, outcome: Outcome) -> Operation {
    let moment = |revision: i64| (revision - 1) as u64 * SECOND + SECOND / 2;
    Operation {
        client: 1,
        member: MemberId(1),
        who: Who::Nobody,
        known_index: 0,
        request: ClientRequest::Concurrency(ask),
        called_at: moment(from),
        returned_at: moment(to),
        outcome,
    }
}

fn answered(answer: LockAnswer) -> Outcome {
    Outcome::Answered(Answer::Concurrency(answer))
}

fn lock(key: &'static str) -> Ask {
    let lease = i64::from_str_radix(key, 16).expect("a number");
    Ask::Lock(LockRequest {
        name: "lock/x".into(),
        lease,
    })
}

fn locked(key: &'static str, revision: i64) -> Outcome {
    answered(LockAnswer::Locked(LockResponse {
        header: header(revision),
        key: format!("lock/x/{key}").into(),
    }))
}

fn unlock(key: &'static str) -> Ask {
    Ask::Unlock(UnlockRequest { key: key.into() })
}

fn unlocked(revision: i64) -> Outcome {
    let header = header(revision);
    answered(LockAnswer::Unlocked(UnlockResponse { header }))
}

fn leader_key(key: &'static str, created: i64) -> Option<LeaderKey> {
    Some(LeaderKey {
        name: "elect/e".into(),
        key: key.into(),
        rev: created,
        lease: 0,
    })
}

fn campaign() -> Ask {
    Ask::Campaign(CampaignRequest {
        name: "elect/e".into(),
        lease: 2,
        value: "v2".into(),
    })
}

fn elected(created: i64, revision: i64) -> Outcome {
    answered(LockAnswer::Elected(CampaignResponse {
        header: header(revision),
        leader: leader_key("elect/e/2", created),
    }))
}

fn ask_leader() -> Ask {
    let name = "elect/e".into();
    Ask::Leader(LeaderRequest { name })
}

/// Key, value, create and mod revision, and that of the answer.
fn leader(key: &str, value: &str, created: i64, modified: i64, at: i64) -> LeaderResponse {
    let kv = KeyValue {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        create_revision: created,
        mod_revision: modified,
        version: 1 + i64::from(created != modified),
        ..Default::default()
    };
    LeaderResponse {
        header: header(at),
        kv: Some(EncodedKv::from(&kv)),
    }
}

fn proclaim(key: &'static str, created: i64, value: &'static str) -> Ask {
    Ask::Proclaim(ProclaimRequest {
        leader: leader_key(key, created),
        value: value.into(),
    })
}

fn resign() -> Ask {
    let leader = leader_key("elect/e/1", 5);
    Ask::Resign(ResignRequest { leader })
}

fn refused(error: Error) -> Outcome {
    Outcome::Refused(error.text().to_owned())
}

#[test]
fn every_wrong_answer_is_found_and_no_right_one() {
    let early = "a lock was given before its turn";
    let gone = "a lock was given whose key had gone";
    let time = "a lock or an election is answered as of another time";
    let shown = "a leader was shown that did not lead";
    let is_leader = |response| answered(LockAnswer::Leader(response));
    let proclaimed = |revision| {
        let header = header(revision);
        answered(LockAnswer::Proclaimed(ProclaimResponse { header }))
    };
    let resigned = |revision| {
        let header = header(revision);
        answered(LockAnswer::Resigned(ResignResponse { header }))
    };
    let table = [
        ((1, 3), lock("a"), locked("a", 2), ""),
        ((1, 3), lock("a"), locked("a", 3), ""),
        ((1, 5), lock("a"), locked("a", 4), gone),
        ((2, 4), lock("b"), locked("b", 4), ""),
        ((2, 4), lock("b"), locked("b", 3), early),
        ((2, 4), lock("b"), locked("b", 5), time),
        ((8, 9), lock("b"), locked("b", 9), gone),
        ((1, 3), lock("c"), locked("c", 2), gone),
        ((2, 9), lock("b"), refused(Error::SessionExpired), ""),
        (
            (2, 9),
            lock("c"),
            refused(Error::SessionExpired),
            "a lock was refused whose key was there",
        ),
        ((3, 4), unlock("lock/x/a"), unlocked(4), ""),
        (
            (3, 4),
            unlock("lock/x/a"),
            unlocked(3),
            "an unlocked key is still there",
        ),
        ((5, 8), campaign(), elected(6, 6), ""),
        (
            (5, 7),
            campaign(),
            elected(6, 6),
            "an election was won before its turn",
        ),
        (
            (4, 5),
            ask_leader(),
            is_leader(leader("elect/e/1", "v1", 5, 5, 5)),
            "",
        ),
        (
            (5, 7),
            ask_leader(),
            is_leader(leader("elect/e/1", "v1", 5, 5, 6)),
            "",
        ),
        (
            (5, 7),
            ask_leader(),
            is_leader(leader("elect/e/1", "v1", 5, 5, 7)),
            shown,
        ),
        (
            (5, 7),
            ask_leader(),
            is_leader(leader("elect/e/2", "v2", 6, 6, 6)),
            shown,
        ),
        ((4, 4), ask_leader(), refused(Error::ElectionNoLeader), ""),
        (
            (5, 9),
            ask_leader(),
            refused(Error::ElectionNoLeader),
            "no leader was shown where one led",
        ),
        ((6, 7), proclaim("elect/e/1", 5, "w1"), proclaimed(7), ""),
        (
            (6, 7),
            proclaim("elect/e/1", 5, "w2"),
            proclaimed(7),
            "a leader's value was not put",
        ),
        (
            (8, 8),
            proclaim("elect/e/1", 5, "w2"),
            refused(Error::ElectionNotLeader),
            "",
        ),
        (
            (6, 7),
            proclaim("elect/e/1", 5, "w1"),
            refused(Error::ElectionNotLeader),
            "a leader was refused that led",
        ),
        ((7, 8), resign(), resigned(8), ""),
        (
            (6, 7),
            resign(),
            resigned(7),
            "a key that was resigned is still there",
        ),
    ];
    for (times, ask, outcome, expected) in table {
        let mut history = of_changes();
        let operation = asked(times, ask, outcome);
        history.operations.push(operation.clone());
        let found: Vec<_> = kinds(&history).into_iter().collect();
        let expected: Vec<_> = Some(expected)
            .filter(|what| !what.is_empty())
            .into_iter()
            .collect();
        assert_eq!(found, expected, "{operation:?}");
    }
}

#[test]
fn observers_see_leaders_in_order() {
    let first = || leader("elect/e/1", "v1", 5, 5, 5);
    let second = || leader("elect/e/1", "w1", 5, 7, 7);
    let third = || leader("elect/e/2", "v2", 6, 6, 8);
    let back = "an observer of an election was led back";
    let shown = "a leader was shown that did not lead";
    for (news, expected) in [
        (vec![first(), second(), third()], vec![]),
        (vec![first(), third()], vec![]),
        (vec![second(), first()], vec![back]),
        (vec![third(), second()], vec![back]),
        (vec![first(), first()], vec![back]),
        (vec![leader("elect/e/2", "v2", 6, 6, 6)], vec![shown]),
        (vec![leader("elect/e/1", "v2", 5, 7, 7)], vec![shown]),
    ] {
        let mut history = of_changes();
        let arrived = 9 * SECOND;
        history.observed.push(Observed {
            client: 1,
            member: MemberId(1),
            name: "elect/e",
            seen: news
                .into_iter()
                .map(|response| (arrived, response))
                .collect(),
        });
        let found: Vec<_> = kinds(&history).into_iter().collect();
        assert_eq!(found, expected, "{:?}", history.observed);
    }
}

#[test]
fn a_turn_without_an_answer_is_found() {
    let unanswered = "a turn came and who waited was not answered";
    // The lock of b is free from the third second on; until when it waits, when others are answered,
    // and whether anything is broken.
    for (waits_until, answered_at, calm, expected) in [
        (20, 6, true, vec![unanswered]),
        (20, 6, false, vec![]),
        (20, 18, true, vec![]),
        (7, 6, true, vec![]),
    ] {
        let mut history = History::default();
        for (number, (key, value)) in (1..).zip(&CHANGES[..3]) {
            append(&mut history, number * SECOND, entry(key, *value));
        }
        let mut waiting = asked((2, 3), lock("b"), Outcome::Unknown);
        waiting.returned_at = waits_until * SECOND;
        let delete = DeleteRangeRequest {
            key: "z".into(),
            ..Default::default()
        };
        let request = InternalRaftRequest {
            delete_range: Some(delete.clone()),
            ..Default::default()
        };
        append(&mut history, answered_at * SECOND, request);
        let answer = DeleteRangeResponse {
            header: header(4),
            ..Default::default()
        };
        let mut answered = asked((2, 2), unlock("z"), Outcome::Unknown);
        answered.request = ClientRequest::DeleteRange(delete);
        answered.called_at = answered_at * SECOND - 1;
        answered.returned_at = answered_at * SECOND + 1;
        answered.outcome = Outcome::Answered(Answer::DeleteRange(answer));
        history.operations = vec![answered, waiting];
        if calm {
            history.calm = vec![(0, 30 * SECOND)];
        }
        let found: Vec<_> = kinds(&history).into_iter().collect();
        assert_eq!(found, expected, "{waits_until} {answered_at} {calm}");
    }
}
