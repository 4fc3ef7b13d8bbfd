//! Counts calls: when one begins, with what code it ends, and with `--metrics=extensive` how long
//! it took. The stage that a call is ends here, and with it its span in a trace.
//!
//! A unary call ends with its answer. A stream ends with its body: with the code that its
//! trailers hold, or canceled where the client left first.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::traces::Traced;
use super::watch::MessageCount;
use crate::replica::shared::Shared;
use crate::service::rpcs::{Flow, RPCS};

/// A call that is under way. Dropped without an answer it was canceled.
pub struct Counted {
    shared: Arc<Shared>,
    method: usize,
    traced: Traced,
    ended: bool,
}

impl Counted {
    pub fn start(shared: &Arc<Shared>, method: usize, traced: Traced) -> Self {
        let metrics = &shared.metrics;
        metrics.grpc_started(method);
        if RPCS[method].flow != Flow::BidiStream {
            metrics.grpc_received(method);
        }
        Self {
            shared: shared.clone(),
            method,
            traced,
            ended: false,
        }
    }

    /// Counts the answer, or has its body count the end.
    pub fn answer(mut self, response: Response<Body>) -> Response<Body> {
        let refused = code_of(response.headers());
        if RPCS[self.method].is_unary() {
            // As etcd counts: an answer is one that says no.
            self.shared.metrics.grpc_sent(self.method);
            self.end(refused.unwrap_or(Code::Ok), Some(response.headers()));
            return response;
        }
        if let Some(code) = refused {
            self.end(code, Some(response.headers()));
            return response;
        }
        response.map(|body| {
            Body::new(CountedBody {
                body,
                messages: MessageCount::default(),
                counted: self,
            })
        })
    }

    fn end(&mut self, code: Code, answer: Option<&HeaderMap>) {
        if !self.ended {
            self.ended = true;
            self.traced.end(code, answer);
            let metrics = &self.shared.metrics;
            metrics.grpc_handled(self.method, code);
            if RPCS[self.method].flow == Flow::BidiStream {
                // The end of a client's messages counts as one at etcd.
                metrics.grpc_received(self.method);
            }
            if metrics.is_extensive() {
                metrics.grpc_handling(self.method, self.took());
            }
        }
    }

    /// How long the call has lasted.
    pub fn took(&self) -> Duration {
        self.traced.took(self.shared.clock.now())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.end(Code::Cancelled, None);
    }
}

fn code_of(headers: &HeaderMap) -> Option<Code> {
    let status = headers.get(Status::GRPC_STATUS)?;
    Some(Code::from_bytes(status.as_bytes()))
}

/// The body of a stream.
struct CountedBody {
    body: Body,
    messages: MessageCount,
    counted: Counted,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            match frame.trailers_ref() {
                Some(trailers) => {
                    let code = code_of(trailers).unwrap_or(Code::Unknown);
                    this.counted.end(code, Some(trailers));
                }
                None => {
                    let frame = frame.data_ref().map_or(&[][..], |data| data);
                    for _ in 0..this.messages.begun(frame) {
                        this.counted.shared.metrics.grpc_sent(this.counted.method);
                    }
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
