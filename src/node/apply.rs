//! Runs the state machine and publishes what it did, in the order that clients rely on: the
//! batch is written, the view shows it, whoever proposed it is answered, watches get it.

use std::sync::Arc;

use super::core::Reply;
use super::shared::{ClusterStatus, ReadView, Shared};
use crate::state::Machine;
use crate::state::lease::LeaseEvent;
use crate::state::machine::{Entry, Group};
use crate::storage;

/// The size of the state is looked at after this many entries, for the quota.
const ENTRIES_PER_SIZE_CHECK: u64 = 256;

/// See the module.
pub struct Applier {
    machine: Machine,
    shared: Arc<Shared>,
    entries_since_size_check: u64,
}

impl Applier {
    pub fn new(machine: Machine, shared: Arc<Shared>) -> Self {
        Self {
            machine,
            shared,
            entries_since_size_check: 0,
        }
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Applies committed entries and answers those who wait for them.
    pub fn apply(
        &mut self,
        entries: Vec<Entry>,
        replies: Vec<Option<Reply>>,
    ) -> storage::Result<()> {
        self.entries_since_size_check += entries.len() as u64;
        let first_index = entries.first().map_or(0, |entry| entry.index);
        let group = self.machine.apply(entries)?;
        let view = ReadView::new(self.shared.engine.as_ref(), &self.machine);
        self.shared.publish_view(view);
        if group.status_changed {
            self.shared
                .publish_status(ClusterStatus::of(&self.machine));
        }
        if self.entries_since_size_check >= ENTRIES_PER_SIZE_CHECK {
            self.entries_since_size_check = 0;
            self.shared.refresh_size();
        }
        self.note_leases(&group);
        let mut replies = replies;
        for applied in group.applied {
            let slot = (applied.index - first_index) as usize;
            if let Some(reply) = replies.get_mut(slot).and_then(Option::take) {
                reply(applied.result);
            }
        }
        if !group.changes.is_empty() {
            self.shared
                .hub
                .publish(self.machine.head(), &group.changes);
        }
        if group.compacted {
            self.shared.compaction_wanted.notify_one();
        }
        Ok(())
    }

    fn note_leases(&self, group: &Group) {
        if group.lease_events.is_empty() {
            return;
        }
        let now = self.shared.clock.now();
        let mut deadlines = self.shared.deadlines.lock();
        for event in &group.lease_events {
            match *event {
                LeaseEvent::Granted(id, lease) => deadlines.granted(id, lease, now),
                LeaseEvent::Revoked(id) => deadlines.revoked(id),
                LeaseEvent::Checkpointed(id, lease) => deadlines.checkpointed(id, lease),
            }
        }
    }
}
