//! Which faults a world gets and when, drawn from its seed.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::history::Moment;
use crate::sim::random::Random;
use crate::types::MemberId;

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;
/// How often it is looked whether the cluster has members that are not there yet.
pub const CENSUS_NS: u64 = 150 * MS;
/// A fault is over for the clients so long after it ended.
pub(super) const AFTERMATH_NS: u64 = 4 * SECOND;

/// The kinds of fault.
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
pub enum Event {
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
    LinksRecover,
    FreeDisk(MemberId),
}

/// See the module.
pub struct Faults {
    pub(super) random: Random,
    pub(super) kinds: Vec<Kind>,
    pub(super) agenda: BTreeMap<(Moment, u64), Event>,
    planned: u64,
    /// No fault begins after it.
    pub(super) until: Moment,
    /// The longest wait between two faults.
    pub(super) interval_ns: u64,
    pub(super) busy_until: Moment,
    pub calm: Vec<(Moment, Moment)>,
    /// When members stood still and went on.
    pub stood_still: Vec<(Moment, Moment)>,
    pub counts: BTreeMap<Kind, u64>,
    pub(super) operators: u32,
    /// The next leader is cut off if it is elected by then; this one was cut off before.
    pub(super) coup: Option<(Moment, MemberId)>,
    /// Who joined last.
    pub(super) newest: Option<MemberId>,
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

    /// No fault is drawn: somebody else chooses what is injected into the world.
    #[cfg(test)]
    pub fn chosen(random: Random) -> Self {
        let mut faults = Self::new(random);
        faults.kinds.clear();
        faults
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

    pub fn plan(&mut self, at: Moment, event: Event) {
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

    pub fn disturbed(&mut self, until: Moment) {
        self.busy_until = self.busy_until.max(until + AFTERMATH_NS);
    }

    /// There was nothing wrong from the end of the last fault until now.
    pub fn note_calm(&mut self, now: Moment) {
        if now > self.busy_until {
            self.calm.push((self.busy_until, now));
            self.busy_until = now;
        }
    }
}
