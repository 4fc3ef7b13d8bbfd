//! What flies between members, and for how long.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::error::Error;
use crate::proto::etchedpeer::{PeerRequest, PeerResponse};
use crate::raft::Message;
use crate::sim::random::Random;
use crate::transport::{PeerMessage, SnapshotDir};
use crate::types::MemberId;

/// Where the answer to a question goes.
pub type AnswerTo = oneshot::Sender<Result<PeerResponse, Error>>;

/// One life of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incarnation {
    pub member: MemberId,
    pub number: u64,
}

/// Something on its way to a member.
pub enum Payload {
    /// From another member.
    Messages(Vec<PeerMessage>),
    Snapshot {
        message: Message,
        files: Arc<SnapshotDir>,
        /// Tells this transfer from others between the same two.
        number: u64,
        /// The transfer breaks on its way.
        breaks: bool,
    },
    PeerRequest {
        question: PeerRequest,
        answer_to: AnswerTo,
    },
    PeerResponse {
        answer: Result<PeerResponse, Error>,
        answer_to: AnswerTo,
    },
    /// What its own network tells a member, in a peer's name or not.
    Refused {
        peer: MemberId,
        messages: Vec<PeerMessage>,
    },
    Unreachable(MemberId),
    SnapshotSent {
        to: MemberId,
        number: u64,
        taken: bool,
    },
    Removed,
    /// A member that was held under this number is found silent: to nobody.
    Silence {
        member: MemberId,
        number: u64,
    },
}

/// Payload with its way.
pub struct InFlight {
    pub from: Incarnation,
    pub to: Incarnation,
    pub payload: Payload,
}

impl InFlight {
    pub fn to_nobody(payload: Payload) -> Self {
        Self {
            from: Incarnation::default(),
            to: Incarnation::default(),
            payload,
        }
    }

    /// What has to pass a link, and counts for its bound.
    pub fn is_on_a_link(&self) -> bool {
        !matches!(
            self.payload,
            Payload::Refused { .. }
                | Payload::Unreachable(_)
                | Payload::SnapshotSent { .. }
                | Payload::Removed
                | Payload::Silence { .. }
        )
    }
}

const US: u64 = 1_000;
const MS: u64 = 1_000_000;

/// How long something takes.
#[derive(Clone, Copy, Debug)]
pub enum Delay {
    /// As a message does on a good day.
    Usual,
    /// As one that is held up.
    Slow,
    /// Until a transfer of files is done.
    Transfer,
    /// Until one's own side notices something.
    Notice,
    /// Until a peer that says nothing is given up.
    Silence,
}

impl Delay {
    pub fn draw(self, random: &mut Random) -> u64 {
        match self {
            Self::Usual => random.between(50 * US, 500 * US),
            // Each order of magnitude as often as the other.
            Self::Slow => match random.below(3) {
                0 => random.between(MS, 10 * MS),
                1 => random.between(10 * MS, 100 * MS),
                _ => random.between(100 * MS, 2_000 * MS),
            },
            Self::Transfer => match random.below(4) {
                0 => random.between(100 * MS, 3_000 * MS),
                _ => random.between(MS, 50 * MS),
            },
            Self::Notice => match random.below(4) {
                0 => random.between(MS, 200 * MS),
                _ => random.between(US, 500 * US),
            },
            Self::Silence => random.between(1_500 * MS, 2_500 * MS),
        }
    }
}
