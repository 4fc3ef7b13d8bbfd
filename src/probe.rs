//! Places that the simulator looks at: rare paths, which a run has to have taken to have tested
//! anything, and defects put there on purpose, which it has to find.
//!
//! Without the feature `simulation` both are nothing: `reached` does nothing, `injected` is false,
//! and the compiler removes what hangs on them. With it they belong to the calling thread, so that
//! several worlds can run side by side.

/// Paths that are seldom taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// A snapshot of the leader took the place of this member's state.
    SnapshotInstalled,
}

/// Deliberate defects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Defect {
    /// A write counts as durable before the disk has it.
    AnswerBeforeSync,
}

#[cfg(feature = "simulation")]
mod on {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    use super::{Defect, Path};

    thread_local! {
        static REACHED: RefCell<BTreeMap<Path, u64>> = const { RefCell::new(BTreeMap::new()) };
        static INJECTED: Cell<Option<Defect>> = const { Cell::new(None) };
    }

    /// Counts that the path was taken.
    pub fn reached(path: Path) {
        REACHED.with_borrow_mut(|reached| *reached.entry(path).or_default() += 1);
    }

    /// True where this thread's world has the defect.
    #[must_use]
    pub fn injected(defect: Defect) -> bool {
        INJECTED.get() == Some(defect)
    }

    /// How often each path was taken on this thread since this was last asked.
    #[must_use]
    pub fn take_reached() -> BTreeMap<Path, u64> {
        REACHED.take()
    }

    /// Gives this thread's worlds a defect, or none.
    pub fn inject(defect: Option<Defect>) {
        INJECTED.set(defect);
    }
}

#[cfg(feature = "simulation")]
pub use on::{inject, injected, reached, take_reached};

/// Counts that the path was taken, in a simulation.
#[cfg(not(feature = "simulation"))]
#[inline(always)]
pub const fn reached(_path: Path) {}

/// True where a simulated world has the defect.
#[cfg(not(feature = "simulation"))]
#[inline(always)]
#[must_use]
pub const fn injected(_defect: Defect) -> bool {
    false
}
