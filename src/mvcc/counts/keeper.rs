//! The counts of a member: those of a few revisions, the newest of them kept in the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

use super::known::{KnownCounts, NewestCounts, ViewCounts};
use super::{Building, KeyCounts};
use crate::mvcc::read::PinnedView;
use crate::probe::{self, CoveragePoint};
use crate::storage::{self, Engine, Read};

/// A change of the history is read in the time in which so many keys are walked over.
const KEYS_FOR_CHANGE: u64 = 4;
/// Changes that are read in any case.
const FREE_CHANGES: u64 = 64 << 10;

/// See the module.
pub struct CountKeeper {
    known: Arc<NewestCounts>,
    /// Held by who brings them forward, stores them or replaces them.
    turn: Mutex<()>,
    /// Compaction may have removed changes up to here: counts of before cannot catch up.
    removed_to: AtomicI64,
    /// Of the counts that are in the engine.
    stored: AtomicI64,
}

impl CountKeeper {
    /// Of a state whose history is compacted to a revision.
    pub fn new(compacted: i64) -> Self {
        Self {
            known: Arc::default(),
            turn: Mutex::default(),
            removed_to: AtomicI64::new(compacted),
            stored: AtomicI64::new(-1),
        }
    }

    pub fn of_view(&self) -> ViewCounts {
        ViewCounts::of(&self.known)
    }

    /// The newest revision that was counted.
    pub fn revision(&self) -> Option<i64> {
        let known = self.known.lock();
        let newest = known.as_ref().and_then(|known| known.newest());
        newest.map(|counts| counts.revision)
    }

    /// Whether a count was asked for since this was asked last.
    pub fn was_asked(&self) -> bool {
        self.known.was_asked()
    }

    /// How many revisions were counted since the counts were stored.
    pub fn unstored(&self) -> i64 {
        let stored = self.stored.load(Ordering::Acquire);
        self.revision().map_or(0, |revision| revision - stored)
    }

    /// Notes that a compaction to `revision` removes what it may of the history from now on.
    pub fn note_removal(&self, revision: i64) {
        self.removed_to.fetch_max(revision, Ordering::AcqRel);
    }

    /// Takes up what a state brought, if it can catch up with a view of it; true if so.
    pub fn take_up(
        &self,
        read: &dyn Read,
        pinned: &PinnedView<'_>,
        keys: i64,
    ) -> storage::Result<bool> {
        let loaded = match KeyCounts::load(read) {
            Ok(Some(loaded)) => loaded,
            Ok(None) => return Ok(false),
            Err(error) => {
                tracing::warn!(%error, "the stored counts of keys cannot be read; they are made anew");
                return Ok(false);
            }
        };
        let revision = loaded.revision;
        if revision > pinned.head || !self.install(loaded) {
            return Ok(false);
        }
        self.stored.store(revision, Ordering::Release);
        let caught_up = self.catch_up(pinned, keys)?;
        if caught_up {
            probe::reached(CoveragePoint::CountsTakenUp);
        }
        Ok(caught_up)
    }

    /// Takes what was built of a view; false where that was in vain.
    pub fn finish(&self, building: Building, pinned: &PinnedView<'_>, keys: i64) -> bool {
        let counts = building.finish(pinned);
        if counts.keys as i64 != keys {
            tracing::warn!(
                counted = counts.keys,
                expected = keys,
                revision = pinned.head,
                "the keys that were counted are not as many as there should be"
            );
            return false;
        }
        probe::reached(CoveragePoint::CountsBuilt);
        self.install(counts)
    }

    /// Catches up with a view; false where there is nothing that could.
    pub fn catch_up(&self, pinned: &PinnedView<'_>, keys: i64) -> storage::Result<bool> {
        let _turn = self.turn.lock();
        let Some(known) = self.known.lock().clone() else {
            return Ok(false);
        };
        let Some(newest) = known.newest() else {
            return Ok(false);
        };
        if newest.revision >= pinned.head {
            return Ok(true);
        }
        let added = keys.abs_diff(newest.keys as i64);
        let changes = added.max(pinned.head.abs_diff(newest.revision));
        // A walk over all keys is shorter then.
        if changes > keys.unsigned_abs() / KEYS_FOR_CHANGE + FREE_CHANGES {
            *self.known.lock() = None;
            return Ok(false);
        }
        // Behind the view: what it lacks was removed before it was taken.
        let next = match newest.revision >= self.removed_to.load(Ordering::Acquire) {
            true => newest.caught_up(pinned, keys)?,
            false => None,
        };
        let Some(next) = next else {
            tracing::info!(
                counted = newest.revision,
                revision = pinned.head,
                "the counts of keys cannot catch up with the history; they are made anew"
            );
            *self.known.lock() = None;
            return Ok(false);
        };
        *self.known.lock() = Some(Arc::new(known.with(next)));
        Ok(true)
    }

    /// Stores the newest counts.
    pub fn store(&self, engine: &dyn Engine) -> storage::Result<()> {
        let _turn = self.turn.lock();
        let known = self.known.lock().clone();
        if let Some(newest) = known.as_ref().and_then(|known| known.newest()) {
            newest.store(engine)?;
            self.stored.store(newest.revision, Ordering::Release);
        }
        Ok(())
    }

    /// Takes counts in place of all others, if they can catch up.
    fn install(&self, counts: KeyCounts) -> bool {
        let _turn = self.turn.lock();
        let can = counts.revision >= self.removed_to.load(Ordering::Acquire);
        if can {
            *self.known.lock() = Some(Arc::new(KnownCounts::of(counts)));
        }
        can
    }
}
