//! Snapshots from one member to another.

use std::path::Path;

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

/// A directory of files that begins a snapshot.
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
    let proxy = Proxy::to(&b.address).await;
    proxy.set(Mode::StopAfter(1 << 20));
    a.knows(B, &proxy.url);
    // One of the two is under way when the other is looked at.
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
    send(&a, "out");
    reported(&a, &[false]).await;
    a.network.send(B, vec![append(1, 1), heartbeat(1)]);
    eventually("messages", || b.inbound.received.lock().len() == 2).await;
}

/// Sends parts by hand, as member A.
async fn send_parts(b: &Site, parts: Vec<Part>) -> Result<(), tonic::Status> {
    let channel = dial::dial(&Dialler::default(), &b.url(), None)
        .await
        .expect("connects");
    let mut client = PeerClient::with_origin(channel.clone(), channel.origin());
    let parts = parts
        .into_iter()
        .map(|part| SnapshotPart { part: Some(part) });
    let mut request = tonic::Request::new(tokio_stream::iter(parts));
    let local = Local {
        member: A,
        cluster: CLUSTER,
        incarnation: 1,
        server_version: "3.7.3".to_owned(),
        data_format: 2,
        peer_urls: Vec::new(),
    };
    identity::stamp(request.metadata_mut(), &local, B);
    client.snapshot(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_with_a_wrong_byte_is_refused() {
    let b = Site::start(B).await;
    let parts = |crc| {
        let name = "a".to_owned();
        let size_bytes = 1;
        let message = prost_11::Message::encode_to_vec(&message());
        vec![
            Part::File(SnapshotFile { name, size_bytes }),
            Part::Data("x".into()),
            Part::FileEnd(crc),
            Part::Message(message.into()),
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
    // To somebody else.
    let mut lost = message();
    lost.to = 99;
    let lost = prost_11::Message::encode_to_vec(&lost);
    let refused = send_parts(&b, vec![Part::Message(lost.into())]).await;
    assert!(refused.is_err());
    assert_eq!(b.incoming_count(), 1);
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
