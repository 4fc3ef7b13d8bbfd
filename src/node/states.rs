//! Where states are kept, seen from the node: what a snapshot is made of, and how one that came
//! from another member takes the place of the own state.

use std::sync::Arc;

use crate::raft::Snapshot;
use crate::storage::raft_log::Mark;
use crate::storage::{self, Engine};
use crate::transport::SnapshotDir;

/// A snapshot that can be sent.
pub struct Checkpoint {
    /// Index, term and conf state, as raft tells them to others.
    pub snapshot: Snapshot,
    pub files: Arc<SnapshotDir>,
}

/// A received state, whole, looked at and durable, and not yet in use.
pub struct Received {
    /// The last entry that it holds.
    pub mark: Mark,
    pub files: SnapshotDir,
    /// While it lives no other state of this mark is received. Dropped after the files.
    pub claim: Arc<()>,
}

/// The state directories of a member.
pub trait States: Send + Sync + 'static {
    /// Makes a snapshot of what the engine holds now.
    fn checkpoint(&self, engine: &dyn Engine) -> storage::Result<Checkpoint>;

    /// Looks at received files and puts them where a restart would find them.
    fn receive(&self, files: SnapshotDir, mark: Mark) -> Result<Received, String>;

    /// Makes a received state this member's, durably, and opens it. The log has to be reset to
    /// its mark first.
    fn adopt(&self, received: Received) -> storage::Result<Arc<dyn Engine>>;
}
