//! What a member does before it serves clients: it tells the cluster its name and where clients
//! reach it, for as long as that takes. Clients are served by members alone that the cluster
//! knows, as in etcd. Before that a restarted one makes sure that its data is that of the others.

use std::time::Duration;

use super::Error;
use crate::config::Config;
use crate::jobs::{corruption, version};
use crate::proto::etcdserverpb::InternalRaftRequest;
use crate::proto::membershippb::{Attributes, ClusterMemberAttrSetRequest};
use crate::service::caller::Caller;
use crate::service::handle::Handle;

/// Compares a restarted member's data with its peers'. One that diverged must not serve.
pub async fn check_data(handle: &Handle, config: &Config) -> Result<(), Error> {
    let gates = &config.feature_gates;
    let gate = "InitialCorruptCheck";
    let when = match (gates.enabled(gate), gates.is_named(gate)) {
        (false, _) => corruption::AtStart::Never,
        (true, false) => corruption::AtStart::Cheaply,
        (true, true) => corruption::AtStart::Always,
    };
    corruption::check_at_start(handle, when)
        .await
        .map_err(Error::Refused)
}

/// Wait before the next try; each try itself waits for a leader.
const RETRY: Duration = Duration::from_millis(100);

/// Resolves once the cluster shows this member as it is. A member that alone decides also
/// settles the cluster's version; others leave that to the leader's job.
pub async fn publish(handle: &Handle, config: &Config) {
    let shared = handle.shared();
    let attributes = Attributes {
        name: config.name.clone(),
        client_urls: config
            .advertise_client_urls
            .iter()
            .map(|url| url.as_str().to_owned())
            .collect(),
    };
    let alone = shared.raft.is_single_member() && shared.raft.is_leader();
    let status = shared.status();
    let member = status.member(shared.member);
    let known = member.and_then(|member| member.member_attributes.as_ref());
    // Among others the write also shows that there is a quorum and that this member follows it.
    if !alone || known != Some(&attributes) {
        publish_attributes(handle, attributes).await;
    }
    while alone && shared.status().cluster_version.is_none() {
        if let Err(error) = version::update(handle).await {
            tracing::warn!(%error, "failed to update cluster version");
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn publish_attributes(handle: &Handle, attributes: Attributes) {
    let shared = handle.shared();
    loop {
        let request = InternalRaftRequest {
            cluster_member_attr_set: Some(ClusterMemberAttrSetRequest {
                member_id: shared.member.0,
                member_attributes: Some(attributes.clone()),
            }),
            ..Default::default()
        };
        match handle.propose(&Caller::member(), request).await {
            Ok(_) => break,
            Err(error) => {
                tracing::warn!(
                    "local-member-id" = %shared.member,
                    %error,
                    "failed to publish local member to cluster through raft"
                );
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    tracing::info!(
        "local-member-id" = %shared.member,
        "local-member-attributes" = ?attributes,
        "cluster-id" = %shared.cluster,
        "published local member to cluster through raft"
    );
}
