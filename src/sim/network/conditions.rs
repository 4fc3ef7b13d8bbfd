//! How well the network between members works, and what happened on it so far.

/// Flights between two members at once, in one direction; more messages are refused.
pub const MAX_ON_A_LINK: usize = 2_048;

/// How things go between all members that are not cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkConditions {
    /// Each link loses between nothing and twice as much; all of them everything at 1000.
    pub loss_per_mille: u32,
    pub duplicates_per_mille: u32,
    /// What takes far longer than usual.
    pub slow_per_mille: u32,
}

/// What happened so far, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub delivered: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// Messages that took far longer than usual.
    pub delayed_long: u64,
    /// Messages that found no room on their link.
    pub overflowed: u64,
    /// Forwarded proposals whose sender learned that nobody has them.
    pub refused: u64,
    pub reported_unreachable: u64,
    pub reported_removed: u64,
    pub snapshots_sent: u64,
    pub snapshots_arrived: u64,
    pub snapshots_cut: u64,
    pub peer_rpcs: u64,
    pub peer_rpcs_lost: u64,
}

impl Counts {
    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: &Counts) {
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.delayed_long += other.delayed_long;
        self.overflowed += other.overflowed;
        self.refused += other.refused;
        self.reported_unreachable += other.reported_unreachable;
        self.reported_removed += other.reported_removed;
        self.snapshots_sent += other.snapshots_sent;
        self.snapshots_arrived += other.snapshots_arrived;
        self.snapshots_cut += other.snapshots_cut;
        self.peer_rpcs += other.peer_rpcs;
        self.peer_rpcs_lost += other.peer_rpcs_lost;
    }
}
