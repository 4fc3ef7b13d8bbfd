//! Which calls are writes, of what, and which answers are kept.

use super::super::caller::CallerKey;
use super::*;
use crate::proto::etcdserverpb::Compare;

#[test]
fn calls_that_may_write_are_known() {
    let mut writes = Vec::new();
    for rpc in RPCS {
        let path = format!("/{}/{}", rpc.service, rpc.method);
        if is_write(&path) {
            writes.push(rpc.method);
        }
        if rpc.service == rpcs::KV && is_write(&path) {
            assert!(Keyed::of(&path).is_some(), "{path} names its keys");
        }
    }
    writes.sort_unstable();
    let expected = [
        "AuthDisable",
        "AuthEnable",
        "Campaign",
        "DeleteRange",
        "LeaseRevoke",
        "Lock",
        "Proclaim",
        "Put",
        "Resign",
        "RoleAdd",
        "RoleDelete",
        "RoleGrantPermission",
        "RoleRevokePermission",
        "Txn",
        "Unlock",
        "UserAdd",
        "UserChangePassword",
        "UserDelete",
        "UserGrantRole",
        "UserRevokeRole",
    ];
    assert_eq!(writes, expected);
    // A member may be newer; of what it has beside etcd's services nothing is cached.
    for (path, expected) in [
        ("/etcdserverpb.Auth/UserRename", true),
        ("/etcdserverpb.Names/Rename", false),
        ("/etcdserverpb.Auth", false),
    ] {
        assert_eq!(is_write(path), expected, "{path}");
    }
}

#[test]
fn a_transaction_changes_what_its_innermost_operations_do() {
    let operation = |request| RequestOp {
        request: Some(request),
    };
    let put = |key: &'static str| {
        operation(request_op::Request::RequestPut(PutRequest {
            key: key.into(),
            ..Default::default()
        }))
    };
    let nested = TxnRequest {
        failure: vec![operation(request_op::Request::RequestDeleteRange(
            DeleteRangeRequest {
                key: "d".into(),
                range_end: "f".into(),
                ..Default::default()
            },
        ))],
        ..Default::default()
    };
    let read = operation(request_op::Request::RequestRange(RangeRequest {
        key: "r".into(),
        ..Default::default()
    }));
    let txn = TxnRequest {
        compare: vec![Compare {
            key: "c".into(),
            ..Default::default()
        }],
        success: vec![put("p"), read],
        failure: vec![operation(request_op::Request::RequestTxn(nested)), put("q")],
    };
    let message = txn.encode_to_vec().into();
    assert!(!is_read(Keyed::Txn, &message));
    let found = changed(Keyed::Txn, &message).expect("is read");
    let point = |key: &'static str| KeyRange::Point(key.into());
    let span = KeyRange::Span("d".into(), "f".into());
    let expected = vec![point("c"), point("p"), span, point("q")];
    assert_eq!(found, Some(expected));
    // More than these count as everything.
    for (puts, counted) in [(MAX_CHANGED, Some(MAX_CHANGED)), (MAX_CHANGED + 1, None)] {
        let success = (0..puts).map(|_| put("p")).collect();
        let txn = TxnRequest {
            success,
            ..Default::default()
        };
        let found = changed(Keyed::Txn, &txn.encode_to_vec().into()).expect("is read");
        assert_eq!(found.map(|changed| changed.len()), counted);
    }
    let broken = changed(Keyed::Put, &Bytes::from_static(b"\xff"));
    assert_eq!(
        broken.expect_err("cannot be read").code(),
        tonic::Code::Internal
    );
}

#[test]
fn a_transaction_of_reads_is_a_read() {
    let of = |request| RequestOp {
        request: Some(request),
    };
    let inner = TxnRequest {
        success: vec![of(request_op::Request::RequestRange(
            RangeRequest::default(),
        ))],
        ..Default::default()
    };
    let writes = TxnRequest {
        failure: vec![of(request_op::Request::RequestPut(PutRequest::default()))],
        ..inner.clone()
    };
    for (inner, expected) in [(inner, true), (writes, false)] {
        let outer = TxnRequest {
            success: vec![of(request_op::Request::RequestTxn(inner))],
            ..Default::default()
        };
        let message = outer.encode_to_vec().into();
        assert_eq!(is_read(Keyed::Txn, &message), expected);
        assert!(!is_read(Keyed::Put, &message));
    }
}

/// What the cache holds after an answer of these frames.
async fn kept(frames: Vec<Frame<Bytes>>) -> Option<Bytes> {
    let cache = Arc::new(SharedCache {
        ranges: Mutex::default(),
        clock: Arc::new(SystemClock::new()),
    });
    let request = RangeRequest::default();
    let lookup = Lookup::new(CallerKey::default(), &request);
    let frames = frames.into_iter().map(Ok::<_, Status>);
    let mut body = Remembering {
        body: Body::new(http_body_util::StreamBody::new(tokio_stream::iter(frames))),
        held: BytesMut::new(),
        reading: Some(ReadUnderWay::begin(&cache, lookup.clone(), request)),
    };
    while body.frame().await.is_some() {}
    let now = cache.clock.now();
    let found = cache.ranges.lock().get(&lookup, 0, now);
    found.map(|found| found.framed)
}

#[tokio::test]
async fn whole_answers_without_an_error_are_kept() {
    let trailers = |status: &'static str| {
        let mut trailers = HeaderMap::new();
        trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static(status));
        Frame::trailers(trailers)
    };
    let message = passing::framed(b"message");
    let parts = [message.slice(..3), message.slice(3..)].map(Frame::data);
    let [first, second] = parts;
    assert_eq!(
        kept(vec![first, second, trailers("0")]).await,
        Some(message.clone())
    );
    let large = passing::framed(&vec![0; MAX_ANSWER_BYTES]);
    let mut compressed = message.to_vec();
    compressed[0] = 1;
    for frames in [
        vec![Frame::data(message.clone())],
        vec![Frame::data(message.clone()), trailers("5")],
        vec![Frame::data(message.slice(..8)), trailers("0")],
        vec![trailers("0")],
        vec![Frame::data(compressed.into()), trailers("0")],
        vec![Frame::data(large), trailers("0")],
    ] {
        let described = format!("{frames:?}").chars().take(80).collect::<String>();
        assert_eq!(kept(frames).await, None, "{described}");
    }
}
