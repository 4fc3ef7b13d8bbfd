//! Which faults a world gets and when, drawn from its seed.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::history::Moment;
use crate::sim::random::Random;
use crate::types::MemberId;

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;
/// How often new members are looked for that need a machine.
pub const CHECK_MEMBERSHIP_NS: u64 = 150 * MS;
/// How long after its end a fault may still affect clients.
pub(super) const AFTERMATH_NS: u64 = 4 * SECOND;

/// The kinds of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A process is killed.
    Kill,
    /// A machine loses its power.
    PowerLoss,
    /// A process is stopped in order.
    Stop,
    /// An engine flushes its state.
    Flush,
    /// All machines lose power at once.
    PowerLossOfAll,
    /// Members die and restart one after the other, for a while.
    Turmoil,
    /// A leader is partitioned the moment it is elected, and its voters lose power.
    Coup,
    /// A process is paused.
    Pause,
    /// A member is partitioned from all others.
    Isolation,
    /// The members are partitioned into two groups.
    Partition,
    /// Messages are lost in one direction, from or to a member.
    OneWay,
    /// Messages are lost, duplicated and delayed.
    LinkConditions,
    /// A disk stalls.
    DiskStall,
    /// A sync fails.
    SyncFailure,
    /// A disk is full.
    DiskFull,
    /// A disk refuses the engine's writes until the member is restarted.
    EngineFailure,
    /// A wall clock jumps.
    ClockJump,
    /// Leadership is transferred.
    Transfer,
    /// A member is added, promoted, removed or gets other peer URLs.
    Membership,
    /// A member joins and becomes the leader while another is unreachable.
    Newcomer,
    /// A member dies, and its log is damaged before it starts again.
    LogDamaged,
}

impl Kind {
    /// Its name in reports.
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
            Kind::LogDamaged => "log damaged while its member was down",
        }
    }

    pub const ALL: [Kind; 21] = [
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
        Kind::LogDamaged,
    ];
}

/// What happens at a time drawn earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    InjectFault,
    CheckMembership,
    /// `None` is the leader at that time.
    Die(Option<MemberId>),
    Restart(MemberId),
    /// A member dies and loses the end of its log, and others die with it.
    LoseEnd {
        member: MemberId,
        also: Also,
    },
    Transfer(MemberId),
    /// This one was just elected.
    Coup(MemberId),
    /// Leadership is transferred to the member that joined last.
    TransferToNewest,
    Stop(MemberId),
    Continue(MemberId),
    Heal(Vec<(MemberId, MemberId)>),
    LinksRecover,
    FreeDisk(MemberId),
}

/// Who loses power with a member whose log loses its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Also {
    Nobody,
    Leader,
    /// All other voters.
    All,
}

/// How far it is with a member whose log was damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is about to happen.
    Preparing,
    /// It may have lost entries that it had acknowledged, and start without them.
    Lacking,
    /// Its start must be refused.
    Refusing,
    /// It was: an operator replaces it.
    Replacing,
}

/// A member whose log was damaged.
#[derive(Clone, Debug)]
pub(super) struct Damaged {
    pub member: MemberId,
    pub phase: Phase,
    /// What is committed up to this entry is all that it can have lost, once a leader is there.
    pub all: Option<u64>,
    /// When the operator made the last request, and the peer URL of the member to be added.
    pub asked_at: Option<Moment>,
    pub url: Option<String>,
}

impl Damaged {
    pub fn new(member: MemberId, phase: Phase) -> Self {
        Self {
            member,
            phase,
            all: None,
            asked_at: None,
            url: None,
        }
    }
}

/// See the module.
pub struct Faults {
    pub(super) random: Random,
    pub(super) kinds: Vec<Kind>,
    pub(super) agenda: BTreeMap<(Moment, u64), Event>,
    planned: u64,
    /// No fault begins after this time.
    pub(super) until: Moment,
    /// The longest interval between faults.
    pub(super) interval_ns: u64,
    pub(super) busy_until: Moment,
    pub calm: Vec<(Moment, Moment)>,
    /// When members were paused and resumed.
    pub stood_still: Vec<(Moment, Moment)>,
    pub counts: BTreeMap<Kind, u64>,
    pub(super) operators: u32,
    /// If the next leader is elected by then it is partitioned; the given member was partitioned
    /// before.
    pub(super) coup: Option<(Moment, MemberId)>,
    pub(super) damaged: Option<Damaged>,
    /// The member that joined last.
    pub(super) newest: Option<MemberId>,
    /// Members that the cluster has removed.
    pub removed: BTreeSet<MemberId>,
}

impl Faults {
    pub fn new(mut random: Random) -> Self {
        let others = Kind::ALL.iter().filter(|kind| **kind != Kind::LogDamaged);
        let mut kinds: Vec<Kind> = others.copied().filter(|_| random.chance(600)).collect();
        // Of draws of its own, so that the worlds without it are what they were before it.
        let mut own = random.clone().fork(21);
        match random.below(24) {
            0 => kinds.clear(),
            // Elections, and members that restart while messages to them are held.
            1 => kinds = vec![Kind::Turmoil],
            2 => kinds = vec![Kind::Coup],
            3 => kinds = vec![Kind::Transfer, Kind::LinkConditions],
            // Members that lag, and have to be sent a state when they return.
            4 | 5 => kinds = vec![Kind::Isolation],
            6 | 7 => kinds = vec![Kind::Newcomer, Kind::Membership],
            _ if own.chance(100) => kinds = vec![Kind::LogDamaged],
            _ if own.chance(200) => kinds.extend([Kind::LogDamaged; 2]),
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
            damaged: None,
            newest: None,
            removed: BTreeSet::new(),
        }
    }

    /// No fault is drawn: the caller chooses what is injected.
    #[cfg(test)]
    pub fn chosen(random: Random) -> Self {
        let mut faults = Self::new(random);
        faults.kinds.clear();
        faults
    }

    /// Faults begin until that time.
    pub fn begin(&mut self, now: Moment, until: Moment) {
        self.until = until;
        self.busy_until = now + AFTERMATH_NS;
        self.plan(now + CHECK_MEMBERSHIP_NS, Event::CheckMembership);
        if !self.kinds.is_empty() {
            self.plan(now + 2 * SECOND, Event::InjectFault);
        }
    }

    pub fn plan(&mut self, at: Moment, event: Event) {
        self.planned += 1;
        self.agenda.insert((at, self.planned), event);
    }

    /// When the next event is due.
    pub fn next(&self) -> Option<Moment> {
        self.agenda.first_key_value().map(|((at, _), _)| *at)
    }

    /// A member may lack what it had acknowledged, or is gone for good: with a majority that others
    /// bring into doubt the cluster might lose an entry, or wait for ever.
    pub fn is_at_stake(&self) -> bool {
        self.damaged.is_some()
    }

    /// What happened to the member's log, if it was damaged.
    pub fn damage_of(&self, member: MemberId) -> Option<Phase> {
        let damaged = self.damaged.as_ref()?;
        (damaged.member == member).then_some(damaged.phase)
    }

    /// The damage was noticed: an operator replaces the member.
    pub fn noticed_damage(&mut self) {
        if let Some(damaged) = &mut self.damaged {
            damaged.phase = Phase::Replacing;
        }
    }

    pub fn forget_preparations(&mut self) {
        let preparing = |damaged: &mut Damaged| damaged.phase == Phase::Preparing;
        self.damaged.take_if(preparing);
    }

    /// Makes one kind as likely as all others together.
    pub fn prefer(&mut self, kind: Kind) {
        let others = self.kinds.len().max(1);
        self.kinds.extend(std::iter::repeat_n(kind, others));
    }

    /// A member is the first to lead in a term.
    pub fn note_elected(&mut self, id: MemberId, now: Moment) {
        let is_due = |coup: &mut (Moment, MemberId)| coup.0 >= now && coup.1 != id;
        if self.coup.take_if(is_due).is_some() {
            self.plan(now, Event::Coup(id));
        }
    }

    /// Schedules the restart of a member that exited.
    pub fn restart_soon(&mut self, id: MemberId, now: Moment) {
        let at = now + self.random.between(30 * MS, 3 * SECOND);
        self.disturbed(at);
        self.plan(at, Event::Restart(id));
    }

    pub fn disturbed(&mut self, until: Moment) {
        self.busy_until = self.busy_until.max(until + AFTERMATH_NS);
    }

    /// Records the interval without faults that ends now.
    pub fn note_calm(&mut self, now: Moment) {
        if now > self.busy_until {
            self.calm.push((self.busy_until, now));
            self.busy_until = now;
        }
    }
}
