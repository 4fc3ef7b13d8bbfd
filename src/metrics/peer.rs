//! Metrics per peer: each connection holds its peer's cells, and counts without a lock.

use std::collections::BTreeMap;
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

/// Transfers of whole snapshots in one direction.
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

/// The cells of all peers so far; those of removed ones stay, as in etcd.
#[derive(Default)]
pub struct Peers(Mutex<BTreeMap<MemberId, Arc<PeerCells>>>);

impl Peers {
    pub fn cells(&self, peer: MemberId) -> Arc<PeerCells> {
        let mut peers = self.0.lock();
        peers.entry(peer).or_default().clone()
    }

    pub fn expose(&self, local: &str, page: &mut Exposition) {
        for (peer, cells) in self.0.lock().iter() {
            cells.expose(local, &peer.to_string(), page);
        }
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
