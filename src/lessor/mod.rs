//! When leases expire: a function of the leader's clock and of what was applied.
//! `jobs::lease_expiry` takes the expired ones and proposes their revocation.

pub mod deadlines;
pub mod standstill;
