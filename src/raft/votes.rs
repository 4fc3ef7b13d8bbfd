//! A candidate's votes, where some are doubtful (`doubt` has the rule and why it is safe).
//!
//! raft-rs counts what it is given. So a doubtful vote is kept back until every voter has given its
//! vote, and then all are counted; and so is every vote for a candidate that is in doubt itself.

use std::collections::BTreeSet;

use raft::{Raft, StateRole, Storage};

use super::{Message, MessageType};
use crate::probe::{self, CoveragePoint};
use crate::types::MemberId;

/// The votes given in the present election, or in the round before it.
#[derive(Debug, Default)]
pub struct Votes {
    /// The kind of answer and its term.
    round: Option<(MessageType, u64)>,
    given: BTreeSet<u64>,
    kept_back: Vec<Message>,
    /// Whose votes are doubtful.
    doubtful: BTreeSet<u64>,
}

impl Votes {
    /// Takes a vote that was given, by or to a member in doubt; returns what raft may count now.
    pub fn take<T: Storage>(
        &mut self,
        vote: Message,
        by_doubtful: bool,
        to_doubtful: bool,
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
            self.doubtful.clear();
        }
        self.given.insert(vote.from);
        let mut counted = Vec::new();
        if by_doubtful {
            self.doubtful.insert(vote.from);
        }
        if by_doubtful || to_doubtful {
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

    /// Says what an election waits for, if it waits because of members in doubt.
    pub fn explain<T: Storage>(&self, in_doubt: bool, raft: &Raft<T>) {
        let is_of_now = match self.round {
            Some((MessageType::MsgRequestPreVoteResponse, term)) => term == raft.term + 1,
            Some((_, term)) => term == raft.term,
            None => false,
        };
        if !in_doubt && (!is_of_now || self.kept_back.is_empty()) {
            return;
        }
        let voters = raft.prs().conf().voters().ids();
        let waits_for = voters
            .iter()
            .filter(|id| *id != raft.id && !self.given.contains(id));
        let waits_for: Vec<_> = waits_for.map(|id| MemberId(id).to_string()).collect();
        let doubtful = self.doubtful.iter().copied();
        let doubtful = doubtful.chain(in_doubt.then_some(raft.id));
        let doubtful: Vec<_> = doubtful.map(|id| MemberId(id).to_string()).collect();
        tracing::warn!(
            in_doubt = doubtful.join(","),
            no_vote_of = waits_for.join(","),
            last_index = raft.raft_log.last_index(),
            last_term = raft.raft_log.last_term(),
            "no leader is elected, as raft logs may have lost their ends: it takes a majority of \
             members whose logs have not, or all; start those that are down, or, if one is lost \
             for good, the one with the highest last_term and last_index with --force-new-cluster"
        );
    }
}
