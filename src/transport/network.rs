//! The network between real members: a registry of peers with their lanes and peer RPCs, and the
//! implementation of `Network` on top of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::context::{Context, NetworkEnv, NetworkOptions};
use super::identity::Local;
use super::intake;
use super::lane::{Lane, LaneKind};
use super::peer_rpc::PeerRpcClient;
use super::queue::LaneQueue;
use super::roster::Roster;
use super::snapshot_in::Arrivals;
use super::snapshot_out::Snapshots;
use super::{Boxed, Inbound, Network, Peer, PeerMessage, SnapshotDir};
use crate::error::Error;
use crate::proto::etchedpeer::{PeerRequest, PeerResponse};
use crate::raft::Message;
use crate::types::MemberId;

/// The connections to and from the other members over TCP (see `serve`).
pub struct GrpcNetwork {
    pub(super) context: Arc<Context>,
    pub(super) arrivals: Arc<Arrivals>,
    runtime: Handle,
    /// Held while `peers` is updated from it.
    roster: Mutex<Roster>,
    peers: RwLock<HashMap<MemberId, Arc<Connected>>>,
    snapshots: Arc<Snapshots>,
}

/// A peer, and the tasks that run its lanes; they end with it.
struct Connected {
    peer: Peer,
    urgent: Arc<LaneQueue>,
    bulk: Arc<LaneQueue>,
    rpcs: Arc<PeerRpcClient>,
    tasks: [AbortHandle; 2],
}

impl GrpcNetwork {
    /// Must be called within the async runtime that will run it. Removes incompletely received states of
    /// an earlier run. Until `attach` no call is accepted and nothing is reported.
    pub fn start(local: Local, outside: NetworkEnv, options: NetworkOptions) -> Arc<Self> {
        intake::remove_leftovers(&options.incoming_snapshots);
        let snapshots = Snapshots::new(options.max_snapshots_sent);
        let roster = Roster::new(local.member, local.peer_urls.clone());
        let context = Arc::new(Context::new(local, outside, options));
        Arc::new(Self {
            arrivals: Arc::new(Arrivals::new(context.clone())),
            context,
            runtime: Handle::current(),
            roster: Mutex::new(roster),
            peers: RwLock::default(),
            snapshots: Arc::new(snapshots),
        })
    }

    /// Ends all connections to peers and drops the inbound handler; nothing is reported any more.
    pub fn stop(&self) {
        self.context.attach(None);
        let mut roster = self.roster.lock();
        roster.clear();
        self.follow(&roster, false);
    }

    #[cfg(test)]
    pub(super) fn roster_is_empty(&self) -> bool {
        self.roster.lock().peers().is_empty()
    }

    /// True for a member of the state, or before there is one for those that this member joins by.
    pub(super) fn lists(&self, member: MemberId) -> bool {
        self.roster.lock().lists(member)
    }

    /// A member called and sent its peer URLs.
    pub(super) fn learn(&self, caller: MemberId, urls: &[String]) {
        let mut roster = self.roster.lock();
        if roster.learn(caller, urls) {
            if self.connected(caller).is_none() {
                tracing::info!(peer = %caller, ?urls, "a member called that is not known yet");
            }
            self.follow(&roster, false);
        }
    }

    /// Updates the connections from the roster: all of them if `anew`, otherwise those that
    /// changed.
    fn follow(&self, roster: &Roster, anew: bool) {
        let mut gone = Vec::new();
        {
            let mut connected = self.peers.write();
            let mut before = std::mem::take(&mut *connected);
            for peer in roster.peers() {
                let member = peer.member;
                let now = match before.remove(&member) {
                    Some(same) if same.peer == peer && !anew => same,
                    Some(moved) => {
                        let queues = (moved.urgent.clone(), moved.bulk.clone());
                        drop(moved);
                        Arc::new(self.connect(peer, Some(queues)))
                    }
                    None => Arc::new(self.connect(peer, None)),
                };
                connected.insert(member, now);
            }
            gone.extend(before);
        }
        for (member, connected) in gone {
            for queue in [&connected.urgent, &connected.bulk] {
                self.context
                    .drop_unsent(member, queue.close(), Error::NoLeader);
            }
        }
        self.context.peers_changed.send_replace(());
    }

    fn connected(&self, peer: MemberId) -> Option<Arc<Connected>> {
        self.peers.read().get(&peer).cloned()
    }

    fn connect(&self, peer: Peer, queues: Option<(Arc<LaneQueue>, Arc<LaneQueue>)>) -> Connected {
        let options = &self.context.options;
        let (urgent, bulk) = queues.unwrap_or_else(|| {
            (
                Arc::new(LaneQueue::new(options.urgent)),
                Arc::new(LaneQueue::new(options.bulk)),
            )
        });
        let silences = Arc::new(watch::Sender::new(0));
        let lane = |kind, queue: &Arc<LaneQueue>| {
            let lane = Lane {
                context: self.context.clone(),
                peer: peer.member,
                urls: peer.urls.clone(),
                kind,
                queue: queue.clone(),
                silences: silences.clone(),
            };
            self.runtime.spawn(lane.run()).abort_handle()
        };
        Connected {
            tasks: [lane(LaneKind::Urgent, &urgent), lane(LaneKind::Bulk, &bulk)],
            rpcs: Arc::new(PeerRpcClient::new(self.context.clone(), peer.clone())),
            urgent,
            bulk,
            peer,
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Network for GrpcNetwork {
    fn attach(&self, inbound: Arc<dyn Inbound>) {
        self.context.attach(Some(inbound));
    }

    fn send(&self, to: MemberId, messages: Vec<PeerMessage>) {
        let Some(connected) = self.connected(to) else {
            self.context.drop_unsent(to, messages, Error::NoLeader);
            return;
        };
        let (urgent, bulk): (Vec<_>, Vec<_>) = messages
            .into_iter()
            .partition(|message| LaneKind::of(message) == LaneKind::Urgent);
        for (queue, messages) in [(&connected.urgent, urgent), (&connected.bulk, bulk)] {
            if !messages.is_empty() {
                let refused = queue.put(messages);
                self.context
                    .drop_unsent(to, refused, Error::TooManyRequests);
            }
        }
    }

    fn send_snapshot(&self, message: Message, files: Arc<SnapshotDir>) {
        let peer = self.connected(MemberId(message.to));
        let urls = peer.map(|connected| connected.peer.urls.clone());
        let sending = self.snapshots.clone().send(
            self.context.clone(),
            urls.unwrap_or_default(),
            message,
            files,
        );
        self.runtime.spawn(sending);
    }

    fn set_peers(&self, peers: Vec<Peer>) {
        let inbound = self.context.inbound();
        let members = peers.iter().map(|peer| peer.member);
        self.context.outside.metrics.list_peers(members);
        let mut roster = self.roster.lock();
        let is_removed = |member| matches!(&inbound, Some(inbound) if inbound.is_removed(member));
        roster.list(peers, is_removed);
        let moved = *self.context.own_urls.read() != roster.own_urls();
        if moved {
            // Existing connections have sent the old URLs.
            *self.context.own_urls.write() = roster.own_urls().to_vec();
        }
        self.follow(&roster, moved);
    }

    fn ask(
        &self,
        member: MemberId,
        request: PeerRequest,
        limit: Duration,
    ) -> Boxed<Result<PeerResponse, Error>> {
        let connected = self.connected(member);
        Box::pin(async move {
            match connected {
                Some(connected) => connected.rpcs.ask(request, limit).await,
                None => Err(Error::NoLeader),
            }
        })
    }

    fn active_since(&self, member: MemberId) -> Option<Duration> {
        self.context.health.active_since(member)
    }
}
