//! What befalls a world, and when it ends again. Each world has some of the kinds, so that each
//! kind is also seen without the others.

mod elections;
mod membership;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use super::history::Moment;
use super::random::Random;
use super::world::World;
use crate::replica::inbox::Input;
use crate::storage::Engine as _;
use crate::storage::memory::Refuses;
use crate::types::MemberId;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
/// How often it is looked whether the cluster has members that are not there yet.
const CENSUS_NS: u64 = 150 * MS;
/// A disk that refused something is found out within this.
const BROKEN_NS: u64 = 10 * SECOND;
/// A fault is over for the clients so long after it ended.
const AFTERMATH_NS: u64 = 4 * SECOND;
/// Whoever changes the membership is a client of a number above this.
const FIRST_OPERATOR: u32 = 10_000;
/// Members that a cluster may grow to.
const MAX_MEMBERS: usize = 6;

/// What can befall a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A process is killed.
    Kill,
    /// A machine loses its power.
    PowerLoss,
    /// A process is told to stop, and does it in order.
    Stop,
    /// An engine makes its state durable by itself.
    Flush,
    /// All machines do, at once.
    PowerLossOfAll,
    /// Members die and come back, one after the other, for a while.
    Turmoil,
    /// A leader is cut off the moment it is elected, and those that elected it lose their power.
    Coup,
    /// A process stands still.
    Pause,
    /// A member is cut off from all others.
    Isolation,
    /// The members fall into two groups.
    Partition,
    /// What a member sends, or what it is sent, is lost.
    OneWay,
    /// Messages are lost, doubled and late.
    LinkConditions,
    /// A disk takes nothing for a while.
    DiskStall,
    /// A disk refuses to sync.
    SyncFailure,
    /// A disk is full.
    DiskFull,
    /// A disk refuses what the engine writes, until the member is started again.
    EngineFailure,
    /// A wall clock jumps.
    ClockJump,
    /// Leadership is handed on.
    Transfer,
    /// A member is added, promoted, removed or gets another address.
    Membership,
    /// A member joins and leads while another is away.
    Newcomer,
}

impl Kind {
    /// As reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kill => "process killed",
            Kind::PowerLoss => "power lost",
            Kind::Stop => "member stopped in order",
            Kind::Flush => "state flushed by its engine",
            Kind::PowerLossOfAll => "power lost everywhere",
            Kind::Turmoil => "members restarted again and again",
            Kind::Coup => "new leader cut off from its voters",
            Kind::Pause => "process paused",
            Kind::Isolation => "member isolated",
            Kind::Partition => "network parted",
            Kind::OneWay => "link cut one way",
            Kind::LinkConditions => "messages lost, doubled and late",
            Kind::DiskStall => "disk stalled",
            Kind::SyncFailure => "sync failed",
            Kind::DiskFull => "disk full",
            Kind::EngineFailure => "state not written",
            Kind::ClockJump => "wall clock jumped",
            Kind::Transfer => "leadership transferred",
            Kind::Membership => "membership changed",
            Kind::Newcomer => "newcomer led while another was away",
        }
    }

    pub const ALL: [Kind; 20] = [
        Kind::Kill,
        Kind::PowerLoss,
        Kind::Stop,
        Kind::Flush,
        Kind::PowerLossOfAll,
        Kind::Turmoil,
        Kind::Coup,
        Kind::Pause,
        Kind::Isolation,
        Kind::Partition,
        Kind::OneWay,
        Kind::LinkConditions,
        Kind::DiskStall,
        Kind::SyncFailure,
        Kind::DiskFull,
        Kind::EngineFailure,
        Kind::ClockJump,
        Kind::Transfer,
        Kind::Membership,
        Kind::Newcomer,
    ];
}

/// What happens at a moment that was drawn before.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Strike,
    Census,
    /// The one that leads where it is none.
    Die(Option<MemberId>),
    Restart(MemberId),
    Transfer(MemberId),
    /// This one was just elected.
    Coup(MemberId),
    /// The member that joined last is to lead.
    Enthrone,
    Stop(MemberId),
    Continue(MemberId),
    Heal(Vec<(MemberId, MemberId)>),
    GoodWeather,
    FreeDisk(MemberId),
}

/// See the module.
pub struct Faults {
    random: Random,
    kinds: Vec<Kind>,
    agenda: BTreeMap<(Moment, u64), Event>,
    planned: u64,
    /// No fault begins after it.
    until: Moment,
    /// The longest wait between two faults.
    interval_ns: u64,
    busy_until: Moment,
    pub calm: Vec<(Moment, Moment)>,
    /// When members stood still and went on.
    pub stood_still: Vec<(Moment, Moment)>,
    pub counts: BTreeMap<Kind, u64>,
    operators: u32,
    /// The next leader is cut off if it is elected by then; this one was cut off before.
    coup: Option<(Moment, MemberId)>,
    /// Who joined last.
    newest: Option<MemberId>,
    /// Members that the cluster has removed.
    pub removed: BTreeSet<MemberId>,
}

impl Faults {
    pub fn new(mut random: Random) -> Self {
        let mut kinds: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|_| random.chance(600))
            .collect();
        match random.below(24) {
            0 => kinds.clear(),
            // Elections, and members that restart while they are held.
            1 => kinds = vec![Kind::Turmoil],
            2 => kinds = vec![Kind::Coup],
            3 => kinds = vec![Kind::Transfer, Kind::LinkConditions],
            // Members that fall behind, and come back to a snapshot.
            4 | 5 => kinds = vec![Kind::Isolation],
            6 | 7 => kinds = vec![Kind::Newcomer, Kind::Membership],
            _ => {}
        }
        let interval_ns = random.between(SECOND, 6 * SECOND);
        Self {
            random,
            kinds,
            agenda: BTreeMap::new(),
            planned: 0,
            until: 0,
            interval_ns,
            busy_until: 0,
            calm: Vec::new(),
            stood_still: Vec::new(),
            counts: BTreeMap::new(),
            operators: 0,
            coup: None,
            newest: None,
            removed: BTreeSet::new(),
        }
    }

    /// Faults begin until that moment.
    pub fn begin(&mut self, now: Moment, until: Moment) {
        self.until = until;
        self.busy_until = now + AFTERMATH_NS;
        self.plan(now + CENSUS_NS, Event::Census);
        if !self.kinds.is_empty() {
            self.plan(now + 2 * SECOND, Event::Strike);
        }
    }

    fn plan(&mut self, at: Moment, event: Event) {
        self.planned += 1;
        self.agenda.insert((at, self.planned), event);
    }

    /// When something is to happen next.
    pub fn next(&self) -> Option<Moment> {
        self.agenda.first_key_value().map(|((at, _), _)| *at)
    }

    /// Has as much of a kind as of all others together.
    pub fn prefer(&mut self, kind: Kind) {
        let others = self.kinds.len().max(1);
        self.kinds.extend(std::iter::repeat_n(kind, others));
    }

    /// Somebody leads for the first time in a term.
    pub fn note_elected(&mut self, id: MemberId, now: Moment) {
        let is_due = |coup: &mut (Moment, MemberId)| coup.0 >= now && coup.1 != id;
        if self.coup.take_if(is_due).is_some() {
            self.plan(now, Event::Coup(id));
        }
    }

    /// Has a member that ended started again in a while.
    pub fn restart_soon(&mut self, id: MemberId, now: Moment) {
        let at = now + self.random.between(30 * MS, 3 * SECOND);
        self.disturbed(at);
        self.plan(at, Event::Restart(id));
    }

    fn disturbed(&mut self, until: Moment) {
        self.busy_until = self.busy_until.max(until + AFTERMATH_NS);
    }

    /// There was nothing wrong from the end of the last fault until now.
    fn note_calm(&mut self, now: Moment) {
        if now > self.busy_until {
            self.calm.push((self.busy_until, now));
            self.busy_until = now;
        }
    }
}

/// Does what is due.
pub fn strike(world: &mut World) {
    let now = world.time.now_ns();
    let Some(entry) = world.faults.agenda.first_entry() else {
        return;
    };
    if entry.key().0 > now {
        return;
    }
    match entry.remove() {
        Event::Strike => {
            let faults = &mut world.faults;
            let next = now + faults.random.between(100 * MS, faults.interval_ns);
            if now < faults.until {
                faults.plan(next, Event::Strike);
                let kinds = faults.kinds.clone();
                let kind = *faults.random.pick(&kinds);
                begin(world, kind, now);
            }
        }
        Event::Census => {
            world.faults.plan(now + CENSUS_NS, Event::Census);
            membership::take_census(world);
        }
        Event::Die(id) => {
            let id = id.or_else(|| leader(world));
            if let Some(id) = id.filter(|id| world.is_alive(*id)) {
                world.die(id, false);
                let at = now + world.faults.random.between(30 * MS, 1_500 * MS);
                world.faults.disturbed(at);
                world.faults.plan(at, Event::Restart(id));
            }
        }
        Event::Transfer(to) => elections::transfer(world, to),
        Event::Coup(id) => elections::coup(world, id),
        Event::Enthrone => {
            if let Some(id) = world.faults.newest {
                elections::transfer(world, id);
            }
        }
        Event::Restart(id) => restart(world, id),
        Event::Stop(id) => {
            world.stop(id);
            world.faults.restart_soon(id, now);
        }
        Event::Continue(id) => go_on(world, id),
        Event::Heal(links) => {
            world.trace.note(format_args!("links heal: {links:?}"));
            for (from, to) in links {
                world.network.heal(from, to);
            }
        }
        Event::GoodWeather => world.network.set_weather(0, 0, 0),
        Event::FreeDisk(id) => {
            if let Some(node) = world.nodes.get(&id) {
                node.disk.log().fill(None);
            }
        }
    }
}

fn restart(world: &mut World, id: MemberId) {
    let gone = world.conditions.get(&id).is_none_or(|c| c.gone);
    if gone || world.is_alive(id) {
        return;
    }
    world.start(id);
    if !world.is_alive(id) {
        let now = world.time.now_ns();
        world.faults.restart_soon(id, now);
    }
}

fn go_on(world: &mut World, id: MemberId) {
    if let Some(condition) = world.conditions.get_mut(&id)
        && std::mem::take(&mut condition.paused)
    {
        let now = world.time.now_ns();
        world.faults.stood_still.push((condition.paused_since, now));
    }
    world.network.hold(id, false);
}

/// One that leads, or takes itself for the leader.
fn leader(world: &World) -> Option<MemberId> {
    let is_leader = |id: &MemberId| {
        let life = world.life(*id);
        life.is_some_and(|life| life.raft.status().is_leader)
    };
    world.alive().into_iter().find(is_leader)
}

fn begin(world: &mut World, kind: Kind, now: Moment) {
    let alive = world.alive();
    if alive.is_empty() {
        return;
    }
    world.faults.note_calm(now);
    let leader = leader(world);
    let random = &mut world.faults.random;
    let id = match leader {
        // What befalls a leader has the most to show.
        Some(leader) if random.chance(250) => leader,
        _ => *random.pick(&alive),
    };
    let soon = now + random.between(30 * MS, 2 * SECOND);
    let later = now + random.between(200 * MS, 7 * SECOND);
    *world.faults.counts.entry(kind).or_default() += 1;
    world.faults.disturbed(later);
    world.trace.note(format_args!("fault: {kind:?} {id}"));
    match kind {
        Kind::Kill | Kind::PowerLoss => {
            world.die(id, kind == Kind::Kill);
            world.faults.plan(later, Event::Restart(id));
        }
        Kind::Stop => {
            // As a server does when it is told to: first it hands over.
            if let Some(life) = world.life(id) {
                // A full inbox has other worries.
                let _ = life.raft.inbox().push(Input::HandOver);
            }
            world.faults.disturbed(soon);
            world.faults.plan(soon, Event::Stop(id));
        }
        Kind::Flush => {
            if let Some(node) = world.nodes.get(&id) {
                // One that refuses is noticed by its member.
                let _ = node.disk.state().flush();
            }
        }
        Kind::PowerLossOfAll => {
            for id in alive {
                world.die(id, false);
                world.faults.restart_soon(id, now);
            }
        }
        Kind::Turmoil => elections::turmoil(world, &alive, now),
        Kind::Coup => elections::prepare_coup(world, id, now),
        Kind::Pause => {
            if let Some(condition) = world.conditions.get_mut(&id) {
                if !condition.paused {
                    condition.paused_since = now;
                }
                condition.paused = true;
            }
            world.network.hold(id, true);
            world.faults.plan(later, Event::Continue(id));
        }
        Kind::Isolation | Kind::Partition | Kind::OneWay => {
            let links = links_to_cut(world, kind, id);
            for (from, to) in &links {
                world.network.cut(*from, *to);
            }
            let laggards = world.faults.kinds == [Kind::Isolation];
            if laggards || world.faults.random.chance(500) {
                elections::come_back_slow(world, id, later);
            }
            world.faults.plan(later, Event::Heal(links));
        }
        Kind::LinkConditions => {
            let random = &mut world.faults.random;
            let loss = random.between(5, 250) as u32;
            let doubled = random.between(0, 250) as u32;
            let slow = random.between(0, 200) as u32;
            world.network.set_weather(loss, doubled, slow);
            world.faults.plan(later, Event::GoodWeather);
        }
        Kind::DiskStall => {
            if let Some(condition) = world.conditions.get_mut(&id) {
                condition.stalled_until = later;
            }
        }
        Kind::SyncFailure | Kind::DiskFull | Kind::EngineFailure => {
            break_disk(world, kind, id, soon);
        }
        Kind::ClockJump => {
            let hours = world.faults.random.between(0, 48) as i64 - 24;
            if let Some(node) = world.nodes.get(&id) {
                let jump = hours * 3_600 * SECOND as i64;
                node.wall_offset_ns.fetch_add(jump, Ordering::SeqCst);
            }
        }
        Kind::Transfer => elections::hand_round(world, id, &alive, later),
        Kind::Membership => membership::change(world, id),
        Kind::Newcomer => membership::newcomer(world, id, now),
    }
}

fn links_to_cut(world: &mut World, kind: Kind, id: MemberId) -> Vec<(MemberId, MemberId)> {
    let random = &mut world.faults.random;
    let all: Vec<MemberId> = world.nodes.keys().copied().collect();
    let side: BTreeSet<MemberId> = match kind {
        Kind::Partition => all.iter().copied().filter(|_| random.chance(500)).collect(),
        _ => BTreeSet::from([id]),
    };
    let (out, back) = match kind {
        Kind::OneWay => {
            let out = random.chance(500);
            (out, !out)
        }
        _ => (true, true),
    };
    let mut links = Vec::new();
    for a in side.iter().copied() {
        for b in all.iter().copied().filter(|b| !side.contains(b)) {
            if out {
                links.push((a, b));
            }
            if back {
                links.push((b, a));
            }
        }
    }
    links
}

fn break_disk(world: &mut World, kind: Kind, id: MemberId, until: Moment) {
    let free = world.faults.random.below(4_096);
    if let Some(condition) = world.conditions.get_mut(&id) {
        let since = condition.may_fail_until;
        condition.may_fail_until = match kind {
            // It may not sync, or write, for long.
            Kind::SyncFailure | Kind::EngineFailure => Moment::MAX,
            _ => since.max(until + BROKEN_NS),
        };
        if kind != Kind::EngineFailure {
            condition.may_not_start_until = condition.may_fail_until;
        }
    }
    let Some(node) = world.nodes.get(&id) else {
        return;
    };
    match kind {
        Kind::DiskFull => {
            node.disk.log().fill(Some(free));
            world.faults.plan(until, Event::FreeDisk(id));
        }
        Kind::EngineFailure => {
            let random = &mut world.faults.random;
            node.disk.state().refuse(match random.chance(500) {
                true => Refuses::Flushes,
                false => Refuses::AllAfter(random.below(40)),
            });
        }
        _ => node.disk.log().fail_next_sync(),
    }
}

/// Ends a member that is taking over a snapshot.
pub fn cut_short(world: &mut World, id: MemberId) {
    let now = world.time.now_ns();
    if now < world.faults.until {
        world.faults.note_calm(now);
        let power = world.faults.random.chance(500);
        world
            .trace
            .note(format_args!("{id} ends while it takes over a snapshot"));
        world.die(id, power);
        world.faults.restart_soon(id, now);
    }
}

/// Ends every fault, and starts whoever is down.
pub fn heal(world: &mut World) {
    let now = world.time.now_ns();
    world.trace.note(format_args!("everything heals"));
    world.faults.until = 0;
    let census = |event: &Event| *event == Event::Census;
    world.faults.agenda.retain(|_, event| census(event));
    world.network.heal_all();
    world.network.set_weather(0, 0, 0);
    let ids: Vec<MemberId> = world.nodes.keys().copied().collect();
    for id in ids {
        go_on(world, id);
        if let Some(condition) = world.conditions.get_mut(&id) {
            condition.stalled_until = 0;
        }
        if let Some(node) = world.nodes.get(&id) {
            node.disk.log().fill(None);
            node.disk.state().refuse(Refuses::Nothing);
        }
        restart(world, id);
    }
    world.faults.busy_until = now + AFTERMATH_NS;
}

/// The end of the world: what was calm until now is noted.
pub fn close(world: &mut World) {
    let now = world.time.now_ns();
    world.faults.note_calm(now);
}
