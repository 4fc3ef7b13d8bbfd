//! A world: members, clients and what is between them, on one thread in virtual time.
//!
//! The scheduler knows the next possible events - a turn of a member's thread, a ready task, the
//! arrival of a message, a timer, a fault - with their times, and always executes the earliest. How
//! long each takes is drawn from the seed, and so is the order in which they happen.
//!
//! Invariants are checked after every step (`invariants`). What needs the whole history is left to
//! `check`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::client::{Clients, MemberEndpoint};
use super::clock::Time;
use super::faults::plan::Faults;
use super::history::{AppliedEntry, Finding, Kept, Moment};
use super::member::{Exit, MemberEnv, Origin, Process, SimConfig, SimMember};
use super::network::SimNetwork;
use super::random::Random;
use super::states::{SimDisk, SimDisks};
use super::trace::Trace;
use crate::probe::{self, CoveragePoint};
use crate::proto::membershippb::{Member, RaftAttributes};
use crate::replica::apply_thread::Applying;
use crate::storage::{Engine, memory};
use crate::transport::Peer;
use crate::types::MemberId;

/// The next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Fault,
    Delivery,
    Timer,
    ClientTask,
    Raft(MemberId),
    Log(MemberId),
    Apply(MemberId),
    Task(MemberId),
    Blocking(MemberId),
}

/// When the threads and tasks of a member that have work will do it.
#[derive(Default)]
struct Agenda {
    raft: Option<Moment>,
    log: Option<Moment>,
    apply: Option<Moment>,
    task: Option<Moment>,
    blocking: Option<Moment>,
}

/// The present condition of a member's disk and process.
#[derive(Default)]
pub struct Condition {
    /// The process is paused.
    pub paused: bool,
    pub paused_since: Moment,
    /// The disk is stalled until then.
    pub stalled_until: Moment,
    /// It was removed from the cluster, or its data is gone: it is never started again.
    pub gone: bool,
    /// A fault was injected into its disk: it may exit until then.
    pub may_fail_until: Moment,
    /// The fault affects its log: until then it may even fail to start.
    pub may_not_start_until: Moment,
}

/// How faults are carried out, handed in: the world knows when one is due, and nothing else of it.
#[derive(Clone, Copy)]
pub struct Injector {
    /// Carries out the faults that are due.
    pub strike: fn(&mut World),
    /// Ends a member in the midst of what is named.
    pub cut_short: fn(&mut World, MemberId, &str),
}

/// See the module.
pub struct World {
    pub random: Random,
    pub time: Arc<Time>,
    pub network: Arc<SimNetwork>,
    pub disks: Arc<SimDisks>,
    pub clients: Arc<Clients>,
    pub trace: Arc<Trace>,
    pub config: SimConfig,
    pub members: BTreeMap<MemberId, SimMember>,
    pub conditions: BTreeMap<MemberId, Condition>,
    pub faults: Faults,
    pub injector: Injector,
    pub findings: Vec<Finding>,
    pub entries: Vec<(Moment, AppliedEntry)>,
    pub kept: Vec<Kept>,
    pub steps: u64,
    /// The current virtual second, and the number of steps before it.
    pub(super) second: (u64, u64),
    pub founders: Vec<MemberId>,
    agendas: BTreeMap<MemberId, Agenda>,
    pub(super) leaders: BTreeMap<u64, MemberId>,
    /// The last term of each member.
    pub(super) terms: BTreeMap<MemberId, u64>,
    pub(super) hashes: BTreeMap<u64, (u64, MemberId)>,
    urls: u64,
}

/// A broken disk may fail again within this time.
const SETTLED_NS: u64 = 10_000_000_000;
/// Far more steps than any world needs.
const MAX_STEPS: u64 = 3_000_000;
/// Far more engine reads than any step needs.
const MAX_READS_A_STEP: u64 = 1_000_000;
/// Bounds of queues are checked once in this many steps.
const STEPS_PER_CHECK: u64 = 256;

impl World {
    /// A cluster that has just been founded, with no member running.
    pub fn new(
        mut random: Random,
        members: u64,
        config: SimConfig,
        injector: Injector,
        print: bool,
    ) -> Self {
        // Discards entries of an earlier world on this thread.
        let _ = probe::take_applied();
        let time = Time::new();
        let trace = Trace::new(time.clone(), print);
        let disks = SimDisks::new();
        let network = SimNetwork::new(time.clone(), disks.clone(), random.fork(1));
        let mut world = Self {
            faults: Faults::new(random.fork(2)),
            injector,
            clients: Clients::new(time.clone(), trace.clone()),
            disks,
            random,
            time,
            network,
            trace,
            config,
            members: BTreeMap::new(),
            conditions: BTreeMap::new(),
            findings: Vec::new(),
            entries: Vec::new(),
            kept: Vec::new(),
            steps: 0,
            second: (0, 0),
            founders: Vec::new(),
            agendas: BTreeMap::new(),
            leaders: BTreeMap::new(),
            terms: BTreeMap::new(),
            hashes: BTreeMap::new(),
            urls: 0,
        };
        let founders: Vec<Member> = (1..=members)
            .map(|number| Member {
                id: 0xb0 + number,
                raft_attributes: Some(RaftAttributes {
                    peer_urls: vec![world.new_url()],
                    is_learner: false,
                }),
                ..Default::default()
            })
            .collect();
        world.founders = founders.iter().map(|member| MemberId(member.id)).collect();
        for founder in &founders {
            let id = MemberId(founder.id);
            let disk = world.new_drive(id);
            let drift_ppm = world.random_drift();
            let origin = Origin::Founder(founders.clone());
            world.add(SimMember::new(id, disk, drift_ppm, origin));
        }
        world
    }

    /// The peer URL of a member to be added.
    pub fn new_url(&mut self) -> String {
        self.urls += 1;
        format!("http://10.0.0.{}:2380", self.urls)
    }

    fn new_drive(&mut self, id: MemberId) -> Arc<SimDisk> {
        SimDisk::new(self.disks.clone(), id)
    }

    fn random_drift(&mut self) -> i64 {
        self.random.between(0, 20_000) as i64 - 10_000
    }

    fn add(&mut self, member: SimMember) {
        self.conditions.insert(member.id, Condition::default());
        self.agendas.insert(member.id, Agenda::default());
        self.members.insert(member.id, member);
    }

    /// Creates a joining member with an empty disk.
    pub fn add_joiner(&mut self, id: MemberId, first_peers: Vec<Peer>) {
        let disk = self.new_drive(id);
        let drift_ppm = self.random_drift();
        let origin = Origin::Joiner(first_peers);
        self.add(SimMember::new(id, disk, drift_ppm, origin));
    }

    pub fn find(&mut self, what: &'static str, details: String) {
        self.trace.note(format_args!("FOUND: {what}: {details}"));
        if self.findings.len() < 20 {
            self.findings.push(Finding { what, details });
        }
    }

    pub fn is_alive(&self, id: MemberId) -> bool {
        self.members
            .get(&id)
            .is_some_and(|member| member.process.is_some())
    }

    pub fn alive(&self) -> Vec<MemberId> {
        let alive = self
            .members
            .values()
            .filter(|member| member.process.is_some());
        alive.map(|member| member.id).collect()
    }

    pub fn process(&self, id: MemberId) -> Option<&Process> {
        self.members.get(&id)?.process.as_ref()
    }

    /// Starts a member that is not running.
    pub fn start(&mut self, id: MemberId) {
        let random = self.random.fork(id.0);
        let around = MemberEnv {
            time: &self.time,
            network: &self.network,
            config: self.config,
        };
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.process.is_some() {
            return;
        }
        let started = member.start(&around, random);
        self.trace.note(format_args!("{id} starts: {started:?}"));
        self.note_applied();
        let damage = self.faults.damage_of(id);
        match started {
            Ok(()) => {
                self.note_damaged_start(id, damage);
                let term = self
                    .process(id)
                    .map_or(0, |process| process.raft.status().term);
                let forgotten = self.network.promises().started(id, term);
                if let Some(forgotten) = forgotten {
                    self.find("a member forgot its term", forgotten);
                }
                self.open_door(id);
            }
            Err(reason) => {
                let condition = self.conditions.get(&id);
                let until = condition.map_or(0, |condition| condition.may_not_start_until);
                self.network.detach(id);
                if damage.is_some() {
                    probe::reached(CoveragePoint::DamagedLogRefused);
                    self.lose(id);
                } else if self.time.now_ns() > until {
                    self.find("a member does not start", format!("{id}: {reason}"));
                }
            }
        }
    }

    fn open_door(&mut self, id: MemberId) {
        if let Some(process) = self.process(id) {
            let endpoint = MemberEndpoint {
                tasks: process.tasks.clone(),
                services: process.services.clone(),
            };
            self.clients.open(id, endpoint);
        }
    }

    /// Kills a member's process. If the machine loses power, its disk loses what was not synced.
    pub fn die(&mut self, id: MemberId, power: bool) {
        self.clients.close(id);
        let seed = self.random.next();
        let mid_write = self.random.chance(800);
        let after = self.random.between(1, 5);
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let Some(mut process) = member.process.take() else {
            return;
        };
        if mid_write && process.log_jobs.is_some() {
            // It dies while the log is being written.
            {
                let disk = member.disk.log();
                disk.stop_at(disk.operations() + after);
            };
            // Its panics no longer count.
            let _ = process.finish_log();
        }
        process.tasks.clear();
        self.network.detach(id);
        drop(process);
        match power {
            true => member.disk.kill(),
            false => member.disk.crash(seed),
        }
        if let Some(agenda) = self.agendas.get_mut(&id) {
            *agenda = Agenda::default();
        }
        if let Some(condition) = self.conditions.get_mut(&id) {
            condition.paused = false;
            self.network.hold(id, false);
        }
        self.trace.note(format_args!("{id} dies, power {power}"));
        self.try_damaged_logs(id, seed);
    }

    /// Stops a member's process in order: its threads finish their work, and the state is flushed.
    pub fn stop(&mut self, id: MemberId) {
        let paused = self.conditions.get(&id).is_some_and(|c| c.paused);
        let Some(member) = self.members.get_mut(&id).filter(|_| !paused) else {
            return;
        };
        let Some(process) = &mut member.process else {
            return;
        };
        let stopped = process.stop();
        self.note_applied();
        match stopped {
            Ok(()) => self.die(id, true),
            Err(reason) => self.failed(id, &reason),
        }
    }

    /// Runs the world until a time.
    pub fn run_until(&mut self, end: Moment) {
        while let Some((at, next)) = self.next() {
            if at > end || !self.findings.is_empty() {
                break;
            }
            self.time.advance_to(at);
            self.step(next);
        }
        if self.findings.is_empty() {
            self.time.advance_to(end);
        }
    }

    /// Runs the world step by step until a condition holds; false if it does not by the given time.
    #[cfg(test)]
    pub fn run_until_so(&mut self, end: Moment, mut is_so: impl FnMut(&World) -> bool) -> bool {
        while !is_so(self) {
            let next = self.next().filter(|(at, _)| *at <= end);
            let Some((at, next)) = next.filter(|_| self.findings.is_empty()) else {
                return false;
            };
            self.time.advance_to(at);
            self.step(next);
        }
        true
    }

    /// The next event, and its time.
    fn next(&mut self) -> Option<(Moment, Next)> {
        let now = self.time.now_ns();
        let mut next: Option<(Moment, Next)> = None;
        let mut consider = |at: Option<Moment>, what: Next| {
            if let Some(at) = at {
                let at = at.max(now);
                if next.is_none_or(|(first, _)| at < first) {
                    next = Some((at, what));
                }
            }
        };
        consider(self.faults.next(), Next::Fault);
        consider(self.network.next_delivery(), Next::Delivery);
        consider(self.time.next_timer(), Next::Timer);
        if self.clients.tasks.ready() > 0 {
            consider(Some(now), Next::ClientTask);
        }
        for (id, member) in &mut self.members {
            let (Some(process), Some(agenda), Some(condition)) = (
                member.process.as_mut(),
                self.agendas.get_mut(id),
                self.conditions.get(id),
            ) else {
                continue;
            };
            if condition.paused {
                continue;
            }
            agenda.plan(process, now, condition, &self.config, &mut self.random);
            let tick = process.next_tick_ns();
            consider(
                Some(agenda.raft.map_or(tick, |at| at.min(tick))),
                Next::Raft(*id),
            );
            consider(agenda.log, Next::Log(*id));
            consider(agenda.apply, Next::Apply(*id));
            consider(agenda.task, Next::Task(*id));
            consider(agenda.blocking, Next::Blocking(*id));
        }
        next
    }

    fn step(&mut self, next: Next) {
        self.steps += 1;
        memory::allow_reads(MAX_READS_A_STEP);
        self.check_for_spin(self.time.now_ns());
        if self.steps == MAX_STEPS {
            let state = self.describe();
            self.find("members are busy without end", state);
        }
        let now = self.time.now_ns();
        match next {
            Next::Fault => (self.injector.strike)(self),
            Next::Delivery => self.network.deliver_due(now, &mut self.random),
            // Advancing the time has fired it.
            Next::Timer => {}
            Next::ClientTask => {
                self.clients.tasks.poll_one(&mut self.random);
            }
            Next::Raft(id) => {
                self.network.promises().begin_turn(id);
                self.turn(
                    id,
                    |process, _| process.raft_turn(),
                    |agenda| &mut agenda.raft,
                );
                self.check_terms(id);
            }
            Next::Log(id) => {
                let resets = self.process(id).is_some_and(Process::log_resets);
                self.turn(
                    id,
                    |process, _| process.finish_log(),
                    |agenda| &mut agenda.log,
                );
                // The log has been reset and the state not yet switched: a short moment in which
                // faults matter.
                if resets && self.random.chance(100) {
                    (self.injector.cut_short)(self, id, "takes over a received state");
                }
            }
            Next::Apply(id) => {
                self.turn(
                    id,
                    |process, _| process.proceed_apply(),
                    |agenda| &mut agenda.apply,
                );
                // An engine flushes as it sees fit: a part of a deletion may outlive a crash.
                if self.is_within_deletion(id)
                    && self.random.chance(15)
                    && self.members[&id].disk.state().flush().is_ok()
                {
                    (self.injector.cut_short)(self, id, "deletes many keys");
                }
            }
            Next::Task(id) => self.turn(
                id,
                |process, random| {
                    for _ in 0..random.between(1, 4) {
                        process.tasks.poll_one(random);
                    }
                    Ok(())
                },
                |agenda| &mut agenda.task,
            ),
            Next::Blocking(id) => self.turn(
                id,
                |process, random| {
                    process.tasks.run_blocking_one(random);
                    Ok(())
                },
                |agenda| &mut agenda.blocking,
            ),
        }
        if self.steps.is_multiple_of(STEPS_PER_CHECK) {
            self.check_queues();
            self.check_for_false_alarms();
            self.check_votes();
        }
    }

    fn turn(
        &mut self,
        id: MemberId,
        act: impl FnOnce(&mut Process, &mut Random) -> Result<(), String>,
        planned: impl FnOnce(&mut Agenda) -> &mut Option<Moment>,
    ) {
        if let Some(agenda) = self.agendas.get_mut(&id) {
            *planned(agenda) = None;
        }
        let Some(process) = self
            .members
            .get_mut(&id)
            .and_then(|member| member.process.as_mut())
        else {
            return;
        };
        let result = act(process, &mut self.random);
        let status = process.raft.status();
        let end = process.end.lock().clone();
        self.note_applied();
        if status.is_leader {
            self.note_leader(id, status.term);
        }
        self.note_term(id, status.term);
        self.compare_state(id);
        match (result, end) {
            (Err(reason), _) => self.failed(id, &reason),
            (Ok(()), Some(Exit::Failed(reason))) => self.failed(id, &reason),
            (Ok(()), Some(Exit::Removed)) => {
                probe::reached(CoveragePoint::MemberRemoved);
                self.die(id, true);
                if let Some(condition) = self.conditions.get_mut(&id) {
                    condition.gone = true;
                }
            }
            (Ok(()), None) => self.check_shown(id),
        }
    }

    fn may_fail(&self, id: MemberId) -> bool {
        let condition = self.conditions.get(&id);
        condition.is_some_and(|condition| self.time.now_ns() <= condition.may_fail_until)
    }

    /// A member exited.
    fn failed(&mut self, id: MemberId, reason: &str) {
        self.trace
            .note(format_args!("{id} cannot continue: {reason}"));
        let expected = self.may_fail(id);
        if let Some(condition) = self.conditions.get_mut(&id) {
            let now = self.time.now_ns();
            let settled = now + SETTLED_NS;
            condition.may_fail_until = condition.may_fail_until.min(settled);
            condition.may_not_start_until = condition.may_not_start_until.min(settled);
        }
        self.die(id, true);
        if self.ends_for_damage(id, reason) {
            return;
        }
        if !expected {
            self.find("a member exited unexpectedly", format!("{id}: {reason}"));
        }
        self.faults.restart_soon(id, self.time.now_ns());
    }
}

impl Agenda {
    /// Draws the times at which work that has become due will be done.
    fn plan(
        &mut self,
        process: &mut Process,
        now: Moment,
        condition: &Condition,
        config: &SimConfig,
        random: &mut Random,
    ) {
        if self.raft.is_none() && process.raft.inbox().waiting().0 > 0 {
            self.raft = Some(now + random.between(1_000, 60_000));
        }
        if self.log.is_none() && process.begin_log() {
            let done = now + write_ns(random);
            self.log = Some(done.max(condition.stalled_until));
        }
        // The next part of a long deletion takes as long as another job.
        let is_between_steps = |applying: &Applying| !applying.is_sliced();
        if self.apply.is_none() && process.applying.as_ref().is_some_and(is_between_steps) {
            self.apply = Some(now + random.between(200, 40_000));
        } else if self.apply.is_none() && (process.is_applying() || process.begin_apply()) {
            let slow = random.chance(config.slow_apply_per_mille);
            let most = if slow { 30_000_000 } else { 200_000 };
            self.apply = Some(now + random.between(5_000, most));
        }
        if self.task.is_none() && process.tasks.ready() > 0 {
            self.task = Some(now + random.between(1_000, 40_000));
        }
        if self.blocking.is_none() && process.tasks.blocking() > 0 {
            let slow = random.chance(50);
            let most = if slow { 200_000_000 } else { 1_000_000 };
            let done = now + random.between(20_000, most);
            self.blocking = Some(done);
        }
    }
}

/// The duration of a write with its sync.
fn write_ns(random: &mut Random) -> u64 {
    match random.below(100) {
        0 => random.between(5_000_000, 80_000_000),
        1..10 => random.between(1_000_000, 8_000_000),
        _ => random.between(80_000, 1_500_000),
    }
}
