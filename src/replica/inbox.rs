//! The bounded queue into the raft thread. It takes all that has come at once, so that one sync
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

/// Proposals that may wait; more are refused with `too many requests`.
pub const MAX_WAITING: usize = 20_000;
/// The same for the bytes of their encodings.
pub const MAX_WAITING_BYTES: usize = 256 << 20;

/// What the raft thread is asked to do.
pub enum Input {
    Propose(Proposal),
    /// Replies once a linearizable read may be made.
    ReadIndex(ReadReply),
    /// From another member.
    Received(MemberId, Vec<PeerMessage>),
    /// Something that was sent to this member may be lost.
    Unreachable(MemberId),
    /// A snapshot was taken over by this member, or was not.
    SnapshotSent(MemberId, bool),
    /// A snapshot came whole, with the message that belongs to it.
    SnapshotReceived(Message, Received),
    /// One came whose state is applied here.
    SnapshotDeclined(Message),
    CheckpointMade(storage::Result<Checkpoint>),
    /// Everything up to this part is in the raft log.
    Persisted(u64),
    Applied(AppliedGroup),
    TransferLeader(MemberId),
    /// Leadership goes to whoever is furthest.
    HandOver,
    /// Entries up to this index are in a durable state of the machine.
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
#[derive(Default)]
pub struct Inbox {
    state: Mutex<QueuedInputs>,
    wake: Condvar,
}

/// Why an input was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum PushError {
    Full,
    Closed,
}

impl Inbox {
    pub fn push(&self, input: Input) -> Result<(), PushError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(PushError::Closed);
        }
        if let Some(bytes) = bounded_bytes(&input) {
            let bytes = state.bytes + bytes;
            if state.inputs.len() >= MAX_WAITING || bytes > MAX_WAITING_BYTES {
                return Err(PushError::Full);
            }
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

    /// Waits up to `timeout` for inputs and takes them all into `taken`, which must be empty.
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

    /// How many inputs wait, and the bytes of those that are bounded by them.
    #[cfg(any(test, feature = "simulation"))]
    pub fn waiting(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.inputs.len(), state.bytes)
    }

    /// Takes one last input and refuses everything after it.
    pub fn close_with(&self, last: Input) {
        let mut state = self.state.lock();
        state.inputs.push(last);
        state.closed = true;
        drop(state);
        self.wake.notify_one();
    }
}

/// What an input adds to the queue's bytes; `None` for what this member says to itself, which is
/// never refused: there is no more of it than of what it answers.
fn bounded_bytes(input: &Input) -> Option<usize> {
    match input {
        Input::Propose(proposal) => Some(proposal.encoded_bytes()),
        Input::ReadIndex(_) => Some(0),
        Input::Received(_, messages) => Some(messages.iter().map(PeerMessage::bytes).sum()),
        _ => None,
    }
}
