//! The counts of a few revisions, and which of them a view may use: those of a revision that it shows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::{IS_SMALL, KeyCounts};

/// Counts are kept of revisions that lie so far apart, for pages of an older one.
const APART: i64 = if IS_SMALL { 16 } else { 1024 };
/// And of so many, as long as they take no more than that.
const MOST_KEPT: usize = 16;
const MOST_KEPT_BYTES: usize = 8 << 20;

/// Counts of several revisions, oldest first; not empty.
#[derive(Debug)]
pub struct KnownCounts(Vec<Arc<KeyCounts>>);

impl KnownCounts {
    pub fn of(counts: KeyCounts) -> Self {
        Self(vec![Arc::new(counts)])
    }

    /// The same with newer ones.
    pub fn with(&self, newest: KeyCounts) -> Self {
        let mut kept = self.0.clone();
        let revisions = |at: usize| kept.get(at).map(|counts| counts.revision);
        let last = kept.len().saturating_sub(1);
        let before = last.checked_sub(1).and_then(revisions);
        // The last of them takes the place of one that is near to the one before.
        if let (Some(before), Some(replaced)) = (before, revisions(last))
            && replaced - before < APART
        {
            kept.pop();
        }
        let most = MOST_KEPT_BYTES / newest.bytes.max(1);
        kept.push(Arc::new(newest));
        let surplus = kept.len().saturating_sub(most.clamp(2, MOST_KEPT));
        kept.drain(..surplus);
        Self(kept)
    }

    pub fn newest(&self) -> Option<&Arc<KeyCounts>> {
        self.0.last()
    }
}

/// What is known now, if anything is, and whether somebody wanted to know.
#[derive(Default)]
pub struct NewestCounts {
    known: Mutex<Option<Arc<KnownCounts>>>,
    asked: AtomicBool,
}

impl NewestCounts {
    pub fn lock(&self) -> MutexGuard<'_, Option<Arc<KnownCounts>>> {
        self.known.lock()
    }

    /// Whether anybody has asked since this was asked last.
    pub fn was_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }
}

/// What a view may count with. It keeps none alive: views are held for as long as a client reads.
pub struct ViewCounts(Arc<NewestCounts>);

impl ViewCounts {
    pub(super) fn of(newest: &Arc<NewestCounts>) -> Self {
        Self(newest.clone())
    }

    /// The nearest to `revision` of those whose revision lies in `lowest..=head`.
    pub(super) fn nearest(&self, revision: i64, lowest: i64, head: i64) -> Option<Arc<KeyCounts>> {
        self.0.asked.store(true, Ordering::Relaxed);
        let known = self.0.lock().clone()?;
        let all = known.0.iter();
        all.filter(|counts| counts.revision >= lowest && counts.revision <= head)
            .min_by_key(|counts| counts.revision.abs_diff(revision))
            .cloned()
    }

    /// The newest of all.
    #[cfg(any(test, feature = "simulation"))]
    pub fn newest(&self) -> Option<Arc<KeyCounts>> {
        let known = self.0.lock();
        known.as_ref().and_then(|known| known.newest()).cloned()
    }

    /// All that are known now.
    #[cfg(test)]
    pub fn known(&self) -> Vec<Arc<KeyCounts>> {
        let known = self.0.lock().clone();
        known.map_or_else(Vec::new, |known| known.0.clone())
    }
}
