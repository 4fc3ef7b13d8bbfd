//! Where each call is sent. Watches and renewals of leases are shared; what has keys in it is for `kv`;
//! the rest is passed on as it comes, with its caller's token. What is not gRPC is a request for a page.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use prost::Message as _;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;

use super::cluster::Proxies;
use super::group::Groups;
use super::kv::{KvOptions, KvProxy};
use super::lease::LeaseProxy;
use super::namespace::{Keyed, Namespace};
use super::pages;
use super::passing;
use super::payloads::PayloadLog;
use super::renewals::Renewals;
use super::upstream::Upstream;
use super::watch::WatchProxy;
use super::watches::Watches;
use crate::env::SystemClock;
use crate::http::pprof;
use crate::proto::etcdserverpb::lease_server::LeaseServer;
use crate::proto::etcdserverpb::watch_server::WatchServer;
use crate::types::Remote;

const WATCH: &str = "/etcdserverpb.Watch/Watch";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
const MEMBER_LIST: &str = "/etcdserverpb.Cluster/MemberList";

/// How calls are answered.
#[derive(Clone, Copy, Debug)]
pub struct CallOptions {
    pub kv: KvOptions,
    pub profiles: bool,
    pub logs_messages: bool,
}

/// Answers all that comes to the proxy; cheap to clone.
#[derive(Clone)]
pub struct ProxyService {
    all: Arc<All>,
    /// Of the client's connection.
    log: Option<PayloadLog>,
}

struct All {
    upstream: Arc<Upstream>,
    kv: KvProxy,
    /// None: clients learn the members.
    proxies: Option<Arc<Proxies>>,
    watches: Groups<Watches>,
    watch: WatchServer<WatchProxy>,
    lease: LeaseServer<LeaseProxy>,
    options: CallOptions,
    /// Nothing but pages.
    pages_only: bool,
}

impl ProxyService {
    pub fn new(
        upstream: Arc<Upstream>,
        namespace: Namespace,
        proxies: Option<Arc<Proxies>>,
        options: CallOptions,
    ) -> Self {
        let (shared, named) = (|| upstream.clone(), || namespace.clone());
        let watches = Groups::new(shared(), named(), |namespace| {
            Watches::new(namespace.clone())
        });
        let renewals = Groups::new(shared(), named(), |_| Renewals::default());
        let watch = WatchServer::new(WatchProxy(watches.clone()));
        let lease = LeaseServer::new(LeaseProxy(renewals));
        let all = Arc::new(All {
            kv: KvProxy::new(shared(), namespace, options.kv),
            upstream,
            proxies,
            watches,
            watch: watch.max_decoding_message_size(options.kv.request_bytes),
            lease,
            options,
            pages_only: false,
        });
        Self { all, log: None }
    }

    /// Waits until calls can be answered.
    pub async fn recover(&self) {
        self.all.kv.recover().await;
    }

    /// The same for a client's connection.
    pub fn of_client(&self, remote: &Remote) -> Self {
        let log = || PayloadLog::new(&remote.to_string());
        Self {
            all: self.all.clone(),
            log: self.all.options.logs_messages.then(log),
        }
    }

    /// The same for `--metrics-addr`.
    pub fn pages_only(&self) -> Self {
        let all = &self.all;
        let all = Arc::new(All {
            upstream: all.upstream.clone(),
            kv: all.kv.clone(),
            proxies: all.proxies.clone(),
            watches: all.watches.clone(),
            watch: all.watch.clone(),
            lease: all.lease.clone(),
            options: CallOptions {
                profiles: false,
                ..all.options
            },
            pages_only: true,
        });
        Self { all, log: None }
    }

    async fn respond(self, request: Request<Body>) -> Response<Body> {
        let content_type = request.headers().get(CONTENT_TYPE);
        let is_grpc =
            content_type.is_some_and(|one| one.as_bytes().starts_with(b"application/grpc"));
        let all = &self.all;
        if request.version() != Version::HTTP_2 || !is_grpc || all.pages_only {
            let request = match all.options.profiles {
                false => request,
                true => match pprof::answer(request, &SystemClock::new()).await {
                    Ok(response) => return response,
                    Err(request) => request,
                },
            };
            let request = request.map(drop);
            let counts = (all.watches.counts(), all.kv.counts());
            return pages::answer(&request, &all.upstream, &all.watch, counts).await;
        }
        match &self.log {
            None => all.answer(request).await,
            Some(log) => log.call(request, |request| all.answer(request)).await,
        }
    }
}

impl All {
    /// Answers a call.
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let never = |never: Infallible| match never {};
        let answered = match request.uri().path() {
            WATCH => self.watch.clone().call(request).await.map_err(never),
            KEEP_ALIVE => self.lease.clone().call(request).await.map_err(never),
            RANGE_STREAM => Err(Status::unimplemented(
                "RangeStream is not supported by the gRPC proxy",
            )),
            path => match (Keyed::of(path), &self.proxies) {
                (Some(keyed), _) => self.kv.call(keyed, request).await,
                (_, Some(proxies)) if path == MEMBER_LIST => {
                    let list = proxies.list().await.encode_to_vec();
                    Ok(passing::answer(passing::framed(&list)))
                }
                _ => {
                    let _writing = self.kv.writing(path);
                    self.passed(request).await
                }
            },
        };
        answered.unwrap_or_else(Status::into_http)
    }

    async fn passed(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        passing::pass(&self.upstream, path, &head.headers, body).await
    }
}

impl hyper::service::Service<Request<Incoming>> for ProxyService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.respond(request.map(Body::new)).await) })
    }
}
