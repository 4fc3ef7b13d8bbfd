//! Watches of users whose rights change.

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::proto::etcdserverpb::{
    AuthDisableRequest, AuthRoleRevokePermissionRequest, AuthUserDeleteRequest,
    InternalRaftRequest, PutRequest, RequestHeader,
};
use crate::service::fixture;
use crate::state::auth::verdict::MEMBER_REVISION;

const READ: i32 = 0;

fn settings(recheck_watches: bool) -> ApiSettings {
    ApiSettings {
        max_txn_ops: 128,
        max_request_bytes: 1 << 20,
        fragment_bytes: 1 << 20,
        progress_interval: Duration::from_secs(600),
        recheck_watches,
        warning_unary_request_duration: Duration::MAX,
        warning_apply_duration: Duration::MAX,
    }
}

fn by_member(request: InternalRaftRequest) -> InternalRaftRequest {
    InternalRaftRequest {
        header: Some(RequestHeader {
            auth_revision: MEMBER_REVISION,
            ..Default::default()
        }),
        ..request
    }
}

fn put(key: &'static str) -> InternalRaftRequest {
    by_member(InternalRaftRequest {
        put: Some(PutRequest {
            key: key.into(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn revoke(role: &str, key: &'static str) -> InternalRaftRequest {
    by_member(InternalRaftRequest {
        auth_role_revoke_permission: Some(AuthRoleRevokePermissionRequest {
            role: role.to_owned(),
            key: key.into(),
            range_end: Default::default(),
        }),
        ..Default::default()
    })
}

fn delete_user(name: &str) -> InternalRaftRequest {
    by_member(InternalRaftRequest {
        auth_user_delete: Some(AuthUserDeleteRequest {
            name: name.to_owned(),
        }),
        ..Default::default()
    })
}

fn enable() -> Vec<InternalRaftRequest> {
    fixture::auth_requests(&[
        (
            "alice",
            &[(READ, "a", ""), (READ, "b", ""), (READ, "c", "")],
        ),
        ("root", &[]),
    ])
}

/// An open stream.
struct Client {
    requests: mpsc::Sender<Result<WatchRequest, Status>>,
    responses: Responses,
}

impl Client {
    fn open(service: &WatchService, caller: Caller) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        Self {
            requests,
            responses: service.open(caller, ReceiverStream::new(receiver)),
        }
    }

    async fn next(&mut self) -> WatchResponse {
        let next = tokio::time::timeout(Duration::from_secs(10), self.responses.next());
        let response = next.await.expect("in time").expect("a response");
        response.expect("no end")
    }

    /// That nothing comes, as far as a short while shows.
    async fn is_silent(&mut self) -> bool {
        let next = tokio::time::timeout(Duration::from_millis(20), self.responses.next());
        next.await.is_err()
    }

    async fn create(&mut self, key: &'static str, range_end: &'static str) -> WatchResponse {
        let create = WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            ..Default::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        self.requests.send(Ok(request)).await.expect("a stream");
        self.next().await
    }
}

const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
const NOBODY: &str = "rpc error: code = InvalidArgument desc = etcdserver: user name is empty";
const STALE: &str =
    "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old";

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_is_made_for_who_may_read_its_range_as_it_was_asked_for() {
    let handle = fixture::single_member();
    fixture::apply(&handle, enable());
    let now = handle.auth().revision();
    let service = WatchService::new(handle, settings(true));
    for (caller, key, range_end, reason) in [
        (fixture::user("alice", now), "a", "", ""),
        (fixture::user("alice", now), "a", "\0", DENIED),
        (fixture::user("alice", now), "", "", DENIED),
        (fixture::user("alice", now), "", "\0", DENIED),
        (fixture::user("alice", now), "\0", "\0", DENIED),
        (fixture::user("alice", now - 1), "a", "", STALE),
        (fixture::user("bob", now), "a", "", DENIED),
        (fixture::user("root", now), "", "\0", ""),
        (Caller::nobody(), "a", "", NOBODY),
    ] {
        let mut client = Client::open(&service, caller);
        let made = client.create(key, range_end).await;
        assert_eq!(made.cancel_reason, reason, "{key:?} {range_end:?}");
        assert!(made.created);
        assert_eq!(made.canceled, !reason.is_empty());
        assert_eq!(made.watch_id, if made.canceled { -1 } else { 0 });
        // The stream lives on.
        if made.canceled && reason == DENIED && key != "a" {
            assert_eq!(client.create("a", "").await.watch_id, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_when_its_user_loses_the_right_to_it() {
    let handle = fixture::single_member();
    fixture::apply(&handle, enable());
    let now = handle.auth().revision();
    let service = WatchService::new(handle.clone(), settings(true));
    let mut client = Client::open(&service, fixture::user("alice", now));
    let keys = ["a", "b", "c"];
    for (number, key) in keys.into_iter().enumerate() {
        assert_eq!(client.create(key, "").await.watch_id, number as i64);
    }
    fixture::apply(&handle, vec![put("a")]);
    assert_eq!(client.next().await.events.len(), 1);
    // Without an event, too.
    fixture::apply(&handle, vec![revoke("alice", "b")]);
    let ended = client.next().await;
    assert!(ended.canceled && ended.events.is_empty());
    assert_eq!((ended.watch_id, ended.cancel_reason.as_str()), (1, DENIED));
    // The revocation and the event come in one group; the event is not for the user any more.
    fixture::apply(&handle, vec![revoke("alice", "a"), put("a"), put("c")]);
    let mut ended = Vec::new();
    let mut events = Vec::new();
    for _ in 0..2 {
        let response = client.next().await;
        match response.canceled {
            true => ended.push(response.watch_id),
            false => events.push(response.watch_id),
        }
    }
    assert_eq!((ended, events), (vec![0], vec![2]));
    fixture::apply(&handle, vec![delete_user("alice"), put("c")]);
    let last = client.next().await;
    assert_eq!((last.watch_id, last.canceled), (2, true));
    fixture::apply(&handle, vec![put("a"), put("b"), put("c")]);
    assert!(client.is_silent().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_nobody_ends_when_authentication_is_enabled() {
    let handle = fixture::single_member();
    let service = WatchService::new(handle.clone(), settings(true));
    let mut client = Client::open(&service, Caller::nobody());
    assert_eq!(client.create("a", "").await.watch_id, 0);
    fixture::apply(&handle, enable());
    let ended = client.next().await;
    assert_eq!((ended.watch_id, ended.cancel_reason.as_str()), (0, NOBODY));
    let disable = InternalRaftRequest {
        auth_disable: Some(AuthDisableRequest {}),
        ..Default::default()
    };
    fixture::apply(&handle, vec![by_member(disable)]);
    assert!(client.create("a", "").await.cancel_reason.is_empty());
    fixture::apply(&handle, vec![put("a")]);
    assert_eq!(client.next().await.events.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_continues_where_that_is_wanted() {
    let handle = fixture::single_member();
    fixture::apply(&handle, enable());
    let now = handle.auth().revision();
    let service = WatchService::new(handle.clone(), settings(false));
    let mut client = Client::open(&service, fixture::user("alice", now));
    assert_eq!(client.create("a", "").await.watch_id, 0);
    fixture::apply(&handle, vec![delete_user("alice"), put("a")]);
    assert_eq!(client.next().await.events.len(), 1);
    // Another one is not made.
    assert_eq!(client.create("a", "").await.cancel_reason, STALE);
}
