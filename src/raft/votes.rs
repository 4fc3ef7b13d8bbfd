//! A candidate's votes, where some are doubtful (`doubt` has the rule and why it is safe).
//!
//! raft-rs counts what it is given. So a doubtful vote is kept back until every voter has given its
//! vote, and then all are counted; and so is every vote for a candidate that is in doubt itself.

use std::collections::BTreeSet;

use raft::{Raft, StateRole, Storage};

use super::{Message, MessageType};
use crate::probe::{self, CoveragePoint};

/// The votes given in the present election, or in the round before it.
#[derive(Debug, Default)]
pub struct Votes {
    /// The kind of answer and its term.
    round: Option<(MessageType, u64)>,
    given: BTreeSet<u64>,
    kept_back: Vec<Message>,
}

impl Votes {
    /// Takes a vote that was given; returns what raft may count now.
    pub fn take<T: Storage>(
        &mut self,
        vote: Message,
        doubtful: bool,
        raft: &Raft<T>,
    ) -> Vec<Message> {
        let expected = match raft.state {
            StateRole::PreCandidate => (MessageType::MsgRequestPreVoteResponse, raft.term + 1),
            StateRole::Candidate => (MessageType::MsgRequestVoteResponse, raft.term),
            StateRole::Follower | StateRole::Leader => return Vec::new(),
        };
        if (vote.get_msg_type(), vote.term) != expected {
            return Vec::new();
        }
        if self.round != Some(expected) {
            self.round = Some(expected);
            self.given.clear();
            self.kept_back.clear();
        }
        self.given.insert(vote.from);
        let mut counted = Vec::new();
        if doubtful {
            self.kept_back.push(vote);
        } else {
            counted.push(vote);
        }
        let voters = raft.prs().conf().voters().ids();
        let has_all = |id: u64| id == raft.id || self.given.contains(&id);
        if !self.kept_back.is_empty() && voters.iter().all(has_all) {
            probe::reached(CoveragePoint::DoubtfulVotesCounted);
            counted.append(&mut self.kept_back);
        }
        counted
    }
}
