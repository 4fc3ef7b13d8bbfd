//! The operations that a member offers, for every surface: gRPC, HTTP, other members and jobs.
//!
//! `caller` has a request's identity and deadline, `permission` decides whether it is allowed,
//! `propose` and `read` execute it on the member that `handle` represents, `admission` refuses
//! early, `identity`, `tokens` and `passwords` say who a client is, `leases`, `membership`,
//! `hashes`, `format` and `downgrade` hold what their requests need beside a proposal or a read,
//! `peer` answers other members, `concurrency` makes locks and elections of all these, `rpcs` is the
//! table of all RPCs, and `settings` has what the configuration decides.

pub mod admission;
pub mod backup;
pub mod caller;
pub mod concurrency;
pub mod downgrade;
#[cfg(test)]
pub mod fixture;
mod format;
pub mod handle;
pub mod hashes;
pub mod identity;
pub mod leases;
pub mod membership;
pub mod passwords;
pub mod peer;
pub mod permission;
mod propose;
mod read;
pub mod rpcs;
pub mod settings;
pub mod tokens;
