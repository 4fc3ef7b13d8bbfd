//! What a caller may ask of a member, for every surface: gRPC, HTTP, other members and jobs.
//!
//! `handle` proposes and reads, `admission` says what is refused at once, `leases`, `membership`,
//! `hashes` and `downgrade` hold what their requests need beside a proposal or a read, `peer` answers
//! other members, and `settings` has what the configuration decides of all this.

pub mod admission;
pub mod downgrade;
#[cfg(test)]
pub mod fixture;
pub mod handle;
pub mod hashes;
pub mod leases;
pub mod membership;
pub mod peer;
pub mod settings;
