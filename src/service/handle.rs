//! What the services call: propose, read, and ask how the member is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use tokio::sync::{Semaphore, oneshot};

use super::admission::{self, Limits};
use super::membership::Rules;
use crate::env;
use crate::error::Error;
use crate::metrics::{Metrics, Operation};
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, CompactionResponse, InternalRaftRequest,
    RequestHeader, alarm_request::AlarmAction,
};
use crate::proto::etchedpeer::{Answer, MemberChange, Question, member_change::Change};
use crate::proto::membershippb::Member;
use crate::replica::inbox::{Inbox, Input, Refused};
use crate::replica::proposal::{Proposal, Proposed};
use crate::replica::shared::Shared;
use crate::replica::view::ReadView;
use crate::state::Response;
use crate::transport::Network;
use crate::types::MemberId;

/// Encoded proposals under way at once, in KiB.
const MAX_PROPOSED_KIB: u32 = 128 << 10;

/// What the member promises and allows.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub limits: Limits,
    pub rules: Rules,
    pub election_timeout: Duration,
}

impl Settings {
    /// How long a request may take; etcd's rule.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout
    }

    /// The shortest time to live of a lease, in seconds; etcd's rule.
    pub fn min_lease_ttl_s(&self) -> i64 {
        let half_more = self.election_timeout * 3 / 2;
        half_more.as_millis().div_ceil(1000) as i64
    }
}

/// A member, as its services see it; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    network: Arc<dyn Network>,
    settings: Settings,
    next_request_id: Arc<AtomicU64>,
    /// Room for proposals under way, in KiB.
    room_kib: Arc<Semaphore>,
    /// One flush at a time looks whether the quota is really used up.
    quota_flush: Arc<tokio::sync::Mutex<()>>,
    hashing: Arc<Semaphore>,
}

/// How much later a request is given up here than where it waits.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(1);
/// Hashes at once: each reads the whole history.
const MAX_HASHES: usize = 2;

impl Handle {
    pub fn new(
        shared: Arc<Shared>,
        inbox: Arc<Inbox>,
        network: Arc<dyn Network>,
        settings: Settings,
    ) -> Self {
        // As in etcd: two bytes that tell members apart, then a count that starts anywhere.
        let member = shared.member.0 << 48;
        let first_id = member | (shared.rng.next_u64() >> 17);
        Self {
            shared,
            inbox,
            network,
            settings,
            next_request_id: Arc::new(AtomicU64::new(first_id)),
            room_kib: Arc::new(Semaphore::new(MAX_PROPOSED_KIB as usize)),
            quota_flush: Arc::default(),
            hashing: Arc::new(Semaphore::new(MAX_HASHES)),
        }
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// An id that no other request or lease has; positive as an i64.
    pub fn next_id(&self) -> u64 {
        self.next_request_id.fetch_add(1, Ordering::Relaxed) & (i64::MAX as u64)
    }

    /// A state that shows every write answered before this call.
    ///
    /// A member that has no other beside it answers a write only after its view shows it, so the
    /// newest view is such a state. A learner would be enough to make that wrong: it answers what
    /// it was asked when it has applied it, which may be before its leader has. Any other asks the leader, who asks a quorum whether it
    /// still leads, and waits until what was committed then is applied here.
    pub async fn linearizable_view(&self) -> Result<Arc<ReadView>, Error> {
        let raft = &self.shared.raft;
        let alone = raft.is_single_member() || probe::injected(Defect::ReadWithoutQuorum);
        if alone && raft.is_leader() {
            return Ok(self.shared.view());
        }
        let early = probe::injected(Defect::ViewTakenEarly).then(|| self.shared.view());
        let (sender, receiver) = oneshot::channel();
        let start = self.shared.clock.now();
        let reply = Box::new(move |result| {
            // Whoever asked may have gone.
            let _ = sender.send(result);
        });
        self.push(Input::ReadIndex(reply))?;
        let limit = self.settings.request_timeout();
        let clock = self.shared.clock.as_ref();
        let result = match env::timeout(clock, limit, receiver).await {
            Some(Ok(Err(Error::Timeout))) | None => Err(self.timed_out(start)),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Error::Stopped),
        };
        if let Err(error) = result {
            self.shared.metrics.read_indexes_failed.increment();
            return Err(error);
        }
        Ok(early.unwrap_or_else(|| self.shared.view()))
    }

    /// True where this member leads now, which a quorum has confirmed.
    pub async fn ensure_leadership(&self) -> Result<bool, Error> {
        self.linearizable_view().await?;
        Ok(self.shared.raft.is_leader())
    }

    /// What kept a request from being answered in time; etcd's rules.
    fn timed_out(&self, start: Duration) -> Error {
        let raft = &self.shared.raft;
        let two_elections = 2 * self.settings.election_timeout;
        let elected = raft.leader_since();
        if start < elected && elected < start + self.settings.request_timeout() + two_elections {
            return Error::TimeoutLeaderFailed;
        }
        let connected = |member: MemberId| {
            let since = self.network.active_since(member);
            since.is_some_and(|since| since <= start)
        };
        let lost = if raft.is_leader() {
            let status = self.shared.status();
            let voters = status.voters().count();
            let reached = status
                .voters()
                .filter(|voter| voter.id == self.shared.member.0 || connected(MemberId(voter.id)));
            reached.count() < voters / 2 + 1
        } else {
            raft.leader() != 0 && !connected(MemberId(raft.leader()))
        };
        if lost {
            return Error::TimeoutConnectionLost;
        }
        Error::Timeout
    }

    /// True while no proposal of this member's is under way.
    pub fn is_idle(&self) -> bool {
        self.room_kib.available_permits() == MAX_PROPOSED_KIB as usize
    }

    fn push(&self, input: Input) -> Result<(), Error> {
        self.inbox.push(input).map_err(|refused| match refused {
            Refused::Full => Error::TooManyRequests,
            Refused::Closed => Error::Stopped,
        })
    }

    /// Runs work that may take long or wait for the disk, away from the network's threads.
    pub fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, env::Abandoned>> {
        env::blocking(self.shared.executor.as_ref(), work)
    }

    /// Runs a task that waits for others, never for the disk.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.shared.executor.spawn(Box::pin(task));
    }

    pub(super) fn hashing(&self) -> Arc<Semaphore> {
        self.hashing.clone()
    }

    pub fn network(&self) -> &Arc<dyn Network> {
        &self.network
    }

    /// Asks another member.
    pub async fn ask(&self, member: MemberId, question: Question) -> Result<Answer, Error> {
        let limit = self.settings.request_timeout();
        self.network.ask(member, question, limit).await
    }

    /// Asks the leader, which is another member. Waits for one where there is none.
    pub async fn ask_leader(&self, question: Question) -> Result<Answer, Error> {
        let deadline = self.shared.clock.now() + self.settings.request_timeout();
        let leader = self.leader_until(deadline).await?;
        let left = deadline.saturating_sub(self.shared.clock.now());
        self.network.ask(leader, question, left).await
    }

    async fn leader_until(&self, deadline: Duration) -> Result<MemberId, Error> {
        loop {
            match self.shared.raft.leader() {
                0 if self.shared.clock.now() >= deadline => return Err(Error::NoLeader),
                0 => self.shared.clock.sleep(Duration::from_millis(20)).await,
                leader => return Ok(MemberId(leader)),
            }
        }
    }

    /// Hands leadership to a member and waits until it leads, for `limit` at most.
    pub async fn move_leader(&self, to: MemberId, limit: Duration) -> Result<(), Error> {
        self.push(Input::TransferLeader(to))?;
        self.await_leader(|leader| leader == to.0, limit).await
    }

    /// Hands leadership to whoever is furthest, where this member leads and there is anyone.
    pub async fn hand_over(&self, limit: Duration) -> Result<(), Error> {
        let own = self.shared.member.0;
        self.push(Input::HandOver)?;
        self.await_leader(|leader| leader != own && leader != 0, limit)
            .await
    }

    async fn await_leader(
        &self,
        is_it: impl Fn(u64) -> bool,
        limit: Duration,
    ) -> Result<(), Error> {
        let deadline = self.shared.clock.now() + limit;
        while !is_it(self.shared.raft.leader()) {
            if self.shared.clock.now() >= deadline {
                return Err(Error::TimeoutLeaderTransfer);
            }
            self.shared.clock.sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// The newest state that is applied here.
    pub fn view(&self) -> Arc<ReadView> {
        self.shared.view()
    }

    /// Has the request agreed upon and applied; returns its answer.
    pub async fn propose(&self, request: InternalRaftRequest) -> Result<Response, Error> {
        self.check_quota(&request).await?;
        self.propose_checked(request, None).await
    }

    /// As `propose`, but only while this member leads in `term`; a job's request, which no quota
    /// stops.
    pub fn propose_in_term(
        &self,
        request: InternalRaftRequest,
        term: u64,
    ) -> impl Future<Output = Result<Response, Error>> + use<> {
        self.propose_checked(request, Some(term))
    }

    /// Has a change of membership agreed upon; returns the members after it.
    pub async fn change_members(
        &self,
        member: MemberId,
        change: Change,
        max_learners: u32,
    ) -> Result<Vec<Member>, Error> {
        let change = MemberChange {
            member_id: member.0,
            change: Some(change),
            max_learners,
            request_id: self.next_id(),
        };
        match self.submit(Proposed::Member(change), None).await? {
            Response::Members(members) => Ok(members),
            _ => Err(Error::UnknownMethod),
        }
    }

    /// Compacts the history; `physical` waits until its space is free.
    pub async fn compact(
        &self,
        revision: i64,
        physical: bool,
    ) -> Result<CompactionResponse, Error> {
        let request = InternalRaftRequest {
            compaction: Some(CompactionRequest { revision, physical }),
            ..Default::default()
        };
        let Response::Compaction(response) = self.propose(request).await? else {
            return Err(Error::UnknownMethod);
        };
        if physical {
            // Unlike the request itself this may take as long as the history is large.
            self.shared.compaction_finished.reached(revision).await;
            let shared = self.shared.clone();
            let flushed = self.blocking(move || shared.engine().flush());
            match flushed.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.shared.fail_storage(error)),
                Err(_) => return Err(Error::Stopped),
            }
        }
        Ok(response)
    }

    /// Raises the NOSPACE alarm where the request does not fit.
    async fn check_quota(&self, request: &InternalRaftRequest) -> Result<(), Error> {
        let fits = || {
            let size = self.shared.size_bytes.load(Ordering::Relaxed);
            self.settings.limits.check_quota(request, size)
        };
        if fits().is_ok() {
            return Ok(());
        }
        if !self.shared.status().has_alarm(AlarmType::Nospace) {
            self.settle_size(&fits).await?;
        }
        let Err(error) = fits() else {
            return Ok(());
        };
        let size = self.shared.size_bytes.load(Ordering::Relaxed);
        let alarm = InternalRaftRequest {
            alarm: Some(AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id: self.shared.member.0,
                alarm: AlarmType::Nospace as i32,
            }),
            ..Default::default()
        };
        if !self.shared.status().has_alarm(AlarmType::Nospace) {
            probe::reached(CoveragePoint::QuotaRaised);
            tracing::warn!(
                size_bytes = size,
                "database space exceeded; raising the alarm"
            );
            if let Err(error) = self.propose_checked(alarm, None).await {
                tracing::warn!(%error, "failed to raise the NOSPACE alarm");
            }
        }
        Err(error)
    }

    /// Has what is in memory written to files, where overwritten versions no longer count.
    async fn settle_size(&self, fits: &impl Fn() -> Result<(), Error>) -> Result<(), Error> {
        let _one_at_a_time = self.quota_flush.lock().await;
        if fits().is_ok() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let settled = self.blocking(move || {
            shared.engine().flush()?;
            shared.refresh_size();
            Ok(())
        });
        match settled.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.shared.fail_storage(error)),
            Err(_) => Err(Error::Stopped),
        }
    }

    fn propose_checked(
        &self,
        mut request: InternalRaftRequest,
        fence_term: Option<u64>,
    ) -> impl Future<Output = Result<Response, Error>> + use<> {
        request.header = Some(RequestHeader {
            id: self.next_id(),
            ..Default::default()
        });
        let encoded = request.encode_to_vec();
        let admitted = self.admit(encoded.len());
        let handle = self.clone();
        async move {
            admitted?;
            let operation = Operation::of(&request);
            let start = handle.shared.clock.now();
            let what = Proposed::Request(Box::new(request), encoded);
            let pending = Pending::new(&handle.shared.metrics);
            let result = handle.submit(what, fence_term).await;
            drop(pending);
            handle.measure(operation, start, &result);
            result
        }
    }

    fn measure(&self, operation: Operation, start: Duration, result: &Result<Response, Error>) {
        let unanswered = matches!(
            result,
            Err(Error::Timeout | Error::Stopped | Error::NoLeader | Error::TooManyRequests)
        );
        let metrics = &self.shared.metrics;
        if unanswered {
            metrics.proposals_failed.increment();
        }
        metrics.requested(operation, !unanswered, self.shared.clock.now() - start);
    }

    fn admit(&self, encoded_bytes: usize) -> Result<(), Error> {
        let raft = &self.shared.raft;
        let (committed, applied) = raft.indexes();
        admission::check_gap(committed, applied)?;
        self.settings.limits.check_size(encoded_bytes)
    }

    async fn submit(&self, what: Proposed, fence_term: Option<u64>) -> Result<Response, Error> {
        let start = self.shared.clock.now();
        let answer = self.submit_when_there_is_room(what, fence_term);
        // The raft thread gives up first, and knows better why.
        let limit = self.settings.request_timeout() + TIMEOUT_MARGIN;
        match env::timeout(self.shared.clock.as_ref(), limit, answer).await {
            Some(Err(Error::Timeout)) | None => Err(self.timed_out(start)),
            Some(result) => result,
        }
    }

    /// Too many large requests at once wait for each other, each at its own client's cost.
    async fn submit_when_there_is_room(
        &self,
        what: Proposed,
        fence_term: Option<u64>,
    ) -> Result<Response, Error> {
        let needed_kib = (what.encoded_bytes() / 1024 + 1) as u32;
        let room = self.room_kib.clone();
        let Ok(room) = room
            .acquire_many_owned(needed_kib.min(MAX_PROPOSED_KIB))
            .await
        else {
            return Err(Error::Stopped);
        };
        let (sender, receiver) = oneshot::channel();
        let proposal = Proposal {
            what,
            fence_term,
            reply: Box::new(move |result| {
                drop(room);
                // Whoever asked may have gone; the entry is applied all the same.
                let _ = sender.send(result);
            }),
        };
        self.push(Input::Propose(proposal))?;
        receiver.await.unwrap_or(Err(Error::Stopped))
    }
}

/// Counts a proposal as pending while it lives; its client may leave at any time.
struct Pending<'a>(&'a Metrics);

impl<'a> Pending<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.proposals_pending.add(1);
        Self(metrics)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.proposals_pending.add(-1);
    }
}
