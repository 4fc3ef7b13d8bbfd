//! A member of a world: its disk and its clock's offset, which outlive it, and its life, which
//! runs the production code. What its threads would do is done a turn at a time, when the
//! scheduler says so; a turn of the log or of the apply thread takes as long as the disk does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use parking_lot::Mutex;

use super::clock::{MemberClock, Time};
use super::defects;
use super::executor::Tasks;
use super::network::SimNetwork;
use super::random::{MemberRng, Random};
use super::states::SimDisk;
use crate::api::{Settings as ApiSettings, cluster, kv, lease, maintenance, watch};
use crate::jobs::corruption::AtStart;
use crate::jobs::{self, auto_compaction, compactor, corruption};
use crate::metrics::Metrics;
use crate::proto::membershippb;
use crate::replica::apply_thread::{ApplyJob, ApplyThread, Applying};
use crate::replica::inbox::Input;
use crate::replica::log_thread::{LogJob, LogThread};
use crate::replica::raft_thread::{RaftThread, Timing};
use crate::server::assemble::{Member, Options, Outside};
use crate::server::member_dir::{Identity, MemberDir};
use crate::server::publish::{Introduction, introduce};
use crate::server::restore::{self, Founding, Joining};
use crate::service::admission::Limits;
use crate::service::handle::Handle;
use crate::service::settings::{Rules, Settings};
use crate::transport::Peer;
use crate::types::{ClusterId, MemberId};

pub const CLUSTER: ClusterId = ClusterId(0xc1);
/// A heartbeat, and with it the unit of raft's time.
pub const TICK: Duration = Duration::from_millis(100);
pub const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// How the members of a world behave; drawn from its seed, the same for all of them.
#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    /// Entries kept for members that lag.
    pub catch_up_entries: u64,
    /// Entries after which the state is flushed; ten times as many with small ones.
    pub snapshot_count: u64,
    pub quota_bytes: Option<i64>,
    /// Entries of the log in memory once they are applied; others are read from the files.
    pub recent_entries: usize,
    pub compaction_batch: usize,
    pub segment_bytes: u64,
    pub watch_limits: crate::watch::Limits,
    pub retention: auto_compaction::Retention,
    pub check_all: Option<Duration>,
    /// Between two comparisons of the hashes that compactions kept.
    pub check_compacted: Duration,
    /// A member that was restarted compares its data with that of the others.
    pub check_at_start: bool,
    pub pre_vote: bool,
    /// Between two tellings of progress to a watch.
    pub progress_interval: Duration,
    /// How often applying takes long, of a thousand times.
    pub slow_apply_per_mille: u32,
    /// Between two checkpoints of a lease.
    pub lease_checkpoint_interval: Duration,
    /// Where answers that come in parts are split, about.
    pub answer_bytes: usize,
    /// See `Timing`.
    pub max_outstanding_bytes: usize,
}

/// What a member loses when it dies.
pub struct Life {
    pub handle: Handle,
    pub raft: RaftThread,
    pub log: LogThread,
    pub apply: ApplyThread,
    pub tasks: Arc<Tasks>,
    pub clock: Arc<MemberClock>,
    pub services: Arc<Services>,
    /// What the two threads are at.
    pub log_jobs: Option<Vec<LogJob>>,
    pub apply_jobs: VecDeque<ApplyJob>,
    /// How far the apply thread is with the job that was the first of them.
    pub applying: Option<Applying>,
    /// Set by the member itself: why it cannot go on, or that it was removed.
    pub end: Arc<Mutex<Option<End>>>,
}

/// Why a member ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Failed(String),
    Removed,
}

/// What clients call.
pub struct Services {
    pub kv: kv::KvService,
    pub lease: lease::LeaseService,
    pub watch: watch::WatchService,
    pub cluster: cluster::ClusterService,
    pub maintenance: maintenance::MaintenanceService,
    pub handle: Handle,
}

/// A member, alive or not.
pub struct Node {
    pub id: MemberId,
    pub disk: Arc<SimDisk>,
    pub life: Option<Life>,
    pub wall_offset_ns: Arc<AtomicI64>,
    drift_ppm: i64,
}

/// What surrounds the members.
pub struct Around<'a> {
    pub time: &'a Arc<Time>,
    pub network: &'a Arc<SimNetwork>,
    pub config: SimConfig,
}

fn identity(id: MemberId) -> Identity {
    Identity {
        cluster: CLUSTER,
        member: id,
    }
}

fn restore_options(config: &SimConfig, election_seed: u64) -> restore::Options {
    restore::Options {
        segment_bytes: config.segment_bytes,
        sync: true,
        election_ticks: 10,
        pre_vote: config.pre_vote,
        election_seed,
        recent_entries: config.recent_entries,
    }
}

impl Node {
    /// A founder's disk holds the first state of the cluster.
    pub fn founder(
        id: MemberId,
        disk: Arc<SimDisk>,
        drift_ppm: i64,
        founders: &[membershippb::Member],
        config: &SimConfig,
    ) -> Self {
        let node = Self::new(id, disk, drift_ppm);
        let new = Founding {
            identity: identity(id),
            members: founders.to_vec(),
        };
        restore::found(&node.disk.dir(), new, &restore_options(config, 0)).expect("a new disk");
        node
    }

    /// A member that has nothing yet.
    pub fn joiner(
        id: MemberId,
        disk: Arc<SimDisk>,
        drift_ppm: i64,
        first_peers: Vec<Peer>,
        config: &SimConfig,
    ) -> Self {
        let node = Self::new(id, disk, drift_ppm);
        let joining = Joining {
            identity: identity(id),
            peers: first_peers,
        };
        restore::join(&node.disk.dir(), joining, &restore_options(config, 0)).expect("a new disk");
        node
    }

    fn new(id: MemberId, disk: Arc<SimDisk>, drift_ppm: i64) -> Self {
        Self {
            id,
            disk,
            life: None,
            wall_offset_ns: Arc::default(),
            drift_ppm,
        }
    }

    /// Starts the member from what is on its disk, as `server` does.
    pub fn start(&mut self, around: &Around<'_>, mut random: Random) -> Result<(), String> {
        let tasks = Tasks::new();
        let clock = Arc::new(MemberClock::new(
            around.time.clone(),
            self.drift_ppm,
            self.wall_offset_ns.clone(),
        ));
        let config = around.config;
        let dir: Arc<dyn MemberDir> = Arc::new(self.disk.dir());
        let options = restore_options(&config, random.next());
        let identity = dir.identity().map_err(|error| error.to_string())?;
        let identity = identity.ok_or("its directory holds no member")?;
        let restored = restore::restart(dir.as_ref(), identity, &options)
            .map_err(|error| error.to_string())?;
        let network = around
            .network
            .network(self.id, clock.clone(), tasks.clone());
        let outside = Outside {
            clock: clock.clone(),
            rng: Arc::new(MemberRng::new(random.fork(1))),
            executor: tasks.clone(),
            network,
            dir,
            metrics: Arc::new(Metrics::new(self.id, false)),
        };
        let member = Member::start(outside, restored, options_of(&config))
            .map_err(|error| error.to_string())?;
        let introduction = introduction(self.id, &config);
        let introduced = introduced(member.handle.clone(), member.existed, introduction);
        member.handle.spawn(introduced);
        self.life = Some(Life::new(member, tasks, clock, &config));
        Ok(())
    }
}

/// Has the cluster know the member, as `server` does. Clients of a world do not wait for it.
async fn introduced(handle: Handle, existed: bool, introduction: Introduction) {
    if let Err(error) = introduce(&handle, existed, introduction).await {
        handle.shared().fail(error.to_string());
    }
}

fn introduction(member: MemberId, config: &SimConfig) -> Introduction {
    Introduction {
        attributes: membershippb::Attributes {
            name: format!("member {member}"),
            ..Default::default()
        },
        check: match config.check_at_start {
            true => AtStart::Always,
            false => AtStart::Never,
        },
    }
}

fn options_of(config: &SimConfig) -> Options {
    Options {
        settings: Settings {
            limits: Limits {
                max_request_bytes: 1 << 20,
                quota_bytes: config.quota_bytes,
            },
            rules: Rules {
                strict: true,
                max_learners: 1,
            },
            election_timeout: ELECTION_TIMEOUT,
        },
        timing: Timing {
            tick: TICK,
            election_timeout: ELECTION_TIMEOUT,
            catch_up_entries: config.catch_up_entries,
            max_outstanding_bytes: config.max_outstanding_bytes,
        },
        watch_limits: config.watch_limits,
        warning_apply_duration: Duration::from_millis(100),
        jobs: jobs_of(config),
    }
}

fn jobs_of(config: &SimConfig) -> jobs::Settings {
    jobs::Settings {
        snapshot_count: config.snapshot_count,
        compaction: compactor::Pace {
            batch_limit: config.compaction_batch,
            sleep: Duration::from_millis(10),
        },
        corruption: corruption::Pace {
            all: config.check_all,
            compacted: Some(config.check_compacted),
        },
        retention: config.retention,
        lease_checkpoint_interval: config.lease_checkpoint_interval,
    }
}

impl Life {
    fn new(member: Member, tasks: Arc<Tasks>, clock: Arc<MemberClock>, config: &SimConfig) -> Self {
        let handle = member.handle;
        let settings = ApiSettings {
            max_txn_ops: 128,
            max_request_bytes: config.answer_bytes,
            fragment_bytes: config.answer_bytes,
            warning_unary_request_duration: Duration::MAX,
            warning_apply_duration: Duration::MAX,
            progress_interval: config.progress_interval,
        };
        let services = Services {
            kv: kv::KvService::new(handle.clone(), settings),
            lease: lease::LeaseService::new(handle.clone(), settings),
            watch: watch::WatchService::new(handle.clone(), settings),
            cluster: cluster::ClusterService::new(handle.clone()),
            maintenance: maintenance::MaintenanceService::new(handle.clone()),
            handle: handle.clone(),
        };
        let end = Arc::new(Mutex::new(None));
        let (shared, ended) = (handle.shared().clone(), end.clone());
        handle.spawn(async move {
            let reason = shared.failed().await;
            ended.lock().get_or_insert(End::Failed(reason));
        });
        let (shared, ended) = (handle.shared().clone(), end.clone());
        handle.spawn(async move {
            shared.was_removed().await;
            ended.lock().get_or_insert(End::Removed);
        });
        let mut apply = member.raft.apply_thread();
        apply.stages = defects::stages();
        Self {
            log: member.raft.log_thread(),
            apply,
            raft: member.raft,
            handle,
            tasks,
            clock,
            services: Arc::new(services),
            log_jobs: None,
            apply_jobs: VecDeque::new(),
            applying: None,
            end,
        }
    }

    /// When the raft thread ticks next, in the world's time.
    pub fn next_tick_ns(&self) -> u64 {
        self.clock.world_at(self.raft.next_tick())
    }

    /// A turn of the raft thread.
    pub fn raft_turn(&mut self) -> Result<(), String> {
        let mut inputs = Vec::new();
        self.raft.inbox().take(Duration::ZERO, &mut inputs);
        let turned = self.raft.turn(&mut inputs);
        turned.map(|_| ()).map_err(|error| error.to_string())
    }

    /// All that is left to do once it is told to stop, as in `node::run`.
    pub fn stop(&mut self) -> Result<(), String> {
        self.raft.inbox().close_with(Input::Stop);
        self.raft_turn()?;
        loop {
            self.finish_log()?;
            self.finish_apply()?;
            if !self.begin_log() & !self.begin_apply() {
                break;
            }
        }
        self.log.close().map_err(|error| error.to_string())?;
        let flushed = self.handle.shared().engine().flush();
        flushed.map_err(|error| error.to_string())
    }

    /// The log thread takes what waits; it is done when `finish_log` is called.
    pub fn begin_log(&mut self) -> bool {
        let mut jobs = self.log.jobs.try_take(self.clock.as_ref());
        defects::before_sync(&mut jobs, &self.log, &self.apply, self.raft.inbox());
        self.log_jobs = (!jobs.is_empty()).then_some(jobs);
        self.log_jobs.is_some()
    }

    /// What is being written makes room for a snapshot's state.
    pub fn log_resets(&self) -> bool {
        let resets = |job: &LogJob| matches!(job, LogJob::Persist(_, Some(_)));
        self.log_jobs.iter().flatten().any(resets)
    }

    pub fn finish_log(&mut self) -> Result<(), String> {
        let jobs = self.log_jobs.take().unwrap_or_default();
        self.log.turn(jobs).map_err(|error| error.to_string())
    }

    /// True where the apply thread is at work.
    pub fn is_applying(&self) -> bool {
        self.applying.is_some() || !self.apply_jobs.is_empty()
    }

    /// The apply thread takes what waits; it is done when `proceed_apply` has nothing left.
    pub fn begin_apply(&mut self) -> bool {
        self.apply_jobs = self.apply.jobs.try_take(self.clock.as_ref()).into();
        self.is_applying()
    }

    /// The apply thread does one thing more.
    pub fn proceed_apply(&mut self) -> Result<(), String> {
        let next = self.applying.take();
        let Some(applying) = next.or_else(|| self.apply_jobs.pop_front().map(Applying::from))
        else {
            return Ok(());
        };
        let proceeded = self.apply.proceed(applying);
        self.applying = proceeded.map_err(|error| error.to_string())?;
        Ok(())
    }

    pub fn finish_apply(&mut self) -> Result<(), String> {
        while self.is_applying() {
            self.proceed_apply()?;
        }
        Ok(())
    }
}
