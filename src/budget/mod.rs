//! The memory budget: one total (`--memory-budget-bytes`), divided once, here.
//!
//! Whatever grows with what others send or do not read is taken from a part of it: bytes of a
//! request from its arrival to its answer, an answer from its encoding until the network has
//! taken it, the queues of watches. The store's caches and buffers are held to theirs by the
//! engine. What a process needs besides (code, threads, connections at rest) is not counted.
//!
//! A part is never lent to another: a flood of requests must not take from answers, or nothing
//! that is held would ever be released.

pub mod requests;
// Answers take from it next.
#[allow(dead_code)]
mod share;
pub mod unread;

pub use requests::Requests;
#[allow(unused_imports)]
pub use share::{Exhausted, Held, Holder, Share, Waiting};

/// Who holds memory; the label of `etched_memory_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)]
pub enum Part {
    Memtables,
    BlockCache,
    Requests,
    Answers,
    Watches,
}

impl Part {
    #[allow(dead_code)]
    pub const ALL: [Self; 5] = [
        Self::Memtables,
        Self::BlockCache,
        Self::Requests,
        Self::Answers,
        Self::Watches,
    ];

    #[allow(dead_code)]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memtables => "memtables",
            Self::BlockCache => "block_cache",
            Self::Requests => "requests",
            Self::Answers => "answers",
            Self::Watches => "watches",
        }
    }

    /// Of 32 equal pieces of the total.
    fn pieces(self) -> u64 {
        match self {
            Self::Memtables | Self::BlockCache => 10,
            Self::Requests => 6,
            Self::Answers | Self::Watches => 3,
        }
    }
}

/// A total, divided.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub total_bytes: u64,
}

impl Budget {
    /// What a part may hold.
    pub fn bytes(self, part: Part) -> usize {
        (self.total_bytes / 32 * part.pieces()) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole() {
        for total_bytes in [16 << 20, 256 << 20, 3 << 30] {
            let budget = Budget { total_bytes };
            let sum: usize = Part::ALL.into_iter().map(|part| budget.bytes(part)).sum();
            assert_eq!(sum as u64, total_bytes);
        }
    }
}
