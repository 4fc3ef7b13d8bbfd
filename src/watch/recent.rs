//! The events that queues name.
//!
//! An event is encoded once and kept here once, however many watches get it; a queue holds no
//! event, only its name. Where events take too much, the oldest go, read or not: a watch that
//! finds one of its own gone catches up from storage. So streams that are not read, however many,
//! hold names of a bounded number and no bytes, and those that are read lose nothing to them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::queue::Encoded;
use crate::budget::Share;
use crate::proto::EncodedEvent;

/// See the module.
#[derive(Default)]
pub(super) struct Recent {
    events: VecDeque<Arc<EncodedEvent>>,
    bytes: usize,
}

impl Recent {
    /// Keeps what was encoded of a change and is named by a queue.
    pub fn keep(&mut self, encoded: Encoded) {
        for event in encoded.into_events() {
            if Arc::weak_count(&event) > 0 {
                self.bytes += event.encoded().len();
                self.events.push_back(event);
            }
        }
    }

    /// Lets go of what everybody has read, and of the oldest where it is too much: beyond half of
    /// the share; beyond an eighth where pages and what is on its way to clients need the rest.
    /// One is always kept.
    pub fn trim(&mut self, share: &Share) {
        let limit = share.limit_bytes();
        while let Some(oldest) = self.events.front() {
            let too_much = self.bytes > limit / 2
                || self.bytes > limit / 8 && share.used_bytes() > limit / 4 * 3;
            if Arc::weak_count(oldest) > 0 && (!too_much || self.events.len() == 1) {
                break;
            }
            self.bytes -= oldest.encoded().len();
            self.events.pop_front();
        }
        if self.events.is_empty() && self.events.capacity() > 1024 {
            self.events = VecDeque::new();
        }
    }
}
