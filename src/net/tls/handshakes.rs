//! How many handshakes are under way at once.
//!
//! One that has begun has memory, and waits for a client that may never continue. There is a bound,
//! and within it addresses share: where all places are taken, one of the address that has most of
//! them is given up for a client whose address has fewer, the one that has waited longest. So
//! those who hold places from one address keep out nobody but themselves.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

/// See the module.
pub struct Handshakes {
    limit: usize,
    under_way: Mutex<UnderWay>,
    freed: Notify,
}

#[derive(Default)]
struct UnderWay {
    /// In their order; dropping the sender gives the place up.
    all: BTreeMap<u64, (IpAddr, oneshot::Sender<()>)>,
    by_source: BTreeMap<IpAddr, usize>,
    next: u64,
}

/// Lets one handshake be under way; free again when it is dropped.
pub struct HandshakePermit<'a> {
    handshakes: &'a Handshakes,
    number: u64,
    given_up: oneshot::Receiver<()>,
}

impl Handshakes {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            under_way: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// Waits for a place, as long as its caller does.
    pub async fn enter(&self, source: IpAddr) -> HandshakePermit<'_> {
        let source = network(source);
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // What becomes free from here on is noticed.
            freed.as_mut().enable();
            if let Some((number, given_up)) = self.under_way.lock().enter(source, self.limit) {
                return HandshakePermit {
                    handshakes: self,
                    number,
                    given_up,
                };
            }
            freed.await;
        }
    }
}

impl UnderWay {
    fn enter(&mut self, source: IpAddr, limit: usize) -> Option<(u64, oneshot::Receiver<()>)> {
        if self.all.len() >= limit {
            self.make_room(source)?;
        }
        let number = self.next;
        self.next += 1;
        let (place, given_up) = oneshot::channel();
        self.all.insert(number, (source, place));
        *self.by_source.entry(source).or_default() += 1;
        Some((number, given_up))
    }

    /// None if no address has so many more that it would not have fewer afterwards.
    fn make_room(&mut self, source: IpAddr) -> Option<()> {
        let own = self.by_source.get(&source).copied().unwrap_or_default();
        let most = self.by_source.iter().max_by_key(|(_, count)| **count);
        let (most, _) = most.filter(|(_, count)| **count > own + 1)?;
        let oldest = self.all.iter().find(|(_, (from, _))| from == most);
        let (oldest, _) = oldest?;
        let oldest = *oldest;
        self.leave(oldest);
        Some(())
    }

    /// Whether there was such a one.
    fn leave(&mut self, number: u64) -> bool {
        let Some((source, _)) = self.all.remove(&number) else {
            return false;
        };
        let left = self.by_source.get_mut(&source).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            self.by_source.remove(&source);
        }
        true
    }
}

impl HandshakePermit<'_> {
    /// Resolves when the place was given to another.
    pub async fn given_up(&mut self) {
        // Nothing is sent: the sender is dropped.
        let _ = (&mut self.given_up).await;
    }
}

impl Drop for HandshakePermit<'_> {
    fn drop(&mut self) {
        if self.handshakes.under_way.lock().leave(self.number) {
            self.handshakes.freed.notify_one();
        }
    }
}

/// What one client may have many of counts as one: in IPv6 the first 64 bits.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            Ipv6Addr::from(network).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;

    use super::*;

    /// The output, if it is there.
    async fn now<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
        use std::task::Poll;
        let polled = |cx: &mut std::task::Context<'_>| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        };
        std::future::poll_fn(polled).await
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    async fn is_given_up(place: &mut HandshakePermit<'_>) -> bool {
        now(std::pin::pin!(place.given_up())).await.is_some()
    }

    #[tokio::test]
    async fn those_of_one_address_keep_out_only_themselves() {
        let handshakes = Handshakes::new(4);
        let (many, other) = (address("10.0.0.1"), address("10.0.0.2"));
        let mut places = Vec::new();
        for _ in 0..4 {
            places.push(handshakes.enter(many).await);
        }
        {
            // Another one of the same address has to wait.
            let mut waiting = std::pin::pin!(handshakes.enter(many));
            assert!(now(waiting.as_mut()).await.is_none());
            // Those of another take the oldest, until both have as many.
            let _first = handshakes.enter(other).await;
            assert!(is_given_up(&mut places[0]).await);
            assert!(!is_given_up(&mut places[1]).await);
            let _second = handshakes.enter(other).await;
            assert!(is_given_up(&mut places[1]).await);
            assert!(now(std::pin::pin!(handshakes.enter(other))).await.is_none());
            // The place of one that was given up is another's already.
            places.drain(..2);
            assert!(now(waiting.as_mut()).await.is_none());
            places.pop();
            assert!(now(waiting).await.is_some());
        }
        drop(places);
        assert_eq!(handshakes.under_way.lock().all.len(), 0);
        assert_eq!(handshakes.under_way.lock().by_source.len(), 0);
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_takes_no_place_with_it() {
        let handshakes = Handshakes::new(1);
        let here = address("127.0.0.1");
        let place = handshakes.enter(here).await;
        let mut first = Box::pin(handshakes.enter(here));
        let mut second = Box::pin(handshakes.enter(here));
        assert!(now(first.as_mut()).await.is_none());
        assert!(now(second.as_mut()).await.is_none());
        drop(place);
        // It was woken, and nobody polls it.
        drop(first);
        assert!(now(second.as_mut()).await.is_some());
    }

    #[test]
    fn networks_of_ipv6_are_one_address() {
        for (one, other, expected) in [
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("2001:db8::1", "2001:db8::ffff:1:2:3", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            let same = network(address(one)) == network(address(other));
            assert_eq!(same, expected, "{one} {other}");
        }
    }
}
