//! The state after one group of entries, for reads: an immutable view of the engine with its
//! counters.

use std::sync::Arc;

use crate::mvcc::counts::ViewCounts;
use crate::mvcc::read::PinnedView;
use crate::state::Machine;
use crate::state::auth::AuthView;
use crate::storage::{Engine, Read};

/// See the module.
pub struct ReadView {
    read: Box<dyn Read>,
    pub head: i64,
    pub compacted: i64,
    /// The number of keys at `head`.
    pub keys: i64,
    pub applied_index: u64,
    /// Who may read what of it.
    pub auth: Arc<AuthView>,
    /// Once it is published.
    pub counts: Option<ViewCounts>,
}

impl ReadView {
    pub fn new(engine: &dyn Engine, machine: &Machine) -> Self {
        Self {
            read: engine.view(),
            head: machine.head(),
            compacted: machine.compacted(),
            keys: machine.keys(),
            applied_index: machine.applied_index(),
            auth: machine.auth().clone(),
            counts: None,
        }
    }

    pub fn pinned(&self) -> PinnedView<'_> {
        PinnedView {
            read: self.read.as_ref(),
            head: self.head,
            compacted: self.compacted,
            counts: self.counts.as_ref(),
        }
    }

    /// The families outside of the keyspace.
    pub fn read(&self) -> &dyn Read {
        self.read.as_ref()
    }
}
