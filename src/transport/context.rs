//! What all connections of a member share: its identity, the handler of incoming requests, and log
//! lines about peers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::dial::Dialler;
use super::health::Health;
use super::identity::{self, CallRefusal, Local};
use super::queue::QueueLimits;
use super::{Inbound, PeerMessage};
use crate::env::{Clock, Executor, Rng};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::notices::Notices;
use crate::types::MemberId;

/// The environment of the network: clock, random numbers, threads, metrics.
#[derive(Clone)]
pub struct NetworkEnv {
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub executor: Arc<dyn Executor>,
    pub metrics: Arc<Metrics>,
}

/// Limits, and where received states are stored.
#[derive(Clone)]
pub struct NetworkOptions {
    pub dialler: Dialler,
    /// A state is received into a directory below this one, which is created when needed.
    pub incoming_snapshots: PathBuf,
    /// The largest batch or response that is accepted from a peer. A raft message can hold several
    /// client requests of the maximum size.
    pub max_message_bytes: usize,
    /// The same from a caller that is not listed, which anybody may be.
    pub unlisted_message_bytes: usize,
    pub urgent: QueueLimits,
    pub bulk: QueueLimits,
    /// Concurrent outgoing transfers of a state; further ones wait for a while.
    pub max_snapshots_sent: usize,
    /// A transfer of a state without progress for this long has failed.
    pub snapshot_silence: Duration,
    /// Installing a state after its transfer may take this long.
    pub snapshot_install_limit: Duration,
}

/// A batch has a megabyte, or one message with an entry that was proposed under another member's limit
/// of that time: a leader that joined while this member was away has to send it, and is not listed
/// before. So this is above what anybody lets a request have.
const UNLISTED_BYTES: usize = 64 << 20;

impl NetworkOptions {
    /// What a caller that is not listed may send where requests may be so large: what a leader that
    /// joined while this member was away has to.
    pub fn unlisted_bytes(max_request_bytes: usize) -> usize {
        UNLISTED_BYTES.saturating_add(max_request_bytes)
    }

    pub fn new(incoming_snapshots: PathBuf) -> Self {
        Self {
            dialler: Dialler::default(),
            incoming_snapshots,
            max_message_bytes: 1 << 30,
            unlisted_message_bytes: UNLISTED_BYTES,
            urgent: QueueLimits {
                messages: 4_096,
                bytes: 4 << 20,
            },
            bulk: QueueLimits {
                messages: 16_384,
                bytes: 16 << 20,
            },
            max_snapshots_sent: 4,
            snapshot_silence: Duration::from_secs(10),
            snapshot_install_limit: Duration::from_secs(300),
        }
    }
}

/// See the module.
pub struct Context {
    pub local: Local,
    pub options: NetworkOptions,
    pub outside: NetworkEnv,
    pub health: Arc<Health>,
    pub notices: Notices,
    /// Changes whenever the set of peers does.
    pub peers_changed: watch::Sender<()>,
    /// The peer that called last: it is running, so it can be dialled too.
    pub called: watch::Sender<MemberId>,
    /// The peer URLs of this member, sent on every call.
    pub own_urls: RwLock<Vec<String>>,
    incarnations: Mutex<BTreeMap<MemberId, u64>>,
    inbound: RwLock<Option<Arc<dyn Inbound>>>,
}

impl Context {
    pub fn new(local: Local, outside: NetworkEnv, options: NetworkOptions) -> Self {
        Self {
            health: Arc::new(Health::new(outside.clock.clone(), outside.metrics.clone())),
            own_urls: RwLock::new(local.peer_urls.clone()),
            local,
            options,
            outside,
            notices: Notices::default(),
            peers_changed: watch::Sender::new(()),
            called: watch::Sender::new(MemberId(0)),
            incarnations: Mutex::default(),
            inbound: RwLock::default(),
        }
    }

    pub fn attach(&self, inbound: Option<Arc<dyn Inbound>>) {
        *self.inbound.write() = inbound;
    }

    pub fn inbound(&self) -> Option<Arc<dyn Inbound>> {
        self.inbound.read().clone()
    }

    /// The inbound handler, or the response while there is none: during a start or a stop.
    pub fn serving(&self) -> Result<Arc<dyn Inbound>, Status> {
        self.inbound()
            .ok_or_else(|| Status::unavailable("etched: the member is starting or stopping"))
    }

    /// The caller of an incoming call, or why it is refused.
    pub fn admit(&self, metadata: &MetadataMap) -> Result<MemberId, Status> {
        let inbound = self.serving()?;
        identity::check(metadata, &self.local, |member| inbound.is_removed(member))
            .and_then(|from| self.check_incarnation(inbound.as_ref(), from, metadata))
            .and_then(
                |from| match identity::format(metadata) >= inbound.needed_format() {
                    true => Ok(from),
                    false => Err(CallRefusal::Format(from)),
                },
            )
            .map_err(|refusal| self.refused(&refusal))
    }

    /// The answer to a call that is refused, which is logged once in a while.
    pub fn refused(&self, refusal: &CallRefusal) -> Status {
        self.note_refusal(refusal);
        Status::from(refusal)
    }

    /// A member that lost its data directory and uses its old name would forget what it
    /// acknowledged. The others know as long as they run, of those that are listed: any other name
    /// may be anybody's.
    fn check_incarnation(
        &self,
        inbound: &dyn Inbound,
        from: MemberId,
        metadata: &MetadataMap,
    ) -> Result<MemberId, CallRefusal> {
        let incarnation = identity::incarnation(metadata).ok_or(CallRefusal::Nameless)?;
        let mut known = self.incarnations.lock();
        match known.get(&from) {
            Some(same) if *same == incarnation => Ok(from),
            Some(_) => Err(CallRefusal::Incarnation(from)),
            None => {
                if inbound.is_listed(from) {
                    known.insert(from, incarnation);
                }
                Ok(from)
            }
        }
    }

    fn note_refusal(&self, refusal: &CallRefusal) {
        let subject = match refusal {
            CallRefusal::Removed(member) | CallRefusal::Incarnation(member) => member.to_string(),
            CallRefusal::Format(member) => self.subject(*member),
            _ => String::new(),
        };
        if self.is_news(&format!("{subject} {}", refusal.topic())) {
            match refusal {
                CallRefusal::Cluster { local, remote } => tracing::warn!(
                    "local-member-id" = %self.local.member,
                    "local-member-cluster-id" = %local,
                    "remote-peer-cluster-id" = %remote,
                    "request cluster ID mismatch"
                ),
                CallRefusal::Removed(member) => {
                    tracing::warn!(peer = %member, "refused a member that was removed");
                }
                CallRefusal::Incarnation(member) => tracing::warn!(
                    peer = %member,
                    "refused a member that called with another data directory before; remove it from the cluster and add it again"
                ),
                CallRefusal::Format(member) => tracing::warn!(
                    peer = %member,
                    "refused a member whose program does not know users and roles, of which there are some; start it with this program"
                ),
                _ => tracing::warn!(reason = %refusal, "refused a peer"),
            }
        }
    }

    /// Whom a line of the log is about, for `is_news`: all callers that are no members are one, or
    /// they would fill the log under ever new names.
    pub fn subject(&self, member: MemberId) -> String {
        match self.inbound() {
            Some(inbound) if inbound.is_listed(member) => member.to_string(),
            _ => "no member".to_owned(),
        }
    }

    /// False if the same was logged a short while ago.
    pub fn is_news(&self, text: &str) -> bool {
        self.notices.is_news(text, self.outside.clock.now())
    }

    /// Drops messages that were certainly not sent: raft is informed, and so is the sender of a
    /// forwarded proposal.
    pub fn drop_unsent(&self, peer: MemberId, messages: Vec<PeerMessage>, error: Error) {
        if messages.is_empty() {
            return;
        }
        let cells = self.outside.metrics.peer(peer);
        cells.send_failures.add(messages.len() as u64);
        let Some(inbound) = self.inbound() else {
            return;
        };
        if messages
            .iter()
            .any(|message| matches!(message, PeerMessage::Raft(_)))
        {
            inbound.unreachable(peer);
        }
        let refused: Vec<_> = messages
            .iter()
            .filter_map(|message| match message {
                PeerMessage::Forwarded(forwarded) => Some(PeerMessage::Refused {
                    request_id: forwarded.request_id,
                    term: forwarded.term,
                    error,
                }),
                _ => None,
            })
            .collect();
        if !refused.is_empty() {
            inbound.received(peer, refused);
        }
    }
}
