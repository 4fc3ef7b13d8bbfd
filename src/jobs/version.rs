//! Sets the cluster version. Leader only: queries the release of all members, and proposes the
//! lowest; `types::version` has the rules.
//!
//! etcd's leader completes a downgrade once all members run the target release. Here it stays until
//! it is cancelled: a member of etched is always of the newest release.

use std::time::Duration;

use futures_util::future::join_all;

use crate::error::Error;
use crate::proto::etcdserverpb::InternalRaftRequest;
use crate::proto::etchedpeer::{Nothing, PeerRequest, PeerResponse, peer_request, peer_response};
use crate::proto::membershippb::ClusterVersionSetRequest;
use crate::service::caller::Caller;
use crate::service::handle::Handle;
use crate::types::version::{self, Version, short};
use crate::types::{ETCD_VERSION, MemberId};

/// The interval between queries; etcd's figure.
const INTERVAL: Duration = Duration::from_secs(4);
/// The timeout of a response: a later one counts in the next round.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Runs until the runtime stops.
pub async fn run(handle: Handle) {
    let raft = &handle.shared().raft;
    loop {
        tokio::select! {
            biased;
            // A new leader checks at once.
            () = raft.changed() => {}
            () = handle.shared().clock.sleep(INTERVAL) => {}
        }
        if raft.is_leader()
            && let Err(error) = update(&handle).await
        {
            tracing::warn!(%error, "failed to update cluster version");
        }
    }
}

/// Proposes a new cluster version, if it changes and this member leads.
pub async fn update(handle: &Handle) -> Result<(), Error> {
    let shared = handle.shared();
    let term = shared.raft.term();
    let lowest = lowest_version(handle).await;
    let status = shared.status();
    let current = status.cluster_version.as_deref();
    let target = status.downgrade_target.as_deref();
    let decided = version::decide(
        current.and_then(Version::parse),
        lowest,
        target.and_then(Version::parse),
    );
    let next = match decided {
        Ok(Some(next)) => next.to_string(),
        Ok(None) => return Ok(()),
        Err(version::InvalidTarget) => {
            tracing::error!(
                "downgrade-target" = target,
                "cluster-version" = current,
                error = "invalid downgrade target",
                "Failed to monitor cluster version"
            );
            return Ok(());
        }
    };
    let to = short(&next);
    match current {
        None => tracing::info!(
            "cluster-version" = to,
            "setting up initial cluster version using v3 API"
        ),
        Some(current) => {
            tracing::info!(
                from = short(current),
                to,
                "updating cluster version using v3 API"
            )
        }
    }
    let request = InternalRaftRequest {
        cluster_version_set: Some(ClusterVersionSetRequest { ver: next }),
        ..Default::default()
    };
    handle
        .propose_in_term(&Caller::member(), request, term)
        .await?;
    tracing::info!("cluster-version" = to, "cluster version is updated");
    Ok(())
}

/// The lowest release of all members; none if one of them does not respond.
async fn lowest_version(handle: &Handle) -> Option<Version> {
    let shared = handle.shared();
    let asked = shared
        .status()
        .peers_of(shared.member)
        .into_iter()
        .map(|peer| {
            let request = PeerRequest {
                request: Some(peer_request::Request::Describe(Nothing {})),
            };
            let answer = handle.network().ask(peer.member, request, ANSWER_LIMIT);
            async move { (peer.member, answer.await) }
        });
    let mut lowest = Version::parse(ETCD_VERSION);
    for (member, answer) in join_all(asked).await {
        let theirs = release_of(member, answer);
        // All responses are awaited, so that each silent member is named.
        lowest = lowest.and_then(|lowest| theirs.map(|theirs| lowest.min(theirs)));
    }
    lowest
}

fn release_of(member: MemberId, answer: Result<PeerResponse, Error>) -> Option<Version> {
    let answer = answer
        .inspect_err(|error| {
            tracing::warn!(%error, "remote-member-id" = %member, "failed to get version");
        })
        .ok()?;
    let Some(peer_response::Response::Description(description)) = answer.response else {
        return None;
    };
    let release = description.server_version;
    let version = Version::parse(&release);
    match version {
        None => {
            tracing::warn!("remote-member-id" = %member, "remote-member-version" = release, "failed to parse server version of remote member");
        }
        Some(theirs) if theirs > version::NEWEST => {
            tracing::warn!("local-member-version" = ETCD_VERSION, "remote-member-id" = %member, "remote-member-version" = release, "leader found higher-versioned member");
        }
        Some(_) => {}
    }
    version
}
