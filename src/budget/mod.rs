//! The memory budget: one total (`--memory-budget-bytes`), divided once, here.
//!
//! Whatever grows with what others send or do not read is taken from a part of it: bytes of a
//! request from its arrival to its answer, an answer from its encoding until the network has
//! taken it, what the network was handed, the queues of watches. The store's caches and buffers are held to theirs by the
//! engine. What is not counted one by one has a part that nobody may take (`UNCOUNTED_PIECES`): the
//! copies of a batch of entries on its way through the log, the state and to other members, and what
//! the engine's flushes and compactions use. Under large writes it is as much as all requests are.
//! What a process needs at rest (code, threads, idle connections) comes on top, and what clients'
//! open calls take, which have a limit of their own (`streams`).
//!
//! A part is never lent to another: a flood of requests must not take from answers, or nothing
//! that is held would ever be released.

use std::sync::Arc;

pub mod requests;
mod room;
mod share;
pub mod streams;
pub mod unread;
pub mod unsent;

pub use requests::Requests;
pub use room::Room;
pub use share::{Exhausted, Held, Share, TakeBytes};

/// Who holds memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Memtables,
    BlockCache,
    Requests,
    Answers,
    Unsent,
    Watches,
}

impl Part {
    const ALL: [Self; 6] = [
        Self::Memtables,
        Self::BlockCache,
        Self::Requests,
        Self::Answers,
        Self::Unsent,
        Self::Watches,
    ];

    /// Of `PIECES` equal pieces of the total.
    const fn pieces(self) -> u64 {
        match self {
            Self::Memtables => 8,
            Self::BlockCache => 7,
            Self::Requests => 6,
            Self::Answers | Self::Watches => 3,
            Self::Unsent => 1,
        }
    }
}

const PIECES: u64 = 32;
/// Of them, what is used by what nobody counts.
const UNCOUNTED_PIECES: u64 = 4;

const _: () = {
    let (mut pieces, mut at) = (UNCOUNTED_PIECES, 0);
    while at < Part::ALL.len() {
        pieces += Part::ALL[at].pieces();
        at += 1;
    }
    assert!(pieces == PIECES, "the parts are the whole");
};

/// A total, divided.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub total_bytes: u64,
}

impl Budget {
    /// What a part may hold.
    pub fn bytes(self, part: Part) -> usize {
        (self.total_bytes / PIECES * part.pieces()) as usize
    }
}

/// What a part holds and may hold, in bytes.
pub type Figures = Box<dyn Fn() -> [u64; 2] + Send + Sync>;

/// The parts of a budget by name (the label of `etched_memory_bytes`), to be read.
#[derive(Default)]
pub struct Ledger {
    parts: Vec<(&'static str, Figures)>,
}

impl Ledger {
    pub fn add(&mut self, name: &'static str, figures: Figures) {
        self.parts.push((name, figures));
    }

    /// The same for a share.
    pub fn add_share(&mut self, name: &'static str, share: &Arc<Share>) {
        let share = share.clone();
        let figures = move || [share.used_bytes(), share.limit_bytes()].map(|bytes| bytes as u64);
        self.add(name, Box::new(figures));
    }

    /// Each part, what it holds and what it may hold.
    pub fn read(&self) -> Vec<(&'static str, u64, u64)> {
        let parts = self.parts.iter().map(|(name, figures)| {
            let [held, limit] = figures();
            (*name, held, limit)
        });
        parts.collect()
    }
}
