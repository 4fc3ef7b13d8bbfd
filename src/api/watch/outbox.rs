//! What a watch stream says, on its way from its session to the network.
//!
//! The session puts responses in only while the network asks for more, which it does when it has
//! taken everything before: a client that does not read has one frame in the library's buffers
//! and nothing here. A few small responses may go in at once, to share a frame.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::Status;

use super::frames::{Frames, Make};
use crate::api::body::trailers;
use crate::budget::Share;
use crate::proto::etcdserverpb::WatchResponse;

/// What is asked for has come once this much is there.
const BATCH_BYTES: usize = 16 << 10;
/// Or so many responses.
const BATCH_RESPONSES: usize = 64;
/// Where memory is short a frame is no larger, and is not counted.
const SMALL_FRAME_BYTES: usize = 1 << 10;

#[derive(Default)]
struct OutboxState {
    frames: Frames,
    /// The reader waits for more.
    asked: bool,
    reader: Option<Waker>,
    /// The session is gone; the stream ends with this behind `frames`.
    end: Option<Status>,
    /// Within a message.
    broken: bool,
    /// The reader is gone.
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<OutboxState>,
    asked: Notify,
    closed: Notify,
}

/// The session's side. Dropped it ends the stream, without an error.
pub struct Outbox(Arc<Shared>);

/// The network's side.
pub struct Responses {
    shared: Arc<Shared>,
    /// What frames are taken from.
    share: Arc<Share>,
    ended: bool,
}

pub fn outbox(share: Arc<Share>) -> (Outbox, Responses) {
    let shared = Arc::<Shared>::default();
    let responses = Responses {
        shared: shared.clone(),
        share,
        ended: false,
    };
    (Outbox(shared), responses)
}

impl Outbox {
    /// Returns when more is asked for.
    pub async fn asked(&self) {
        while !self.has_room() {
            self.0.asked.notified().await;
        }
    }

    /// Returns when nobody will ask again.
    pub async fn closed(&self) {
        while !self.0.state.lock().closed {
            self.0.closed.notified().await;
        }
    }

    /// More is asked for than is there.
    pub fn has_room(&self) -> bool {
        let state = self.0.state.lock();
        state.asked
            && state.frames.size_bytes() < BATCH_BYTES
            && state.frames.len() < BATCH_RESPONSES
    }

    pub fn push(&self, response: WatchResponse) {
        self.0.state.lock().frames.push(response);
    }

    /// Hands over what was put in since it was asked for, if anything was.
    pub fn hand_over(&self) {
        let mut state = self.0.state.lock();
        if !state.frames.is_empty() {
            state.asked = false;
            wake(state.reader.take(), state);
        }
    }

    /// While something is not taken: how many bytes were, of all that was put in.
    pub fn taken_bytes_before(&self) -> Option<u64> {
        let state = self.0.state.lock();
        (!state.asked && !state.frames.is_empty()).then(|| state.frames.taken_bytes())
    }

    /// Ends the stream where it is, and drops what was put in.
    pub fn break_off(&self, status: Status) {
        let mut state = self.0.state.lock();
        state.frames = Frames::default();
        state.broken = true;
        drop(state);
        self.end(status);
    }

    /// Ends the stream behind what was put in.
    pub fn end(&self, status: Status) {
        let mut state = self.0.state.lock();
        state.end.get_or_insert(status);
        wake(state.reader.take(), state);
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.end(Status::ok(""));
    }
}

/// Wakes the reader once the lock is released.
fn wake(reader: Option<Waker>, state: parking_lot::MutexGuard<'_, OutboxState>) {
    drop(state);
    if let Some(reader) = reader {
        reader.wake();
    }
}

impl Responses {
    /// `take` finds something; or the stream has ended; or it is asked for more.
    fn poll<T>(
        &self,
        context: &mut Context<'_>,
        take: impl FnOnce(&mut Frames) -> Option<T>,
    ) -> Poll<Result<T, Status>> {
        let mut state = self.shared.state.lock();
        if let Some(taken) = take(&mut state.frames) {
            return Poll::Ready(Ok(taken));
        }
        if let Some(status) = state.end.take() {
            return Poll::Ready(Err(status));
        }
        match &mut state.reader {
            Some(reader) => reader.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        let first = !std::mem::replace(&mut state.asked, true);
        drop(state);
        if first {
            self.shared.asked.notify_one();
        }
        Poll::Pending
    }

    fn next_frame(&self, frames: &mut Frames) -> Option<Result<Bytes, Status>> {
        if frames.is_empty() {
            return None;
        }
        // What is shared stays until the network has taken all of it: not more than half.
        let shares = self.share.used_bytes() < self.share.limit_bytes() / 2;
        if shares && let Some(event) = frames.next_shared() {
            return Some(Ok(event));
        }
        let held = match frames.is_within(SMALL_FRAME_BYTES) {
            true => None,
            false => self.share.try_take(BATCH_BYTES),
        };
        let frame_bytes = match held {
            Some(_) => BATCH_BYTES,
            None => SMALL_FRAME_BYTES,
        };
        let make = Make {
            frame_bytes,
            shares,
        };
        let frame = frames.next(make).transpose()?;
        Some(frame.map(|frame| match held {
            Some(mut held) => {
                held.shrink(held.bytes().saturating_sub(frame.len()));
                held.over(frame)
            }
            None => frame,
        }))
    }
}

impl Drop for Responses {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        state.frames = Frames::default();
        drop(state);
        self.shared.closed.notify_one();
    }
}

impl HttpBody for Responses {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let polled = this.poll(context, |frames| this.next_frame(frames));
        let status = match std::task::ready!(polled) {
            Ok(Ok(frame)) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
            Ok(Err(status)) | Err(status) => status,
        };
        this.ended = true;
        if this.shared.state.lock().broken {
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(Some(trailers(&status)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// For those who read within this process.
impl tokio_stream::Stream for Responses {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        match std::task::ready!(this.poll(context, Frames::pop)) {
            Ok(response) => Poll::Ready(Some(Ok(response))),
            Err(status) => {
                this.ended = true;
                let failed = status.code() != tonic::Code::Ok;
                Poll::Ready(failed.then_some(Err(status)))
            }
        }
    }
}
