//! A member of a world: its disk and clock offset, which survive restarts, and its process, which
//! runs the production code. The scheduler runs its threads one turn at a time; a turn of the log
//! or apply thread takes as long as the disk needs.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use parking_lot::Mutex;

use super::clock::{MemberClock, Time};
use super::concurrency;
use super::defects;
use super::executor::Tasks;
use super::network::SimNetwork;
use super::random::{MemberRng, Random};
use super::states::SimDisk;
use crate::api::{Answers, ApiSettings, cluster, kv, lease, maintenance, watch};
use crate::budget::Share;
use crate::jobs::corruption::AtStart;
use crate::jobs::{self, auto_compaction, compactor, corruption};
use crate::metrics::Metrics;
use crate::mvcc::write::SliceLimit;
use crate::proto::membershippb;
use crate::replica::apply_thread::{ApplyJob, ApplyThread, Applying};
use crate::replica::dependencies::{Dependencies, Timing};
use crate::replica::inbox::Input;
use crate::replica::log_thread::{LogJob, LogThread};
use crate::replica::raft_thread::RaftThread;
use crate::server::Error as StartError;
use crate::server::assemble::Member;
use crate::server::member_dir::{MemberDir, MemberIdentity};
use crate::server::publish::{Introduction, introduce};
use crate::server::restore::{self, Founding, Joining, Restored};
use crate::service::admission::AdmissionLimits;
use crate::service::handle::Handle;
use crate::service::settings::{AuthSettings, Rules, ServiceSettings};
use crate::service::tokens::Tokens;
use crate::state::auth::AuthView;
use crate::transport::Peer;
use crate::types::{ClusterId, MemberId};

pub const CLUSTER: ClusterId = ClusterId(0xc1);
/// The heartbeat interval, which is raft's tick.
pub const TICK: Duration = Duration::from_millis(100);
pub const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Parameters of a world's members, drawn from its seed and equal for all.
#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    /// Entries kept for followers that lag.
    pub catch_up_entries: u64,
    /// Entries between flushes; ten times as many if they are small.
    pub snapshot_count: u64,
    pub quota_bytes: Option<i64>,
    /// Applied entries of the log that stay in memory; others are read from the files.
    pub recent_entries: usize,
    pub compaction_batch: usize,
    pub segment_bytes: u64,
    pub watch_limits: crate::watch::Limits,
    pub retention: auto_compaction::Retention,
    pub check_all: Option<Duration>,
    /// Between comparisons of compaction hashes.
    pub check_compacted: Duration,
    /// A restarted member compares its data with the others' first.
    pub check_at_start: bool,
    pub pre_vote: bool,
    /// See `Timing`.
    pub initial_election_tick_advance: bool,
    /// Between progress notifications of a watch.
    pub progress_interval: Duration,
    /// Per mille of batches that take long to apply.
    pub slow_apply_per_mille: u32,
    /// Between checkpoints of a lease.
    pub lease_checkpoint_interval: Duration,
    /// Size at which streamed answers are split, about.
    pub answer_bytes: usize,
    /// See `Timing`.
    pub max_outstanding_bytes: usize,
    /// There are clients that lock and that campaign.
    pub has_locks: bool,
}

/// A running process of a member; everything in it is lost when it dies.
pub struct Process {
    pub handle: Handle,
    pub raft: RaftThread,
    pub log: LogThread,
    pub apply: ApplyThread,
    pub tasks: Arc<Tasks>,
    pub clock: Arc<MemberClock>,
    pub services: Arc<Services>,
    /// The present jobs of the two threads.
    pub log_jobs: Option<Vec<LogJob>>,
    pub apply_jobs: VecDeque<ApplyJob>,
    /// The progress of the first of the apply jobs.
    pub applying: Option<Applying>,
    /// For a deliberate defect: who may do what in the newest group that is shown.
    shown_rights: Arc<AuthView>,
    /// The newest revision whose counts of keys were checked.
    pub counted: i64,
    /// Set by the member itself: a fatal error, or its removal.
    pub end: Arc<Mutex<Option<Exit>>>,
}

/// Why a member exited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    Failed(String),
    Removed,
}

/// The services that clients call.
pub struct Services {
    pub kv: kv::KvService,
    pub lease: lease::LeaseService,
    pub watch: watch::WatchService,
    pub cluster: cluster::ClusterService,
    pub maintenance: maintenance::MaintenanceService,
    /// None in a world where nobody calls them.
    pub concurrency: Option<concurrency::Services>,
    pub handle: Handle,
}

/// How a member comes into being.
#[derive(Clone)]
pub enum Origin {
    /// With all founders of its cluster.
    Founder(Vec<membershippb::Member>),
    /// With the peers that it can reach.
    Joiner(Vec<Peer>),
}

/// A member, running or not.
pub struct SimMember {
    pub id: MemberId,
    origin: Origin,
    pub disk: Arc<SimDisk>,
    pub process: Option<Process>,
    pub wall_offset_ns: Arc<AtomicI64>,
    drift_ppm: i64,
}

/// The parts of the world that members are connected to.
pub struct MemberEnv<'a> {
    pub time: &'a Arc<Time>,
    pub network: &'a Arc<SimNetwork>,
    pub config: SimConfig,
}

/// Deletions of more are written in several batches.
const SLICE_LIMIT: SliceLimit = SliceLimit {
    keys: 2,
    bytes: 4 << 10,
};

fn restore_options(config: &SimConfig, random: &mut Random) -> restore::RestoreOptions {
    restore::RestoreOptions {
        segment_bytes: config.segment_bytes,
        sync: true,
        election_ticks: 10,
        pre_vote: config.pre_vote,
        election_seed: random.next(),
        new_incarnation: random.next(),
        recent_entries: config.recent_entries,
    }
}

impl SimMember {
    /// A member with an empty disk, on which its first start creates it.
    pub fn new(id: MemberId, disk: Arc<SimDisk>, drift_ppm: i64, origin: Origin) -> Self {
        Self {
            id,
            disk,
            origin,
            process: None,
            wall_offset_ns: Arc::default(),
            drift_ppm,
        }
    }

    /// Starts the member from its disk, as `server` does.
    pub fn start(&mut self, around: &MemberEnv<'_>, mut random: Random) -> Result<(), String> {
        let tasks = Tasks::new();
        let clock = Arc::new(MemberClock::new(
            around.time.clone(),
            self.drift_ppm,
            self.wall_offset_ns.clone(),
        ));
        let config = around.config;
        let dir: Arc<dyn MemberDir> = Arc::new(self.disk.dir());
        let options = restore_options(&config, &mut random);
        let restored = self.restore(dir.as_ref(), &options);
        let mut restored = restored.map_err(|error| error.to_string())?;
        let network = around
            .network
            .network(self.id, clock.clone(), tasks.clone());
        let tokens = Arc::new(Tokens::simple(Duration::ZERO, clock.clone()));
        let settings = settings_of(&config, tokens.clone());
        let deps = Dependencies {
            clock: clock.clone(),
            rng: Arc::new(MemberRng::new(random.fork(1))),
            executor: tasks.clone(),
            network,
            tokens,
            metrics: Arc::new(Metrics::new(self.id, false)),
            timing: timing_of(&config),
            watch_limits: config.watch_limits,
            inbox_bytes: settings.limits.max_waiting_bytes(),
        };
        restored.machine.set_slice_limit(SLICE_LIMIT);
        let (network, peers) = (
            deps.network.clone(),
            defects::peers_before_replay(&restored),
        );
        let member = Member::start(restored, dir, &deps, settings, jobs_of(&config))
            .map_err(|error| error.to_string())?;
        if let Some(peers) = peers {
            network.set_peers(peers);
        }
        let introduction = introduction(self.id, &config);
        let introduced = introduced(member.handle.clone(), member.existed, introduction);
        member.handle.spawn(introduced);
        self.process = Some(Process::new(member, tasks, clock, &config));
        Ok(())
    }
}

impl SimMember {
    /// Restores the member, or creates it, as `server::bootstrap` does; what that asks of the
    /// network is known here.
    fn restore(
        &self,
        dir: &dyn MemberDir,
        options: &restore::RestoreOptions,
    ) -> Result<Restored, StartError> {
        if let Some(identity) = dir.identity()? {
            return restore::restart(dir, identity, options);
        }
        let identity = MemberIdentity {
            cluster: CLUSTER,
            member: self.id,
        };
        match self.origin.clone() {
            Origin::Founder(members) => {
                restore::found(dir, Founding { identity, members }, options)
            }
            Origin::Joiner(peers) => restore::join(dir, Joining { identity, peers }, options),
        }
    }
}

/// Publishes the member to the cluster, as `server` does. Clients of a world do not wait for it.
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

fn settings_of(config: &SimConfig, tokens: Arc<Tokens>) -> ServiceSettings {
    ServiceSettings {
        limits: AdmissionLimits {
            max_request_bytes: 1 << 20,
            requests_bytes: 48 << 20,
            quota_bytes: config.quota_bytes,
            prioritises_revokes: false,
        },
        rules: Rules {
            strict: true,
            max_learners: 1,
        },
        election_timeout: ELECTION_TIMEOUT,
        auth: AuthSettings {
            tokens,
            bcrypt_cost: 4,
        },
        // For backups, which are not made here.
        scratch_dir: PathBuf::new(),
    }
}

fn timing_of(config: &SimConfig) -> Timing {
    Timing {
        tick: TICK,
        election_timeout: ELECTION_TIMEOUT,
        initial_election_tick_advance: config.initial_election_tick_advance,
        catch_up_entries: config.catch_up_entries,
        max_outstanding_bytes: config.max_outstanding_bytes,
        warning_apply_duration: Duration::from_millis(100),
        answer_limit_bytes: usize::MAX,
    }
}

fn jobs_of(config: &SimConfig) -> jobs::JobSettings {
    jobs::JobSettings {
        snapshot_count: config.snapshot_count,
        compaction: compactor::Pace {
            batch_limit: config.compaction_batch,
            sleep: Duration::from_millis(10),
            shorter: false,
        },
        corruption: corruption::CheckIntervals {
            all: config.check_all,
            compacted: Some(config.check_compacted),
        },
        retention: config.retention,
        lease_checkpoint_interval: config.lease_checkpoint_interval,
    }
}

impl Process {
    fn new(member: Member, tasks: Arc<Tasks>, clock: Arc<MemberClock>, config: &SimConfig) -> Self {
        let handle = member.handle;
        let settings = ApiSettings {
            max_txn_ops: 128,
            max_request_bytes: config.answer_bytes,
            fragment_bytes: config.answer_bytes,
            warning_unary_request_duration: Duration::MAX,
            warning_apply_duration: Duration::MAX,
            progress_interval: config.progress_interval,
            recheck_watches: true,
        };
        // Answers are inspected whole.
        let answers = Answers::new(handle.clone(), Share::new(usize::MAX));
        let watch = watch::WatchService::new(handle.clone(), settings);
        let concurrency = config.has_locks;
        let concurrency = concurrency.then(|| concurrency::Services::new(&handle, &watch));
        let services = Services {
            kv: kv::KvService::new(handle.clone(), settings, answers.clone()),
            lease: lease::LeaseService::new(handle.clone(), settings, answers.clone()),
            watch,
            cluster: cluster::ClusterService::new(handle.clone(), answers),
            maintenance: maintenance::MaintenanceService::new(handle.clone()),
            concurrency,
            handle: handle.clone(),
        };
        let end = Arc::new(Mutex::new(None));
        let (shared, ended) = (handle.shared().clone(), end.clone());
        handle.spawn(async move {
            let reason = shared.failed().await;
            ended.lock().get_or_insert(Exit::Failed(reason));
        });
        let (shared, ended) = (handle.shared().clone(), end.clone());
        handle.spawn(async move {
            shared.was_removed().await;
            ended.lock().get_or_insert(Exit::Removed);
        });
        let shown_rights = handle.shared().view().auth.clone();
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
            counted: 0,
            shown_rights,
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
        defects::before_turn(&mut inputs);
        let turned = self.raft.turn(&mut inputs);
        turned.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Does the remaining work of a stop, as in `replica::run`.
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

    /// The log thread takes its queued jobs; `finish_log` completes them.
    pub fn begin_log(&mut self) -> bool {
        let mut jobs = self.log.jobs.try_take(self.clock.as_ref());
        defects::before_sync(&mut jobs, &self.log, &self.apply, self.raft.inbox());
        self.log_jobs = (!jobs.is_empty()).then_some(jobs);
        self.log_jobs.is_some()
    }

    /// A log write makes room for a received state.
    pub fn log_resets(&self) -> bool {
        let resets = |job: &LogJob| matches!(job, LogJob::Persist(_, Some(_), _));
        self.log_jobs.iter().flatten().any(resets)
    }

    pub fn finish_log(&mut self) -> Result<(), String> {
        let jobs = self.log_jobs.take().unwrap_or_default();
        self.log.turn(jobs).map_err(|error| error.to_string())
    }

    /// True while the apply thread has a job.
    pub fn is_applying(&self) -> bool {
        self.applying.is_some() || !self.apply_jobs.is_empty()
    }

    /// The apply thread takes its queued jobs; `proceed_apply` completes them step by step.
    pub fn begin_apply(&mut self) -> bool {
        self.apply_jobs = self.apply.jobs.try_take(self.clock.as_ref()).into();
        self.is_applying()
    }

    /// The apply thread takes its next step.
    pub fn proceed_apply(&mut self) -> Result<(), String> {
        let next = self.applying.take();
        let Some(applying) = next.or_else(|| self.apply_jobs.pop_front().map(Applying::from))
        else {
            return Ok(());
        };
        let shared = self.handle.shared();
        let shown = shared.view();
        let proceeded = self.apply.proceed(applying);
        self.applying = proceeded.map_err(|error| error.to_string())?;
        let applying = self.applying.as_ref();
        defects::after_step(
            shared,
            &self.apply,
            applying,
            &shown,
            &mut self.shown_rights,
        );
        Ok(())
    }

    pub fn finish_apply(&mut self) -> Result<(), String> {
        while self.is_applying() {
            self.proceed_apply()?;
        }
        Ok(())
    }
}
