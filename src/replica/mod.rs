//! The replica: from inputs to an applied log. It combines consensus, the raft log, the state
//! machine and the watch hub, without a service, a job or an async runtime.
//!
//! - `router` routes: proposals and reads to raft or to the leader, raft's outputs to log and apply,
//!   results to waiting requests. It is synchronous and does no I/O. `pending` has the proposals
//!   that wait, `reads` the reads, `traced` the spans of what was proposed for other members.
//! - `raft_thread` takes inputs and executes the router's decisions, `log_thread` writes the raft
//!   log, `apply_thread` runs the state machine and publishes its results: the view, the responses,
//!   the events. `pipe` is the queue of each of these two, `inbox` that of the raft thread, and
//!   `run` owns the threads.
//! - `shared` has what they publish for all readers.
//! - `state_store` is the storage of states as the replica uses it; `server/states.rs` installs
//!   received ones.

pub mod apply_thread;
pub mod auth_observer;
pub mod cluster_status;
pub mod dependencies;
pub mod fatal;
pub mod inbox;
pub mod log_thread;
mod outbound;
mod pending;
pub mod pipe;
pub mod proposal;
pub mod raft_status;
pub mod raft_thread;
pub mod reads;
mod rests;
pub mod router;
pub mod run;
pub mod shared;
pub mod slow_log;
pub mod state_store;
#[cfg(test)]
mod tests;
mod traced;
pub mod view;
pub mod watermark;
pub mod work;
