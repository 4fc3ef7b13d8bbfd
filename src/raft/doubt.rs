//! A member whose log may have lost its end does not count in elections before it knows that it
//! lacks nothing.
//!
//! A torn write that is cut off at a start was never acknowledged, if it is what it looks like.
//! Zeros in the place of one that the disk had taken look the same. Then this member has
//! acknowledged entries that it no longer has, and a leader elected with its vote might lack them
//! too: what a quorum had agreed upon would be gone. So it is *in doubt*, over restarts as well,
//! until the doubt ends. It takes and acknowledges entries as any follower does.
//!
//! **What can be missing.** Entries that were acknowledged in the term T of the hard state that the
//! log was found with, or before; no term and no vote. Were one of those lost, nothing would tell of
//! it, and the member might vote twice. So what binds it (`Persist::binds`) is followed by the mark
//! of how far the log is synced before any message is sent, and a log that ends before its mark
//! does not open. That is one more sync for a term and a vote, and none for entries.
//!
//! **How it votes.** It answers a candidate as any voter does, by its log and once in a term, but
//! what it grants is a doubtful vote, and says so. A candidate is elected by a majority of votes
//! without doubt, its own included; or by the votes of all voters, some of them doubtful
//! (`votes`). Let a quorum Q have acknowledged an entry e in a term t, and a candidate be elected
//! in a later term.
//! - By a majority without doubt: one of it is in Q and has all that it acknowledged, e too. It
//!   acknowledged e before it voted, as it refuses t afterwards, and votes for no log that ends
//!   before its own. So the candidate has e. The members in doubt had no part in this, however many
//!   they are.
//! - By all: all of Q voted. As long as one of Q has kept e, the candidate has it for the same
//!   reason. This relies on no more than a minority having lost what their disks had confirmed;
//!   with more, e is nowhere. Without it a cluster that lost power as a whole, in the middle of its
//!   writes, would never again have a leader.
//!
//! So there is no time after which a member votes all the same: where a majority is in doubt and a
//! voter is away, they wait for it. If it is lost for good, nobody can know what it held; an
//! operator decides, with `--force-new-cluster`.
//!
//! **How the doubt ends.** When the last entry of the log is of a term U later than T. The leader of
//! U was elected as above, so its log had every entry that this member may have acknowledged and
//! lost, where they are committed or still can be; and a log with an entry of U is the leader's up
//! to there. What it acknowledged since its start is on its disk. An append of the leader of T
//! itself proves nothing, whatever it says is committed: it may count an acknowledgement of what is
//! lost that still is under way.
//!
//! Where the leader of T goes on to lead, its heartbeats are answered with the doubt, and it hands
//! over to another member, which leads in a later term. If it knows that entries are missing, its
//! heartbeats show that before, and the member ends (`admit`).

use std::collections::BTreeSet;

use super::{Message, MessageType};
use crate::probe::{self, CoveragePoint, Defect};

/// In the hint of an answer that says no: it is a vote, but a doubtful one, or an answer to a
/// heartbeat by a member in doubt. Who does not know it takes the vote for none.
const DOUBTFUL: u64 = (1 << 61) | 0xd0;
/// A member in doubt says what it waits for when it has not heard a leader for so many election
/// timeouts.
const SILENT_TIMEOUTS: usize = 5;
/// A leader hands over for the sake of a member in doubt once in so many election timeouts.
const TIMEOUTS_BETWEEN: usize = 10;

/// Whether this member is in doubt.
#[derive(Debug, Default)]
pub struct Doubt {
    /// The term of the log when it was opened; `None` where there is no doubt.
    term: Option<u64>,
    /// It ended, and the disk does not say so yet.
    ended: bool,
    /// Ticks since a leader was last heard.
    silent_ticks: usize,
}

impl Doubt {
    pub fn begin(&mut self, term: u64) {
        self.term = Some(term);
    }

    pub fn is_open(&self) -> bool {
        self.term.is_some()
    }

    /// Ends it where the log has an entry of a later term. (A sole voter has nobody to wait for: it
    /// elects itself, and its first entry is one.)
    pub fn look(&mut self, last_term: u64) {
        let Some(term) = self.term else {
            return;
        };
        let is_later = match probe::injected(Defect::DoubtEndsEarly) {
            true => last_term >= term,
            false => last_term > term,
        };
        if is_later {
            self.term = None;
            self.ended = true;
            probe::reached(CoveragePoint::DoubtSettled);
            tracing::info!(
                last_term,
                "the raft log has an entry of a later term: nothing that was acknowledged is missing at its end"
            );
        }
    }

    /// True once after it ended: to be written to disk behind all entries so far.
    pub fn take_ended(&mut self) -> bool {
        std::mem::take(&mut self.ended)
    }

    /// Counts a tick; says what is waited for when no leader is heard for long.
    pub fn tick(&mut self, has_leader: bool, election_ticks: usize) {
        self.silent_ticks = match has_leader {
            true => 0,
            false => self.silent_ticks.saturating_add(1),
        };
        if self.is_open() && self.silent_ticks == election_ticks * SILENT_TIMEOUTS {
            tracing::warn!(
                "the end of the raft log may be missing and no leader speaks: an election needs a \
                 majority of members without such doubt, or all of them; if one is lost for good, \
                 start the member with the longest log with --force-new-cluster"
            );
        }
    }

    /// False for what a member in doubt does not take: it does not lead at a leader's word.
    pub fn admits(&self, message: &Message) -> bool {
        !(self.is_open() && message.get_msg_type() == MessageType::MsgTimeoutNow)
    }

    /// Has a message of this member say that it is in doubt, if that matters to its receiver.
    pub fn mark(&self, message: &mut Message) {
        let matters = match message.get_msg_type() {
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
                !message.reject && !probe::injected(Defect::DoubtfulVoteCounts)
            }
            MessageType::MsgHeartbeatResponse => Some(message.term) == self.term,
            _ => false,
        };
        if self.is_open() && matters {
            message.reject = true;
            message.reject_hint = DOUBTFUL;
        }
    }
}

/// True for an answer that says its sender is in doubt.
pub fn is_doubtful(message: &Message) -> bool {
    message.reject && message.reject_hint == DOUBTFUL && is_answer(message)
}

fn is_answer(message: &Message) -> bool {
    matches!(
        message.get_msg_type(),
        MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgHeartbeatResponse
    )
}

/// Makes such an answer what raft expects; true if it was one.
pub fn unmark(message: &mut Message) -> bool {
    let doubtful = is_doubtful(message);
    if doubtful {
        message.reject = false;
        message.reject_hint = 0;
    }
    doubtful
}

/// The members in doubt that a leader knows, and whether to hand over for their sake.
#[derive(Debug, Default)]
pub struct InDoubt {
    /// Of this term.
    term: u64,
    members: BTreeSet<u64>,
    /// Ticks before it is tried again.
    pause_ticks: usize,
}

impl InDoubt {
    /// A heartbeat of this member, which leads, was answered.
    pub fn note(&mut self, term: u64, from: u64, doubtful: bool) {
        if self.term != term {
            self.term = term;
            self.members.clear();
        }
        if doubtful {
            self.members.insert(from);
        } else {
            self.members.remove(&from);
        }
    }

    pub fn has(&self, term: u64, member: u64) -> bool {
        self.term == term && self.members.contains(&member)
    }

    pub fn tick(&mut self) {
        self.pause_ticks = self.pause_ticks.saturating_sub(1);
    }

    /// True now and then while there are such members.
    pub fn wants_later_term(&mut self, term: u64, election_ticks: usize) -> bool {
        let wants = self.term == term && !self.members.is_empty() && self.pause_ticks == 0;
        if wants {
            self.pause_ticks = election_ticks * TIMEOUTS_BETWEEN;
        }
        wants
    }
}
