//! Places that the simulator looks at: rare paths, which a run has to have taken to have tested
//! anything, what members apply, and defects put there on purpose, which it has to find.
//!
//! In a server all of this is nothing, and the compiler removes what hangs on it.
//! Otherwise it belongs to the calling thread, so that several worlds can run side by side.

use bytes::Bytes;

/// Declares an enum with a name in words for each of its values.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$one:meta])* $value:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        // Some are the simulated network's, which a server does not have.
        #[cfg_attr(not(any(test, feature = "simulation")), allow(dead_code))]
        pub enum $name {
            $($(#[$one])* $value,)*
        }

        #[cfg(any(test, feature = "simulation"))]
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
    CoveragePoint {
        StrangerAnswered => "caller answered that was not known",
        LeaderUnheard => "leader that waited for its term to be on disk",
        SnapshotInstalled => "snapshot installed",
        SnapshotUnwanted => "snapshot unwanted",
        StateTakenUpAfterCrash => "received state taken up after a crash",
        ProposalsLostFromSight => "proposals lost from sight by a snapshot",
        ConflictTruncated => "log conflict truncated",
        LogCut => "log cut",
        SegmentDeleted => "log segment deleted",
        TailTorn => "torn tail cut at a start",
        ShortLogRefused => "log refused whose file was cut short",
        LostEndRefused => "log refused that had lost its end",
        DoubtSettled => "vote withheld until a leader had shown the log to be whole",
        DoubtGivenUp => "vote withheld until the wait for a leader was over",
        AppendDropped => "append dropped while the disk lags",
        LearnerPromoted => "learner promoted",
        MemberRemoved => "member removed itself",
        ChangeRefused => "membership change refused when applied",
        ChangeWaited => "membership change waited for another",
        LeaderHandedOver => "leader handed over",
        LeaderSteppedAside => "leader stepped aside for its removal",
        LeaderHandedOverForDisk => "leader handed over for its disk",
        LeaderGivenUp => "silent leader given up early",
        SoleVoterElected => "sole voter elected itself at its start",
        ProposalParked => "proposal waited for a leader",
        ProposalForwarded => "proposal forwarded",
        ProposalRefused => "forwarded proposal refused",
        RefusalStale => "refusal of an earlier term ignored",
        ProposedAgain => "void proposal proposed again",
        ForwardedAgain => "void forwarded proposal proposed again",
        LeaseFenced => "fenced proposal refused",
        LeaseFencedInVain => "fenced proposal lost with its leader",
        LeaseCheckpointed => "lease checkpointed",
        LeaseCheckpointReset => "lease checkpoint taken back by a renewal",
        LeaseExpired => "lease expired",
        LeasesTakenOver => "leases taken over by a new leader",
        LeaseTimeGivenBack => "lease time given back after a standstill",
        ReadAskedAgain => "read index asked again",
        ReadWaited => "read waited for entries to be applied",
        WatchFellBack => "watch fell behind and catches up",
        WatchCaughtUp => "watch caught up",
        WatchCompacted => "watch cut by compaction",
        WatchResynced => "watches resumed over a snapshot",
        RevisionOverflowed => "revision larger than a watch queue",
        CompactionResumed => "compaction resumed after a restart",
        CompactionOfSnapshot => "compaction resumed in a received state",
        QuotaRaised => "alarm for space raised",
        CompactionHashMet => "hash of a compaction met one of the same history",
        ResponseSplit => "watch response split",
    }
}

named! {
    /// Deliberate defects, each a mistake that could be made.
    Defect {
        /// A start dials the members that its state names, whatever its log says of them.
        MembersBeforeReplay => "members-before-replay",
        /// A caller that the state does not name is not answered.
        UnlistedUnanswered => "unlisted-unanswered",
        /// The leader counts its own part of the log as durable before the disk has it.
        AnswerBeforeSync => "answer-before-sync",
        /// A follower acknowledges entries before the disk has them.
        AcknowledgeBeforeSync => "acknowledge-before-sync",
        /// The log is written and never synced.
        LogUnsynced => "log-unsynced",
        /// A restart forgets whom the member voted for.
        VoteForgotten => "vote-forgotten",
        /// A part of a write that has no hard state takes that of the part before it away.
        HardStateDropped => "hard-state-dropped",
        /// The last frame that a start finds is not made durable before it is counted on.
        FoundUnsynced => "found-unsynced",
        /// A file of the log that was cut short counts as one whose last write was torn.
        ShortFileTaken => "short-file-taken",
        /// A start does not ask how far the log was synced.
        SyncedMarkIgnored => "synced-mark-ignored",
        /// Entries that conflict with the leader's stay in the log that raft reads.
        ConflictKept => "conflict-kept",
        /// The log lets go of entries that only the memory's state holds.
        CutBeyondDurable => "cut-beyond-durable",
        /// The applied index does not go into the batch.
        AppliedIndexLeftOut => "applied-index-left-out",
        /// A restarted member does not know how much it had applied.
        AppliedIndexUnknown => "applied-index-unknown",
        /// A received state comes into use before the log is reset for it.
        AdoptBeforeReset => "adopt-before-reset",
        /// Whoever proposed is answered before the batch is written.
        AnswerBeforeWrite => "answer-before-write",
        /// The view is taken before the batch is written.
        ViewBeforeWrite => "view-before-write",
        /// A read takes its view before it asks how new that has to be.
        ViewTakenEarly => "view-taken-early",
        /// A leader reads without asking whether it still leads.
        ReadWithoutQuorum => "read-without-quorum",
        /// A sole voter reads at once although it has a learner.
        LearnerOverlooked => "learner-overlooked",
        /// A read joins a question that was asked before it came.
        ReadJoinsRound => "read-joins-round",
        /// An answer to an earlier question counts for the round of now.
        AnswerOfEarlierRound => "answer-of-earlier-round",
        /// A read that waits for an entry goes on with the one after it.
        ReadWakesLate => "read-wakes-late",
        /// A read does not wait until what the leader named is applied.
        ReadBeforeApplied => "read-before-applied",
        /// Raft makes a change of membership that was refused when it was applied.
        RefusedChangeMade => "refused-change-made",
        /// A refusal counts whatever the term that it is about.
        RefusalUnchecked => "refusal-unchecked",
        /// A forwarded proposal is sent again when its leader is lost, though it may be applied yet.
        ForwardedTwice => "forwarded-twice",
        /// A forwarded proposal that got lost is waited for without end.
        ForwardedKept => "forwarded-kept",
        /// The term fence of a revoke is skipped.
        RevokeUnfenced => "revoke-unfenced",
        /// A new leader does not start the leases anew.
        LeasesNotRestarted => "leases-not-restarted",
        /// A new leader does not take note that the leases are its own.
        LeasesNotOwned => "leases-not-owned",
        /// A leader renews leases without asking whether it still leads.
        RenewalWithoutQuorum => "renewal-without-quorum",
        /// A renewal leaves the checkpoint of the lease as it is.
        CheckpointKept => "checkpoint-kept",
        /// A leader that stood still counts that time against the leases.
        StandstillForgotten => "standstill-forgotten",
        /// A key that is put under another lease stays with the old one too.
        KeyStaysAttached => "key-stays-attached",
        /// A revoke misses the keys that its own batch attached.
        RevokeMissesBatch => "revoke-misses-batch",
        /// A transaction compares with the state before its batch.
        CompareMissesBatch => "compare-misses-batch",
        /// A read of the past within a transaction misses its batch.
        PastReadMissesBatch => "past-read-misses-batch",
        /// A compaction is not held against the one before.
        CompactionUnordered => "compaction-unordered",
        /// Compaction removes what is live at its revision.
        CompactionTooFar => "compaction-too-far",
        /// Compaction removes the tombstones of its own revision.
        TombstoneTakenEarly => "tombstone-taken-early",
        /// Whoever waits for a compaction is not told of its end.
        CompactionUntold => "compaction-untold",
        /// A compaction that began earlier, or elsewhere, keeps a hash of what is left.
        HashTooLate => "hash-too-late",
        /// Compaction leaves tombstones for ever.
        TombstoneForgotten => "tombstone-forgotten",
        /// The hash of a compaction and one of the same history made later have to be equal.
        CompactionHashAlone => "compaction-hash-alone",
        /// A flush that failed counts as done.
        FlushFailureMissed => "flush-failure-missed",
        /// A page of the catch-up ends within a revision.
        PageTorn => "page-torn",
        /// Live watches get the first change of a revision alone.
        DeliveryTorn => "delivery-torn",
        /// Events that find a full queue are dropped.
        EventsDropped => "events-dropped",
        /// A watch that fell back catches up before its queue is read.
        PageBeforeQueue => "page-before-queue",
        /// Watches go on over a snapshot as if nothing had happened.
        ResyncSkipped => "resync-skipped",
        /// A watch that catches up is told the pair before the one before.
        PreviousTooOld => "previous-too-old",
        /// A watch goes live that lacks what was published while it was created.
        LiveTooEarly => "live-too-early",
        /// Watches of a stream that ended stay in the hub.
        WatchesLeftBehind => "watches-left-behind",
        /// Progress is told for watches that still catch up.
        ProgressTooEarly => "progress-too-early",
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

    use super::{Applied, CoveragePoint, Defect};

    thread_local! {
        static REACHED: RefCell<BTreeMap<CoveragePoint, u64>> = const { RefCell::new(BTreeMap::new()) };
        static INJECTED: Cell<Option<Defect>> = const { Cell::new(None) };
        static APPLIED: RefCell<Option<Vec<Applied>>> = const { RefCell::new(None) };
    }

    /// Counts that the path was taken.
    pub fn reached(path: CoveragePoint) {
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
    pub fn take_reached() -> BTreeMap<CoveragePoint, u64> {
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
pub const fn reached(_path: CoveragePoint) {}

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
