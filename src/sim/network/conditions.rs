//! The conditions on the network between members, and counts of what happened on it.

/// Messages in flight between two members, in one direction; more are refused.
pub const MAX_ON_A_LINK: usize = 2_048;

/// The conditions on all links that are not cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkConditions {
    /// Per mille. Each link loses between nothing and twice as much; at 1000 every link loses
    /// everything.
    pub loss_per_mille: u32,
    pub duplicates_per_mille: u32,
    /// Per mille of messages with an extreme delay.
    pub slow_per_mille: u32,
}

/// Events so far, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub delivered: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// Messages with an extreme delay.
    pub delayed_long: u64,
    /// Messages refused because their link was full.
    pub overflowed: u64,
    /// Forwarded proposals whose sender was informed that they were lost.
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
    /// Adds the counts of another network.
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
