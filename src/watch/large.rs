//! The events of a revision that is too large for a page, for one watch that catches up.
//!
//! A client that does not allow fragments is to get a revision in one message, so the message is
//! held whole. It is held as little else than its bytes: it is read part by part, each part is
//! encoded at once into a piece of memory that its events share, and all of that is counted. One is
//! made at a time, and none while the one before it leaves no room: `Hub::begin_large`. Of one that
//! no message can hold no more is read than shows that.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::MutexGuard;

use super::hub::Hub;
use super::logged::PART;
use super::queue::Wanted;
use crate::budget::Held;
use crate::mvcc::Change;
use crate::mvcc::history::WithPrevious;
use crate::mvcc::read::PinnedView;
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::EncodedEvent;
use crate::storage;
use crate::types::{KeyRange, Revision};

/// A message of gRPC cannot hold more.
pub(super) const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

/// The turn to make a large message.
pub(super) struct LargeTurn<'a> {
    hub: &'a Hub,
    /// Held by all pieces of the message.
    message: Arc<()>,
    _turn: MutexGuard<'a, Weak<()>>,
}

/// Encoded events, one behind the other.
struct Piece {
    bytes: Vec<u8>,
    _held: Held,
    _message: Arc<()>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Hub {
    /// Waits for its turn, which is as long as another is made, not until that is sent. `None` where
    /// the last one is not all sent and there is no room beside it.
    pub(super) fn begin_large(&self) -> Option<LargeTurn<'_>> {
        let mut turn = self.large.lock();
        let share = self.share();
        if turn.strong_count() > 0 && share.used_bytes() >= share.limit_bytes() {
            return None;
        }
        let message = Arc::new(());
        *turn = Arc::downgrade(&message);
        Some(LargeTurn {
            hub: self,
            message,
            _turn: turn,
        })
    }
}

impl LargeTurn<'_> {
    /// The events of `revision` for a watch; of more than `most_bytes` only so many that they show it.
    pub fn read(
        &self,
        pinned: &PinnedView<'_>,
        revision: i64,
        range: &KeyRange,
        wanted: Wanted,
        most_bytes: usize,
    ) -> storage::Result<Vec<EncodedEvent>> {
        probe::reached(CoveragePoint::LargeRevision);
        let (mut events, mut bytes) = (Vec::new(), 0);
        let mut next = Some(Revision::new(revision, 0));
        while let Some(from) = next.filter(|_| bytes <= most_bytes) {
            let changes;
            (changes, next) = pinned.changes_of(from, PART, &mut |key, kind, _| {
                let wants = wanted.kind(kind) && range.contains(key);
                wants.then_some(WithPrevious(wanted.previous))
            })?;
            bytes += self.encode(&changes, wanted.previous, &mut events);
            if probe::injected(Defect::LargeRevisionCut) {
                break;
            }
        }
        Ok(events)
    }

    fn encode(&self, changes: &[Change], previous: bool, events: &mut Vec<EncodedEvent>) -> usize {
        let encoded: Vec<_> = changes.iter().map(|it| it.to_event(previous)).collect();
        let parts: Vec<&[u8]> = encoded.iter().map(|it| it.encoded().as_ref()).collect();
        let bytes = parts.concat();
        let of_events = parts.len() * std::mem::size_of::<EncodedEvent>();
        let shared = Bytes::from_owner(Piece {
            _held: self.hub.share().take_anyway(bytes.len() + of_events),
            bytes,
            _message: self.message.clone(),
        });
        let mut begin = 0;
        for part in parts {
            let end = begin + part.len();
            events.push(EncodedEvent::from_encoded(shared.slice(begin..end)));
            begin = end;
        }
        shared.len()
    }
}
