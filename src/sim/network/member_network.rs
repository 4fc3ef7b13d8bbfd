//! The network as seen by one process of a member: how it sends messages, requests and states.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use super::SimNetwork;
use super::in_flight::{Delay, InFlight, InFlightPayload, Incarnation};
use super::links::{Attached, Endpoint, Links, refusals};
use crate::env::{Boxed, Clock, timeout};
use crate::error::Error;
use crate::proto::etchedpeer::{PeerRequest, PeerResponse};
use crate::raft::Message;
use crate::sim::executor::Tasks;
use crate::transport::{Inbound, Network, Peer, PeerMessage, SnapshotDir};
use crate::types::MemberId;

/// Per mille of transfers of states that fail even under good conditions.
const BREAKS_PER_MILLE: u32 = 20;

/// See the module.
pub struct MemberNetwork {
    network: Weak<SimNetwork>,
    incarnation: Incarnation,
    clock: Arc<dyn Clock>,
    tasks: Arc<Tasks>,
}

impl MemberNetwork {
    pub(super) fn new(
        network: Weak<SimNetwork>,
        member: MemberId,
        number: u64,
        clock: Arc<dyn Clock>,
        tasks: Arc<Tasks>,
    ) -> Self {
        Self {
            network,
            incarnation: Incarnation { member, number },
            clock,
            tasks,
        }
    }
}

impl SimNetwork {
    /// The network for a process that starts now. Response timeouts follow its clock, and its tasks
    /// run long operations. Nothing is received before `attach`.
    pub fn network(
        &self,
        member: MemberId,
        clock: Arc<dyn Clock>,
        tasks: Arc<Tasks>,
    ) -> Arc<MemberNetwork> {
        self.detach(member);
        let mut links = self.links.lock();
        let incarnation = links.new_incarnation();
        let endpoint = Endpoint::new(member, incarnation, clock.clone());
        let before = links.endpoints.insert(member, endpoint);
        drop(links);
        drop(before);
        let itself = self.itself.clone();
        Arc::new(MemberNetwork::new(
            itself,
            member,
            incarnation,
            clock,
            tasks,
        ))
    }
}

impl Network for MemberNetwork {
    fn attach(&self, inbound: Arc<dyn Inbound>) {
        if let Some(network) = self.network.upgrade() {
            network.attach(self.incarnation.member, inbound, self.tasks.clone());
        }
    }

    fn send(&self, to: MemberId, messages: Vec<PeerMessage>) {
        if let Some(network) = self.network.upgrade() {
            network.send(self.incarnation, to, messages);
        }
    }

    fn send_snapshot(&self, message: Message, files: Arc<SnapshotDir>) {
        if let Some(network) = self.network.upgrade() {
            network.send_snapshot(self.incarnation, message, files);
        }
    }

    fn set_peers(&self, peers: Vec<Peer>) {
        let Some(network) = self.network.upgrade() else {
            return;
        };
        let mut links = network.links.lock();
        if links.is_alive(self.incarnation)
            && let Some(endpoint) = links.endpoints.get_mut(&self.incarnation.member)
        {
            let inbound = endpoint.attached.as_ref().map(|one| one.inbound.clone());
            let is_removed =
                |member| matches!(&inbound, Some(inbound) if inbound.is_removed(member));
            endpoint.roster.list(peers, is_removed);
            links.reconnect();
        }
    }

    fn ask(
        &self,
        member: MemberId,
        request: PeerRequest,
        limit: Duration,
    ) -> Boxed<Result<PeerResponse, Error>> {
        let (network, incarnation, clock) =
            (self.network.clone(), self.incarnation, self.clock.clone());
        Box::pin(async move {
            let fate = match network.upgrade() {
                Some(network) => network.ask(incarnation, member, request, limit),
                None => Fate::NotConnected,
            };
            let (answer, patient) = match fate {
                Fate::NotConnected => return Err(Error::NoLeader),
                Fate::Silent(error) => {
                    clock.sleep(limit).await;
                    return Err(error);
                }
                Fate::Sent { answer, patient } => (answer, patient),
            };
            let answered = async {
                match answer.await {
                    Ok(answer) => answer,
                    Err(_) if patient => std::future::pending().await,
                    Err(_) => Err(Error::Timeout),
                }
            };
            let answered = timeout(clock.as_ref(), limit, answered).await;
            answered.unwrap_or(Err(Error::Timeout))
        })
    }

    fn active_since(&self, member: MemberId) -> Option<Duration> {
        let network = self.network.upgrade()?;
        let links = network.links.lock();
        let endpoint = links.endpoints.get(&self.incarnation.member)?;
        let connected = endpoint.connected.get(&member).copied();
        connected.filter(|_| endpoint.incarnation == self.incarnation.number)
    }
}

/// What happens to a request.
enum Fate {
    NotConnected,
    /// No response until the timeout, and then this error.
    Silent(Error),
    Sent {
        /// Closed without a value if no response will come.
        answer: oneshot::Receiver<Result<PeerResponse, Error>>,
        /// The requester does not notice the broken connection.
        patient: bool,
    },
}

/// Notifications that a sender gets within the call that sends.
struct Unsent {
    attached: Option<Attached>,
    to: MemberId,
    messages: Vec<PeerMessage>,
    error: Error,
}

impl Unsent {
    fn report(self) {
        let Some(Attached { inbound, .. }) = self.attached else {
            return;
        };
        let raft = |message: &PeerMessage| matches!(message, PeerMessage::Raft(_));
        if self.messages.iter().any(raft) {
            inbound.unreachable(self.to);
        }
        let refused = refusals(&self.messages, self.error);
        if !refused.is_empty() {
            inbound.received(self.to, refused);
        }
    }
}

impl SimNetwork {
    fn send(&self, from: Incarnation, to: MemberId, messages: Vec<PeerMessage>) {
        let now_ns = self.time.now_ns();
        let mut links = self.links.lock();
        if !links.is_alive(from) || messages.is_empty() {
            return;
        }
        let mut promises = self.promises();
        for message in &messages {
            if let PeerMessage::Raft(message) = message {
                promises.note(from.member, message);
            }
        }
        drop(promises);
        let mut unsent = Unsent {
            attached: links.attached(from).cloned(),
            to,
            messages: Vec::new(),
            error: Error::NoLeader,
        };
        if !links.knows(from.member, to) {
            unsent.messages = messages;
        } else {
            unsent.error = Error::TooManyRequests;
            // The messages of a batch are lost and delayed together, or separately.
            let together = links.random.chance(500);
            let groups = match together {
                true => vec![messages],
                false => messages.into_iter().map(|one| vec![one]).collect(),
            };
            for group in groups {
                unsent
                    .messages
                    .extend(links.send_group(from, to, group, now_ns));
            }
        }
        drop(links);
        unsent.report();
    }

    fn send_snapshot(&self, from: Incarnation, message: Message, files: Arc<SnapshotDir>) {
        let now_ns = self.time.now_ns();
        let mut links = self.links.lock();
        if !links.is_alive(from) {
            return;
        }
        links.counts.snapshots_sent += 1;
        let to = links.incarnation(MemberId(message.to));
        let link = (from.member, to.member);
        let reachable = links.knows(link.0, link.1)
            && links.attached(to).is_some()
            && links.is_whole(link.0, link.1);
        if !reachable || links.transfers.contains_key(&link) {
            links.counts.snapshots_cut += 1;
            let payload = InFlightPayload::SnapshotSent {
                to: to.member,
                number: 0,
                taken: false,
            };
            links.notify(from.member, payload, now_ns);
            return;
        }
        let number = links.new_incarnation();
        links.transfers.insert(link, number);
        let breaks = BREAKS_PER_MILLE + 4 * links.conditions.loss_per_mille;
        let breaks = links.random.chance(breaks.min(800));
        let due_ns = now_ns + Delay::Transfer.draw(&mut links.random);
        let payload = InFlightPayload::Snapshot {
            message,
            files,
            number,
            breaks,
        };
        links.launch(due_ns, InFlight { from, to, payload });
    }

    fn ask(&self, from: Incarnation, to: MemberId, request: PeerRequest, limit: Duration) -> Fate {
        let now_ns = self.time.now_ns();
        let mut links = self.links.lock();
        links.counts.peer_rpcs += 1;
        let endpoint = links.endpoints.get(&from.member);
        let known =
            endpoint.is_some_and(|one| one.incarnation == from.number && one.roster.knows(to));
        if !known {
            return Fate::NotConnected;
        }
        let link = (from.member, to);
        let to = links.incarnation(to);
        if links.attached(to).is_none() || !links.is_whole(link.0, link.1) {
            links.counts.peer_rpcs_lost += 1;
            return match links.random.below(3) {
                0 => Fate::NotConnected,
                // The connection could not be established in time, or is dead.
                1 => Fate::Silent(Error::NoLeader),
                _ => Fate::Silent(Error::Timeout),
            };
        }
        let (answer_to, answer) = oneshot::channel();
        let patient = links.random.chance(500);
        if links.is_full(link) || links.loses(link) {
            links.counts.peer_rpcs_lost += 1;
        } else {
            let due_ns = now_ns + links.message_delay();
            let payload = InFlightPayload::PeerRequest {
                request,
                limit,
                answer_to,
            };
            links.launch(due_ns, InFlight { from, to, payload });
        }
        Fate::Sent { answer, patient }
    }
}

impl Links {
    /// Returns the messages for which the link had no room.
    fn send_group(
        &mut self,
        from: Incarnation,
        to: MemberId,
        messages: Vec<PeerMessage>,
        now_ns: u64,
    ) -> Vec<PeerMessage> {
        let link = (from.member, to);
        if self.is_full(link) {
            self.counts.overflowed += messages.len() as u64;
            return messages;
        }
        let to = self.incarnation(to);
        let nobody = self.attached(to).is_none() || self.cut.contains(&link);
        if nobody || self.loses(link) {
            self.lost(from, to.member, messages, now_ns);
            return Vec::new();
        }
        let duplicates = self.conditions.duplicates_per_mille;
        for message in &messages {
            // All other messages use a stream, which does not repeat.
            if matches!(message, PeerMessage::Raft(_)) && self.random.chance(duplicates) {
                self.counts.duplicated += 1;
                let due_ns = now_ns + self.message_delay();
                let payload = InFlightPayload::Messages(vec![message.clone()]);
                self.launch(due_ns, InFlight { from, to, payload });
            }
        }
        let due_ns = now_ns + self.message_delay();
        let payload = InFlightPayload::Messages(messages);
        self.launch(due_ns, InFlight { from, to, payload });
        Vec::new()
    }
}
