//! Delivers what is in flight, and handles its result.

use std::sync::Weak;
use std::time::Duration;

use super::in_flight::{AnswerTo, InFlight, InFlightPayload, Incarnation};
use super::{Attached, Links, SimNetwork};
use crate::env::Executor;
use crate::error::Error;
use crate::proto::etchedpeer::peer_request::Request as Kind;
use crate::proto::etchedpeer::{PeerRequest, PeerResponse};
use crate::raft::Message;
use crate::sim::random::Random;
use crate::sim::states::SimDisks;
use crate::transport::{PeerMessage, SnapshotDir};
use crate::types::MemberId;

/// Messages that are due may be reordered within this many others.
const OVERTAKEN: u64 = 8;

impl SimNetwork {
    /// Delivers everything that is due.
    pub fn deliver_due(&self, now_ns: u64, random: &mut Random) {
        loop {
            let mut links = self.links.lock();
            let Some(flight) = links.take_due(now_ns, random) else {
                return;
            };
            let attached = links.attached(flight.to).cloned();
            drop(links);
            self.deliver(flight, attached, now_ns);
        }
    }

    fn deliver(&self, flight: InFlight, attached: Option<Attached>, now_ns: u64) {
        let InFlight { from, to, payload } = flight;
        match payload {
            InFlightPayload::Messages(messages) => {
                self.messages(from, to, messages, attached, now_ns)
            }
            InFlightPayload::Snapshot {
                message,
                files,
                number,
                breaks,
            } => {
                let transfer = Transfer {
                    network: self.itself.clone(),
                    from,
                    to,
                    number,
                    taken: false,
                };
                let attached = attached.filter(|_| !breaks && self.reaches(from, to));
                if let Some(attached) = attached {
                    self.snapshot(transfer, message, &files, attached, now_ns);
                }
            }
            InFlightPayload::PeerRequest {
                request,
                limit,
                answer_to,
            } => match attached.filter(|_| self.reaches(from, to)) {
                Some(attached) => {
                    let request = (request, limit);
                    self.peer_rpc(from, to, request, answer_to, attached, now_ns);
                }
                None => self.links.lock().counts.peer_rpcs_lost += 1,
            },
            InFlightPayload::PeerResponse { answer, answer_to } => {
                if attached.is_some() && self.reaches(from, to) {
                    // The requester may have timed out.
                    let _ = answer_to.send(answer);
                } else {
                    self.links.lock().counts.peer_rpcs_lost += 1;
                }
            }
            InFlightPayload::Silence { member, number } => self.silence(member, number, now_ns),
            notice => {
                if let Some(attached) = attached {
                    self.notice(to, notice, &attached);
                }
            }
        }
    }

    /// Requests that need both directions of a connection.
    fn reaches(&self, from: Incarnation, to: Incarnation) -> bool {
        self.links.lock().is_whole(from.member, to.member)
    }

    fn messages(
        &self,
        from: Incarnation,
        to: Incarnation,
        mut messages: Vec<PeerMessage>,
        attached: Option<Attached>,
        now_ns: u64,
    ) {
        let attached = attached.filter(|_| !self.is_cut(from.member, to.member));
        let Some(Attached { inbound, .. }) = attached else {
            let mut links = self.links.lock();
            return links.lost(from, to.member, messages, now_ns);
        };
        if inbound.is_removed(from.member) {
            let mut links = self.links.lock();
            links.counts.lost += messages.len() as u64;
            return links.report_removed(from, to.member, 300, now_ns);
        }
        messages.retain(|message| match message {
            PeerMessage::Raft(message) => message.to == to.member.0,
            _ => true,
        });
        {
            let mut links = self.links.lock();
            links.counts.delivered += messages.len() as u64;
            links.learn_address(to.member, from.member);
        }
        inbound.received(from.member, messages);
    }

    fn snapshot(
        &self,
        mut transfer: Transfer,
        message: Message,
        files: &SnapshotDir,
        attached: Attached,
        now_ns: u64,
    ) {
        let Attached { inbound, tasks } = attached;
        let (from, to) = (transfer.from, transfer.to);
        if inbound.is_removed(from.member) {
            return self
                .links
                .lock()
                .report_removed(from, to.member, 1_000, now_ns);
        }
        let path = SimDisks::root(to.member).join(format!("receiving-{:x}", transfer.number));
        if message.to != to.member.0 || !self.disks.copy(files.path(), &path) {
            return;
        }
        {
            let index = message.get_snapshot().get_metadata().index;
            let mut links = self.links.lock();
            links.counts.snapshots_arrived += 1;
            *links.arrivals.entry((to.number, index)).or_default() += 1;
        }
        let received = self.disks.lend(path);
        let take = async move {
            let taken = inbound.snapshot_received(message, received).await;
            transfer.taken = taken.is_ok();
            drop(transfer);
        };
        tasks.spawn(Box::pin(take));
    }

    fn peer_rpc(
        &self,
        from: Incarnation,
        to: Incarnation,
        (request, limit): (PeerRequest, Duration),
        answer_to: AnswerTo,
        attached: Attached,
        now_ns: u64,
    ) {
        let Attached { inbound, tasks } = attached;
        let is_removed = inbound.is_removed(from.member);
        // Needs no identity.
        let describes = matches!(request.request, Some(Kind::Describe(_)));
        if is_removed && !describes {
            self.links
                .lock()
                .report_removed(from, to.member, 1_000, now_ns);
            return self.answer(to, from, Err(Error::NoLeader), answer_to);
        }
        let asker = (!is_removed).then_some(from.member);
        let network = self.itself.clone();
        let answering = async move {
            let answer = inbound.asked(asker, request, Some(limit)).await;
            if let Some(network) = network.upgrade() {
                network.answer(to, from, answer, answer_to);
            }
        };
        tasks.spawn(Box::pin(answering));
    }

    fn answer(
        &self,
        from: Incarnation,
        to: Incarnation,
        answer: Result<PeerResponse, Error>,
        answer_to: AnswerTo,
    ) {
        let now_ns = self.time.now_ns();
        let mut links = self.links.lock();
        let link = (from.member, to.member);
        if !links.is_alive(from) || links.is_full(link) || links.loses(link) {
            links.counts.peer_rpcs_lost += 1;
            drop(links);
            // The requester sees a broken connection.
            drop(answer_to);
            return;
        }
        let due_ns = now_ns + links.message_delay();
        let payload = InFlightPayload::PeerResponse { answer, answer_to };
        links.launch(due_ns, InFlight { from, to, payload });
    }

    /// Delivers a notification from the member's own network.
    fn notice(&self, to: Incarnation, notice: InFlightPayload, attached: &Attached) {
        let inbound = &attached.inbound;
        match notice {
            InFlightPayload::Refused { peer, messages } => inbound.received(peer, messages),
            InFlightPayload::Unreachable(peer) => {
                self.links.lock().counts.reported_unreachable += 1;
                inbound.unreachable(peer);
            }
            InFlightPayload::Removed { by } => {
                self.links.lock().counts.reported_removed += 1;
                inbound.removed(by);
            }
            InFlightPayload::SnapshotSent {
                to: peer,
                number,
                taken,
            } => {
                let link = (to.member, peer);
                let mut links = self.links.lock();
                // A transfer that could not start has no number.
                let news = number == 0 || links.transfers.get(&link) == Some(&number);
                if number != 0 && news {
                    links.transfers.remove(&link);
                }
                drop(links);
                if news {
                    inbound.snapshot_sent(peer, taken);
                }
            }
            InFlightPayload::Messages(_)
            | InFlightPayload::Snapshot { .. }
            | InFlightPayload::PeerRequest { .. }
            | InFlightPayload::PeerResponse { .. }
            | InFlightPayload::Silence { .. } => {}
        }
    }

    /// A member was paused for a while: its peers consider it silent.
    fn silence(&self, member: MemberId, number: u64, now_ns: u64) {
        let mut links = self.links.lock();
        if links.held.get(&member) == Some(&number) {
            links.silent.insert(member);
            links.spread_unreachable(member, now_ns, 900);
            links.reconnect();
        }
    }
}

/// A state in flight; its sender is informed of the outcome exactly once.
struct Transfer {
    network: Weak<SimNetwork>,
    from: Incarnation,
    to: Incarnation,
    number: u64,
    taken: bool,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let Some(network) = self.network.upgrade() else {
            return;
        };
        let now_ns = network.time.now_ns();
        let mut links = network.links.lock();
        if !links.is_alive(self.from) {
            return;
        }
        let back = (self.to.member, self.from.member);
        // The peer may have received it and be unable to answer.
        let taken = self.taken && links.is_whole(back.0, back.1) && !links.loses(back);
        links.counts.snapshots_cut += u64::from(!taken);
        let payload = InFlightPayload::SnapshotSent {
            to: self.to.member,
            number: self.number,
            taken,
        };
        links.notify(self.from.member, payload, now_ns);
    }
}

impl Links {
    /// Takes one of the flights that are due. Those to a paused member are held.
    fn take_due(&mut self, now_ns: u64, random: &mut Random) -> Option<InFlight> {
        loop {
            let due = self.flying.range(..=(now_ns, u64::MAX));
            let count = due.take(OVERTAKEN as usize).count() as u64;
            if count == 0 {
                return None;
            }
            let skipped = random.below(count) as usize;
            let key = *self.flying.keys().nth(skipped)?;
            let flight = self.flying.remove(&key)?;
            let held = self.held.contains_key(&flight.to.member) && self.is_alive(flight.to);
            let endpoint = self.endpoints.get_mut(&flight.to.member);
            match endpoint.filter(|_| held) {
                Some(endpoint) => endpoint.waiting.push_back(flight),
                None => {
                    self.landed(&flight);
                    return Some(flight);
                }
            }
        }
    }

    fn report_removed(&mut self, member: Incarnation, by: MemberId, per_mille: u32, now_ns: u64) {
        if self.is_alive(member) && self.random.chance(per_mille) {
            self.notify(member.member, InFlightPayload::Removed { by }, now_ns);
        }
    }
}
