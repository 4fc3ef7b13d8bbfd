//! The streams of the gateway over a WebSocket: each message of the client is a text of the
//! request's body, each line of the answer a message.
//!
//! As etcd's proxy has it: a GET stands for a POST, the token is in `Sec-WebSocket-Protocol`
//! (`Bearer, TOKEN`) or in a cookie, other headers count for nothing. Of a client's messages none
//! is larger than what a connection may send ahead anyway; larger requests go without a WebSocket.

use std::convert::Infallible;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{SinkExt, StreamExt, stream};
use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as Piece;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tonic::body::Body;

use crate::net::Takeover;

const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// The WebSocket protocol's, RFC 6455.
const ACCEPT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const BEARER: &str = "Bearer";
const TOKEN_COOKIE: &str = "token=";

/// Whether a request asks for a WebSocket.
pub fn is_asked(headers: &HeaderMap) -> bool {
    has(headers, CONNECTION, "upgrade") && has(headers, UPGRADE, "websocket")
}

/// Whether a word is in a header's list.
fn has(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(word))
}

/// Opens a WebSocket; `answer` answers the request that it carries.
pub fn open<F>(
    request: &Request<()>,
    answer: impl FnOnce(Request<Body>) -> F + Send + 'static,
) -> Response<Body>
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let headers = request.headers();
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let version = headers.get(SEC_WEBSOCKET_VERSION);
    let (Some(key), true) = (key, version.is_some_and(|version| version == "13")) else {
        return refuse(StatusCode::BAD_REQUEST);
    };
    if request.method() != Method::GET {
        return refuse(StatusCode::METHOD_NOT_ALLOWED);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = response.headers_mut();
    fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Some(accept) = accept(key) {
        fields.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    let protocol = headers.get(SEC_WEBSOCKET_PROTOCOL);
    if protocol.is_some_and(|protocol| protocol.as_bytes().starts_with(BEARER.as_bytes())) {
        fields.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BEARER));
    }
    let uri = request.uri().clone();
    let token = token(headers);
    response.extensions_mut().insert(Takeover::new(move |io| {
        Box::pin(serve(io, move |body| {
            let mut request = Request::new(body);
            *request.method_mut() = Method::POST;
            *request.uri_mut() = uri;
            if let Some(token) = token {
                request.headers_mut().insert(AUTHORIZATION, token);
            }
            answer(request)
        }))
    }));
    response
}

fn refuse(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let version = HeaderValue::from_static("13");
    response
        .headers_mut()
        .insert(SEC_WEBSOCKET_VERSION, version);
    response
}

fn accept(key: &HeaderValue) -> Option<HeaderValue> {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(ACCEPT);
    HeaderValue::from_str(&BASE64_STANDARD.encode(hash.finalize())).ok()
}

/// What stands for `Authorization`.
fn token(headers: &HeaderMap) -> Option<HeaderValue> {
    let cookies = headers.get_all(COOKIE).iter();
    let mut cookies = cookies
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'));
    let cookie = cookies.find_map(|cookie| cookie.trim().strip_prefix(TOKEN_COOKIE));
    let protocol = headers.get(SEC_WEBSOCKET_PROTOCOL);
    let protocol = protocol.and_then(|value| value.to_str().ok());
    let after = |text: &'_ str| {
        Some(
            text.strip_prefix(BEARER)?
                .strip_prefix(',')?
                .trim()
                .to_owned(),
        )
    };
    let token = cookie
        .map(str::to_owned)
        .or_else(|| protocol.and_then(after))?;
    HeaderValue::from_str(&format!("{BEARER} {token}")).ok()
}

/// Carries a request and its answer until either side has come to its end.
async fn serve<F>(io: Upgraded, answer: impl FnOnce(Body) -> F)
where
    F: Future<Output = Response<Body>>,
{
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let io = TokioIo::new(io);
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let (mut sink, mut messages) = socket.split();
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let body = stream::unfold(receiver, |mut receiver| async {
        let text = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(text)), receiver))
    });
    // It is asked once more when it is dropped.
    let body = body.fuse();
    let reading = async {
        while let Some(Ok(message)) = messages.next().await {
            let text = match message {
                Message::Text(text) => Bytes::from(text),
                Message::Binary(bytes) => bytes,
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            // A call that has what it needs reads no further.
            let _ = sender.send(text).await;
        }
    };
    let writing = async {
        let response = answer(Body::new(StreamBody::new(Box::pin(body)))).await;
        let mut body = response.into_body();
        let mut is_open = false;
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(text) = frame.into_data() else {
                continue;
            };
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                let ends = line.ends_with(b"\n");
                let line = text.slice_ref(line.strip_suffix(b"\n").unwrap_or(line));
                if sink.send(piece(line, is_open, ends)).await.is_err() {
                    return;
                }
                is_open = !ends;
            }
        }
        if is_open && sink.send(piece(Bytes::new(), true, true)).await.is_err() {
            return;
        }
        // Who has gone needs no goodbye.
        let _ = sink.close().await;
    };
    let (reading, writing) = (std::pin::pin!(reading), std::pin::pin!(writing));
    match select(reading, writing).await {
        Either::Left(((), _)) | Either::Right(((), _)) => {}
    }
}

/// A part of a message, the first or a later one.
fn piece(text: Bytes, is_later: bool, ends: bool) -> Message {
    let kind = match is_later {
        true => Data::Continue,
        false => Data::Text,
    };
    Message::Frame(Piece::message(text, OpCode::Data(kind), ends))
}

#[cfg(test)]
mod tests {
    use super::super::metadata::tests::headers;
    use super::*;

    #[test]
    fn a_token_is_in_the_protocol_or_in_a_cookie() {
        for (lines, expected) in [
            (&[][..], None),
            (&[("authorization", "x")], None),
            (
                &[("sec-websocket-protocol", "Bearer, abc.1")],
                Some("Bearer abc.1"),
            ),
            (
                &[("sec-websocket-protocol", "Bearer,abc.1")],
                Some("Bearer abc.1"),
            ),
            (&[("sec-websocket-protocol", "chat")], None),
            (&[("cookie", "a=b; token=abc.2; c=d")], Some("Bearer abc.2")),
            (
                &[
                    ("sec-websocket-protocol", "Bearer, abc.1"),
                    ("cookie", "token=abc.2"),
                ],
                Some("Bearer abc.2"),
            ),
        ] {
            let found = token(&headers(lines));
            assert_eq!(found, expected.map(HeaderValue::from_static), "{lines:?}");
        }
    }

    #[test]
    fn the_key_is_answered_as_in_rfc_6455() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        let expected = HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accept(&key), Some(expected));
    }

    #[test]
    fn a_websocket_is_asked_for_by_two_headers() {
        let both = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
        ];
        assert!(is_asked(&headers(&both)));
        assert!(!is_asked(&headers(&both[..1])));
        assert!(!is_asked(&headers(&both[1..])));
    }
}
