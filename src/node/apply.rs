//! Runs the state machine and publishes what it did, in the order that clients rely on: the
//! batch is written, the view shows it, whoever proposed it is answered, watches get it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::core::Reply;
use super::shared::{ClusterStatus, ReadView, Shared};
use crate::metrics::Operation;
use crate::mvcc::Change;
use crate::proto::etcdserverpb::{TxnResponse, response_op};
use crate::state::lease::LeaseEvent;
use crate::state::machine::{Entry, Group};
use crate::state::{Machine, Response};
use crate::storage;

/// The size of the state is looked at after this many entries, for the quota.
const ENTRIES_PER_SIZE_CHECK: u64 = 256;
/// And after this many bytes of changes, which count as they are until then.
const BYTES_PER_SIZE_CHECK: u64 = 1 << 20;

/// See the module.
pub struct Applier {
    machine: Machine,
    shared: Arc<Shared>,
    /// An apply that takes longer is logged.
    warning_apply_duration: Duration,
    entries_since_size_check: u64,
    bytes_since_size_check: u64,
}

impl Applier {
    pub fn new(machine: Machine, shared: Arc<Shared>, warning_apply_duration: Duration) -> Self {
        Self {
            machine,
            shared,
            warning_apply_duration,
            entries_since_size_check: 0,
            bytes_since_size_check: 0,
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
        let start = self.shared.clock.now();
        let group = self.machine.apply(entries)?;
        self.measure(&group, self.shared.clock.now() - start);
        let view = ReadView::new(self.shared.engine.as_ref(), &self.machine);
        self.shared.publish_view(view);
        if group.status_changed {
            self.shared.publish_status(ClusterStatus::of(&self.machine));
        }
        self.watch_size(&group);
        self.note_leases(&group);
        let mut replies = replies;
        for applied in group.applied {
            let slot = (applied.index - first_index) as usize;
            if let Some(reply) = replies.get_mut(slot).and_then(Option::take) {
                reply(applied.result);
            }
        }
        if !group.changes.is_empty() {
            self.shared.hub.publish(self.machine.head(), &group.changes);
        }
        if group.compacted {
            self.shared.compaction_wanted.notify_one();
        }
        Ok(())
    }

    /// Keeps the size that the quota is held against close to the truth.
    fn watch_size(&mut self, group: &Group) {
        let bytes = group.changes.iter().map(written_bytes).sum::<usize>() as u64;
        self.bytes_since_size_check += bytes;
        let due = self.entries_since_size_check >= ENTRIES_PER_SIZE_CHECK
            || self.bytes_since_size_check >= BYTES_PER_SIZE_CHECK;
        if due {
            self.entries_since_size_check = 0;
            self.bytes_since_size_check = 0;
            self.shared.refresh_size();
        } else {
            self.shared
                .size_bytes
                .fetch_add(bytes as i64, Ordering::Relaxed);
        }
    }

    /// Entries of a group are applied together, so each took its share.
    fn measure(&self, group: &Group, took: Duration) {
        let metrics = &self.shared.metrics;
        metrics.backend_commit.observe(took);
        let share = took / group.applied.len().max(1) as u32;
        for applied in &group.applied {
            if let Some(operation) = applied.result.as_ref().ok().and_then(operation) {
                metrics.applied(operation, true, share);
            }
            match &applied.result {
                Ok(Response::DeleteRange(_)) => metrics.deletes.increment(),
                Ok(Response::Txn(txn)) => {
                    metrics.txns.increment();
                    metrics.deletes.add(deletes(txn));
                }
                _ => {}
            }
        }
        let puts = group
            .changes
            .iter()
            .filter_map(|change| Some((change, change.version.as_ref()?)));
        for (change, version) in puts {
            metrics.puts.increment();
            let bytes = change.key.len() + version.value().len();
            metrics.put_bytes.add(bytes as i64);
        }
        if took > self.warning_apply_duration {
            metrics.slow_applies.increment();
            tracing::warn!(
                took = ?took,
                expected_duration = ?self.warning_apply_duration,
                requests = group.applied.len(),
                "apply request took too long"
            );
        }
    }

    fn note_leases(&self, group: &Group) {
        if group.lease_events.is_empty() {
            return;
        }
        let now = self.shared.clock.now();
        let mut deadlines = self.shared.deadlines.lock();
        for event in &group.lease_events {
            match *event {
                LeaseEvent::Granted(id, lease) => {
                    let metrics = &self.shared.metrics;
                    metrics.leases_granted.increment();
                    metrics.lease_ttls.observe_ticks(lease.ttl_s.max(0) as u64);
                    deadlines.granted(id, lease, now);
                }
                LeaseEvent::Revoked(id) => {
                    self.shared.metrics.leases_revoked.increment();
                    deadlines.revoked(id);
                }
                LeaseEvent::Checkpointed(id, lease) => deadlines.checkpointed(id, lease),
            }
        }
    }
}

/// What a change adds to the state, about.
fn written_bytes(change: &Change) -> usize {
    let record = change.version.as_ref().map_or(0, |v| v.record().len());
    change.key.len() + record + 64
}

/// What was asked, where its time is shown.
fn operation(response: &Response) -> Option<Operation> {
    Some(match response {
        Response::Put(_) => Operation::Put,
        Response::DeleteRange(_) => Operation::DeleteRange,
        Response::Txn(_) => Operation::Txn,
        Response::Compaction(_) => Operation::Compaction,
        Response::LeaseGrant(_) => Operation::LeaseGrant,
        Response::LeaseRevoke(_) => Operation::LeaseRevoke,
        Response::LeaseCheckpoint(_) => Operation::LeaseCheckpoint,
        Response::Alarm(_) => Operation::Alarm,
        Response::Members(_) | Response::Done => return None,
    })
}

/// The range deletions within a transaction's answer, nested ones included.
fn deletes(txn: &TxnResponse) -> u64 {
    txn.responses
        .iter()
        .map(|op| match &op.response {
            Some(response_op::Response::ResponseDeleteRange(_)) => 1,
            Some(response_op::Response::ResponseTxn(nested)) => deletes(nested),
            _ => 0,
        })
        .sum()
}
