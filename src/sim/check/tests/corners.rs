//! Cases that random histories rarely contain, written by hand.

use bytes::Bytes;
use prost::Message;

use super::cluster::{SECOND, header};
use super::kinds;
use crate::error::Error;
use crate::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, InternalRaftRequest, PutRequest, PutResponse,
    RequestHeader, RequestOp, TxnRequest, WatchCreateRequest, WatchResponse, request_op::Request,
};
use crate::proto::etchedpeer::{MemberChange, Nothing, member_change::Change};
use crate::proto::membershippb::RaftAttributes;
use crate::proto::{Event, KeyValue};
use crate::sim::history::{
    Answer, AppliedEntry, ClientRequest, History, Moment, Operation, Outcome, RecordedPayload,
    Watched,
};
use crate::state::model::auth::Who;
use crate::types::MemberId;

fn entry(history: &mut History, at: Moment, payload: RecordedPayload) {
    let index = history.entries.len() as u64 + 1;
    let entry = AppliedEntry {
        index,
        term: 1,
        payload,
    };
    history.entries.push((at, entry));
}

fn request(history: &mut History, at: Moment, mut request: InternalRaftRequest) {
    request.header = Some(RequestHeader {
        id: 1000 + history.entries.len() as u64,
        ..Default::default()
    });
    let bytes = request.encode_to_vec();
    entry(history, at, RecordedPayload::Request(bytes.into()));
}

/// An operation from one nanosecond before `at` to one after it.
fn operation(history: &mut History, at: Moment, asked: ClientRequest, outcome: Outcome) {
    history.operations.push(Operation {
        client: 1,
        member: MemberId(1),
        who: Who::Nobody,
        known_index: 0,
        request: asked,
        called_at: at - 1,
        returned_at: at + 1,
        outcome,
    });
}

fn put_of(value: &'static str) -> PutRequest {
    PutRequest {
        key: "a".into(),
        value: value.into(),
        ..Default::default()
    }
}

fn put(history: &mut History, at: Moment, value: &'static str, revision: i64) {
    let put = put_of(value);
    let raft = InternalRaftRequest {
        put: Some(put.clone()),
        ..Default::default()
    };
    request(history, at, raft);
    let answer = PutResponse {
        header: header(revision),
        prev_kv: None,
    };
    operation(
        history,
        at,
        ClientRequest::Put(put),
        Outcome::Answered(Answer::Put(answer)),
    );
}

fn add(id: u64) -> MemberChange {
    MemberChange {
        member_id: id,
        change: Some(Change::Add(RaftAttributes {
            peer_urls: vec![format!("http://{id}")],
            is_learner: true,
        })),
        max_learners: 1,
        request_id: 100 + id,
    }
}

/// Adds a learner, then a second one, which exceeds the limit, and removes the first.
fn member_changes(ids: Vec<u64>) -> History {
    let mut history = History {
        founders: vec![MemberId(1), MemberId(2)],
        ..Default::default()
    };
    let remove = MemberChange {
        member_id: 7,
        change: Some(Change::Remove(Nothing {})),
        ..Default::default()
    };
    let too_many = Outcome::Refused(Error::TooManyLearners.text().to_owned());
    let changes = [
        (add(7), Outcome::Answered(Answer::Member(ids))),
        (add(8), too_many),
        (remove, Outcome::Answered(Answer::Member(vec![2, 1]))),
    ];
    for (number, (change, outcome)) in changes.into_iter().enumerate() {
        let at = 10 * (number as u64 + 1);
        entry(&mut history, at, RecordedPayload::Member(change.clone()));
        let asked = MemberChange {
            max_learners: 0,
            request_id: 0,
            ..change
        };
        operation(&mut history, at, ClientRequest::Member(asked), outcome);
    }
    history
}

#[test]
fn answers_to_changes_of_members_are_compared() {
    assert_eq!(kinds(&member_changes(vec![1, 7, 2])), [].into());
    assert_eq!(
        kinds(&member_changes(vec![1, 2])),
        ["an answer does not match its entry"].into()
    );
}

#[test]
fn compactions_are_asked_for_unless_members_compact() {
    let mut history = History::default();
    put(&mut history, 10, "1", 2);
    let compaction = InternalRaftRequest {
        compaction: Some(CompactionRequest {
            revision: 2,
            physical: false,
        }),
        ..Default::default()
    };
    request(&mut history, 20, compaction);
    assert_eq!(kinds(&history), ["an entry has no request"].into());
    history.auto_compaction = true;
    assert_eq!(kinds(&history), [].into());
}

#[test]
fn space_may_be_short_where_an_alarm_is_raised() {
    let mut history = History::default();
    let full = Outcome::Refused(Error::NoSpace.text().to_owned());
    operation(&mut history, 10, ClientRequest::Put(put_of("1")), full);
    let what = "a request was refused for lack of space without an alarm";
    assert_eq!(kinds(&history), [what].into());
    let alarm = InternalRaftRequest {
        alarm: Some(crate::proto::etcdserverpb::AlarmRequest {
            action: 1,
            member_id: 1,
            alarm: 1,
        }),
        ..Default::default()
    };
    request(&mut history, 10 * SECOND, alarm);
    assert_eq!(kinds(&history), [].into());
}

fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

#[test]
fn a_key_changed_twice_is_refused_and_no_other() {
    let refused = || Outcome::Refused(Error::DuplicateKey.text().to_owned());
    let twice = |second: &'static str| {
        let put = |key: &'static str| {
            let mut put = put_of("1");
            put.key = Bytes::from_static(key.as_bytes());
            op(Request::RequestPut(put))
        };
        ClientRequest::Txn(TxnRequest {
            success: vec![put("a"), put(second)],
            ..Default::default()
        })
    };
    let mut history = History::default();
    operation(&mut history, 10, twice("a"), refused());
    assert_eq!(kinds(&history), [].into());
    operation(&mut history, 20, twice("b"), refused());
    assert_eq!(
        kinds(&history),
        ["a request was refused without reason"].into()
    );
}

#[test]
fn a_refusal_says_what_the_log_says() {
    let mut history = History::default();
    let put = PutRequest {
        lease: 5,
        ..put_of("1")
    };
    let raft = InternalRaftRequest {
        put: Some(put.clone()),
        ..Default::default()
    };
    request(&mut history, 10, raft);
    let outcome = Outcome::Refused(Error::LeaseNotFound.text().to_owned());
    operation(&mut history, 10, ClientRequest::Put(put), outcome);
    assert_eq!(kinds(&history), [].into());
    history.operations[0].outcome = Outcome::Refused(Error::KeyNotFound.text().to_owned());
    assert_eq!(kinds(&history), ["a refusal contradicts the log"].into());
}

#[test]
fn reads_follow_what_a_watch_showed() {
    let mut history = History::default();
    put(&mut history, 10, "1", 2);
    // Only a watch has shown the write.
    history.operations[0].outcome = Outcome::Unknown;
    let created = WatchResponse {
        header: header(1),
        created: true,
        ..Default::default()
    };
    let event = Event {
        r#type: 0,
        kv: Some(KeyValue {
            key: "a".into(),
            create_revision: 2,
            mod_revision: 2,
            version: 1,
            value: "1".into(),
            lease: 0,
        }),
        prev_kv: None,
    };
    let news = WatchResponse {
        header: header(2),
        events: vec![(&event).into()],
        ..Default::default()
    };
    history.watches.push(Watched {
        client: 9,
        member: MemberId(2),
        who: Who::Nobody,
        create: WatchCreateRequest {
            key: "a".into(),
            ..Default::default()
        },
        created_at: 1,
        responses: vec![(2, created), (20, news)],
        to_the_end: true,
    });
    let read = |at: Moment| {
        let mut history = history.clone();
        let answer = crate::proto::etcdserverpb::RangeResponse {
            header: header(1),
            ..Default::default()
        };
        let asked = crate::proto::etcdserverpb::RangeRequest {
            key: "a".into(),
            ..Default::default()
        };
        let outcome = Outcome::Answered(Answer::Range(answer));
        operation(&mut history, at, ClientRequest::Range(asked), outcome);
        kinds(&history)
    };
    assert_eq!(read(20), [].into());
    assert_eq!(read(22), ["a read is stale"].into());
}

/// A transaction that puts and deletes a key, compacted to its revision; a watch that starts there
/// delivers a part of its changes.
fn undone(shown: &[i32], compacted_at: Moment) -> History {
    let mut history = History {
        auto_compaction: true,
        ..Default::default()
    };
    let nested = TxnRequest {
        success: vec![op(Request::RequestPut(put_of("1")))],
        ..Default::default()
    };
    let delete = DeleteRangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    let txn = TxnRequest {
        success: vec![
            op(Request::RequestTxn(nested)),
            op(Request::RequestDeleteRange(delete)),
        ],
        ..Default::default()
    };
    let raft = InternalRaftRequest {
        txn: Some(txn.clone()),
        ..Default::default()
    };
    request(&mut history, 10, raft);
    operation(&mut history, 10, ClientRequest::Txn(txn), Outcome::Unknown);
    let compaction = InternalRaftRequest {
        compaction: Some(CompactionRequest {
            revision: 2,
            physical: false,
        }),
        ..Default::default()
    };
    request(&mut history, compacted_at, compaction);
    let created = WatchResponse {
        header: header(2),
        created: true,
        ..Default::default()
    };
    let events = shown.iter().map(|kind| {
        let mut kv = KeyValue {
            key: "a".into(),
            mod_revision: 2,
            ..Default::default()
        };
        if *kind == 0 {
            kv.create_revision = 2;
            kv.version = 1;
            kv.value = "1".into();
        }
        let event = Event {
            r#type: *kind,
            kv: Some(kv),
            prev_kv: None,
        };
        (&event).into()
    });
    let news = WatchResponse {
        header: header(2),
        events: events.collect(),
        ..Default::default()
    };
    history.watches.push(Watched {
        client: 9,
        member: MemberId(2),
        who: Who::Nobody,
        create: WatchCreateRequest {
            key: "a".into(),
            start_revision: 2,
            ..Default::default()
        },
        created_at: 30,
        responses: vec![(30, created), (40, news)],
        to_the_end: true,
    });
    history
}

#[test]
fn what_a_transaction_undid_may_be_removed_by_a_compaction_to_it() {
    assert_eq!(kinds(&undone(&[0, 1], 20)), [].into());
    assert_eq!(kinds(&undone(&[1], 20)), [].into());
    assert_eq!(
        kinds(&undone(&[1], 50)),
        ["a watch missed an event"].into(),
        "it was not compacted yet"
    );
    assert_eq!(
        kinds(&undone(&[0], 20)),
        ["a watch missed an event"].into(),
        "a delete at the compacted revision stays"
    );
}
