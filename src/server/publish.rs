//! What a member does before it serves clients: it publishes its name and client URLs to the
//! cluster, retrying until that succeeds. As in etcd, only published members serve clients. A
//! restarted member first verifies that its data equals the others'.

use std::time::Duration;

use super::Error;
use crate::failpoints::{self, Failpoint};
use crate::jobs::corruption::{self, AtStart};
use crate::jobs::version;
use crate::proto::etcdserverpb::InternalRaftRequest;
use crate::proto::membershippb::{Attributes, ClusterMemberAttrSetRequest};
use crate::service::caller::Caller;
use crate::service::handle::Handle;

/// Wait between attempts; each attempt itself waits for a leader.
const RETRY: Duration = Duration::from_millis(100);

/// What a member publishes, and whether it compares its data first.
#[derive(Clone, Debug)]
pub struct Introduction {
    pub attributes: Attributes,
    /// A member that was created now has nothing to compare.
    pub check: AtStart,
}

/// Completes once the cluster shows this member's attributes; an error if its data differs from the
/// others', so that it must not serve.
pub async fn introduce(
    handle: &Handle,
    existed: bool,
    introduction: Introduction,
) -> Result<(), Error> {
    if existed {
        corruption::check_at_start(handle, introduction.check)
            .await
            .map_err(Error::Refused)?;
    }
    publish(handle, introduction.attributes).await;
    Ok(())
}

/// The single member of a cluster also sets the cluster version; others leave that to the leader's
/// job.
async fn publish(handle: &Handle, attributes: Attributes) {
    let shared = handle.shared();
    failpoints::hit_in_task(shared.executor.as_ref(), Failpoint::BeforePublishing);
    let leads_single_member = || shared.raft.is_single_member() && shared.raft.is_leader();
    let known = {
        let status = shared.status();
        let member = status.member(shared.member);
        member.and_then(|member| member.member_attributes.as_ref()) == Some(&attributes)
    };
    // The write also shows that there is a quorum and that this member follows it.
    if !leads_single_member() || !known {
        publish_attributes(handle, attributes).await;
    }
    while leads_single_member() && shared.status().cluster_version.is_none() {
        if let Err(error) = version::update(handle).await {
            tracing::warn!(%error, "failed to update cluster version");
            shared.clock.sleep(RETRY).await;
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
                shared.clock.sleep(RETRY).await;
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
