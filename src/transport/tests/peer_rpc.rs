//! Peer RPCs: to a member, and to any member at some URLs.

use super::proxy::{Mode, Proxy};
use tokio::net::TcpListener;

use super::*;

fn promote() -> PeerRequest {
    PeerRequest {
        request: Some(Kind::Promote(Default::default())),
    }
}

/// One that is never answered.
fn endless() -> PeerRequest {
    PeerRequest {
        request: Some(Kind::HashKv(Default::default())),
    }
}

fn description(answer: PeerResponse) -> Description {
    match answer.response {
        Some(peer_response::Response::Description(description)) => description,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_and_errors_come_back() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    let proxy = Proxy::to(&b.address).await;
    a.knows(B, &proxy.url);
    let answer = a.network.ask(B, describe_request(), LONG).await;
    let described = description(answer.expect("an answer"));
    assert_eq!(described.cluster_version, format!("{:?}", Some(A)));
    for _ in 0..20 {
        let asked = a.network.ask(B, promote(), LONG).await;
        assert_eq!(asked, Err(Error::NotLeader));
    }
    // Two lanes and one connection for all rpcs.
    assert_eq!(proxy.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_rpc_without_an_answer_ends_in_time() {
    let (a, b) = pair().await;
    let limit = Duration::from_millis(300);
    let asked = a.network.ask(B, endless(), limit).await;
    assert_eq!(asked, Err(Error::Timeout));
    assert_eq!(b.inbound.asked.load(Ordering::SeqCst), 1);
    let asked = a.network.ask(MemberId(9), endless(), limit).await;
    assert_eq!(asked, Err(Error::NoLeader));
    // It may have arrived before the end.
    let asking = tokio::spawn(a.network.ask(B, endless(), LONG));
    eventually("the request", || {
        b.inbound.asked.load(Ordering::SeqCst) == 2
    })
    .await;
    let address = b.address.clone();
    b.stop().await;
    assert_eq!(asking.await.expect("no panic"), Err(Error::Timeout));
    // It certainly has not, once the end of the connection is noticed.
    let mut asked = Err(Error::Timeout);
    for _ in 0..20 {
        if asked == Err(Error::Timeout) {
            asked = a.network.ask(B, endless(), LONG).await;
        }
    }
    assert_eq!(asked, Err(Error::NoLeader));
    let _b = Site::start_with(B, CLUSTER, &address, |_| {}).await;
    let asked = a.network.ask(B, promote(), LONG).await;
    assert_eq!(asked, Err(Error::NotLeader));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_works_no_longer_than_its_peer_waits() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    let proxy = Proxy::to(&b.address).await;
    a.knows(B, &proxy.url);
    assert!(a.network.ask(B, describe_request(), LONG).await.is_ok());
    let waiting = || Arc::strong_count(&b.inbound.waited_for) - 1;
    let asking = tokio::spawn(a.network.ask(B, endless(), Duration::from_millis(500)));
    eventually("the request", || waiting() == 1).await;
    // So that it does not see its peer end the call.
    proxy.set(Mode::Frozen);
    assert_eq!(asking.await.expect("no panic"), Err(Error::Timeout));
    eventually("the end of the wait", || waiting() == 0).await;
}

#[tokio::test]
async fn connections_come_from_the_address_that_was_chosen() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    for (local, expected) in [
        (None, Some("127.0.0.1")),
        (Some("127.0.0.2"), Some("127.0.0.2")),
        // It cannot reach the other.
        (Some("::1"), None),
    ] {
        let dialler = Dialler {
            local: local.map(|address| address.parse().expect("an address")),
            ..Dialler::default()
        };
        let dialled = dial::dial(&dialler, &url, None).await;
        assert_eq!(dialled.is_ok(), expected.is_some(), "{local:?}");
        if let Some(expected) = expected {
            let (_, remote) = listener.accept().await.expect("a connection");
            assert_eq!(remote.ip().to_string(), expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_link_is_given_up_for_the_next_peer_rpc() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    let proxy = Proxy::to(&b.address).await;
    a.knows(B, &proxy.url);
    assert!(a.network.ask(B, describe_request(), LONG).await.is_ok());
    proxy.set(Mode::Frozen);
    let limit = Duration::from_millis(200);
    let asked = a.network.ask(B, describe_request(), limit).await;
    assert_eq!(asked, Err(Error::Timeout));
    let connections = proxy.connections.load(Ordering::SeqCst);
    proxy.set(Mode::Open);
    assert!(a.network.ask(B, describe_request(), LONG).await.is_ok());
    assert!(proxy.connections.load(Ordering::SeqCst) > connections);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listening_member_describes_itself() {
    let b = Site::start(B).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let dead = format!("http://{}", closed.local_addr().expect("an address"));
    drop(closed);
    let urls = [dead.clone(), b.url()];
    let described = describe(&Dialler::default(), &urls, LONG)
        .await
        .expect("an answer");
    assert_eq!(described.member_id, B.0);
    assert_eq!(described.cluster_version, "None");
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent_url = format!("http://{}", silent.local_addr().expect("an address"));
    let urls = [dead.clone(), silent_url.clone()];
    let error = describe(&Dialler::default(), &urls, Duration::from_millis(300)).await;
    let error = error.expect_err("nobody is there");
    assert!(error.contains(&format!("{dead}: ")), "{error}");
    let in_time = format!("{silent_url}: no answer in time");
    assert!(error.contains(&in_time), "{error}");
    assert!(describe(&Dialler::default(), &[], LONG).await.is_err());
}
