//! The gRPC services: one file each. A service checks a request, has the node carry it out, and
//! fills in the header; it decides nothing about data.
//!
//! `Api` routes by path, without a general router: a call goes straight to its service, and an
//! unknown one is answered in grpc-go's words.

pub mod auth;
pub mod cluster;
pub mod election;
pub mod header;
pub mod health;
pub mod kv;
pub mod lease;
pub mod lock;
pub mod maintenance;
pub mod validate;
pub mod watch;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::{Code, Status};

use crate::node::Handle;
use crate::proto::etcdserverpb::{
    auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer,
    lease_server::LeaseServer, maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use crate::proto::health::health_server::HealthServer;
use crate::proto::v3electionpb::election_server::ElectionServer;
use crate::proto::v3lockpb::lock_server::LockServer;

/// gRPC may receive this much more than a request may hold; etcd's figure.
pub const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

/// Limits of the services.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub max_txn_ops: usize,
    pub max_request_bytes: usize,
    pub progress_interval: Duration,
}

/// All services of a member; cheap to clone.
#[derive(Clone)]
pub struct Api {
    kv: KvServer<kv::KvService>,
    watch: WatchServer<watch::WatchService>,
    lease: LeaseServer<lease::LeaseService>,
    cluster: ClusterServer<cluster::ClusterService>,
    maintenance: MaintenanceServer<maintenance::MaintenanceService>,
    auth: AuthServer<auth::AuthService>,
    lock: LockServer<lock::LockService>,
    election: ElectionServer<election::ElectionService>,
    health: HealthServer<health::HealthService>,
    max_message_bytes: usize,
}

/// What a call answers.
pub type CallFuture = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// The methods of a service, in the order of its definition.
struct Methods(&'static str, &'static [&'static str]);

const METHODS: &[Methods] = &[
    Methods(
        "etcdserverpb.KV",
        &["Range", "RangeStream", "Put", "DeleteRange", "Txn", "Compact"],
    ),
    Methods("etcdserverpb.Watch", &["Watch"]),
    Methods(
        "etcdserverpb.Lease",
        &[
            "LeaseGrant",
            "LeaseRevoke",
            "LeaseKeepAlive",
            "LeaseTimeToLive",
            "LeaseLeases",
        ],
    ),
    Methods(
        "etcdserverpb.Cluster",
        &[
            "MemberAdd",
            "MemberRemove",
            "MemberUpdate",
            "MemberList",
            "MemberPromote",
        ],
    ),
    Methods(
        "etcdserverpb.Maintenance",
        &[
            "Alarm",
            "Status",
            "Defragment",
            "Hash",
            "HashKV",
            "Snapshot",
            "MoveLeader",
            "Downgrade",
        ],
    ),
    Methods(
        "etcdserverpb.Auth",
        &[
            "AuthEnable",
            "AuthDisable",
            "AuthStatus",
            "Authenticate",
            "UserAdd",
            "UserGet",
            "UserList",
            "UserDelete",
            "UserChangePassword",
            "UserGrantRole",
            "UserRevokeRole",
            "RoleAdd",
            "RoleGet",
            "RoleList",
            "RoleDelete",
            "RoleGrantPermission",
            "RoleRevokePermission",
        ],
    ),
    Methods("v3lockpb.Lock", &["Lock", "Unlock"]),
    Methods(
        "v3electionpb.Election",
        &["Campaign", "Proclaim", "Leader", "Observe", "Resign"],
    ),
    Methods("grpc.health.v1.Health", &["Check", "List", "Watch"]),
];

/// Every method as (service, method).
pub fn methods() -> impl Iterator<Item = (&'static str, &'static str)> {
    METHODS
        .iter()
        .flat_map(|Methods(service, methods)| methods.iter().map(|method| (*service, *method)))
}

impl Api {
    pub fn new(handle: Handle, settings: Settings) -> Self {
        let max = settings.max_request_bytes + GRPC_OVERHEAD_BYTES;
        /// Applies the limits that every service has.
        macro_rules! limited {
            ($server:ident, $service:expr) => {
                $server::new($service)
                    .max_decoding_message_size(max)
                    .max_encoding_message_size(i32::MAX as usize)
                    .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
            };
        }
        Self {
            kv: limited!(KvServer, kv::KvService::new(handle.clone(), settings)),
            watch: limited!(WatchServer, watch::WatchService::new(handle.clone(), settings)),
            lease: limited!(LeaseServer, lease::LeaseService::new(handle.clone())),
            cluster: limited!(ClusterServer, cluster::ClusterService::new(handle.clone())),
            maintenance: limited!(
                MaintenanceServer,
                maintenance::MaintenanceService::new(handle)
            ),
            auth: limited!(AuthServer, auth::AuthService),
            lock: limited!(LockServer, lock::LockService),
            election: limited!(ElectionServer, election::ElectionService),
            health: limited!(HealthServer, health::HealthService),
            max_message_bytes: max,
        }
    }

    /// Answers a gRPC call.
    pub fn call<B>(&self, request: Request<B>) -> CallFuture
    where
        B: http_body::Body + Send + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send + 'static,
        B::Data: Send,
    {
        let refused = check_metadata(request.headers()).and_then(|()| check_path(&request));
        if let Err(status) = refused {
            return Box::pin(std::future::ready(status.into_http()));
        }
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        let future = match service {
            "etcdserverpb.KV" => self.kv.clone().call(request),
            "etcdserverpb.Watch" => self.watch.clone().call(request),
            "etcdserverpb.Lease" => self.lease.clone().call(request),
            "etcdserverpb.Cluster" => self.cluster.clone().call(request),
            "etcdserverpb.Maintenance" => self.maintenance.clone().call(request),
            "etcdserverpb.Auth" => self.auth.clone().call(request),
            "v3lockpb.Lock" => self.lock.clone().call(request),
            "v3electionpb.Election" => self.election.clone().call(request),
            _ => self.health.clone().call(request),
        };
        let max = self.max_message_bytes;
        Box::pin(async move {
            match future.await {
                Ok(response) => in_grpc_go_words(response, max),
                Err(never) => match never {},
            }
        })
    }
}

/// etcd refuses a client version that is no text.
fn check_metadata(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get("client-api-version") {
        Some(version) if version.to_str().is_err() => {
            Err(crate::error::Error::InvalidClientApiVersion.into())
        }
        _ => Ok(()),
    }
}

fn check_path<B>(request: &Request<B>) -> Result<(), Status> {
    let path = request.uri().path();
    let Some((service, method)) = path
        .strip_prefix('/')
        .and_then(|path| path.rsplit_once('/'))
    else {
        return Err(Status::unimplemented(format!(
            "malformed method name: {path:?}"
        )));
    };
    let Some(Methods(_, methods)) = METHODS.iter().find(|Methods(name, _)| *name == service)
    else {
        return Err(Status::unimplemented(format!("unknown service {service}")));
    };
    if !methods.contains(&method) {
        return Err(Status::unimplemented(format!(
            "unknown method {method} for service {service}"
        )));
    }
    Ok(())
}

const TONIC_TOO_LARGE: &str = "Error, decoded message length too large: found ";
const TONIC_MALFORMED: &str = "failed to decode Protobuf message: ";

/// Says in grpc-go's words what tonic found wrong with a message before a service saw it.
fn in_grpc_go_words(mut response: Response<Body>, max: usize) -> Response<Body> {
    let headers = response.headers();
    if !headers.contains_key(Status::GRPC_STATUS) {
        return response;
    }
    let Some(status) = Status::from_header_map(headers) else {
        return response;
    };
    let text = status.message();
    let reworded = if let Some(rest) = text.strip_prefix(TONIC_TOO_LARGE) {
        let found = rest.split(' ').next().unwrap_or_default();
        Status::new(
            Code::ResourceExhausted,
            format!("grpc: received message larger than max ({found} vs. {max})"),
        )
    } else if let Some(rest) = text.strip_prefix(TONIC_MALFORMED) {
        Status::new(
            Code::Internal,
            format!("grpc: error unmarshalling request: {rest}"),
        )
    } else {
        return response;
    };
    let mut trailers = HeaderMap::new();
    if reworded.add_header(&mut trailers).is_err() {
        return response;
    }
    for name in [Status::GRPC_STATUS, Status::GRPC_MESSAGE] {
        let value = trailers.remove(&name);
        response
            .headers_mut()
            .insert(name, value.unwrap_or(HeaderValue::from_static("")));
    }
    response
}
