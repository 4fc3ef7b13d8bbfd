//! The network between the members of a world: what is said flies for a while, and may be late,
//! lost, repeated, or arrive where nobody is any more.
//!
//! Everything that crosses it is a `Flight`, due at some moment, from whoever lived then to whoever
//! lived then: what was sent to a life does not reach a later one, for its connections died with
//! it. Nothing calls a member but `deliver_due` and, where the real network does so too, `send`;
//! and no lock is held while a member is called or anything of it is dropped.
//!
//! `line` holds the members and what lies between them, `flight` what flies, `deliver` how it
//! arrives, `network` is what a member sees, `promises` what it may not forget.

mod deliver;
mod flight;
mod line;
mod member_network;
mod promises;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use self::flight::{Cargo, Delay, Flight};
use self::line::{Air, Attached, Station};
pub use self::member_network::MemberNetwork;
use self::promises::Promises;
use super::clock::Time;
use super::executor::Tasks;
use super::random::Random;
use super::states::SimDisks;
use crate::env::Clock;
use crate::transport::Inbound;
use crate::types::MemberId;

/// Flights between two members at once, in one direction; more messages are refused.
pub const MAX_ON_A_LINK: usize = 2_048;

/// How things go between all members that are not cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Each link loses between nothing and twice as much; all of them everything at 1000.
    pub loss_per_mille: u32,
    pub duplicates_per_mille: u32,
    /// What takes far longer than usual.
    pub slow_per_mille: u32,
}

/// What happened so far, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub delivered: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// Messages that took far longer than usual.
    pub delayed_long: u64,
    /// Messages that found no room on their link.
    pub overflowed: u64,
    /// Forwarded proposals whose sender learned that nobody has them.
    pub refused: u64,
    pub told_unreachable: u64,
    pub told_removed: u64,
    pub snapshots_sent: u64,
    pub snapshots_arrived: u64,
    pub snapshots_cut: u64,
    pub questions: u64,
    pub questions_lost: u64,
}

impl Counts {
    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: &Counts) {
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.delayed_long += other.delayed_long;
        self.overflowed += other.overflowed;
        self.refused += other.refused;
        self.told_unreachable += other.told_unreachable;
        self.told_removed += other.told_removed;
        self.snapshots_sent += other.snapshots_sent;
        self.snapshots_arrived += other.snapshots_arrived;
        self.snapshots_cut += other.snapshots_cut;
        self.questions += other.questions;
        self.questions_lost += other.questions_lost;
    }
}

/// See the module.
pub struct SimNetwork {
    /// For what flies and has to find back.
    itself: Weak<SimNetwork>,
    time: Arc<Time>,
    disks: Arc<SimDisks>,
    air: Mutex<Air>,
    promises: Mutex<Promises>,
}

impl SimNetwork {
    pub fn new(time: Arc<Time>, disks: Arc<SimDisks>, random: Random) -> Arc<Self> {
        Arc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            time,
            disks,
            air: Mutex::new(Air::new(random)),
            promises: Mutex::default(),
        })
    }

    /// The network for a life of a member that begins now; its clock says how long answers are
    /// waited for. Nothing comes in before `attach`.
    pub fn network(&self, member: MemberId, clock: Arc<dyn Clock>) -> Arc<MemberNetwork> {
        self.detach(member);
        let mut air = self.air.lock();
        let life = air.new_life();
        let station = Station::new(member, life, clock.clone());
        let before = air.stations.insert(member, station);
        drop(air);
        drop(before);
        Arc::new(MemberNetwork::new(self.itself.clone(), member, life, clock))
    }

    /// Has what comes to a member handed to it. Its tasks run what takes a while.
    pub fn attach(&self, member: MemberId, inbound: Arc<dyn Inbound>, tasks: Arc<Tasks>) {
        let mut air = self.air.lock();
        let attached = Attached { inbound, tasks };
        let before = match air.stations.get_mut(&member) {
            Some(station) => station.attached.replace(attached),
            None => Some(attached),
        };
        air.reconnect();
        drop(air);
        drop(before);
    }

    /// The member dies: nothing reaches it any more, and its peers hear of it, mostly.
    pub fn detach(&self, member: MemberId) {
        let now_ns = self.time.now_ns();
        let mut air = self.air.lock();
        let mut station = air.stations.remove(&member);
        // What waited for it arrives at nobody.
        let waiting = station.as_mut().map(|one| std::mem::take(&mut one.waiting));
        for flight in waiting.unwrap_or_default() {
            air.relaunch(now_ns, flight);
        }
        let fallen = air.ground_snapshots(member);
        air.held.remove(&member);
        air.silent.remove(&member);
        let was_there = station.as_ref().is_some_and(|one| one.attached.is_some());
        if was_there {
            air.spread_unreachable(member, now_ns, 750);
        }
        air.reconnect();
        drop(air);
        drop((station, fallen));
    }

    /// What one says does not reach the other. A connection has two ways: neither counts as
    /// connected.
    pub fn cut(&self, from: MemberId, to: MemberId) {
        let now_ns = self.time.now_ns();
        let mut air = self.air.lock();
        air.cut.insert((from, to));
        if air.cut.contains(&(to, from)) {
            for (member, peer) in [(from, to), (to, from)] {
                if air.random.chance(500) {
                    air.tell(member, Cargo::Unreachable(peer), now_ns);
                }
            }
        }
        air.reconnect();
    }

    pub fn heal(&self, from: MemberId, to: MemberId) {
        let mut air = self.air.lock();
        air.cut.remove(&(from, to));
        air.reconnect();
    }

    pub fn heal_all(&self) {
        let mut air = self.air.lock();
        air.cut.clear();
        air.reconnect();
    }

    pub fn is_cut(&self, from: MemberId, to: MemberId) -> bool {
        self.air.lock().cut.contains(&(from, to))
    }

    /// Sets how long any message takes at least.
    pub fn set_distance(&self, ns: u64) {
        self.air.lock().distance_ns = ns;
    }

    /// Changes how things go from now on.
    pub fn set_weather(&self, loss_per_mille: u32, duplicates_per_mille: u32, slow_per_mille: u32) {
        let mut air = self.air.lock();
        air.weather = Weather {
            loss_per_mille,
            duplicates_per_mille,
            slow_per_mille,
        };
        air.losses.clear();
    }

    pub fn weather(&self) -> Weather {
        self.air.lock().weather
    }

    /// The member stands still, and what comes to it waits; or it goes on. After a while its
    /// peers find it silent.
    pub fn hold(&self, member: MemberId, held: bool) {
        let now_ns = self.time.now_ns();
        let mut air = self.air.lock();
        if held && !air.held.contains_key(&member) {
            let number = air.new_life();
            air.held.insert(member, number);
            let silence = Flight::to_nobody(Cargo::Silence { member, number });
            let due_ns = now_ns + Delay::Silence.draw(&mut air.random);
            air.launch(due_ns, silence);
        }
        if !held && air.held.remove(&member).is_some() {
            air.silent.remove(&member);
            let waiting = air.stations.get_mut(&member);
            let waiting = waiting.map(|station| std::mem::take(&mut station.waiting));
            for flight in waiting.unwrap_or_default() {
                let due_ns = now_ns + air.random.between(1, 10_000);
                air.relaunch(due_ns, flight);
            }
            air.reconnect();
        }
    }

    /// When something is to be delivered next.
    pub fn next_delivery(&self) -> Option<u64> {
        let air = self.air.lock();
        air.flying.first_key_value().map(|(key, _)| key.0)
    }

    /// How much flies or waits for a member that stands still.
    pub fn in_flight(&self) -> usize {
        self.air.lock().in_flight()
    }

    /// The most that ever did.
    pub fn most_in_flight(&self) -> usize {
        self.air.lock().most_in_flight
    }

    /// How often one state came whole to one life, at most. A few times where what it answered
    /// was lost.
    pub fn most_arrivals(&self) -> u64 {
        self.air
            .lock()
            .arrivals
            .values()
            .copied()
            .max()
            .unwrap_or(0)
    }

    /// What members told others of terms and votes.
    pub fn promises(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock()
    }

    pub fn counts(&self) -> Counts {
        self.air.lock().counts
    }
}
