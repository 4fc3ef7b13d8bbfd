//! A member whose log was cut at its start does not vote before it knows that it lacks nothing.
//!
//! A torn write that is cut off was never acknowledged, if it is what it looks like. Zeros in the
//! place of one that the disk had taken look the same. Then this member has acknowledged entries
//! that it no longer has, and one elected with its vote might lack them too: what a quorum had
//! agreed upon would be gone. So in doubt it neither votes nor stands for election, and takes
//! entries as any follower does.
//!
//! A leader elected without its vote has every committed entry: of the quorum that acknowledged an
//! entry and the one that elected the leader, one member beside this one is in both. So the doubt
//! ends with an append of the leader that this log could take, where the leader has committed in
//! its own term, and all that it has committed is in this log. From then on its vote is as good as
//! any.
//!
//! A term or a vote cannot be lost so. Were it, nothing would tell of it: the member might vote
//! twice in a term, or acknowledge entries to a leader whose successor it had elected, and no answer
//! of the others but of all of them would bound the terms that it had been in. So what binds it
//! (`Persist::binds`) is followed by the mark of how far the log is synced before any message is
//! sent, and a log that ends before its mark does not open. That is one more sync for a term and a
//! vote, and none for entries. What may vanish unseen is then only entries of the term that the
//! member knows, which only that term's leader counts; and a leader that counts them and goes on
//! shows in its heartbeats that they are missing (`admit`).
//!
//! Where no leader speaks for some election timeouts, the member votes all the same, and says so:
//! where all lost power at once each may have a torn write, and if they waited for each other none
//! would ever lead. That they were what they looked like is what all then rely on.

use raft::{Raft, Storage};

use super::{Message, MessageType};
use crate::probe::{self, CoveragePoint};

/// Election timeouts without a leader: longer than a restart and an election among the others take.
const MAX_TIMEOUTS: usize = 5;

/// Whether a member withholds its vote.
#[derive(Debug, Default)]
pub struct Doubt {
    /// Ticks since a leader was last heard; `None` where there is no doubt.
    ticks: Option<usize>,
}

impl Doubt {
    pub fn begin(&mut self) {
        self.ticks = Some(0);
    }

    pub fn is_open(&self) -> bool {
        self.ticks.is_some()
    }

    /// True for a tick in which the member waits for a leader and does not stand for election. A
    /// sole voter has nobody to wait for.
    pub fn waits(&mut self, election_ticks: usize, is_sole_voter: bool) -> bool {
        let Some(ticks) = &mut self.ticks else {
            return false;
        };
        *ticks += 1;
        if *ticks <= election_ticks * MAX_TIMEOUTS && !is_sole_voter {
            return true;
        }
        self.ticks = None;
        if !is_sole_voter {
            probe::reached(CoveragePoint::DoubtGivenUp);
            tracing::warn!(
                "the raft log was cut at the start and no leader has shown since that nothing is \
                 missing; voting all the same, as the cluster cannot go on otherwise"
            );
        }
        false
    }

    /// False for what a member in doubt does not answer.
    pub fn admits(&self, message: &Message) -> bool {
        let asks_for_vote = matches!(
            message.get_msg_type(),
            MessageType::MsgRequestVote
                | MessageType::MsgRequestPreVote
                | MessageType::MsgTimeoutNow
        );
        !(asks_for_vote && self.is_open())
    }

    /// Looks at a message that raft has taken.
    pub fn stepped<T: Storage>(&mut self, message: &Shown, raft: &Raft<T>) {
        let leads = message.term == raft.term && message.from == raft.leader_id;
        if !self.is_open() || !leads {
            return;
        }
        self.ticks = Some(0);
        if message.shows_all(raft) {
            self.ticks = None;
            probe::reached(CoveragePoint::DoubtSettled);
            tracing::info!(
                commit_index = message.commit,
                "the leader has shown that nothing is missing of the raft log that was cut at the start"
            );
        }
    }
}

/// What a message says of its sender's log.
#[derive(Clone, Copy)]
pub struct Shown {
    is_append: bool,
    from: u64,
    term: u64,
    index: u64,
    log_term: u64,
    commit: u64,
}

impl Shown {
    pub fn of(message: &Message) -> Self {
        Self {
            is_append: message.get_msg_type() == MessageType::MsgAppend,
            from: message.from,
            term: message.term,
            index: message.index,
            log_term: message.log_term,
            commit: message.commit,
        }
    }

    /// Whether the log could take the append, and has all that its sender, who leads, had committed
    /// then, something of its own term among it.
    fn shows_all<T: Storage>(&self, raft: &Raft<T>) -> bool {
        let log = &raft.raft_log;
        self.is_append
            && log.match_term(self.index, self.log_term)
            && self.commit <= log.committed
            && log.match_term(self.commit, self.term)
    }
}
