//! What a caller may ask of a member, for every surface: gRPC, HTTP, other members and jobs.
//!
//! `caller` says who asks and until when, `permission` whether it may, `propose` and `read` carry
//! it out upon the member that `handle` stands for, `admission` says what is refused at once,
//! `leases`, `membership`, `hashes` and `downgrade` hold what their requests need beside a proposal
//! or a read, `peer` answers other members, `rpcs` is the table of all calls, and `settings` has what
//! the configuration decides of all this.

pub mod admission;
pub mod caller;
pub mod downgrade;
#[cfg(test)]
pub mod fixture;
pub mod handle;
pub mod hashes;
pub mod leases;
pub mod membership;
pub mod peer;
pub mod permission;
mod propose;
mod read;
pub mod rpcs;
pub mod settings;
