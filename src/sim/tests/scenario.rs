//! A world with chosen faults instead of random ones. It ends like a random world: all faults heal,
//! and every invariant and the whole history are checked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::env::Executor;
use crate::jobs::auto_compaction::Retention;
use crate::proto::etchedpeer::{MemberChange, member_change::Change};
use crate::sim::client::Client;
use crate::sim::faults::plan::Faults;
use crate::sim::faults::{self, INJECTOR};
use crate::sim::history::{Answer, ClientRequest, Outcome};
use crate::sim::member::{Process, SimConfig};
use crate::sim::random::Random;
use crate::sim::run::{self, Report};
use crate::sim::workload::{get, put};
use crate::sim::world::World;
use crate::storage::memory;
use crate::types::MemberId;
use crate::{probe, watch};

const MS: u64 = 1_000_000;
/// The longest that a scenario waits for a condition.
const LIMIT_MS: u64 = 15_000;
/// By then a cluster has elected a leader, and its members have been connected for as long as a
/// change of membership requires.
const FOUNDED_MS: u64 = 7_000;
/// The first client number of a scenario.
const FIRST_CLIENT: u32 = 100;

/// Settings that do not interfere with what a scenario shows.
pub fn calm() -> SimConfig {
    SimConfig {
        catch_up_entries: 500,
        snapshot_count: 60,
        quota_bytes: None,
        recent_entries: 1024,
        compaction_batch: 60,
        segment_bytes: 64 << 10,
        watch_limits: watch::Limits::default(),
        retention: Retention::Off,
        check_all: None,
        check_compacted: Duration::from_secs(60),
        check_at_start: false,
        pre_vote: true,
        initial_election_tick_advance: false,
        progress_interval: Duration::from_secs(5),
        slow_apply_per_mille: 20,
        lease_checkpoint_interval: Duration::from_secs(300),
        answer_bytes: 1 << 20,
        max_outstanding_bytes: 64 << 20,
        has_locks: false,
    }
}

/// See the module.
pub struct Scenario {
    pub world: World,
    clients: u32,
}

/// A request in flight, or its outcome.
pub struct Call {
    outcome: Arc<Mutex<Option<Outcome>>>,
}

impl Call {
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.lock().clone()
    }
}

impl Scenario {
    /// A cluster that is ready to serve.
    pub fn of(members: u64, config: SimConfig) -> Self {
        let _ = probe::take_reached();
        memory::allow_reads(u64::MAX);
        let mut random = Random::new(members);
        let mut world = World::new(random.fork(1), members, config, INJECTOR, false);
        world.faults = Faults::chosen(random.fork(2));
        world.faults.begin(0, 0);
        for id in world.founders.clone() {
            world.start(id);
        }
        let mut scenario = Self {
            world,
            clients: FIRST_CLIENT,
        };
        scenario.run_for(FOUNDED_MS);
        scenario.until("founded", |world| {
            world.is_even() && leader(world).is_some()
        });
        scenario
    }

    pub fn run_for(&mut self, ms: u64) {
        let end = self.world.time.now_ns() + ms * MS;
        self.world.run_until(end);
        self.check_found();
    }

    /// Runs until a condition holds, and stops at that moment.
    pub fn until(&mut self, what: &str, is_so: impl FnMut(&World) -> bool) {
        let end = self.world.time.now_ns() + LIMIT_MS * MS;
        let came = self.world.run_until_so(end, is_so);
        self.check_found();
        if !came {
            let state = self.world.describe();
            panic!("never {what}: {state}\n{}", self.lines());
        }
    }

    fn check_found(&self) {
        let findings = &self.world.findings;
        assert!(findings.is_empty(), "{findings:#?}\n{}", self.lines());
    }

    fn lines(&self) -> String {
        self.world.trace.last().join("\n")
    }

    pub fn leader(&self) -> MemberId {
        leader(&self.world).expect("a leader")
    }

    pub fn followers(&self) -> Vec<MemberId> {
        let leader = self.leader();
        let alive = self.world.alive().into_iter();
        alive.filter(|id| *id != leader).collect()
    }

    /// Waits for a leader other than the given member.
    pub fn next_leader(&mut self, before: MemberId) -> MemberId {
        self.until("another leader", |world| {
            leader(world).is_some_and(|leader| leader != before)
        });
        self.leader()
    }

    /// Sends a request to a member, from a client of its own.
    pub fn ask(&mut self, member: MemberId, asked: ClientRequest) -> Call {
        self.clients += 1;
        let random = self.world.random.fork(u64::from(self.clients));
        let mut client = Client::new(self.clients, self.world.clients.clone(), random);
        client.member = member;
        let outcome = Arc::new(Mutex::new(None));
        let shared = outcome.clone();
        let work = async move {
            let endpoint = client.clients.endpoint(member);
            *shared.lock() = Some(match endpoint {
                Some(endpoint) => client.call_at(endpoint, asked).await,
                None => Outcome::Unknown,
            });
        };
        self.world.clients.tasks.spawn(Box::pin(work));
        Call { outcome }
    }

    /// Sends a put with a unique value.
    pub fn put(&mut self, member: MemberId, key: &str) -> Call {
        let value = self.value();
        self.ask(member, ClientRequest::Put(put(key.to_owned(), value)))
    }

    /// The value of the next put.
    pub fn value(&self) -> Bytes {
        format!("{}-1", self.clients + 1).into()
    }

    pub fn change(&mut self, via: MemberId, member: MemberId, change: Change) -> Call {
        let change = MemberChange {
            member_id: member.0,
            change: Some(change),
            ..Default::default()
        };
        self.ask(via, ClientRequest::Member(change))
    }

    /// Waits for the outcome of a request.
    pub fn outcome(&mut self, call: &Call) -> Outcome {
        self.until("an outcome", |_| call.outcome().is_some());
        call.outcome().expect("an outcome")
    }

    pub fn answer(&mut self, call: &Call) -> Answer {
        match self.outcome(call) {
            Outcome::Answered(answer) => answer,
            other => panic!("{other:?} instead of an answer\n{}", self.lines()),
        }
    }

    /// Puts, and waits for the response.
    pub fn write(&mut self, member: MemberId, key: &str) {
        let call = self.put(member, key);
        self.answer(&call);
    }

    /// The result of a linearizable read.
    pub fn read(&mut self, member: MemberId, key: &str) -> Option<Bytes> {
        let call = self.ask(member, ClientRequest::Range(get(key.to_owned())));
        match self.answer(&call) {
            Answer::Range(range) => {
                let found = range.kvs.decoded().expect("pairs");
                found.first().map(|pair| pair.value.clone())
            }
            other => panic!("{other:?} is no answer to a read"),
        }
    }

    /// Kills the process; the machine keeps running.
    pub fn kill(&mut self, id: MemberId) {
        self.disturbed();
        self.world.die(id, true);
    }

    pub fn lose_power(&mut self, id: MemberId) {
        self.disturbed();
        self.world.die(id, false);
    }

    pub fn start(&mut self, id: MemberId) {
        self.disturbed();
        self.world.start(id);
    }

    pub fn pause(&mut self, id: MemberId) {
        self.disturbed();
        faults::pause(&mut self.world, id);
    }

    pub fn resume(&mut self, id: MemberId) {
        self.disturbed();
        faults::resume(&mut self.world, id);
    }

    /// Cuts all links from a member.
    pub fn mute(&mut self, id: MemberId) {
        self.disturbed();
        for other in self.others(id) {
            self.world.network.cut(id, other);
        }
    }

    /// Cuts all links to a member.
    pub fn deafen(&mut self, id: MemberId) {
        self.disturbed();
        for other in self.others(id) {
            self.world.network.cut(other, id);
        }
    }

    pub fn isolate(&mut self, id: MemberId) {
        self.mute(id);
        self.deafen(id);
    }

    pub fn heal_links(&mut self) {
        self.disturbed();
        self.world.network.heal_all();
    }

    /// Stalls the disk for this long.
    pub fn stall_disk(&mut self, id: MemberId, ms: u64) {
        let until = self.world.time.now_ns() + ms * MS;
        self.world.faults.disturbed(until);
        let condition = self.world.conditions.get_mut(&id).expect("a member");
        condition.stalled_until = until;
    }

    /// The next sync fails, and the member exits.
    pub fn fail_next_sync(&mut self, id: MemberId) {
        self.disturbed();
        let condition = self.world.conditions.get_mut(&id).expect("a member");
        condition.may_fail_until = u64::MAX;
        self.world.members[&id].disk.log().fail_next_sync();
    }

    fn others(&self, id: MemberId) -> Vec<MemberId> {
        let all = self.world.members.keys().copied();
        all.filter(|other| *other != id).collect()
    }

    /// Marks that the fault may affect clients until everything heals.
    fn disturbed(&mut self) {
        let now = self.world.time.now_ns();
        self.world.faults.disturbed(now + LIMIT_MS * MS);
    }

    /// Heals all faults, and checks all that holds in random worlds.
    pub fn passes(self) -> Report {
        let report = run::end(self.world);
        let findings = &report.findings;
        let lines = || report.last_lines.join("\n");
        assert!(findings.is_empty(), "{findings:#?}\n{}", lines());
        report
    }
}

/// The leader of the latest term.
pub fn leader(world: &World) -> Option<MemberId> {
    let processes = world.alive().into_iter();
    let leading = processes.filter_map(|id| {
        let status = world.process(id)?.raft.status();
        status.is_leader.then_some((status.term, id))
    });
    leading.max().map(|(_, id)| id)
}

fn process(world: &World, id: MemberId) -> &Process {
    world.process(id).expect("a member that runs")
}

pub fn term(world: &World, id: MemberId) -> u64 {
    process(world, id).raft.status().term
}

pub fn last_index(world: &World, id: MemberId) -> u64 {
    process(world, id).raft.status().last_index
}

pub fn commit_index(world: &World, id: MemberId) -> u64 {
    process(world, id).raft.status().commit_index
}

pub fn applied_index(world: &World, id: MemberId) -> u64 {
    process(world, id).handle.shared().raft.applied_index()
}
