//! The replicated state machine: the execution of log entries.
//!
//! Invariants:
//! - apply is deterministic: the same entries give the same state, and the same answers as far as
//!   they are kept, on every member; nothing here reads a clock, a random number, the order of a
//!   hash map or a member's own configuration;
//! - the applied index is written in the batch that holds what it applied, or the last of it;
//! - a request is checked in full before its first change, so none is ever half done.

pub mod alarm;
pub mod answer;
pub mod answer_size;
pub mod auth;
pub mod kv;
pub mod lease;
pub mod machine;
pub mod membership;
#[cfg(any(test, feature = "simulation"))]
pub mod model;
pub mod response;
pub mod sliced;
#[cfg(test)]
mod tests;
pub mod txn;
pub mod version;

#[cfg(test)]
pub use machine::Group;
pub use machine::Machine;
pub use response::Response;
