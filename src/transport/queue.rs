//! The bounded queue of a lane to a peer, filled by any thread and emptied by the connection.
//!
//! Adding a message takes a lock briefly and never waits. Messages are removed in batches at the
//! moment the connection has room, so that they wait here, where they are bounded, counted and can
//! be dropped. Only the connection that opened the queue last may take messages: the body of a
//! broken call may live on for a while.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio_stream::Stream;

use super::PeerMessage;
use super::batch::OutgoingBatch;
use crate::metrics::PeerCells;

/// The size of a batch, about; a larger message is sent alone.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// The bounds of a queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    pub messages: usize,
    /// About; a single message may be larger if the queue is empty.
    pub bytes: usize,
}

/// See the module.
pub struct LaneQueue {
    limits: QueueLimits,
    state: Mutex<LaneQueueState>,
}

#[derive(Default)]
struct LaneQueueState {
    waiting: VecDeque<QueuedMessage>,
    weight_bytes: usize,
    probe: Option<u64>,
    /// Which taker may take messages; 0 for none.
    taker: u64,
    takers_so_far: u64,
    waker: Option<Waker>,
}

struct QueuedMessage {
    message: PeerMessage,
    weight_bytes: usize,
}

impl LaneQueue {
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
        }
    }

    /// Adds the messages that fit, and returns the rest.
    pub fn put(&self, messages: impl IntoIterator<Item = PeerMessage>) -> Vec<PeerMessage> {
        let mut refused = Vec::new();
        let waker = {
            let mut state = self.state.lock();
            for message in messages {
                let weight_bytes = message.bytes();
                let fits = state.waiting.len() < self.limits.messages
                    && state.weight_bytes + weight_bytes <= self.limits.bytes;
                if fits || state.waiting.is_empty() {
                    state.weight_bytes += weight_bytes;
                    state.waiting.push_back(QueuedMessage {
                        message,
                        weight_bytes,
                    });
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

    /// Adds a probe to the next batch.
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

    /// A stream of the messages, which yields none before `open`. What it yields counts as sent.
    pub fn taker(self: &Arc<Self>, cells: Arc<PeerCells>) -> Taker {
        let mut state = self.state.lock();
        state.takers_so_far += 1;
        Taker {
            queue: self.clone(),
            cells,
            number: state.takers_so_far,
        }
    }

    /// Lets the newest taker start.
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

    /// Stops the newest taker and empties the queue. The returned messages were certainly not sent.
    pub fn close(&self) -> Vec<PeerMessage> {
        let mut state = self.state.lock();
        state.taker = 0;
        // A taker that was never opened must not be opened later.
        state.takers_so_far += 1;
        state.probe = None;
        state.weight_bytes = 0;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        let unsent = state.waiting.drain(..);
        unsent.map(|waiting| waiting.message).collect()
    }
}

/// The messages of a queue as the body of a call.
pub struct Taker {
    queue: Arc<LaneQueue>,
    cells: Arc<PeerCells>,
    number: u64,
}

impl Stream for Taker {
    type Item = OutgoingBatch;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<OutgoingBatch>> {
        let (messages, probe) = {
            let mut state = self.queue.state.lock();
            if self.number != state.takers_so_far {
                return Poll::Ready(None);
            }
            let idle = state.waiting.is_empty() && state.probe.is_none();
            if idle || state.taker != self.number {
                state.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            (state.take(MAX_BATCH_BYTES), state.probe.take())
        };
        let batch = OutgoingBatch::new(messages, probe);
        self.cells.sent_bytes.add(batch.payload_bytes() as u64);
        Poll::Ready(Some(batch))
    }
}

impl LaneQueueState {
    /// Takes the messages of one batch: at least one, if there is any.
    fn take(&mut self, max_bytes: usize) -> Vec<PeerMessage> {
        let mut taken_bytes = 0;
        let count = self.waiting.iter().position(|waiting| {
            taken_bytes += waiting.weight_bytes;
            taken_bytes > max_bytes
        });
        let count = count.map_or(self.waiting.len(), |count| count.max(1));
        let taken = self.waiting.drain(..count);
        let mut weight_bytes = 0;
        let messages = taken
            .map(|waiting| {
                weight_bytes += waiting.weight_bytes;
                waiting.message
            })
            .collect();
        self.weight_bytes = self.weight_bytes.saturating_sub(weight_bytes);
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Message;
    use raft_proto::eraftpb::Entry;

    fn append(index: u64, bytes: usize) -> PeerMessage {
        PeerMessage::Raft(Message {
            index,
            entries: vec![Entry {
                data: vec![0; bytes],
                ..Default::default()
            }],
            ..Default::default()
        })
    }

    fn queue() -> Arc<LaneQueue> {
        Arc::new(LaneQueue::new(QueueLimits {
            messages: 100,
            bytes: 4 << 20,
        }))
    }

    /// Payload bytes of the next batch; none if it is not ready.
    fn poll(taker: &mut Taker) -> Poll<Option<usize>> {
        let mut context = Context::from_waker(Waker::noop());
        let polled = Pin::new(taker).poll_next(&mut context);
        polled.map(|batch| batch.map(|batch| batch.payload_bytes()))
    }

    #[test]
    fn only_the_newest_taker_takes_and_only_once_it_is_let_in() {
        let queue = queue();
        let mut first = queue.taker(Arc::default());
        queue.put([append(1, 0)]);
        assert_eq!(poll(&mut first), Poll::Pending);
        queue.open();
        assert!(matches!(poll(&mut first), Poll::Ready(Some(1..))));
        assert_eq!(poll(&mut first), Poll::Pending);
        queue.probe(3);
        assert_eq!(poll(&mut first), Poll::Ready(Some(0)));
        let mut second = queue.taker(Arc::default());
        queue.put([append(1, 0), append(2, 0)]);
        assert_eq!(poll(&mut first), Poll::Ready(None));
        assert_eq!(poll(&mut second), Poll::Pending);
        assert_eq!(queue.close().len(), 2);
        // Too late for a taker that was never opened.
        queue.open();
        queue.put([append(1, 0)]);
        assert_eq!(poll(&mut second), Poll::Ready(None));
    }

    #[test]
    fn batches_and_the_queue_are_bounded() {
        let queue = queue();
        let mut taker = queue.taker(Arc::default());
        queue.open();
        let small = (0..10).map(|index| append(index, 300 << 10));
        assert_eq!(queue.put(small).len(), 0);
        // A single message may be larger than the bound.
        assert_eq!(queue.put([append(10, 8 << 20)]).len(), 1);
        for messages in [3, 3, 3, 1] {
            let Poll::Ready(Some(bytes)) = poll(&mut taker) else {
                panic!("no batch");
            };
            assert_eq!(bytes / (300 << 10), messages);
        }
        assert_eq!(queue.put([append(10, 8 << 20)]).len(), 0);
        assert_eq!(queue.put([append(11, 1)]).len(), 1);
        assert!(matches!(poll(&mut taker), Poll::Ready(Some(bytes)) if bytes > 8 << 20));
        let many = (0..101).map(|index| append(index, 1));
        assert_eq!(queue.put(many).len(), 1);
        assert_eq!(queue.close().len(), 100);
        assert_eq!(queue.state.lock().weight_bytes, 0);
    }
}
