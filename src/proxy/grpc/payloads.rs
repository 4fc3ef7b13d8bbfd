//! `--experimental-enable-grpc-logging`: every message that a client sends or gets is a line of the log.
//!
//! The lines are etcd's: a message is shown as JSON, with keys and values in base64. But passwords and
//! tokens are not shown, nor what is in a message of more than 64 KiB.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use prost_reflect::{DynamicMessage, MessageDescriptor, Value};
use tonic::body::Body;
use tonic::{Code, Status};

use super::passing::{PREFIX_BYTES, length};
use crate::gateway::descriptors::descriptors;

/// A longer message is not shown.
const MAX_SHOWN_BYTES: usize = 64 << 10;
/// Fields that nobody is to read in a log.
const SECRETS: [&str; 3] = ["password", "hashedPassword", "token"];
const NOT_SHOWN: &str = "***";
/// What grpc-go calls the end of a client's messages.
const EOF: &str = "EOF";

/// Logs the messages of a connection's calls.
#[derive(Clone)]
pub struct PayloadLog {
    peer: Arc<str>,
}

/// Whose messages they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Request,
    Response,
}

/// What is known of a call.
#[derive(Clone)]
struct Described {
    service: String,
    method: String,
    peer: Arc<str>,
    /// One request and one answer.
    is_unary: bool,
    /// The client may send several.
    has_many_requests: bool,
}

impl PayloadLog {
    pub fn new(peer: &str) -> Self {
        Self { peer: peer.into() }
    }

    /// Makes a call, whose messages are logged if it is one of etcd's.
    pub async fn call<F>(
        &self,
        request: Request<Body>,
        call: impl FnOnce(Request<Body>) -> F,
    ) -> Response<Body>
    where
        F: Future<Output = Response<Body>>,
    {
        let path = request.uri().path().trim_start_matches('/');
        let found = path.split_once('/').and_then(|(service, name)| {
            let described = descriptors().get_service_by_name(service)?;
            let method = described.methods().find(|one| one.name() == name)?;
            let call = Described {
                service: service.to_owned(),
                method: name.to_owned(),
                peer: self.peer.clone(),
                is_unary: !method.is_client_streaming() && !method.is_server_streaming(),
                has_many_requests: method.is_client_streaming(),
            };
            Some((call, method.input(), method.output()))
        });
        let Some((described, input, output)) = found else {
            return call(request).await;
        };
        let sent = Payloads::new(Way::Request, described.clone(), input);
        let answered = Payloads::new(Way::Response, described, output);
        let response = call(request.map(|body| Body::new(LoggedBody::new(body, sent)))).await;
        // An answer without a message has its status in its head.
        answered.status(response.headers());
        response.map(|body| Body::new(LoggedBody::new(body, answered)))
    }
}

/// Finds the messages in the data of a call.
struct Payloads {
    way: Way,
    call: Described,
    message: MessageDescriptor,
    /// A message that has begun.
    held: BytesMut,
    /// Bytes of one that is not shown.
    skipped: usize,
}

impl Payloads {
    fn new(way: Way, call: Described, message: MessageDescriptor) -> Self {
        Self {
            way,
            call,
            message,
            held: BytesMut::new(),
            skipped: 0,
        }
    }

    fn feed(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.skipped > 0 {
                let (skipped, rest) = data.split_at(self.skipped.min(data.len()));
                self.skipped -= skipped.len();
                data = rest;
                continue;
            }
            let missing = match self.held.len() {
                held @ ..PREFIX_BYTES => PREFIX_BYTES - held,
                held => PREFIX_BYTES + length(&self.held) - held,
            };
            let (taken, rest) = data.split_at(missing.min(data.len()));
            self.held.extend_from_slice(taken);
            data = rest;
            if self.held.len() < PREFIX_BYTES {
                continue;
            }
            let bytes = length(&self.held);
            if bytes > MAX_SHOWN_BYTES {
                self.held.clear();
                self.skipped = bytes;
                self.log(&format!("{bytes} bytes"), None);
            } else if self.held.len() == PREFIX_BYTES + bytes {
                let message = self.held.split();
                let content = match message[0] {
                    0 => shown(&self.message, &message[PREFIX_BYTES..]),
                    _ => format!("{bytes} bytes, compressed"),
                };
                self.log(&content, None);
            }
        }
    }

    /// The data has ended without an error.
    fn end(&self) {
        if self.way == Way::Request && self.call.has_many_requests {
            self.log("{}", Some(EOF));
        }
    }

    /// Logs the error of a call with one answer, which that is instead of the answer.
    fn status(&self, headers: &HeaderMap) {
        let failed = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok);
        if let Some(status) = failed.filter(|_| self.call.is_unary) {
            let (code, text) = (status.code(), status.message());
            self.log(
                "",
                Some(&format!("rpc error: code = {code:?} desc = {text}")),
            );
        }
    }

    fn log(&self, content: &str, error: Option<&str>) {
        let Described {
            service,
            method,
            peer,
            ..
        } = &self.call;
        match self.way {
            Way::Request => tracing::info!(
                "grpc.request.error" = error,
                "grpc.request.content" = content,
                "grpc.service" = service,
                "grpc.method" = method,
                "peer.address" = &**peer,
                "received payload logged as grpc.request.content field"
            ),
            Way::Response => tracing::info!(
                "grpc.response.error" = error,
                "grpc.response.content" = content,
                "grpc.service" = service,
                "grpc.method" = method,
                "peer.address" = &**peer,
                "returned response payload logged as grpc.response.content field"
            ),
        }
    }
}

/// A message as JSON.
fn shown(descriptor: &MessageDescriptor, message: &[u8]) -> String {
    let decoded = DynamicMessage::decode(descriptor.clone(), message);
    let mut decoded = match decoded {
        Ok(decoded) => decoded,
        Err(error) => return format!("{} bytes, unreadable: {error}", message.len()),
    };
    for field in descriptor.fields() {
        if SECRETS.contains(&field.json_name()) && decoded.has_field(&field) {
            decoded.set_field(&field, Value::String(NOT_SHOWN.to_owned()));
        }
    }
    // Without a map or a number that JSON lacks every message can be written.
    serde_json::to_string(&decoded).unwrap_or_default()
}

/// A body whose messages are logged as they pass.
struct LoggedBody {
    body: Body,
    payloads: Payloads,
    has_ended: bool,
}

impl LoggedBody {
    fn new(body: Body, payloads: Payloads) -> Self {
        Self {
            body,
            payloads,
            has_ended: false,
        }
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.payloads.end();
        }
    }
}

impl http_body::Body for LoggedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.payloads.feed(data);
                }
                if let Some(trailers) = frame.trailers_ref() {
                    self.payloads.status(trailers);
                }
                if self.body.is_end_stream() {
                    self.end();
                }
            }
            Some(Err(_)) => self.has_ended = true,
            None => self.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::etcdserverpb::{AuthenticateRequest, AuthenticateResponse, PutRequest};

    fn json(name: &str, message: &[u8]) -> String {
        let descriptor = descriptors().get_message_by_name(name).expect(name);
        shown(&descriptor, message)
    }

    #[test]
    fn messages_are_shown_as_etcd_shows_them() {
        let put = PutRequest {
            key: "k".into(),
            value: "v".into(),
            lease: 7,
            prev_kv: true,
            ..Default::default()
        };
        assert_eq!(
            json("etcdserverpb.PutRequest", &put.encode_to_vec()),
            r#"{"key":"aw==","value":"dg==","lease":"7","prevKv":true}"#
        );
        assert_eq!(json("etcdserverpb.PutRequest", b""), "{}");
        let unreadable = json("etcdserverpb.PutRequest", b"\xff");
        assert!(
            unreadable.starts_with("1 bytes, unreadable"),
            "{unreadable}"
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let request = AuthenticateRequest {
            name: "u".to_owned(),
            password: "secret".to_owned(),
        };
        let answer = AuthenticateResponse {
            token: "secret".to_owned(),
            ..Default::default()
        };
        assert_eq!(
            json("etcdserverpb.AuthenticateRequest", &request.encode_to_vec()),
            r#"{"name":"u","password":"***"}"#
        );
        assert_eq!(
            json("etcdserverpb.AuthenticateResponse", &answer.encode_to_vec()),
            r#"{"token":"***"}"#
        );
    }

    #[test]
    fn every_secret_of_a_call_is_known() {
        let methods = descriptors().services();
        let methods = methods.flat_map(|service| service.methods().collect::<Vec<_>>());
        for message in methods.flat_map(|method| [method.input(), method.output()]) {
            if !message.full_name().starts_with("etcdserverpb.") {
                continue;
            }
            for field in message.fields() {
                let name = field.json_name().to_lowercase();
                let is_secret = ["password", "token"].iter().any(|word| name.contains(word));
                if is_secret && field.kind() == prost_reflect::Kind::String {
                    assert!(
                        SECRETS.contains(&field.json_name()),
                        "{}",
                        field.full_name()
                    );
                }
            }
        }
    }
}
