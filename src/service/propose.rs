//! Proposals: a request is admitted, put into the raft thread's inbox and awaited until its
//! caller's deadline.
//!
//! The waiting caller shares the request with the replica, which thereby sees whether anyone still
//! waits: abandoned requests are not proposed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prost::Message;
use tokio::sync::oneshot;
use tracing::Span;

use super::caller::{Caller, Identity};
use super::handle::Handle;
use super::permission;
use crate::env;
use crate::error::Error;
use crate::metrics::{Metrics, Operation};
use crate::probe::{self, CoveragePoint};
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, CompactionResponse, InternalRaftRequest,
    alarm_request::AlarmAction,
};
use crate::proto::etchedpeer::{MemberChange, member_change::Change};
use crate::proto::membershippb::Member;
use crate::replica::inbox::Input;
use crate::replica::proposal::{Proposal, Proposed};
use crate::state::Response;
use crate::storage;
use crate::trace::{self, TimedSpan};
use crate::types::MemberId;

/// How much later than the replica this module times a request out.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(1);

impl Handle {
    /// Has the request committed and applied; returns its response.
    pub fn propose<'a>(
        &'a self,
        caller: &'a Caller,
        request: InternalRaftRequest,
    ) -> impl Future<Output = Result<Response, Error>> + 'a {
        let request = self.identified(caller, request);
        async move { self.propose_identified(caller, &request).await }
    }

    /// As `propose`, for a request that the caller still needs.
    pub async fn propose_identified(
        &self,
        caller: &Caller,
        request: &Arc<InternalRaftRequest>,
    ) -> Result<Response, Error> {
        let admission = trace::below!(caller.span(), "admission");
        self.check(caller, request).await?;
        drop(admission);
        self.propose_checked(caller, request, None).await
    }

    /// As `propose`, but only while this member leads in `term`; for jobs, whose requests ignore
    /// the quota.
    pub fn propose_in_term(
        &self,
        caller: &Caller,
        request: InternalRaftRequest,
        term: u64,
    ) -> impl Future<Output = Result<Response, Error>> + use<> {
        let request = self.identified(caller, request);
        let (handle, caller) = (self.clone(), caller.clone());
        async move { handle.propose_checked(&caller, &request, Some(term)).await }
    }

    /// The request with a new id and the caller's name. To be called before anything is awaited: a
    /// request is over a kilobyte wide, and each future that holds one by value is that much wider.
    pub fn identified(
        &self,
        caller: &Caller,
        mut request: InternalRaftRequest,
    ) -> Arc<InternalRaftRequest> {
        request.header = Some(caller.header(self.next_id()));
        Arc::new(request)
    }

    async fn check(&self, caller: &Caller, request: &InternalRaftRequest) -> Result<(), Error> {
        self.refuse_nobody(caller, request).await?;
        self.check_format(caller, request).await?;
        self.check_quota(caller, request).await
    }

    /// Keeps what would be refused when it is applied out of the log, where nobody asks for it.
    /// (What a user asks is judged there: this member may not know of a right yet.)
    async fn refuse_nobody(
        &self,
        caller: &Caller,
        request: &InternalRaftRequest,
    ) -> Result<(), Error> {
        let is_nobody = matches!(caller.identity(), Identity::Nobody | Identity::Invalid);
        if !self.shared.is_auth_enabled() || !is_nobody {
            return Ok(());
        }
        let auth = self.auth();
        if permission::check_request(&auth, caller, request).is_ok() {
            return Ok(());
        }
        // It may have been disabled without this member knowing yet.
        let view = self.linearizable_view(caller).await?;
        permission::check_request(&view.auth, caller, request)
    }

    /// Whether a request is permitted as far as this member knows, to spare work for what is not.
    pub fn seems_permitted(&self, caller: &Caller, request: &InternalRaftRequest) -> bool {
        !self.shared.is_auth_enabled()
            || permission::check_request(&self.auth(), caller, request).is_ok()
    }

    /// Has a change of membership committed; returns the members after it.
    pub async fn change_members(
        &self,
        caller: &Caller,
        member: MemberId,
        change: Change,
        max_learners: u32,
    ) -> Result<Vec<Member>, Error> {
        // Shared with the proposal for as long as it is waited for.
        let change = Arc::new(MemberChange {
            member_id: member.0,
            change: Some(change),
            max_learners,
            request_id: self.next_id(),
        });
        let what = Proposed::Member(change.clone());
        let proposing = self.begin_proposing(caller);
        match self.submit(caller, what, None, &proposing).await? {
            Response::Members(members) => Ok(members),
            _ => Err(Error::UnknownMethod),
        }
    }

    /// Compacts the history; with `physical`, waits until its space is free.
    pub async fn compact(
        &self,
        caller: &Caller,
        revision: i64,
        physical: bool,
    ) -> Result<CompactionResponse, Error> {
        let request = InternalRaftRequest {
            compaction: Some(CompactionRequest { revision, physical }),
            ..Default::default()
        };
        let Response::Compaction(response) = self.propose(caller, request).await? else {
            return Err(Error::UnknownMethod);
        };
        if physical {
            // Unlike the request itself, this takes as long as the history is large.
            let finished = self.shared.compaction_finished.reached(revision);
            self.within(caller, finished).await?;
            // One at a time, also if its client leaves: each occupies a thread.
            let turn = self.quota_flush.clone().lock_owned();
            let turn = self.within(caller, turn).await?;
            let shared = self.shared.clone();
            let flushed = self.blocking_within(caller, move || {
                let _turn = turn;
                shared.engine().flush()
            });
            let flushed = flushed.await?;
            flushed.map_err(|error| self.shared.fail_storage(error))?;
        }
        Ok(response)
    }

    /// Raises the NOSPACE alarm if the request does not fit.
    async fn check_quota(
        &self,
        caller: &Caller,
        request: &InternalRaftRequest,
    ) -> Result<(), Error> {
        let fits = || {
            let size = self.shared.size_bytes.load(Ordering::Relaxed);
            self.settings.limits.check_quota(request, size)
        };
        match fits() {
            Ok(()) => Ok(()),
            // Boxed, since all who write would otherwise hold the space for it.
            Err(_) => Box::pin(self.settle_or_raise_alarm(caller, fits)).await,
        }
    }

    async fn settle_or_raise_alarm(
        &self,
        caller: &Caller,
        fits: impl Fn() -> Result<(), Error>,
    ) -> Result<(), Error> {
        if !self.shared.status().has_alarm(AlarmType::Nospace) {
            self.settle_size(caller, &fits).await?;
        }
        let Err(error) = fits() else {
            return Ok(());
        };
        let is_raised = self.shared.status().has_alarm(AlarmType::Nospace);
        if !is_raised && let Ok(turn) = self.raising.clone().try_acquire_owned() {
            // This member raises it, however long its client waits.
            let (raised, is_raised) = oneshot::channel();
            let handle = self.clone();
            self.spawn(async move {
                handle.raise_nospace().await;
                drop(turn);
                // The client may be gone.
                let _ = raised.send(());
            });
            // Dropped unsent where the member stops.
            let _ = self.within(caller, is_raised).await?;
        }
        Err(error)
    }

    async fn raise_nospace(&self) {
        probe::reached(CoveragePoint::QuotaRaised);
        tracing::warn!(
            size_bytes = self.shared.size_bytes.load(Ordering::Relaxed),
            "database space exceeded; raising the alarm"
        );
        let own = Caller::member();
        let alarm = InternalRaftRequest {
            alarm: Some(AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id: self.shared.member.0,
                alarm: AlarmType::Nospace as i32,
            }),
            ..Default::default()
        };
        let alarm = self.identified(&own, alarm);
        if let Err(error) = self.propose_checked(&own, &alarm, None).await {
            tracing::warn!(%error, "failed to raise the NOSPACE alarm");
        }
    }

    /// Flushes, so that the size no longer counts overwritten versions in memory.
    async fn settle_size(
        &self,
        caller: &Caller,
        fits: &impl Fn() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let turn = self.quota_flush.clone().lock_owned();
        let turn = self.within(caller, turn).await?;
        if fits().is_ok() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let settled = self.blocking_within(caller, move || {
            let _turn = turn;
            shared.engine().flush()?;
            shared.refresh_size();
            Ok(())
        });
        let settled: storage::Result<()> = settled.await?;
        settled.map_err(|error| self.shared.fail_storage(error))
    }

    async fn propose_checked(
        &self,
        caller: &Caller,
        request: &Arc<InternalRaftRequest>,
        fence_term: Option<u64>,
    ) -> Result<Response, Error> {
        let encoded = request.encode_to_vec();
        let (committed, applied) = self.shared.raft.indexes();
        let limits = &self.settings.limits;
        limits.check_gap(request, committed, applied)?;
        let proposing = self.begin_proposing(caller);
        let result = match limits.check_size(encoded.len()) {
            Ok(()) => {
                let _pending = Pending::new(&self.shared.metrics);
                let what = Proposed::Request(request.clone(), encoded);
                self.submit(caller, what, fence_term, &proposing).await
            }
            Err(error) => Err(error),
        };
        self.measure(Operation::of(request), &proposing, &result);
        result
    }

    fn begin_proposing(&self, caller: &Caller) -> TimedSpan {
        let span = trace::below!(caller.span(), "propose");
        TimedSpan::begin(self.shared.clock.now(), span)
    }

    fn measure(
        &self,
        operation: Operation,
        proposing: &TimedSpan,
        result: &Result<Response, Error>,
    ) {
        let unanswered = matches!(
            result,
            Err(Error::DeadlineExceeded
                | Error::Timeout
                | Error::TimeoutLeaderFailed
                | Error::TimeoutConnectionLost
                | Error::Stopped
                | Error::NoLeader
                | Error::LeaderChanged
                | Error::TooManyRequests)
        );
        let metrics = &self.shared.metrics;
        if unanswered {
            metrics.proposals_failed.increment();
        }
        // A refusal by the state machine is a normal response in etcd's metrics.
        let success = !unanswered && !matches!(result, Err(Error::RequestTooLarge));
        let took = proposing.took(self.shared.clock.now());
        metrics.requested(operation, success, took);
    }

    async fn submit(
        &self,
        caller: &Caller,
        what: Proposed,
        fence_term: Option<u64>,
        proposing: &TimedSpan,
    ) -> Result<Response, Error> {
        let (clock, start) = (self.shared.clock.as_ref(), proposing.began_at());
        if caller.is_late(start) {
            return Err(Error::DeadlineExceeded);
        }
        // The raft thread times out first, and knows the cause better.
        let limit = start + self.settings.request_timeout() + TIMEOUT_MARGIN;
        let until = caller.until(limit);
        // etcd's event, and so is the one behind.
        trace::event!(caller.span(), "Send raft proposal");
        let span = proposing.span().clone();
        let answer = self.submit_when_there_is_room(what, fence_term, until, span);
        let answer = env::timeout(clock, until - start, answer).await;
        let is_refused = matches!(answer, Some(Err(Error::TooManyRequests | Error::Stopped)));
        if answer.is_some() && !is_refused {
            trace::event!(caller.span(), "Receive raft result");
        }
        match answer {
            None if caller.is_late(clock.now()) => Err(Error::DeadlineExceeded),
            Some(Err(Error::Timeout)) | None => Err(self.timed_out(start)),
            Some(result) => result,
        }
    }

    /// Large requests wait for each other, up to their own deadlines.
    async fn submit_when_there_is_room(
        &self,
        what: Proposed,
        fence_term: Option<u64>,
        until: Duration,
        span: Span,
    ) -> Result<Response, Error> {
        let needed_kib = (what.encoded_bytes() / 1024 + 1) as u32;
        let room = self.room_kib.clone();
        let max_kib = self.settings.limits.max_proposed_kib();
        let Ok(room) = room.acquire_many_owned(needed_kib.min(max_kib)).await else {
            return Err(Error::Stopped);
        };
        let (sender, receiver) = oneshot::channel();
        let proposal = Proposal {
            what,
            fence_term,
            awaited_until: Some(until),
            span: span.clone(),
            reply: Box::new(move |result| {
                trace::event!(&span, success = result.is_ok(), "answered");
                // It ends before what it is below.
                drop(span);
                drop(room);
                // The caller may be gone; the entry is applied all the same.
                let _ = sender.send(result);
            }),
        };
        self.push(Input::Propose(proposal))?;
        receiver.await.unwrap_or(Err(Error::Stopped))
    }

    /// The error of a request that timed out; etcd's rules.
    pub(super) fn timed_out(&self, start: Duration) -> Error {
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

    /// What the encodings of proposals in flight hold and may hold.
    pub fn proposed_bytes(&self) -> [u64; 2] {
        let max_kib = self.settings.limits.max_proposed_kib() as usize;
        let held_kib = max_kib.saturating_sub(self.room_kib.available_permits());
        [held_kib, max_kib].map(|kib| (kib as u64) << 10)
    }

    /// True if no proposal of this member is in flight.
    #[cfg(any(test, feature = "simulation"))]
    pub fn is_idle(&self) -> bool {
        self.room_kib.available_permits() == self.settings.limits.max_proposed_kib() as usize
    }
}

/// Counts a proposal as pending while it exists; its client may disconnect at any time.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::PutRequest;
    use crate::replica::inbox::Inbox;
    use crate::service::fixture;
    use crate::transport::NoNetwork;

    fn member() -> (Handle, Arc<Inbox>) {
        fixture::with_clock(Arc::new(NoNetwork), Arc::new(env::SystemClock::new()))
    }

    fn put() -> InternalRaftRequest {
        InternalRaftRequest {
            put: Some(PutRequest {
                key: "k".into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// One that waits for so long from now.
    fn waits(handle: &Handle, wait: Duration) -> Caller {
        let deadline = handle.shared().clock.now() + wait;
        Caller::client(Identity::Nobody, Some(deadline), Span::none())
    }

    fn proposal(inbox: &Inbox) -> Option<Proposal> {
        let mut inputs = Vec::new();
        inbox.take(Duration::ZERO, &mut inputs);
        inputs.into_iter().find_map(|input| match input {
            Input::Propose(proposal) => Some(proposal),
            _ => None,
        })
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(future)
    }

    #[test]
    fn a_proposal_waits_as_long_as_its_caller_and_is_then_abandoned() {
        let (handle, inbox) = member();
        block_on(async {
            let caller = waits(&handle, Duration::from_millis(50));
            let waiting = handle.propose(&caller, put());
            let mut waiting = std::pin::pin!(waiting);
            let early = tokio::time::timeout(Duration::from_millis(5), waiting.as_mut()).await;
            assert!(early.is_err(), "answered at once");
            let proposal = proposal(&inbox).expect("a proposal");
            assert_eq!(proposal.awaited_until, caller.deadline());
            assert!(!proposal.is_abandoned());
            assert_eq!(waiting.await, Err(Error::DeadlineExceeded));
            assert!(proposal.is_abandoned());
            assert!(proposal.is_late(handle.shared().clock.now()));
        });
    }

    #[test]
    fn a_caller_that_leaves_abandons_its_proposal() {
        let (handle, inbox) = member();
        block_on(async {
            let caller = Caller::nobody();
            let waiting = handle.propose(&caller, put());
            let left = tokio::time::timeout(Duration::from_millis(5), waiting).await;
            assert!(left.is_err());
        });
        let proposal = proposal(&inbox).expect("a proposal");
        assert!(proposal.is_abandoned());
        assert!(!proposal.is_late(handle.shared().clock.now()));
    }

    #[test]
    fn the_alarm_of_no_space_is_raised_without_the_client_who_met_it() {
        let (handle, inbox) = member();
        block_on(async {
            let caller = Caller::nobody();
            let refused = handle.settle_or_raise_alarm(&caller, || Err(Error::NoSpace));
            let mut refused = Box::pin(refused);
            let alarm = loop {
                let early = tokio::time::timeout(Duration::from_millis(5), refused.as_mut());
                assert!(early.await.is_err(), "refused before the alarm is raised");
                if let Some(alarm) = proposal(&inbox) {
                    break alarm;
                }
            };
            drop(refused);
            assert!(!alarm.is_abandoned());
        });
    }

    #[test]
    fn nothing_is_proposed_or_read_for_a_caller_who_is_late_already() {
        let (handle, inbox) = member();
        block_on(async {
            let caller = waits(&handle, Duration::ZERO);
            let late = Some(Error::DeadlineExceeded);
            assert_eq!(handle.propose(&caller, put()).await.err(), late);
            assert!(proposal(&inbox).is_none());
            let read = handle.linearizable_view(&caller).await;
            assert_eq!(read.err(), late);
            let member = MemberId(7);
            assert_eq!(handle.move_leader(&caller, member).await.err(), late);
        });
    }

    #[test]
    fn an_entry_holds_who_asked() {
        let (handle, inbox) = member();
        let alice = crate::service::caller::User {
            name: "alice".to_owned(),
            auth_revision: 3,
        };
        let caller = Caller::client(Identity::User(Arc::new(alice)), None, Span::none());
        block_on(async {
            let waiting = handle.propose(&caller, put());
            let _ = tokio::time::timeout(Duration::from_millis(5), waiting).await;
        });
        let Some(Proposed::Request(_, encoded)) = proposal(&inbox).map(|found| found.what) else {
            panic!("no request");
        };
        let entry = InternalRaftRequest::decode(encoded.as_slice()).expect("a request");
        let header = entry.header.expect("a header");
        assert_eq!((&*header.username, header.auth_revision), ("alice", 3));
        assert_ne!(header.id, 0);
    }

    #[test]
    fn what_nobody_may_have_executed_stays_out_of_the_log() {
        let (handle, inbox) = member();
        let requests = fixture::auth_requests(&[("root", &[])]);
        fixture::apply(&handle, requests);
        fixture::set_leader(&handle, fixture::ME);
        block_on(async {
            let refused = handle.propose(&Caller::nobody(), put()).await;
            assert_eq!(refused, Err(Error::UserEmpty));
            assert!(proposal(&inbox).is_none());
            // What a user may is decided when it is applied; whether somebody has to be anybody,
            // everybody may ask.
            let status = InternalRaftRequest {
                auth_status: Some(Default::default()),
                ..Default::default()
            };
            for (caller, request) in [
                (fixture::user("alice", 1), put()),
                (Caller::nobody(), status),
                (Caller::member(), put()),
            ] {
                let waiting = handle.propose(&caller, request);
                let _ = tokio::time::timeout(Duration::from_millis(5), waiting).await;
                assert!(proposal(&inbox).is_some(), "{:?}", caller.identity());
            }
        });
    }
}
