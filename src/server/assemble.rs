//! Puts a member together from what a start found, for threads or for a simulator to run.

use std::sync::Arc;
use std::time::Duration;

use super::member_dir::MemberDir;
use super::restore::Restored;
use super::states::StateDirs;
use crate::env::{Clock, Executor, Rng};
use crate::jobs;
use crate::metrics::Metrics;
use crate::probe;
use crate::replica::apply_thread::Applier;
use crate::replica::fatal::Fatal;
use crate::replica::inbox::Inbox;
use crate::replica::log_thread::LogWriter;
use crate::replica::raft_thread::{self, RaftThread, Timing};
use crate::replica::router::Router;
use crate::replica::shared::{self, Shared};
use crate::service::handle::Handle;
use crate::service::peer::PeerService;
use crate::service::settings::Settings;
use crate::transport::Network;
use crate::watch::{self, Hub};

/// What the world gives a member.
pub struct Outside {
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub executor: Arc<dyn Executor>,
    pub network: Arc<dyn Network>,
    pub dir: Arc<dyn MemberDir>,
    pub metrics: Arc<Metrics>,
}

/// How it behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub settings: Settings,
    pub timing: Timing,
    pub watch_limits: watch::Limits,
    pub warning_apply_duration: Duration,
    pub jobs: jobs::Settings,
}

/// A member whose state is that of its log, which others can reach and which reaches them. What
/// is left to its starter is to give the raft thread its turns, and to have it introduced.
pub struct Member {
    pub handle: Handle,
    pub inbox: Arc<Inbox>,
    pub raft: RaftThread,
    /// False for a member that was made just now.
    pub existed: bool,
}

impl Member {
    /// Applies what the log says is committed, meets the other members and begins the jobs.
    pub fn start(outside: Outside, restored: Restored, options: Options) -> Result<Self, Fatal> {
        let Outside {
            clock,
            rng,
            executor,
            network,
            dir,
            metrics,
        } = outside;
        let states = Arc::new(StateDirs::new(dir));
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
        let mark = restored.log.synced_mark();
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
            network: network.clone(),
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
        network.attach(Arc::new(service));
        network.set_peers(peers);
        jobs::spawn(&handle, &inbox, mark, options.jobs);
        Ok(Self {
            handle,
            inbox,
            raft,
            existed: restored.existed,
        })
    }
}
