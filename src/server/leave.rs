//! How a member stops: a leader transfers leadership first, and a member that was removed from the
//! cluster exits.

use std::time::Duration;

use crate::error::Error;
use crate::replica::shared::Shared;
use crate::service::handle::Handle;
use crate::types::MemberId;

/// A removed member keeps running for this long, so that its last messages and responses are sent;
/// etcd's figure.
const REMOVED_STAYS: Duration = Duration::from_secs(1);

/// Completes once this member was removed and may stop.
pub async fn removed(shared: &Shared) {
    shared.was_removed().await;
    tokio::time::sleep(REMOVED_STAYS).await;
    tracing::warn!(
        error = "the member has been permanently removed from the cluster",
        "server error"
    );
    tracing::warn!("data-dir used by this member must be removed");
}

/// Transfers leadership if this member leads and another voter can be reached; takes an election
/// timeout at most.
pub async fn hand_over(handle: &Handle) {
    let shared = handle.shared();
    let (own, leader) = (shared.member, MemberId(shared.raft.leader()));
    if !shared.raft.is_leader() {
        tracing::info!(
            "local-member-id" = %own,
            "current-leader-member-id" = %leader,
            "skipped leadership transfer; local server is not leader"
        );
        return;
    }
    if shared.status().voters().count() == 1 {
        tracing::info!(
            "local-member-id" = %own,
            "current-leader-member-id" = %leader,
            "skipped leadership transfer for single voting member cluster"
        );
        return;
    }
    let started = shared.clock.now();
    match try_to_hand_over(handle).await {
        Ok(()) => tracing::info!(
            "local-member-id" = %own,
            "old-leader-member-id" = %own,
            "new-leader-member-id" = %MemberId(shared.raft.leader()),
            took = ?(shared.clock.now() - started),
            "leadership transfer finished"
        ),
        Err(error) => {
            tracing::warn!("local-member-id" = %own, %error, "leadership transfer failed");
        }
    }
}

async fn try_to_hand_over(handle: &Handle) -> Result<(), Error> {
    let shared = handle.shared();
    let status = shared.status();
    let mut others = status.voters().map(|voter| MemberId(voter.id));
    if !others.any(|voter| handle.network().active_since(voter).is_some()) {
        return Err(Error::Unhealthy);
    }
    tracing::info!(
        "local-member-id" = %shared.member,
        "current-leader-member-id" = %shared.member,
        "leadership transfer starting"
    );
    handle.hand_over(handle.settings().election_timeout).await
}
