//! When leases end: decided from the leader's clock and from what was applied, and from nothing
//! else. `jobs::lease_expiry` asks what is due and proposes it.

pub mod deadlines;
pub mod standstill;
