//! Calls that need no understanding: head and messages go to a member as they come, and its answer
//! comes back the same way. The windows of HTTP/2 of both connections bound what is on its way, and
//! a call that its client gives up is given up at the member.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use prost::Message as _;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;

use super::upstream::Upstream;
use crate::proto::etcdserverpb::ResponseHeader;

/// Before every message of gRPC: whether it is compressed, and its length.
pub const PREFIX_BYTES: usize = 5;

/// What is one connection's own.
const OF_A_CONNECTION: [HeaderName; 4] = [CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING];
/// What says how messages are compressed.
const COMPRESSION: [&str; 2] = ["grpc-encoding", "grpc-accept-encoding"];

/// Makes the call at a member and returns its answer.
///
/// # Errors
/// No member can be reached, or the connection to it ended.
pub async fn pass(
    upstream: &Arc<Upstream>,
    path: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response<Body>, Status> {
    let mut channel = upstream.channel().await?;
    let mut request = Request::new(body);
    *request.uri_mut() = address(&channel.origin(), path)?;
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = headers.clone();
    for name in OF_A_CONNECTION {
        request.headers_mut().remove(name);
    }
    let broken =
        |error: hyper::Error| Status::unavailable(format!("error reading from server: {error}"));
    std::future::poll_fn(|cx| channel.poll_ready(cx))
        .await
        .map_err(broken)?;
    let response = channel.call(request).await.map_err(broken)?;
    Ok(response.map(|body| Body::new(Whole { body: Some(body) })))
}

/// The headers of a call whose messages are read here: none of them is compressed.
pub fn uncompressed(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in COMPRESSION {
        headers.remove(name);
    }
    headers
}

fn address(origin: &Uri, path: &str) -> Result<Uri, Status> {
    let mut parts = origin.clone().into_parts();
    let bad = |error: http::Error| Status::internal(error.to_string());
    parts.path_and_query = Some(
        path.parse()
            .map_err(|error| bad(http::Error::from(error)))?,
    );
    Uri::from_parts(parts).map_err(|error| bad(error.into()))
}

/// The one message of a body, and its trailers; none where these say that the call failed, whatever
/// of an answer came before.
///
/// # Errors
/// It is larger than the limit, compressed, cut short, or not alone.
pub async fn message<B>(
    body: B,
    limit_bytes: usize,
) -> Result<(Option<Bytes>, Option<HeaderMap>), Status>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut body = body;
    let mut held = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::unavailable(error.to_string()))?;
        match frame.into_data() {
            Ok(data) => held.extend_from_slice(&data),
            Err(other) => trailers = other.into_trailers().ok(),
        }
        if held.len() > PREFIX_BYTES {
            let length = length(&held);
            if length > limit_bytes || held.len() - PREFIX_BYTES > limit_bytes {
                return Err(Status::resource_exhausted(format!(
                    "trying to send message larger than max ({length} vs. {limit_bytes})"
                )));
            }
        }
    }
    let status = trailers
        .as_ref()
        .and_then(|all| all.get(Status::GRPC_STATUS));
    let has_failed = status.is_some_and(|code| code.as_bytes() != b"0");
    if held.is_empty() || has_failed {
        return Ok((None, trailers));
    }
    if held.len() < PREFIX_BYTES || held.len() != PREFIX_BYTES + length(&held) {
        return Err(Status::internal("grpc: the call has not one whole message"));
    }
    if held[0] != 0 {
        return Err(Status::unimplemented(
            "grpc: the proxy reads no compressed messages",
        ));
    }
    Ok((Some(held.freeze().slice(PREFIX_BYTES..)), trailers))
}

/// That of the message that begins so, without the prefix.
pub fn length(held: &[u8]) -> usize {
    let bytes = held
        .get(1..PREFIX_BYTES)
        .and_then(|bytes| bytes.try_into().ok());
    u32::from_be_bytes(bytes.unwrap_or_default()) as usize
}

/// A message as it is framed in a gRPC stream.
pub fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

/// The store's revision in the header of an answer, of which the beginning will do: the header is the
/// first field of every one of them.
pub fn revision(framed: &[u8]) -> Option<i64> {
    const HEADER: u8 = 0x0a;
    let [tag, length, message @ ..] = framed.get(PREFIX_BYTES..)? else {
        return None;
    };
    // One byte has the length: a header is short.
    if framed[0] != 0 || *tag != HEADER || *length >= 0x80 {
        return None;
    }
    let header = ResponseHeader::decode(message.get(..usize::from(*length))?);
    header.ok().map(|header| header.revision)
}

/// An answer that is made here, of one message as `framed` makes it.
pub fn answer(message: Bytes) -> Response<Body> {
    let ending = async {
        let mut trailers = HeaderMap::new();
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
        Some(Ok(trailers))
    };
    let body = Full::new(message).with_trailers(ending);
    let mut response = Response::new(Body::new(body));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    response
}

/// Whether the messages of a call are compressed.
pub fn is_compressed(headers: &HeaderMap) -> bool {
    let encoding = headers.get(COMPRESSION[0]);
    encoding.is_some_and(|encoding| encoding != "identity")
}

/// A member's answer. Where its connection breaks the answer ends with a status that has clients try
/// again, and not with a broken stream.
struct Whole {
    body: Option<Incoming>,
}

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Err(error)) => {
                self.body = None;
                let status = Status::unavailable(format!("error reading from server: {error}"));
                let mut trailers = HeaderMap::new();
                // A text can always be written.
                let _ = status.add_header(&mut trailers);
                Some(Ok(Frame::trailers(trailers)))
            }
            frame => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;
    use tonic::Code;

    use super::*;
    use crate::proto::etcdserverpb::PutResponse;

    #[tokio::test]
    async fn an_error_wins_over_what_came_before_it() {
        let status = Status::unavailable("broken");
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers).expect("a text");
        let whole = framed(b"message");
        for came in [Bytes::new(), whole.slice(..2), whole.slice(..8), whole] {
            let sent = trailers.clone();
            let body = Full::new(came.clone()).with_trailers(async { Some(Ok(sent)) });
            let read = message(Box::pin(body), 100).await.expect("is read");
            assert_eq!(read, (None, Some(trailers.clone())), "{came:?}");
        }
        let cut = message(Full::new(framed(b"message").slice(..8)), 100).await;
        assert_eq!(cut.expect_err("is refused").code(), Code::Internal);
        let none = message(Empty::new(), 100).await;
        assert_eq!(none.expect("is read"), (None, None));
    }

    #[test]
    fn an_answer_begins_with_its_revision() {
        let answer = PutResponse {
            header: Some(ResponseHeader {
                cluster_id: u64::MAX,
                member_id: u64::MAX,
                revision: i64::MAX,
                raft_term: u64::MAX,
            }),
            ..Default::default()
        };
        let whole = framed(&answer.encode_to_vec());
        assert_eq!(revision(&whole), Some(i64::MAX));
        for end in 0..whole.len() {
            assert_eq!(revision(&whole[..end]), None, "{end}");
        }
        assert_eq!(revision(&framed(b"")), None);
        let mut compressed = whole.to_vec();
        compressed[0] = 1;
        assert_eq!(revision(&compressed), None);
    }
}
