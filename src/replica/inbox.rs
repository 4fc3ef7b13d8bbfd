//! The bounded queue into the raft thread, which takes all queued inputs at once, so that one sync
//! serves many proposals.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::proposal::Proposal;
use super::reads::ReadReply;
use super::state_store::{Checkpoint, Received};
use super::work::AppliedGroup;
use crate::raft::Message;
use crate::storage;
use crate::transport::PeerMessage;
use crate::types::MemberId;

/// Proposals that may be queued; more are refused with `too many requests`.
pub const MAX_WAITING: usize = 20_000;

/// Inputs of the raft thread.
pub enum Input {
    Propose(Proposal),
    /// Replies once a linearizable read may be executed.
    ReadIndex(ReadReply),
    /// From another member.
    Received(MemberId, Vec<PeerMessage>),
    /// Something sent to this member may have been lost.
    Unreachable(MemberId),
    /// Whether a peer installed a checkpoint that this member sent.
    SnapshotSent(MemberId, bool),
    /// A state was received completely, with its raft snapshot message.
    SnapshotReceived(Message, Received),
    /// A raft snapshot message whose entry is already applied here.
    SnapshotDeclined(Message),
    CheckpointMade(storage::Result<Checkpoint>),
    /// Everything up to this part is durable in the raft log.
    Persisted(u64),
    Applied(AppliedGroup),
    TransferLeader(MemberId),
    /// Transfers leadership to the most up-to-date member.
    HandOver,
    /// Entries up to this index are in the flushed state.
    Flushed(u64),
    Stop,
}

#[derive(Default)]
struct QueuedInputs {
    inputs: Vec<Input>,
    bytes: usize,
    sleeping: bool,
    closed: bool,
}

/// See the module.
pub struct Inbox {
    /// What the encodings of what waits may take; one alone may take more.
    max_waiting_bytes: usize,
    state: Mutex<QueuedInputs>,
    wake: Condvar,
}

/// Why an input was refused.
#[derive(Debug, PartialEq, Eq)]
pub enum PushError {
    Full,
    Closed,
}

impl Inbox {
    pub fn new(max_waiting_bytes: usize) -> Self {
        Self {
            max_waiting_bytes,
            state: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    pub fn push(&self, input: Input) -> Result<(), PushError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(PushError::Closed);
        }
        if let Some(bytes) = bounded_bytes(&input) {
            let is_too_much = state.bytes > 0 && state.bytes + bytes > self.max_waiting_bytes;
            if state.inputs.len() >= MAX_WAITING || is_too_much {
                return Err(PushError::Full);
            }
            let bytes = state.bytes + bytes;
            state.bytes = bytes;
        }
        state.inputs.push(input);
        if state.sleeping {
            state.sleeping = false;
            drop(state);
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Waits up to `timeout` for inputs and moves them all into `taken`, which must be empty.
    pub fn take(&self, timeout: Duration, taken: &mut Vec<Input>) {
        let mut state = self.state.lock();
        if state.inputs.is_empty() && !timeout.is_zero() {
            state.sleeping = true;
            self.wake.wait_for(&mut state, timeout);
            state.sleeping = false;
        }
        std::mem::swap(&mut state.inputs, taken);
        state.bytes = 0;
    }

    #[cfg(any(test, feature = "simulation"))]
    pub fn max_waiting_bytes(&self) -> usize {
        self.max_waiting_bytes
    }

    /// The number of queued inputs, and the bytes of the bounded ones.
    #[cfg(any(test, feature = "simulation"))]
    pub fn waiting(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.inputs.len(), state.bytes)
    }

    /// Queues a last input and refuses all later ones.
    pub fn close_with(&self, last: Input) {
        let mut state = self.state.lock();
        state.inputs.push(last);
        state.closed = true;
        drop(state);
        self.wake.notify_one();
    }
}

/// The bytes that an input adds to the queue; `None` for inputs from this member's own threads,
/// which are never refused: they answer earlier outputs and are bounded by them.
fn bounded_bytes(input: &Input) -> Option<usize> {
    match input {
        Input::Propose(proposal) => Some(proposal.encoded_bytes()),
        Input::ReadIndex(_) => Some(0),
        Input::Received(_, messages) => Some(messages.iter().map(PeerMessage::bytes).sum()),
        _ => None,
    }
}
