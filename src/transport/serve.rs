//! The peer port: HTTP/2 carries the calls of other members, HTTP/1 a few pages for people.
//!
//! `Connection::serve` is the one place where an accepted socket would be wrapped in TLS.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::Service as _;

use super::context::Context;
use super::dial;
use super::network::GrpcNetwork;
use super::pages;
use super::service::PeerService;
use crate::proto::etchedpeer::peer_server::PeerServer;

/// A stream may be this much ahead of its reader: enough to fill a fast link over some distance.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const MAX_FRAME_BYTES: u32 = 1 << 20;
/// Every lease renewal of another member's clients is a call of its own.
const MAX_STREAMS: u32 = 16_384;
/// A member that gives up many calls at once is no attacker.
const MAX_PENDING_RESETS: usize = 16_384;
/// A connection whose other side is gone without a word.
const KEEP_ALIVE: dial::KeepAlive = dial::KeepAlive {
    interval: Duration::from_secs(5),
    timeout: Duration::from_secs(20),
};
/// From a connection to its first byte, and to the end of a request's head.
const HEADERS_LIMIT: Duration = Duration::from_secs(10);
/// After this a connection that does not end by itself is cut.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

impl GrpcNetwork {
    /// Serves the other members until `stop` says so, and a moment longer for what is under way.
    /// May be called for several listeners.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let service = PeerService {
            context: self.context.clone(),
            network: self.clone(),
            arrivals: self.arrivals.clone(),
            stop: stop.clone(),
        };
        let server = PeerServer::new(service)
            .max_decoding_message_size(self.context.options.max_message_bytes);
        let connection = Connection {
            context: self.context.clone(),
            server,
        };
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection.clone().serve(stream, stop.clone()));
                }
                Err(error) => {
                    // Out of descriptors, most likely: others may become free.
                    tracing::warn!(%error, "cannot accept a peer's connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }
}

#[derive(Clone)]
struct Connection {
    context: Arc<Context>,
    server: PeerServer<PeerService>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, mut stop: watch::Receiver<bool>) {
        dial::tune(&stream);
        // Who says nothing at all is not waited for.
        let spoke = tokio::time::timeout(HEADERS_LIMIT, stream.readable()).await;
        if spoke.is_err() {
            return;
        }
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_LIMIT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(MAX_FRAME_BYTES)
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_PENDING_RESETS)
            .keep_alive_interval(KEEP_ALIVE.interval)
            .keep_alive_timeout(KEEP_ALIVE.timeout);
        let connection = builder.serve_connection(TokioIo::new(stream), self);
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
            tracing::debug!(%error, "a peer's connection ended");
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl hyper::service::Service<Request<Incoming>> for Connection {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        if request.version() == Version::HTTP_2 {
            return self.server.clone().call(request);
        }
        let context = self.context.clone();
        Box::pin(async move { Ok(pages::respond(&context, request.method(), request.uri()).await) })
    }
}
