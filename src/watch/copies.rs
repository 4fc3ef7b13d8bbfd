//! Encoded events, each counted once in the budget while anybody holds it.
//!
//! Of a large event there is one copy for all readers, at whatever time: the hub as it publishes, and
//! every stream that catches up over it while another still holds it. Thousands of streams that
//! stand within the same few events so hold those few.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::budget::{Held, Share};
use crate::mvcc::Change;
use crate::proto::EncodedEvent;
use crate::types::Revision;

/// Smaller ones are encoded anew: to look them up costs more than it saves.
const LARGE_BYTES: usize = 4 << 10;
/// Entries before those are dropped that nobody holds.
const FIRST_PRUNE: usize = 256;

struct Copy {
    bytes: Bytes,
    _held: Held,
}

/// What the bytes of an event keep alive.
struct Owner(Arc<Copy>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

/// An event, and whether it has the previous pair.
type Key = (Revision, bool);

struct Known {
    copies: HashMap<Key, Weak<Copy>>,
    prune_at: usize,
}

/// See the module.
pub(super) struct Copies {
    share: Arc<Share>,
    known: Mutex<Known>,
}

impl Copies {
    pub fn new(share: Arc<Share>) -> Arc<Self> {
        Arc::new(Self {
            share,
            known: Mutex::new(Known {
                copies: HashMap::new(),
                prune_at: FIRST_PRUNE,
            }),
        })
    }

    pub fn share(&self) -> &Arc<Share> {
        &self.share
    }

    pub fn encode(&self, change: &Change, previous: bool) -> EncodedEvent {
        let is_large = change.size_bytes() >= LARGE_BYTES;
        let key = (change.revision, previous);
        if is_large {
            let known = self.known.lock().copies.get(&key).and_then(Weak::upgrade);
            if let Some(copy) = known {
                return EncodedEvent::from_encoded(Bytes::from_owner(Owner(copy)));
            }
        }
        let bytes = change.to_event(previous).encoded().clone();
        let held = self.share.take_anyway(bytes.len());
        if !is_large {
            return EncodedEvent::from_encoded(held.over(bytes));
        }
        let copy = Arc::new(Copy { bytes, _held: held });
        self.known.lock().note(key, &copy);
        EncodedEvent::from_encoded(Bytes::from_owner(Owner(copy)))
    }
}

impl Known {
    fn note(&mut self, key: Key, copy: &Arc<Copy>) {
        if self.copies.len() >= self.prune_at {
            self.copies.retain(|_, copy| copy.strong_count() > 0);
            self.prune_at = (self.copies.len() * 2).max(FIRST_PRUNE);
        }
        self.copies.insert(key, Arc::downgrade(copy));
    }
}
