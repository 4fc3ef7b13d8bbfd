//! What the threads of a member and its services share: the newest view, who leads, what is
//! active.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch as tokio_watch};

use super::jobs::deadlines::Deadlines;
use super::reads::WaitingReads;
use crate::env::{Clock, Executor, Rng};
use crate::metrics::Metrics;
use crate::mvcc::hash::HistoryHash;
use crate::mvcc::read::Snapshot;
use crate::probe::{self, Defect};
use crate::proto::etcdserverpb::{AlarmMember, AlarmType};
use crate::proto::membershippb::Member;
use crate::raft::replica::{self, Progress};
use crate::state::Machine;
use crate::state::membership::is_learner;
use crate::storage::{self, Engine, Read};
use crate::transport::Peer;
use crate::types::{ClusterId, MemberId, STORAGE_VERSION};
use crate::watch::Hub;

/// The state after one group of entries; never changes.
pub struct ReadView {
    read: Box<dyn Read>,
    pub head: i64,
    pub compacted: i64,
    /// How many keys there are at `head`.
    pub keys: i64,
    pub applied_index: u64,
}

impl ReadView {
    pub fn new(engine: &dyn Engine, machine: &Machine) -> Self {
        Self {
            read: engine.view(),
            head: machine.head(),
            compacted: machine.compacted(),
            keys: machine.keys(),
            applied_index: machine.applied_index(),
        }
    }

    pub fn snapshot(&self) -> Snapshot<'_> {
        Snapshot {
            read: self.read.as_ref(),
            head: self.head,
            compacted: self.compacted,
        }
    }

    /// The families that are not the keyspace's.
    pub fn read(&self) -> &dyn Read {
        self.read.as_ref()
    }
}

/// What changes seldom.
#[derive(Clone, Debug, Default)]
pub struct ClusterStatus {
    pub alarms: Vec<AlarmMember>,
    pub members: Vec<Member>,
    pub cluster_version: Option<String>,
    /// Where a downgrade that was begun goes to.
    pub downgrade_target: Option<String>,
    pub removed: Vec<MemberId>,
}

impl ClusterStatus {
    pub fn of(machine: &Machine) -> Self {
        Self {
            alarms: machine.alarms().list(AlarmType::None as i32),
            members: machine.members().iter().cloned().collect(),
            cluster_version: machine.versions().cluster().map(str::to_owned),
            downgrade_target: machine.versions().downgrade_target().map(str::to_owned),
            removed: machine.members().removed().collect(),
        }
    }

    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id.0)
    }

    pub fn is_learner(&self, id: MemberId) -> bool {
        self.member(id).is_some_and(is_learner)
    }

    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !is_learner(member))
    }

    /// The format that the state counts as, for those who plan a downgrade: as in etcd it follows
    /// the cluster's version. etched's own format is always the same.
    pub fn storage_version(&self) -> &str {
        let decided = self.cluster_version.as_deref();
        let least = super::version::LEAST.to_string();
        decided
            .filter(|version| *version != least)
            .unwrap_or(STORAGE_VERSION)
    }

    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id)
    }

    /// The members other than this one, and where they listen.
    /// All members, and where they listen.
    pub fn addresses(&self) -> Vec<Peer> {
        self.members.iter().map(address).collect()
    }

    pub fn peers_of(&self, id: MemberId) -> Vec<Peer> {
        peers_in(self.members.iter(), id)
    }

    pub fn has_alarm(&self, kind: AlarmType) -> bool {
        self.alarms.iter().any(|alarm| alarm.alarm == kind as i32)
    }
}

/// The members other than `own`, and where they listen.
pub fn peers_in<'a>(members: impl Iterator<Item = &'a Member>, own: MemberId) -> Vec<Peer> {
    let others = members.filter(|member| member.id != own.0);
    others.map(address).collect()
}

fn address(member: &Member) -> Peer {
    Peer {
        member: MemberId(member.id),
        urls: member
            .raft_attributes
            .as_ref()
            .map(|raft| raft.peer_urls.clone())
            .unwrap_or_default(),
    }
}

/// Where raft stands, to be read without a lock.
#[derive(Default)]
pub struct RaftState {
    term: AtomicU64,
    leader: AtomicU64,
    is_leader: AtomicBool,
    alone: AtomicBool,
    commit_index: AtomicU64,
    applied_index: AtomicU64,
    /// Since when there has been this leader, or none, by the clock; in nanoseconds.
    leader_since_ns: AtomicU64,
    /// Told whenever the leader or the term changes.
    changed: Notify,
    /// How far the members are, as this one knew it when it led.
    progress: Mutex<Vec<Progress>>,
}

impl RaftState {
    pub fn publish(&self, status: &replica::Status, alone: bool, now: Duration) {
        let changed = self.leader() != status.leader || self.term() != status.term;
        if self.leader() != status.leader {
            let now_ns = now.as_nanos() as u64;
            self.leader_since_ns.store(now_ns, Ordering::Release);
        }
        self.set_alone(alone);
        self.term.store(status.term, Ordering::Release);
        self.leader.store(status.leader, Ordering::Release);
        self.is_leader.store(status.is_leader, Ordering::Release);
        self.commit_index
            .store(status.commit_index, Ordering::Release);
        if changed {
            self.changed.notify_waiters();
        }
    }

    pub fn publish_progress(&self, progress: Vec<Progress>) {
        *self.progress.lock() = progress;
    }

    /// How far the members are; worth something while this member leads.
    pub fn progress(&self) -> Vec<Progress> {
        self.progress.lock().clone()
    }

    /// Since when, by the clock, there has been this leader, or none.
    pub fn leader_since(&self) -> Duration {
        Duration::from_nanos(self.leader_since_ns.load(Ordering::Acquire))
    }

    /// True where there is no other member, not even a learner.
    pub fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Acquire)
    }

    pub fn set_alone(&self, alone: bool) {
        self.alone.store(alone, Ordering::Release);
    }

    /// Resolves when the leader or the term next changes.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn term(&self) -> u64 {
        self.term.load(Ordering::Acquire)
    }

    /// 0 where there is none.
    pub fn leader(&self) -> u64 {
        self.leader.load(Ordering::Acquire)
    }

    pub fn is_leader(&self) -> bool {
        self.is_leader.load(Ordering::Acquire)
    }

    pub fn commit_index(&self) -> u64 {
        self.commit_index.load(Ordering::Acquire)
    }

    pub fn applied_index(&self) -> u64 {
        self.applied_index.load(Ordering::Acquire)
    }

    pub fn set_applied_index(&self, index: u64) {
        self.applied_index.store(index, Ordering::Release);
    }
}

/// A revision that grows, and those who wait for it. They go on in the order in which they came,
/// which a channel of the runtime's would leave to chance.
pub struct Finished {
    revision: AtomicI64,
    grown: Notify,
}

impl Default for Finished {
    fn default() -> Self {
        Self {
            revision: AtomicI64::new(-1),
            grown: Notify::new(),
        }
    }
}

impl Finished {
    pub fn set(&self, revision: i64) {
        self.revision.store(revision, Ordering::Release);
        self.grown.notify_waiters();
    }

    /// Resolves once it is that far.
    pub async fn reached(&self, revision: i64) {
        loop {
            let grown = self.grown.notified();
            // Made before the look: what is set after it is not missed.
            if self.revision.load(Ordering::Acquire) >= revision {
                return;
            }
            grown.await;
        }
    }
}

/// See the module.
pub struct Shared {
    pub member: MemberId,
    pub cluster: ClusterId,
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub executor: Arc<dyn Executor>,
    pub hub: Arc<Hub>,
    pub metrics: Arc<Metrics>,
    pub raft: RaftState,
    pub waiting_reads: WaitingReads,
    pub deadlines: Mutex<Deadlines>,
    /// Woken when the history is to be compacted further.
    pub compaction_wanted: Notify,
    /// The revision up to which compaction has removed what is dead.
    pub compaction_finished: Finished,
    /// Hashes of the history as the newest compactions found it, oldest first.
    pub compaction_hashes: Mutex<Vec<HistoryHash>>,
    /// Bytes of state, for the quota; refreshed now and then.
    pub size_bytes: AtomicI64,
    pub size_in_use_bytes: AtomicI64,
    /// A snapshot from the leader replaces it: whoever reads and writes takes it once for both.
    engine: RwLock<Arc<dyn Engine>>,
    view: RwLock<Arc<ReadView>>,
    status: RwLock<Arc<ClusterStatus>>,
    failure: tokio_watch::Sender<Option<String>>,
    removed: tokio_watch::Sender<bool>,
}

/// What a member is made of.
pub struct Parts {
    pub member: MemberId,
    pub cluster: ClusterId,
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub executor: Arc<dyn Executor>,
    pub engine: Arc<dyn Engine>,
    pub hub: Arc<Hub>,
    pub metrics: Arc<Metrics>,
}

impl Shared {
    pub fn new(parts: Parts, machine: &Machine) -> Self {
        let view = ReadView::new(parts.engine.as_ref(), machine);
        let shared = Self {
            member: parts.member,
            cluster: parts.cluster,
            clock: parts.clock,
            rng: parts.rng,
            executor: parts.executor,
            hub: parts.hub,
            metrics: parts.metrics,
            raft: RaftState::default(),
            deadlines: Mutex::new(Deadlines::default()),
            compaction_wanted: Notify::new(),
            compaction_finished: Finished::default(),
            compaction_hashes: Mutex::default(),
            size_bytes: AtomicI64::new(0),
            size_in_use_bytes: AtomicI64::new(0),
            view: RwLock::new(Arc::new(view)),
            status: RwLock::new(Arc::new(ClusterStatus::of(machine))),
            failure: tokio_watch::Sender::new(None),
            removed: tokio_watch::Sender::new(false),
            waiting_reads: WaitingReads::default(),
            engine: RwLock::new(parts.engine),
        };
        // Reads and admissions count from what the state held when it was opened: nothing may be
        // left to apply.
        if !probe::injected(Defect::AppliedIndexUnknown) {
            shared.raft.set_applied_index(machine.applied_index());
        }
        shared.refresh_size();
        shared
    }

    /// The engine of now.
    pub fn engine(&self) -> Arc<dyn Engine> {
        self.engine.read().clone()
    }

    /// Goes on with another engine; the old one's files go with its last reader.
    pub fn replace_engine(&self, engine: Arc<dyn Engine>) {
        let old = std::mem::replace(&mut *self.engine.write(), engine);
        old.retire();
        self.compaction_hashes.lock().clear();
    }

    /// The newest state that is applied here.
    pub fn view(&self) -> Arc<ReadView> {
        self.view.read().clone()
    }

    pub fn publish_view(&self, view: ReadView) {
        self.raft.set_applied_index(view.applied_index);
        let view = Arc::new(view);
        // The old view is dropped outside the lock: its end may cost the engine some work.
        let old = std::mem::replace(&mut *self.view.write(), view);
        drop(old);
    }

    pub fn status(&self) -> Arc<ClusterStatus> {
        self.status.read().clone()
    }

    pub fn publish_status(&self, status: ClusterStatus) {
        *self.status.write() = Arc::new(status);
    }

    pub fn refresh_size(&self) {
        let size = self.engine().size();
        self.size_bytes
            .store(size.total_bytes as i64, Ordering::Release);
        self.size_in_use_bytes
            .store(size.in_use_bytes as i64, Ordering::Release);
    }

    /// The hash that a compaction to this revision kept.
    pub fn kept_hash(&self, revision: i64) -> Option<HistoryHash> {
        let hashes = self.compaction_hashes.lock();
        hashes
            .iter()
            .find(|hash| hash.revision == revision)
            .copied()
    }

    /// Says that the member cannot go on; the first reason counts.
    pub fn fail(&self, reason: String) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            tracing::error!(error = %reason, "the member cannot go on");
            if first {
                *failure = Some(reason);
            }
            first
        });
    }

    /// Passes a storage error on as the member's failure; the client is told that it stops.
    pub fn fail_storage(&self, error: storage::Error) -> crate::error::Error {
        self.fail(error.to_string());
        crate::error::Error::Stopped
    }

    /// Returns why the member cannot go on, once it cannot.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender lives as long as `self`.
            Err(_) => String::new(),
        }
    }

    /// Says that this member was removed from the cluster for good.
    pub fn note_removed(&self) {
        self.removed.send_replace(true);
    }

    /// Resolves once this member was removed from the cluster for good.
    pub async fn was_removed(&self) {
        let mut removed = self.removed.subscribe();
        // The sender lives as long as `self`.
        let _ = removed.wait_for(|removed| *removed).await;
    }
}
