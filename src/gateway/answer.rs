//! The answer to a call, from the frames of gRPC to the body of HTTP.
//!
//! HTTP's status comes before all else, so the beginning of an answer is waited for: of a unary
//! call its end as well, unless it is large; of a stream the first message. A call that fails
//! behind that ends a stream with a line that says so, and breaks any other answer off.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{StreamExt, stream};
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use prost_reflect::MessageDescriptor;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::{Code, Status};

use super::refusal;
use super::text::{Shape, Text};
use crate::budget::Share;
use crate::env::Clock;
use crate::error::Error;

/// Larger answers are counted, and begin before they have come to their end.
const SMALL_BYTES: usize = 32 << 10;
/// Larger ones are counted until the network has taken them.
const UNCOUNTED_BYTES: usize = 4 << 10;

/// What gRPC's own headers become.
const METADATA: (HeaderName, HeaderValue) = (
    HeaderName::from_static("grpc-metadata-content-type"),
    HeaderValue::from_static("application/grpc"),
);

/// What answers need.
pub struct Means {
    pub clock: Arc<dyn Clock>,
    /// Counts what is written and not sent.
    pub share: Arc<Share>,
}

/// When a client waits no longer, by the clock.
#[derive(Clone, Copy)]
pub struct Deadline(pub Option<Duration>);

impl Deadline {
    /// The error of a call that ended with `status`: after the deadline it is that.
    fn status(self, means: &Means, status: Status) -> Status {
        match self.0 {
            Some(at) if means.clock.now() >= at => Error::DeadlineExceeded.into(),
            _ => status,
        }
    }
}

/// An answer under way.
pub struct Answer {
    /// Or how the call failed at once.
    body: Result<Body, Status>,
    text: Text,
    shape: Shape,
    /// What the gateway itself finds wrong with later requests of the stream.
    failure: Option<oneshot::Receiver<Status>>,
    deadline: Deadline,
    means: Arc<Means>,
}

/// What comes next.
enum Next {
    Text(Vec<u8>),
    End(Status),
}

impl Answer {
    pub fn new(
        response: Response<Body>,
        (message, shape): (MessageDescriptor, Shape),
        failure: Option<oneshot::Receiver<Status>>,
        deadline: Deadline,
        means: Arc<Means>,
    ) -> Self {
        let body = match Status::from_header_map(response.headers()) {
            Some(status) => Err(status),
            None => Ok(response.into_body()),
        };
        Self {
            body,
            text: Text::new(message, shape),
            shape,
            failure,
            deadline,
            means,
        }
    }

    /// The whole answer of HTTP.
    pub async fn respond(mut self) -> Response<Body> {
        let mut text = Vec::new();
        loop {
            match self.next().await {
                Next::Text(more) => {
                    text.extend_from_slice(&more);
                    if self.shape == Shape::Lines || text.len() > SMALL_BYTES {
                        let first = self.counted(text);
                        return found(self.rest(first));
                    }
                }
                Next::End(status) if status.code() != Code::Ok => {
                    let status = self.deadline.status(&self.means, status);
                    return match self.shape {
                        Shape::Object => refusal::response(&status),
                        Shape::Lines => refusal::of_stream(&status),
                    };
                }
                Next::End(_) if self.shape == Shape::Lines => return Response::new(Body::empty()),
                Next::End(_) => return found(Body::new(Full::new(self.counted(text)))),
            }
        }
    }

    async fn next(&mut self) -> Next {
        loop {
            let body = match &mut self.body {
                Ok(body) => body,
                Err(status) => return Next::End(status.clone()),
            };
            let frame = match &mut self.failure {
                None => body.frame().await,
                Some(failure) => match select(failure, body.frame()).await {
                    Either::Left((Ok(status), _)) => return Next::End(status),
                    // Nothing can fail any more.
                    Either::Left((Err(_), _)) => {
                        self.failure = None;
                        continue;
                    }
                    Either::Right((frame, _)) => frame,
                },
            };
            let frame = match frame {
                None => return Next::End(Status::ok("")),
                Some(Err(status)) => return Next::End(status),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) => {
                    let mut text = Vec::new();
                    if let Err(status) = self.text.feed(&data, &mut text) {
                        return Next::End(status);
                    }
                    if !text.is_empty() {
                        return Next::Text(text);
                    }
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let status = Status::from_header_map(&trailers);
                    return Next::End(status.unwrap_or_else(|| Status::ok("")));
                }
            }
        }
    }

    /// The same text, counted until the network has taken it.
    fn counted(&self, text: Vec<u8>) -> Bytes {
        match text.len() > UNCOUNTED_BYTES {
            true => self.means.share.take_anyway(text.len()).over(text.into()),
            false => text.into(),
        }
    }

    /// All behind `first`, as the network takes it.
    fn rest(self, first: Bytes) -> Body {
        let rest = stream::unfold(Some(self), |answer| async {
            let mut answer = answer?;
            match answer.next().await {
                Next::Text(text) => {
                    let text = answer.counted(text);
                    Some((Ok(Frame::data(text)), Some(answer)))
                }
                Next::End(status) if status.code() == Code::Ok && answer.text.is_between() => None,
                Next::End(status) => {
                    let status = answer.deadline.status(&answer.means, status);
                    let is_reported = answer.shape == Shape::Lines && answer.text.is_between();
                    Some(match is_reported {
                        true => (Ok(Frame::data(refusal::line(&status).into())), None),
                        false => (Err(status), None),
                    })
                }
            }
        });
        let first = stream::once(async { Ok::<_, Status>(Frame::data(first)) });
        Body::new(StreamBody::new(Box::pin(first.chain(rest).fuse())))
    }
}

fn found(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let (name, value) = METADATA;
    response.headers_mut().insert(CONTENT_TYPE, refusal::JSON);
    response.headers_mut().insert(name, value);
    response
}
