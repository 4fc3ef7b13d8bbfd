//! Hooks of the simulator: coverage points of rare paths, the entries that members apply, and
//! deliberate defects, which it has to find.
//!
//! In a server all of this compiles to nothing. In the simulator it belongs to the calling thread,
//! so that several worlds can run side by side.

use bytes::Bytes;

/// Declares an enum with a name in words for each of its values.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$one:meta])* $value:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        // Some are in the simulated network, which a server does not contain.
        #[cfg_attr(not(any(test, feature = "simulation")), allow(dead_code))]
        pub enum $name {
            $($(#[$one])* $value,)*
        }

        #[cfg(any(test, feature = "simulation"))]
        impl $name {
            pub const ALL: &[$name] = &[$($name::$value,)*];

            /// Its name in reports and on command lines.
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$value => $text,)*
                }
            }
        }
    };
}

named! {
    /// Rarely taken paths.
    CoveragePoint {
        UnlistedPeerAnswered => "unlisted peer answered",
        LeaderUnheard => "leader that waited for its term to be on disk",
        SnapshotInstalled => "received state installed",
        SnapshotUnwanted => "received state not needed",
        StateTakenUpAfterCrash => "received state taken up after a crash",
        ProposalsLostFromSight => "proposals lost from sight by a received state",
        ConflictTruncated => "log conflict truncated",
        LogCut => "log cut",
        SegmentDeleted => "log segment deleted",
        TailTorn => "torn tail cut at a start",
        ShortLogRefused => "log refused whose file was cut short",
        LostEndRefused => "log refused that had lost its end",
        DoubtSettled => "doubt about a log's end ended by a leader of a later term",
        DoubtfulVotesCounted => "doubtful votes counted, as all voters had voted",
        DoubtHandedOver => "leader handed over for a member in doubt",
        DoubtKept => "doubt about a log's end kept over a restart",
        DamagedLogRefused => "member not started, as its log was damaged",
        DamagedMemberReplaced => "member with a damaged log replaced",
        EndLostUnseen => "member started whose log had lost its end unseen",
        EndLostNoticed => "lost end noticed by what the leader knew",
        AppendDropped => "append dropped while the disk lags",
        LearnerPromoted => "learner promoted",
        MemberRemoved => "member removed itself",
        ChangeRefused => "membership change refused when applied",
        ChangeWaited => "membership change waited for another",
        LeaderHandedOver => "leader handed over",
        LeaderSteppedAside => "leader stepped aside for its removal",
        LeaderHandedOverForDisk => "leader handed over for its disk",
        LeaderGivenUp => "silent leader given up early",
        ElectionAdvanced => "first election brought forward",
        SoleVoterElected => "sole voter elected itself at its start",
        ProposalQueued => "proposal waited for a leader",
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
        QueuedEventGone => "queued event was gone, its watch catches up",
        WatchCaughtUp => "watch caught up",
        WatchCompacted => "watch cut by compaction",
        WatchEndedByAuth => "watch ended whose user had lost the right to it",
        WatchResynced => "watches resumed over a received state",
        RevisionOverflowed => "revision larger than a watch queue",
        LargeRevision => "revision larger than a page of history",
        CompactionResumed => "compaction resumed after a restart",
        CompactionOfSnapshot => "compaction resumed in a received state",
        QuotaRaised => "alarm for space raised",
        DeleteSliced => "deletion written in several batches",
        TxnSliced => "transaction written in several batches",
        TxnTakenBack => "transaction taken back that a state held a part of",
        DeleteResumed => "deletion finished that a state held a part of",
        CompactionHashMet => "hash of a compaction met one of the same history",
        ResponseSplit => "watch response split",
        CountAnswered => "keys counted without a walk over all of them",
        CountCorrected => "count of keys corrected by the changes since",
        CountsTooFar => "count of keys too far from its revision",
        CountsTakenUp => "counts of keys taken up at a start",
        CountsBuilt => "counts of keys made anew",
        LockKeyGone => "lock refused whose key had gone while it waited",
        WaitingKeyTakenBack => "key taken back of a call that ended while it waited",
    }
}

named! {
    /// Deliberate defects: plausible mistakes.
    Defect {
        /// A start dials the members in its flushed state, ignoring the log.
        MembersBeforeReplay => "members-before-replay",
        /// A caller that the state does not list is not answered.
        UnlistedUnanswered => "unlisted-unanswered",
        /// The leader counts its own entries as durable before they are.
        AnswerBeforeSync => "answer-before-sync",
        /// A follower acknowledges entries before they are durable.
        AcknowledgeBeforeSync => "acknowledge-before-sync",
        /// The log is never synced.
        LogUnsynced => "log-unsynced",
        /// A restart forgets the member's vote.
        VoteForgotten => "vote-forgotten",
        /// A part without a hard state drops that of the part before it.
        HardStateDropped => "hard-state-dropped",
        /// The last frame found at a start is not synced before it counts as durable.
        FoundUnsynced => "found-unsynced",
        /// A file of the log that was cut short is treated as a torn tail.
        ShortFileTaken => "short-file-taken",
        /// A start ignores how far the log was synced.
        SyncedMarkIgnored => "synced-mark-ignored",
        /// A member whose log was cut at its start votes as any other.
        DoubtIgnored => "doubt-ignored",
        /// The doubt about a log's end is over after a restart.
        DoubtForgotten => "doubt-forgotten",
        /// What a member in doubt votes counts as any vote.
        DoubtfulVoteCounts => "doubtful-vote-counts",
        /// An entry of the term that it was in ends a member's doubt.
        DoubtEndsEarly => "doubt-ends-early",
        /// Terms and votes are lost with an end of the log that nobody misses.
        VoteUnmarked => "vote-unmarked",
        /// Entries that conflict with the leader's stay in the log as read by raft.
        ConflictKept => "conflict-kept",
        /// The log is truncated beyond the flushed index.
        CutBeyondDurable => "cut-beyond-durable",
        /// The applied index is missing in the batch.
        AppliedIndexLeftOut => "applied-index-left-out",
        /// A restarted member does not know its applied index.
        AppliedIndexUnknown => "applied-index-unknown",
        /// A received state is switched to before the log is reset.
        AdoptBeforeReset => "adopt-before-reset",
        /// A proposal is answered before the batch is written.
        AnswerBeforeWrite => "answer-before-write",
        /// The view is taken before the batch is written.
        ViewBeforeWrite => "view-before-write",
        /// A read takes its view before its read index.
        ViewTakenEarly => "view-taken-early",
        /// A leader reads without asking a quorum.
        ReadWithoutQuorum => "read-without-quorum",
        /// A sole voter with a learner reads without asking a quorum.
        LearnerOverlooked => "learner-overlooked",
        /// A read joins a round that started before it.
        ReadJoinsRound => "read-joins-round",
        /// A response to an earlier round counts for the present one.
        AnswerOfEarlierRound => "answer-of-earlier-round",
        /// A read that waits for an entry is woken by the next one.
        ReadWakesLate => "read-wakes-late",
        /// A read does not wait until the read index is applied.
        ReadBeforeApplied => "read-before-applied",
        /// Raft enacts a change of membership that was refused at apply.
        RefusedChangeMade => "refused-change-made",
        /// A refusal is not checked against the term of its proposal.
        RefusalUnchecked => "refusal-unchecked",
        /// A forwarded proposal is proposed again when its leader is lost, though it may still be
        /// applied.
        ForwardedTwice => "forwarded-twice",
        /// A lost forwarded proposal is never proposed again.
        ForwardedKept => "forwarded-kept",
        /// A revocation is not fenced to its term.
        RevokeUnfenced => "revoke-unfenced",
        /// A new leader does not restart the leases.
        LeasesNotRestarted => "leases-not-restarted",
        /// A new leader does not become the lessor.
        LeasesNotOwned => "leases-not-owned",
        /// A leader renews leases without asking a quorum.
        RenewalWithoutQuorum => "renewal-without-quorum",
        /// A renewal does not reset the checkpoint of the lease.
        CheckpointKept => "checkpoint-kept",
        /// Leases are not extended after a standstill.
        StandstillForgotten => "standstill-forgotten",
        /// A key that is attached to another lease stays attached to the old one.
        KeyStaysAttached => "key-stays-attached",
        /// A revocation misses the keys attached in its own batch.
        RevokeMissesBatch => "revoke-misses-batch",
        /// A transaction compares with the state before its batch.
        CompareMissesBatch => "compare-misses-batch",
        /// A read at a past revision within a transaction misses its batch.
        PastReadMissesBatch => "past-read-misses-batch",
        /// Entries are executed without a check of their proposer.
        ApplyUnchecked => "apply-unchecked",
        /// Of a branch of a transaction the first operation is judged.
        TxnJudgedInPart => "txn-judged-in-part",
        /// Nested transactions are not judged.
        NestedUnchecked => "nested-unchecked",
        /// A put shows the previous pair to who may only write.
        PrevKvUnchecked => "prev-kv-unchecked",
        /// A lease is revoked, with its keys, without a check of the right to write them.
        LeaseKeysUnchecked => "lease-keys-unchecked",
        /// A lease is renewed without a check of the right to write its keys.
        RenewalUnchecked => "renewal-unchecked",
        /// Leases are listed without a check of the right to read their keys.
        ListingUnchecked => "listing-unchecked",
        /// The end of a permitted range is permitted.
        RangeEndPermitted => "range-end-permitted",
        /// A token of an earlier auth revision is accepted.
        OldRevisionAccepted => "old-revision-accepted",
        /// The view shows users and roles a group of entries late.
        RightsShownLate => "rights-shown-late",
        /// Running watches are not judged again.
        WatchNotJudgedAgain => "watch-not-judged-again",
        /// A restart knows users and not the roles they hold.
        RightsLostAtStart => "rights-lost-at-start",
        /// Entries of a member for itself look like those of nobody.
        MemberUnmarked => "member-unmarked",
        /// A deletion that is resumed counts its keys from the start.
        SliceResumedFromStart => "slice-resumed-from-start",
        /// The keys of the last batch of a transaction are not among those that watches look for.
        LastPartUnseen => "last-part-unseen",
        /// A part of a transaction stays in the state that is opened.
        PartKept => "part-kept",
        /// The view shows the batches of a deletion one by one.
        PartialDeleteVisible => "partial-delete-visible",
        /// A compaction revision is not compared with the last one.
        CompactionUnordered => "compaction-unordered",
        /// A compaction removes what is live at its revision.
        CompactionTooFar => "compaction-too-far",
        /// A compaction removes the tombstones of its own revision.
        TombstoneTakenEarly => "tombstone-taken-early",
        /// Requests that wait for a compaction are not answered at its end.
        CompactionUnannounced => "compaction-unannounced",
        /// A compaction that resumed after a restart, or in a received state, keeps the hash of
        /// what is left.
        HashTooLate => "hash-too-late",
        /// A compaction never removes tombstones.
        TombstoneForgotten => "tombstone-forgotten",
        /// The hash of a compaction and a later one of the same history have to be equal.
        CompactionHashAlone => "compaction-hash-alone",
        /// A failed flush counts as done.
        FlushFailureMissed => "flush-failure-missed",
        /// A page of the catch-up ends within a revision.
        PageTorn => "page-torn",
        /// Of a revision that is larger than a page the first part is sent.
        LargeRevisionCut => "large-revision-cut",
        /// Live watches get only the first change of a revision.
        DeliveryTorn => "delivery-torn",
        /// Events for a full queue are dropped.
        EventsDropped => "events-dropped",
        /// A queue does not count its items: a watch that fell behind catches up before they are sent.
        PageBeforeQueue => "page-before-queue",
        /// Watches continue over an installed state without catching up.
        ResyncSkipped => "resync-skipped",
        /// A watch that catches up gets the pair before the previous one.
        PreviousTooOld => "previous-too-old",
        /// A watch becomes live without what was published during its creation.
        LiveTooEarly => "live-too-early",
        /// Watches of an ended stream stay in the hub.
        WatchesLeftBehind => "watches-left-behind",
        /// Progress is reported for watches that are catching up.
        ProgressTooEarly => "progress-too-early",
        /// Who waited for a lock does not check whether its own key is still there.
        OwnKeyUnchecked => "own-key-unchecked",
        /// Who waited for a lock takes a key that was made anew behind others for its own.
        OtherKeyTaken => "other-key-taken",
        /// Who finds no key before its own does not see whether its own is there.
        FirstUnseen => "first-unseen",
        /// Who waits gets its turn when the nearest key before its own is gone.
        NearestAlone => "nearest-alone",
        /// A put of a key before its own ends the turn of that key.
        PutEndsTurn => "put-ends-turn",
        /// What was read of a name counts for the revision at which that was done.
        KnownTooNew => "known-too-new",
        /// Keys that were created since do not change a count.
        KeyNotCounted => "key-not-counted",
        /// Counts of one revision are those of any other.
        RecordsNotCaughtUp => "records-not-caught-up",
    }
}

/// An entry that a member applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    pub member: u64,
    pub index: u64,
    pub term: u64,
    pub payload: AppliedPayload,
}

/// Encoded, as in the log.
#[derive(Clone, Debug, PartialEq)]
pub enum AppliedPayload {
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

    /// True if this thread's world has the defect.
    #[must_use]
    pub fn injected(defect: Defect) -> bool {
        INJECTED.get() == Some(defect)
    }

    /// Records what a member applies, if it is being collected.
    pub fn applied(entries: impl FnOnce() -> Vec<Applied>) {
        APPLIED.with_borrow_mut(|applied| {
            if let Some(applied) = applied {
                applied.extend(entries());
            }
        });
    }

    /// How often each path was taken on this thread since the last call.
    #[must_use]
    pub fn take_reached() -> BTreeMap<CoveragePoint, u64> {
        REACHED.take()
    }

    /// Sets the defect of this thread's worlds, or none.
    pub fn inject(defect: Option<Defect>) {
        INJECTED.set(defect);
    }

    /// What was applied on this thread since the last call; collected from the first call on.
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

/// True if a simulated world has the defect.
#[cfg(not(any(test, feature = "simulation")))]
#[inline(always)]
#[must_use]
pub const fn injected(_defect: Defect) -> bool {
    false
}

/// Records what a member applies, in a simulation.
#[cfg(not(any(test, feature = "simulation")))]
#[inline(always)]
pub fn applied(_entries: impl FnOnce() -> Vec<Applied>) {}
