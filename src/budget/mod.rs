//! The memory budget: one total (`--memory-budget-bytes`), divided once, here.
//!
//! Whatever grows with what others send or do not read is taken from a part of it: bytes of a
//! request from its arrival to its answer, an answer from its encoding until the network has
//! taken it, the queues of watches. The store's caches and buffers are held to theirs by the
//! engine. What is not counted one by one has a part that nobody may take (`UNCOUNTED_PIECES`): the
//! copies of a batch of entries on its way through the log, the state and to other members, and what
//! the engine's flushes and compactions use. Under large writes it is as much as all requests are.
//! What a process needs at rest (code, threads, idle connections) comes on top.
//!
//! A part is never lent to another: a flood of requests must not take from answers, or nothing
//! that is held would ever be released.

use std::sync::Arc;

pub mod requests;
mod room;
mod share;
pub mod unread;

pub use requests::Requests;
pub use room::Room;
pub use share::{Exhausted, Held, Share, TakeBytes};

/// Who holds memory; the label of `etched_memory_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Memtables,
    BlockCache,
    Requests,
    Answers,
    Watches,
}

impl Part {
    pub const ALL: [Self; 5] = [
        Self::Memtables,
        Self::BlockCache,
        Self::Requests,
        Self::Answers,
        Self::Watches,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Memtables => "memtables",
            Self::BlockCache => "block_cache",
            Self::Requests => "requests",
            Self::Answers => "answers",
            Self::Watches => "watches",
        }
    }

    /// Of `PIECES` equal pieces of the total.
    const fn pieces(self) -> u64 {
        match self {
            Self::Memtables => 8,
            Self::BlockCache => 7,
            Self::Requests => 6,
            Self::Answers | Self::Watches => 3,
        }
    }
}

const PIECES: u64 = 32;
/// Of them, what is used by what nobody counts.
const UNCOUNTED_PIECES: u64 = 5;

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

/// A budget and the shares of those parts that many hold, to be looked at.
#[derive(Clone)]
pub struct Ledger {
    pub budget: Budget,
    pub shares: Vec<(Part, Arc<Share>)>,
}

impl Ledger {
    /// What of a part is held by those that share it.
    pub fn used_bytes(&self, part: Part) -> Option<usize> {
        let mut shares = self.shares.iter();
        let (_, share) = shares.find(|(of, _)| *of == part)?;
        Some(share.used_bytes())
    }
}
