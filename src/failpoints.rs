//! Places at which a test ends this process or holds it up, by the names that they have in etcd's
//! source.
//!
//! Only a build with the feature `failpoints` has them: in every other each call here compiles to
//! nothing. What a place does is decided by `server::failpoints`, which speaks the protocol of
//! gofail; until it is set up, and in simulated worlds, a place does nothing.
//!
//! A place stands where the process is about to write, sync or send something, or has just done so,
//! never where something is decided: to end there is to crash there. Those of leases stand between
//! the proof that this member leads and what it does as the leader, which may be none any more when
//! it was held up there. A name is one of etcd's, and is
//! here only where the same step is, so that a test of etcd's that sets it means the same.

use crate::env::Executor;

/// Declares the places, with etcd's name for each.
macro_rules! failpoints {
    ($($(#[$doc:meta])* $place:ident => $name:literal,)*) => {
        /// See the module. What each stands for here is at its value.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Failpoint {
            $($(#[$doc])* $place,)*
        }

        #[cfg(any(test, feature = "failpoints"))]
        impl Failpoint {
            pub const ALL: &[Self] = &[$(Self::$place,)*];

            /// Its name in etcd.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$place => $name,)*
                }
            }
        }
    };
}

failpoints! {
    /// The batch that an apply of entries ends with is about to be written to the engine.
    BeforeCommit => "beforeCommit",
    /// It is written.
    AfterCommit => "afterCommit",
    /// Once for each change of membership, before its group of entries is executed.
    BeforeApplyOneConfChange => "beforeApplyOneConfChange",
    /// The same for every other entry.
    BeforeApplyOneEntryNormal => "beforeApplyOneEntryNormal",
    /// A received state is about to be opened.
    ApplyBeforeOpenSnapshot => "applyBeforeOpenSnapshot",
    /// It is open, and the file `STATE` still names the one before.
    ApplyAfterOpenSnapshot => "applyAfterOpenSnapshot",
    /// A member is about to publish its name and client URLs at a start.
    BeforePublishing => "beforePublishing",
    /// The next response of a watch is about to be sent, its creation's and a cancellation's by its
    /// client aside.
    BeforeSendWatchResponse => "beforeSendWatchResponse",
    /// A watch that is behind is about to read history.
    BeforeSyncWatchers => "beforeSyncWatchers",
    /// The leader, confirmed by a quorum, is about to extend a lease and to take its checkpoint back,
    /// if it has one.
    BeforeCheckpointInLeaseRenew => "beforeCheckpointInLeaseRenew",
    /// The leader is about to renew a lease for a client of another member.
    BeforeServeHttpLeaseRenew => "beforeServeHTTPLeaseRenew",
    /// The leader, confirmed by a quorum, is about to look up what is left of a lease.
    BeforeLookupWhenLeaseTimeToLive => "beforeLookupWhenLeaseTimeToLive",
    /// The same for a client of another member.
    BeforeLookupWhenForwardLeaseTimeToLive => "beforeLookupWhenForwardLeaseTimeToLive",
    /// The batch that records the request for a compaction is about to be written.
    CompactBeforeCommitScheduledCompact => "compactBeforeCommitScheduledCompact",
    /// It is written.
    CompactAfterCommitScheduledCompact => "compactAfterCommitScheduledCompact",
    /// What a step of a compaction removes is about to be written; of the last step it is the next.
    CompactBeforeCommitBatch => "compactBeforeCommitBatch",
    /// It is written.
    CompactAfterCommitBatch => "compactAfterCommitBatch",
    /// The last step of a compaction is about to be written, with the record of its end.
    CompactBeforeSetFinishedCompact => "compactBeforeSetFinishedCompact",
    /// It is written.
    CompactAfterSetFinishedCompact => "compactAfterSetFinishedCompact",
    /// A leader is about to send what need not wait for its disk, if anything.
    RaftBeforeLeaderSend => "raftBeforeLeaderSend",
    /// A follower or a candidate is about to send messages.
    RaftBeforeFollowerSend => "raftBeforeFollowerSend",
    /// Entries and hard state are about to be appended to the raft log.
    RaftBeforeSave => "raftBeforeSave",
    /// They are in it, durably.
    RaftAfterSave => "raftAfterSave",
    /// The raft log is about to be reset to the entry of a received state.
    RaftBeforeSaveSnap => "raftBeforeSaveSnap",
    /// It is, durably.
    RaftAfterSaveSnap => "raftAfterSaveSnap",
    /// A received state, to whose entry the log is reset, is about to take the old one's place.
    RaftBeforeApplySnap => "raftBeforeApplySnap",
    /// It has.
    RaftAfterApplySnap => "raftAfterApplySnap",
    /// A frame of the raft log is written and not synced.
    WalBeforeSync => "walBeforeSync",
    /// It is synced.
    WalAfterSync => "walAfterSync",
}

#[cfg(feature = "failpoints")]
mod on {
    use std::sync::OnceLock;

    use super::{Executor, Failpoint};

    static ACT: OnceLock<fn(Failpoint)> = OnceLock::new();

    /// From now on a place does this. The first call counts.
    pub fn act_by(act: fn(Failpoint)) {
        ACT.get_or_init(|| act);
    }

    /// The calling thread is at a place.
    pub fn hit(failpoint: Failpoint) {
        if let Some(act) = ACT.get() {
            act(failpoint);
        }
    }

    /// The same for places that have to be found out.
    pub fn hit_each<I: IntoIterator<Item = Failpoint>>(failpoints: impl FnOnce() -> I) {
        if ACT.get().is_some() {
            failpoints().into_iter().for_each(hit);
        }
    }

    /// The same for a task, which must not hold up others.
    pub fn hit_in_task(executor: &dyn Executor, failpoint: Failpoint) {
        if ACT.get().is_some() {
            executor.block_in_place(&mut || hit(failpoint));
        }
    }
}

#[cfg(feature = "failpoints")]
pub use on::{act_by, hit, hit_each, hit_in_task};

/// The calling thread is at a place, in a build for tests.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn hit(_failpoint: Failpoint) {}

/// The same for places that have to be found out.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit_each<I: IntoIterator<Item = Failpoint>>(_failpoints: impl FnOnce() -> I) {}

/// The same for a task, which must not hold up others.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit_in_task(_executor: &dyn Executor, _failpoint: Failpoint) {}
