//! The table of all RPCs for clients: how messages flow, what the caller needs, what its calls
//! change, what limits them, and whether a learner answers. The gate before the services, the turns
//! that a member gives (`Handle::turns`), the metrics, the log of slow calls and a proxy's cache read
//! it.
//!
//! The size of a message is limited the same for all (`api::ApiSettings`), and so is the memory of
//! requests and answers (`budget`). A test compares the table with the descriptors of all that
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

/// What the calls of an RPC change that a read of keys may show. A proxy forgets the answers that it
/// keeps by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEffect {
    /// No key, nor who may read it.
    NoKeys,
    Keys,
    /// Who may read them.
    Rights,
}

/// How a learner answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learner {
    Refuses,
    /// Only if the request accepts a stale response.
    Stale,
    Answers,
}

/// What limits the calls of an RPC beyond the memory for requests and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallLimits {
    /// Nothing further.
    Memory,
    /// What takes long has turns, and waits for one.
    Turns(Costly),
    /// So many computations of bcrypt may wait; one more is refused.
    Passwords,
}

/// What a member does a few of at once. Its own jobs and other members take the same turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Costly {
    /// Reads of much that is there now: of ranges, and of what a write will answer.
    LargeReads,
    /// Reads of what happened, for watches.
    HistoryReads,
    /// Reads of the keys of those who wait for a lock or an election.
    QueueReads,
    /// Each reads the whole history.
    Hashes,
    /// Each holds a thread, a view of the engine and memory to sort in.
    Backups,
    /// One that comes while another runs is part of it.
    Defragmentations,
}

impl Costly {
    /// In the order of their numbers.
    pub const ALL: [Costly; 6] = [
        LargeReads,
        HistoryReads,
        QueueReads,
        Hashes,
        Backups,
        Defragmentations,
    ];

    pub const fn at_once(self) -> usize {
        match self {
            // More would take the processors from short ones.
            LargeReads | HistoryReads => 4,
            QueueReads | Hashes | Backups => 2,
            Defragmentations => 1,
        }
    }
}

/// Computations of passwords that wait. At the usual cost on one processor the last waits for a
/// minute.
pub const MAX_PASSWORDS: usize = 1024;

/// A row of the table.
#[derive(Debug)]
pub struct Rpc {
    pub service: &'static str,
    pub method: &'static str,
    pub flow: Flow,
    pub needs: Needs,
    pub effect: CallEffect,
    pub limits: CallLimits,
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
    effect: CallEffect,
    limits: CallLimits,
    learner: Learner,
) -> Rpc {
    Rpc {
        service,
        method,
        flow,
        needs,
        effect,
        limits,
        learner,
    }
}

use CallEffect::{Keys, NoKeys, Rights};
use CallLimits::{Memory, Passwords, Turns};
use Costly::{Backups, Defragmentations, Hashes, HistoryReads, LargeReads, QueueReads};
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
    row(KV, "Range", Unary, Content, NoKeys, Turns(LargeReads), Stale),
    row(KV, "Put", Unary, Content, Keys, Turns(LargeReads), Refuses),
    row(KV, "Txn", Unary, Content, Keys, Turns(LargeReads), Refuses),
    row(KV, "DeleteRange", Unary, Content, Keys, Turns(LargeReads), Refuses),
    row(KV, "Compact", Unary, Root, NoKeys, Memory, Refuses),
    row(KV, "RangeStream", ServerStream, Content, NoKeys, Turns(LargeReads), Refuses),
    row(WATCH, "Watch", BidiStream, Content, NoKeys, Turns(HistoryReads), Refuses),
    row(LEASE, "LeaseGrant", Unary, User, NoKeys, Memory, Refuses),
    row(LEASE, "LeaseRevoke", Unary, Content, Keys, Memory, Refuses),
    row(LEASE, "LeaseKeepAlive", BidiStream, Content, NoKeys, Memory, Refuses),
    row(LEASE, "LeaseTimeToLive", Unary, Content, NoKeys, Memory, Refuses),
    row(LEASE, "LeaseLeases", Unary, Content, NoKeys, Memory, Refuses),
    row(CLUSTER, "MemberAdd", Unary, Content, NoKeys, Memory, Refuses),
    row(CLUSTER, "MemberRemove", Unary, Root, NoKeys, Memory, Refuses),
    row(CLUSTER, "MemberUpdate", Unary, Root, NoKeys, Memory, Refuses),
    row(CLUSTER, "MemberList", Unary, User, NoKeys, Memory, Refuses),
    row(CLUSTER, "MemberPromote", Unary, Root, NoKeys, Memory, Refuses),
    row(MAINTENANCE, "Alarm", Unary, Content, NoKeys, Memory, Refuses),
    row(MAINTENANCE, "Status", Unary, User, NoKeys, Memory, Answers),
    row(MAINTENANCE, "Defragment", Unary, Root, NoKeys, Turns(Defragmentations), Refuses),
    row(MAINTENANCE, "Hash", Unary, Root, NoKeys, Turns(Hashes), Refuses),
    row(MAINTENANCE, "HashKV", Unary, Root, NoKeys, Turns(Hashes), Refuses),
    row(MAINTENANCE, "Snapshot", ServerStream, Root, NoKeys, Turns(Backups), Answers),
    row(MAINTENANCE, "MoveLeader", Unary, Root, NoKeys, Memory, Refuses),
    row(MAINTENANCE, "Downgrade", Unary, Root, NoKeys, Memory, Refuses),
    row(AUTH, "AuthEnable", Unary, Root, Rights, Memory, Refuses),
    row(AUTH, "AuthDisable", Unary, Root, Rights, Memory, Refuses),
    row(AUTH, "AuthStatus", Unary, Nothing, NoKeys, Memory, Refuses),
    row(AUTH, "Authenticate", Unary, Nothing, NoKeys, Passwords, Refuses),
    row(AUTH, "UserAdd", Unary, Root, Rights, Passwords, Refuses),
    row(AUTH, "UserGet", Unary, Content, NoKeys, Memory, Refuses),
    row(AUTH, "UserList", Unary, Root, NoKeys, Memory, Refuses),
    row(AUTH, "UserDelete", Unary, Root, Rights, Memory, Refuses),
    row(AUTH, "UserChangePassword", Unary, Root, Rights, Passwords, Refuses),
    row(AUTH, "UserGrantRole", Unary, Root, Rights, Memory, Refuses),
    row(AUTH, "UserRevokeRole", Unary, Root, Rights, Memory, Refuses),
    row(AUTH, "RoleAdd", Unary, Root, Rights, Memory, Refuses),
    row(AUTH, "RoleGet", Unary, Content, NoKeys, Memory, Refuses),
    row(AUTH, "RoleList", Unary, Root, NoKeys, Memory, Refuses),
    row(AUTH, "RoleDelete", Unary, Root, Rights, Memory, Refuses),
    row(AUTH, "RoleGrantPermission", Unary, Root, Rights, Memory, Refuses),
    row(AUTH, "RoleRevokePermission", Unary, Root, Rights, Memory, Refuses),
    row(LOCK, "Lock", Unary, Content, Keys, Turns(QueueReads), Refuses),
    row(LOCK, "Unlock", Unary, Content, Keys, Memory, Refuses),
    row(ELECTION, "Campaign", Unary, Content, Keys, Turns(QueueReads), Refuses),
    row(ELECTION, "Proclaim", Unary, Content, Keys, Memory, Refuses),
    row(ELECTION, "Leader", Unary, Content, NoKeys, Turns(QueueReads), Refuses),
    row(ELECTION, "Observe", ServerStream, Content, NoKeys, Turns(HistoryReads), Refuses),
    row(ELECTION, "Resign", Unary, Content, Keys, Memory, Refuses),
    row(HEALTH, "Check", Unary, Nothing, NoKeys, Memory, Refuses),
    row(HEALTH, "List", Unary, Nothing, NoKeys, Memory, Refuses),
    row(HEALTH, "Watch", ServerStream, Nothing, NoKeys, Memory, Refuses),
];

/// What the calls of an RPC take turns at, by its row. For constants: a row without turns does not
/// compile.
pub const fn turns_of(service: &str, method: &str) -> Costly {
    let mut number = 0;
    while number < RPCS.len() {
        let rpc = &RPCS[number];
        if is_same(rpc.service, service) && is_same(rpc.method, method) {
            match rpc.limits {
                Turns(costly) => return costly,
                Memory | Passwords => panic!("its row names no turns"),
            }
        }
        number += 1;
    }
    panic!("there is no such RPC")
}

/// `==`, which constants do not have.
const fn is_same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut same = 0;
    while same < a.len() && same < b.len() && a[same] == b[same] {
        same += 1;
    }
    same == a.len() && same == b.len()
}

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
