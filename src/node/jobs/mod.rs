//! Work in the background: what has a deadline or can wait.

pub mod auto_compaction;
pub mod compactor;
pub mod corruption;
pub mod deadlines;
pub mod leases;
pub mod snapshot;
pub mod version;
