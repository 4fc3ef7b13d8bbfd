//! The storage of states, as the replica needs it: it makes checkpoints, validates received states,
//! and replaces the current state by one of them. `server/states.rs` implements it.

use std::sync::Arc;

use crate::raft::replica::conf_state_of;
use crate::raft::{Snapshot, SnapshotMetadata};
use crate::state::Machine;
use crate::state::membership::Membership;
use crate::storage::raft_log::EntryId;
use crate::storage::{self, Engine, Read};
use crate::transport::SnapshotDir;

/// A copy of a state that can be sent to other members.
pub struct Checkpoint {
    /// Index, term and configuration, as in raft's snapshot metadata.
    pub snapshot: Snapshot,
    pub files: Arc<SnapshotDir>,
}

/// A received state: complete, validated and durable, not yet in use.
pub struct Received {
    /// The last entry that it contains.
    pub entry_id: EntryId,
    pub files: SnapshotDir,
    /// While it exists, no other state of this entry is accepted. Dropped after the files.
    #[allow(dead_code, reason = "held, not read")]
    pub claim: Arc<()>,
}

/// The directories of a member's states.
pub trait SnapshotStore: Send + Sync + 'static {
    /// Copies the engine's present state.
    fn checkpoint(&self, engine: &dyn Engine) -> storage::Result<Checkpoint>;

    /// Validates received files and moves them to where a restart would find them.
    fn receive(&self, files: SnapshotDir, entry_id: EntryId) -> Result<Received, String>;

    /// Switches durably to a received state, and opens it. The log has to be reset to its entry
    /// first.
    fn adopt(&self, received: Received) -> storage::Result<Arc<dyn Engine>>;

    /// Has programs that do not know a format refuse the data, durably; called before there is
    /// any of that format.
    fn require_format(&self, format: u64) -> storage::Result<()>;
}

/// Index and term of the last entry in a state.
pub fn entry_id_of(state: &dyn Read) -> storage::Result<EntryId> {
    let (index, term) = Machine::applied(state)?;
    Ok(EntryId { index, term })
}

/// A state's description in raft's snapshot metadata.
pub fn snapshot_of(state: &dyn Read) -> storage::Result<Snapshot> {
    let entry_id = entry_id_of(state)?;
    let members = Membership::load(state)?;
    let metadata = SnapshotMetadata {
        conf_state: Some(conf_state_of(members.voters(), members.learners())),
        index: entry_id.index,
        term: entry_id.term,
    };
    Ok(Snapshot {
        metadata: Some(metadata),
        ..Default::default()
    })
}
