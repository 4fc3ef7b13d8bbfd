//! Founding a cluster: its founders, and whether this member may be one.
//!
//! A founder that lost its data and founds again with its old id could vote a second time in a term
//! and forget entries that it acknowledged. The other founders know whether it has run before. The
//! id is derived from the peer URLs and the token. If the flags have another token than the running
//! cluster, this member is a new one: it founds, and waits until enough of the others are restarted
//! as well, as in a disaster recovery with the same machines. Until then its requests to the
//! members of the other cluster, and theirs, are refused (`transport`).

use std::time::Duration;

use super::network::{BootstrapNetwork, Patience, ask_all};
use crate::config::{Bootstrap, Config, Discovery, InitialCluster};
use crate::proto::etchedpeer::Description;
use crate::proto::membershippb::{Attributes, Member, RaftAttributes};
use crate::server::Error;
use crate::server::discovery;
use crate::server::member_dir::MemberIdentity;
use crate::server::restore::Founding;
use crate::types::{ClusterId, MemberId};

/// As long as in etcd; a first start waits only for peers that neither answer nor refuse.
const PATIENCE: Patience = Patience {
    limit: Duration::from_secs(1),
    grace: Duration::from_millis(300),
};

/// Determines the founders, and checks that this member may be one of them.
pub async fn founders(config: &Config, network: &dyn BootstrapNetwork) -> Result<Founding, Error> {
    let cluster = initial_cluster(config).await?;
    let refused = |refusal: crate::config::Refusal| Error::Refused(refusal.to_string());
    let mut new = config
        .found(&cluster, &|name| network.resolve(name))
        .map_err(refused)?;
    check_never_ran(config, &cluster, &new, network).await?;
    match &config.discovery {
        Discovery::Static => {}
        // Every founder has other names for the others, which publish theirs once they run.
        Discovery::Dns(_) => new
            .founders
            .iter_mut()
            .for_each(|founder| founder.name.clear()),
        Discovery::Service(service) => {
            let own = cluster.to_string();
            let found = discovery::service::join(service, new.member_id, &own).await?;
            new = founded_with(config, &found, new.member_id, &service.token)?;
        }
    }
    Ok(founding(new))
}

/// The founders as members of the cluster.
pub fn founding(new: Bootstrap) -> Founding {
    let members = new.founders.into_iter().map(|founder| Member {
        id: founder.id.0,
        raft_attributes: Some(RaftAttributes {
            peer_urls: founder.peer_urls,
            is_learner: false,
        }),
        member_attributes: Some(Attributes {
            name: founder.name,
            client_urls: Vec::new(),
        }),
    });
    Founding {
        identity: MemberIdentity {
            cluster: new.cluster_id,
            member: new.member_id,
        },
        members: members.collect(),
    }
}

/// The members from flags or DNS; with a discovery service only this one.
pub async fn initial_cluster(config: &Config) -> Result<InitialCluster, Error> {
    match &config.discovery {
        Discovery::Static => config
            .listed_cluster()
            .map_err(|refusal| Error::Refused(refusal.to_string())),
        Discovery::Dns(dns) => discovery::srv::cluster(config, dns).await,
        Discovery::Service(service) => Ok(InitialCluster::of_one(
            &config.name,
            &config.initial_advertise_peer_urls,
            &service.token,
        )),
    }
}

/// The cluster that registered with a discovery service.
fn founded_with(
    config: &Config,
    found: &str,
    own: MemberId,
    token: &str,
) -> Result<Bootstrap, Error> {
    let cluster = InitialCluster::parse(found, token).map_err(Error::Refused)?;
    if cluster.has_duplicate_url() {
        return Err(Error::Refused(format!(
            "discovery cluster {cluster} has duplicate url"
        )));
    }
    let new = cluster.founded_by(&config.name);
    // Another member with the same name takes this one's URLs for its own.
    new.filter(|new| new.member_id == own).ok_or_else(|| {
        Error::Refused(format!(
            "discovery cluster {cluster} has another member with the name of this one; give every member its own --name"
        ))
    })
}

async fn check_never_ran(
    config: &Config,
    cluster: &InitialCluster,
    new: &Bootstrap,
    network: &dyn BootstrapNetwork,
) -> Result<(), Error> {
    let urls = cluster.urls_beside(&config.name);
    if urls.is_empty() {
        return Ok(());
    }
    let asked = ask_all(network, &urls, PATIENCE).await;
    let answers: Vec<Description> = asked
        .into_iter()
        .filter_map(|(_, answer)| answer.ok())
        .collect();
    may_found(new.member_id, new.cluster_id, &answers)
}

/// Whether the peers' responses allow this member to found the cluster.
fn may_found(member: MemberId, cluster: ClusterId, answers: &[Description]) -> Result<(), Error> {
    if answers.iter().any(|answer| has_run(answer, member)) {
        return Err(Error::Refused(format!(
            "member {member} has already been bootstrapped"
        )));
    }
    if let Some(removed) = answers
        .iter()
        .find(|answer| answer.removed_member_ids.contains(&member.0))
    {
        return Err(Error::Refused(format!(
            "member {member} was removed from cluster {}; add it again and start it with --initial-cluster-state=existing",
            ClusterId(removed.cluster_id)
        )));
    }
    for answer in answers {
        let remote = ClusterId(answer.cluster_id);
        if remote != cluster {
            tracing::warn!(
                "local-member-id" = %member,
                "local-member-cluster-id" = %cluster,
                "remote-peer-id" = %MemberId(answer.member_id),
                "remote-peer-cluster-id" = %remote,
                "cluster ID mismatch: a peer URL of --initial-cluster is that of a member of another cluster"
            );
        }
    }
    Ok(())
}

/// True if a member has published its client URLs: it has run, so it may have voted and
/// acknowledged entries.
pub fn has_run(answer: &Description, member: MemberId) -> bool {
    let known = answer.members.iter().find(|known| known.id == member.0);
    known
        .and_then(|known| known.member_attributes.as_ref())
        .is_some_and(|attributes| !attributes.client_urls.is_empty())
}
