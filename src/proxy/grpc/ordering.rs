//! `--experimental-serializable-ordering`: no read shows an older state than one that was shown before,
//! whichever member answers it.
//!
//! The proxy knows the highest revision that an answer to a range or a transaction had. An answer that is
//! older than what was known when it was asked for is thrown away, and another member is asked. The first
//! revision is that of a linearizable read, for which the start waits. Reads from the cache are held to it
//! as well; a compressed one is passed unread, and not ordered. This is what etcd's client has for it and what the flag's text says; etcd's proxy waits at its
//! start, and then its reads pass by what would order them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt as _;
use tonic::Status;
use tonic::body::Body;

use super::passing;
use super::permission;
use super::upstream::Upstream;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::kv_client::KvClient;

/// How often each member is asked, on average, as in etcd's client.
const ROUNDS: usize = 5;
/// Before the next round: a member that is behind soon is not.
const PAUSE: Duration = Duration::from_millis(20);
/// etcd's client's, which has no code.
const NO_GREATER_REVISION: &str =
    "etcdclient: no cluster members have a revision higher than the previously received revision";
/// For the answer to the first read, and before the next try.
const READ_LIMIT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);
/// What is read of an answer before it is sent on has the header in it.
const BEGINNING_BYTES: usize = 64;

/// The highest revision that was shown.
#[derive(Default)]
pub struct ShownRevision(AtomicI64);

impl ShownRevision {
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }

    pub fn show(&self, revision: i64) {
        self.0.fetch_max(revision, Ordering::AcqRel);
    }

    /// Reads from the cluster until it answers.
    pub async fn recover(&self, upstream: &Arc<Upstream>) {
        tracing::info!("waiting for linearized read from cluster to recover ordering");
        loop {
            let reading = tokio::time::timeout(READ_LIMIT, read(upstream));
            let limit = || Status::deadline_exceeded("context deadline exceeded");
            match reading.await.unwrap_or_else(|_| Err(limit())) {
                Ok(revision) => return self.show(revision),
                Err(status)
                    if !permission::may_pass(status.code())
                        && status.code() != tonic::Code::DeadlineExceeded =>
                {
                    // The proxy is no user, so where there are users it may read nothing.
                    let error = status.message();
                    tracing::warn!(error, "ordering begins with the first read of a client");
                    return;
                }
                Err(status) => {
                    let error = status.message();
                    tracing::warn!(error, "ordering recovery failed, retrying in 1s");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Asks until an answer is not older than what was shown before.
    ///
    /// # Errors
    /// Those of `ask`; and UNKNOWN where every member is behind.
    pub async fn ordered<F>(
        &self,
        members: usize,
        ask: impl Fn() -> F,
    ) -> Result<Response<Body>, Status>
    where
        F: Future<Output = Result<Response<Body>, Status>>,
    {
        let shown = self.get();
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            for _ in 0..members {
                let (revision, answer) = begun(ask().await?).await;
                // What has no revision is an error.
                let Some(revision) = revision else {
                    return Ok(answer);
                };
                if revision >= shown {
                    self.show(revision);
                    return Ok(answer);
                }
            }
        }
        Err(Status::unknown(NO_GREATER_REVISION))
    }
}

async fn read(upstream: &Arc<Upstream>) -> Result<i64, Status> {
    let channel = upstream.channel().await?;
    let origin = channel.origin();
    let range = RangeRequest {
        key: Bytes::from_static(b"_"),
        keys_only: true,
        ..Default::default()
    };
    let answer = KvClient::with_origin(channel, origin).range(range).await?;
    let header = answer.into_inner().header;
    Ok(header.map_or(0, |header| header.revision))
}

/// The revision of an answer, and the answer as it came.
pub async fn begun(answer: Response<Body>) -> (Option<i64>, Response<Body>) {
    let (head, mut rest) = answer.into_parts();
    let mut frames = VecDeque::new();
    let mut beginning = BytesMut::new();
    while beginning.len() < BEGINNING_BYTES {
        let Some(frame) = rest.frame().await else {
            break;
        };
        let data = frame.as_ref().ok().and_then(Frame::data_ref);
        let is_end = data.is_none();
        if let Some(data) = data {
            let missing = BEGINNING_BYTES - beginning.len();
            beginning.extend_from_slice(&data[..missing.min(data.len())]);
        }
        frames.push_back(frame);
        if is_end {
            break;
        }
    }
    let revision = passing::revision(&beginning);
    let body = Body::new(BegunAnswer { frames, rest });
    (revision, Response::from_parts(head, body))
}

/// A body of which the beginning was read.
struct BegunAnswer {
    frames: VecDeque<Result<Frame<Bytes>, Status>>,
    rest: Body,
}

impl http_body::Body for BegunAnswer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use http_body_util::{Full, StreamBody};
    use prost::Message as _;

    use super::*;
    use crate::proto::etcdserverpb::{RangeResponse, ResponseHeader};

    fn framed(revision: i64) -> Bytes {
        let answer = RangeResponse {
            header: Some(ResponseHeader {
                revision,
                ..Default::default()
            }),
            count: 7,
            ..Default::default()
        };
        passing::framed(&answer.encode_to_vec())
    }

    #[tokio::test]
    async fn older_answers_are_thrown_away() {
        for (shown, answers, expected) in [
            (5, &[5][..], Some(5)),
            (5, &[7, 6], Some(7)),
            (5, &[4, 3, 6], Some(6)),
            (5, &[4; 10], None),
            (5, &[4, 4, 4, 4, 4, 4, 4, 4, 4, 5], Some(5)),
        ] {
            let known = ShownRevision::default();
            known.show(shown);
            let asked = AtomicUsize::new(0);
            let ask = || async {
                let at = asked.fetch_add(1, Ordering::Relaxed);
                Ok(Response::new(Body::new(Full::new(framed(answers[at])))))
            };
            let answer = known.ordered(2, ask).await;
            let found = match answer {
                Ok(answer) => {
                    let body = answer.into_body().collect().await.expect("a body");
                    passing::revision(&body.to_bytes())
                }
                Err(status) => {
                    assert_eq!(status.message(), NO_GREATER_REVISION);
                    None
                }
            };
            assert_eq!(found, expected, "{answers:?}");
            assert_eq!(known.get(), expected.unwrap_or(shown));
        }
    }

    #[tokio::test]
    async fn an_answer_is_passed_on_as_it_came() {
        let message = framed(i64::MAX);
        for cut in [1, 6, 20, message.len()] {
            let frames = message.chunks(cut).map(Bytes::copy_from_slice);
            let frames = frames.map(|data| Ok::<_, Status>(Frame::data(data)));
            let body = Body::new(StreamBody::new(tokio_stream::iter(
                frames.collect::<Vec<_>>(),
            )));
            let (revision, answer) = begun(Response::new(body)).await;
            assert_eq!(revision, Some(i64::MAX), "{cut}");
            let body = answer.into_body().collect().await.expect("a body");
            assert_eq!(body.to_bytes(), message, "{cut}");
        }
        let (revision, answer) = begun(Status::not_found("no").into_http()).await;
        assert_eq!(revision, None);
        assert!(answer.headers().contains_key(Status::GRPC_STATUS));
    }
}
