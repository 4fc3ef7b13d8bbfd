//! Answers the calls of other members.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::context::Context;
use super::health::Link;
use super::identity::{self, CallRefusal, why};
use super::lane::LaneKind;
use super::network::GrpcNetwork;
use super::snapshot_in::{Arrivals, Standing};
use super::{Inbound, PeerMessage, batch};
use crate::error::Error;
use crate::metrics::PeerCells;
use crate::proto::etchedpeer::peer_request::Request as Kind;
use crate::proto::etchedpeer::peer_server::Peer;
use crate::proto::etchedpeer::{
    LaneAnswer, MessageBatch, PeerRequest, PeerResponse, SnapshotPart, SnapshotTaken, peer_message,
};
use crate::raft::MessageType;
use crate::types::MemberId;
use crate::types::call_timeout;

/// One probe is under way at a time.
const ANSWERS: usize = 4;
const TICK: Duration = Duration::from_secs(1);
/// The urgent lane of a running peer carries a probe at least every second.
const SILENT_TICKS: u32 = 4;

/// See the module.
pub struct PeerRpcService {
    pub context: Arc<Context>,
    pub network: Arc<GrpcNetwork>,
    pub arrivals: Arc<Arrivals>,
    pub stop: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl Peer for PeerRpcService {
    type MessagesStream = ReceiverStream<Result<LaneAnswer, Status>>;

    async fn messages(
        &self,
        request: Request<Streaming<MessageBatch>>,
    ) -> Result<Response<Self::MessagesStream>, Status> {
        let from = self.context.admit(request.metadata())?;
        let inbound = self.context.serving()?;
        self.network
            .learn(from, &identity::urls(request.metadata()));
        let urgent = request
            .metadata()
            .get(identity::LANE)
            .is_some_and(|lane| lane == LaneKind::Urgent.name());
        self.context.called.send_replace(from);
        let (answers, stream) = mpsc::channel(ANSWERS);
        let lane = IncomingLane {
            cells: self.context.outside.metrics.peer(from),
            context: self.context.clone(),
            inbound,
            from,
            urgent,
            answers,
        };
        tokio::spawn(lane.run(request.into_inner(), self.stop.clone()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<SnapshotTaken>, Status> {
        let from = self.context.admit(request.metadata())?;
        let inbound = self.context.serving()?;
        let standing = match self.network.lists(from) {
            true => Standing::Member,
            false if inbound.is_leader(from) => Standing::Leader,
            false => return Err(self.context.refused(&CallRefusal::Unlisted)),
        };
        let (arrivals, parts) = (self.arrivals.clone(), request.into_inner());
        arrivals.take(from, standing, parts, inbound).await?;
        Ok(Response::new(SnapshotTaken {}))
    }

    async fn ask(&self, request: Request<PeerRequest>) -> Result<Response<PeerResponse>, Status> {
        let describes = matches!(request.get_ref().request, Some(Kind::Describe(_)));
        let inbound = self.context.serving()?;
        let from = if describes {
            // Needs no identity.
            let local = &self.context.local;
            let is_removed = |member| inbound.is_removed(member);
            identity::check(request.metadata(), local, is_removed).ok()
        } else {
            Some(self.context.admit(request.metadata())?)
        };
        // The peer refuses what it cannot read; one of ours says how long it waits.
        let limit = call_timeout::timeout(request.metadata().as_ref()).unwrap_or_default();
        let answer = inbound.asked(from, request.into_inner(), limit);
        let answer = match limit {
            Some(limit) => timeout(limit, answer).await.unwrap_or(Err(Error::Timeout)),
            None => answer.await,
        };
        Ok(Response::new(answer?))
    }
}

/// An incoming lane of another member.
struct IncomingLane {
    context: Arc<Context>,
    inbound: Arc<dyn Inbound>,
    cells: Arc<PeerCells>,
    from: MemberId,
    urgent: bool,
    answers: mpsc::Sender<Result<LaneAnswer, Status>>,
}

impl IncomingLane {
    async fn run(self, mut batches: Streaming<MessageBatch>, mut stop: watch::Receiver<bool>) {
        let health = &self.context.health;
        let _up = self.urgent.then(|| health.up(self.from, Link::UrgentIn));
        let mut peers_changed = self.context.peers_changed.subscribe();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent_ticks = 0;
        loop {
            tokio::select! {
                batch = batches.message() => {
                    silent_ticks = 0;
                    match batch {
                        Ok(Some(batch)) => if let Err(status) = self.hand_on(batch) {
                            self.refuse(status);
                            return;
                        },
                        Ok(None) => return,
                        Err(status) => {
                            self.cells.receive_failures.increment();
                            let reason = why(&status);
                            tracing::debug!(peer = %self.from, reason, "a lane of a peer broke");
                            return;
                        }
                    }
                }
                () = self.answers.closed() => return,
                _ = stop.wait_for(|stop| *stop) => return,
                Ok(()) = peers_changed.changed() => {
                    if self.inbound.is_removed(self.from) {
                        self.refuse(Status::from(&CallRefusal::Removed(self.from)));
                        return;
                    }
                }
                _ = ticks.tick() => {
                    silent_ticks += 1;
                    if self.urgent && silent_ticks > SILENT_TICKS {
                        self.refuse(Status::deadline_exceeded("etched: nothing came for seconds"));
                        return;
                    }
                }
            }
        }
    }

    /// The last message to the peer on this lane.
    fn refuse(&self, status: Status) {
        // Without room, the peer does not read anyway.
        let _ = self.answers.try_send(Err(status));
    }

    fn hand_on(&self, batch: MessageBatch) -> Result<(), Status> {
        let probe = batch.probe;
        if !batch.messages.is_empty() {
            self.cells.received_bytes.add(payload_bytes(&batch));
            let batch::Incoming {
                mut messages,
                malformed,
            } = batch::read(batch).map_err(|reason| {
                self.cells.receive_failures.increment();
                if self.context.is_news(&reason) {
                    tracing::warn!(peer = %self.from, reason, "cannot read what a peer sent");
                }
                Status::invalid_argument(reason)
            })?;
            if let Some(fault) = malformed {
                self.cells.receive_failures.increment();
                let reason = fault.to_string();
                if self.context.is_news(&reason) {
                    tracing::warn!(peer = %self.from, reason, "refused a message of a peer");
                }
            }
            messages.retain(|message| self.is_for_us(message));
            self.inbound.received(self.from, messages);
        }
        if probe != 0 {
            // Without room, the peer no longer waits for it.
            let _ = self.answers.try_send(Ok(LaneAnswer { probe }));
        }
        Ok(())
    }

    fn is_for_us(&self, message: &PeerMessage) -> bool {
        let PeerMessage::Raft(message) = message else {
            return true;
        };
        // A read index request keeps its origin when it is forwarded, and a leadership transfer
        // names the member that is to lead.
        let passed_on = matches!(
            message.msg_type(),
            MessageType::MsgReadIndex | MessageType::MsgTransferLeader
        );
        let of_peer = passed_on || message.from == self.from.0;
        let ours = message.to == self.context.local.member.0 && of_peer;
        let (from, to) = (MemberId(message.from), MemberId(message.to));
        let news = || {
            let subject = self.context.subject(self.from);
            self.context
                .is_news(&format!("{subject} sends others' messages"))
        };
        if !ours && news() {
            tracing::warn!(peer = %self.from, %from, %to, "dropped a message between other members");
        }
        ours
    }
}

fn payload_bytes(batch: &MessageBatch) -> u64 {
    let sizes = batch.messages.iter().map(|message| match &message.message {
        Some(peer_message::Message::Raft(bytes)) => bytes.len(),
        Some(peer_message::Message::Forwarded(forwarded)) => prost::Message::encoded_len(forwarded),
        Some(peer_message::Message::Refused(refused)) => prost::Message::encoded_len(refused),
        None => 0,
    });
    sizes.sum::<usize>() as u64
}
