//! The members as the network knows them, and the links between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::conditions::{Counts, LinkConditions, MAX_ON_A_LINK};
use super::in_flight::{Delay, InFlight, InFlightPayload, Incarnation};
use crate::env::Clock;
use crate::error::Error;
use crate::probe::{self, CoveragePoint, Defect};
use crate::sim::executor::Tasks;
use crate::sim::random::Random;
use crate::transport::{Inbound, PeerMessage, Roster};
use crate::types::MemberId;

/// Sender and receiver.
pub type Link = (MemberId, MemberId);

/// What handles a member's incoming messages.
#[derive(Clone)]
pub struct Attached {
    pub inbound: Arc<dyn Inbound>,
    pub tasks: Arc<Tasks>,
}

/// A running process of a member.
pub struct Endpoint {
    pub incarnation: u64,
    pub clock: Arc<dyn Clock>,
    pub roster: Roster,
    pub attached: Option<Attached>,
    /// Flights to a member that is paused.
    pub waiting: VecDeque<InFlight>,
    /// Since when a peer has been connected, by the member's clock.
    pub connected: BTreeMap<MemberId, Duration>,
}

impl Endpoint {
    pub fn new(member: MemberId, incarnation: u64, clock: Arc<dyn Clock>) -> Self {
        Self {
            incarnation,
            clock,
            roster: Roster::new(member, vec![format!("http://{member}")]),
            attached: None,
            waiting: VecDeque::new(),
            connected: BTreeMap::new(),
        }
    }
}

/// The state behind the lock.
pub struct Links {
    pub random: Random,
    pub conditions: LinkConditions,
    /// The minimum delay of every message.
    pub distance_ns: u64,
    /// Per mille lost on each link, once it was used under the present conditions.
    pub losses: BTreeMap<Link, u32>,
    pub cut: BTreeSet<Link>,
    pub endpoints: BTreeMap<MemberId, Endpoint>,
    /// Paused members, each with the number of its pause.
    pub held: BTreeMap<MemberId, u64>,
    /// Those of them that are considered silent.
    pub silent: BTreeSet<MemberId>,
    /// By due time, then in the order in which they were sent.
    pub flying: BTreeMap<(u64, u64), InFlight>,
    on_link: BTreeMap<Link, usize>,
    /// Transfers of states of which the sender does not know the outcome yet.
    pub transfers: BTreeMap<Link, u64>,
    last_number: u64,
    pub most_in_flight: usize,
    /// How often a state, by its index, was received completely by a process.
    pub arrivals: BTreeMap<(u64, u64), u64>,
    pub counts: Counts,
}

impl Links {
    pub fn new(random: Random) -> Self {
        Self {
            random,
            conditions: LinkConditions::default(),
            distance_ns: 0,
            losses: BTreeMap::new(),
            cut: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            held: BTreeMap::new(),
            silent: BTreeSet::new(),
            flying: BTreeMap::new(),
            on_link: BTreeMap::new(),
            transfers: BTreeMap::new(),
            last_number: 0,
            most_in_flight: 0,
            arrivals: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// A number that was not used before.
    pub fn new_incarnation(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// The running process of the member; number 0 if there is none.
    pub fn incarnation(&self, member: MemberId) -> Incarnation {
        let number = self.endpoints.get(&member).map_or(0, |one| one.incarnation);
        Incarnation { member, number }
    }

    pub fn is_alive(&self, incarnation: Incarnation) -> bool {
        self.endpoints
            .get(&incarnation.member)
            .is_some_and(|endpoint| endpoint.incarnation == incarnation.number)
    }

    /// The handler of this process, if it runs and is attached.
    pub fn attached(&self, incarnation: Incarnation) -> Option<&Attached> {
        let endpoint = self.endpoints.get(&incarnation.member)?;
        let attached = endpoint.attached.as_ref()?;
        (endpoint.incarnation == incarnation.number).then_some(attached)
    }

    pub fn is_whole(&self, one: MemberId, other: MemberId) -> bool {
        !self.cut.contains(&(one, other)) && !self.cut.contains(&(other, one))
    }

    /// Whether the link loses this message.
    pub fn loses(&mut self, link: Link) -> bool {
        if self.conditions.loss_per_mille >= 1_000 {
            return true;
        }
        let most = u64::from(self.conditions.loss_per_mille) * 2;
        let Self { losses, random, .. } = self;
        let loss = losses
            .entry(link)
            .or_insert_with(|| random.between(0, most).min(1_000) as u32);
        random.chance(*loss)
    }

    /// The delay of a message sent now.
    pub fn message_delay(&mut self) -> u64 {
        let slow = self.random.chance(self.conditions.slow_per_mille);
        self.counts.delayed_long += u64::from(slow);
        let delay = if slow { Delay::Slow } else { Delay::Usual };
        delay.draw(&mut self.random) + self.distance_ns
    }

    pub fn launch(&mut self, due_ns: u64, flight: InFlight) {
        if flight.is_on_a_link() {
            let link = (flight.from.member, flight.to.member);
            *self.on_link.entry(link).or_default() += 1;
        }
        self.relaunch(due_ns, flight);
        self.most_in_flight = self.most_in_flight.max(self.in_flight());
    }

    /// Sends what has already been counted on its link.
    pub fn relaunch(&mut self, due_ns: u64, flight: InFlight) {
        let number = self.new_incarnation();
        self.flying.insert((due_ns, number), flight);
    }

    /// Removes a flight from its link.
    pub fn landed(&mut self, flight: &InFlight) {
        let link = (flight.from.member, flight.to.member);
        if flight.is_on_a_link()
            && let Some(count) = self.on_link.get_mut(&link)
        {
            *count = count.saturating_sub(1);
        }
    }

    pub fn is_full(&self, link: Link) -> bool {
        self.on_link
            .get(&link)
            .is_some_and(|count| *count >= MAX_ON_A_LINK)
    }

    pub fn in_flight(&self) -> usize {
        let waiting = self.endpoints.values().map(|one| one.waiting.len());
        self.flying.len() + waiting.sum::<usize>()
    }

    /// Delivers a notification from the member's own network, after a moment.
    pub fn notify(&mut self, member: MemberId, payload: InFlightPayload, now_ns: u64) {
        let to = self.incarnation(member);
        let due_ns = now_ns + Delay::Notice.draw(&mut self.random);
        let from = to;
        self.launch(due_ns, InFlight { from, to, payload });
    }

    /// Notifies some of a member's peers that it is gone.
    pub fn spread_unreachable(&mut self, member: MemberId, now_ns: u64, per_mille: u32) {
        let knowing = self.endpoints.iter();
        let knowing = knowing.filter(|(_, endpoint)| endpoint.roster.knows(member));
        let knowing: Vec<MemberId> = knowing.map(|(peer, _)| *peer).collect();
        for peer in knowing {
            if self.random.chance(per_mille) {
                self.notify(peer, InFlightPayload::Unreachable(member), now_ns);
            }
        }
    }

    /// What was sent has been lost; its sender may be notified.
    pub fn lost(
        &mut self,
        from: Incarnation,
        to: MemberId,
        messages: Vec<PeerMessage>,
        now_ns: u64,
    ) {
        self.counts.lost += messages.len() as u64;
        if !self.is_alive(from) {
            return;
        }
        let refused = refusals(&messages, Error::NoLeader);
        if !refused.is_empty() && self.random.chance(500) {
            self.counts.refused += refused.len() as u64;
            let (peer, messages) = (to, refused);
            self.notify(
                from.member,
                InFlightPayload::Refused { peer, messages },
                now_ns,
            );
        }
        if self.random.chance(150) {
            self.notify(from.member, InFlightPayload::Unreachable(to), now_ns);
        }
    }

    /// Aborts the transfers of states that a member sends. The caller drops the returned values
    /// without the lock.
    pub fn ground_snapshots(&mut self, member: MemberId) -> Vec<InFlight> {
        let sent = |flight: &InFlight| {
            flight.from.member == member
                && matches!(flight.payload, InFlightPayload::Snapshot { .. })
        };
        let keys: Vec<_> = self
            .flying
            .iter()
            .filter(|(_, flight)| sent(flight))
            .map(|(key, _)| *key)
            .collect();
        let mut fallen: Vec<InFlight> = Vec::new();
        for key in keys {
            fallen.extend(self.flying.remove(&key));
        }
        for endpoint in self.endpoints.values_mut() {
            let (sent, kept): (VecDeque<_>, VecDeque<_>) =
                endpoint.waiting.drain(..).partition(|flight| sent(flight));
            endpoint.waiting = kept;
            fallen.extend(sent);
        }
        for flight in &fallen {
            self.landed(flight);
        }
        self.counts.snapshots_cut += fallen.len() as u64;
        self.transfers.retain(|(from, _), _| *from != member);
        fallen
    }

    /// True if a member knows an address of the other.
    pub fn knows(&self, member: MemberId, peer: MemberId) -> bool {
        let endpoint = self.endpoints.get(&member);
        endpoint.is_some_and(|endpoint| endpoint.roster.knows(peer))
    }

    /// A call carries the caller's peer URLs.
    pub fn learn_address(&mut self, member: MemberId, caller: MemberId) {
        if self.knows(member, caller) || probe::injected(Defect::UnlistedUnanswered) {
            return;
        }
        let urls = self.endpoints.get(&caller).map(|one| one.roster.own_urls());
        let urls = urls.unwrap_or_default().to_vec();
        if let Some(endpoint) = self.endpoints.get_mut(&member)
            && endpoint.roster.learn(caller, &urls)
        {
            probe::reached(CoveragePoint::UnlistedPeerAnswered);
            self.reconnect();
        }
    }

    /// Updates which members are connected.
    pub fn reconnect(&mut self) {
        let here = |member: &MemberId| {
            let endpoint = self.endpoints.get(member)?;
            let there = endpoint.attached.is_some() && !self.silent.contains(member);
            there.then_some(endpoint)
        };
        let mut connected = Vec::new();
        for member in self.endpoints.keys() {
            let Some(endpoint) = here(member) else {
                continue;
            };
            let peers = endpoint.roster.peers().into_iter().map(|peer| peer.member);
            let peers = peers.filter(|peer| {
                here(peer).is_some_and(|other| other.roster.knows(*member))
                    && self.is_whole(*member, *peer)
            });
            connected.push((*member, peers.collect::<BTreeSet<_>>()));
        }
        let mut connected: BTreeMap<_, _> = connected.into_iter().collect();
        for (member, endpoint) in &mut self.endpoints {
            let peers = connected.remove(member).unwrap_or_default();
            endpoint.connected.retain(|peer, _| peers.contains(peer));
            let now = endpoint.clock.now();
            for peer in peers {
                endpoint.connected.entry(peer).or_insert(now);
            }
        }
    }
}

/// What the senders of these forwarded proposals are notified of.
pub fn refusals(messages: &[PeerMessage], error: Error) -> Vec<PeerMessage> {
    let refusal = |message: &PeerMessage| match message {
        PeerMessage::Forwarded(forwarded) => Some(PeerMessage::Refused {
            request_id: forwarded.request_id,
            term: forwarded.term,
            error,
        }),
        _ => None,
    };
    messages.iter().filter_map(refusal).collect()
}
