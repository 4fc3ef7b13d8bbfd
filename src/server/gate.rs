//! Requests of a client: HTTP/2 carries gRPC, HTTP/1 carries everything else, on one port.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tonic::body::Body;

use crate::api::Api;
use crate::http::HttpService;
use crate::net::Client;

/// Dispatches gRPC and HTTP/1 requests; cheap to clone.
#[derive(Clone)]
pub struct ProtocolSwitch {
    pub api: Arc<Api>,
    pub http: HttpService,
}

impl ProtocolSwitch {
    /// The same for the requests of one client.
    pub fn of_client(&self, client: Client) -> Self {
        Self {
            api: Arc::new(self.api.of_client(client.remote, client.unread)),
            http: self.http.clone(),
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl hyper::service::Service<Request<Incoming>> for ProtocolSwitch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        if request.version() != Version::HTTP_2 {
            let http = self.http.clone();
            return Box::pin(async move { Ok(http.respond(request).await) });
        }
        let content_type = request.headers().get(CONTENT_TYPE);
        if !content_type.is_some_and(is_grpc) {
            let response = not_grpc(content_type);
            return Box::pin(std::future::ready(Ok(response)));
        }
        if request.method() != Method::POST {
            let response = not_post(request.method());
            return Box::pin(std::future::ready(Ok(response)));
        }
        let call = self.api.call(request);
        Box::pin(async move { Ok(call.await) })
    }
}

/// `application/grpc`, alone or with a subtype or parameters.
fn is_grpc(content_type: &HeaderValue) -> bool {
    content_type
        .as_bytes()
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// grpc-go's response to another method than POST.
fn not_post(method: &Method) -> Response<Body> {
    let method = method.as_str();
    let message = format!("Received a HEADERS frame with :method {method:?} which should be POST");
    let mut response = tonic::Status::internal(message).into_http();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// grpc-go's response to HTTP/2 that is not gRPC.
fn not_grpc(content_type: Option<&HeaderValue>) -> Response<Body> {
    let found = content_type
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .unwrap_or_default();
    let message = format!("invalid gRPC request content-type {found:?}");
    let mut response = tonic::Status::invalid_argument(message).into_http();
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}
