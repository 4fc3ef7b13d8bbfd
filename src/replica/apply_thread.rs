//! Runs the state machine and publishes its results in the order that clients rely on: the batch is
//! written, the view shows it, proposals and reads are answered, watches get the events.
//!
//! Long because what is measured, logged and passed on of each group stands beside its stages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message as _;
use tracing::Span;

use super::cluster_status::{ClusterStatus, log_changes};
use super::dependencies::Timing;
use super::inbox::{Inbox, Input};
use super::pipe::Pipe;
use super::proposal::Reply;
use super::shared::Shared;
use super::slow_log::{self, Slow};
use super::state_store::{Received, SnapshotStore};
use super::view::ReadView;
use super::work::AppliedGroup;
use crate::env::Clock;
use crate::failpoints::{self, Failpoint};
use crate::metrics::Operation;
use crate::mvcc::Change;
use crate::mvcc::read::PinnedView;
use crate::probe::{self, CoveragePoint};
use crate::proto::etcdserverpb::{TxnResponse, response_op};
use crate::proto::text;
use crate::state::lease::LeaseEvent;
use crate::state::machine::{self, Entry, Payload, Staged};
use crate::state::{Machine, Response};
use crate::storage;
use crate::trace::{self, TimedSpans};
use crate::transport::Network;
use crate::types::MemberId;

/// The size of the state is measured after this many entries, for the quota.
const ENTRIES_PER_SIZE_CHECK: u64 = 256;
/// And after this many bytes of changes, which are added to the size until then.
const BYTES_PER_SIZE_CHECK: u64 = 1 << 20;

/// Jobs for the apply thread.
pub enum ApplyJob {
    Entries {
        entries: Vec<Entry>,
        /// By entry: the reply of a proposal that waits here.
        replies: Vec<Option<Reply>>,
        /// Of those proposals among them that are in a trace.
        spans: Vec<Span>,
        /// True if they contain the first entry of this member's term as leader.
        promoted_in_term: Option<u64>,
    },
    /// Continues with entries that another thread has begun: see `Begun`.
    Continue(Box<ApplyBatch>),
    /// Replaces the state by a received one.
    Restore(Received),
}

impl ApplyJob {
    /// Of the entries, about.
    pub fn bytes(&self) -> usize {
        match self {
            ApplyJob::Entries { entries, .. } => entries.iter().map(Entry::bytes).sum(),
            ApplyJob::Continue(batch) => batch.entries.iter().map(Entry::bytes).sum(),
            ApplyJob::Restore(_) => 0,
        }
    }
}

/// A step of applying entries.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The state machine executes them into a batch.
    Execute,
    /// The batch is written.
    Commit,
    /// The view shows it.
    Show,
    /// Proposals and reads are answered.
    Answer,
    /// Watches get the events.
    Publish,
}

/// The steps in their order. Readers may run between two stages.
pub type Stages = &'static [&'static [Step]];

/// The order that clients rely on.
pub const STAGES: Stages = &[
    &[Step::Execute, Step::Commit],
    &[Step::Show],
    &[Step::Answer],
    &[Step::Publish],
];

/// A job on its way through the stages.
#[expect(
    clippy::large_enum_variant,
    reason = "passed on at once; a box would be an allocation for each group"
)]
pub enum Applying {
    Entries(ApplyBatch),
    Restore(Received),
}

/// A group of entries, and the results so far.
pub struct ApplyBatch {
    /// The next stage.
    stage: usize,
    /// True once the state machine has begun with it.
    begun: bool,
    entries: Vec<Entry>,
    replies: Vec<Option<Reply>>,
    /// Of those proposals among the entries that are in a trace.
    spans: Vec<Span>,
    /// From the begin of their execution until they are written.
    applying: TimedSpans,
    promoted_in_term: Option<u64>,
    /// The index of the first entry, to which the first reply belongs.
    first_index: u64,
    executed_at: Duration,
    /// The entry that took longest to execute, by its place in the group, and its time.
    slowest: (usize, Duration),
    group: machine::Group,
}

#[cfg(any(test, feature = "simulation"))]
impl Applying {
    /// True if a part of a long deletion is written, and more of it is to come.
    pub fn is_sliced(&self) -> bool {
        matches!(self, Applying::Entries(batch) if batch.begun && batch.stage == 0)
    }
}

impl From<ApplyJob> for Applying {
    fn from(job: ApplyJob) -> Self {
        match job {
            ApplyJob::Entries {
                entries,
                replies,
                spans,
                promoted_in_term,
            } => Self::Entries(ApplyBatch {
                stage: 0,
                begun: false,
                first_index: entries.first().map_or(0, |entry| entry.index),
                entries,
                replies,
                spans,
                applying: TimedSpans::default(),
                promoted_in_term,
                executed_at: Duration::ZERO,
                slowest: (0, Duration::ZERO),
                group: machine::Group::default(),
            }),
            ApplyJob::Continue(batch) => Self::Entries(*batch),
            ApplyJob::Restore(received) => Self::Restore(received),
        }
    }
}

/// What `begin` made of a job.
pub enum Begun {
    Done(AppliedGroup),
    /// A part of a long deletion is written; for a thread that nobody waits for.
    Rest(ApplyJob),
}

/// The parts of an apply thread.
#[derive(Clone)]
pub struct ApplyThread {
    pub(super) applier: Arc<Mutex<Applier>>,
    pub jobs: Arc<Pipe<ApplyJob>>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) states: Arc<dyn SnapshotStore>,
    pub(super) clock: Arc<dyn Clock>,
    /// `STAGES`; the simulator's deliberate defects use another order.
    pub stages: Stages,
}

impl ApplyThread {
    /// A turn of the thread: does the jobs and reports its progress to the raft thread.
    pub fn turn(&self, jobs: Vec<ApplyJob>) -> storage::Result<()> {
        for job in jobs {
            let group = self.apply(job)?;
            self.report(group);
        }
        Ok(())
    }

    /// Takes a job through all stages.
    pub fn apply(&self, job: ApplyJob) -> storage::Result<AppliedGroup> {
        let mut job = job;
        loop {
            match self.begin(job)? {
                Begun::Done(group) => return Ok(group),
                Begun::Rest(rest) => job = rest,
            }
            self.jobs.note_progress(self.clock.as_ref());
        }
    }

    /// Takes a job through all stages, or through the next part of a long deletion.
    pub fn begin(&self, job: ApplyJob) -> storage::Result<Begun> {
        let mut applier = self.applier.lock();
        let mut applying = Applying::from(job);
        loop {
            match applier.proceed(applying, self.stages, self.states.as_ref())? {
                Proceeded::On(rest) => applying = rest,
                Proceeded::Slice(rest) => return Ok(Begun::Rest(ApplyJob::Continue(rest))),
                Proceeded::Done(group) => return Ok(Begun::Done(group)),
            }
        }
    }

    /// Takes a job through its next stage; returns nothing once the raft thread has been informed.
    #[cfg(any(test, feature = "simulation"))]
    pub fn proceed(&self, applying: Applying) -> storage::Result<Option<Applying>> {
        let mut applier = self.applier.lock();
        let proceeded = applier.proceed(applying, self.stages, self.states.as_ref())?;
        drop(applier);
        Ok(match proceeded {
            Proceeded::On(rest) => Some(rest),
            Proceeded::Slice(rest) => {
                self.jobs.note_progress(self.clock.as_ref());
                Some(Applying::Entries(*rest))
            }
            Proceeded::Done(group) => {
                self.report(group);
                None
            }
        })
    }

    /// What the engine has now, which may be a part of a job.
    #[cfg(any(test, feature = "simulation"))]
    pub fn view(&self) -> ReadView {
        self.applier.lock().view()
    }

    fn report(&self, group: AppliedGroup) {
        // A closed inbox means that the member is stopping.
        let _ = self.inbox.push(Input::Applied(group));
    }
}

#[expect(
    clippy::large_enum_variant,
    reason = "passed on at once; a box would be an allocation for each group"
)]
enum Proceeded {
    On(Applying),
    /// The same stage again: a part of a long deletion is written.
    Slice(Box<ApplyBatch>),
    Done(AppliedGroup),
}

/// See the module.
pub struct Applier {
    machine: Machine,
    shared: Arc<Shared>,
    network: Arc<dyn Network>,
    /// A new leader adds an election timeout to the TTL of each lease.
    timing: Timing,
    entries_since_size_check: u64,
    bytes_since_size_check: u64,
}

impl Applier {
    pub fn new(
        machine: Machine,
        shared: Arc<Shared>,
        network: Arc<dyn Network>,
        timing: Timing,
    ) -> Self {
        let now = shared.clock.now();
        // They have no deadline yet: a new leader starts them.
        shared
            .deadlines
            .lock()
            .restart(machine.leases().iter(), now, timing.election_timeout);
        Self {
            machine,
            shared,
            network,
            timing,
            entries_since_size_check: 0,
            bytes_since_size_check: 0,
        }
    }

    /// Takes a job through its next stage.
    fn proceed(
        &mut self,
        applying: Applying,
        stages: Stages,
        states: &dyn SnapshotStore,
    ) -> storage::Result<Proceeded> {
        let mut batch = match applying {
            Applying::Entries(batch) => batch,
            Applying::Restore(received) => {
                return Ok(Proceeded::Done(self.restore(received, states)?));
            }
        };
        for step in stages.get(batch.stage).copied().unwrap_or_default() {
            match step {
                Step::Execute => {
                    if self.execute(&mut batch, states)? == Staged::Slice {
                        return Ok(Proceeded::Slice(Box::new(batch)));
                    }
                }
                Step::Commit => {
                    self.commit(&batch)?;
                    batch.applying.end();
                }
                Step::Show => self.show(&batch.group),
                Step::Answer => self.answer(&mut batch),
                Step::Publish => self.publish(&batch.group)?,
            }
        }
        batch.stage += 1;
        Ok(match batch.stage < stages.len() {
            true => Proceeded::On(Applying::Entries(batch)),
            false => Proceeded::Done(AppliedGroup {
                index: self.machine.applied_index(),
                member_changes: batch.group.member_changes,
            }),
        })
    }

    fn execute(
        &mut self,
        batch: &mut ApplyBatch,
        states: &dyn SnapshotStore,
    ) -> storage::Result<Staged> {
        if !batch.begun {
            self.begin(batch);
        }
        loop {
            match self.stage(batch)? {
                Staged::Format => states.require_format(self.machine.format())?,
                staged => return Ok(staged),
            }
        }
    }

    fn stage(&mut self, batch: &mut ApplyBatch) -> storage::Result<Staged> {
        let (clock, mut before) = (self.shared.clock.as_ref(), batch.executed_at);
        let (replies, limit_bytes) = (&batch.replies, self.timing.answer_limit_bytes);
        let answer_bytes = |place: usize| match replies.get(place) {
            Some(Some(_)) => limit_bytes,
            _ => 0,
        };
        let (group, slowest) = (&mut batch.group, &mut batch.slowest);
        let staged = self
            .machine
            .stage(&batch.entries, group, answer_bytes, |place| {
                let now = clock.now();
                if now - before > slowest.1 {
                    *slowest = (place, now - before);
                }
                before = now;
            })?;
        batch.executed_at = before;
        Ok(staged)
    }

    fn begin(&mut self, batch: &mut ApplyBatch) {
        let entries = &batch.entries;
        self.entries_since_size_check += entries.len() as u64;
        let member = self.shared.member;
        probe::applied(|| {
            entries
                .iter()
                .map(|entry| applied_entry(member, entry))
                .collect()
        });
        failpoints::hit_each(|| batch.entries.iter().map(before_entry));
        batch.begun = true;
        let entries = batch.entries.len() as i64;
        let now = self.shared.clock.now();
        let spans = std::mem::take(&mut batch.spans);
        batch.applying = TimedSpans::begin(now, &spans, |of| trace::below!(of, "apply", entries));
        batch.executed_at = now;
    }

    fn commit(&mut self, batch: &ApplyBatch) -> storage::Result<()> {
        let compacted = batch.group.compacted;
        failpoints::hit_each(|| {
            let scheduled = Failpoint::CompactBeforeCommitScheduledCompact;
            compacted.then_some(scheduled)
        });
        failpoints::hit(Failpoint::BeforeCommit);
        self.machine.commit()?;
        failpoints::hit(Failpoint::AfterCommit);
        failpoints::hit_each(|| {
            let scheduled = Failpoint::CompactAfterCommitScheduledCompact;
            compacted.then_some(scheduled)
        });
        let now = self.shared.clock.now();
        self.measure(&batch.group, batch.applying.took(now));
        let (slowest, took) = batch.slowest;
        // Answered once all are written, like the others of its group.
        let took = took + (now - batch.executed_at);
        if took > self.timing.warning_apply_duration
            && let Some(entry) = batch.entries.get(slowest)
            && !matches!(entry.payload, Payload::Empty)
        {
            self.warn(took, entry, &batch.group);
        }
        Ok(())
    }

    fn show(&mut self, group: &machine::Group) {
        // A caller that sees the entry applied finds its token.
        if !group.auth_events.is_empty() {
            self.shared.tokens.applied(&group.auth_events);
        }
        self.publish_view();
        if group.status_changed {
            self.publish_status();
        }
        self.watch_size(group);
        self.note_leases(group);
    }

    fn answer(&self, batch: &mut ApplyBatch) {
        if let Some(term) = batch.promoted_in_term {
            self.take_over_leases(term);
        }
        for applied in std::mem::take(&mut batch.group.applied) {
            let slot = (applied.index - batch.first_index) as usize;
            if let Some(reply) = batch.replies.get_mut(slot).and_then(Option::take) {
                reply(applied.result);
            }
        }
        self.shared
            .waiting_reads
            .applied(self.machine.applied_index());
    }

    fn publish(&self, group: &machine::Group) -> storage::Result<()> {
        let (hub, mut changes) = (&self.shared.hub, group.changes.as_slice());
        for sliced in &group.sliced {
            let later = changes.partition_point(|change| change.revision.main < sliced.revision);
            hub.publish(sliced.revision - 1, &changes[..later]);
            changes = &changes[later..];
            let view = self.shared.view();
            // A compaction behind it in the group has removed nothing of this view yet.
            let pinned = PinnedView {
                compacted: view.compacted.min(sliced.revision - 1),
                ..view.pinned()
            };
            hub.publish_logged(sliced, &pinned)?;
        }
        if !changes.is_empty() {
            hub.publish(self.machine.head(), changes);
        }
        if group.compacted {
            self.shared.compaction_wanted.notify_one();
        }
        Ok(())
    }

    /// Switches to a state received from the leader, after which the log now begins.
    fn restore(
        &mut self,
        received: Received,
        states: &dyn SnapshotStore,
    ) -> storage::Result<AppliedGroup> {
        let start = self.shared.clock.now();
        // A failure ends the process.
        self.shared.metrics.snapshot_applies_in_progress.set(1);
        failpoints::hit(Failpoint::RaftBeforeApplySnap);
        let engine = states.adopt(received)?;
        self.machine = Machine::open_with(engine.clone(), self.machine.slice_limit())?;
        // What the leader removed of its history is not in this one either.
        self.shared.counts.note_removal(self.machine.compacted());
        self.shared.replace_engine(engine);
        self.publish_view();
        self.shared.tokens.replaced(self.machine.auth());
        self.publish_status();
        self.shared.refresh_size();
        probe::reached(CoveragePoint::SnapshotInstalled);
        let now = self.shared.clock.now();
        let leases = self.machine.leases().iter();
        self.shared
            .deadlines
            .lock()
            .restart(leases, now, self.timing.election_timeout);
        let index = self.machine.applied_index();
        self.shared.waiting_reads.applied(index);
        self.shared.hub.resync(self.machine.head());
        self.shared.compaction_wanted.notify_one();
        self.shared.metrics.snapshot_applies_in_progress.set(0);
        failpoints::hit(Failpoint::RaftAfterApplySnap);
        tracing::info!(
            index,
            revision = self.machine.head(),
            took = ?(now - start),
            "took over a received state of the leader"
        );
        Ok(AppliedGroup {
            index,
            member_changes: Vec::new(),
        })
    }

    /// What the engine has now.
    fn view(&self) -> ReadView {
        ReadView::new(self.shared.engine().as_ref(), &self.machine)
    }

    fn publish_view(&self) {
        self.shared.publish_view(self.view());
    }

    fn publish_status(&self) {
        let status = ClusterStatus::of(&self.machine);
        let members = status.addresses();
        let removed = status.is_removed(self.shared.member);
        let (cluster, own) = (self.shared.cluster, self.shared.member);
        log_changes(cluster, own, &self.shared.status(), &status);
        self.shared.publish_status(status);
        self.network.set_peers(members);
        if removed {
            self.shared.note_removed();
        }
    }

    fn take_over_leases(&self, term: u64) {
        let leases = self.machine.leases().iter();
        let now = self.shared.clock.now();
        let mut deadlines = self.shared.deadlines.lock();
        deadlines.take_over(leases, term, now, self.timing.election_timeout);
    }

    /// Keeps the size for the quota close to the truth.
    fn watch_size(&mut self, group: &machine::Group) {
        let bytes = group.changes.iter().map(written_bytes).sum::<usize>() as u64;
        let bytes = bytes + group.sliced.iter().map(|sliced| sliced.bytes).sum::<u64>();
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

    /// The entries of a group are applied together and share the time.
    fn measure(&self, group: &machine::Group, took: Duration) {
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
                    let ops = Ops::of(txn);
                    metrics.ranges.add(ops.ranges);
                    metrics.deletes.add(ops.deletes);
                    // etcd counts those of more than one operation.
                    if ops.all > 1 {
                        metrics.txns.increment();
                    }
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
        for sliced in &group.sliced {
            metrics.puts.add(sliced.puts);
            metrics.put_bytes.add(sliced.put_bytes as i64);
        }
    }

    fn warn(&self, took: Duration, entry: &Entry, group: &machine::Group) {
        let result = group
            .applied
            .iter()
            .find(|applied| applied.index == entry.index)
            .map(|applied| &applied.result);
        let response = result.and_then(|result| result.as_ref().ok());
        let size = response.and_then(Response::encoded_len);
        let slow = Slow {
            took,
            limit: self.timing.warning_apply_duration,
            prefix: "",
            request: request_text(entry),
            response: size.map_or(String::new(), |size| format!("size:{size}")),
            error: result.and_then(|result| result.as_ref().err().copied()),
        };
        slow_log::warn(&self.shared.metrics, &slow);
    }

    fn note_leases(&self, group: &machine::Group) {
        if group.lease_events.is_empty() {
            return;
        }
        let now = self.shared.clock.now();
        let mut deadlines = self.shared.deadlines.lock();
        for event in &group.lease_events {
            let metrics = &self.shared.metrics;
            match event {
                LeaseEvent::Granted(_, lease) => {
                    metrics.leases_granted.increment();
                    metrics.lease_ttls.observe_ticks(lease.ttl_s.max(0) as u64);
                }
                LeaseEvent::Revoked(_) => metrics.leases_revoked.increment(),
                LeaseEvent::Checkpointed(..) => {}
            }
            deadlines.applied(*event, now);
        }
    }
}

/// The failpoint before an entry is applied.
fn before_entry(entry: &Entry) -> Failpoint {
    match entry.payload {
        Payload::Membership(_) => Failpoint::BeforeApplyOneConfChange,
        _ => Failpoint::BeforeApplyOneEntryNormal,
    }
}

fn applied_entry(member: MemberId, entry: &Entry) -> probe::Applied {
    let payload = match &entry.payload {
        Payload::Empty => probe::AppliedPayload::Empty,
        Payload::Request(bytes) => probe::AppliedPayload::Request(bytes.clone()),
        Payload::Decoded(request) => probe::AppliedPayload::Request(request.encode_to_vec().into()),
        Payload::Membership(change) => probe::AppliedPayload::Member(change.encode_to_vec().into()),
    };
    probe::Applied {
        member: member.0,
        index: entry.index,
        term: entry.term,
        payload,
    }
}

/// The request in an entry, for log lines.
fn request_text(entry: &Entry) -> String {
    match &entry.payload {
        Payload::Empty => String::new(),
        Payload::Decoded(request) => text::entry(request),
        Payload::Request(bytes) => {
            // It was applied, so it can be decoded.
            let decoded = machine::decode_request(bytes.clone());
            decoded.map_or(String::new(), |request| text::entry(&request))
        }
        Payload::Membership(change) => format!("member_change:<id:{:016x}>", change.member_id),
    }
}

/// The bytes that a change adds to the state, about.
fn written_bytes(change: &Change) -> usize {
    let record = change.version.as_ref().map_or(0, |v| v.record().len());
    change.key.len() + record + 64
}

/// The kind of the request, if it has a metric.
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
        Response::Authenticate(_) => Operation::Authenticate,
        Response::AuthEnable(_) => Operation::AuthEnable,
        Response::AuthDisable(_) => Operation::AuthDisable,
        Response::AuthStatus(_) => Operation::AuthStatus,
        Response::AuthUserAdd(_) => Operation::AuthUserAdd,
        Response::AuthUserGet(_) => Operation::AuthUserGet,
        Response::AuthUserList(_) => Operation::AuthUserList,
        Response::AuthUserDelete(_) => Operation::AuthUserDelete,
        Response::AuthUserChangePassword(_) => Operation::AuthUserChangePassword,
        Response::AuthUserGrantRole(_) => Operation::AuthUserGrantRole,
        Response::AuthUserRevokeRole(_) => Operation::AuthUserRevokeRole,
        Response::AuthRoleAdd(_) => Operation::AuthRoleAdd,
        Response::AuthRoleGet(_) => Operation::AuthRoleGet,
        Response::AuthRoleList(_) => Operation::AuthRoleList,
        Response::AuthRoleDelete(_) => Operation::AuthRoleDelete,
        Response::AuthRoleGrantPermission(_) => Operation::AuthRoleGrantPermission,
        Response::AuthRoleRevokePermission(_) => Operation::AuthRoleRevokePermission,
        Response::Members(_) | Response::Done => return None,
    })
}

/// The operations in a transaction's response, nested ones included.
#[derive(Default)]
struct Ops {
    ranges: u64,
    deletes: u64,
    all: u64,
}

impl Ops {
    fn of(txn: &TxnResponse) -> Self {
        let mut ops = Self::default();
        ops.count(txn);
        ops
    }

    fn count(&mut self, txn: &TxnResponse) {
        for op in &txn.responses {
            match &op.response {
                Some(response_op::Response::ResponseTxn(nested)) => {
                    self.count(nested);
                    continue;
                }
                Some(response_op::Response::ResponseRange(_)) => self.ranges += 1,
                Some(response_op::Response::ResponseDeleteRange(_)) => self.deletes += 1,
                _ => {}
            }
            self.all += 1;
        }
    }
}
