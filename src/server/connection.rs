//! One client connection: HTTP/2 carries gRPC, HTTP/1 carries everything else, on one port.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::body::Body;

use super::ping_guard::PingGuard;
use crate::api::Api;
use crate::http::HttpService;
use crate::metrics::Metrics;

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    GrpcAndHttp,
    Grpc,
    Http,
}

/// Settings of HTTP/2.
#[derive(Clone, Copy, Debug)]
pub struct Http2 {
    pub max_concurrent_streams: u32,
    /// Idle connections are pinged this often, and closed if no answer comes in time.
    pub keepalive: Option<(Duration, Duration)>,
    /// Clients that ping more often are sent away; none: any may.
    pub min_ping_time: Option<Duration>,
}

/// A stream may send this much ahead of its reader.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// A client that gives up many calls at once is no attacker.
const MAX_PENDING_RESETS: usize = 10_000;
/// After this a connection that does not end by itself is cut.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Serves connections; cheap to clone.
#[derive(Clone)]
pub struct Connections {
    pub api: Arc<Api>,
    pub http: HttpService,
    pub traffic: Traffic,
    pub http2: Http2,
    pub metrics: Arc<Metrics>,
}

impl Connections {
    /// Serves one connection until either side ends it, or `stop` says to.
    pub async fn serve(self, stream: TcpStream, mut stop: watch::Receiver<bool>) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        if self.traffic == Traffic::Grpc {
            builder = builder.http2_only();
        }
        if self.traffic == Traffic::Http {
            builder = builder.http1_only();
        }
        builder.http1().timer(TokioTimer::new());
        let mut http2 = builder.http2();
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.http2.max_concurrent_streams)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_PENDING_RESETS);
        if let Some((interval, timeout)) = self.http2.keepalive {
            http2
                .keep_alive_interval(interval)
                .keep_alive_timeout(timeout);
        }
        let gate = Gate {
            api: self.api.clone(),
            http: self.http.clone(),
        };
        // No minimum at all is a minimum of nothing.
        let min_ping_time = self.http2.min_ping_time.unwrap_or_default();
        let stream = PingGuard::new(stream, min_ping_time, self.metrics);
        let connection = builder.serve_connection(TokioIo::new(stream), gate);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            _ = stop.wait_for(|stop| *stop) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(DRAIN_LIMIT, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "client connection ended");
        }
    }
}

/// Tells gRPC from the rest.
struct Gate {
    api: Arc<Api>,
    http: HttpService,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl hyper::service::Service<Request<Incoming>> for Gate {
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

/// As grpc-go answers a call with another method.
fn not_post(method: &Method) -> Response<Body> {
    let method = method.as_str();
    let message = format!("Received a HEADERS frame with :method {method:?} which should be POST");
    let mut response = tonic::Status::internal(message).into_http();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// As grpc-go answers HTTP/2 that is not gRPC.
fn not_grpc(content_type: Option<&HeaderValue>) -> Response<Body> {
    let found = content_type
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .unwrap_or_default();
    let message = format!("invalid gRPC request content-type {found:?}");
    let mut response = tonic::Status::invalid_argument(message).into_http();
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}
