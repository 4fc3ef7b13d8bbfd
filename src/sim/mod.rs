//! A deterministic simulator: whole clusters of etched on one thread in virtual time, from one
//! seed, with faults of their network, disks, clocks and processes.
//!
//! The production code of raft, log, state machine, MVCC, watches, leases and membership runs
//! unchanged; what is replaced are the engine, the disk, the clock, the network and the scheduler.
//! Whatever happens is drawn from the seed: the same seed gives the same trace, byte for byte.

mod call;
pub mod check;
pub mod client;
pub mod clock;
pub mod command;
mod concurrency;
mod damage;
mod defects;
pub mod executor;
pub mod faults;
pub mod history;
mod invariants;
pub mod member;
pub mod network;
pub mod random;
pub mod run;
pub mod states;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod watcher;
pub mod workload;
pub mod world;
