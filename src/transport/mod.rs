//! Communication between members: lanes of messages, transfers of states, and peer RPCs. A transfer
//! is the files of a checkpoint, and behind them the raft snapshot message; where it has arrived
//! completely it is a received state.
//!
//! This module decides nothing about consensus. Sending never blocks and never fails: a queue is
//! bounded, messages that do not fit are dropped, and raft sends them again. What is received is
//! passed to an `Inbound`, which `service` implements. The simulator has a `Network` of its own.
//!
//! `GrpcNetwork` is the real one: `lane` keeps the connections that carry messages, `queue` holds
//! waiting messages and `batch` encodes them; `snapshot_out` and `snapshot_in` transfer files, which
//! `intake` writes;
//! `peer_rpc` calls peers, and `serve` and `service` answer. `identity` adds caller and receiver to
//! every call.

mod batch;
mod context;
mod dial;
mod health;
mod identity;
mod intake;
mod lane;
mod network;
mod pages;
mod peer_rpc;
mod pulse;
mod queue;
mod roster;
mod serve;
mod service;
mod snapshot_in;
mod snapshot_out;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::env::Boxed;
use crate::error::Error;
use crate::proto::etchedpeer::{Forwarded, PeerRequest, PeerResponse, forwarded};
use crate::raft::Message;
use crate::types::MemberId;

pub use context::{NetworkEnv, NetworkOptions};
pub use dial::{Channel, Dialler, Encryption, Route, dial_within};
pub use identity::Local;
pub use network::GrpcNetwork;
pub use peer_rpc::describe;
pub use roster::MAX_UNLISTED_PEERS;
#[cfg(any(test, feature = "simulation"))]
pub use roster::Roster;

/// The decoders of other members' bytes, for fuzzing.
#[cfg(any(test, feature = "fuzzing"))]
pub mod edges {
    pub use super::batch::{encoded, read};
    pub use super::intake::write;
}

/// A message from one member to another that needs no response. Most are raft's own.
#[derive(Clone, Debug)]
pub enum PeerMessage {
    Raft(Message),
    /// A proposal for the leader.
    Forwarded(Forwarded),
    /// A forwarded proposal was not proposed.
    Refused {
        request_id: u64,
        /// That of the proposal: a later one may be in flight with the same id.
        term: u64,
        error: Error,
    },
}

impl PeerMessage {
    /// Its size in memory and on the wire, about.
    pub fn bytes(&self) -> usize {
        const FIXED: usize = 64;
        const ENTRY: usize = 24;
        FIXED
            + match self {
                PeerMessage::Raft(message) => {
                    let entries = message.entries.iter();
                    let entries =
                        entries.map(|entry| ENTRY + entry.data.len() + entry.context.len());
                    let snapshot = message
                        .snapshot
                        .as_ref()
                        .map_or(0, |found| found.data.len());
                    entries.sum::<usize>() + message.context.len() + snapshot
                }
                PeerMessage::Forwarded(message) => match &message.proposal {
                    Some(forwarded::Proposal::Request(request)) => request.len(),
                    _ => 0,
                },
                PeerMessage::Refused { .. } => 0,
            }
    }
}

/// Another member, with its peer URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub member: MemberId,
    pub urls: Vec<String>,
}

/// Removes a directory with its contents.
pub type Remove = Box<dyn FnOnce(&Path) + Send + Sync>;

/// A directory with the files of a checkpoint, made here or received; removed with its last
/// reference.
pub struct SnapshotDir {
    path: PathBuf,
    remove: Option<Remove>,
}

impl SnapshotDir {
    /// Takes ownership of a directory; it is removed when this is dropped.
    pub fn new(path: PathBuf) -> Self {
        Self::of(path, Box::new(remove_files))
    }

    /// The same for a directory that is not on this machine's disk.
    pub fn of(path: PathBuf, remove: Remove) -> Self {
        Self {
            path,
            remove: Some(remove),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the directory when this is dropped.
    pub fn stay(&mut self) {
        self.remove = None;
    }

    /// Keeps the directory.
    pub fn keep(mut self) -> PathBuf {
        self.remove = None;
        std::mem::take(&mut self.path)
    }
}

impl Drop for SnapshotDir {
    fn drop(&mut self) {
        if let Some(remove) = self.remove.take() {
            remove(&self.path);
        }
    }
}

fn remove_files(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the files of a checkpoint");
    }
}

/// The connections to the other members.
pub trait Network: Send + Sync + 'static {
    /// Sets the handler of incoming requests; before that they are refused.
    fn attach(&self, inbound: std::sync::Arc<dyn Inbound>);

    /// Queues messages for a peer. If they cannot be queued they are dropped, which `Inbound` may
    /// learn within this call.
    fn send(&self, to: MemberId, messages: Vec<PeerMessage>);

    /// Sends a checkpoint's files and then the raft snapshot message; `Inbound::snapshot_sent` is
    /// always called afterwards.
    fn send_snapshot(&self, message: Message, files: std::sync::Arc<SnapshotDir>);

    /// Replaces the set of members, which may include this one. Connections to removed members end;
    /// those to members with new URLs are established again. See `Roster` for other peers.
    fn set_peers(&self, peers: Vec<Peer>);

    /// Calls a member and waits for its response, for `limit` at most. Beside the member's own
    /// errors: `NoLeader` if the request certainly did not arrive, `Timeout` if it may have.
    fn ask(
        &self,
        member: MemberId,
        request: PeerRequest,
        limit: Duration,
    ) -> Boxed<Result<PeerResponse, Error>>;

    /// Since when, by the clock passed in, a peer has been connected without interruption.
    fn active_since(&self, member: MemberId) -> Option<Duration>;
}

/// Handles what other members send.
pub trait Inbound: Send + Sync + 'static {
    /// Handles messages. Must not block. If a forwarded proposal was certainly not sent, this is
    /// called with a `Refused` in its receiver's name: `NoLeader` if it is not connected,
    /// `TooManyRequests` if the queue is full.
    fn received(&self, from: MemberId, messages: Vec<PeerMessage>);

    /// Something sent to the peer may not have arrived.
    fn unreachable(&self, peer: MemberId);

    /// Whether the peer installed the state that it was sent.
    fn snapshot_sent(&self, to: MemberId, taken: bool);

    /// All files of a received state are in the directory, complete and synced. Completes when it
    /// is in use, or was rejected.
    fn snapshot_received(&self, message: Message, files: SnapshotDir) -> Boxed<Result<(), Error>>;

    /// Handles a peer RPC. `from` is none if the caller is not a member yet, `limit` is how long it
    /// waits.
    fn asked(
        &self,
        from: Option<MemberId>,
        request: PeerRequest,
        limit: Option<Duration>,
    ) -> Boxed<Result<PeerResponse, Error>>;

    /// True if the member was removed from the cluster for good.
    fn is_removed(&self, member: MemberId) -> bool;

    /// The format of data that a member has to know to take part; 0 where any will do.
    fn needed_format(&self) -> u64;

    /// A peer says that this member was removed from the cluster.
    fn removed(&self, by: MemberId);

    /// True for a member of the cluster, as far as this one knows.
    fn is_listed(&self, member: MemberId) -> bool;

    /// True for the member that this one follows, which may have joined while this one was away.
    fn is_leader(&self, member: MemberId) -> bool;
}

/// The network of a member that has no peers.
#[cfg(test)]
pub struct NoNetwork;

#[cfg(test)]
impl Network for NoNetwork {
    fn attach(&self, _inbound: std::sync::Arc<dyn Inbound>) {}

    fn send(&self, _to: MemberId, _messages: Vec<PeerMessage>) {}

    fn send_snapshot(&self, _message: Message, _files: std::sync::Arc<SnapshotDir>) {}

    fn set_peers(&self, _peers: Vec<Peer>) {}

    fn ask(
        &self,
        _member: MemberId,
        _request: PeerRequest,
        _limit: Duration,
    ) -> Boxed<Result<PeerResponse, Error>> {
        Box::pin(std::future::ready(Err(Error::NoLeader)))
    }

    fn active_since(&self, _member: MemberId) -> Option<Duration> {
        None
    }
}
