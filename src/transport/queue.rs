//! What waits for a lane to a peer: a bounded queue, filled by any thread, emptied by the
//! connection itself.
//!
//! To put something in takes a lock for a moment and never waits. Messages are taken out in
//! batches at the moment the connection has room for them, so that what waits, waits here, where
//! it is bounded, counted and can be dropped. Only the connection that opened the queue last may
//! take: the body of one that broke may live on for a while and must not steal.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio_stream::Stream;

use super::PeerMessage;
use super::batch::Batch;
use crate::metrics::PeerCells;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub messages: usize,
    /// About; a single message may be larger when nothing else waits.
    pub bytes: usize,
}

/// See the module.
pub struct Queue {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<PeerMessage>,
    weight_bytes: usize,
    probe: Option<u64>,
    /// Who may take; 0 for nobody.
    taker: u64,
    takers_so_far: u64,
    waker: Option<Waker>,
}

impl Queue {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
        }
    }

    /// Adds what fits, and gives back the rest.
    pub fn put(&self, messages: impl IntoIterator<Item = PeerMessage>) -> Vec<PeerMessage> {
        let mut refused = Vec::new();
        let waker = {
            let mut state = self.state.lock();
            for message in messages {
                let weight = weight_bytes(&message);
                let fits = state.waiting.len() < self.limits.messages
                    && state.weight_bytes + weight <= self.limits.bytes;
                if fits || state.waiting.is_empty() {
                    state.weight_bytes += weight;
                    state.waiting.push_back(message);
                } else {
                    refused.push(message);
                }
            }
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        refused
    }

    /// Has the next batch carry a probe.
    pub fn probe(&self, number: u64) {
        let waker = {
            let mut state = self.state.lock();
            state.probe = Some(number);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A way to take messages out; it gives none before `open`. What is taken is counted as sent.
    pub fn taker(self: &Arc<Self>, cells: Arc<PeerCells>) -> Taker {
        let mut state = self.state.lock();
        state.takers_so_far += 1;
        Taker {
            queue: self.clone(),
            cells,
            number: state.takers_so_far,
        }
    }

    /// Lets the newest taker begin.
    pub fn open(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.taker = state.takers_so_far;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the newest taker and empties the queue. What is returned was certainly not sent.
    pub fn close(&self) -> Vec<PeerMessage> {
        let mut state = self.state.lock();
        state.taker = 0;
        // A taker that was never opened must not be let in later.
        state.takers_so_far += 1;
        state.probe = None;
        state.weight_bytes = 0;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        std::mem::take(&mut state.waiting).into()
    }
}

/// The messages of a queue as the body of a call.
pub struct Taker {
    queue: Arc<Queue>,
    cells: Arc<PeerCells>,
    number: u64,
}

impl Stream for Taker {
    type Item = Batch;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Batch>> {
        let mut state = self.queue.state.lock();
        if self.number != state.takers_so_far {
            return Poll::Ready(None);
        }
        let idle = state.waiting.is_empty() && state.probe.is_none();
        if idle || state.taker != self.number {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let mut batch = Batch::new(state.probe.take());
        while let Some(message) = state.waiting.pop_front() {
            let weight = weight_bytes(&message);
            if let Err(message) = batch.add(message) {
                state.waiting.push_front(message);
                break;
            }
            state.weight_bytes = state.weight_bytes.saturating_sub(weight);
        }
        self.cells.sent_bytes.add(batch.payload_bytes() as u64);
        Poll::Ready(Some(batch))
    }
}

/// About what a message takes in memory and on the wire, without walking through its encoding.
fn weight_bytes(message: &PeerMessage) -> usize {
    const FIXED: usize = 64;
    const ENTRY: usize = 24;
    FIXED
        + match message {
            PeerMessage::Raft(raft) => {
                let entries = raft.entries.iter();
                let entries = entries.map(|entry| ENTRY + entry.data.len() + entry.context.len());
                let snapshot = raft.snapshot.as_ref().map_or(0, |found| found.data.len());
                entries.sum::<usize>() + raft.context.len() + snapshot
            }
            PeerMessage::Forwarded(forwarded) => prost::Message::encoded_len(forwarded),
            PeerMessage::Refused { .. } => 0,
        }
}
