//! Which peers are connected, and since when.
//!
//! A peer is active while both lanes to it are accepted and its own urgent lane is connected here,
//! so that messages pass in both directions. Its bulk lane does not count: on a slow link its
//! silence is detected late.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::env::Clock;
use crate::metrics::Metrics;
use crate::types::MemberId;

/// The links between two members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    UrgentOut,
    BulkOut,
    UrgentIn,
}

/// See the module.
pub struct Health {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    peers: Mutex<BTreeMap<MemberId, Links>>,
}

#[derive(Default)]
struct Links {
    urgent_out: usize,
    bulk_out: usize,
    urgent_in: usize,
    since: Option<Duration>,
}

impl Health {
    pub fn new(clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self {
            clock,
            metrics,
            peers: Mutex::default(),
        }
    }

    pub fn active_since(&self, peer: MemberId) -> Option<Duration> {
        self.peers.lock().get(&peer)?.since
    }

    /// Incoming urgent lanes of a peer.
    #[cfg(test)]
    pub fn lanes_in(&self, peer: MemberId) -> usize {
        let peers = self.peers.lock();
        peers.get(&peer).map_or(0, |links| links.urgent_in)
    }

    /// A link is up; it is down again when the returned guard is dropped.
    pub fn up(self: &Arc<Self>, peer: MemberId, link: Link) -> Up {
        self.change(peer, |links| *links.count(link) += 1);
        Up {
            health: self.clone(),
            peer,
            link,
        }
    }

    fn change(&self, peer: MemberId, change: impl FnOnce(&mut Links)) {
        let mut peers = self.peers.lock();
        let links = peers.entry(peer).or_default();
        change(links);
        let active = links.urgent_out > 0 && links.bulk_out > 0 && links.urgent_in > 0;
        match (active, links.since) {
            (true, None) => {
                links.since = Some(self.clock.now());
                self.metrics.peer(peer).connections.made.increment();
                tracing::info!(%peer, "peer became active");
            }
            (false, Some(since)) => {
                links.since = None;
                self.metrics.peer(peer).connections.lost.increment();
                let active_s = self.clock.now().saturating_sub(since).as_secs_f64();
                tracing::warn!(%peer, active_s, "peer became inactive");
            }
            _ => {}
        }
        if links.urgent_out + links.bulk_out + links.urgent_in == 0 {
            peers.remove(&peer);
        }
    }
}

/// A link that is up.
#[must_use]
pub struct Up {
    health: Arc<Health>,
    peer: MemberId,
    link: Link,
}

impl Drop for Up {
    fn drop(&mut self) {
        self.health.change(self.peer, |links| {
            let count = links.count(self.link);
            *count = count.saturating_sub(1);
        });
    }
}

impl Links {
    fn count(&mut self, link: Link) -> &mut usize {
        match link {
            Link::UrgentOut => &mut self.urgent_out,
            Link::BulkOut => &mut self.bulk_out,
            Link::UrgentIn => &mut self.urgent_in,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::ManualClock;

    #[test]
    fn a_peer_is_active_while_both_directions_are() {
        let clock = Arc::new(ManualClock::default());
        let metrics = Arc::new(Metrics::new(MemberId(1), false));
        let health = Arc::new(Health::new(clock.clone(), metrics.clone()));
        let peer = MemberId(2);
        let advance = || clock.advance(Duration::from_secs(1));
        let urgent = health.up(peer, Link::UrgentOut);
        let bulk = health.up(peer, Link::BulkOut);
        assert_eq!(health.active_since(peer), None);
        advance();
        let first_in = health.up(peer, Link::UrgentIn);
        let since = Some(Duration::from_secs(1));
        assert_eq!(health.active_since(peer), since);
        advance();
        // Neither a second incoming lane nor the end of the first changes anything.
        let second_in = health.up(peer, Link::UrgentIn);
        drop(first_in);
        assert_eq!(health.active_since(peer), since);
        drop(bulk);
        assert_eq!(health.active_since(peer), None);
        assert_eq!(health.active_since(MemberId(3)), None);
        let cells = metrics.peer(peer);
        let counted = (cells.connections.made.get(), cells.connections.lost.get());
        assert_eq!(counted, (1, 1));
        drop((urgent, second_in));
        assert!(health.peers.lock().is_empty());
    }
}
