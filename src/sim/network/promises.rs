//! The terms and votes that members have announced to each other. They have to be durable by then:
//! a member that forgets them in a crash may vote, or lead, in the same term twice.
//!
//! Checked when a message is sent: two leaders or two histories arise from such a bug only after
//! another crash at the right moment, which is rare.

use std::collections::BTreeMap;

use crate::raft::{Message, MessageType, doubt};
use crate::types::MemberId;

/// What a member has announced, over all restarts.
#[derive(Default)]
struct Announced {
    term: u64,
    /// The candidate it voted for, by term.
    votes: BTreeMap<u64, u64>,
}

/// See the module.
#[derive(Default)]
pub struct Promises {
    announced: BTreeMap<MemberId, Announced>,
    /// The term in which a member has sent messages as leader during its present turn.
    leads: BTreeMap<MemberId, u64>,
    broken: Option<String>,
}

impl Promises {
    /// Records a message that a member sends.
    pub fn note(&mut self, from: MemberId, message: &Message) {
        let counts = match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgRequestVote => {
                true
            }
            MessageType::MsgAppendResponse => !message.reject,
            MessageType::MsgRequestVoteResponse => !message.reject || doubt::is_doubtful(message),
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

    /// Checks the term in which a member starts. Returns the violation.
    pub fn started(&self, member: MemberId, term: u64) -> Option<String> {
        let announced = self.announced.get(&member)?.term;
        (term < announced)
            .then(|| format!("{member} starts in term {term} and was in term {announced}"))
    }

    /// The raft thread of a member begins a turn.
    pub fn begin_turn(&mut self, member: MemberId) {
        self.leads.remove(&member);
    }

    /// The term in which a member has sent messages as leader since then.
    pub fn led_in(&self, member: MemberId) -> Option<u64> {
        self.leads.get(&member).copied()
    }

    /// Two votes of one member in one term.
    pub fn take_broken(&mut self) -> Option<String> {
        self.broken.take()
    }
}
