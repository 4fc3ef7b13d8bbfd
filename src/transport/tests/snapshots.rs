//! Transfers of states from one member to another: files, and the raft snapshot message behind them.

use std::path::Path;

use tokio_stream::StreamExt as _;

use super::proxy::{Mode, Proxy};
use super::*;
use crate::proto::etchedpeer::peer_client::PeerClient;
use crate::proto::etchedpeer::snapshot_part::Part;
use crate::proto::etchedpeer::{SnapshotFile, SnapshotPart};

const FILES: [(&str, usize); 4] = [
    ("000012.sst", 3 << 20),
    ("CURRENT", 16),
    ("empty", 0),
    ("odd", (256 << 10) + 1),
];

fn content(name: &str, bytes: usize) -> Vec<u8> {
    let mut content = name.repeat(bytes / name.len() + 1).into_bytes();
    content.truncate(bytes);
    content
}

/// A directory of files, in place of a checkpoint's.
fn files(at: &Path) -> Arc<SnapshotDir> {
    std::fs::create_dir(at).expect("a directory");
    for (name, bytes) in FILES {
        std::fs::write(at.join(name), content(name, bytes)).expect("writes");
    }
    Arc::new(SnapshotDir::new(at.to_owned()))
}

fn message() -> Message {
    match raft(MessageType::MsgSnapshot, 42, 0) {
        PeerMessage::Raft(message) => message,
        other => panic!("{other:?}"),
    }
}

fn send(site: &Site, name: &str) {
    let files = files(&site.dir.path().join(name));
    site.network.send_snapshot(message(), files);
}

async fn reported(site: &Site, outcomes: &[bool]) {
    let expected: Vec<_> = outcomes.iter().map(|taken| (B, *taken)).collect();
    let count = || site.inbound.snapshots_sent.lock().len();
    eventually("the report", || count() >= expected.len()).await;
    assert_eq!(*site.inbound.snapshots_sent.lock(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_arrives_whole() {
    let (a, b) = pair().await;
    send(&a, "out");
    reported(&a, &[true]).await;
    {
        let snapshots = b.inbound.snapshots.lock();
        let (found, dir) = &snapshots[0];
        assert_eq!(*found, message());
        let incoming = b.dir.path().join("incoming");
        assert_eq!(dir.path().parent(), Some(incoming.as_path()));
        for (name, bytes) in FILES {
            let found = std::fs::read(dir.path().join(name)).expect("is there");
            assert!(found == content(name, bytes), "{name}");
        }
        let count = std::fs::read_dir(dir.path()).map_or(0, Iterator::count);
        assert_eq!(count, FILES.len());
    }
    eventually("no file is left", || !a.dir.path().join("out").exists()).await;
    let sent = &a.cells(B).snapshots_sent;
    assert_eq!((sent.successes.get(), sent.failures.get()), (1, 0));
    assert_eq!(sent.in_flight.get(), 0);
    let received = &b.cells(A).snapshots_received;
    assert_eq!((received.successes.get(), received.in_flight.get()), (1, 0));
    // And the next one.
    send(&a, "again");
    reported(&a, &[true, true]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_not_wanted_is_reported() {
    let (a, b) = pair().await;
    b.inbound.refuses_snapshots.store(true, Ordering::SeqCst);
    send(&a, "out");
    reported(&a, &[false]).await;
    assert_eq!(b.incoming_count(), 0);
    let message = Message {
        to: 99,
        ..message()
    };
    let unknown = files(&a.dir.path().join("unknown"));
    a.network.send_snapshot(message, unknown);
    let reports = || a.inbound.snapshots_sent.lock().clone();
    eventually("the report", || reports().len() == 2).await;
    assert_eq!(reports()[1], (MemberId(99), false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_cut_leaves_nothing() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    b.follows(A);
    let proxy = Proxy::to(&b.address).await;
    proxy.set(Mode::CutAfter(1 << 20));
    a.knows(B, &proxy.url);
    send(&a, "out");
    reported(&a, &[false]).await;
    let received = b.cells(A);
    let failures = || received.snapshots_received.failures.get();
    eventually("the failure", || failures() == 1).await;
    eventually("no file is left", || b.incoming_count() == 0).await;
    proxy.set(Mode::Open);
    send(&a, "again");
    reported(&a, &[false, true]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_stands_still_is_given_up() {
    let silence = Duration::from_millis(400);
    let hasty = |options: &mut NetworkOptions| options.snapshot_silence = silence;
    let a = Site::start_with(A, CLUSTER, "127.0.0.1:0", hasty).await;
    let b = Site::start_with(B, CLUSTER, "127.0.0.1:0", hasty).await;
    b.follows(A);
    let proxy = Proxy::to(&b.address).await;
    proxy.set(Mode::StopAfter(1 << 20));
    a.knows(B, &proxy.url);
    // One of the two is under way when the other is judged.
    let (first, second) = (a.dir.path().join("first"), a.dir.path().join("second"));
    let (first, second) = (files(&first), files(&second));
    a.network.send_snapshot(message(), first);
    a.network.send_snapshot(message(), second);
    reported(&a, &[false, false]).await;
    assert_eq!(a.cells(B).snapshots_sent.failures.get(), 1);
    eventually("no file is left", || b.incoming_count() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_takes_nothing_breaks_nothing_else() {
    let a = Site::start(A).await;
    let b = Site::start_with(B, CLUSTER, "127.0.0.1:0", |options| {
        // No directory can be made below a file.
        let file = options.incoming_snapshots.with_file_name("file");
        std::fs::write(&file, "").expect("writes");
        options.incoming_snapshots = file.join("incoming");
    })
    .await;
    a.knows(B, &b.url());
    b.follows(A);
    send(&a, "out");
    reported(&a, &[false]).await;
    a.network.send(B, vec![append(1, 1), heartbeat(1)]);
    eventually("messages", || b.inbound.received.lock().len() == 2).await;
}

/// Sends parts by hand, as this member.
async fn send_as(
    from: MemberId,
    b: &Site,
    parts: impl tokio_stream::Stream<Item = Part> + Send + 'static,
) -> Result<(), tonic::Status> {
    let channel = dial::dial(&Dialler::default(), &b.url(), None)
        .await
        .expect("connects");
    let mut client = PeerClient::with_origin(channel.clone(), channel.origin());
    let parts = parts.map(|part| SnapshotPart { part: Some(part) });
    let mut request = tonic::Request::new(parts);
    let local = Local {
        member: from,
        cluster: CLUSTER,
        incarnation: 1,
        server_version: "3.7.3".to_owned(),
        data_format: 2,
        peer_urls: Vec::new(),
    };
    identity::stamp(request.metadata_mut(), &local, B);
    client.snapshot(request).await.map(drop)
}

async fn send_parts(b: &Site, parts: Vec<Part>) -> Result<(), tonic::Status> {
    send_as(A, b, tokio_stream::iter(parts)).await
}

fn file(name: &str, size_bytes: u64) -> Part {
    let name = name.to_owned();
    Part::File(SnapshotFile { name, size_bytes })
}

fn encoded(message: &Message) -> Part {
    Part::Message(prost_11::Message::encode_to_vec(message).into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_with_a_wrong_byte_is_refused() {
    let b = Site::start(B).await;
    b.follows(A);
    let parts = |crc| {
        vec![
            file("a", 1),
            Part::Data("x".into()),
            Part::FileEnd(crc),
            encoded(&message()),
        ]
    };
    let right = crc32c::crc32c(b"x");
    let refused = send_parts(&b, parts(right ^ 1)).await;
    let refused = refused.expect_err("a wrong checksum");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("checksum"), "{refused}");
    assert_eq!(b.inbound.snapshots.lock().len(), 0);
    assert_eq!(b.incoming_count(), 0);
    send_parts(&b, parts(right)).await.expect("taken");
    assert_eq!(b.inbound.snapshots.lock().len(), 1);
    // To somebody else, and from somebody else than who calls.
    let mut lost = message();
    lost.to = 99;
    let mut forged = message();
    forged.from = C.0;
    for message in [lost, forged] {
        let refused = send_parts(&b, vec![encoded(&message)]).await;
        let refused = refused.expect_err("another's message");
        assert!(
            refused.message().contains("its message is from"),
            "{refused}"
        );
    }
    eventually("no file is left", || b.incoming_count() == 1).await;
}

/// A caller that is neither a member nor the leader could fill the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_taken_from_members_and_the_leader() {
    let b = Site::start(B).await;
    b.knows(A, "http://127.0.0.1:1");
    let mut of_c = message();
    of_c.from = C.0;
    let send =
        |from, message: &Message| send_as(from, &b, tokio_stream::iter(vec![encoded(message)]));
    send(A, &message()).await.expect("a member's");
    let refused = send(C, &of_c).await.expect_err("of nobody");
    assert_eq!(
        identity::recognise(&refused),
        Some(identity::RefusalKind::Later)
    );
    assert_eq!(b.incoming_count(), 1);
    assert_eq!(b.cells(C).snapshots_received.failures.get(), 0);
    b.follows(C);
    send(C, &of_c).await.expect("the leader's");
    assert_eq!(b.inbound.snapshots.lock().len(), 2);
}

/// A transfer of which a byte comes now and then.
fn dripping() -> impl tokio_stream::Stream<Item = Part> + Send + 'static {
    let first = tokio_stream::once(file("a", 1 << 20));
    let drops = tokio_stream::iter(0..1 << 20).then(|_| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Part::Data("x".into())
    });
    first.chain(drops)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_snapshots_come_in_at_once_and_none_for_ever() {
    let (d, e) = (MemberId(0xd), MemberId(0xe));
    let silence = Duration::from_millis(600);
    let hasty = |options: &mut NetworkOptions| options.snapshot_silence = silence;
    let b = Arc::new(Site::start_with(B, CLUSTER, "127.0.0.1:0", hasty).await);
    let peers = [A, C, d].map(|member| Peer {
        member,
        urls: vec!["http://127.0.0.1:1".to_owned()],
    });
    b.network.set_peers(peers.to_vec());
    b.follows(e);
    let slowly = |from| {
        let b = b.clone();
        tokio::spawn(async move { send_as(from, &b, dripping()).await })
    };
    let held = [slowly(A), slowly(e)];
    eventually("two come in", || b.incoming_count() == 2).await;
    for from in [C, d] {
        let refused = send_as(from, &b, dripping()).await.expect_err("too many");
        assert_eq!(
            identity::recognise(&refused),
            Some(identity::RefusalKind::Later)
        );
        assert!(refused.message().contains("other states"), "{refused}");
    }
    assert_eq!(b.incoming_count(), 2);
    for held in held {
        let ended = held.await.expect("no panic").expect_err("is given up");
        assert!(ended.message().contains("next to nothing"), "{ended}");
    }
    eventually("no file is left", || b.incoming_count() == 0).await;
    // A place is given back right behind its file.
    let sending = async {
        while let Err(refused) = send_parts(&b, vec![encoded(&message())]).await {
            let kind = identity::recognise(&refused);
            assert_eq!(kind, Some(identity::RefusalKind::Later), "{refused}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let sent = tokio::time::timeout(LONG, sending).await;
    sent.expect("there is room");
    // Of those that only say to lead one has a place at a time.
    let held = slowly(e);
    eventually("it comes in", || b.incoming_count() == 2).await;
    let f = MemberId(0xf);
    b.follows(f);
    let refused = send_as(f, &b, dripping()).await.expect_err("one too many");
    assert!(refused.message().contains("other states"), "{refused}");
    assert!(held.await.expect("no panic").is_err());
}

/// The peer that takes others now is sent the state when it has room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_to_come_later_comes_later() {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    a.knows(B, &b.url());
    send(&a, "out");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(a.inbound.snapshots_sent.lock().is_empty());
    b.follows(A);
    reported(&a, &[true]).await;
    assert_eq!(b.inbound.snapshots.lock().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_read_are_no_snapshot() {
    let (a, b) = pair().await;
    let dir = a.dir.path().join("out");
    let broken = files(&dir);
    std::fs::create_dir(dir.join("directory")).expect("a directory");
    a.network.send_snapshot(message(), broken);
    reported(&a, &[false]).await;
    eventually("no file is left", || b.incoming_count() == 0).await;
    assert_eq!(b.inbound.snapshots.lock().len(), 0);
}
