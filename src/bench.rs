//! What the programs in `benches/` measure. No release holds it.

pub use crate::mvcc::Change;
pub use crate::proto::etcdserverpb::{InternalRaftRequest, PutRequest};
pub use crate::state::Machine;
pub use crate::state::machine::{Entry, Payload};
pub use crate::storage::raft_log::{
    Batch, DEFAULT_SEGMENT_BYTES, Error, Files, LogEntry, LogOptions, RaftLog, RealFiles,
    ZeroFiller,
};
pub use crate::storage::rocks::{EngineLimits, RocksEngine};
pub use crate::storage::schema::{ChangeKind, Version};
pub use crate::types::{KeyRange, LeaseId, Revision};
pub use crate::watch::{Hub, Limits, Request, Stream};
