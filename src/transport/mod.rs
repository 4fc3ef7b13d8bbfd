//! How members reach each other: lanes of messages, snapshots as files, and rpcs.
//!
//! This module decides nothing about consensus. To send never blocks and never fails: a queue is
//! bounded, what does not fit is dropped, and raft sends it again. What comes in is handed to an
//! `Inbound`, which the node implements. The simulator brings a `Network` of its own.
//!
//! `GrpcNetwork` is the real one: `lane` keeps the connections that carry messages, `queue` holds
//! what waits for one and `batch` is how it goes over the wire; `snapshot_out` and `snapshot_in`
//! carry files; `questions` asks, and `serve` and `service` answer. `identity` says on every call
//! who calls whom.

mod batch;
mod context;
mod dial;
mod health;
mod identity;
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
pub use dial::{Channel, dial_within};
pub use identity::Local;
pub use network::GrpcNetwork;
pub use peer_rpc::describe;
#[cfg(any(test, feature = "simulation"))]
pub use roster::Roster;

/// What reads the bytes of other members, by itself: for fuzzing.
#[cfg(any(test, feature = "fuzzing"))]
pub mod edges {
    pub use super::batch::{encoded, read};
    pub use super::snapshot_in::write;
}

/// What one member tells another without waiting for an answer. Nearly all are raft's own.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them are raft's, and a box would be an allocation each"
)]
pub enum PeerMessage {
    Raft(Message),
    /// A proposal for the leader.
    Forwarded(Forwarded),
    /// A forwarded proposal was not proposed.
    Refused {
        request_id: u64,
        /// That of the proposal: a later one may be on its way under the same id.
        term: u64,
        error: Error,
    },
}

impl PeerMessage {
    /// What it takes in memory and on the way, about.
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

/// Another member, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub member: MemberId,
    pub urls: Vec<String>,
}

/// Removes a directory with what it holds.
pub type Remove = Box<dyn FnOnce(&Path) + Send + Sync>;

/// A directory that holds the files of a snapshot and goes with the last who needs it.
pub struct SnapshotDir {
    path: PathBuf,
    remove: Option<Remove>,
}

impl SnapshotDir {
    /// Takes over a directory; it is removed when this is dropped.
    pub fn new(path: PathBuf) -> Self {
        Self::of(path, Box::new(remove_files))
    }

    /// The same for one that is not on a disk of this machine.
    pub fn of(path: PathBuf, remove: Remove) -> Self {
        Self {
            path,
            remove: Some(remove),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory where it is when this is dropped.
    pub fn stay(&mut self) {
        self.remove = None;
    }

    /// Leaves the directory where it is.
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
        tracing::warn!(path = %path.display(), %error, "cannot remove the files of a snapshot");
    }
}

/// The way to the other members.
pub trait Network: Send + Sync + 'static {
    /// Sets who takes what comes in; nothing does before.
    fn attach(&self, inbound: std::sync::Arc<dyn Inbound>);

    /// Queues messages for a peer. What cannot be queued is dropped; `Inbound` may be told so
    /// within this very call.
    fn send(&self, to: MemberId, messages: Vec<PeerMessage>);

    /// Sends a snapshot's files and then its message; `Inbound::snapshot_sent` always follows.
    fn send_snapshot(&self, message: Message, files: std::sync::Arc<SnapshotDir>);

    /// Replaces the set of members, this one among them if it is one. Connections to those that
    /// are gone end; those whose URLs changed are made anew. See `Roster` for who else is a peer.
    fn set_peers(&self, peers: Vec<Peer>);

    /// Asks a member and waits for its answer, for `limit` at most. Beside the member's own
    /// errors: `NoLeader` where the question certainly did not arrive, `Timeout` where it may
    /// have.
    fn ask(
        &self,
        member: MemberId,
        question: PeerRequest,
        limit: Duration,
    ) -> Boxed<Result<PeerResponse, Error>>;

    /// Since when, by the clock handed in, a peer has been connected without a break.
    fn active_since(&self, member: MemberId) -> Option<Duration>;
}

/// What the other members want of this one.
pub trait Inbound: Send + Sync + 'static {
    /// Messages came. Must not block. Where a forwarded proposal was certainly not sent, this is
    /// called with a `Refused` in its receiver's name: `NoLeader` where it is not connected,
    /// `TooManyRequests` where the queue is full.
    fn received(&self, from: MemberId, messages: Vec<PeerMessage>);

    /// Something that was sent to the peer may not have arrived.
    fn unreachable(&self, peer: MemberId);

    /// A snapshot was taken over by the peer, or was not.
    fn snapshot_sent(&self, to: MemberId, taken: bool);

    /// All files of a snapshot are in the directory, whole and synced. Resolves when the
    /// snapshot is in use, or is not wanted.
    fn snapshot_received(&self, message: Message, files: SnapshotDir) -> Boxed<Result<(), Error>>;

    /// A member asks. `from` is none where one asks that is no member yet.
    fn asked(
        &self,
        from: Option<MemberId>,
        question: PeerRequest,
    ) -> Boxed<Result<PeerResponse, Error>>;

    /// True where the member was removed from the cluster for good.
    fn is_removed(&self, member: MemberId) -> bool;

    /// A peer says that this member was removed from the cluster.
    fn removed(&self);
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
        _question: PeerRequest,
        _limit: Duration,
    ) -> Boxed<Result<PeerResponse, Error>> {
        Box::pin(std::future::ready(Err(Error::NoLeader)))
    }

    fn active_since(&self, _member: MemberId) -> Option<Duration> {
        None
    }
}
