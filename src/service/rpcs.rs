//! The table of all RPCs for clients: how messages flow, what the caller needs, and whether a
//! learner answers. The gate before the services, the metrics and the log of slow calls read it.
//!
//! Message size limits are the same for all (`api::ApiSettings`), and concurrency is bounded where
//! the work is done. A test compares the table with the descriptors of all that
//! `proto/` declares.

use super::permission::Needs;

/// How the messages of an RPC flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Unary,
    ServerStream,
    BidiStream,
}

impl Flow {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Flow::Unary => "unary",
            Flow::ServerStream => "server_stream",
            Flow::BidiStream => "bidi_stream",
        }
    }
}

/// How a learner answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learner {
    Refuses,
    /// Only if the request accepts a stale response.
    Stale,
    Answers,
}

/// A row of the table.
#[derive(Debug)]
pub struct Rpc {
    pub service: &'static str,
    pub method: &'static str,
    pub flow: Flow,
    pub needs: Needs,
    pub learner: Learner,
}

impl Rpc {
    pub fn is_unary(&self) -> bool {
        self.flow == Flow::Unary
    }

    /// Its calls can last so long that who the caller is has to be asked again: authentication may
    /// have been enabled since.
    pub fn outlasts_an_identity(&self) -> bool {
        self.flow == Flow::BidiStream || [LOCK, ELECTION].contains(&self.service)
    }
}

const fn row(
    service: &'static str,
    method: &'static str,
    flow: Flow,
    needs: Needs,
    learner: Learner,
) -> Rpc {
    Rpc {
        service,
        method,
        flow,
        needs,
        learner,
    }
}

use Flow::{BidiStream, ServerStream, Unary};
use Learner::{Answers, Refuses, Stale};
use Needs::{Content, Nothing, Root, User};

pub const KV: &str = "etcdserverpb.KV";
pub const WATCH: &str = "etcdserverpb.Watch";
pub const LEASE: &str = "etcdserverpb.Lease";
pub const CLUSTER: &str = "etcdserverpb.Cluster";
pub const MAINTENANCE: &str = "etcdserverpb.Maintenance";
pub const AUTH: &str = "etcdserverpb.Auth";
pub const LOCK: &str = "v3lockpb.Lock";
pub const ELECTION: &str = "v3electionpb.Election";
pub const HEALTH: &str = "grpc.health.v1.Health";

/// A row's index is the RPC's number in metrics.
#[rustfmt::skip]
pub const RPCS: &[Rpc] = &[
    row(KV, "Range", Unary, Content, Stale),
    row(KV, "Put", Unary, Content, Refuses),
    row(KV, "Txn", Unary, Content, Refuses),
    row(KV, "DeleteRange", Unary, Content, Refuses),
    row(KV, "Compact", Unary, Root, Refuses),
    row(KV, "RangeStream", ServerStream, Content, Refuses),
    row(WATCH, "Watch", BidiStream, Content, Refuses),
    row(LEASE, "LeaseGrant", Unary, User, Refuses),
    row(LEASE, "LeaseRevoke", Unary, Content, Refuses),
    row(LEASE, "LeaseKeepAlive", BidiStream, Content, Refuses),
    row(LEASE, "LeaseTimeToLive", Unary, Content, Refuses),
    row(LEASE, "LeaseLeases", Unary, Content, Refuses),
    row(CLUSTER, "MemberAdd", Unary, Content, Refuses),
    row(CLUSTER, "MemberRemove", Unary, Root, Refuses),
    row(CLUSTER, "MemberUpdate", Unary, Root, Refuses),
    row(CLUSTER, "MemberList", Unary, User, Refuses),
    row(CLUSTER, "MemberPromote", Unary, Root, Refuses),
    row(MAINTENANCE, "Alarm", Unary, Content, Refuses),
    row(MAINTENANCE, "Status", Unary, User, Answers),
    row(MAINTENANCE, "Defragment", Unary, Root, Refuses),
    row(MAINTENANCE, "Hash", Unary, Root, Refuses),
    row(MAINTENANCE, "HashKV", Unary, Root, Refuses),
    row(MAINTENANCE, "Snapshot", ServerStream, Root, Answers),
    row(MAINTENANCE, "MoveLeader", Unary, Root, Refuses),
    row(MAINTENANCE, "Downgrade", Unary, Root, Refuses),
    row(AUTH, "AuthEnable", Unary, Root, Refuses),
    row(AUTH, "AuthDisable", Unary, Root, Refuses),
    row(AUTH, "AuthStatus", Unary, Nothing, Refuses),
    row(AUTH, "Authenticate", Unary, Nothing, Refuses),
    row(AUTH, "UserAdd", Unary, Root, Refuses),
    row(AUTH, "UserGet", Unary, Content, Refuses),
    row(AUTH, "UserList", Unary, Root, Refuses),
    row(AUTH, "UserDelete", Unary, Root, Refuses),
    row(AUTH, "UserChangePassword", Unary, Root, Refuses),
    row(AUTH, "UserGrantRole", Unary, Root, Refuses),
    row(AUTH, "UserRevokeRole", Unary, Root, Refuses),
    row(AUTH, "RoleAdd", Unary, Root, Refuses),
    row(AUTH, "RoleGet", Unary, Content, Refuses),
    row(AUTH, "RoleList", Unary, Root, Refuses),
    row(AUTH, "RoleDelete", Unary, Root, Refuses),
    row(AUTH, "RoleGrantPermission", Unary, Root, Refuses),
    row(AUTH, "RoleRevokePermission", Unary, Root, Refuses),
    row(LOCK, "Lock", Unary, Content, Refuses),
    row(LOCK, "Unlock", Unary, Content, Refuses),
    row(ELECTION, "Campaign", Unary, Content, Refuses),
    row(ELECTION, "Proclaim", Unary, Content, Refuses),
    row(ELECTION, "Leader", Unary, Content, Refuses),
    row(ELECTION, "Observe", ServerStream, Content, Refuses),
    row(ELECTION, "Resign", Unary, Content, Refuses),
    row(HEALTH, "Check", Unary, Nothing, Refuses),
    row(HEALTH, "List", Unary, Nothing, Refuses),
    row(HEALTH, "Watch", ServerStream, Nothing, Refuses),
];

/// Why there is no such RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    Service,
    Method,
}

/// The number of an RPC.
pub fn find(service: &str, method: &str) -> Result<usize, Unknown> {
    let found = RPCS
        .iter()
        .position(|rpc| rpc.method == method && rpc.service == service);
    found.ok_or_else(|| match RPCS.iter().any(|known| known.service == service) {
        true => Unknown::Method,
        false => Unknown::Service,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost_reflect::DescriptorPool;

    use super::*;

    /// Service and method of each declaration, and how its messages flow.
    fn declared() -> BTreeMap<(String, String), Flow> {
        let compiled = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
        let pool = DescriptorPool::decode(&compiled[..]).expect("what the build wrote");
        let services = pool.services();
        // Those between members are not for clients.
        let for_clients = services.filter(|service| service.package_name() != "etchedpeer");
        let mut found = BTreeMap::new();
        for service in for_clients {
            for method in service.methods() {
                let flow = match (method.is_client_streaming(), method.is_server_streaming()) {
                    (false, false) => Unary,
                    (false, true) => ServerStream,
                    (true, true) => BidiStream,
                    (true, false) => panic!("{}", method.full_name()),
                };
                let name = (service.full_name().to_owned(), method.name().to_owned());
                found.insert(name, flow);
            }
        }
        found
    }

    #[test]
    fn every_declared_rpc_has_one_row_and_every_row_is_declared() {
        let mut rows = BTreeMap::new();
        for rpc in RPCS {
            let name = (rpc.service.to_owned(), rpc.method.to_owned());
            assert_eq!(rows.insert(name, rpc.flow), None, "{rpc:?} is there twice");
        }
        assert_eq!(rows, declared());
    }

    #[test]
    fn rows_are_found_by_their_names() {
        for (number, rpc) in RPCS.iter().enumerate() {
            assert_eq!(find(rpc.service, rpc.method), Ok(number));
        }
        assert_eq!(find(KV, "Lock"), Err(Unknown::Method));
        assert_eq!(find("KV", "Range"), Err(Unknown::Service));
    }
}
