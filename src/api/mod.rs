//! The gRPC services: one file each. A service checks a request, calls the operation of `service`,
//! and fills in the header; it decides nothing about data.
//!
//! `Api` routes by path, without a general router: a call is passed straight to its service, and an
//! unknown one is answered in grpc-go's words.

mod answers;
mod arriving;
pub mod auth;
mod backup;
pub mod body;
pub mod call_log;
pub mod caller;
pub mod cluster;
mod counted;
pub mod election;
mod ending;
mod gate;
pub mod head;
mod header;
pub mod health;
pub mod kv;
pub mod lease;
pub mod lock;
pub mod maintenance;
mod methods;
mod range_stream;
mod received;
mod settings;
mod sliced;
mod spans;
mod status_text;
pub mod traces;
mod turns;
pub mod validate;
pub mod watch;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arriving::{Arriving, HeldByCall, Source, Until};
use call_log::Content;
use counted::Counted;
use ending::End;
use futures_util::FutureExt;
use gate::{Passed, RpcGate};
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use traces::{OfConnection, Traced, Traces};

use crate::budget::{Requests, Share, unread};
use crate::error::Error;
use crate::proto::etcdserverpb::{
    auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer,
    lease_server::LeaseServer, maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use crate::proto::health::health_server::HealthServer;
use crate::proto::v3electionpb::election_server::ElectionServer;
use crate::proto::v3lockpb::lock_server::LockServer;
use crate::replica::shared::Shared;
use crate::service::concurrency::Concurrency;
use crate::service::handle::Handle;
use crate::service::identity::Shown;
use crate::service::rpcs::{self, Flow, RPCS};
use crate::types::Remote;

pub use answers::{Answers, answer_limit_bytes};
pub use methods::methods;
pub use settings::{ApiSettings, GRPC_OVERHEAD_BYTES};

/// All services of a member, for one client or for none; cheap to clone, and small: there is one for
/// each connection.
#[derive(Clone)]
pub struct Api {
    services: Arc<OfMember>,
    kv: Arc<kv::KvService>,
    auth: Arc<auth::AuthService>,
    source: Arc<Source>,
    /// None where traces are off.
    traces: Option<Arc<OfConnection>>,
}

/// What is the same for all clients.
struct OfMember {
    watch: WatchServer<watch::WatchService>,
    lease: LeaseServer<lease::LeaseService>,
    cluster: ClusterServer<cluster::ClusterService>,
    maintenance: MaintenanceServer<maintenance::MaintenanceService>,
    lock: LockServer<lock::LockService>,
    election: ElectionServer<election::ElectionService>,
    health: HealthServer<health::HealthService>,
    gate: RpcGate,
    handle: Arc<Handle>,
    shared: Arc<Shared>,
    requests: Arc<Requests>,
    max_message_bytes: usize,
}

/// What a call answers, as a server of HTTP takes it.
pub type CallFuture = tonic::codegen::BoxFuture<Response<Body>, Infallible>;

/// Applies the limits that every service has.
macro_rules! limited {
    ($server:ident, $service:expr, $max:expr) => {
        $server::from_arc($service)
            .max_decoding_message_size($max)
            .max_encoding_message_size(i32::MAX as usize)
            .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
    };
}

impl Api {
    /// `requests` counts what clients send, `answers` what they get.
    pub fn new(
        handle: Handle,
        settings: ApiSettings,
        requests: Arc<Requests>,
        answers: Arc<Share>,
    ) -> Self {
        let max = settings.max_message_bytes();
        let shared = handle.shared().clone();
        let source = Arc::new(Source {
            of_connection: requests.of_connection(requests.unread().connection()),
            clock: shared.clock.clone(),
            max_message_bytes: max,
        });
        let gate = RpcGate::new(&handle);
        let answers = Answers::new(handle.clone(), answers);
        let kv = kv::KvService::new(handle.clone(), settings, answers.clone());
        let watch_service = watch::WatchService::new(handle.clone(), settings);
        let concurrency = Concurrency::new(handle.clone());
        let auth = auth::AuthService::new(handle.clone(), answers.clone());
        let services = OfMember {
            watch: limited!(WatchServer, Arc::new(watch_service.clone()), max),
            lease: limited!(
                LeaseServer,
                Arc::new(lease::LeaseService::new(
                    handle.clone(),
                    settings,
                    answers.clone()
                )),
                max
            ),
            cluster: limited!(
                ClusterServer,
                Arc::new(cluster::ClusterService::new(handle.clone(), answers)),
                max
            ),
            maintenance: limited!(
                MaintenanceServer,
                Arc::new(maintenance::MaintenanceService::new(handle.clone())),
                max
            ),
            lock: limited!(
                LockServer,
                Arc::new(lock::LockService::new(handle.clone(), concurrency.clone())),
                max
            ),
            election: limited!(
                ElectionServer,
                Arc::new(election::ElectionService::new(
                    handle.clone(),
                    concurrency,
                    watch_service
                )),
                max
            ),
            handle: Arc::new(handle),
            health: limited!(HealthServer, Arc::new(health::HealthService), max),
            gate,
            shared,
            requests,
            max_message_bytes: max,
        };
        Self {
            services: Arc::new(services),
            kv: Arc::new(kv),
            auth: Arc::new(auth),
            source,
            traces: None,
        }
    }

    /// With spans of calls from here.
    pub fn with_traces(self, traces: Arc<dyn Traces>) -> Self {
        let of_connection = OfConnection {
            traces,
            local: None,
        };
        Self {
            traces: Some(Arc::new(of_connection)),
            ..self
        }
    }

    /// The same for the calls of one connection, which arrived at `local`.
    pub fn of_client(
        &self,
        remote: Remote,
        local: Option<SocketAddr>,
        unread: Arc<unread::Connection>,
    ) -> Self {
        let traces = self.traces.as_ref().map(|of| OfConnection {
            traces: of.traces.clone(),
            local,
        });
        let services = &self.services;
        Self {
            kv: Arc::new(self.kv.of_client(remote)),
            auth: Arc::new(self.auth.of_client(remote)),
            source: Arc::new(Source {
                of_connection: services.requests.of_connection(unread),
                clock: services.shared.clock.clone(),
                max_message_bytes: services.max_message_bytes,
            }),
            traces: traces.map(Arc::new),
            services: services.clone(),
        }
    }

    /// Answers a gRPC call.
    pub fn call<B>(&self, mut request: Request<B>) -> CallFuture
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send + 'static,
        B::Data: Send,
    {
        let method = match methods::find(request.uri().path()) {
            Ok(method) => method,
            Err(status) => return at_once(status.into_http()),
        };
        let arrived_at = self.services.shared.clock.now();
        let deadline = match caller::wait_limit(request.headers()) {
            Ok(limit) => limit.map(|limit| arrived_at.saturating_add(limit)),
            Err(refused) => return at_once(*refused),
        };
        if let Some(deadline) = deadline {
            request
                .extensions_mut()
                .insert(caller::CallDeadline(deadline));
        }
        let traced = Traced::begin(self.traces.as_deref(), method, &mut request, arrived_at);
        if let Err(shown) = self.identify(method, &mut request) {
            // The only wait before a service, for a token that is newer than the state here.
            let api = self.clone();
            return Box::pin(async move {
                let identity = api.services.handle.identify(&shown, deadline).await;
                if identity == Err(Error::DeadlineExceeded) {
                    return Ok(Status::from(Error::DeadlineExceeded).into_http());
                }
                let known = caller::Known::new(api.services.handle.clone(), shown, identity);
                request.extensions_mut().insert(known);
                api.call_as_known(method, request, deadline, traced).await
            });
        }
        self.call_as_known(method, request, deadline, traced)
    }

    /// Puts who calls beside a call where that can matter; returns what is shown if it takes a wait
    /// to know.
    fn identify<B>(&self, method: usize, request: &mut Request<B>) -> Result<(), Shown> {
        if !self.services.shared.is_auth_enabled() && !RPCS[method].outlasts_an_identity() {
            return Ok(());
        }
        let shown = Shown::of(request.headers(), request.extensions());
        match self.services.handle.identify_at_once(&shown) {
            None => Err(shown),
            Some(identity) => {
                let known = caller::Known::new(self.services.handle.clone(), shown, identity);
                request.extensions_mut().insert(known);
                Ok(())
            }
        }
    }

    fn call_as_known<B>(
        &self,
        method: usize,
        mut request: Request<B>,
        deadline: Option<Duration>,
        traced: Traced,
    ) -> CallFuture
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send + 'static,
        B::Data: Send,
    {
        let counted = Counted::start(&self.services.shared, method, traced);
        let passed = self
            .services
            .gate
            .pass(method, request.headers(), request.extensions());
        let passed = match passed {
            Ok(passed) => passed,
            Err(error) => return refused(counted, error),
        };
        let mut gate = None;
        match passed {
            Passed::Call => {}
            Passed::Range(asked) => {
                request.extensions_mut().insert(asked);
            }
            Passed::NeedsLeader => gate = Some(self.services.gate.clone()),
        }
        let head = match head::room(&self.source, request.headers()) {
            Ok(head) => head,
            Err(error) => return refused(counted, error),
        };
        let kept = HeldByCall::default();
        let until = match RPCS[method].flow {
            Flow::Unary | Flow::ServerStream => {
                if RPCS[method].outlasts_an_identity() {
                    request.extensions_mut().insert(kept.clone());
                }
                Until::Answered(kept.clone())
            }
            Flow::BidiStream => Until::NextMessage(Vec::new()),
        };
        // Boxed, because the future of a call is moved several times on its way.
        let arriving = |body| Box::new(Arriving::new(body, self.source.clone(), until));
        let request = request.map(arriving);
        let future = self.serve(method, request);
        // The operation of a unary call ends by itself.
        let up = deadline.filter(|_| !RPCS[method].is_unary());
        let up = up.map(|deadline| {
            let clock = &self.services.shared.clock;
            clock.sleep(deadline.saturating_sub(clock.now()))
        });
        let max = self.services.max_message_bytes;
        let rpc = &RPCS[method];
        let logged = rpc.is_unary() && !call_log::is_logged_by_its_service(rpc);
        let log = logged.then(|| self.kv.log().clone());
        Box::pin(async move {
            let response = future.await?;
            drop((kept, head));
            let response = body::take_over(response);
            let response = status_text::in_grpc_go_words(response, max);
            if let Some(log) = log {
                log.ended(rpc.service, rpc.method, counted.took(), Content::unknown);
            }
            let response = match gate {
                Some(gate) => gate.cut(response),
                None => response,
            };
            Ok(counted.answer(match up {
                Some(up) => ending::until(response, up.map(|()| End::Cancel)),
                None => response,
            }))
        })
    }

    /// Hands a call to its service.
    fn serve<B>(&self, method: usize, request: Request<B>) -> CallFuture
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send + 'static,
        B::Data: Send,
    {
        let services = &self.services;
        let max = services.max_message_bytes;
        match RPCS[method].service {
            rpcs::KV => limited!(KvServer, self.kv.clone(), max).call(request),
            rpcs::WATCH => services.watch.clone().call(request),
            rpcs::LEASE => services.lease.clone().call(request),
            rpcs::CLUSTER => services.cluster.clone().call(request),
            rpcs::MAINTENANCE => services.maintenance.clone().call(request),
            rpcs::AUTH => limited!(AuthServer, self.auth.clone(), max).call(request),
            rpcs::LOCK => services.lock.clone().call(request),
            rpcs::ELECTION => services.election.clone().call(request),
            _ => services.health.clone().call(request),
        }
    }
}

fn refused(counted: Counted, error: Error) -> CallFuture {
    let response = Status::from(error).into_http();
    at_once(counted.answer(response))
}

fn at_once(response: Response<Body>) -> CallFuture {
    Box::pin(std::future::ready(Ok(response)))
}
