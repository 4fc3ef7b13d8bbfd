//! Members on real sockets of this machine: what they say arrives, and what breaks is noticed.

mod encrypted;
mod lanes;
mod peer_rpc;
mod ports;
mod proxy;
mod snapshots;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use raft_proto::eraftpb::{Entry, MessageType, Snapshot, SnapshotMetadata};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::context::Context;
use super::*;
use crate::env::{SystemClock, SystemRng, TokioExecutor};
use crate::metrics::{Metrics, PeerCells};
use crate::net::listen::{self, Listener, SocketOptions};
use crate::net::{Allowance, Security};
use crate::proto::etchedpeer::forwarded::Proposal;
use crate::proto::etchedpeer::peer_request::Request as Kind;
use crate::proto::etchedpeer::{Description, Nothing, peer_response};
use crate::raft::replica::conf_state_of;
use crate::types::{Address, ClusterId};

const CLUSTER: ClusterId = ClusterId(0xc1);
const A: MemberId = MemberId(0xa);
const B: MemberId = MemberId(0xb);
const C: MemberId = MemberId(0xc);
/// Far beyond what anything takes on a busy machine.
const LONG: Duration = Duration::from_secs(20);

/// What became of everything that came in.
#[derive(Default)]
struct Recorder {
    received: Mutex<Vec<PeerMessage>>,
    unreachable: AtomicU64,
    snapshots_sent: Mutex<Vec<(MemberId, bool)>>,
    snapshots: Mutex<Vec<(Message, SnapshotDir)>>,
    refuses_snapshots: AtomicBool,
    removed_members: Mutex<BTreeSet<MemberId>>,
    removed: AtomicBool,
    leader: AtomicU64,
    /// That which others have to know.
    needed_format: AtomicU64,
    known_format: AtomicU64,
    asked: AtomicU64,
    /// Held by each request that is never answered, for as long as it is waited for.
    waited_for: Arc<()>,
}

impl Recorder {
    /// The requests of forwarded proposals that came back, with why.
    fn refused(&self) -> Vec<(u64, Error)> {
        let received = self.received.lock();
        let refused = received.iter().filter_map(|message| match message {
            PeerMessage::Refused {
                request_id, error, ..
            } => Some((*request_id, *error)),
            _ => None,
        });
        refused.collect()
    }

    /// The indexes of raft messages of a type, in the order they came.
    fn indexes(&self, kind: MessageType) -> Vec<u64> {
        let received = self.received.lock();
        let indexes = received.iter().filter_map(|message| match message {
            PeerMessage::Raft(message) if message.msg_type() == kind => Some(message.index),
            _ => None,
        });
        indexes.collect()
    }

    fn count(&self, kind: MessageType) -> usize {
        self.indexes(kind).len()
    }

    fn unreachable_count(&self) -> u64 {
        self.unreachable.load(Ordering::SeqCst)
    }
}

impl Inbound for Recorder {
    fn received(&self, _: MemberId, messages: Vec<PeerMessage>) {
        self.received.lock().extend(messages);
    }

    fn unreachable(&self, _: MemberId) {
        self.unreachable.fetch_add(1, Ordering::SeqCst);
    }

    fn snapshot_sent(&self, to: MemberId, taken: bool) {
        self.snapshots_sent.lock().push((to, taken));
    }

    fn snapshot_received(&self, message: Message, files: SnapshotDir) -> Boxed<Result<(), Error>> {
        let refuses = self.refuses_snapshots.load(Ordering::SeqCst);
        if !refuses {
            self.snapshots.lock().push((message, files));
        }
        Box::pin(async move { if refuses { Err(Error::NoSpace) } else { Ok(()) } })
    }

    fn asked(
        &self,
        from: Option<MemberId>,
        request: PeerRequest,
        _limit: Option<Duration>,
    ) -> Boxed<Result<PeerResponse, Error>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let data_format = self.known_format.load(Ordering::SeqCst);
        let waited_for = self.waited_for.clone();
        Box::pin(async move {
            let _waited_for = waited_for;
            match request.request {
                // Says who asked where the version belongs.
                Some(Kind::Describe(_)) => Ok(PeerResponse {
                    response: Some(peer_response::Response::Description(Description {
                        cluster_id: CLUSTER.0,
                        member_id: B.0,
                        server_version: "3.7.3".to_owned(),
                        cluster_version: format!("{from:?}"),
                        members: ports::members(),
                        data_format,
                        ..Default::default()
                    })),
                }),
                Some(Kind::Promote(_)) => Err(Error::NotLeader),
                _ => std::future::pending().await,
            }
        })
    }

    fn is_removed(&self, member: MemberId) -> bool {
        self.removed_members.lock().contains(&member)
    }

    fn needed_format(&self) -> u64 {
        self.needed_format.load(Ordering::SeqCst)
    }

    fn removed(&self, _: MemberId) {
        self.removed.store(true, Ordering::SeqCst);
    }

    fn is_listed(&self, member: MemberId) -> bool {
        [A, B].contains(&member)
    }

    fn is_leader(&self, member: MemberId) -> bool {
        self.leader.load(Ordering::SeqCst) == member.0
    }
}

/// A member with its port.
struct Site {
    network: Arc<GrpcNetwork>,
    inbound: Arc<Recorder>,
    metrics: Arc<Metrics>,
    address: String,
    scheme: &'static str,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
    dir: TempDir,
}

impl Site {
    async fn start(member: MemberId) -> Self {
        Self::start_with(member, CLUSTER, "127.0.0.1:0", |_| {}).await
    }

    async fn start_with(
        member: MemberId,
        cluster: ClusterId,
        address: &str,
        change: impl FnOnce(&mut NetworkOptions),
    ) -> Self {
        Self::start_secured(member, cluster, address, Security::Plain, change).await
    }

    async fn start_secured(
        member: MemberId,
        cluster: ClusterId,
        address: &str,
        security: Security,
        change: impl FnOnce(&mut NetworkOptions),
    ) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let metrics = Arc::new(Metrics::new(member, false));
        let local = Local {
            member,
            cluster,
            incarnation: u64::from(std::process::id()),
            server_version: "3.7.3".to_owned(),
            data_format: 2,
            peer_urls: Vec::new(),
        };
        let outside = NetworkEnv {
            clock: Arc::new(SystemClock::new()),
            rng: Arc::new(SystemRng),
            executor: Arc::new(TokioExecutor::default()),
            metrics: metrics.clone(),
        };
        let mut options = NetworkOptions::new(dir.path().join("incoming"));
        // Tests make members known in any order, and what a lane may send is decided when it begins.
        options.unlisted_message_bytes = options.max_message_bytes;
        change(&mut options);
        let listener = match address.parse::<SocketAddr>() {
            Ok(address) => address.into(),
            Err(_) => Address::File(address.into()),
        };
        let listener = listen::bind(&listener, SocketOptions::default()).expect("binds");
        let scheme = match (&listener, &security) {
            (Listener::Tcp(_), Security::Plain) => "http",
            (Listener::Tcp(_), _) => "https",
            (Listener::Unix { .. }, Security::Plain) => "unix",
            (Listener::Unix { .. }, _) => "unixs",
        };
        let network = GrpcNetwork::start(local, outside, options);
        let inbound = Arc::new(Recorder::default());
        network.attach(inbound.clone());
        let address = listener.address().to_string();
        let (stop, stopped) = watch::channel(false);
        let allowance = Allowance::new(usize::MAX, metrics.clone());
        let serving = tokio::spawn(
            network
                .clone()
                .serve(listener, security, allowance, stopped),
        );
        Self {
            network,
            inbound,
            metrics,
            address,
            scheme,
            stop,
            serving,
            dir,
        }
    }

    fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    async fn stop(self) {
        self.network.stop();
        self.stop.send_replace(true);
        tokio::time::timeout(LONG, self.serving)
            .await
            .expect("ends")
            .expect("did not panic");
    }

    fn knows(&self, member: MemberId, url: &str) {
        self.network.set_peers(vec![Peer {
            member,
            urls: vec![url.to_owned()],
        }]);
    }

    fn follows(&self, member: MemberId) {
        self.inbound.leader.store(member.0, Ordering::SeqCst);
    }

    fn cells(&self, peer: MemberId) -> Arc<PeerCells> {
        self.metrics.peer(peer)
    }

    fn is_active(&self, peer: MemberId) -> bool {
        self.network.active_since(peer).is_some()
    }

    fn incoming_count(&self) -> usize {
        let incoming = self.dir.path().join("incoming");
        std::fs::read_dir(incoming).map_or(0, Iterator::count)
    }
}

/// Two members that know each other.
async fn pair() -> (Site, Site) {
    let (a, b) = (Site::start(A).await, Site::start(B).await);
    a.knows(B, &b.url());
    b.knows(A, &a.url());
    (a, b)
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let polling = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, polling)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}

fn heartbeat(index: u64) -> PeerMessage {
    raft(MessageType::MsgHeartbeat, index, 0)
}

fn append(index: u64, bytes: usize) -> PeerMessage {
    raft(MessageType::MsgAppend, index, bytes)
}

pub fn raft(kind: MessageType, index: u64, bytes: usize) -> PeerMessage {
    let mut message = Message {
        from: A.0,
        to: B.0,
        term: 1,
        log_term: u64::from(index > 0),
        index,
        ..Default::default()
    };
    if kind == MessageType::MsgSnapshot {
        message.set_snapshot(Snapshot {
            metadata: Some(SnapshotMetadata {
                conf_state: Some(conf_state_of([A, B].into_iter(), [].into_iter())),
                index,
                term: 1,
            }),
            ..Default::default()
        });
    }
    message.set_msg_type(kind);
    if bytes > 0 {
        message.entries.push(Entry {
            index: index + 1,
            term: 1,
            data: vec![7; bytes],
            ..Default::default()
        });
    }
    PeerMessage::Raft(message)
}

fn forwarded(request_id: u64, bytes: usize) -> PeerMessage {
    PeerMessage::Forwarded(Forwarded {
        request_id,
        term: 1,
        proposal: Some(Proposal::Request(vec![1; bytes].into())),
        ..Default::default()
    })
}

fn describe_request() -> PeerRequest {
    PeerRequest {
        request: Some(Kind::Describe(Nothing {})),
    }
}

/// A member that comes back with another data directory has forgotten what it acknowledged.
#[tokio::test]
async fn another_data_directory_of_a_member_is_refused() {
    let member = |member, incarnation| Local {
        member,
        cluster: CLUSTER,
        incarnation,
        server_version: "3.7.3".to_owned(),
        data_format: 2,
        peer_urls: Vec::new(),
    };
    let outside = NetworkEnv {
        clock: Arc::new(SystemClock::new()),
        rng: Arc::new(SystemRng),
        executor: Arc::new(TokioExecutor::default()),
        metrics: Arc::new(Metrics::new(B, false)),
    };
    let here = Context::new(
        member(B, 7),
        outside,
        NetworkOptions::new("incoming".into()),
    );
    here.attach(Some(Arc::new(Recorder::default())));
    let admit = |from, incarnation| {
        let mut metadata = tonic::metadata::MetadataMap::new();
        identity::stamp(&mut metadata, &member(from, incarnation), B);
        here.admit(&metadata)
            .map_err(|status| identity::recognise(&status))
    };
    for (from, incarnation, expected) in [
        (A, 1, Ok(A)),
        (A, 1, Ok(A)),
        (C, 1, Ok(C)),
        // Who is not listed may be anybody, under any name.
        (C, 2, Ok(C)),
        (A, 2, Err(Some(identity::RefusalKind::Mismatch))),
        (A, 1, Ok(A)),
    ] {
        assert_eq!(admit(from, incarnation), expected, "{from} {incarnation}");
    }
    let mut nameless = tonic::metadata::MetadataMap::new();
    identity::stamp(&mut nameless, &member(A, 1), B);
    nameless.remove("etched-incarnation");
    assert!(here.admit(&nameless).is_err());
}

/// A program of before users says of no format that it knows it.
#[tokio::test]
async fn a_call_of_a_program_that_does_not_know_the_data_is_refused() {
    let member = |member, data_format| Local {
        member,
        cluster: CLUSTER,
        incarnation: 1,
        server_version: "3.7.3".to_owned(),
        data_format,
        peer_urls: Vec::new(),
    };
    let outside = NetworkEnv {
        clock: Arc::new(SystemClock::new()),
        rng: Arc::new(SystemRng),
        executor: Arc::new(TokioExecutor::default()),
        metrics: Arc::new(Metrics::new(B, false)),
    };
    let options = NetworkOptions::new("incoming".into());
    let here = Context::new(member(B, 2), outside, options);
    let inbound = Arc::new(Recorder::default());
    here.attach(Some(inbound.clone()));
    let mut of_before = tonic::metadata::MetadataMap::new();
    identity::stamp(&mut of_before, &member(A, 2), B);
    of_before.remove("etched-data-format");
    let mut older = of_before.clone();
    older.insert("etched-data-format", "1".parse().expect("is text"));
    let mut known = of_before.clone();
    identity::stamp(&mut known, &member(A, 2), B);
    for (needed, metadata, is_admitted) in [
        (0, &of_before, true),
        (0, &older, true),
        (2, &of_before, false),
        (2, &older, false),
        (2, &known, true),
    ] {
        inbound.needed_format.store(needed, Ordering::SeqCst);
        let admitted = here
            .admit(metadata)
            .map_err(|status| identity::recognise(&status));
        let expected = match is_admitted {
            true => Ok(A),
            false => Err(Some(identity::RefusalKind::Mismatch)),
        };
        assert_eq!(admitted, expected, "{needed} {metadata:?}");
    }
}
