//! The parts of raft's output that were handed out and are not durable yet, oldest first, and what
//! becomes durable with each of them.

use std::collections::VecDeque;

use super::output::Persist;
use crate::storage::raft_log::EntryId;

/// A part, and what is durable with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    pub number: u64,
    /// Index of its last entry that no later part replaced; 0 for none.
    pub last_index: u64,
    pub reset: Option<EntryId>,
    /// Of the hard state in it.
    pub term: Option<u64>,
    /// It is durable as soon as all earlier parts are.
    pub is_empty: bool,
}

/// See the module.
#[derive(Default)]
pub struct Unpersisted {
    parts: VecDeque<Part>,
}

impl Unpersisted {
    /// True if no part is outstanding.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Adds a part after all others; `term` is that of its hard state.
    pub fn push(&mut self, persist: &Persist, term: u64) {
        // Entries that were replaced never count as durable.
        let kept = persist.entries.first().map(|first| first.index - 1);
        let kept = kept.or(persist.reset.map(|entry_id| entry_id.index));
        for earlier in &mut self.parts {
            earlier.last_index = earlier.last_index.min(kept.unwrap_or(u64::MAX));
        }
        self.parts.push_back(Part {
            number: persist.number,
            last_index: persist.entries.last().map_or(0, |entry| entry.index),
            reset: persist.reset,
            term: persist.hard_state.as_ref().map(|_| term),
            is_empty: persist.is_empty() && persist.messages.is_empty(),
        });
    }

    /// Takes the oldest part if it is durable once the part `number` is: it is not after it, or has
    /// nothing to write.
    pub fn pop(&mut self, number: u64) -> Option<Part> {
        let oldest = self.parts.front()?;
        let is_durable = oldest.number <= number || oldest.is_empty;
        is_durable.then(|| self.parts.pop_front()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::raft_log::LogEntry;

    fn part(number: u64, indexes: impl IntoIterator<Item = u64>) -> Persist {
        let entry = |index| LogEntry {
            index,
            term: 1,
            data: "x".into(),
        };
        Persist {
            number,
            entries: indexes.into_iter().map(entry).collect(),
            ..Default::default()
        }
    }

    /// Number and last index of what is durable with `number`.
    fn durable(unpersisted: &mut Unpersisted, number: u64) -> Vec<(u64, u64)> {
        let parts = std::iter::from_fn(|| unpersisted.pop(number));
        parts.map(|part| (part.number, part.last_index)).collect()
    }

    #[test]
    fn parts_come_out_in_order_up_to_a_number() {
        let mut unpersisted = Unpersisted::default();
        for number in 1..=3 {
            unpersisted.push(&part(number, [10 + number]), 1);
        }
        assert_eq!(durable(&mut unpersisted, 0), []);
        assert_eq!(durable(&mut unpersisted, 2), [(1, 11), (2, 12)]);
        assert_eq!(durable(&mut unpersisted, 2), []);
        assert_eq!(durable(&mut unpersisted, 9), [(3, 13)]);
        assert!(unpersisted.is_empty());
    }

    #[test]
    fn what_is_empty_waits_for_what_comes_before_it_alone() {
        let mut unpersisted = Unpersisted::default();
        unpersisted.push(&part(1, [11]), 1);
        unpersisted.push(&part(2, []), 1);
        unpersisted.push(&part(3, []), 1);
        unpersisted.push(&part(4, [12]), 1);
        assert_eq!(durable(&mut unpersisted, 0), []);
        assert_eq!(durable(&mut unpersisted, 1), [(1, 11), (2, 0), (3, 0)]);
        assert!(!unpersisted.is_empty());
    }

    /// Its messages must not be sent before it is durable, though it has no entry.
    #[test]
    fn a_part_with_messages_is_waited_for() {
        let mut unpersisted = Unpersisted::default();
        let mut vote = part(1, []);
        vote.messages.push(Default::default());
        unpersisted.push(&vote, 1);
        assert_eq!(durable(&mut unpersisted, 0), []);
        assert_eq!(durable(&mut unpersisted, 1), [(1, 0)]);
    }

    #[test]
    fn replaced_entries_never_count_as_durable() {
        let mut unpersisted = Unpersisted::default();
        unpersisted.push(&part(1, [11, 12, 13]), 1);
        unpersisted.push(&part(2, [14]), 1);
        unpersisted.push(&part(3, [12]), 2);
        assert_eq!(durable(&mut unpersisted, 3), [(1, 11), (2, 11), (3, 12)]);
    }

    #[test]
    fn a_snapshot_replaces_what_is_behind_it() {
        let mut unpersisted = Unpersisted::default();
        unpersisted.push(&part(1, [11, 12]), 1);
        let reset = EntryId { index: 11, term: 2 };
        let persist = Persist {
            reset: Some(reset),
            hard_state: Some(Vec::new()),
            ..part(2, [])
        };
        unpersisted.push(&persist, 2);
        assert_eq!(durable(&mut unpersisted, 1), [(1, 11)]);
        let taken = unpersisted.pop(2).expect("a part");
        assert_eq!((taken.reset, taken.term), (Some(reset), Some(2)));
    }
}
