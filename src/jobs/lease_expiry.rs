//! Revokes expired leases and checkpoints remaining TTLs. Leader only: a revocation is fenced to
//! the term in which the lease was found expired.
//!
//! Leases are extended by a time in which the process was suspended, since nobody could renew them.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::join_all;

use crate::env::{self, Interval};
use crate::error::Error;
use crate::lessor::standstill::Standstill;
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::etcdserverpb::{
    InternalRaftRequest, LeaseCheckpoint, LeaseCheckpointRequest, LeaseRevokeRequest,
};
use crate::replica::shared::Shared;
use crate::service::caller::Caller;
use crate::service::handle::Handle;

/// The interval of the check, as in etcd.
const INTERVAL: Duration = Duration::from_millis(500);
/// Revokes in flight at once.
const MAX_REVOKES: usize = 500;
/// Checkpoints of one entry, as in etcd.
const MAX_CHECKPOINTS: usize = 1000;

/// Runs until the runtime stops. `checkpoint_interval`: see `Deadlines`.
pub async fn run(handle: Handle, checkpoint_interval: Duration) {
    let deadlines = &handle.shared().deadlines;
    deadlines.lock().checkpoint_every(checkpoint_interval);
    let mut interval = Interval::new(&handle.shared().clock, INTERVAL);
    let mut standstill = Standstill::new(INTERVAL, handle.shared().clock.now());
    let mut more = false;
    loop {
        if !std::mem::take(&mut more) {
            interval.tick().await;
        }
        let shared = handle.shared();
        let now = shared.clock.now();
        give_back(shared, standstill.note(now));
        let term = shared.raft.term();
        if !shared.raft.is_leader() || shared.deadlines.lock().term() != term {
            continue;
        }
        let expired = shared.deadlines.lock().expired(now, MAX_REVOKES);
        let revokes = expired.into_iter().map(|id| {
            let request = InternalRaftRequest {
                lease_revoke: Some(LeaseRevokeRequest { id: id.0 }),
                ..Default::default()
            };
            handle.propose_in_term(&Caller::member(), request, term)
        });
        // All are proposed before the first is awaited, so that they share a sync.
        let revokes = wait_for(join_all(revokes), shared, &mut standstill).await;
        // If none could be revoked, as under a CORRUPT alarm, the next round is soon enough.
        let ended = |revoked: &Result<_, _>| matches!(revoked, Ok(_) | Err(Error::LeaseNotFound));
        more = revokes.len() == MAX_REVOKES && revokes.iter().any(ended);
        for revoked in revokes {
            // A lease whose revocation was not applied is found again in the next round.
            match revoked {
                Ok(_) => {
                    probe::reached(CoveragePoint::LeaseExpired);
                    shared.metrics.leases_expired.increment();
                }
                // A client has revoked it in the meantime.
                Err(Error::LeaseNotFound) => {}
                Err(error) => tracing::warn!(%error, "failed to revoke lease"),
            }
        }
        wait_for(checkpoint(&handle, term), shared, &mut standstill).await;
    }
}

/// Waiting for entries to be applied is no standstill.
async fn wait_for<T>(
    applied: impl Future<Output = T>,
    shared: &Shared,
    standstill: &mut Standstill,
) -> T {
    let mut applied = pin!(applied);
    loop {
        let answer = env::timeout(shared.clock.as_ref(), INTERVAL, applied.as_mut()).await;
        give_back(shared, standstill.note(shared.clock.now()));
        if let Some(answer) = answer {
            return answer;
        }
    }
}

/// No lease could be renewed while the process was suspended.
fn give_back(shared: &Shared, stood_still: Option<Duration>) {
    if let Some(stood_still) = stood_still
        && !probe::injected(Defect::StandstillForgotten)
    {
        probe::reached(CoveragePoint::LeaseTimeGivenBack);
        shared.deadlines.lock().extend_all(stood_still);
    }
}

/// Checkpoints the leases that are due, while nobody takes checkpoints back.
async fn checkpoint(handle: &Handle, term: u64) {
    let shared = handle.shared();
    let _checkpointing = shared.checkpointing.lock().await;
    let due = {
        let mut deadlines = shared.deadlines.lock();
        // Waiting took a while: leases of another term are not this one's.
        if deadlines.term() != term {
            return;
        }
        deadlines.due_checkpoints(shared.clock.now(), MAX_CHECKPOINTS)
    };
    if due.is_empty() {
        return;
    }
    probe::reached(CoveragePoint::LeaseCheckpointed);
    let checkpoints = due
        .into_iter()
        .map(|(id, left_s)| LeaseCheckpoint {
            id: id.0,
            remaining_ttl: left_s,
        })
        .collect();
    let request = InternalRaftRequest {
        lease_checkpoint: Some(LeaseCheckpointRequest { checkpoints }),
        ..Default::default()
    };
    if let Err(error) = handle
        .propose_in_term(&Caller::member(), request, term)
        .await
    {
        tracing::warn!(%error, "failed to checkpoint leases");
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::Poll;

    use prost::Message as _;

    use super::*;
    use crate::env::ManualClock;
    use crate::replica::inbox::{Inbox, Input};
    use crate::replica::proposal::{Proposed, Reply};
    use crate::service::fixture;
    use crate::state::Response;
    use crate::state::lease::{Lease, LeaseEvent};
    use crate::transport::NoNetwork;
    use crate::types::LeaseId;

    /// What a lease's remaining TTL is to be, by the only proposal that waits, and its reply.
    fn proposed(inbox: &Inbox) -> Option<(i64, Reply)> {
        let mut inputs = Vec::new();
        inbox.take(Duration::ZERO, &mut inputs);
        let Input::Propose(proposal) = inputs.pop()? else {
            panic!("no proposal");
        };
        assert!(inputs.is_empty());
        let Proposed::Request(_, encoded) = proposal.what else {
            panic!("no request");
        };
        let request = InternalRaftRequest::decode(encoded.as_slice()).expect("a request");
        let checkpoint = request.lease_checkpoint.expect("a checkpoint");
        let [one] = &checkpoint.checkpoints[..] else {
            panic!("one lease");
        };
        assert_eq!(one.id, 7);
        Some((one.remaining_ttl, proposal.reply))
    }

    /// Polls it once.
    async fn poll_once<T>(waiting: &mut Pin<Box<impl Future<Output = T>>>) -> Poll<T> {
        poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await
    }

    /// Has the leader know one lease, of ten minutes, with so much of it left after a checkpoint.
    fn grant(handle: &Handle, remaining_ttl_s: i64) -> LeaseId {
        let shared = handle.shared();
        let lease = Lease {
            ttl_s: 600,
            remaining_ttl_s,
        };
        let leases = std::iter::once((LeaseId(7), lease));
        let (term, now) = (shared.raft.term(), shared.clock.now());
        let mut deadlines = shared.deadlines.lock();
        deadlines.take_over(leases, term, now, Duration::ZERO);
        LeaseId(7)
    }

    #[tokio::test]
    async fn a_renewal_is_answered_however_much_is_not_applied_yet() {
        let (handle, inbox) = fixture::with_network(Arc::new(NoNetwork));
        fixture::set_commit_index(&handle, fixture::ME, 1_000_000);
        let id = grant(&handle, 300);
        let member = Caller::member();
        let put = InternalRaftRequest {
            put: Some(Default::default()),
            ..Default::default()
        };
        let refused = handle.propose(&member, put).await;
        assert_eq!(refused.err(), Some(Error::TooManyRequests));
        let mut renewing = Box::pin(handle.renew_lease_here(&member, id));
        assert!(poll_once(&mut renewing).await.is_pending());
        let Some((0, taken_back)) = proposed(&inbox) else {
            panic!("not taken back");
        };
        taken_back(Ok(Response::LeaseCheckpoint(Default::default())));
        assert_eq!(poll_once(&mut renewing).await, Poll::Ready(Ok(600)));
    }

    #[tokio::test]
    async fn a_renewal_is_answered_when_the_checkpoint_on_its_way_is_taken_back() {
        let clock = Arc::new(ManualClock::default());
        let (handle, inbox) = fixture::with_clock(Arc::new(NoNetwork), clock.clone());
        fixture::set_leader(&handle, fixture::ME);
        let term = handle.shared().raft.term();
        let id = grant(&handle, 0);
        clock.advance(Duration::from_secs(300));
        let done = || Ok(Response::LeaseCheckpoint(Default::default()));
        let member = Caller::member();
        let renew = || Box::pin(handle.renew_lease_here(&member, id));

        let mut checkpointing = Box::pin(checkpoint(&handle, term));
        assert!(poll_once(&mut checkpointing).await.is_pending());
        let Some((300, checkpointed)) = proposed(&inbox) else {
            panic!("no checkpoint");
        };
        // The checkpoint may become part of the log, and the state of a new leader, at any time.
        let mut renewing = renew();
        assert!(poll_once(&mut renewing).await.is_pending());
        assert!(proposed(&inbox).is_none(), "before what it takes back");
        checkpointed(Err(Error::Timeout));
        assert!(poll_once(&mut checkpointing).await.is_ready());
        assert!(poll_once(&mut renewing).await.is_pending());
        let Some((0, taken_back)) = proposed(&inbox) else {
            panic!("not taken back");
        };
        // Nor is another one before that is done.
        let mut also_renewing = renew();
        assert!(poll_once(&mut also_renewing).await.is_pending());
        let Some((0, _also_taken_back)) = proposed(&inbox) else {
            panic!("not taken back");
        };
        taken_back(done());
        assert_eq!(poll_once(&mut renewing).await, Poll::Ready(Ok(600)));
        assert_eq!(poll_once(&mut renew()).await, Poll::Ready(Ok(600)));
        assert!(proposed(&inbox).is_none());
    }

    #[test]
    fn leases_that_cannot_be_ended_are_tried_once_a_round() {
        let (handle, inbox) = fixture::with_network(Arc::new(NoNetwork));
        fixture::set_leader(&handle, fixture::ME);
        {
            let mut deadlines = handle.shared().deadlines.lock();
            let term = handle.shared().raft.term();
            deadlines.take_over(std::iter::empty(), term, Duration::ZERO, Duration::ZERO);
            for id in 1..=MAX_REVOKES as i64 {
                let ended = Lease {
                    ttl_s: 0,
                    remaining_ttl_s: 0,
                };
                deadlines.applied(LeaseEvent::Granted(LeaseId(id), ended), Duration::ZERO);
            }
        }
        let mut refused = 0;
        // Until all are, and for a while beyond: the clock stands still, and with it the rounds.
        let refuse_all = async {
            let mut inputs = Vec::new();
            let mut idle_ms = 0;
            while refused < MAX_REVOKES || idle_ms < 100 {
                inbox.take(Duration::ZERO, &mut inputs);
                for input in inputs.drain(..) {
                    if let Input::Propose(proposal) = input {
                        refused += 1;
                        idle_ms = 0;
                        (proposal.reply)(Err(Error::Corrupt));
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                idle_ms += 1;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            tokio::select! {
                () = run(handle, Duration::from_secs(300)) => panic!("it ended"),
                () = refuse_all => {}
            }
        });
        assert_eq!(refused, MAX_REVOKES);
    }
}
