//! Places that the simulator looks at: rare paths, which a run has to have taken to have tested
//! anything, what members apply, and defects put there on purpose, which it has to find.
//!
//! In a server all of this is nothing: `ON` is false and the compiler removes what hangs on it.
//! Otherwise it belongs to the calling thread, so that several worlds can run side by side.

use bytes::Bytes;

/// True where probes do anything.
pub const ON: bool = cfg!(any(test, feature = "simulation"));

/// Declares an enum with a name in words for each of its values.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$one:meta])* $value:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$one])* $value,)*
        }

        impl $name {
            pub const ALL: &[$name] = &[$($name::$value,)*];

            /// As reports and command lines call it.
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$value => $text,)*
                }
            }
        }
    };
}

named! {
    /// Paths that are seldom taken.
    Path {
        SnapshotInstalled => "snapshot installed",
        SnapshotUnwanted => "snapshot unwanted",
        ConflictTruncated => "log conflict truncated",
        LogCut => "log cut",
        TailTorn => "torn tail cut at a start",
        StateTakenUpAfterCrash => "received state taken up after a crash",
        LearnerPromoted => "learner promoted",
        MemberRemoved => "member removed itself",
        LeaderHandedOver => "leader handed over",
        LeaderHandedOverForDisk => "leader handed over for its disk",
        LeaderGivenUp => "silent leader given up early",
        ProposalParked => "proposal waited for a leader",
        ProposalForwarded => "proposal forwarded",
        ProposalRefused => "forwarded proposal refused",
        ProposedAgain => "void proposal proposed again",
        LeaseFenced => "fenced proposal refused",
        LeaseCheckpointed => "lease checkpointed",
        LeaseExpired => "lease expired",
        LeasesTakenOver => "leases taken over by a new leader",
        ReadAskedAgain => "read index asked again",
        WatchFellBack => "watch fell behind and catches up",
        WatchCaughtUp => "watch caught up",
        WatchCompacted => "watch cut by compaction",
        WatchResynced => "watches resumed over a snapshot",
        CompactionResumed => "compaction resumed after a restart",
        QuotaRaised => "alarm for space raised",
        AppendDropped => "append dropped while the disk lags",
        RequestDropped => "request refused for too many",
    }
}

named! {
    /// Deliberate defects.
    Defect {
        /// A part of the log counts as durable before the disk has it.
        AnswerBeforeSync => "answer-before-sync",
    }
}

/// What a member applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    pub member: u64,
    pub index: u64,
    pub term: u64,
    pub payload: Payload,
}

/// Encoded, as the log has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    Empty,
    Request(Bytes),
    Member(Bytes),
}

#[cfg(any(test, feature = "simulation"))]
mod on {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    use super::{Applied, Defect, Path};

    thread_local! {
        static REACHED: RefCell<BTreeMap<Path, u64>> = const { RefCell::new(BTreeMap::new()) };
        static INJECTED: Cell<Option<Defect>> = const { Cell::new(None) };
        static APPLIED: RefCell<Option<Vec<Applied>>> = const { RefCell::new(None) };
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

    /// Notes what a member applies, where someone asked for it.
    pub fn applied(entries: impl FnOnce() -> Vec<Applied>) {
        APPLIED.with_borrow_mut(|applied| {
            if let Some(applied) = applied {
                applied.extend(entries());
            }
        });
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

    /// What was applied on this thread since this was last asked; from the first call on.
    #[must_use]
    pub fn take_applied() -> Vec<Applied> {
        APPLIED.replace(Some(Vec::new())).unwrap_or_default()
    }
}

#[cfg(any(test, feature = "simulation"))]
pub use on::{applied, inject, injected, reached, take_applied, take_reached};

/// Counts that the path was taken, in a simulation.
#[cfg(not(any(test, feature = "simulation")))]
#[inline(always)]
pub const fn reached(_path: Path) {}

/// True where a simulated world has the defect.
#[cfg(not(any(test, feature = "simulation")))]
#[inline(always)]
#[must_use]
pub const fn injected(_defect: Defect) -> bool {
    false
}

/// Notes what a member applies, in a simulation.
#[cfg(not(any(test, feature = "simulation")))]
#[inline(always)]
pub fn applied(_entries: impl FnOnce() -> Vec<Applied>) {}
