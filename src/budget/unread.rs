//! Bytes of requests that have come over the network and nobody has read: the HTTP/2 library holds
//! them for as long as its windows let a client send.
//!
//! What comes is counted where it is read from a socket, and what is read where a request's body
//! is taken over. Between the two some is dropped (a call was refused, its client gave it up)
//! without a word to either, so a connection none of whose bodies may hold anything begins anew
//! at nothing. Together they may hold `limit_bytes`, beside a little of each; beyond that a
//! connection that holds more than a floor is not read from. If one of its bodies has room for what
//! it lacks, it is read from up to `HUNGRY_FACTOR` times the limit: what comes before that is what
//! others of its calls wait with, and without it none of them would ever end. Nor would those that
//! cannot answer before the client has said that it takes more: so a connection from which nothing
//! was taken for a while is read from as far.
//!
//! The header block of a call is held as a whole before there is a call. Those that have begun and
//! not ended have a limit of their own, and beyond it a connection with a long one is not read from:
//! one of them ends, or its client is sent away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A connection may always have so much unread: what a stream's window lets it send, and some pieces.
/// Where there are very many an equal part of the limit, but no less than a frame.
const FLOOR_BYTES: usize = 72 << 10;
const LEAST_BYTES: usize = 16 << 10;
/// See the module.
const HUNGRY_FACTOR: usize = 4;
/// What a piece costs the library at least, whatever is in it.
const PIECE_BYTES: usize = 256;
/// So much of each connection is not counted among the bytes of all, which is less than the least
/// that it may always have: small requests come and are read without a write to what all share.
const FREE_BYTES: usize = 4 << 10;

/// One block must fit, whatever the limit is: the largest header list, encoded.
const LEAST_BLOCKS_BYTES: usize = 20 << 20;

/// See the module.
pub struct Unread {
    limit_bytes: usize,
    bytes: AtomicUsize,
    /// Of header blocks that have begun.
    blocks_bytes: AtomicUsize,
    connections: AtomicUsize,
}

impl Unread {
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            bytes: AtomicUsize::new(0),
            blocks_bytes: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        })
    }

    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Below what is true for a moment where a piece is taken as soon as it comes: then its end is
    /// counted before it is.
    pub fn bytes(&self) -> usize {
        let bytes = self.bytes.load(Ordering::Relaxed);
        usize::try_from(bytes.cast_signed()).unwrap_or(0)
    }

    pub fn is_over(&self) -> bool {
        self.bytes() > self.limit_bytes
    }

    /// What each connection may always have.
    fn floor_bytes(&self) -> usize {
        let connections = self.connections.load(Ordering::Relaxed).max(1);
        (self.limit_bytes / connections).clamp(LEAST_BYTES, FLOOR_BYTES)
    }

    /// One more connection.
    pub fn connection(self: &Arc<Self>) -> Arc<Connection> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Arc::new(Connection {
            all: self.clone(),
            bytes: AtomicUsize::new(0),
            block_bytes: AtomicUsize::new(0),
            bodies: AtomicUsize::new(0),
            hungry: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
        })
    }
}

/// What one connection has unread.
pub struct Connection {
    all: Arc<Unread>,
    bytes: AtomicUsize,
    /// Of the header block that has begun.
    block_bytes: AtomicUsize,
    /// Bodies that may hold some of it.
    bodies: AtomicUsize,
    /// Bodies that wait for more, and have room for it.
    hungry: AtomicUsize,
    /// All that its bodies ever took.
    taken: AtomicUsize,
}

impl Connection {
    pub fn all(&self) -> &Unread {
        &self.all
    }

    /// A piece came from the network.
    pub fn came(&self, bytes: usize) {
        let bytes = bytes.max(PIECE_BYTES);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let counted = counted_bytes(before + bytes) - counted_bytes(before);
        if counted > 0 {
            self.all.bytes.fetch_add(counted, Ordering::Relaxed);
        }
    }

    /// A part of a header block came.
    pub fn came_of_block(&self, bytes: usize, is_last: bool) {
        if is_last {
            self.end_block();
        } else {
            self.block_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.all.blocks_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn end_block(&self) {
        let held = self.block_bytes.swap(0, Ordering::Relaxed);
        if held > 0 {
            self.all.blocks_bytes.fetch_sub(held, Ordering::Relaxed);
        }
    }

    fn has_block_that_waits(&self) -> bool {
        let limit_bytes = self.all.limit_bytes.saturating_mul(HUNGRY_FACTOR);
        self.block_bytes.load(Ordering::Relaxed) > FLOOR_BYTES
            && self.all.blocks_bytes.load(Ordering::Relaxed) > limit_bytes.max(LEAST_BLOCKS_BYTES)
    }

    /// All that was ever taken out of its bodies, as it is counted.
    pub fn taken_bytes(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether nothing more is to be read from this connection for now. `is_stuck`: nothing was
    /// taken out of its bodies for a while.
    pub fn must_wait(&self, is_stuck: bool) -> bool {
        if self.has_block_that_waits() {
            return true;
        }
        let bytes = self.bytes.load(Ordering::Relaxed);
        if bytes <= LEAST_BYTES || !self.all.is_over() || bytes <= self.all.floor_bytes() {
            return false;
        }
        if is_stuck || self.hungry.load(Ordering::Relaxed) > 0 {
            return self.all.bytes() > self.all.limit_bytes.saturating_mul(HUNGRY_FACTOR);
        }
        if self.bodies.load(Ordering::Relaxed) > 0 {
            return true;
        }
        self.give_back(usize::MAX);
        false
    }

    /// A body begins; it may hold something.
    pub fn body(self: &Arc<Self>) -> Body {
        self.bodies.fetch_add(1, Ordering::Relaxed);
        Body {
            connection: self.clone(),
            holds: true,
            hungry: false,
        }
    }

    fn give_back(&self, bytes: usize) {
        if self.bytes.load(Ordering::Relaxed) == 0 {
            return;
        }
        let before = self
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                Some(held.saturating_sub(bytes))
            });
        let (Ok(before) | Err(before)) = before;
        let counted = counted_bytes(before) - counted_bytes(before.saturating_sub(bytes));
        if counted > 0 {
            self.all.bytes.fetch_sub(counted, Ordering::Relaxed);
        }
    }
}

/// What is counted among the bytes of all, of a connection with so many.
fn counted_bytes(bytes: usize) -> usize {
    bytes.saturating_sub(FREE_BYTES)
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.connections.fetch_sub(1, Ordering::Relaxed);
        self.end_block();
        self.give_back(usize::MAX);
    }
}

/// The body of a request.
pub struct Body {
    connection: Arc<Connection>,
    holds: bool,
    hungry: bool,
}

impl Body {
    /// It waits for more, and has room for it.
    pub fn starves(&mut self) {
        if !std::mem::replace(&mut self.hungry, true) {
            self.connection.hungry.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn eats(&mut self) {
        if std::mem::take(&mut self.hungry) {
            self.connection.hungry.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A piece came out of it; there may be more.
    pub fn took(&mut self, bytes: usize) {
        self.eats();
        let bytes = bytes.max(PIECE_BYTES);
        self.connection.taken.fetch_add(bytes, Ordering::Relaxed);
        self.connection.give_back(bytes);
        if !std::mem::replace(&mut self.holds, true) {
            self.connection.bodies.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All that came was taken out of it.
    pub fn drained(&mut self) {
        if !std::mem::replace(&mut self.holds, false) {
            return;
        }
        if self.connection.bodies.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.connection.give_back(usize::MAX);
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.eats();
        self.drained();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 100 << 10;

    #[test]
    fn beyond_the_limit_those_that_hold_much_wait() {
        let unread = Unread::new(3 * LARGE);
        let [much, little] = [(); 2].map(|()| unread.connection());
        let (mut body, _other) = (much.body(), little.body());
        for _ in 0..3 {
            much.came(LARGE);
            assert!(!much.must_wait(false), "within the limit");
        }
        little.came(1);
        assert_eq!(unread.bytes(), 3 * LARGE - FREE_BYTES);
        much.came(FREE_BYTES + 1);
        assert!(much.must_wait(false) && !little.must_wait(false));
        assert!(
            !much.must_wait(true),
            "what it sends may be what its answers wait for"
        );
        body.took(LARGE);
        assert_eq!(much.taken_bytes(), LARGE);
        assert!(!much.must_wait(false));
        body.took(3 * LARGE);
        assert_eq!(unread.bytes(), 0);
        much.came(LARGE);
        assert_eq!(unread.bytes(), LARGE - FREE_BYTES);
        drop((much, little));
        drop((body, _other));
        assert_eq!(unread.bytes(), 0);
    }

    #[test]
    fn who_has_room_for_more_is_read_from_for_longer() {
        let unread = Unread::new(LARGE);
        let connection = unread.connection();
        let (mut hungry, _waits) = (connection.body(), connection.body());
        connection.came(2 * LARGE);
        assert!(connection.must_wait(false));
        hungry.drained();
        hungry.starves();
        assert!(!connection.must_wait(false));
        connection.came(HUNGRY_FACTOR * LARGE);
        assert!(connection.must_wait(false));
        hungry.took(HUNGRY_FACTOR * LARGE);
        assert!(connection.must_wait(false), "nothing is hungry any more");
        hungry.starves();
        assert!(!connection.must_wait(false));
        drop(hungry);
        assert!(connection.must_wait(false));
    }

    #[test]
    fn long_header_blocks_wait_for_each_other() {
        let unread = Unread::new(LARGE);
        let connections = [(); 4].map(|()| unread.connection());
        for connection in &connections {
            connection.came_of_block(LEAST_BLOCKS_BYTES / 4, false);
            assert!(!connection.must_wait(true));
        }
        let [first, second, ..] = &connections;
        first.came_of_block(1, false);
        assert!(first.must_wait(true) && second.must_wait(false));
        let another = unread.connection();
        another.came_of_block(1000, false);
        assert!(!another.must_wait(false), "a short one");
        second.came_of_block(1000, true);
        assert!(!first.must_wait(false) && !second.must_wait(false));
        drop(connections);
        assert_eq!(unread.blocks_bytes.load(Ordering::Relaxed), 1000);
        drop(another);
        assert_eq!(unread.blocks_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn of_very_many_connections_each_may_have_less() {
        let unread = Unread::new(10 * LARGE);
        let many: Vec<_> = (0..50).map(|_| unread.connection()).collect();
        let _bodies: Vec<_> = many.iter().map(|connection| connection.body()).collect();
        for connection in &many {
            connection.came(28 << 10);
        }
        assert!(unread.is_over());
        assert!(many.iter().all(|connection| connection.must_wait(false)));
        assert_eq!(unread.floor_bytes(), 10 * LARGE / 50);
    }

    #[test]
    fn what_was_dropped_does_not_count_for_ever() {
        let unread = Unread::new(LARGE);
        let connection = unread.connection();
        let (mut first, second) = (connection.body(), connection.body());
        connection.came(2 * LARGE);
        drop(second);
        assert!(connection.must_wait(false), "the first may hold it");
        first.took(1);
        first.drained();
        assert_eq!((unread.bytes(), connection.must_wait(false)), (0, false));
        // What comes for no body at all is gone as well.
        connection.came(2 * LARGE);
        assert!(!connection.must_wait(false));
        assert_eq!(unread.bytes(), 0);
        // More may be taken than was counted since.
        first.took(LARGE);
        assert_eq!(unread.bytes(), 0);
    }
}
