//! The network between the members of a world: every message has a delay, and may be late, lost,
//! duplicated, or arrive after its receiver has died.
//!
//! Everything on it is an `InFlight` with a due time, from one process of a member to one process
//! of another: what was sent to a process does not reach a later one, since its connections ended
//! with it. Members are called by `deliver_due` alone and, where the real network does so too, by
//! `send`; no lock is held while a member is called or anything of it is dropped.
//!
//! `links` holds the members and the links between them, `in_flight` what was sent, `deliver`
//! delivers it, `member_network` is a member's side, and `promises` checks terms and votes.

mod conditions;
mod deliver;
mod in_flight;
mod links;
mod member_network;
mod promises;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

pub use self::conditions::{Counts, LinkConditions};
use self::in_flight::{Delay, InFlight, InFlightPayload};
use self::links::{Attached, Links};
use self::promises::Promises;
use super::clock::Time;
use super::executor::Tasks;
use super::random::Random;
use super::states::SimDisks;
use crate::transport::Inbound;
use crate::types::MemberId;

/// See the module.
pub struct SimNetwork {
    /// A reference for flights, which have to get back to the network.
    itself: Weak<SimNetwork>,
    time: Arc<Time>,
    disks: Arc<SimDisks>,
    links: Mutex<Links>,
    promises: Mutex<Promises>,
}

impl SimNetwork {
    pub fn new(time: Arc<Time>, disks: Arc<SimDisks>, random: Random) -> Arc<Self> {
        Arc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            time,
            disks,
            links: Mutex::new(Links::new(random)),
            promises: Mutex::default(),
        })
    }

    /// Sets the handler of a member's incoming messages. Its tasks run long operations.
    fn attach(&self, member: MemberId, inbound: Arc<dyn Inbound>, tasks: Arc<Tasks>) {
        let mut links = self.links.lock();
        let attached = Attached { inbound, tasks };
        let before = match links.endpoints.get_mut(&member) {
            Some(endpoint) => endpoint.attached.replace(attached),
            None => Some(attached),
        };
        links.reconnect();
        drop(links);
        drop(before);
    }

    /// The member's process ends: nothing reaches it any more, and most peers notice.
    pub fn detach(&self, member: MemberId) {
        let now_ns = self.time.now_ns();
        let mut links = self.links.lock();
        let mut endpoint = links.endpoints.remove(&member);
        // What it was waiting for is not delivered.
        let waiting = endpoint
            .as_mut()
            .map(|one| std::mem::take(&mut one.waiting));
        for flight in waiting.unwrap_or_default() {
            links.relaunch(now_ns, flight);
        }
        let fallen = links.ground_snapshots(member);
        links.held.remove(&member);
        links.silent.remove(&member);
        let was_there = endpoint.as_ref().is_some_and(|one| one.attached.is_some());
        if was_there {
            links.spread_unreachable(member, now_ns, 750);
        }
        links.reconnect();
        drop(links);
        drop((endpoint, fallen));
    }

    /// Nothing that `from` sends reaches `to`. A connection needs both directions, so neither
    /// counts as connected.
    pub fn cut(&self, from: MemberId, to: MemberId) {
        let now_ns = self.time.now_ns();
        let mut links = self.links.lock();
        links.cut.insert((from, to));
        if links.cut.contains(&(to, from)) {
            for (member, peer) in [(from, to), (to, from)] {
                if links.random.chance(500) {
                    links.notify(member, InFlightPayload::Unreachable(peer), now_ns);
                }
            }
        }
        links.reconnect();
    }

    pub fn heal(&self, from: MemberId, to: MemberId) {
        let mut links = self.links.lock();
        links.cut.remove(&(from, to));
        links.reconnect();
    }

    pub fn heal_all(&self) {
        let mut links = self.links.lock();
        links.cut.clear();
        links.reconnect();
    }

    pub fn is_cut(&self, from: MemberId, to: MemberId) -> bool {
        self.links.lock().cut.contains(&(from, to))
    }

    /// No link is cut or worse than usual.
    pub fn is_sound(&self) -> bool {
        let links = self.links.lock();
        links.cut.is_empty() && links.conditions == LinkConditions::default()
    }

    /// Sets the minimum delay of every message.
    pub fn set_distance(&self, ns: u64) {
        self.links.lock().distance_ns = ns;
    }

    /// Changes the conditions from now on.
    pub fn set_conditions(
        &self,
        loss_per_mille: u32,
        duplicates_per_mille: u32,
        slow_per_mille: u32,
    ) {
        let mut links = self.links.lock();
        links.conditions = LinkConditions {
            loss_per_mille,
            duplicates_per_mille,
            slow_per_mille,
        };
        links.losses.clear();
    }

    /// Pauses or resumes a member. What is sent to it is held; after a while its peers consider it
    /// silent.
    pub fn hold(&self, member: MemberId, held: bool) {
        let now_ns = self.time.now_ns();
        let mut links = self.links.lock();
        if held && !links.held.contains_key(&member) {
            let number = links.new_incarnation();
            links.held.insert(member, number);
            let silence = InFlight::to_nobody(InFlightPayload::Silence { member, number });
            let due_ns = now_ns + Delay::Silence.draw(&mut links.random);
            links.launch(due_ns, silence);
        }
        if !held && links.held.remove(&member).is_some() {
            links.silent.remove(&member);
            let waiting = links.endpoints.get_mut(&member);
            let waiting = waiting.map(|endpoint| std::mem::take(&mut endpoint.waiting));
            for flight in waiting.unwrap_or_default() {
                let due_ns = now_ns + links.random.between(1, 10_000);
                links.relaunch(due_ns, flight);
            }
            links.reconnect();
        }
    }

    /// When the next delivery is due.
    pub fn next_delivery(&self) -> Option<u64> {
        let links = self.links.lock();
        links.flying.first_key_value().map(|(key, _)| key.0)
    }

    /// How many messages are in flight or held for a paused member.
    #[cfg(test)]
    pub fn in_flight(&self) -> usize {
        self.links.lock().in_flight()
    }

    /// The maximum of that so far.
    #[cfg(test)]
    pub fn most_in_flight(&self) -> usize {
        self.links.lock().most_in_flight
    }

    /// How often one process received the same state completely, at most. More than once is normal
    /// where its response was lost.
    pub fn most_arrivals(&self) -> u64 {
        self.links
            .lock()
            .arrivals
            .values()
            .copied()
            .max()
            .unwrap_or(0)
    }

    /// The terms and votes that members have announced.
    pub fn promises(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock()
    }

    pub fn counts(&self) -> Counts {
        self.links.lock().counts
    }
}
