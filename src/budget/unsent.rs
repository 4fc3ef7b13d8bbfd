//! Bytes of answers that the HTTP/2 library holds: it was handed them, and the network has not
//! taken them.
//!
//! A connection may hold `CONNECTION_BYTES`, and where all together hold more than their limit an
//! equal part of it. Beyond that a stream may still hold one slice of `LEAST_BYTES`: which streams
//! a client reads is its own affair, so those that it leaves aside must not hold up the others of
//! their connection. So what is held grows beyond the limit with the number of streams alone, and
//! by less than a stream costs in any case.
//!
//! What is handed on is what its stream waits for until it is taken: nobody else has to be woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use bytes::Bytes;
use parking_lot::Mutex;

/// More than a socket takes at once, so that a fast client never waits for this.
const CONNECTION_BYTES: usize = 1 << 20;
/// An equal part of the limit is never more than this.
const FLOOR_BYTES: usize = 64 << 10;
/// What a stream may always hold.
const LEAST_BYTES: usize = 4 << 10;
/// What a piece costs the library at least, whatever is in it.
const PIECE_BYTES: usize = 256;

/// See the module.
pub struct Unsent {
    limit_bytes: usize,
    bytes: AtomicUsize,
    connections: AtomicUsize,
}

impl Unsent {
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            bytes: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        })
    }

    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// One more connection.
    pub fn connection(self: &Arc<Self>) -> Arc<Connection> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Arc::new(Connection {
            all: self.clone(),
            bytes: AtomicUsize::new(0),
        })
    }

    /// What each connection may hold now.
    fn of_each(&self) -> usize {
        if self.bytes() < self.limit_bytes {
            return CONNECTION_BYTES;
        }
        let connections = self.connections.load(Ordering::Relaxed).max(1);
        (self.limit_bytes / connections).min(FLOOR_BYTES)
    }
}

/// What one connection holds.
pub struct Connection {
    all: Arc<Unsent>,
    bytes: AtomicUsize,
}

impl Connection {
    /// One more stream.
    pub fn stream(self: &Arc<Self>) -> Arc<Stream> {
        Arc::new(Stream {
            connection: self.clone(),
            bytes: AtomicUsize::new(0),
            waker: Mutex::default(),
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one stream holds.
pub struct Stream {
    connection: Arc<Connection>,
    bytes: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl Stream {
    /// How many bytes may be handed on now; where it is none, something of it is still to be taken.
    pub fn room_bytes(&self) -> usize {
        let connection = &self.connection;
        let held = connection.bytes.load(Ordering::Relaxed);
        match connection.all.of_each().saturating_sub(held) {
            room if room >= LEAST_BYTES => room,
            _ if self.bytes.load(Ordering::Acquire) == 0 => LEAST_BYTES,
            _ => 0,
        }
    }

    /// Wakes this one when something of it was taken.
    pub fn wake_later(&self, waker: &Waker) {
        let mut waiting = self.waker.lock();
        match &mut *waiting {
            Some(known) => known.clone_from(waker),
            None => *waiting = Some(waker.clone()),
        }
    }

    /// The same bytes, which are held until the last who shares them drops them.
    pub fn hold(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        let cost_bytes = bytes.len().max(PIECE_BYTES);
        self.add(cost_bytes);
        Bytes::from_owner(Handed {
            bytes,
            cost_bytes,
            stream: self.clone(),
        })
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let connection = &self.connection;
        connection.bytes.fetch_add(bytes, Ordering::Relaxed);
        connection.all.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

struct Handed {
    bytes: Bytes,
    cost_bytes: usize,
    stream: Arc<Stream>,
}

impl AsRef<[u8]> for Handed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        let (stream, bytes) = (&self.stream, self.cost_bytes);
        let connection = &stream.connection;
        connection.all.bytes.fetch_sub(bytes, Ordering::Relaxed);
        connection.bytes.fetch_sub(bytes, Ordering::Relaxed);
        stream.bytes.fetch_sub(bytes, Ordering::Release);
        let waiting = stream.waker.lock().take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 4 << 20;

    fn of(bytes: usize) -> Bytes {
        vec![7; bytes].into()
    }

    #[test]
    fn a_connection_has_its_limit_and_each_of_its_streams_a_slice() {
        let unsent = Unsent::new(LIMIT);
        let connection = unsent.connection();
        let [one, other] = [(); 2].map(|()| connection.stream());
        assert_eq!(one.room_bytes(), CONNECTION_BYTES);
        let held = one.hold(of(CONNECTION_BYTES - 1));
        // What is left is less than a slice: the one waits, the other has nothing yet.
        assert_eq!((one.room_bytes(), other.room_bytes()), (0, LEAST_BYTES));
        let little = other.hold(of(10));
        assert_eq!(other.room_bytes(), 0);
        assert_eq!(unsent.bytes(), CONNECTION_BYTES - 1 + PIECE_BYTES);
        // Bytes are held until nobody shares them.
        let part = held.slice(1..2);
        drop(held);
        assert_eq!((part[0], one.room_bytes()), (7, 0));
        drop((part, little));
        assert_eq!((unsent.bytes(), other.room_bytes()), (0, CONNECTION_BYTES));
    }

    #[test]
    fn beyond_the_limit_every_connection_has_an_equal_part() {
        let unsent = Unsent::new(LIMIT);
        let full: Vec<_> = (0..4)
            .map(|_| {
                let stream = unsent.connection().stream();
                let held = stream.hold(of(CONNECTION_BYTES));
                (stream, held)
            })
            .collect();
        assert!(full.iter().all(|(stream, _)| stream.room_bytes() == 0));
        let another = unsent.connection().stream();
        assert_eq!(another.room_bytes(), FLOOR_BYTES);
        let many: Vec<_> = (0..251).map(|_| unsent.connection()).collect();
        assert_eq!(another.room_bytes(), LIMIT / 256);
        drop(many);
        drop(full);
        assert_eq!(another.room_bytes(), CONNECTION_BYTES);
        assert_eq!(unsent.connections.load(Ordering::Relaxed), 1);
    }
}
