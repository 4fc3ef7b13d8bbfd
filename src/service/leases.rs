//! Leases as the services use them. The leader's clock decides, so every member asks the leader. A
//! renewal needs no log entry, but a quorum has to confirm the leader: a former leader must not
//! renew what its successor has revoked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::caller::Caller;
use super::handle::Handle;
use super::permission;
use crate::error::Error;
use crate::failpoints::{self, Failpoint};
use crate::mvcc;
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::etcdserverpb::{
    InternalRaftRequest, LeaseCheckpoint, LeaseCheckpointRequest, LeaseGrantRequest,
    LeaseGrantResponse, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use crate::proto::etchedpeer::{PeerRequest, PeerResponse, peer_request, peer_response};
use crate::replica::view::ReadView;
use crate::state::Response as Applied;
use crate::state::auth::verdict::Access;
use crate::state::lease::{self, Attached};
use crate::storage::Read;
use crate::trace;
use crate::types::LeaseId;

/// Wait before the leader is looked up again.
const RETRY: Duration = Duration::from_millis(50);

impl Handle {
    /// Grants a lease, with an id of its own where none is asked for.
    pub async fn grant_lease(
        &self,
        caller: &Caller,
        mut request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Error> {
        while request.id == 0 {
            request.id = self.next_id() as i64;
        }
        let caller = caller
            .clone()
            .in_span(|call| trace::below!(call, "lease_grant", id = request.id, ttl = request.ttl));
        // Raised before the request is agreed upon: members may be configured differently.
        request.ttl = request.ttl.max(self.settings().min_lease_ttl_s());
        let request = InternalRaftRequest {
            lease_grant: Some(request),
            ..Default::default()
        };
        match self.propose(&caller, request).await? {
            Applied::LeaseGrant(response) => Ok(response),
            _ => Err(Error::UnknownMethod),
        }
    }

    /// Renews a lease; returns its TTL in seconds, 0 if it does not exist.
    pub async fn renew_lease(&self, caller: &Caller, id: LeaseId) -> Result<i64, Error> {
        if let Some(view) = self.judging_view(caller)?
            && !probe::injected(Defect::RenewalUnchecked)
        {
            let asks = move |access: &Access<'_>, read: &dyn Read| {
                access.write_attached(id, &Attached(read))
            };
            self.judge(caller, view, asks).await?;
        }
        let deadline = self.deadline(caller);
        loop {
            let renewed = if self.shared().raft.is_leader() {
                self.renew_lease_here(caller, id).await
            } else {
                let request = LeaseKeepAliveRequest { id: id.0 };
                self.ask_for(
                    caller,
                    peer_request::Request::RenewLease(request),
                    |answer| match answer {
                        peer_response::Response::LeaseRenewed(renewed) => Some(renewed.ttl),
                        _ => None,
                    },
                )
                .await
            };
            if !self.is_worth_another_try(&renewed, deadline).await {
                return renewed;
            }
        }
    }

    /// Renews a lease, if this member leads.
    pub async fn renew_lease_here(&self, caller: &Caller, id: LeaseId) -> Result<i64, Error> {
        let term = self.lead_over_leases(caller).await?;
        let shared = self.shared();
        self.pass(Failpoint::BeforeCheckpointInLeaseRenew);
        let renewed = {
            let mut deadlines = shared.deadlines.lock();
            // Checked again under the lock: leases of another term belong to another leader.
            if deadlines.term() != term || !self.still_leads_in(term) {
                return Err(Error::NotLeader);
            }
            deadlines.renew(id, shared.clock.now())
        };
        let Some(renewed) = renewed else {
            return Ok(0);
        };
        shared.metrics.leases_renewed.increment();
        if let Some(number) = renewed.checkpoint
            && !probe::injected(Defect::CheckpointKept)
        {
            probe::reached(CoveragePoint::LeaseCheckpointReset);
            // A new leader must not continue from the old checkpoint. One that is still on its way
            // into the log comes first, else it would undo this.
            drop(self.within(caller, shared.checkpointing.lock()).await?);
            let checkpoint = InternalRaftRequest {
                lease_checkpoint: Some(LeaseCheckpointRequest {
                    checkpoints: vec![LeaseCheckpoint {
                        id: id.0,
                        remaining_ttl: 0,
                    }],
                }),
                ..Default::default()
            };
            let taken_back = self.propose_in_term(&Caller::member(), checkpoint, term);
            self.within(caller, taken_back).await??;
            shared.deadlines.lock().taken_back(id, number);
        }
        Ok(renewed.ttl_s)
    }

    /// Whether a caller may ask about leases at all: who is nobody makes no member work.
    pub fn may_ask_about_leases(&self, caller: &Caller) -> Result<(), Error> {
        self.judging_view(caller).map(|_view| ())
    }

    /// The remaining TTL of a lease, with its keys if requested; `None` if it does not exist or has
    /// expired. The caller adds the header.
    pub async fn lease_left(
        &self,
        caller: &Caller,
        id: LeaseId,
        keys: bool,
    ) -> Result<Option<LeaseTimeToLiveResponse>, Error> {
        self.may_ask_about_leases(caller)?;
        let deadline = self.deadline(caller);
        loop {
            let left = if self.shared().raft.is_leader() {
                let lookup = Failpoint::BeforeLookupWhenLeaseTimeToLive;
                self.lease_left_here(caller, id, keys, lookup).await
            } else {
                let request = LeaseTimeToLiveRequest { id: id.0, keys };
                self.ask_for(
                    caller,
                    peer_request::Request::LeaseTimeToLive(request),
                    |answer| match answer {
                        peer_response::Response::LeaseTimeToLive(left) => {
                            Some((left.ttl >= 0).then_some(left))
                        }
                        _ => None,
                    },
                )
                .await
            };
            if !self.is_worth_another_try(&left, deadline).await {
                let left = left?;
                let shown = left.as_ref().map_or(&[][..], |left| &left.keys);
                self.check_shown(caller, shown).await?;
                return Ok(left);
            }
        }
    }

    /// Whether a caller may see the names of these keys of a lease. Those that are shown are judged,
    /// and not, as in etcd, those that this member knew the lease to have: the leader may know more.
    /// The leader may also know of users that this member has not heard of yet, so the verdict is
    /// that of a linearizable view, whatever the state here said when the request came.
    async fn check_shown(&self, caller: &Caller, keys: &[Bytes]) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        let view = self.linearizable_view(caller).await?;
        let access = permission::access(&view.auth, caller);
        match access.root() {
            Ok(()) => Ok(()),
            Err(_) => keys.iter().try_for_each(|key| access.read(key, b"")),
        }
    }

    /// The ids of all leases that this member knows, to a caller who may read all their keys; etcd
    /// does not ask a quorum either.
    pub async fn list_leases(&self, caller: &Caller) -> Result<Vec<LeaseId>, Error> {
        let ids = self.shared().deadlines.lock().ids();
        if let Some(view) = self.judging_view(caller)?
            && !probe::injected(Defect::ListingUnchecked)
        {
            let asks = move |access: &Access<'_>, read: &dyn Read| {
                access.read_all_attached(&Attached(read))
            };
            self.judge(caller, view, asks).await?;
        }
        Ok(ids)
    }

    /// The state by which a caller is judged who is not allowed everything.
    ///
    /// # Errors
    /// It is nobody.
    fn judging_view(&self, caller: &Caller) -> Result<Option<Arc<ReadView>>, Error> {
        if !self.shared().is_auth_enabled() {
            return Ok(None);
        }
        let view = self.view();
        let access = permission::access(&view.auth, caller);
        access.user()?;
        let is_root = access.root().is_ok();
        Ok((!is_root).then_some(view))
    }

    /// Judges by all keys of leases, off the network's threads: there may be many.
    async fn judge(
        &self,
        caller: &Caller,
        view: Arc<ReadView>,
        asks: impl Fn(&Access<'_>, &dyn Read) -> mvcc::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        let judged = caller.clone();
        let verdict = self.blocking_within(caller, move || {
            let access = permission::access(&view.auth, &judged);
            asks(&access, view.read())
        });
        verdict.await?.map_err(|error| self.refusal(error))
    }

    /// As `lease_left`, if this member leads; `lookup` stands before it looks.
    pub async fn lease_left_here(
        &self,
        caller: &Caller,
        id: LeaseId,
        keys: bool,
        lookup: Failpoint,
    ) -> Result<Option<LeaseTimeToLiveResponse>, Error> {
        let term = self.lead_over_leases(caller).await?;
        let shared = self.shared();
        self.pass(lookup);
        let remaining = {
            let deadlines = shared.deadlines.lock();
            // As for a renewal: one that was extended by the next leader may be over by this clock.
            if deadlines.term() != term || !self.still_leads_in(term) {
                return Err(Error::NotLeader);
            }
            deadlines.remaining(id, shared.clock.now())
        };
        let Some((lease, left)) = remaining else {
            return Ok(None);
        };
        let mut response = LeaseTimeToLiveResponse {
            id: id.0,
            ttl: left.as_secs() as i64,
            granted_ttl: lease.ttl_s,
            ..Default::default()
        };
        if keys {
            let view = self.view();
            let keys = self.blocking_within(caller, move || lease::attached_keys(view.read(), id));
            let keys = keys.await?;
            response.keys = keys.map_err(|error| shared.fail_storage(error))?;
        }
        Ok(Some(response))
    }

    /// The term in which this member leads and knows every lease.
    async fn lead_over_leases(&self, caller: &Caller) -> Result<u64, Error> {
        let leads = match probe::injected(Defect::RenewalWithoutQuorum) {
            true => self.shared().raft.is_leader(),
            false => self.ensure_leadership(caller).await?,
        };
        let term = self.shared().raft.term();
        let knows = self.shared().deadlines.lock().term() == term;
        match leads && knows {
            true => Ok(term),
            false => Err(Error::NotLeader),
        }
    }

    /// Whether a member that led in this term has heard of no later leader, nor given up.
    fn still_leads_in(&self, term: u64) -> bool {
        let raft = &self.shared().raft;
        raft.is_leader() && raft.term() == term
    }

    /// A place for tests, at which other calls are not held up.
    fn pass(&self, failpoint: Failpoint) {
        failpoints::hit_in_task(self.shared().executor.as_ref(), failpoint);
    }

    async fn ask_for<T>(
        &self,
        caller: &Caller,
        request: peer_request::Request,
        pick: impl FnOnce(peer_response::Response) -> Option<T>,
    ) -> Result<T, Error> {
        let request = PeerRequest {
            request: Some(request),
        };
        let PeerResponse { response: answer } = self.ask_leader(caller, request).await?;
        answer.and_then(pick).ok_or(Error::UnknownMethod)
    }

    /// Waits briefly if the leader has changed and the deadline allows.
    async fn is_worth_another_try<T>(&self, result: &Result<T, Error>, deadline: Duration) -> bool {
        let elsewhere = matches!(
            result,
            Err(Error::NotLeader
                | Error::NoLeader
                | Error::LeaderChanged
                | Error::Timeout
                | Error::TimeoutConnectionLost
                | Error::TimeoutLeaderFailed
                | Error::Stopped)
        );
        if !elsewhere || self.shared().clock.now() + RETRY >= deadline {
            return false;
        }
        self.shared().clock.sleep(RETRY).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::{LeaseGrantRequest, PutRequest, RequestHeader};
    use crate::service::fixture::{self, user};
    use crate::state::auth::verdict::MEMBER_REVISION;

    const LEASE: LeaseId = LeaseId(7);

    /// A lease that holds `a` and `b`; `alice` may read both, `bob` may write one, `carol` both.
    fn member() -> (Handle, u64) {
        let handle = fixture::single_member();
        let by_member = |request| InternalRaftRequest {
            header: Some(RequestHeader {
                auth_revision: MEMBER_REVISION,
                ..Default::default()
            }),
            ..request
        };
        let mut requests = fixture::auth_requests(&[
            ("alice", &[(0, "a", "c")]),
            ("bob", &[(1, "a", ""), (0, "b", "")]),
            ("carol", &[(1, "a", "c"), (0, "a", "")]),
            ("root", &[]),
        ]);
        requests.push(by_member(InternalRaftRequest {
            lease_grant: Some(LeaseGrantRequest {
                id: LEASE.0,
                ttl: 60,
            }),
            ..Default::default()
        }));
        for key in ["a", "b"] {
            let put = PutRequest {
                key: key.into(),
                lease: LEASE.0,
                ..Default::default()
            };
            requests.push(by_member(InternalRaftRequest {
                put: Some(put),
                ..Default::default()
            }));
        }
        fixture::apply(&handle, requests);
        let now = handle.auth().revision();
        (handle, now)
    }

    /// Whether a caller may continue, as far as its rights are concerned.
    async fn may_renew(handle: &Handle, caller: &Caller) -> Result<(), Error> {
        match handle.judging_view(caller)? {
            None => Ok(()),
            Some(view) => {
                let asks = |access: &Access<'_>, read: &dyn Read| {
                    access.write_attached(LEASE, &Attached(read))
                };
                handle.judge(caller, view, asks).await
            }
        }
    }

    #[tokio::test]
    async fn a_lease_is_for_those_who_may_write_all_its_keys() {
        let (handle, now) = member();
        let (denied, old) = (Error::PermissionDenied, Error::AuthOldRevision);
        for (caller, renews, lists) in [
            (
                Caller::nobody(),
                Err(Error::UserEmpty),
                Err(Error::UserEmpty),
            ),
            (user("alice", now), Err(denied), Ok(())),
            (user("alice", now - 1), Err(old), Err(old)),
            (user("bob", now), Err(denied), Err(denied)),
            (user("carol", now), Ok(()), Err(denied)),
            (user("dave", now), Err(denied), Err(denied)),
            (user("root", 1), Ok(()), Ok(())),
            (Caller::member(), Ok(()), Ok(())),
        ] {
            let who = format!("{:?}", caller.identity());
            assert_eq!(may_renew(&handle, &caller).await, renews, "{who}");
            let listed = handle.list_leases(&caller).await.map(|_| ());
            assert_eq!(listed, lists, "{who}");
            if let Err(error) = renews {
                let renewed = handle.renew_lease(&caller, LEASE).await;
                assert_eq!(renewed, Err(error), "{who}");
            }
        }
    }

    #[tokio::test]
    async fn keys_of_a_lease_are_shown_to_those_who_may_read_them() {
        let (handle, now) = member();
        fixture::set_leader(&handle, fixture::ME);
        let keys = [Bytes::from_static(b"a"), Bytes::from_static(b"b")];
        let denied = Err(Error::PermissionDenied);
        for (caller, all, last) in [
            (user("alice", now), Ok(()), Ok(())),
            (user("bob", now), denied, Ok(())),
            (user("carol", now), denied, denied),
            (user("root", 1), Ok(()), Ok(())),
        ] {
            assert_eq!(handle.check_shown(&caller, &keys).await, all);
            assert_eq!(handle.check_shown(&caller, &keys[1..]).await, last);
            assert_eq!(handle.check_shown(&caller, &[]).await, Ok(()));
        }
        let left = handle.lease_left(&Caller::nobody(), LEASE, false).await;
        assert_eq!(left, Err(Error::UserEmpty));
    }
}
