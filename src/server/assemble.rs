//! Puts a member together from what a start found, for threads or for a simulator to run.

use std::sync::Arc;
use std::time::Duration;

use super::restore::Restored;
use crate::env::{Clock, Executor, Rng};
use crate::metrics::Metrics;
use crate::probe;
use crate::replica::apply_thread::Applier;
use crate::replica::fatal::Fatal;
use crate::replica::inbox::Inbox;
use crate::replica::log_thread::LogWriter;
use crate::replica::raft_thread::{self, RaftThread, Timing};
use crate::replica::router::Router;
use crate::replica::shared::{self, Shared};
use crate::replica::state_store::SnapshotStore;
use crate::service::handle::Handle;
use crate::service::peer::PeerService;
use crate::service::settings::Settings;
use crate::transport::{Network, Peer};
use crate::watch::{self, Hub};

/// What the world gives a member.
pub struct Outside {
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub executor: Arc<dyn Executor>,
    pub network: Arc<dyn Network>,
    pub states: Arc<dyn SnapshotStore>,
    pub metrics: Arc<Metrics>,
}

/// How it behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub settings: Settings,
    pub timing: Timing,
    pub watch_limits: watch::Limits,
    pub warning_apply_duration: Duration,
}

/// A member whose state is that of its log, and which does nothing yet.
pub struct Member {
    pub handle: Handle,
    pub inbox: Arc<Inbox>,
    pub raft: RaftThread,
    /// What other members talk to.
    pub service: Arc<PeerService>,
    /// The other members, as of the last entry that is known to be committed.
    pub peers: Vec<Peer>,
}

impl Member {
    /// Applies what the log says is committed.
    pub fn new(outside: Outside, restored: Restored, options: Options) -> Result<Self, Fatal> {
        let Outside {
            clock,
            rng,
            executor,
            network,
            states,
            metrics,
        } = outside;
        let Options {
            settings, timing, ..
        } = options;
        let identity = restored.identity;
        let parts = shared::Parts {
            member: identity.member,
            cluster: identity.cluster,
            clock,
            rng: rng.clone(),
            executor,
            engine: restored.engine,
            hub: Hub::new(restored.machine.head(), options.watch_limits),
            metrics,
        };
        let shared = Arc::new(Shared::new(parts, &restored.machine));
        let inbox = Arc::new(Inbox::default());
        let handle = Handle::new(shared.clone(), inbox.clone(), network.clone(), settings);
        let limit_ms = settings.request_timeout().as_millis();
        let limit_ticks = (limit_ms / timing.tick.as_millis().max(1)) as u64;
        let mut raft = RaftThread::new(raft_thread::Parts {
            router: Router::new(
                identity.member,
                restored.replica,
                rng.next_u64(),
                limit_ticks,
            ),
            log: LogWriter::new(restored.log, shared.clone()),
            applier: Applier::new(
                restored.machine,
                shared.clone(),
                network.clone(),
                timing.election_timeout,
                options.warning_apply_duration,
            ),
            inbox: inbox.clone(),
            shared,
            network,
            states: states.clone(),
            timing,
        });
        let mut status = handle.shared().status();
        raft.recover()?;
        if !probe::injected(probe::Defect::MembersBeforeReplay) {
            status = handle.shared().status();
        }
        let peers = match status.members.is_empty() {
            true => restored.peers,
            false => status.addresses(),
        };
        let service = PeerService::new(handle.clone(), inbox.clone(), states);
        Ok(Self {
            handle,
            inbox,
            raft,
            service: Arc::new(service),
            peers,
        })
    }
}
