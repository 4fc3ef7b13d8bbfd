//! Routes between raft and the rest, without I/O: proposals in; entries to persist, entries to
//! apply and replies out.
//!
//! A proposal is remembered by the index and term it was proposed at. The entry that is
//! committed there is the proposal exactly if its term is the same; otherwise another leader
//! put its own entry in its place.

use std::collections::VecDeque;

use prost::Message as _;

use crate::error::Error;
use crate::proto::etcdserverpb::InternalRaftRequest;
use crate::proto::membershippb::RaftAttributes;
use crate::raft::{
    Committed, CommittedKind, ConfChange, ConfChangeType, Message, Persist, Replica, replica,
};
use crate::state::Response;
use crate::state::machine::{Entry, Payload};
use crate::types::MemberId;

/// Called once with what became of a proposal; dropped uncalled where nobody knows.
pub type Reply = Box<dyn FnOnce(Result<Response, Error>) + Send>;

/// Something to be agreed upon.
pub struct Proposal {
    pub what: Proposed,
    /// Only to be proposed while this member leads in this term.
    pub fence_term: Option<u64>,
    pub reply: Reply,
}

impl Proposal {
    /// What it takes in the log, about.
    pub fn encoded_bytes(&self) -> usize {
        self.what.encoded_bytes()
    }
}

pub enum Proposed {
    /// The request and its encoding.
    Request(Box<InternalRaftRequest>, Vec<u8>),
    /// A member's new peer URLs and role.
    Member(MemberId, RaftAttributes),
}

impl Proposed {
    /// What it takes in the log, about.
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Proposed::Request(_, encoded) => encoded.len(),
            Proposed::Member(..) => 0,
        }
    }
}

struct Waiter {
    index: u64,
    term: u64,
    request: Option<Box<InternalRaftRequest>>,
    reply: Reply,
}

/// What has to be done now, in this order.
#[derive(Default)]
pub struct Work {
    pub messages: Vec<Message>,
    pub persist: Option<Persist>,
    pub entries: Vec<Entry>,
    /// Of each entry, whoever waits for it here.
    pub replies: Vec<Option<Reply>>,
}

/// See the module.
pub struct Core {
    replica: Replica,
    waiters: VecDeque<Waiter>,
}

impl Core {
    pub fn new(replica: Replica) -> Self {
        Self {
            replica,
            waiters: VecDeque::new(),
        }
    }

    pub fn tick(&mut self) {
        self.replica.tick();
    }

    pub fn campaign(&mut self) -> Result<(), raft::Error> {
        self.replica.campaign()
    }

    pub fn status(&self) -> replica::Status {
        self.replica.status()
    }

    /// Proposes, or replies why not.
    pub fn propose(&mut self, proposal: Proposal) {
        let status = self.replica.status();
        let fenced = proposal
            .fence_term
            .is_some_and(|term| term != status.term || !status.is_leader);
        if fenced {
            (proposal.reply)(Err(Error::NotLeader));
            return;
        }
        let (proposed, request) = match proposal.what {
            Proposed::Request(request, encoded) => {
                (self.replica.propose(encoded).map(|_| ()), Some(request))
            }
            Proposed::Member(member, raft) => {
                let change = member_change(member, &raft);
                (self.replica.propose_conf_change(change), None)
            }
        };
        if let Err(error) = proposed {
            (proposal.reply)(Err(error));
            return;
        }
        self.waiters.push_back(Waiter {
            index: self.replica.status().last_index,
            term: status.term,
            request,
            reply: proposal.reply,
        });
    }

    /// The next work; `None` when there is none. Must be called again until then.
    pub fn work(&mut self) -> Result<Option<Work>, raft::Error> {
        let Some(output) = self.replica.output() else {
            return Ok(None);
        };
        let mut work = Work {
            messages: output.messages,
            persist: output.persist,
            entries: Vec::with_capacity(output.committed.len()),
            replies: Vec::with_capacity(output.committed.len()),
        };
        for committed in output.committed {
            let waiter = self.take_waiter(committed.index, committed.term);
            let (request, reply) = match waiter {
                Some(waiter) => (waiter.request, Some(waiter.reply)),
                None => (None, None),
            };
            work.entries.push(self.entry(committed, request)?);
            work.replies.push(reply);
        }
        Ok(Some(work))
    }

    /// Finds who waits for the entry; whoever waits for an earlier one lost its place to
    /// another leader.
    fn take_waiter(&mut self, index: u64, term: u64) -> Option<Waiter> {
        while self.waiters.front()?.index <= index {
            let waiter = self.waiters.pop_front()?;
            if waiter.index == index && waiter.term == term {
                return Some(waiter);
            }
            (waiter.reply)(Err(Error::LeaderChanged));
        }
        None
    }

    fn entry(
        &mut self,
        committed: Committed,
        request: Option<Box<InternalRaftRequest>>,
    ) -> Result<Entry, raft::Error> {
        let payload = match (committed.kind, request) {
            (CommittedKind::Empty, _) => Payload::Empty,
            (CommittedKind::Request(_), Some(request)) => Payload::Decoded(request),
            (CommittedKind::Request(bytes), None) => Payload::Request(bytes),
            (CommittedKind::ConfChange(change), _) => self.membership(&change)?,
        };
        Ok(Entry {
            index: committed.index,
            term: committed.term,
            payload,
        })
    }

    fn membership(&mut self, change: &ConfChange) -> Result<Payload, raft::Error> {
        let conf_state = self.replica.apply_conf_change(change)?;
        let removed = change.change_type == ConfChangeType::RemoveNode as i32;
        // The context was encoded by `member_change`; one that cannot be read changes no URL.
        let raft = RaftAttributes::decode(change.context.as_slice())
            .ok()
            .filter(|_| !removed);
        Ok(Payload::Membership {
            member: MemberId(change.node_id),
            raft,
            conf_state: conf_state.into(),
        })
    }

    /// Everything up to the persist `number` is on disk.
    pub fn persisted(&mut self, number: u64) {
        self.replica.persisted(number);
    }

    /// Entries up to `index` are applied.
    pub fn applied(&mut self, index: u64) {
        self.replica.applied(index);
    }

    pub fn is_sole_voter(&self) -> bool {
        self.replica.is_sole_voter()
    }

    /// Replies to all who wait that the member stops.
    pub fn stop(&mut self) {
        for waiter in self.waiters.drain(..) {
            (waiter.reply)(Err(Error::Stopped));
        }
    }
}

/// raft-rs has no change that leaves the voters alone: a voter is added again as a voter, a
/// learner as a learner, which changes nothing for raft; the attributes travel as context.
fn member_change(member: MemberId, raft: &RaftAttributes) -> ConfChange {
    let change_type = if raft.is_learner {
        ConfChangeType::AddLearnerNode
    } else {
        ConfChangeType::AddNode
    };
    ConfChange {
        change_type: change_type as i32,
        node_id: member.0,
        context: raft.encode_to_vec(),
        ..Default::default()
    }
}
