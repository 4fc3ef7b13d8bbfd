//! One member at work: consensus, log, state machine, watches and jobs put together.
//!
//! - `core` routes: proposals to raft, what raft says to the log and the machine, answers to
//!   whoever waits. It is synchronous and does no I/O.
//! - `apply` runs the machine and publishes what it did: the view, the answers, the events.
//! - `run` owns the threads; `handle` is what the services call; `jobs` work in the background.
//!
//! Where this member alone is the quorum a batch runs straight through on the raft thread:
//! append, sync, apply, answer. There is nobody to send heartbeats to meanwhile, and reads do
//! not pass through this thread, so a slow disk holds up writes alone.

pub mod admission;
pub mod apply;
pub mod core;
pub mod handle;
pub mod inbox;
pub mod jobs;
pub mod run;
pub mod shared;

pub use handle::Handle;
pub use shared::{ClusterStatus, ReadView, Shared};
