//! One lane to one peer: keeps a connection, and reports when there is none.
//!
//! A peer has two lanes, each over a connection of its own, so that an urgent message never waits
//! behind a large append: neither in a queue, nor in HTTP/2's windows, nor in the kernel's buffers.
//! A lane whose connection breaks or cannot be established drops its queue: raft sends again, and
//! old messages would only delay new ones.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use raft_proto::eraftpb::MessageType;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::client::Grpc;
use tonic::{Request, Status, Streaming};

use super::PeerMessage;
use super::batch::LaneCodec;
use super::context::Context;
use super::dial::{self, Channel};
use super::health::Link;
use super::identity::{self, RefusalKind, why};
use super::peer_rpc;
use super::pulse::{self, Beat, Pulse};
use super::queue::LaneQueue;
use crate::error::Error;
use crate::proto::etchedpeer::LaneAnswer;
use crate::types::MemberId;

/// The kind of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneKind {
    Urgent,
    Bulk,
}

impl LaneKind {
    /// The lane that a message belongs to.
    pub fn of(message: &PeerMessage) -> Self {
        use MessageType::*;
        match message {
            PeerMessage::Raft(message) => match message.msg_type() {
                MsgHeartbeat
                | MsgHeartbeatResponse
                | MsgRequestVote
                | MsgRequestVoteResponse
                | MsgRequestPreVote
                | MsgRequestPreVoteResponse
                | MsgReadIndex
                | MsgReadIndexResp
                | MsgTimeoutNow => Self::Urgent,
                _ => Self::Bulk,
            },
            PeerMessage::Forwarded(_) => Self::Bulk,
            PeerMessage::Refused { .. } => Self::Urgent,
        }
    }

    /// Its name in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Bulk => "bulk",
        }
    }

    fn link(self) -> Link {
        match self {
            Self::Urgent => Link::UrgentOut,
            Self::Bulk => Link::BulkOut,
        }
    }

    fn pulse(self) -> pulse::PulseLimits {
        match self {
            Self::Urgent => pulse::PulseLimits {
                between_probes: 2,
                silent: 6,
                unanswered: 20,
            },
            // On a slow link, buffered data delays a probe.
            Self::Bulk => pulse::PulseLimits {
                between_probes: 2,
                silent: 8,
                unanswered: 240,
            },
        }
    }
}

const MESSAGES_PATH: &str = "/etchedpeer.Peer/Messages";
const TICK: Duration = Duration::from_millis(250);
/// From the call to the headers of the response: at first, and after some that were not answered in
/// time. Where all are slow, who gave up each call after the same time would never get an answer,
/// and those that were given up keep the others waiting.
const ACCEPT_LIMIT: Duration = Duration::from_millis(1_500);
const LONGEST_ACCEPT_LIMIT: Duration = Duration::from_secs(6);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A peer that refuses calls is tried less often.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);
/// A connection that lasted this long resets the backoff.
const STEADY: Duration = Duration::from_secs(1);

/// See the module.
pub struct Lane {
    pub context: Arc<Context>,
    pub peer: MemberId,
    /// Tried in turn.
    pub urls: Vec<String>,
    pub kind: LaneKind,
    pub queue: Arc<LaneQueue>,
    /// Counts how often the urgent lane detected a silent peer, which affects the other lane as
    /// well.
    pub silences: Arc<watch::Sender<u64>>,
}

/// How a connection ended.
struct End {
    why: String,
    refused: Option<RefusalKind>,
    /// How long it carried messages, if it did.
    held: Option<Duration>,
    /// The peer was there and did not answer in time.
    is_late: bool,
}

impl Lane {
    /// Runs until its task ends.
    pub async fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut accept_limit = ACCEPT_LIMIT;
        for url in self.urls.iter().cycle() {
            let end = self.connect(url, accept_limit).await;
            if end.held.is_some_and(|held| held >= STEADY) {
                pause = FIRST_PAUSE;
            }
            accept_limit = match end.is_late {
                true => (accept_limit * 2).min(LONGEST_ACCEPT_LIMIT),
                false => ACCEPT_LIMIT,
            };
            self.report(url, &end);
            if end.refused.is_some() {
                sleep(REFUSED_PAUSE).await;
                continue;
            }
            tokio::select! {
                () = sleep(self.jittered(pause)) => pause = (pause * 2).min(LONGEST_PAUSE),
                () = self.called() => pause = FIRST_PAUSE,
            }
        }
        // Without a URL there is no queue for such a peer.
    }

    /// Completes when the peer calls this member.
    async fn called(&self) {
        let mut called = self.context.called.subscribe();
        loop {
            // The sender lives as long as the context.
            if called.changed().await.is_err() || *called.borrow_and_update() == self.peer {
                return;
            }
        }
    }

    /// Between three and five quarters, so that members do not dial in step.
    fn jittered(&self, pause: Duration) -> Duration {
        let eighths = 6 + (self.context.outside.rng.next_u64() % 5) as u32;
        pause * eighths / 8
    }

    fn report(&self, url: &str, end: &End) {
        let (context, peer, lane) = (&self.context, self.peer, self.kind.name());
        let unsent = self.queue.close();
        if end.held.is_some() {
            let cells = context.outside.metrics.peer(peer);
            cells.send_failures.increment();
            if let Some(inbound) = context.inbound() {
                inbound.unreachable(peer);
            }
        }
        context.drop_unsent(peer, unsent, Error::NoLeader);
        let reason = &end.why;
        if context.is_news(&format!("{peer} {lane} {reason}")) {
            match end.held {
                Some(_) => {
                    tracing::warn!(%peer, lane, url, reason, "lost the connection to a peer")
                }
                None => tracing::warn!(%peer, lane, url, reason, "cannot connect to a peer"),
            }
        }
        if end.refused == Some(RefusalKind::Removed)
            && let Some(inbound) = context.inbound()
        {
            inbound.removed(self.peer);
        }
    }

    async fn connect(&self, url: &str, accept_limit: Duration) -> End {
        match self.call(url, accept_limit).await {
            Ok((channel, answers)) => self.carry(channel, answers).await,
            Err(end) => end,
        }
    }

    /// Starts the call that carries the messages.
    async fn call(
        &self,
        url: &str,
        accept_limit: Duration,
    ) -> Result<(Channel, Streaming<LaneAnswer>), End> {
        let failed = |why| End {
            why,
            refused: None,
            held: None,
            is_late: false,
        };
        let dialler = &self.context.options.dialler;
        let channel = dial::dial(dialler, url, None).await.map_err(failed)?;
        let known = peer_rpc::check_format(&self.context, &channel).await;
        known.map_err(failed)?;
        let mut grpc = Grpc::with_origin(channel.clone(), channel.origin());
        let cells = self.context.outside.metrics.peer(self.peer);
        let mut request = Request::new(self.queue.taker(cells));
        identity::stamp(request.metadata_mut(), &self.context.local, self.peer);
        identity::stamp_urls(request.metadata_mut(), &self.context.own_urls.read());
        let name = tonic::metadata::MetadataValue::from_static(self.kind.name());
        request.metadata_mut().insert(identity::LANE, name);
        let call = async {
            let ready = grpc.ready().await;
            ready.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = PathAndQuery::from_static(MESSAGES_PATH);
            grpc.streaming(request, path, LaneCodec).await
        };
        match timeout(accept_limit, call).await {
            Ok(Ok(response)) => Ok((channel, response.into_inner())),
            Ok(Err(status)) => Err(End {
                why: why(&status),
                refused: identity::recognise(&status),
                held: None,
                is_late: false,
            }),
            Err(_) => Err(End {
                is_late: true,
                ..failed("the peer does not answer".to_owned())
            }),
        }
    }

    /// Monitors an accepted call; its messages are sent by the connection.
    async fn carry(&self, channel: Channel, mut answers: Streaming<LaneAnswer>) -> End {
        let clock = &self.context.outside.clock;
        let cells = self.context.outside.metrics.peer(self.peer);
        let begun = clock.now();
        self.queue.open();
        let _up = self.context.health.up(self.peer, self.kind.link());
        let mut silences = self.silences.subscribe();
        let mut pulse = Pulse::new(self.kind.pulse());
        let mut probed_at = begun;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = |why: &str, refused| End {
            why: why.to_owned(),
            refused,
            held: Some(clock.now().saturating_sub(begun)),
            is_late: false,
        };
        loop {
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        if pulse.answered(answer.probe) && self.kind == LaneKind::Urgent {
                            let took = clock.now().saturating_sub(probed_at);
                            cells.round_trip_time.observe(took);
                        }
                    }
                    Ok(None) => return ended("the peer closed it", None),
                    Err(status) => {
                        return ended(&why(&status), identity::recognise(&status));
                    }
                },
                _ = ticks.tick() => {
                    let moved = match self.kind {
                        LaneKind::Urgent => channel.moved().read_bytes(),
                        LaneKind::Bulk => channel.moved().bytes(),
                    };
                    match pulse.tick(moved) {
                        Beat::Rest => {}
                        Beat::Probe(number) => {
                            probed_at = clock.now();
                            self.queue.probe(number);
                        }
                        Beat::Dead => {
                            if self.kind == LaneKind::Urgent {
                                self.silences.send_modify(|count| *count += 1);
                            }
                            return ended("the peer is silent", None);
                        }
                    }
                }
                Ok(()) = silences.changed(), if self.kind == LaneKind::Bulk => {
                    return ended("the peer is silent", None);
                }
            }
        }
    }
}
