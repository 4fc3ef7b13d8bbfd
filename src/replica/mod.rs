//! The replica: inputs to an applied log. Consensus, the raft log, the state machine and the watch
//! hub put together, without a service, a job or an async runtime.
//!
//! - `router` routes: proposals and reads to raft or to the leader, what raft says to the log and
//!   the machine, answers to whoever waits. It is synchronous and does no I/O. `pending` has the
//!   proposals that wait meanwhile, `reads` the reads.
//! - `raft_thread` takes what comes and carries out what the router decides, `log_thread` writes
//!   the raft log, `apply_thread` runs the machine and publishes what it did: the view, the
//!   answers, the events. `pipe` is the queue before each of the two, `inbox` the one before the
//!   raft thread, and `run` owns the threads.
//! - `shared` is what all of them publish and everyone else reads.
//! - `state_store` is what the replica asks of where states are kept; `server/states.rs` installs
//!   one that came as a snapshot.

pub mod apply_thread;
pub mod cluster_status;
pub mod fatal;
pub mod inbox;
pub mod log_thread;
mod outbound;
pub mod outside;
mod pending;
pub mod pipe;
pub mod proposal;
pub mod raft_status;
pub mod raft_thread;
pub mod reads;
pub mod router;
pub mod run;
pub mod shared;
pub mod slow_log;
pub mod state_store;
#[cfg(test)]
mod tests;
pub mod view;
pub mod watermark;
pub mod work;
