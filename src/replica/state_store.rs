//! Where states are kept, seen from the node: what a snapshot is made of, and how one that came
//! from another member takes the place of the own state.
//!
//! The rules are here, whatever the states are kept on: which received state is refused, which
//! state a start opens, and whether it belongs to the log.

use std::sync::{Arc, Weak};

use crate::probe::{self, CoveragePoint};
use crate::raft::replica::conf_state_of;
use crate::raft::{Snapshot, SnapshotMetadata};
use crate::state::Machine;
use crate::state::membership::Membership;
use crate::storage::raft_log::EntryId;
use crate::storage::{self, Engine, Read};
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
    pub entry_id: EntryId,
    pub files: SnapshotDir,
    /// While it lives no other state of this entry_id is received. Dropped after the files.
    pub claim: Arc<()>,
}

/// The state directories of a member.
pub trait SnapshotStore: Send + Sync + 'static {
    /// Makes a snapshot of what the engine holds now.
    fn checkpoint(&self, engine: &dyn Engine) -> storage::Result<Checkpoint>;

    /// Looks at received files and puts them where a restart would find them.
    fn receive(&self, files: SnapshotDir, entry_id: EntryId) -> Result<Received, String>;

    /// Makes a received state this member's, durably, and opens it. The log has to be reset to
    /// its entry_id first.
    fn adopt(&self, received: Received) -> storage::Result<Arc<dyn Engine>>;
}

/// The name of a state that came as a snapshot.
pub fn received_name(index: u64) -> String {
    format!("state-{index:016x}")
}

/// Index and term of the last entry that a state holds.
pub fn entry_id_of(state: &dyn Read) -> storage::Result<EntryId> {
    let (index, term) = Machine::applied(state)?;
    Ok(EntryId { index, term })
}

/// A state as raft tells others of it.
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

/// The received state that is about to be used, if any.
#[derive(Default)]
pub struct Claimed {
    index: u64,
    claim: Weak<()>,
}

impl Claimed {
    /// Refuses a received state that holds something else than its message says, or that came
    /// before and is about to be used.
    pub fn check(&self, state: &dyn Read, announced: EntryId) -> Result<(), String> {
        let found = entry_id_of(state).map_err(|error| error.to_string())?;
        if found != announced {
            return Err(format!(
                "its state is that after entry {} of term {}, not {} of {}",
                found.index, found.term, announced.index, announced.term
            ));
        }
        if self.index == announced.index && self.claim.strong_count() > 0 {
            return Err("the same state came before and is about to be used".to_owned());
        }
        Ok(())
    }

    /// Notes the state that came last; it is about to be used while the claim lives.
    pub fn claim(&mut self, index: u64) -> Arc<()> {
        let claim = Arc::new(());
        *self = Self {
            index,
            claim: Arc::downgrade(&claim),
        };
        claim
    }
}

/// Whether a start takes over the received state as of the entry that the log begins behind: the
/// log was reset for it, and a crash kept it from coming into use.
pub fn takes_over(applied_index: u64, log_begins_behind: u64, received_is_there: bool) -> bool {
    let takes_over = applied_index < log_begins_behind && received_is_there;
    if takes_over {
        probe::reached(CoveragePoint::StateTakenUpAfterCrash);
    }
    takes_over
}

/// A log and a state that do not belong together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error(
        "the raft log ends at entry {last}, but entry {applied} was applied: a part of the log is missing; restore this member from a backup or from the other members"
    )]
    Log { last: u64, applied: u64 },
    #[error(
        "the raft log begins behind entry {begins_behind}, but only entry {applied} was applied: a part of the state is missing; restore this member from a backup or from the other members"
    )]
    State { begins_behind: u64, applied: u64 },
}

/// Refuses a state to which the log has nothing to add, or not all that it lacks.
pub fn check_together(applied: u64, log_begins_behind: u64, log_last: u64) -> Result<(), Mismatch> {
    if applied > log_last {
        let last = log_last;
        return Err(Mismatch::Log { last, applied });
    }
    if applied < log_begins_behind {
        let begins_behind = log_begins_behind;
        return Err(Mismatch::State {
            begins_behind,
            applied,
        });
    }
    Ok(())
}
