//! A member without threads over an empty store, for tests. Its network is passed in, and its
//! proposals stay in its inbox.

use std::sync::Arc;
use std::time::Duration;

use super::admission::AdmissionLimits;
use super::handle::Handle;
use super::settings::{Rules, ServiceSettings};
use crate::env::{Clock, ManualClock, SystemRng, TokioExecutor};
use crate::metrics::Metrics;
use crate::proto::membershippb::{Member, RaftAttributes};
use crate::raft::replica;
use crate::replica::cluster_status::ClusterStatus;
use crate::replica::inbox::Inbox;
use crate::replica::shared::{Parts, Shared};
use crate::state::Machine;
use crate::storage::memory::MemoryEngine;
use crate::transport::{Network, NoNetwork};
use crate::types::{ClusterId, MemberId};
use crate::watch::Hub;

pub const ME: MemberId = MemberId(0xb71f);

/// A member that has no peers and no leader.
pub fn alone() -> Handle {
    with_network(Arc::new(NoNetwork)).0
}

/// A member without a leader, with a clock that stands still and the inbox of its proposals.
pub fn with_network(network: Arc<dyn Network>) -> (Handle, Arc<Inbox>) {
    with_clock(network, Arc::new(ManualClock::default()))
}

/// The same with a clock of the test's choice.
pub fn with_clock(network: Arc<dyn Network>, clock: Arc<dyn Clock>) -> (Handle, Arc<Inbox>) {
    let engine = Arc::new(MemoryEngine::new());
    let machine = Machine::open(engine.clone()).expect("an empty store opens");
    let parts = Parts {
        member: ME,
        cluster: ClusterId(1),
        clock,
        rng: Arc::new(SystemRng),
        executor: Arc::new(TokioExecutor::default()),
        engine,
        hub: Hub::new(machine.head(), Default::default()),
        metrics: Arc::new(Metrics::new(ME, false)),
    };
    let settings = ServiceSettings {
        limits: AdmissionLimits {
            max_request_bytes: 1 << 20,
            requests_bytes: 48 << 20,
            quota_bytes: None,
        },
        rules: Rules {
            strict: true,
            max_learners: 1,
        },
        election_timeout: Duration::from_secs(1),
    };
    let inbox = Arc::new(Inbox::new(settings.limits.max_waiting_bytes()));
    let shared = Arc::new(Shared::new(parts, &machine));
    let handle = Handle::new(shared, inbox.clone(), network, settings);
    (handle, inbox)
}

/// Sets the leader, 0 for none; this member is `ME`.
pub fn set_leader(handle: &Handle, leader: MemberId) {
    let status = replica::Status {
        term: 2,
        durable_term: 2,
        leader: leader.0,
        is_leader: leader == ME,
        commit_index: 4,
        last_index: 4,
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
