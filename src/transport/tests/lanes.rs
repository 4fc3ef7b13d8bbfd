//! Messages between members, and the links that carry them.

use super::proxy::{Mode, Proxy};
use tokio::net::TcpListener;

use super::*;

use raft_proto::eraftpb::MessageType::{MsgAppend, MsgAppendResponse, MsgHeartbeat};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_whole_and_in_order() {
    let (a, b) = pair().await;
    for index in 0..500 {
        let bytes = if index % 50 == 0 { 300 << 10 } else { 100 };
        let messages = vec![
            heartbeat(2 * index),
            append(2 * index, bytes),
            heartbeat(2 * index + 1),
            append(2 * index + 1, 10),
        ];
        a.network.send(B, messages);
    }
    a.network.send(B, vec![forwarded(77, 10)]);
    eventually("all messages", || b.inbound.received.lock().len() == 2_001).await;
    let expected: Vec<u64> = (0..1_000).collect();
    assert_eq!(b.inbound.indexes(MsgHeartbeat), expected);
    assert_eq!(b.inbound.indexes(MsgAppend), expected);
    let received = b.inbound.received.lock();
    let bytes = received.iter().map(|message| match message {
        PeerMessage::Raft(message) => message.entries.iter().map(|entry| entry.data.len()).sum(),
        _ => 0,
    });
    assert_eq!(
        bytes.sum::<usize>(),
        10 * (300 << 10) + 490 * 100 + 500 * 10
    );
    assert_eq!(a.inbound.unreachable_count(), 0);
    let sent_bytes = a.cells(B).sent_bytes.get();
    assert!(sent_bytes > 3_000_000, "{sent_bytes}");
    assert_eq!(b.cells(A).received_bytes.get(), sent_bytes);
    assert_eq!(a.cells(B).send_failures.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_larger_than_any_window_arrives() {
    let (a, b) = pair().await;
    // More than a queue holds, too, so nothing fits in behind it.
    a.network.send(B, vec![append(1, 40 << 20)]);
    eventually("the large one", || b.inbound.count(MsgAppend) == 1).await;
    a.network.send(B, vec![append(2, 1)]);
    eventually("the next", || b.inbound.count(MsgAppend) == 2).await;
    assert_eq!(b.inbound.indexes(MsgAppend), [1, 2]);
}

/// Anybody may say to be a member that is not known yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_listed_may_send_no_more_than_a_leader_has_to() {
    let limit = 6 << 20;
    let change = |options: &mut NetworkOptions| options.unlisted_message_bytes = limit;
    let a = Site::start(A).await;
    let b = Site::start_with(B, CLUSTER, "127.0.0.1:0", change).await;
    a.knows(B, &b.url());
    a.network.send(B, vec![append(1, 5 << 20)]);
    eventually("one that may be", || b.inbound.count(MsgAppend) == 1).await;
    a.network.send(B, vec![append(2, limit)]);
    let refused = || b.cells(A).receive_failures.get() > 0;
    eventually("a refusal", refused).await;
    b.knows(A, &a.url());
    a.network.send(B, vec![append(3, limit)]);
    eventually("what a listed one sends", || {
        // What the broken link lost is not sent again.
        if b.inbound.indexes(MsgAppend).len() == 1 && a.is_active(B) {
            a.network.send(B, vec![append(3, limit)]);
        }
        b.inbound.count(MsgAppend) > 1
    })
    .await;
    assert!(!b.inbound.indexes(MsgAppend).contains(&2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_append_does_not_hold_up_a_heartbeat() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    let proxy = Proxy::to(&b.address).await;
    proxy.set(Mode::StopAfter(1 << 20));
    a.knows(B, &proxy.url);
    b.knows(A, &a.url());
    a.network.send(B, vec![append(1, 20 << 20), heartbeat(1)]);
    eventually("the heartbeat", || b.inbound.count(MsgHeartbeat) == 1).await;
    assert_eq!(b.inbound.count(MsgAppend), 0);
    proxy.set(Mode::Open);
    eventually("the append", || b.inbound.count(MsgAppend) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_comes_back_is_found_again() {
    let (a, b) = pair().await;
    eventually("both active", || a.is_active(B) && b.is_active(A)).await;
    let first = a.network.active_since(B).expect("active");
    let address = b.address.clone();
    b.stop().await;
    eventually("its end is noticed", || !a.is_active(B)).await;
    eventually("raft is informed", || a.inbound.unreachable_count() >= 1).await;
    let b = Site::start_with(B, CLUSTER, &address, |_| {}).await;
    b.knows(A, &a.url());
    eventually("active again", || a.is_active(B)).await;
    assert!(a.network.active_since(B).expect("active") > first);
    a.network.send(B, vec![heartbeat(1), append(1, 1)]);
    eventually("messages", || b.inbound.received.lock().len() == 2).await;
    assert_eq!(a.cells(B).connections.lost.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_swallows_everything_is_noticed() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    let proxy = Proxy::to(&b.address).await;
    a.knows(B, &proxy.url);
    b.knows(A, &a.url());
    eventually("active", || a.is_active(B)).await;
    let round_trips = || a.cells(B).round_trip_time.read().count;
    eventually("a round trip", || round_trips() > 0).await;
    proxy.set(Mode::Frozen);
    let began = std::time::Instant::now();
    eventually("the silence is noticed", || !a.is_active(B)).await;
    assert!(began.elapsed() > Duration::from_secs(1));
    // Both lanes: the urgent one tells the other.
    eventually("raft is informed", || a.inbound.unreachable_count() >= 2).await;
    eventually("the member notices, too", || {
        b.network.context.health.lanes_in(A) == 0
    })
    .await;
    proxy.set(Mode::Open);
    eventually("active again", || a.is_active(B)).await;
}

/// As all are on a machine with far too much to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_answers_late_is_waited_for() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    let proxy = Proxy::to(&b.address).await;
    proxy.set(Mode::Late(Duration::from_millis(2_500)));
    a.knows(B, &proxy.url);
    b.knows(A, &a.url());
    eventually("active", || a.is_active(B)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_link_stays() {
    let (a, b) = pair().await;
    eventually("active", || a.is_active(B)).await;
    let since = a.network.active_since(B);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(a.network.active_since(B), since);
    assert_eq!(b.cells(A).connections.lost.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_refused() {
    let a = Site::start_with(A, ClusterId(0xc2), "127.0.0.1:0", |_| {}).await;
    let b = Site::start(B).await;
    a.knows(B, &b.url());
    a.network.send(B, vec![forwarded(1, 1), append(1, 1)]);
    let refused = || a.inbound.refused() == [(1, Error::NoLeader)];
    eventually("the refusal", refused).await;
    assert_eq!(b.inbound.received.lock().len(), 0);
    assert!(!a.inbound.removed.load(Ordering::SeqCst));
    let asked = a.network.ask(B, describe_request(), LONG).await;
    // Anyone may ask that, and nothing else.
    assert!(asked.is_ok());
    let promote = PeerRequest {
        request: Some(Kind::Promote(Default::default())),
    };
    let asked = a.network.ask(B, promote, LONG).await;
    assert_eq!(asked, Err(Error::NoLeader));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_to_another_member_is_refused() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    let other = MemberId(5);
    a.knows(other, &b.url());
    a.network.send(other, vec![forwarded(1, 1)]);
    let refused = || a.inbound.refused() == [(1, Error::NoLeader)];
    eventually("the refusal", refused).await;
    assert_eq!(b.inbound.received.lock().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_learns_of_it() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    b.inbound.removed_members.lock().insert(A);
    a.knows(B, &b.url());
    eventually("the removal", || a.inbound.removed.load(Ordering::SeqCst)).await;
    assert_eq!(b.inbound.received.lock().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_removed_while_connected_learns_of_it() {
    let (a, b) = pair().await;
    eventually("active", || a.is_active(B)).await;
    b.inbound.removed_members.lock().insert(A);
    b.network.set_peers(Vec::new());
    eventually("the removal", || a.inbound.removed.load(Ordering::SeqCst)).await;
    eventually("the end", || b.network.context.health.lanes_in(A) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_dropped_and_reported() {
    // A port that nobody answers at.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    let a = Site::start_with(A, CLUSTER, "127.0.0.1:0", |options| {
        options.bulk = crate::transport::queue::QueueLimits {
            messages: 3,
            bytes: 1 << 20,
        };
    })
    .await;
    a.knows(B, &url);
    let many = (1..=5).map(|id| forwarded(id, 10)).collect();
    a.network.send(B, many);
    let full = [(4, Error::TooManyRequests), (5, Error::TooManyRequests)];
    assert_eq!(a.inbound.refused(), full);
    assert_eq!(a.inbound.unreachable_count(), 0);
    a.network.send(B, vec![append(1, 10)]);
    assert_eq!(a.inbound.unreachable_count(), 1);
    // What waited comes back when the attempt has failed.
    eventually("the rest", || a.inbound.refused().len() == 5).await;
    let rest: Vec<_> = (1..=3).map(|id| (id, Error::NoLeader)).collect();
    assert_eq!(a.inbound.refused()[2..], rest);
    // Large messages count by their bytes.
    let large = vec![forwarded(6, 700 << 10), forwarded(7, 700 << 10)];
    a.network.send(B, large);
    let full = (7, Error::TooManyRequests);
    assert_eq!(a.inbound.refused().get(5), Some(&full));
    // Nobody to send to at all.
    a.network
        .send(MemberId(9), vec![forwarded(8, 1), heartbeat(1)]);
    assert!(a.inbound.refused().contains(&(8, Error::NoLeader)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_moves_to_another_url() {
    let (a, b) = pair().await;
    eventually("active", || a.is_active(B)).await;
    let moved = Site::start(B).await;
    moved.knows(A, &a.url());
    a.knows(B, &moved.url());
    eventually("the first is left", || {
        b.network.context.health.lanes_in(A) == 0
    })
    .await;
    a.network.send(B, vec![append(1, 1)]);
    eventually("the message", || moved.inbound.count(MsgAppend) == 1).await;
    assert_eq!(b.inbound.count(MsgAppend), 0);
    // Nothing changes: nothing breaks.
    let lost = a.cells(B).connections.lost.get();
    eventually("active", || a.is_active(B)).await;
    a.knows(B, &moved.url());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(a.is_active(B));
    assert_eq!(a.cells(B).connections.lost.get(), lost);
    a.network.set_peers(Vec::new());
    eventually("the second is left", || {
        moved.network.context.health.lanes_in(A) == 0
    })
    .await;
    assert!(!a.is_active(B));
}

/// A member that calls from where it is not known is answered.
async fn answered(known_at: Option<&str>) {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    if let Some(url) = known_at {
        b.knows(A, url);
    }
    let at = |member, url| Peer {
        member,
        urls: vec![url],
    };
    a.network.set_peers(vec![at(A, a.url()), at(B, b.url())]);
    eventually("active", || a.is_active(B)).await;
    eventually("active the other way", || b.is_active(A)).await;
    let mut answer = Message::default();
    answer.set_msg_type(MsgAppendResponse);
    (answer.from, answer.to, answer.term) = (B.0, A.0, 1);
    b.network.send(A, vec![PeerMessage::Raft(answer)]);
    eventually("the answer", || a.inbound.count(MsgAppendResponse) == 1).await;
    // Removed for good: nobody to call any more.
    b.inbound.removed_members.lock().insert(A);
    b.network.set_peers(Vec::new());
    eventually("the removal", || a.inbound.removed.load(Ordering::SeqCst)).await;
    assert!(b.network.roster_is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_not_known_is_answered() {
    answered(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_moved_is_answered() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let dead = format!("http://{}", closed.local_addr().expect("an address"));
    drop(closed);
    answered(Some(&dead)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_url_is_tried() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let dead = format!("http://{}", closed.local_addr().expect("an address"));
    drop(closed);
    let urls = vec![dead, "https://nobody:1".to_owned(), b.url()];
    a.network.set_peers(vec![
        Peer { member: B, urls },
        // A peer without any is no reason to break.
        Peer {
            member: MemberId(3),
            urls: Vec::new(),
        },
    ]);
    b.knows(A, &a.url());
    eventually("active", || a.is_active(B)).await;
    let asked = a.network.ask(B, describe_request(), LONG).await;
    assert!(asked.is_ok());
}

/// Nothing is sent to a program that does not know the data, until it is replaced by one that does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_does_not_know_is_not_sent() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    a.inbound.needed_format.store(2, Ordering::SeqCst);
    b.inbound.known_format.store(1, Ordering::SeqCst);
    a.knows(B, &b.url());
    eventually("the request", || b.inbound.asked.load(Ordering::SeqCst) > 2).await;
    a.network.send(B, vec![heartbeat(1), append(2, 10)]);
    assert_eq!(b.inbound.received.lock().len(), 0);
    b.inbound.known_format.store(2, Ordering::SeqCst);
    eventually("a message", || {
        a.network.send(B, vec![heartbeat(3)]);
        b.inbound.count(MessageType::MsgHeartbeat) > 0
    })
    .await;
}
