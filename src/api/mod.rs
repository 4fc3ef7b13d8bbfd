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

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arriving::{Arriving, HeldByCall, Source, Until};
use call_log::{CallLog, Content};
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

/// All services of a member; cheap to clone.
#[derive(Clone)]
pub struct Api {
    kv_service: kv::KvService,
    auth_service: auth::AuthService,
    kv: KvServer<kv::KvService>,
    watch: WatchServer<watch::WatchService>,
    lease: LeaseServer<lease::LeaseService>,
    cluster: ClusterServer<cluster::ClusterService>,
    maintenance: MaintenanceServer<maintenance::MaintenanceService>,
    auth: AuthServer<auth::AuthService>,
    lock: LockServer<lock::LockService>,
    election: ElectionServer<election::ElectionService>,
    health: HealthServer<health::HealthService>,
    gate: RpcGate,
    log: CallLog,
    handle: Arc<Handle>,
    shared: Arc<Shared>,
    requests: Arc<Requests>,
    source: Arc<Source>,
    /// None where traces are off.
    traces: Option<Arc<OfConnection>>,
    max_message_bytes: usize,
}

/// What a call answers, as a server of HTTP takes it.
pub type CallFuture = tonic::codegen::BoxFuture<Response<Body>, Infallible>;

/// Applies the limits that every service has.
macro_rules! limited {
    ($server:ident, $service:expr, $max:expr) => {
        $server::new($service)
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
        let kv_service = kv::KvService::new(handle.clone(), settings, answers.clone());
        let watch_service = watch::WatchService::new(handle.clone(), settings);
        let concurrency = Concurrency::new(handle.clone());
        let auth_service = auth::AuthService::new(handle.clone(), answers.clone());
        let log = CallLog::new(&handle, &settings);
        Self {
            kv: limited!(KvServer, kv_service.clone(), max),
            kv_service,
            watch: limited!(WatchServer, watch_service.clone(), max),
            lease: limited!(
                LeaseServer,
                lease::LeaseService::new(handle.clone(), settings, answers.clone()),
                max
            ),
            cluster: limited!(
                ClusterServer,
                cluster::ClusterService::new(handle.clone(), answers.clone()),
                max
            ),
            maintenance: limited!(
                MaintenanceServer,
                maintenance::MaintenanceService::new(handle.clone()),
                max
            ),
            auth: limited!(AuthServer, auth_service.clone(), max),
            auth_service,
            lock: limited!(
                LockServer,
                lock::LockService::new(handle.clone(), concurrency.clone()),
                max
            ),
            election: limited!(
                ElectionServer,
                election::ElectionService::new(handle.clone(), concurrency, watch_service),
                max
            ),
            handle: Arc::new(handle),
            health: limited!(HealthServer, health::HealthService, max),
            gate,
            log,
            shared,
            requests,
            source,
            traces: None,
            max_message_bytes: max,
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
        let kv_service = self.kv_service.of_client(remote);
        let auth_service = self.auth_service.of_client(remote);
        Self {
            source: Arc::new(Source {
                of_connection: self.requests.of_connection(unread),
                clock: self.shared.clock.clone(),
                max_message_bytes: self.max_message_bytes,
            }),
            kv: limited!(KvServer, kv_service.clone(), self.max_message_bytes),
            kv_service,
            auth: limited!(AuthServer, auth_service.clone(), self.max_message_bytes),
            auth_service,
            log: self.log.of_client(remote),
            traces: traces.map(Arc::new),
            ..self.clone()
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
        let deadline = match caller::wait_limit(request.headers()) {
            Ok(limit) => limit.map(|limit| self.shared.clock.now().saturating_add(limit)),
            Err(refused) => return at_once(*refused),
        };
        if let Some(deadline) = deadline {
            request
                .extensions_mut()
                .insert(caller::CallDeadline(deadline));
        }
        let traced = Traced::begin(self.traces.as_deref(), method, &mut request);
        if let Err(shown) = self.identify(method, &mut request) {
            // The only wait before a service, for a token that is newer than the state here.
            let api = self.clone();
            return Box::pin(async move {
                let identity = api.handle.identify(&shown, deadline).await;
                if identity == Err(Error::DeadlineExceeded) {
                    return Ok(Status::from(Error::DeadlineExceeded).into_http());
                }
                let known = caller::Known::new(api.handle.clone(), shown, identity);
                request.extensions_mut().insert(known);
                api.call_as_known(method, request, deadline, traced).await
            });
        }
        self.call_as_known(method, request, deadline, traced)
    }

    /// Puts who calls beside a call where that can matter; returns what is shown if it takes a wait
    /// to know.
    fn identify<B>(&self, method: usize, request: &mut Request<B>) -> Result<(), Shown> {
        if !self.shared.is_auth_enabled() && !RPCS[method].outlasts_an_identity() {
            return Ok(());
        }
        let shown = Shown::of(request.headers(), request.extensions());
        match self.handle.identify_at_once(&shown) {
            None => Err(shown),
            Some(identity) => {
                let known = caller::Known::new(self.handle.clone(), shown, identity);
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
        let counted = Counted::start(&self.shared, method, traced);
        let passed = self
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
            Passed::NeedsLeader => gate = Some(self.gate.clone()),
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
            let clock = &self.shared.clock;
            clock.sleep(deadline.saturating_sub(clock.now()))
        });
        let max = self.max_message_bytes;
        let rpc = &RPCS[method];
        let logged = rpc.is_unary() && !call_log::is_logged_by_its_service(rpc);
        let log = logged.then(|| (self.log.clone(), self.log.now()));
        Box::pin(async move {
            let response = future.await?;
            drop((kept, head));
            let response = body::take_over(response);
            let response = status_text::in_grpc_go_words(response, max);
            if let Some((log, started)) = log {
                log.ended(
                    rpc.service,
                    rpc.method,
                    log.now() - started,
                    Content::unknown,
                );
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
        match RPCS[method].service {
            rpcs::KV => self.kv.clone().call(request),
            rpcs::WATCH => self.watch.clone().call(request),
            rpcs::LEASE => self.lease.clone().call(request),
            rpcs::CLUSTER => self.cluster.clone().call(request),
            rpcs::MAINTENANCE => self.maintenance.clone().call(request),
            rpcs::AUTH => self.auth.clone().call(request),
            rpcs::LOCK => self.lock.clone().call(request),
            rpcs::ELECTION => self.election.clone().call(request),
            _ => self.health.clone().call(request),
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
