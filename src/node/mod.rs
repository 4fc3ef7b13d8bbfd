//! One member at work: consensus, log, state machine, watches and jobs put together.
//!
//! - `core` routes: proposals and reads to raft or to the leader, what raft says to the log and
//!   the machine, answers to whoever waits. It is synchronous and does no I/O.
//! - `apply` runs the machine and publishes what it did: the view, the answers, the events.
//! - `run` owns the threads; `log_thread` writes the raft log, `pipe` is the queue before each.
//! - `handle` (with `leases`, `members` and `hashes`) is what the services call, `peer` what other members call; `jobs` work in the
//!   background.

pub mod admission;
pub mod apply;
pub mod core;
pub mod downgrade;
pub mod handle;
pub mod hashes;
pub mod inbox;
pub mod jobs;
pub mod leases;
pub mod log_thread;
pub mod member;
pub mod members;
pub mod peer;
pub mod pipe;
pub mod raft_thread;
pub mod reads;
pub mod requests;
pub mod run;
pub mod shared;
#[cfg(test)]
pub mod stand_in;
pub mod states;
#[cfg(test)]
mod tests;
pub mod version;
pub mod work;

pub use handle::Handle;
pub use shared::{ClusterStatus, ReadView, Shared};
