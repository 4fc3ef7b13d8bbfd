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
//!   reason. This relies on no more than a minority of the candidate's voters having lost what their
//!   disks had confirmed; with more, e may be nowhere. Without it a cluster that lost power as a
//!   whole, in the middle of its writes, would never again have a leader.
//!
//! Members change one voter at a time. Where Q and the candidate's voters are of neighbouring
//! configurations, Q and a majority still share a member; and of n voters, at least half are in Q,
//! more than a minority. A learner is in doubt as any member is: its vote may be asked for later.
//!
//! So there is no time after which a member votes all the same: where a majority is in doubt and a
//! voter is away, they wait for it. If it is lost for good, nobody can know what it held; an
//! operator decides, with `--force-new-cluster`.
//!
//! **How the doubt ends.** When the last entry of the log is of a term U later than T. The leader of
//! U was elected as above, so its log had every entry that this member may have acknowledged and
//! lost, where they are committed or still can be; and a log with an entry of U is the leader's up
//! to there. So it is when the last entry is that of a received state. What it acknowledged since
//! its start is on its disk. A vote is of the log that it was given with: it stays doubtful though
//! the doubt ends before it is sent. An append of the leader of T itself proves nothing, whatever
//! it says is committed: it may count an acknowledgement of what is lost that still is under way.
//!
//! Where the leader of T continues to lead, its heartbeats are answered with the doubt, and it
//! hands over to a member without doubt, which leads in a later term. Where there is none, as in a
//! cluster of two, the doubt stays until the next election, in which all of two have to vote
//! anyway. If the leader knows that entries are missing, its heartbeats show that before, and the
//! member ends (`admit`).
//!
//! **Who is not in doubt.** A sole voter elects itself at once: it has nobody to wait for, and what
//! it lost is lost. A process that was killed on a machine that ran on left all that it wrote in the
//! machine's memory (`storage::raft_log` knows by the start of the machine); only a write that was
//! cut off in its middle leaves a doubt there too, as zeros that somebody wrote look the same.

use std::collections::BTreeSet;

use super::{Message, MessageType};
use crate::probe::{self, CoveragePoint, Defect};

/// In the hint of an answer that says no: it is a vote, but a doubtful one, or an answer to a
/// heartbeat by a member in doubt. Who does not know it takes the vote for none.
const DOUBTFUL: u64 = (1 << 61) | 0xd0;
/// A member says what an election waits for when it has not heard a leader for so many election
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
    /// There are other voters, and the log of the process says that it is in doubt.
    is_announced: bool,
    /// Ticks since a leader was last heard.
    silent_ticks: usize,
}

impl Doubt {
    /// A sole voter has nobody to wait for: it elects itself.
    pub fn begin(&mut self, term: u64, needs_others: bool) {
        self.term = Some(term);
        self.is_announced = needs_others;
        if needs_others {
            tracing::warn!(
                term,
                "the raft log may have lost its end: until it has an entry of a later term, this \
                 member's vote counts only where all members vote"
            );
        }
    }

    pub fn is_open(&self) -> bool {
        self.term.is_some()
    }

    /// Ends it where the log has an entry of a later term, such as the first of a sole voter.
    pub fn end_if_later(&mut self, last_term: u64) {
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
            if self.is_announced {
                tracing::info!(
                    last_term,
                    "the raft log has an entry of a later term: its end is not in doubt any more"
                );
            }
        }
    }

    /// True once after it ended: to be written to disk behind all entries so far.
    pub fn take_ended(&mut self) -> bool {
        std::mem::take(&mut self.ended)
    }

    /// Counts a tick; true once in a time without a leader, when it has become long.
    pub fn tick(&mut self, has_leader: bool, election_ticks: usize) -> bool {
        self.silent_ticks = match has_leader {
            true => 0,
            false => self.silent_ticks.saturating_add(1),
        };
        self.silent_ticks == election_ticks * SILENT_TIMEOUTS
    }

    /// False for what a member in doubt does not take: it does not lead at a leader's word.
    pub fn admits(&self, message: &Message) -> bool {
        !(self.is_open() && message.get_msg_type() == MessageType::MsgTimeoutNow)
    }

    /// Has a message of this member say that it is in doubt, if that matters to its receiver. To be
    /// called when the message is made: when it is sent, the doubt may have ended by an entry that
    /// the log lacked before.
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
