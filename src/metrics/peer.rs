//! Metrics per peer: each connection holds its peer's cells, and counts without a lock.
//!
//! Anybody may call the peer port under any id, so only members are shown, and of those that were
//! removed so many. What an unlisted caller counts is kept while it is connected, for one that turns
//! out to be a member: a leader that joined while this member was away.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::cell::{Counter, Gauge, Histogram};
use super::table::{
    ACTIVE_PEERS, DISCONNECTED_PEERS, PEER_RECEIVE_FAILURES, PEER_RECEIVED_BYTES,
    PEER_ROUND_TRIP_TIME, PEER_SEND_FAILURES, PEER_SENT_BYTES, SNAPSHOT_RECEIVE_FAILURES,
    SNAPSHOT_RECEIVE_INFLIGHTS, SNAPSHOT_RECEIVE_SUCCESSES, SNAPSHOT_RECEIVE_TOTAL_DURATION,
    SNAPSHOT_SEND_FAILURES, SNAPSHOT_SEND_INFLIGHTS, SNAPSHOT_SEND_SUCCESSES,
    SNAPSHOT_SEND_TOTAL_DURATION,
};
use super::text::{Exposition, Family};
use crate::types::MemberId;

/// The cells of one peer.
pub struct PeerCells {
    pub connections: Connections,
    /// Messages only, in their encoded form.
    pub sent_bytes: Counter,
    pub received_bytes: Counter,
    pub send_failures: Counter,
    pub receive_failures: Counter,
    pub round_trip_time: Histogram,
    pub snapshots_sent: Transfers,
    pub snapshots_received: Transfers,
}

/// How often a peer was connected and disconnected.
#[derive(Default)]
pub struct Connections {
    pub made: Counter,
    pub lost: Counter,
}

/// Transfers of states between members (`snapshot` in the names of etcd's metrics), in one direction.
pub struct Transfers {
    pub successes: Counter,
    pub failures: Counter,
    pub in_flight: Gauge,
    /// Of the successful ones.
    pub took: Histogram,
}

/// The families of one direction.
struct TransferFamilies {
    successes: &'static Family,
    failures: &'static Family,
    in_flight: &'static Family,
    took: &'static Family,
}

const SENT: TransferFamilies = TransferFamilies {
    successes: &SNAPSHOT_SEND_SUCCESSES,
    failures: &SNAPSHOT_SEND_FAILURES,
    in_flight: &SNAPSHOT_SEND_INFLIGHTS,
    took: &SNAPSHOT_SEND_TOTAL_DURATION,
};
const RECEIVED: TransferFamilies = TransferFamilies {
    successes: &SNAPSHOT_RECEIVE_SUCCESSES,
    failures: &SNAPSHOT_RECEIVE_FAILURES,
    in_flight: &SNAPSHOT_RECEIVE_INFLIGHTS,
    took: &SNAPSHOT_RECEIVE_TOTAL_DURATION,
};

/// Of so many removed members the cells stay; etcd keeps those of all.
const MAX_FORMER: usize = 16;
/// Of so many unlisted callers; further ones share cells.
const MAX_UNLISTED: usize = 64;

/// The cells of all peers.
#[derive(Default)]
pub struct Peers(Mutex<Known>);

#[derive(Default)]
struct Known {
    members: BTreeSet<MemberId>,
    /// Removed members, the latest at the end.
    former: VecDeque<MemberId>,
    /// Of members and former ones.
    shown: BTreeMap<MemberId, Arc<PeerCells>>,
    unlisted: BTreeMap<MemberId, Arc<PeerCells>>,
    /// Of everybody else.
    others: Arc<PeerCells>,
}

impl Peers {
    /// Sets who is a member.
    pub fn list(&self, members: impl IntoIterator<Item = MemberId>) {
        self.0.lock().list(members.into_iter().collect());
    }

    pub fn cells(&self, peer: MemberId) -> Arc<PeerCells> {
        self.0.lock().cells(peer)
    }

    pub fn expose(&self, local: &str, page: &mut Exposition) {
        for (peer, cells) in &self.0.lock().shown {
            cells.expose(local, &peer.to_string(), page);
        }
    }
}

impl Known {
    fn list(&mut self, members: BTreeSet<MemberId>) {
        self.former.retain(|former| !members.contains(former));
        self.former.extend(self.members.difference(&members));
        while self.former.len() > MAX_FORMER {
            if let Some(oldest) = self.former.pop_front() {
                self.shown.remove(&oldest);
            }
        }
        for member in &members {
            if let Some(cells) = self.unlisted.remove(member) {
                self.shown.insert(*member, cells);
            }
        }
        self.members = members;
    }

    fn cells(&mut self, peer: MemberId) -> Arc<PeerCells> {
        if self.members.contains(&peer) || self.former.contains(&peer) {
            return self.shown.entry(peer).or_default().clone();
        }
        if !self.unlisted.contains_key(&peer) && self.unlisted.len() >= MAX_UNLISTED {
            // Those that nobody counts in any more.
            self.unlisted
                .retain(|_, cells| Arc::strong_count(cells) > 1);
            if self.unlisted.len() >= MAX_UNLISTED {
                return self.others.clone();
            }
        }
        self.unlisted.entry(peer).or_default().clone()
    }
}

impl Default for PeerCells {
    fn default() -> Self {
        Self {
            connections: Connections::default(),
            sent_bytes: Counter::default(),
            received_bytes: Counter::default(),
            send_failures: Counter::default(),
            receive_failures: Counter::default(),
            round_trip_time: histogram(&PEER_ROUND_TRIP_TIME),
            snapshots_sent: Transfers::of(&SENT),
            snapshots_received: Transfers::of(&RECEIVED),
        }
    }
}

impl PeerCells {
    fn expose(&self, local: &str, peer: &str, page: &mut Exposition) {
        let (to, from) = ([("To", peer)], [("From", peer)]);
        let pair = [("Local", local), ("Remote", peer)];
        let made = self.connections.made.get();
        let lost = self.connections.lost.get();
        if made > 0 {
            let active = made.saturating_sub(lost);
            page.number(&ACTIVE_PEERS, &pair, active as f64);
        }
        for (family, labels, counter) in [
            (&DISCONNECTED_PEERS, &pair[..], &self.connections.lost),
            (&PEER_SENT_BYTES, &to, &self.sent_bytes),
            (&PEER_RECEIVED_BYTES, &from, &self.received_bytes),
            (&PEER_SEND_FAILURES, &to, &self.send_failures),
            (&PEER_RECEIVE_FAILURES, &from, &self.receive_failures),
        ] {
            if counter.get() > 0 {
                page.number(family, labels, counter.get() as f64);
            }
        }
        expose_histogram(&PEER_ROUND_TRIP_TIME, &to, &self.round_trip_time, page);
        self.snapshots_sent.expose(&SENT, &to, page);
        self.snapshots_received.expose(&RECEIVED, &from, page);
    }
}

impl Transfers {
    fn of(families: &TransferFamilies) -> Self {
        Self {
            successes: Counter::default(),
            failures: Counter::default(),
            in_flight: Gauge::default(),
            took: histogram(families.took),
        }
    }

    fn expose(
        &self,
        families: &TransferFamilies,
        labels: &[(&'static str, &str)],
        page: &mut Exposition,
    ) {
        let (successes, failures) = (self.successes.get(), self.failures.get());
        let in_flight = self.in_flight.get();
        if successes > 0 {
            page.number(families.successes, labels, successes as f64);
        }
        if failures > 0 {
            page.number(families.failures, labels, failures as f64);
        }
        if successes + failures > 0 || in_flight > 0 {
            page.number(families.in_flight, labels, in_flight as f64);
        }
        expose_histogram(families.took, labels, &self.took, page);
    }
}

fn histogram(family: &Family) -> Histogram {
    // A family of the table without buckets is no histogram; none of those is asked for here.
    Histogram::new(family.shape.unwrap_or(super::cell::Shape::whole(1, 1)))
}

fn expose_histogram(
    family: &Family,
    labels: &[(&'static str, &str)],
    histogram: &Histogram,
    page: &mut Exposition,
) {
    let reading = histogram.read();
    if reading.count > 0 {
        page.histogram(family, labels, reading);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(known: &Known) -> Vec<(u64, u64)> {
        let shown = known.shown.iter();
        let of = |(peer, cells): (&MemberId, &Arc<PeerCells>)| (peer.0, cells.sent_bytes.get());
        shown.map(of).collect()
    }

    fn members(ids: &[u64]) -> BTreeSet<MemberId> {
        ids.iter().map(|id| MemberId(*id)).collect()
    }

    #[test]
    fn callers_that_are_no_members_take_a_bounded_place_and_are_not_shown() {
        let mut known = Known::default();
        known.list(members(&[1, 2]));
        known.cells(MemberId(2)).sent_bytes.add(2);
        let held: Vec<_> = (100..100 + 3 * MAX_UNLISTED as u64)
            .map(|id| known.cells(MemberId(id)))
            .collect();
        assert_eq!(known.unlisted.len(), MAX_UNLISTED);
        assert_eq!(counted(&known), [(2, 2)]);
        drop(held);
        // Who called before leaves room.
        known.cells(MemberId(9)).sent_bytes.add(9);
        assert!(known.unlisted.contains_key(&MemberId(9)));
        // It turns out to be a member, and nothing that it counted is lost.
        known.list(members(&[1, 2, 9]));
        known.cells(MemberId(9)).sent_bytes.add(1);
        assert_eq!(counted(&known), [(2, 2), (9, 10)]);
    }

    #[test]
    fn the_cells_of_removed_members_stay_for_so_many() {
        let mut known = Known::default();
        let count = 2 * MAX_FORMER as u64;
        for id in 1..=count {
            known.list(members(&[id]));
            known.cells(MemberId(id)).sent_bytes.add(id);
        }
        let kept: Vec<_> = (count - MAX_FORMER as u64..=count)
            .map(|id| (id, id))
            .collect();
        assert_eq!(counted(&known), kept);
        // One that comes back continues to count, and is no former one any more.
        known.list(members(&[count - 1]));
        known.cells(MemberId(count - 1)).sent_bytes.add(1);
        assert!(counted(&known).contains(&(count - 1, count)));
        assert!(!known.former.contains(&MemberId(count - 1)));
    }
}
