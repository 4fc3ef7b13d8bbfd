//! etcd's JSON gateway: the RPCs as POST requests below `/v3/`.
//!
//! A request becomes a call of gRPC within the process, with the headers of its client and on
//! behalf of its connection, and is handled as every call from there: identity, admission,
//! permissions, limits and counts are those of `api`. The gateway has no identity of its own and
//! knows of no data; what it adds is the translation of messages, both ways.
//!
//! Neither way holds more than a value: requests wait for room in the memory budget (`body`),
//! answers are written as they come and as their client takes them (`text`, `answer`). A client
//! that leaves takes its call with it, since all of it is one future and one body.
//!
//! Where etcd's gateway never answers (a watch whose first message is malformed), or drops an
//! error (a later one, or a keep-alive's), this one answers with the error.

mod answer;
mod binary;
mod body;
pub mod descriptors;
mod form;
pub mod message;
mod metadata;
mod refusal;
mod routes;
mod text;
pub mod values;
mod websocket;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::future::Either;
use futures_util::{StreamExt, stream};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use percent_encoding::percent_decode_str;
use prost_reflect::MessageDescriptor;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::body::Body;

use crate::budget::{Requests, Share, unread};
use crate::env::{self, Clock};
use crate::error::Error;
use crate::service::rpcs::{self, Flow, RPCS};
use answer::{Answer, Deadline, Means};
use body::{Failed, Limits, Reader};
use descriptors::descriptors;
use text::Shape;

const ROOT: &str = "/v3/";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    targets: Arc<HashMap<&'static str, Target>>,
    requests: Arc<Requests>,
    limits: Arc<Limits>,
    means: Arc<Means>,
}

/// The RPC of a path.
struct Target {
    uri: Uri,
    flow: Flow,
    input: MessageDescriptor,
    output: MessageDescriptor,
}

impl Target {
    fn shape(&self) -> Shape {
        match self.flow {
            Flow::Unary => Shape::Object,
            Flow::ServerStream | Flow::BidiStream => Shape::Lines,
        }
    }
}

/// The RPCs by their paths.
fn targets() -> HashMap<&'static str, Target> {
    let target = |(path, service, method): &routes::Route| {
        let rpc = &RPCS[rpcs::find(service, method).ok()?];
        let found = descriptors().get_service_by_name(service)?;
        let described = found.methods().find(|one| one.name() == *method)?;
        let target = Target {
            uri: format!("/{service}/{method}").parse().ok()?,
            flow: rpc.flow,
            input: described.input(),
            output: described.output(),
        };
        Some((*path, target))
    };
    routes::ROUTES.iter().filter_map(target).collect()
}

impl Gateway {
    /// `requests` counts what clients send, `answers` what they get.
    pub fn new(
        clock: Arc<dyn Clock>,
        requests: Arc<Requests>,
        answers: Arc<Share>,
        max_message_bytes: usize,
    ) -> Self {
        let unread = requests.unread().connection();
        Self {
            targets: Arc::new(targets()),
            limits: Arc::new(Limits {
                of_connection: requests.of_connection(unread),
                clock: clock.clone(),
                max_message_bytes,
            }),
            requests,
            means: Arc::new(Means {
                clock,
                share: answers,
            }),
        }
    }

    /// The same for the requests of one connection.
    pub fn of_client(&self, unread: Arc<unread::Connection>) -> Self {
        Self {
            limits: Arc::new(Limits {
                of_connection: self.requests.of_connection(unread),
                clock: self.limits.clock.clone(),
                max_message_bytes: self.limits.max_message_bytes,
            }),
            ..self.clone()
        }
    }

    /// Answers a request below `/v3/`; `call` makes its call of gRPC as its client would.
    pub async fn respond<B, F>(
        self,
        request: Request<B>,
        call: impl FnOnce(Request<Body>) -> F + Send + 'static,
    ) -> Response<Body>
    where
        B: http_body::Body<Data: Buf + Send, Error: Send> + Send + Unpin + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let is_http1 = request.version() == Version::HTTP_11;
        if is_http1 && websocket::is_asked(request.headers()) {
            let answer = |request| self.translate(request, call);
            return websocket::open(&request.map(drop), answer);
        }
        self.translate(request, call).await
    }

    async fn translate<B, F>(
        self,
        request: Request<B>,
        call: impl FnOnce(Request<Body>) -> F,
    ) -> Response<Body>
    where
        B: http_body::Body<Data: Buf + Send, Error: Send> + Send + Unpin + 'static,
        F: Future<Output = Response<Body>>,
    {
        let (head, body) = request.into_parts();
        let overridden = form::overridden(&head.method, &head.headers);
        let body = match overridden {
            None => Some(body),
            Some(_) => {
                let reader = Reader::new(body, self.limits.clone());
                if let Err(status) = form::read(reader, head.uri.query().unwrap_or_default()).await
                {
                    return refusal::response(&status);
                }
                None
            }
        };
        let path = percent_decode_str(head.uri.path()).decode_utf8_lossy();
        let name = path.strip_prefix(ROOT);
        let Some(target) = name.and_then(|name| self.targets.get(name)) else {
            return refusal::response(&Status::not_found("Not Found"));
        };
        if head.method != Method::POST || overridden == Some(false) {
            return refusal::response(&Status::unimplemented("Method Not Allowed"));
        }
        let limit = match metadata::timeout(&head.headers) {
            Ok(limit) => limit,
            Err(status) => return refusal::response(&status),
        };
        let clock = &self.means.clock;
        let deadline = Deadline(limit.map(|limit| clock.now().saturating_add(limit)));
        let metadata = match metadata::metadata(&head.headers, limit) {
            Ok(metadata) => metadata,
            Err(status) => return refusal::response(&status),
        };
        let answering = match body {
            Some(body) => Either::Left(self.answer(target, metadata, body, deadline, call)),
            None => Either::Right(self.answer(target, metadata, Body::empty(), deadline, call)),
        };
        let Some(limit) = limit else {
            return answering.await;
        };
        let answered = env::timeout(clock.as_ref(), limit, answering).await;
        answered.unwrap_or_else(|| {
            let status = Error::DeadlineExceeded.into();
            match target.shape() {
                Shape::Object => refusal::response(&status),
                Shape::Lines => refusal::of_stream(&status),
            }
        })
    }

    async fn answer<B, F>(
        &self,
        target: &Target,
        metadata: HeaderMap,
        body: B,
        deadline: Deadline,
        call: impl FnOnce(Request<Body>) -> F,
    ) -> Response<Body>
    where
        B: http_body::Body<Data: Buf + Send, Error: Send> + Send + Unpin + 'static,
        F: Future<Output = Response<Body>>,
    {
        let reader = Reader::new(body, self.limits.clone());
        let (body, failure) = match target.flow {
            Flow::BidiStream => {
                let (sender, failure) = oneshot::channel();
                (
                    messages(reader, target.input.clone(), sender),
                    Some(failure),
                )
            }
            Flow::Unary | Flow::ServerStream => match only_message(reader, &target.input).await {
                Ok(message) => (Body::new(Full::new(message)), None),
                Err(status) => return refusal::response(&status),
            },
        };
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = target.uri.clone();
        *request.headers_mut() = metadata;
        request.headers_mut().insert(CONTENT_TYPE, GRPC);
        request.headers_mut().insert(TE, TRAILERS);
        let response = call(request).await;
        let form = (target.output.clone(), target.shape());
        Answer::new(response, form, failure, deadline, self.means.clone())
            .respond()
            .await
    }
}

/// The message of a call that has one. An empty body is an empty message, and what stands behind
/// the first value is none of it.
async fn only_message<B>(mut reader: Reader<B>, input: &MessageDescriptor) -> Result<Bytes, Status>
where
    B: http_body::Body<Data: Buf> + Unpin,
{
    match reader.next().await {
        Ok(Some(value)) => reader.message(input, &value.json),
        Ok(None) => reader.message(input, b"{}"),
        Err(Failed::Refused(status)) => Err(status),
        Err(Failed::Gone) => Err(Status::cancelled("the client has gone")),
    }
}

/// The messages of a stream, as they come. The first that is none ends them, and `failure` says
/// why.
fn messages<B>(
    reader: Reader<B>,
    input: MessageDescriptor,
    failure: oneshot::Sender<Status>,
) -> Body
where
    B: http_body::Body<Data: Buf + Send, Error: Send> + Send + Unpin + 'static,
{
    let messages = stream::unfold(Some((reader, input, failure)), |state| async {
        let (mut reader, input, failure) = state?;
        let next = match reader.next().await {
            Ok(None) => return None,
            Ok(Some(value)) => reader.message(&input, &value.json),
            Err(Failed::Refused(status)) => Err(status),
            Err(Failed::Gone) => {
                let gone = Status::cancelled("the client has gone");
                return Some((Err(gone), None));
            }
        };
        match next {
            Ok(message) => Some((Ok(Frame::data(message)), Some((reader, input, failure)))),
            Err(status) => {
                // Nobody hears it where the answer has ended.
                let _ = failure.send(status);
                None
            }
        }
    });
    // It is asked once more when it is dropped: for what nobody has read.
    Body::new(StreamBody::new(Box::pin(messages.fuse())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_its_messages() {
        assert_eq!(targets().len(), routes::ROUTES.len());
    }
}
