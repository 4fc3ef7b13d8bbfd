//! Who is answered without the right to it is found, and so is who is refused with it.

use prost::Message;

use super::cluster::header;
use super::kinds;
use crate::error::Error;
use crate::proto::etcdserverpb::{
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, InternalRaftRequest,
    LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse, RequestHeader, ResponseHeader,
    WatchCreateRequest, WatchResponse,
};
use crate::proto::{Event, KeyValue};
use crate::service::fixture;
use crate::sim::history::{
    Answer, AppliedEntry, ClientRequest, History, Moment, Operation, Outcome, RecordedPayload,
    Watched,
};
use crate::state::Response;
use crate::state::auth::verdict::MEMBER_REVISION;
use crate::state::model::auth::Who;
use crate::types::MemberId;

const WITHOUT: &str = "a user was answered without the right to it";
/// The auth revision after `history`.
const NOW: u64 = 9;

fn user(name: &str, auth_revision: u64) -> Who {
    Who::User {
        name: name.to_owned(),
        auth_revision,
    }
}

/// A request that is applied at `at`, and whose client never hears of it.
fn entry(history: &mut History, at: Moment, who: Who, request: InternalRaftRequest) {
    let index = history.entries.len() as u64 + 1;
    let (username, auth_revision) = match &who {
        Who::Nobody => (String::new(), 0),
        Who::Member => (String::new(), MEMBER_REVISION),
        Who::User {
            name,
            auth_revision,
        } => (name.clone(), *auth_revision),
    };
    let asked = match (&request.put, &request.lease_grant) {
        (Some(put), _) => ClientRequest::Put(put.clone()),
        (_, Some(grant)) => ClientRequest::LeaseGrant(*grant),
        (None, None) => ClientRequest::Auth(Box::new(request.clone())),
    };
    operation(history, at, who, asked, Outcome::Unknown);
    let request = InternalRaftRequest {
        header: Some(RequestHeader {
            id: index,
            username,
            auth_revision,
        }),
        ..request
    };
    let payload = RecordedPayload::Request(request.encode_to_vec().into());
    let entry = AppliedEntry {
        index,
        term: 1,
        payload,
    };
    history.entries.push((at, entry));
}

fn operation(history: &mut History, at: Moment, who: Who, asked: ClientRequest, outcome: Outcome) {
    // Each of another client: none has seen what another one has.
    let client = history.operations.len() as u32;
    history.operations.push(Operation {
        client,
        member: MemberId(1),
        who,
        known_index: 0,
        request: asked,
        called_at: at - 1,
        returned_at: at + 1,
        outcome,
    });
}

/// `alice` may read `a`, until that is taken from her at 60; `root` puts it at 50 and 70.
fn history() -> History {
    let mut history = History::default();
    let setup = fixture::auth_requests(&[("alice", &[(0, "a", "")]), ("root", &[])]);
    for (at, request) in (10..).zip(setup) {
        entry(&mut history, at, Who::Nobody, request);
    }
    let put = |value: &'static str| InternalRaftRequest {
        put: Some(PutRequest {
            key: "a".into(),
            value: value.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    entry(&mut history, 50, user("root", NOW - 1), put("1"));
    let revoke = InternalRaftRequest {
        auth_role_revoke_permission: Some(AuthRoleRevokePermissionRequest {
            role: "alice".to_owned(),
            key: "a".into(),
            range_end: Default::default(),
        }),
        ..Default::default()
    };
    entry(&mut history, 60, user("root", NOW - 1), revoke);
    // Requests that begin after that see it.
    let revoked = Response::AuthRoleRevokePermission(AuthRoleRevokePermissionResponse {
        header: Some(ResponseHeader {
            revision: 2,
            ..Default::default()
        }),
    });
    if let Some(operation) = history.operations.last_mut() {
        operation.outcome = Outcome::Answered(Answer::Auth(Box::new(revoked)));
    }
    entry(&mut history, 70, user("root", NOW), put("2"));
    history
}

fn pair(value: &'static str, revision: i64) -> KeyValue {
    KeyValue {
        key: "a".into(),
        create_revision: 2,
        mod_revision: revision,
        version: revision - 1,
        value: value.into(),
        lease: 0,
    }
}

#[test]
fn a_history_of_users_is_right() {
    assert_eq!(kinds(&history()), [].into());
}

#[test]
fn reads_without_the_right_to_them_are_found() {
    let read = |at, who: Who, key: &'static str| {
        let mut history = history();
        let asked = RangeRequest {
            key: key.into(),
            count_only: true,
            ..Default::default()
        };
        let revision = if at < 70 { 2 } else { 3 };
        let answer = RangeResponse {
            header: header(revision),
            count: i64::from(key == "a"),
            ..Default::default()
        };
        let outcome = Outcome::Answered(Answer::Range(answer));
        operation(&mut history, at, who, ClientRequest::Range(asked), outcome);
        kinds(&history)
    };
    assert_eq!(read(55, user("alice", NOW - 1), "a"), [].into());
    assert_eq!(read(60, user("alice", NOW - 1), "a"), [].into());
    for (at, who, key) in [
        (65, user("alice", NOW - 1), "a"),
        (65, user("alice", NOW), "a"),
        (55, user("alice", NOW - 1), "b"),
        (55, user("alice", NOW - 2), "a"),
        (55, user("bob", NOW - 1), "a"),
        (55, Who::Nobody, "a"),
        (80, user("root", NOW + 1), "a"),
    ] {
        assert_eq!(
            read(at, who.clone(), key),
            [WITHOUT].into(),
            "{who:?} {key}"
        );
    }
}

#[test]
fn leases_renewed_and_listed_without_the_right_to_it_are_found() {
    const LEASE: i64 = 7;
    let asked = |(who, known): (&Who, usize), asked: &ClientRequest, answer: &Answer| {
        let mut history = history();
        let requests = [
            InternalRaftRequest {
                lease_grant: Some(LeaseGrantRequest { id: LEASE, ttl: 60 }),
                ..Default::default()
            },
            InternalRaftRequest {
                put: Some(PutRequest {
                    key: "a".into(),
                    value: "3".into(),
                    lease: LEASE,
                    ..Default::default()
                }),
                ..Default::default()
            },
        ];
        for (at, request) in (80..).step_by(5).zip(requests) {
            entry(&mut history, at, user("root", NOW), request);
        }
        let outcome = Outcome::Answered(answer.clone());
        operation(&mut history, 100, who.clone(), asked.clone(), outcome);
        let known_index = (history.entries.len() - known) as u64;
        if let Some(operation) = history.operations.last_mut() {
            operation.known_index = known_index;
        }
        kinds(&history)
    };
    let renewal = ClientRequest::LeaseKeepAlive { id: LEASE };
    let renewed = Answer::LeaseKeepAlive { ttl: 60 };
    let listed = Answer::Leases(vec![LEASE]);
    for (who, behind, without) in [
        (user("root", NOW), 0, false),
        (user("root", 1), 0, false),
        (user("alice", NOW), 0, true),
        (user("bob", NOW), 0, true),
        (Who::Nobody, 0, true),
        // By a member that did not know of the key yet.
        (user("alice", NOW), 1, false),
    ] {
        let expected = match without {
            true => [WITHOUT].into(),
            false => [].into(),
        };
        let caller = (&who, behind);
        let found = asked(caller, &renewal, &renewed);
        assert_eq!(found, expected, "{who:?} renews");
        let found = asked(caller, &ClientRequest::LeaseLeases, &listed);
        assert_eq!(found, expected, "{who:?} lists");
    }
}

#[test]
fn refusals_without_reason_are_found() {
    let refused = |at, who: Who, error: Error| {
        let mut history = history();
        let asked = RangeRequest {
            key: "a".into(),
            ..Default::default()
        };
        let outcome = Outcome::Refused(error.text().to_owned());
        operation(&mut history, at, who, ClientRequest::Range(asked), outcome);
        kinds(&history)
    };
    let wrong = "a user was refused without reason";
    let alice = user("alice", NOW - 1);
    let old = Error::AuthOldRevision;
    assert_eq!(refused(55, alice.clone(), old), [wrong].into());
    assert_eq!(refused(65, alice.clone(), old), [].into());
    let denied = Error::PermissionDenied;
    assert_eq!(refused(55, alice, denied), [wrong].into());
    assert_eq!(refused(65, user("alice", NOW), denied), [].into());
    assert_eq!(refused(55, Who::Nobody, Error::UserEmpty), [].into());
    assert_eq!(
        refused(55, user("root", 8), Error::UserEmpty),
        [wrong].into()
    );
}

#[test]
fn events_without_the_right_to_them_are_found() {
    let watch = |who: Who, events: &[(Moment, &'static str, i64)], to_the_end| {
        let mut history = history();
        let created = WatchResponse {
            header: header(1),
            created: true,
            ..Default::default()
        };
        let mut responses = vec![(45, created)];
        for (at, value, revision) in events {
            let event = Event {
                r#type: 0,
                kv: Some(pair(value, *revision)),
                prev_kv: None,
            };
            let response = WatchResponse {
                header: header(*revision),
                events: vec![(&event).into()],
                ..Default::default()
            };
            responses.push((*at, response));
        }
        history.watches.push(Watched {
            client: 9,
            member: MemberId(2),
            who,
            create: WatchCreateRequest {
                key: "a".into(),
                ..Default::default()
            },
            created_at: 44,
            responses,
            to_the_end,
        });
        kinds(&history)
    };
    let (first, second) = ((52, "1", 2), (75, "2", 3));
    assert_eq!(watch(user("root", 0), &[first, second], true), [].into());
    assert_eq!(watch(user("alice", 0), &[first], false), [].into());
    // Sent before and received after the right was taken.
    assert_eq!(watch(user("alice", 0), &[(65, "1", 2)], false), [].into());
    let without = [WITHOUT].into();
    assert_eq!(watch(user("alice", 0), &[first, second], false), without);
    assert_eq!(watch(user("bob", 0), &[first], false), without);
    let continued = "a watch continued without the right to it";
    assert_eq!(watch(user("alice", 0), &[first], true), [continued].into());
}
