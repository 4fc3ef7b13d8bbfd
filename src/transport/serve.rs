//! The peer port: HTTP/2 for the calls of other members, HTTP/1 for a few pages.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response, Version};
use hyper::body::Incoming;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::Service as _;

use super::context::Context;
use super::dial::UNACKNOWLEDGED_LIMIT;
use super::identity;
use super::network::GrpcNetwork;
use super::pages;
use super::service::PeerRpcService;
use crate::budget::unread::Unread;
use crate::budget::unsent::Unsent;
use crate::net::listen::Listener;
use crate::net::tls::Rejections;
use crate::net::{self, Allowance, Http2, KeepAlive, Security, Versions};
use crate::proto::etchedpeer::peer_server::PeerServer;

/// How long the other side may acknowledge nothing.
const KEEP_ALIVE: KeepAlive = KeepAlive {
    interval: Duration::from_secs(5),
    timeout: Duration::from_secs(20),
};
/// The limit from accepting a connection to its first byte, and to the end of a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

impl GrpcNetwork {
    /// Serves the other members until `stop` is set, and calls in progress for a moment longer. May
    /// be called for several listeners.
    pub async fn serve(
        self: Arc<Self>,
        listener: Listener,
        security: Security,
        allowance: Arc<Allowance>,
        stop: watch::Receiver<bool>,
    ) {
        let service = Arc::new(PeerRpcService {
            context: self.context.clone(),
            network: self.clone(),
            arrivals: self.arrivals.clone(),
            stop: stop.clone(),
        });
        let options = &self.context.options;
        let server =
            |max_bytes| PeerServer::from_arc(service.clone()).max_decoding_message_size(max_bytes);
        let gate = PeerDispatch {
            context: self.context.clone(),
            network: self.clone(),
            lanes: server(options.max_message_bytes),
            unlisted: server(options.unlisted_message_bytes),
            requests: server(MAX_REQUEST_BYTES),
        };
        let options = net::ServeOptions {
            who: "peer",
            versions: Versions::Both,
            security,
            rejections: Arc::new(Rejections::new("peer")),
            http2: Http2::of_peers(KEEP_ALIVE),
            guard: None,
            allowance,
            unread: Unread::new(usize::MAX),
            unsent: Unsent::new(usize::MAX),
            first_byte_limit: HEAD_LIMIT,
            head_limit: HEAD_LIMIT,
            unacknowledged_limit: Some(UNACKNOWLEDGED_LIMIT),
        };
        net::serve(listener, options, move |_| gate.clone(), stop).await;
    }
}

/// What one member may ask another in one request. Such a request is read whole before it is known
/// who sends it.
const MAX_REQUEST_BYTES: usize = 4 << 20;
/// The method of those.
const REQUEST_PATH: &str = "/etchedpeer.Peer/Ask";

/// Dispatches calls and page requests; cheap to clone.
#[derive(Clone)]
struct PeerDispatch {
    context: Arc<Context>,
    network: Arc<GrpcNetwork>,
    lanes: PeerServer<PeerRpcService>,
    /// Of callers that are not listed.
    unlisted: PeerServer<PeerRpcService>,
    requests: PeerServer<PeerRpcService>,
}

impl PeerDispatch {
    /// Whether a call says that it is of a listed member; what else it says is checked behind.
    fn is_listed(&self, headers: &HeaderMap) -> bool {
        identity::caller(headers).is_some_and(|caller| self.network.lists(caller))
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl hyper::service::Service<Request<Incoming>> for PeerDispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        if request.version() == Version::HTTP_2 {
            let is_request = request.uri().path() == REQUEST_PATH;
            let server = match is_request {
                true => &self.requests,
                false if self.is_listed(request.headers()) => &self.lanes,
                false => &self.unlisted,
            };
            return server.clone().call(request);
        }
        let context = self.context.clone();
        Box::pin(async move { Ok(pages::respond(&context, request.method(), request.uri()).await) })
    }
}
