//! A member without threads over an empty store, for tests. Its network is passed in, and its
//! proposals stay in its inbox.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::Span;

use super::admission::AdmissionLimits;
use super::caller::{Caller, Identity, User};
use super::handle::Handle;
use super::settings::{AuthSettings, Rules, ServiceSettings};
use super::tokens::Tokens;
use crate::env::{Clock, ManualClock, SystemRng, TokioExecutor};
use crate::metrics::Metrics;
use crate::proto::authpb::Permission;
use crate::proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, InternalRaftRequest,
};
use crate::proto::membershippb::{Member, RaftAttributes};
use crate::raft::replica;
use crate::replica::cluster_status::ClusterStatus;
use crate::replica::dependencies::{Dependencies, Timing};
use crate::replica::inbox::Inbox;
use crate::replica::shared::Shared;
use crate::replica::view::ReadView;
use crate::state::Machine;
use crate::state::machine::{Entry, Payload};
use crate::storage::memory::MemoryEngine;
use crate::transport::{Network, NoNetwork};
use crate::types::{ClusterId, MemberId};

pub const ME: MemberId = MemberId(0xb71f);

/// A member that has no peers and no leader.
pub fn single_member() -> Handle {
    with_network(Arc::new(NoNetwork)).0
}

/// A member without a leader, with a clock that stands still and the inbox of its proposals.
pub fn with_network(network: Arc<dyn Network>) -> (Handle, Arc<Inbox>) {
    with_clock(network, Arc::new(ManualClock::default()))
}

/// The same with a clock of the test's choice.
pub fn with_clock(network: Arc<dyn Network>, clock: Arc<dyn Clock>) -> (Handle, Arc<Inbox>) {
    let machine = Machine::open(Arc::new(MemoryEngine::new())).expect("an empty store opens");
    let tokens = Arc::new(Tokens::simple(Duration::ZERO, clock.clone()));
    let deps = Dependencies {
        clock,
        rng: Arc::new(SystemRng),
        executor: Arc::new(TokioExecutor::default()),
        network: network.clone(),
        tokens: tokens.clone(),
        metrics: Arc::new(Metrics::new(ME, false)),
        timing: Timing {
            tick: Duration::from_millis(100),
            election_timeout: Duration::from_secs(1),
            initial_election_tick_advance: false,
            catch_up_entries: 0,
            max_outstanding_bytes: 1 << 20,
            warning_apply_duration: Duration::MAX,
            answer_limit_bytes: usize::MAX,
        },
        watch_limits: Default::default(),
        inbox_bytes: 1 << 20,
    };
    let settings = ServiceSettings {
        limits: AdmissionLimits {
            max_request_bytes: 1 << 20,
            requests_bytes: 48 << 20,
            quota_bytes: None,
            prioritises_revokes: false,
        },
        rules: Rules {
            strict: true,
            max_learners: 1,
        },
        election_timeout: deps.timing.election_timeout,
        auth: AuthSettings {
            tokens,
            bcrypt_cost: 4,
        },
        // For backups, which are not made here.
        scratch_dir: PathBuf::new(),
    };
    let inbox = Arc::new(Inbox::new(deps.inbox_bytes));
    let shared = Shared::new(ME, ClusterId(1), &deps, &machine);
    let handle = Handle::new(shared, inbox.clone(), network, settings);
    (handle, inbox)
}

/// The kind, key and range end of each permission.
pub type Permissions = &'static [(i32, &'static str, &'static str)];

/// Requests that make a user with a role of its own, for each name and its permissions, and then
/// enable authentication. Who is called `root` has the role of that name.
pub fn auth_requests(users: &[(&str, Permissions)]) -> Vec<InternalRaftRequest> {
    let mut requests = Vec::new();
    for (name, permissions) in users {
        let name = (*name).to_owned();
        requests.push(InternalRaftRequest {
            auth_user_add: Some(AuthUserAddRequest {
                name: name.clone(),
                ..Default::default()
            }),
            ..Default::default()
        });
        requests.push(InternalRaftRequest {
            auth_role_add: Some(AuthRoleAddRequest { name: name.clone() }),
            ..Default::default()
        });
        requests.push(InternalRaftRequest {
            auth_user_grant_role: Some(AuthUserGrantRoleRequest {
                user: name.clone(),
                role: name.clone(),
            }),
            ..Default::default()
        });
        for (kind, key, range_end) in *permissions {
            let permission = Permission {
                perm_type: *kind,
                key: Bytes::copy_from_slice(key.as_bytes()),
                range_end: Bytes::copy_from_slice(range_end.as_bytes()),
            };
            requests.push(InternalRaftRequest {
                auth_role_grant_permission: Some(AuthRoleGrantPermissionRequest {
                    name: name.clone(),
                    perm: Some(permission),
                }),
                ..Default::default()
            });
        }
    }
    requests.push(InternalRaftRequest {
        auth_enable: Some(AuthEnableRequest {}),
        ..Default::default()
    });
    requests
}

/// Applies requests to the state of a member and shows it, as its apply thread would.
pub fn apply(handle: &Handle, requests: Vec<InternalRaftRequest>) {
    let shared = handle.shared();
    let mut machine = Machine::open(shared.engine()).expect("opens");
    let first = machine.applied_index() + 1;
    let entries = (first..).zip(requests).map(|(index, request)| Entry {
        index,
        term: 1,
        payload: Payload::Decoded(Arc::new(request)),
    });
    let group = machine.apply(entries.collect()).expect("applies");
    for applied in &group.applied {
        assert!(applied.result.is_ok(), "{applied:?}");
    }
    shared.publish_view(ReadView::new(shared.engine().as_ref(), &machine));
    shared.hub.publish(machine.head(), &group.changes);
}

/// A client that was authenticated at an auth revision.
pub fn user(name: &str, auth_revision: u64) -> Caller {
    let user = User {
        name: name.to_owned(),
        auth_revision,
    };
    Caller::client(Identity::User(Arc::new(user)), None, Span::none())
}

/// Sets the leader, 0 for none; this member is `ME`.
pub fn set_leader(handle: &Handle, leader: MemberId) {
    set_commit_index(handle, leader, 4);
}

/// The same with so many entries committed, of which the fixture applies none on its own.
pub fn set_commit_index(handle: &Handle, leader: MemberId, commit_index: u64) {
    let status = replica::Status {
        term: 2,
        durable_term: 2,
        in_doubt: false,
        leader: leader.0,
        is_leader: leader == ME,
        commit_index,
        last_index: commit_index,
    };
    let shared = handle.shared();
    shared.raft.publish(&status, true, shared.clock.now());
}

/// Sets the members; the flags say which are learners.
pub fn set_members(handle: &Handle, members: &[(MemberId, bool)]) {
    let members = members.iter().map(|(id, is_learner)| Member {
        id: id.0,
        raft_attributes: Some(RaftAttributes {
            is_learner: *is_learner,
            ..Default::default()
        }),
        ..Default::default()
    });
    let status = ClusterStatus {
        members: members.collect(),
        ..ClusterStatus::clone(&handle.shared().status())
    };
    handle.shared().publish_status(status);
}
