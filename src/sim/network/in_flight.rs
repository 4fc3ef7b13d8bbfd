//! What is in flight between members, and its delay.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::error::Error;
use crate::proto::etchedpeer::{PeerRequest, PeerResponse};
use crate::raft::Message;
use crate::sim::random::Random;
use crate::transport::{PeerMessage, SnapshotDir};
use crate::types::MemberId;

/// Where the response to a peer RPC is delivered.
pub type AnswerTo = oneshot::Sender<Result<PeerResponse, Error>>;

/// One process of a member, by the number of its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incarnation {
    pub member: MemberId,
    pub number: u64,
}

/// A message or notification in flight to a member.
pub enum InFlightPayload {
    /// From another member.
    Messages(Vec<PeerMessage>),
    Snapshot {
        message: Message,
        files: Arc<SnapshotDir>,
        /// Identifies the transfer among those between the same two members.
        number: u64,
        /// The transfer fails on its way.
        breaks: bool,
    },
    PeerRequest {
        request: PeerRequest,
        /// How long the requester waits.
        limit: Duration,
        answer_to: AnswerTo,
    },
    PeerResponse {
        answer: Result<PeerResponse, Error>,
        answer_to: AnswerTo,
    },
    /// A notification from the member's own network, possibly about a peer.
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
    Removed {
        by: MemberId,
    },
    /// A member that was paused under this number is now considered silent. Not delivered.
    Silence {
        member: MemberId,
        number: u64,
    },
}

/// A payload with its sender and receiver.
pub struct InFlight {
    pub from: Incarnation,
    pub to: Incarnation,
    pub payload: InFlightPayload,
}

impl InFlight {
    pub fn to_nobody(payload: InFlightPayload) -> Self {
        Self {
            from: Incarnation::default(),
            to: Incarnation::default(),
            payload,
        }
    }

    /// What has to pass a link and counts towards its bound.
    pub fn is_on_a_link(&self) -> bool {
        !matches!(
            self.payload,
            InFlightPayload::Refused { .. }
                | InFlightPayload::Unreachable(_)
                | InFlightPayload::SnapshotSent { .. }
                | InFlightPayload::Removed { .. }
                | InFlightPayload::Silence { .. }
        )
    }
}

const US: u64 = 1_000;
const MS: u64 = 1_000_000;

/// The kinds of delay.
#[derive(Clone, Copy, Debug)]
pub enum Delay {
    /// That of an ordinary message.
    Usual,
    /// That of a message that is held up.
    Slow,
    /// The duration of a file transfer.
    Transfer,
    /// Until the sender's own side detects a failure.
    Notice,
    /// Until a silent peer is considered dead.
    Silence,
}

impl Delay {
    pub fn draw(self, random: &mut Random) -> u64 {
        match self {
            Self::Usual => random.between(50 * US, 500 * US),
            // Uniform over the orders of magnitude.
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
