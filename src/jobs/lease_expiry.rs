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
        let (expired, checkpoints) = {
            let mut deadlines = shared.deadlines.lock();
            (
                deadlines.expired(now, MAX_REVOKES),
                deadlines.due_checkpoints(now, MAX_CHECKPOINTS),
            )
        };
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
        if !checkpoints.is_empty() {
            probe::reached(CoveragePoint::LeaseCheckpointed);
            let stored = store(&handle, term, checkpoints);
            wait_for(stored, shared, &mut standstill).await;
        }
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

async fn store(handle: &Handle, term: u64, checkpoints: Vec<(crate::types::LeaseId, i64)>) {
    let checkpoints = checkpoints
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
    use std::sync::Arc;

    use super::*;
    use crate::replica::inbox::Input;
    use crate::service::fixture;
    use crate::state::lease::Lease;
    use crate::transport::NoNetwork;
    use crate::types::LeaseId;

    #[test]
    fn leases_that_cannot_be_ended_are_tried_once_a_round() {
        let (handle, inbox) = fixture::with_network(Arc::new(NoNetwork));
        fixture::set_leader(&handle, fixture::ME);
        {
            let mut deadlines = handle.shared().deadlines.lock();
            deadlines.set_term(handle.shared().raft.term());
            for id in 1..=MAX_REVOKES as i64 {
                let ended = Lease {
                    ttl_s: 0,
                    remaining_ttl_s: 0,
                };
                deadlines.granted(LeaseId(id), ended, Duration::ZERO);
            }
        }
        let mut refused = 0;
        let refuse_all = async {
            let mut inputs = Vec::new();
            loop {
                inbox.take(Duration::ZERO, &mut inputs);
                for input in inputs.drain(..) {
                    if let Input::Propose(proposal) = input {
                        refused += 1;
                        (proposal.reply)(Err(Error::Corrupt));
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let both = async { tokio::join!(run(handle, Duration::from_secs(300)), refuse_all) };
            let _ = tokio::time::timeout(INTERVAL + INTERVAL / 2, both).await;
        });
        assert_eq!(refused, MAX_REVOKES);
    }
}
