//! One seed from start to verdict: a world is founded, clients work while faults are injected, all
//! faults heal, the cluster has to serve again, and the history is checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::check;
use super::client::Client;
use super::faults;
use super::faults::plan::Kind;
use super::history::{
    AppliedEntry, ClientRequest, Finding, History, Kept, Operation, Outcome, RecordedPayload,
};
use super::member::SimConfig;
use super::network;
use super::random::Random;
use super::watcher;
use super::workload::{self, Load, get, put};
use super::world::World;
use crate::jobs::auto_compaction::Retention;
use crate::mvcc::compaction;
use crate::probe;
use crate::proto::etcdserverpb::DeleteRangeRequest;
use crate::state::machine::decode_request;
use crate::storage::schema;
use crate::storage::{self, Family, Read, memory};
use crate::types::MemberId;
use crate::watch;

const SECOND: u64 = 1_000_000_000;
const USERS_SALT: u64 = 0x0a07_4000_0000_0000;
const LOCKS_SALT: u64 = 0x10c4_0000_0000_0000;
/// After the last fault a write through every member has to succeed within this time.
const SERVES_AGAIN_NS: u64 = 15 * SECOND;
/// The same without pre-vote: each time a member with too short a log starts an election, which it
/// cannot win, the others restart their timeouts.
const SERVES_AGAIN_UNASKED_NS: u64 = 40 * SECOND;
/// Clients finish their current request within this time.
const CLIENTS_END_NS: u64 = 60 * SECOND;
/// In an idle cluster requests are answered within this time.
const QUIET_ANSWERS_NS: u64 = 5 * SECOND;
/// Members converge within this time.
const REST_NS: u64 = 90 * SECOND;

/// Parameters of a run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// How long clients work and faults are injected, in virtual seconds.
    pub seconds: u64,
    /// Prints the trace.
    pub print: bool,
}

/// The result of a seed.
#[derive(Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// The number of lines of the trace, and their hash.
    pub trace: (u64, u64),
    pub last_lines: Vec<String>,
    pub virtual_ns: u64,
    pub steps: u64,
    pub operations: u64,
    pub unknown: u64,
    pub watch_events: u64,
    pub entries: u64,
    pub faults: BTreeMap<Kind, u64>,
    pub network: network::Counts,
    pub paths: BTreeMap<probe::CoveragePoint, u64>,
}

fn config(random: &mut Random) -> SimConfig {
    let small_queues = random.chance(600);
    let limits = watch::Limits::default();
    SimConfig {
        catch_up_entries: *random.pick(&[5, 5, 50, 500]),
        snapshot_count: *random.pick(&[2, 10, 60]),
        quota_bytes: random.chance(200).then_some(24 << 10),
        recent_entries: *random.pick(&[1, 10, 1024]),
        compaction_batch: random.between(4, 60) as usize,
        segment_bytes: *random.pick(&[16 << 10, 64 << 10]),
        watch_limits: match small_queues {
            true => watch::Limits {
                queue_events: random.between(2, 40) as usize,
                queue_bytes: random.between(200, 8_000) as usize,
                total_bytes: 12_000,
                page_revisions: random.between(1, 20) as usize,
                page_records: random.between(2, 40) as usize,
                page_bytes: random.between(100, 10_000) as usize,
                whole_bytes: 300,
                ..limits
            },
            false => limits,
        },
        retention: match random.below(8) {
            0 => Retention::Age(Duration::from_secs(10)),
            _ => Retention::Off,
        },
        check_all: match random.below(12) {
            0..6 => None,
            6..11 => Some(Duration::from_secs(7)),
            _ => Some(Duration::from_millis(700)),
        },
        check_compacted: Duration::from_millis(*random.pick(&[2_000, 7_000, 60_000])),
        check_at_start: random.chance(500),
        pre_vote: random.chance(800),
        initial_election_tick_advance: random.chance(800),
        progress_interval: Duration::from_millis(*random.pick(&[100, 700, 5_000])),
        slow_apply_per_mille: *random.pick(&[20, 20, 300]),
        lease_checkpoint_interval: Duration::from_secs(*random.pick(&[1, 3, 5, 300])),
        answer_bytes: *random.pick(&[300, 3_000, 1 << 20]),
        max_outstanding_bytes: *random.pick(&[2 << 10, 64 << 20, 64 << 20]),
        has_locks: false,
    }
}

/// Runs a seed. A panic in a member's thread ends the world, as it ends the process of a server.
pub fn run(seed: u64, options: RunOptions) -> Report {
    std::panic::catch_unwind(|| run_world(seed, options)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Report {
            findings: vec![Finding {
                what: "a member panicked",
                details: text.unwrap_or_default(),
            }],
            ..Default::default()
        }
    })
}

fn run_world(seed: u64, options: RunOptions) -> Report {
    let _ = probe::take_reached();
    memory::allow_reads(u64::MAX);
    let mut random = Random::new(seed);
    let members = *random.pick(&[1, 1, 3, 3, 3, 3, 3, 5, 5]);
    let mut config = config(&mut random);
    config.has_locks = Random::new(seed ^ LOCKS_SALT).chance(250);
    let mut world = World::new(
        random.fork(1),
        members,
        config,
        faults::INJECTOR,
        options.print,
    );
    world
        .trace
        .note(format_args!("seed {seed}: {members} members, {config:?}"));
    // Drawn apart, so that the other worlds stay what they are.
    let has_users = Random::new(seed ^ USERS_SALT).chance(300);
    live(&mut world, &mut random, options, has_users);
    end(world)
}

/// Heals all faults, waits until the cluster serves again, and checks the history.
pub(super) fn end(mut world: World) -> Report {
    if world.findings.is_empty() {
        converge(&mut world);
    }
    faults::close(&mut world);
    judge(world)
}

/// Runs clients and injects faults; then heals the world.
fn live(world: &mut World, random: &mut Random, options: RunOptions, has_users: bool) {
    let ids: Vec<MemberId> = world.members.keys().copied().collect();
    for id in ids {
        world.start(id);
    }
    if has_users {
        world.clients.use_users();
    }
    let load = Load {
        think_ms: *random.pick(&[40, 150, 600]),
        value_bytes: *random.pick(&[0, 200, 3_000]),
    };
    let working = random.between(3, 14) as u32;
    let first_kind = random.below(11) as u32;
    let many_leases = random.chance(250);
    if many_leases {
        let kind = *random.pick(&[
            Kind::Isolation,
            Kind::Isolation,
            Kind::Transfer,
            Kind::Pause,
        ]);
        world.faults.prefer(kind);
    } else if world.founders.len() == 1 && random.chance(500) {
        world.faults.prefer(Kind::Membership);
    }
    let distance_ns = *random.pick(&[0, 0, 0, 4, 25]) * SECOND / 1_000;
    world.network.set_distance(distance_ns);
    for number in 0..working {
        let random = random.fork(u64::from(number));
        let kind = match many_leases {
            true => workload::MANY_LEASES[number as usize % workload::MANY_LEASES.len()],
            false => first_kind + number,
        };
        workload::start(&world.clients, number, kind, load, random);
    }
    let watching = random.between(1, 5) as u32;
    for number in working..working + watching {
        watcher::start(&world.clients, number, None, random.fork(u64::from(number)));
    }
    if has_users {
        workload::start_users(&world.clients, load, random);
    }
    if world.config.has_locks {
        workload::start_locks(&world.clients, random);
    }
    let end = options.seconds * SECOND;
    world.faults.begin(0, end);
    world.run_until(end);
}

fn converge(world: &mut World) {
    faults::heal(world);
    serve_again(world);
    world.clients.stop();
    wait_for(world, CLIENTS_END_NS, "clients wait for ever", |world| {
        world.busy_clients() == 0
    });
    answer_in_quiet(world);
    wait_for(world, REST_NS, "members do not converge", |world| {
        world.is_even() && world.removed_are_gone() && world.compactions_are_done()
    });
    wait_for(
        world,
        REST_NS,
        "a request is never answered",
        World::nothing_waits,
    );
    wait_for(
        world,
        REST_NS,
        "ended watches left state behind",
        World::watches_are_gone,
    );
    world.compare_members();
    compare_histories(world);
}

/// Runs the world until a condition holds; adds a finding if it never does.
fn wait_for(
    world: &mut World,
    limit_ns: u64,
    what: &'static str,
    mut is_so: impl FnMut(&World) -> bool,
) {
    let deadline = world.time.now_ns() + limit_ns;
    while world.findings.is_empty() && !is_so(world) {
        let now = world.time.now_ns();
        if now >= deadline {
            let state = world.describe();
            world.find(what, state);
            return;
        }
        world.run_until(now + SECOND / 20);
    }
}

/// All faults have healed: every member has to commit a write soon.
fn serve_again(world: &mut World) {
    let done: Arc<Mutex<BTreeMap<MemberId, bool>>> = Arc::default();
    let ids = world.serving_members();
    for (number, id) in ids.iter().copied().enumerate() {
        let random = world.random.fork(id.0);
        let mut client = Client::new(1_000 + number as u32, world.clients.clone(), random);
        let done = done.clone();
        let work = async move {
            loop {
                client.member = id;
                let value = client.unique_value();
                let asked = ClientRequest::Put(put(format!("probe/{}", client.number), value));
                if let Some(endpoint) = client.clients.endpoint(id)
                    && let Outcome::Answered(_) | Outcome::Refused(_) =
                        client.call_at(endpoint, asked).await
                {
                    done.lock().insert(id, true);
                    return;
                }
                client.pause(10_000, 50_000).await;
                if client.clients.stopping() {
                    return;
                }
            }
        };
        crate::env::Executor::spawn(world.clients.tasks.as_ref(), Box::pin(work));
    }
    let limit_ns = match world.config.pre_vote {
        true => SERVES_AGAIN_NS,
        false => SERVES_AGAIN_UNASKED_NS,
    };
    wait_for(
        world,
        limit_ns,
        "the cluster does not serve again after the last fault",
        |world| {
            let done = done.lock();
            // A member that was removed in the meantime does not serve.
            ids.iter()
                .all(|id| done.contains_key(id) || !world.serving_members().contains(id))
        },
    );
}

/// In an idle cluster, a write and reads through other members are answered, though no later entry
/// comes to wake them up.
fn answer_in_quiet(world: &mut World) {
    let ids = world.serving_members();
    let answered: Arc<Mutex<u64>> = Arc::default();
    let mut asked = 0;
    for (number, id) in ids.iter().copied().chain(ids.iter().copied()).enumerate() {
        let random = world.random.fork(number as u64);
        let mut client = Client::new(2_000 + number as u32, world.clients.clone(), random);
        let writes = number == 0;
        asked += 1;
        let answered = answered.clone();
        let work = async move {
            client.member = id;
            client.pause(0, 3_000).await;
            let key = format!("quiet/{}", client.number);
            let request = match writes {
                // A write without a watch event: the key does not exist.
                true => ClientRequest::DeleteRange(DeleteRangeRequest {
                    key: key.into(),
                    ..Default::default()
                }),
                false => ClientRequest::Range(get(key)),
            };
            let Some(endpoint) = client.clients.endpoint(id) else {
                return;
            };
            if client.call_at(endpoint, request).await != Outcome::Unknown {
                *answered.lock() += 1;
            }
        };
        crate::env::Executor::spawn(world.clients.tasks.as_ref(), Box::pin(work));
    }
    wait_for(
        world,
        QUIET_ANSWERS_NS,
        "a request is not answered when the cluster is idle",
        |world| *answered.lock() == asked || world.serving_members() != ids,
    );
}

/// After convergence all members' histories have the same hash.
fn compare_histories(world: &mut World) {
    if !world.findings.is_empty() {
        return;
    }
    let mut hashes = BTreeMap::new();
    let mut kept = Vec::new();
    for id in world.alive() {
        if let Some(process) = world.process(id) {
            let view = process.handle.view();
            kept.push((id, process.handle.shared().engine()));
            let hash = view.pinned().hash(0, &std::env::temp_dir());
            hashes.insert(
                id,
                hash.map(|hash| (hash.hash, hash.compacted, hash.revision)),
            );
        }
    }
    let broken = hashes.values().any(Result::is_err);
    let mut values = hashes.values().filter_map(|hash| hash.as_ref().ok());
    let first = values.next();
    if broken || values.any(|hash| Some(hash) != first) {
        let details = format!("{hashes:?}");
        world.find("converged members have different histories", details);
    }
    for (member, engine) in kept {
        match kept_by(member, engine.latest()) {
            Ok(kept) => world.kept.push(kept),
            Err(error) => world.find("a history cannot be read", format!("{member}: {error}")),
        }
    }
}

/// A member's history after compaction.
fn kept_by(member: MemberId, read: &dyn Read) -> storage::Result<Kept> {
    let mut revisions = Vec::new();
    let mut log = read.cursor(Family::Revisions, &[], None)?;
    while log.next()? {
        revisions.extend(schema::decode_revision_key(log.key()));
    }
    let mut superseded = 0;
    let mut undo = read.cursor(Family::Undo, &[], None)?;
    while undo.next()? {
        superseded += 1;
    }
    Ok(Kept {
        member,
        compacted: compaction::finished(read)?,
        revisions,
        superseded,
    })
}

/// Fills in ids that a server chose and whose response its client did not receive: those of added
/// members and of leases.
fn fill_in_ids(operations: &mut [Operation], entries: &[(u64, AppliedEntry)]) {
    let granted: BTreeMap<i64, i64> = entries
        .iter()
        .filter_map(|(_, entry)| match &entry.payload {
            RecordedPayload::Request(bytes) => decode_request(bytes.clone()).ok()?.lease_grant,
            _ => None,
        })
        .map(|grant| (grant.ttl, grant.id))
        .collect();
    for operation in operations {
        if let ClientRequest::LeaseGrant(grant) = &mut operation.request
            && grant.id == 0
        {
            // Its TTL is unique.
            grant.id = granted.get(&grant.ttl).copied().unwrap_or_default();
        }
        let ClientRequest::Member(asked) = &mut operation.request else {
            continue;
        };
        let added = entries.iter().find_map(|(_, entry)| match &entry.payload {
            // Its peer URLs are unique.
            RecordedPayload::Member(change) if change.change == asked.change => {
                Some(change.member_id)
            }
            _ => None,
        });
        if asked.member_id == 0 {
            asked.member_id = added.unwrap_or_default();
        }
    }
}

/// The intervals in which the only member was paused, until others were added.
fn stood_still(world: &World) -> Vec<(u64, u64)> {
    let changes =
        |(_, entry): &&(u64, AppliedEntry)| matches!(entry.payload, RecordedPayload::Member(_));
    let first = world.entries.iter().find(changes);
    let single_until = match world.founders.len() {
        1 => first.map_or(u64::MAX, |(at, _)| *at),
        _ => 0,
    };
    let mut stood_still = world.faults.stood_still.clone();
    stood_still.retain(|(_, end)| *end < single_until);
    stood_still
}

fn judge(mut world: World) -> Report {
    memory::allow_reads(u64::MAX);
    fill_in_ids(&mut world.clients.operations.lock(), &world.entries);
    let stood_still = stood_still(&world);
    let history = History {
        founders: world.founders.clone(),
        auto_compaction: world.config.retention != Retention::Off,
        operations: std::mem::take(&mut *world.clients.operations.lock()),
        watches: std::mem::take(&mut *world.clients.watches.lock()),
        observed: std::mem::take(&mut *world.clients.observed.lock()),
        entries: world.entries,
        calm: world.faults.calm.clone(),
        stood_still,
        kept: std::mem::take(&mut world.kept),
    };
    let mut findings = world.findings;
    if findings.is_empty() {
        findings = check::check(&history);
    }
    let events = history
        .watches
        .iter()
        .flat_map(|watched| &watched.responses);
    let unknown = |operation: &&Operation| operation.outcome == Outcome::Unknown;
    let report = Report {
        trace: world.trace.digest(),
        last_lines: world.trace.last(),
        virtual_ns: world.time.now_ns(),
        steps: world.steps,
        operations: history.operations.len() as u64,
        unknown: history.operations.iter().filter(unknown).count() as u64,
        watch_events: events
            .map(|(_, response)| response.events.len() as u64)
            .sum(),
        entries: history.entries.len() as u64,
        faults: world.faults.counts.clone(),
        network: world.network.counts(),
        paths: probe::take_reached(),
        findings,
    };
    // The remaining tasks end with the world.
    for member in world.members.into_values() {
        if let Some(process) = member.process {
            process.tasks.clear();
        }
    }
    world.clients.tasks.clear();
    report
}
