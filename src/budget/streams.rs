//! Streams that clients have open: calls from the first byte of their headers until the last of their
//! answers is on the wire, whichever side has to do its part.
//!
//! What a call holds by itself (its headers, its tasks, what the HTTP/2 library knows of it) is small
//! and always there, so it is not measured but counted as `STREAM_BYTES`. The first of a connection is
//! not counted: a connection costs as much itself and has a limit of its own, and a client with one
//! call at a time writes nothing that all share.
//!
//! Beyond the limit a call is refused if its connection has more open than an equal part, or than
//! `LEAST_STREAMS`: who holds many does not keep those out who hold few. Refusals cost as well until
//! they are sent, so that a client that does not take them is not read from.
//!
//! Open streams are what clients have at rest, like connections, and thousands of them are usual. So
//! they are no piece of the total but come on top of it, up to three quarters of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What one takes: 8 KiB for a call whose message does not come, 11 for a stream without a watch,
/// 13 with one, 16 for renewals of a lease, with the headers that are not counted otherwise.
pub const STREAM_BYTES: usize = 16 << 10;
/// A watch, renewals of a lease, a call, and one more: what an etcd client has at once.
const LEAST_STREAMS: usize = 4;
/// Answers that a connection may have unsent beyond the limit, refusals for the most part.
const MOST_UNSENT: usize = 64;
/// Of the total, and beside it.
const QUARTERS: u64 = 3;

/// See the module.
pub struct OpenStreams {
    limit: usize,
    open: AtomicUsize,
    /// Those that have one open.
    connections: AtomicUsize,
}

impl OpenStreams {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            open: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        })
    }

    /// As many as go with a budget of so many bytes.
    pub fn beside(total_bytes: u64) -> Arc<Self> {
        Self::new((total_bytes / 4 * QUARTERS) as usize / STREAM_BYTES)
    }

    /// No limit.
    pub fn unlimited() -> Arc<Self> {
        Self::new(usize::MAX)
    }

    pub fn limit_bytes(&self) -> usize {
        self.limit.saturating_mul(STREAM_BYTES)
    }

    pub fn bytes(&self) -> usize {
        self.open.load(Ordering::Relaxed) * STREAM_BYTES
    }

    /// One more connection.
    pub fn connection(self: &Arc<Self>) -> Arc<StreamsOfConnection> {
        Arc::new(StreamsOfConnection {
            all: self.clone(),
            open: AtomicUsize::new(0),
        })
    }

    fn is_over(&self) -> bool {
        self.open.load(Ordering::Relaxed) > self.limit
    }

    /// What each connection may always have.
    fn of_each(&self) -> usize {
        let connections = self.connections.load(Ordering::Relaxed).max(1);
        (self.limit / connections).max(LEAST_STREAMS)
    }
}

/// Those of one connection.
pub struct StreamsOfConnection {
    all: Arc<OpenStreams>,
    open: AtomicUsize,
}

impl StreamsOfConnection {
    /// It has so many open now.
    pub fn set_open(&self, open: usize) {
        let before = self.open.swap(open, Ordering::Relaxed);
        match (before, open) {
            (0, 1..) => drop(self.all.connections.fetch_add(1, Ordering::Relaxed)),
            (1.., 0) => drop(self.all.connections.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
        let (before, now) = (counted(before), counted(open));
        if now > before {
            self.all.open.fetch_add(now - before, Ordering::Relaxed);
        } else if now < before {
            self.all.open.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Whether a call of it that has just begun is one too many.
    pub fn is_over(&self) -> bool {
        self.all.is_over() && self.open.load(Ordering::Relaxed) > self.all.of_each()
    }

    /// Whether nothing more is to be read from it, where so many answers have begun and are not sent.
    pub fn must_wait(&self, unsent: usize) -> bool {
        unsent > MOST_UNSENT && self.is_over()
    }
}

fn counted(open: usize) -> usize {
    open.saturating_sub(1)
}

impl Drop for StreamsOfConnection {
    fn drop(&mut self) {
        self.set_open(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_limit_those_with_many_are_refused() {
        let streams = OpenStreams::new(100);
        let [many, few, other] = [(); 3].map(|()| streams.connection());
        few.set_open(1);
        other.set_open(1);
        assert_eq!(streams.bytes(), 0, "the first of a connection");
        many.set_open(101);
        assert_eq!(streams.bytes(), 100 * STREAM_BYTES);
        assert!(!many.is_over());
        many.set_open(102);
        assert!(many.is_over() && !few.is_over());
        assert!(many.must_wait(MOST_UNSENT + 1) && !many.must_wait(MOST_UNSENT));
        assert!(!few.must_wait(MOST_UNSENT + 1));
        // An equal part of three.
        few.set_open(33);
        assert!(!few.is_over());
        few.set_open(34);
        assert!(few.is_over());
        many.set_open(60);
        assert!(!many.is_over() && !few.is_over());
        drop((many, few));
        assert_eq!(streams.bytes(), 0);
        drop(other);
        assert_eq!(streams.connections.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn of_very_many_connections_each_may_have_what_a_client_needs() {
        let streams = OpenStreams::new(10);
        let connections: Vec<_> = (0..20).map(|_| streams.connection()).collect();
        for connection in &connections {
            connection.set_open(LEAST_STREAMS);
        }
        assert!(streams.is_over());
        assert!(connections.iter().all(|connection| !connection.is_over()));
        connections[0].set_open(LEAST_STREAMS + 1);
        assert!(connections[0].is_over());
    }

    /// What a default budget must serve, as etcd does.
    #[test]
    fn ten_thousand_streams_fit_into_the_default_budget() {
        let streams = OpenStreams::beside(256 << 20);
        let connection = streams.connection();
        connection.set_open(12_000);
        assert!(!connection.is_over());
        assert!(streams.limit_bytes() <= 192 << 20);
    }
}
