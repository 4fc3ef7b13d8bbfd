//! Runs a member: binds, restores, serves, and stops in order at a signal.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::Error;
use super::bootstrap;
use super::bootstrap::network::RealNetwork;
use super::data_dir::DataDir;
use super::descriptors::Descriptors;
use super::expiry;
use super::from_etcd;
use super::gate::ProtocolSwitch;
use super::leave;
use super::logging;
use super::member_dir::MemberDir;
use super::memory;
use super::memory_lock;
use super::notify;
use super::publish::{Introduction, introduce};
use super::restore::Restored;
use super::security::{MemberSecurity, PeerSecurity};
use super::signals::StopSignals;
use super::sockets::{Bound, HeldEndpoint, Sockets};
use super::traces::Traces;
use crate::api::{self, Api};
use crate::budget::Part;
use crate::config::{AutoCompaction, Config, os_reason, urls};
use crate::env::{Clock, Executor, Rng, SystemClock, SystemRng, TokioExecutor};
use crate::gateway::Gateway;
use crate::http::{Access, HttpService, LogLevel};
use crate::jobs::corruption::AtStart;
use crate::jobs::{self, auto_compaction, compactor, corruption};
use crate::metrics::Metrics;
use crate::net::tls::{Rejections, TlsServer};
use crate::net::{self, Allowance, BlockTurns, Guard, Http2, KeepAlive, Versions};
use crate::proto::membershippb::Attributes;
use crate::replica::dependencies::{Dependencies, Timing};
use crate::replica::inbox::{Inbox, Input};
use crate::replica::raft_thread::{MAX_OUTSTANDING_BYTES, RaftThread};
use crate::replica::run;
use crate::replica::shared::Shared;
use crate::server::assemble;
use crate::service::admission::AdmissionLimits;
use crate::service::handle::Handle;
use crate::service::settings::{AuthSettings, Rules, ServiceSettings};
use crate::service::tokens::Tokens;
use crate::storage::schema::FORMAT_VERSION;
use crate::transport::{self, GrpcNetwork, Local, NetworkEnv};
use crate::types::{ETCD_VERSION, MemberId};

/// How long a stop waits for the disk.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// From a client's connection to its first byte, and from there to the first frame of HTTP/2. Every
/// client of gRPC sends both at once, so this leaves time for a slow link. grpc-go has 120 s; a
/// connection that says nothing would hold a place, of which there are few, for all of them.
const OPENING_LIMIT: Duration = Duration::from_secs(10);
/// To the end of the head of a client's request of HTTP/1.
const HEAD_LIMIT: Duration = Duration::from_secs(30);

/// How a member ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// By this signal.
    Signal(i32),
    /// It was removed from the cluster.
    Removed,
}

/// Runs until a signal comes or the member cannot continue; however that ends, the spans that are left
/// are sent.
pub async fn run(
    config: Config,
    traces: Option<Traces>,
    give_back: fn(),
) -> Result<Stopped, Error> {
    if config.tracing.is_some() {
        tracing::info!("distributed tracing setup enabled");
    }
    let ended = serve(config, traces.clone(), give_back).await;
    if let Some(traces) = traces {
        traces.stop().await;
    }
    ended
}

async fn serve(config: Config, traces: Option<Traces>, give_back: fn()) -> Result<Stopped, Error> {
    let signals = StopSignals::listen()?;
    let executor = executor(give_back)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let tokens = tokens(&config, clock.clone())?;
    let given = MemberSecurity::of_given(&config)?;
    let descriptors = Descriptors::of_process().map_err(Error::Refused)?;
    if config.memory_mlock {
        memory_lock::lock().map_err(Error::Refused)?;
    }
    let sockets = Sockets::bind(&config)?;
    let limits = bootstrap::store_limits(&config, descriptors.tables);
    from_etcd::take_over(&config, limits, clock.as_ref())?;
    let dir = DataDir::open(&config.data_dir, config.wal_dir.as_deref(), limits)?;
    let dir: Arc<dyn MemberDir> = Arc::new(dir.retaining(bootstrap::retained(&config)));
    let made = || MemberSecurity::of_made(&config, clock.as_ref());
    let security = given.map_or_else(made, Ok)?;
    logging::started(&config, &dir.path(""), dir.identity()?.is_some());
    let real_network = RealNetwork::new(security.peers.dialler.clone());
    let restored = bootstrap::restore(&config, dir.as_ref(), &real_network).await?;
    let network_options = transport::NetworkOptions {
        dialler: security.peers.dialler.clone(),
        unlisted_message_bytes: transport::NetworkOptions::unlisted_bytes(config.max_request_bytes),
        ..transport::NetworkOptions::new(dir.path(""))
    };
    let member = RunningMember::start(
        &config,
        restored,
        dir.clone(),
        (clock.clone(), executor),
        give_back,
        tokens,
        network_options,
    )?;
    let (stop, stopping) = watch::channel(false);
    let metrics = member.handle.shared().metrics.clone();
    let peers = member.serve_peers(sockets.peers, &security.peers, descriptors, &stopping)?;
    let clients = member.clients(&config, descriptors, security.clients.clone(), traces);
    let mut serving = clients.serve_metrics(sockets.metrics, &stopping);
    let work = async {
        introduce(&member.handle, member.existed, introduction(&config)).await?;
        let stopped = signals.while_serving();
        serving.extend(clients.serve(sockets.clients, sockets.http, &stopping));
        tracing::info!("ready to serve client requests");
        notify::ready();
        Ok(Stopped::Signal(stopped.await))
    };
    let shared = member.handle.shared();
    let ended = tokio::select! {
        signal = work => signal,
        () = leave::removed(shared) => Ok(Stopped::Removed),
        failure = shared.failed() => Err(Error::Failed(failure)),
        never = expiry::watch(&security, clock.as_ref(), &metrics) => match never {},
    };
    if let Ok(Stopped::Signal(_)) = ended {
        tracing::info!(name = %config.name, "data-dir" = %config.data_dir.display(), "closing etcd server");
        leave::hand_over(&member.handle).await;
    }
    stop.send_replace(true);
    if let Err(error) = ended {
        // The state may be unsound: nothing more is written.
        return Err(error);
    }
    for task in serving.into_iter().chain(peers) {
        // A task that panicked has ended as well.
        let _ = task.await;
    }
    member.stop(&config).await?;
    drop(dir);
    ended
}

/// A member at work, with its network.
struct RunningMember {
    handle: Handle,
    network: Arc<GrpcNetwork>,
    inbox: Arc<Inbox>,
    existed: bool,
    raft_ended: oneshot::Receiver<Result<(), String>>,
}

impl RunningMember {
    fn start(
        config: &Config,
        restored: Restored,
        dir: Arc<dyn MemberDir>,
        (clock, executor): (Arc<dyn Clock>, Arc<dyn Executor>),
        give_back: fn(),
        tokens: Arc<Tokens>,
        network_options: transport::NetworkOptions,
    ) -> Result<Self, Error> {
        let rng: Arc<dyn Rng> = Arc::new(SystemRng);
        let identity = restored.identity;
        let local = Local {
            member: identity.member,
            cluster: identity.cluster,
            incarnation: restored.incarnation,
            server_version: ETCD_VERSION.to_owned(),
            data_format: FORMAT_VERSION,
            peer_urls: urls::texts(&config.initial_advertise_peer_urls),
        };
        let metrics = metrics(config, identity.member);
        let network_env = NetworkEnv {
            clock: clock.clone(),
            rng: rng.clone(),
            executor: executor.clone(),
            metrics: metrics.clone(),
        };
        let network = GrpcNetwork::start(local, network_env, network_options);
        let settings = settings(config, tokens.clone());
        let deps = Dependencies {
            clock,
            rng,
            executor,
            network: network.clone(),
            tokens,
            metrics,
            timing: timing(config),
            watch_limits: watch_limits(config),
            inbox_bytes: settings.limits.max_waiting_bytes(),
        };
        let assemble::Member {
            handle,
            inbox,
            raft,
            existed,
        } = assemble::Member::start(restored, dir, &deps, settings, jobs_of(config))?;
        let raft_ended = spawn_raft(raft, handle.shared().clone(), give_back)?;
        Ok(Self {
            handle,
            network,
            inbox,
            existed,
            raft_ended,
        })
    }

    /// Serves the other members; each listener is a task.
    fn serve_peers(
        &self,
        held: Vec<HeldEndpoint>,
        security: &PeerSecurity,
        descriptors: Descriptors,
        stopping: &watch::Receiver<bool>,
    ) -> Result<Vec<JoinHandle<()>>, Error> {
        let metrics = self.handle.shared().metrics.clone();
        let allowance = Allowance::new(descriptors.peers, metrics);
        let serve = |(endpoint, held): HeldEndpoint| {
            let listener = held.listen()?;
            tracing::info!(address = %endpoint.address, "serving peer traffic");
            let secured = endpoint.security(security.listener.as_ref());
            let network = self.network.clone();
            let serving = network.serve(listener, secured, allowance.clone(), stopping.clone());
            Ok(tokio::spawn(serving))
        };
        held.into_iter().map(serve).collect()
    }

    /// What listeners of clients have in common.
    fn clients(
        &self,
        config: &Config,
        descriptors: Descriptors,
        tls: Option<Arc<TlsServer>>,
        traces: Option<Traces>,
    ) -> Clients {
        let settings = api::ApiSettings {
            max_txn_ops: config.max_txn_ops,
            max_request_bytes: config.max_request_bytes,
            fragment_bytes: config.max_request_bytes + api::GRPC_OVERHEAD_BYTES,
            progress_interval: config.watch_progress_notify_interval,
            recheck_watches: config.watch_permission_recheck,
            warning_unary_request_duration: config.warning_unary_request_duration,
            warning_apply_duration: config.warning_apply_duration,
        };
        let budget = bootstrap::budget(config);
        let memory = memory::OfClients::new(budget, &settings);
        let ledger = memory.ledger(budget, &self.handle);
        let unread = memory.requests.unread().clone();
        let (unsent, streams) = (memory.unsent.clone(), memory.streams.clone());
        let metrics = self.handle.shared().metrics.clone();
        let keep_alive = config.grpc_keepalive.map(|keepalive| KeepAlive {
            interval: keepalive.interval,
            timeout: keepalive.timeout,
        });
        let gateway = config.enable_grpc_gateway.then(|| {
            let clock = self.handle.shared().clock.clone();
            let max_bytes = settings.max_message_bytes();
            Gateway::new(
                clock,
                memory.requests.clone(),
                memory.answers.clone(),
                max_bytes,
            )
        });
        let api = Api::new(
            self.handle.clone(),
            settings,
            memory.requests,
            memory.answers,
        );
        Clients {
            gate: ProtocolSwitch {
                gateway,
                api: match traces {
                    Some(traces) => api.with_traces(Arc::new(traces)),
                    None => api,
                },
                http: self.http(config).with_memory(ledger),
                grpc_only: false,
                authenticates_by_certificate: config.authenticates_by_certificate(),
            },
            tls,
            probes: Allowance::new(descriptors.probes, metrics.clone()),
            options: net::ServeOptions {
                who: "client",
                versions: Versions::Both,
                security: net::Security::Plain,
                rejections: Arc::new(Rejections::new("client")),
                http2: Http2::of_clients(config.max_concurrent_streams, keep_alive),
                guard: Some(Guard {
                    // No minimum at all is a minimum of nothing.
                    min_ping_time: config.grpc_keepalive_min_time.unwrap_or_default(),
                    first_frame_limit: OPENING_LIMIT,
                    metrics: metrics.clone(),
                    closed: Arc::default(),
                    block_turns: BlockTurns::default(),
                    streams,
                }),
                unread,
                unsent,
                allowance: Allowance::new(descriptors.clients, metrics.clone()),
                first_byte_limit: OPENING_LIMIT,
                head_limit: HEAD_LIMIT,
                unacknowledged_limit: None,
            },
        }
    }

    fn http(&self, config: &Config) -> HttpService {
        HttpService::new(self.handle.clone())
            .with_profiles(config.serves_profiles())
            .with_log_level(LogLevel {
                current: logging::level,
                set: logging::set_level,
            })
            .with_access(Access {
                cors: config.cors.clone(),
                host_whitelist: config.host_whitelist.clone(),
            })
    }

    /// Ends the raft thread, which makes the state durable.
    async fn stop(self, config: &Config) -> Result<(), Error> {
        self.inbox.close_with(Input::Stop);
        self.network.stop();
        match tokio::time::timeout(STOP_LIMIT, self.raft_ended).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(reason))) => return Err(Error::Failed(reason)),
            Ok(Err(_)) => {
                let reason = "the raft thread exited without a result".to_owned();
                return Err(Error::Failed(reason));
            }
            Err(_) => {
                let reason = format!(
                    "the disk did not take the last writes within {STOP_LIMIT:?}; what was answered is in the raft log"
                );
                return Err(Error::Failed(reason));
            }
        }
        tracing::info!(name = %config.name, "closed etcd server");
        Ok(())
    }
}

/// Serves clients: their requests, and how their connections are served.
struct Clients {
    gate: ProtocolSwitch,
    tls: Option<Arc<TlsServer>>,
    options: net::ServeOptions,
    /// For the listeners of `--listen-metrics-urls`.
    probes: Arc<Allowance>,
}

impl Clients {
    /// Probes and metrics, from the time that there is a member: whether it has a quorum is what
    /// they are asked for.
    fn serve_metrics(
        &self,
        sockets: Vec<Bound>,
        stop: &watch::Receiver<bool>,
    ) -> Vec<JoinHandle<()>> {
        let gate = ProtocolSwitch {
            http: self.gate.http.clone().metrics_only(),
            ..self.gate.clone()
        };
        let options = net::ServeOptions {
            who: "probe",
            versions: Versions::Http1,
            allowance: self.probes.clone(),
            ..self.options.clone()
        };
        self.spawn(sockets, &options, &gate, stop)
    }

    fn serve(
        &self,
        grpc: Vec<Bound>,
        http: Vec<Bound>,
        stop: &watch::Receiver<bool>,
    ) -> Vec<JoinHandle<()>> {
        let versions = if http.is_empty() {
            Versions::Both
        } else {
            Versions::Http2
        };
        let options = |versions| net::ServeOptions {
            versions,
            ..self.options.clone()
        };
        let gate = ProtocolSwitch {
            grpc_only: !http.is_empty(),
            ..self.gate.clone()
        };
        let mut tasks = self.spawn(grpc, &options(versions), &gate, stop);
        let http = self.spawn(http, &options(Versions::Http1), &self.gate, stop);
        tasks.extend(http);
        tasks
    }

    fn spawn(
        &self,
        sockets: Vec<Bound>,
        options: &net::ServeOptions,
        gate: &ProtocolSwitch,
        stop: &watch::Receiver<bool>,
    ) -> Vec<JoinHandle<()>> {
        let one = |(endpoint, listener): Bound| {
            let traffic = match options.versions {
                Versions::Both => "grpc+http",
                Versions::Http2 => "grpc",
                Versions::Http1 => "http",
            };
            let address = &endpoint.address;
            if endpoint.tls {
                tracing::info!(%address, traffic, "serving client traffic securely");
            }
            if endpoint.plain {
                tracing::info!(%address, traffic, "serving client traffic insecurely; this is strongly discouraged!");
            }
            let mut options = options.clone();
            options.security = endpoint.security(self.tls.as_ref());
            let gate = Arc::new(gate.clone());
            let of_client = move |client| gate.of_client(client);
            let serving = net::serve(listener, options, of_client, stop.clone());
            tokio::spawn(serving)
        };
        sockets.into_iter().map(one).collect()
    }
}

/// Reads the keys that the flags name; a refusal says why in a line of its own, as in etcd.
fn tokens(config: &Config, clock: Arc<dyn Clock>) -> Result<Arc<Tokens>, Error> {
    let read_file = |path: &Path| {
        let reason = |error| format!("open {}: {}", path.display(), os_reason(&error));
        std::fs::read(path).map_err(reason)
    };
    let loaded = Tokens::load(&config.auth.token, config.auth.token_ttl, clock, read_file);
    loaded.map(Arc::new).map_err(|error| {
        logging::notes(error.note().as_slice());
        Error::Tokens(error)
    })
}

/// Our threads beside the runtime's; one that has nothing to do gives back what it has freed.
fn executor(give_back: fn()) -> Result<Arc<dyn Executor>, Error> {
    let started = TokioExecutor::start(give_back).map_err(|error| Error::Os {
        what: "start the threads for work that blocks",
        error,
    })?;
    Ok(Arc::new(started))
}

fn settings(config: &Config, tokens: Arc<Tokens>) -> ServiceSettings {
    ServiceSettings {
        limits: AdmissionLimits {
            max_request_bytes: config.max_request_bytes,
            requests_bytes: bootstrap::budget(config).bytes(Part::Requests),
            quota_bytes: config.quota_bytes.map(|quota| quota as i64),
            prioritises_revokes: config.feature_gates.enabled("PriorityRequest"),
        },
        rules: Rules {
            strict: config.strict_reconfig_check,
            max_learners: config.max_learners,
        },
        election_timeout: Duration::from_millis(config.election_timeout_ms),
        auth: AuthSettings {
            tokens,
            bcrypt_cost: config.auth.bcrypt_cost,
        },
        scratch_dir: config.data_dir.clone(),
    }
}

fn watch_limits(config: &Config) -> crate::watch::Limits {
    crate::watch::Limits {
        total_bytes: bootstrap::budget(config).bytes(Part::Watches),
        ..crate::watch::Limits::default()
    }
}

fn timing(config: &Config) -> Timing {
    Timing {
        tick: Duration::from_millis(config.heartbeat_interval_ms),
        election_timeout: Duration::from_millis(config.election_timeout_ms),
        initial_election_tick_advance: config.initial_election_tick_advance,
        catch_up_entries: config.snapshot_catchup_entries,
        max_outstanding_bytes: MAX_OUTSTANDING_BYTES,
        warning_apply_duration: config.warning_apply_duration,
        answer_limit_bytes: api::answer_limit_bytes(bootstrap::budget(config).bytes(Part::Answers)),
    }
}

fn introduction(config: &Config) -> Introduction {
    let urls = config.advertise_client_urls.iter();
    let gates = &config.feature_gates;
    let gate = "InitialCorruptCheck";
    Introduction {
        attributes: Attributes {
            name: config.name.clone(),
            client_urls: urls.map(|url| url.as_str().to_owned()).collect(),
        },
        check: match (gates.enabled(gate), gates.is_named(gate)) {
            (false, _) => AtStart::Never,
            (true, false) => AtStart::Cheaply,
            (true, true) => AtStart::Always,
        },
    }
}

fn metrics(config: &Config, member: MemberId) -> Arc<Metrics> {
    let extensive = config.metrics == crate::config::Metrics::Extensive;
    let methods: Vec<_> = api::methods().collect();
    Arc::new(
        Metrics::new(member, extensive)
            .with_methods(&methods)
            .with_features(config.feature_gates.in_force()),
    )
}

fn spawn_raft(
    raft: RaftThread,
    shared: Arc<Shared>,
    give_back: fn(),
) -> Result<oneshot::Receiver<Result<(), String>>, Error> {
    let (ended, receiver) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name("raft".to_owned())
        .spawn(move || {
            // What it hands to others runs in the same runtime.
            let _runtime = runtime.enter();
            let result = run::run(raft, give_back).map_err(|error| error.to_string());
            if let Err(reason) = &result {
                shared.fail(reason.clone());
            }
            // Nobody waits where the member failed before it was stopped.
            let _ = ended.send(result);
        })
        .map_err(|error| Error::Os {
            what: "start the raft thread",
            error,
        })?;
    Ok(receiver)
}

fn jobs_of(config: &Config) -> jobs::JobSettings {
    let compacted = config.feature_gates.enabled("CompactHashCheck");
    jobs::JobSettings {
        snapshot_count: config.snapshot_count,
        compaction: compactor::Pace {
            batch_limit: config.compaction_batch_limit,
            sleep: config.compaction_sleep_interval,
            shorter: !config.compaction_sleep_interval_given,
        },
        corruption: corruption::CheckIntervals {
            all: config.corrupt_check_time,
            compacted: compacted.then_some(config.compact_hash_check_time),
        },
        retention: match config.auto_compaction {
            AutoCompaction::Off => auto_compaction::Retention::Off,
            AutoCompaction::Periodic(age) => auto_compaction::Retention::Age(age),
            AutoCompaction::Revision(count) => auto_compaction::Retention::Revisions(count),
        },
        lease_checkpoint_interval: crate::lessor::deadlines::CHECKPOINT_INTERVAL,
    }
}
