//! What the threads of a member and its services share: the newest view, who leads, what is
//! active.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Mutex as AsyncMutex, Notify, watch as tokio_watch};

use super::auth_observer::AuthObserver;
use super::cluster_status::ClusterStatus;
use super::dependencies::Dependencies;
use super::raft_status::RaftStatus;
use super::reads::WaitingReads;
use super::view::ReadView;
use super::watermark::Watermark;
use crate::env::{Clock, Executor, Rng};
use crate::lessor::deadlines::Deadlines;
use crate::metrics::Metrics;
use crate::mvcc::counts::CountKeeper;
use crate::mvcc::hash::HistoryHash;
use crate::probe::{self, Defect};
use crate::state::Machine;
use crate::state::auth::AuthView;
use crate::storage::{self, Engine};
use crate::types::{ClusterId, MemberId};
use crate::watch::Hub;

/// See the module.
pub struct Shared {
    pub member: MemberId,
    pub cluster: ClusterId,
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub executor: Arc<dyn Executor>,
    pub hub: Arc<Hub>,
    pub metrics: Arc<Metrics>,
    pub raft: RaftStatus,
    pub waiting_reads: WaitingReads,
    pub deadlines: Mutex<Deadlines>,
    /// Held from when leases are found due for a checkpoint until that is in the log, or never will
    /// be.
    pub checkpointing: AsyncMutex<()>,
    /// Woken when the history is to be compacted further.
    pub compaction_wanted: Notify,
    /// The revision up to which compaction has removed what is dead.
    pub compaction_finished: Watermark,
    /// How many keys there are between two keys.
    pub counts: CountKeeper,
    /// Hashes of the history as the newest compactions found it, oldest first.
    pub compaction_hashes: Mutex<Vec<HistoryHash>>,
    /// Bytes of state, for the quota; refreshed now and then.
    pub size_bytes: AtomicI64,
    pub size_in_use_bytes: AtomicI64,
    pub tokens: Arc<dyn AuthObserver>,
    /// That of the newest view where authentication is enabled, for those who need no more of it;
    /// else 0, which is no auth revision.
    enabled_auth_revision: AtomicU64,
    auth_changes: tokio_watch::Sender<()>,
    /// A received state replaces it: a turn that reads and writes takes it once for both.
    engine: RwLock<NumberedEngine>,
    view: RwLock<Arc<ReadView>>,
    status: RwLock<Arc<ClusterStatus>>,
    failure: tokio_watch::Sender<Option<String>>,
    removed: tokio_watch::Sender<bool>,
}

/// The engine of a state, and the how manyth since the member started it is.
#[derive(Clone)]
pub struct NumberedEngine {
    pub number: u64,
    pub engine: Arc<dyn Engine>,
}

fn enabled_revision(auth: &AuthView) -> u64 {
    match auth.is_enabled() {
        true => auth.revision(),
        false => 0,
    }
}

impl Shared {
    /// Of a member whose state is that of the machine.
    pub fn new(
        member: MemberId,
        cluster: ClusterId,
        deps: &Dependencies,
        machine: &Machine,
    ) -> Arc<Self> {
        let engine = machine.engine().clone();
        let counts = CountKeeper::new(machine.compacted());
        let mut view = ReadView::new(engine.as_ref(), machine);
        view.counts = Some(counts.of_view());
        let shared = Self {
            member,
            cluster,
            clock: deps.clock.clone(),
            rng: deps.rng.clone(),
            executor: deps.executor.clone(),
            hub: Hub::new(machine.head(), deps.watch_limits),
            metrics: deps.metrics.clone(),
            raft: RaftStatus::default(),
            deadlines: Mutex::new(Deadlines::default()),
            checkpointing: AsyncMutex::new(()),
            compaction_wanted: Notify::new(),
            compaction_finished: Watermark::default(),
            compaction_hashes: Mutex::default(),
            size_bytes: AtomicI64::new(0),
            size_in_use_bytes: AtomicI64::new(0),
            tokens: deps.tokens.clone(),
            enabled_auth_revision: AtomicU64::new(enabled_revision(machine.auth())),
            auth_changes: tokio_watch::Sender::new(()),
            counts,
            view: RwLock::new(Arc::new(view)),
            status: RwLock::new(Arc::new(ClusterStatus::of(machine))),
            failure: tokio_watch::Sender::new(None),
            removed: tokio_watch::Sender::new(false),
            waiting_reads: WaitingReads::default(),
            engine: RwLock::new(NumberedEngine { number: 0, engine }),
        };
        // Reads and admissions count from what the state held when it was opened: nothing may be
        // left to apply.
        if !probe::injected(Defect::AppliedIndexUnknown) {
            shared.raft.set_applied_index(machine.applied_index());
        }
        shared.refresh_size();
        Arc::new(shared)
    }

    /// The engine of now.
    pub fn engine(&self) -> Arc<dyn Engine> {
        self.engine.read().engine.clone()
    }

    /// The same, for a caller that compares it later.
    pub fn numbered_engine(&self) -> NumberedEngine {
        self.engine.read().clone()
    }

    /// Switches to another engine; the old one's files are removed with its last reader.
    pub fn replace_engine(&self, engine: Arc<dyn Engine>) {
        let mut current = self.engine.write();
        current.number += 1;
        let old = std::mem::replace(&mut current.engine, engine);
        drop(current);
        old.retire();
        self.compaction_hashes.lock().clear();
    }

    /// The newest state that is applied here.
    pub fn view(&self) -> Arc<ReadView> {
        self.view.read().clone()
    }

    /// True if permissions are checked in the newest view, or in one that is about to be.
    pub fn is_auth_enabled(&self) -> bool {
        self.auth_revision_if_enabled().is_some()
    }

    /// The auth revision of that view, if permissions are checked there.
    pub fn auth_revision_if_enabled(&self) -> Option<u64> {
        match self.enabled_auth_revision.load(Ordering::Acquire) {
            0 => None,
            revision => Some(revision),
        }
    }

    pub fn publish_view(&self, mut view: ReadView) {
        view.counts = Some(self.counts.of_view());
        let applied_index = view.applied_index;
        // A reader that sees the view sees this.
        self.enabled_auth_revision
            .store(enabled_revision(&view.auth), Ordering::Release);
        let view = Arc::new(view);
        let auth = view.auth.clone();
        // The old view is dropped outside the lock: its end may cost the engine some work.
        let old = std::mem::replace(&mut *self.view.write(), view);
        // Behind the view: a reader that sees the index applied reads at once.
        self.raft.set_applied_index(applied_index);
        if !Arc::ptr_eq(&old.auth, &auth) {
            self.auth_changes.send_replace(());
        }
        drop(old);
    }

    /// Says that the newest view has other users, roles or permissions than one before.
    pub fn auth_changes(&self) -> tokio_watch::Receiver<()> {
        self.auth_changes.subscribe()
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

    /// Says that the member cannot continue; the first reason counts.
    pub fn fail(&self, reason: String) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            tracing::error!(error = %reason, "the member cannot continue");
            if first {
                *failure = Some(reason);
            }
            first
        });
    }

    /// Passes a storage error on as the member's failure; the client is answered that it stops.
    pub fn fail_storage(&self, error: storage::Error) -> crate::error::Error {
        self.fail(error.to_string());
        crate::error::Error::Stopped
    }

    /// Returns why the member cannot continue, once it cannot.
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
