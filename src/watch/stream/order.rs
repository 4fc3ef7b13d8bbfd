//! When a page may be read beside what is queued.
//!
//! Pages and the queue are two ways to one client. Items of the queue are counted as they are
//! pushed and as they are taken out; both rules are a mark in that count which has to be reached:
//!
//! - A watch that spilled catches up once the items pushed before it left are out, for among them
//!   are its own, of earlier revisions than any page has for it.
//! - The next page is read once the items pushed before the last one ended are out, so that live
//!   watches never wait for more than one page.

use std::collections::VecDeque;

use crate::watch::queue::{EventQueue, Item, Spilled, WatchName};

/// See the module.
#[derive(Default)]
pub(super) struct PageOrder {
    /// Items taken out of the queue.
    taken: u64,
    /// How many must be taken out before the next page is read.
    next_page_at: u64,
    /// Watches that may not catch up yet, in the order in which they left.
    leaving: VecDeque<Spilled>,
}

impl PageOrder {
    /// Takes the front of the queue.
    pub fn take(&mut self, queue: &EventQueue) -> Option<Item> {
        let item = queue.pop()?;
        self.taken += 1;
        Some(item)
    }

    /// Takes note of the watches that have spilled since, and names them.
    pub fn note_spilled(&mut self, queue: &EventQueue) -> impl Iterator<Item = WatchName> {
        let known = self.leaving.len();
        queue.take_spilled(&mut self.leaving);
        self.leaving.range(known..).map(|spilled| spilled.watch)
    }

    pub fn note_page_ended(&mut self, queue: &EventQueue) {
        self.next_page_at = queue.pushed();
    }

    /// The next watch that may catch up.
    pub fn take_ready(&mut self) -> Option<Spilled> {
        match self.has_ready() {
            true => self.leaving.pop_front(),
            false => None,
        }
    }

    /// A watch that spilled may catch up.
    pub fn has_ready(&self) -> bool {
        let first = self.leaving.front();
        first.is_some_and(|spilled| spilled.after <= self.taken)
    }

    /// No watch waits until it may catch up.
    pub fn is_empty(&self) -> bool {
        self.leaving.is_empty()
    }

    pub fn page_is_due(&self) -> bool {
        self.taken >= self.next_page_at
    }
}
