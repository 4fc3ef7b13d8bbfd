//! What members tell each other of terms and votes. It has to be on their disks by then: whoever
//! forgets it in a crash may vote, or lead, in a term a second time.
//!
//! Looked at where it leaves a member: that two leaders or two histories come of it takes another
//! crash at the right moment, and is seldom seen.

use std::collections::BTreeMap;

use crate::raft::{Message, MessageType};
use crate::types::MemberId;

/// What a member announced others, in all its lives.
#[derive(Default)]
struct Announced {
    term: u64,
    /// Whom it voted for, by term.
    votes: BTreeMap<u64, u64>,
}

/// See the module.
#[derive(Default)]
pub struct Promises {
    announced: BTreeMap<MemberId, Announced>,
    /// The term in which a member spoke as leader in its present turn.
    leads: BTreeMap<MemberId, u64>,
    broken: Option<String>,
}

impl Promises {
    /// Takes note of a message that leaves a member.
    pub fn note(&mut self, from: MemberId, message: &Message) {
        let counts = match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgRequestVote => {
                true
            }
            MessageType::MsgAppendResponse | MessageType::MsgRequestVoteResponse => !message.reject,
            _ => false,
        };
        if !counts {
            return;
        }
        if matches!(
            message.get_msg_type(),
            MessageType::MsgAppend | MessageType::MsgHeartbeat
        ) {
            self.leads.insert(from, message.term);
        }
        let announced = self.announced.entry(from).or_default();
        announced.term = announced.term.max(message.term);
        let vote = match message.get_msg_type() {
            MessageType::MsgRequestVote => from.0,
            MessageType::MsgRequestVoteResponse => message.to,
            _ => return,
        };
        let before = *announced.votes.entry(message.term).or_insert(vote);
        if before != vote {
            let term = message.term;
            self.broken = Some(format!(
                "{from} voted for {before:x} and for {vote:x} in term {term}"
            ));
        }
    }

    /// A member starts in a term. Says what is wrong with that.
    pub fn started(&self, member: MemberId, term: u64) -> Option<String> {
        let announced = self.announced.get(&member)?.term;
        (term < announced)
            .then(|| format!("{member} starts in term {term} and was in term {announced}"))
    }

    /// The raft thread of a member begins a turn.
    pub fn begin_turn(&mut self, member: MemberId) {
        self.leads.remove(&member);
    }

    /// The term in which a member spoke as leader since then.
    pub fn led_in(&self, member: MemberId) -> Option<u64> {
        self.leads.get(&member).copied()
    }

    /// Two votes of one member in one term.
    pub fn take_broken(&mut self) -> Option<String> {
        self.broken.take()
    }
}
