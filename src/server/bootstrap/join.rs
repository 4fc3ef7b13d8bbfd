//! Joining an existing cluster: the other members are asked for its members, and which of them this
//! one is.
//!
//! The member begins empty, without a vote, and gets everything from the leader.

use std::time::Duration;

use super::found::{has_run, initial_cluster};
use super::network::{BootstrapNetwork, Described, Patience, ask_all};
use crate::config::{Config, Discovery, InitialCluster, Resolve, same_peer_urls};
use crate::proto::etchedpeer::Description;
use crate::proto::membershippb::Member;
use crate::server::Error;
use crate::server::member_dir::MemberIdentity;
use crate::server::restore::Joining;
use crate::transport::Peer;
use crate::types::version::{LEAST, NEWEST, Version};
use crate::types::{ClusterId, MemberId};

const PATIENCE: Patience = Patience {
    limit: Duration::from_secs(10),
    grace: Duration::from_secs(1),
};

/// Determines this member's identity in the cluster.
pub async fn ask(config: &Config, network: &dyn BootstrapNetwork) -> Result<Joining, Error> {
    let cluster = initial_cluster(config).await?;
    config
        .check_joining(&cluster)
        .map_err(|refusal| Error::Refused(refusal.to_string()))?;
    if matches!(config.discovery, Discovery::Service(_)) {
        return Err(Error::Refused(
            "discovery URL should not be set when joining existing initial cluster".to_owned(),
        ));
    }
    let urls = cluster.urls_beside(&config.name);
    let asked = ask_all(network, &urls, PATIENCE).await;
    for (url, answer) in &asked {
        if let Err(error) = answer {
            tracing::warn!(address = %url, %error, "failed to get cluster response");
        }
    }
    let answers = asked.into_iter().map(|(_, answer)| answer).collect();
    decide(config, &cluster, answers, &|name| network.resolve(name)).map_err(Error::Refused)
}

/// The conclusion from the responses; the error is the refusal's text.
fn decide(
    config: &Config,
    cluster: &InitialCluster,
    asked: Vec<Described>,
    resolve: Resolve<'_>,
) -> Result<Joining, String> {
    let fetch = |why: &str| format!("cannot fetch cluster info from peer urls: {why}");
    let answered: Vec<Description> = asked.into_iter().flatten().collect();
    let Some(first) = answered.first() else {
        return Err(fetch(
            "could not retrieve cluster information from the given URLs",
        ));
    };
    if let Some(other) = answered
        .iter()
        .find(|answer| answer.cluster_id != first.cluster_id)
    {
        return Err(fetch(&format!(
            "the given URLs belong to different clusters, {} and {}",
            ClusterId(first.cluster_id),
            ClusterId(other.cluster_id)
        )));
    }
    let cluster_id = ClusterId(first.cluster_id);
    // A member that is joining itself does not know any members yet.
    let answers: Vec<Description> = answered
        .into_iter()
        .filter(|answer| !answer.members.is_empty())
        .map(sorted)
        .collect();
    if answers.is_empty() {
        return Err(fetch(
            "failed to get raft cluster member(s) from the given URLs",
        ));
    }
    // A member that lags may not know this one yet, or know one that was removed.
    let mut refusal = String::new();
    let mut found = None;
    for answer in &answers {
        match own_id(config, cluster, answer, &answers, resolve) {
            Ok(member) => {
                found = Some((answer, member));
                break;
            }
            Err(reason) if refusal.is_empty() => refusal = reason,
            Err(_) => {}
        }
    }
    let (answer, member) = found.ok_or(refusal)?;
    if answers.iter().any(|answer| has_run(answer, member)) {
        return Err(format!(
            "member {member} has already been bootstrapped; its data is gone, so remove it from the cluster and add it again"
        ));
    }
    check_versions(&answers)?;
    check_learners(config, answer)?;
    let others = answer.members.iter().filter(|other| other.id != member.0);
    let peers = others.map(|other| Peer {
        member: MemberId(other.id),
        urls: urls_of(other).to_vec(),
    });
    Ok(Joining {
        identity: MemberIdentity {
            cluster: cluster_id,
            member,
        },
        peers: peers.collect(),
    })
}

fn sorted(mut answer: Description) -> Description {
    answer.members.sort_by_key(|member| member.id);
    answer
}

fn urls_of(member: &Member) -> &[String] {
    let raft = member.raft_attributes.as_ref();
    raft.map_or(&[], |raft| raft.peer_urls.as_slice())
}

/// This member's id: that of the member with its URLs, if all others match as well.
fn own_id(
    config: &Config,
    cluster: &InitialCluster,
    answer: &Description,
    answers: &[Description],
    resolve: Resolve<'_>,
) -> Result<MemberId, String> {
    let own = assign_ids(config, cluster, answer, resolve)
        .map_err(|reason| format!("error validating peerURLs {}: {reason}", shown(answer)))?;
    let removed = answers
        .iter()
        .any(|answer| answer.removed_member_ids.contains(&own.0));
    if removed {
        return Err(format!(
            "member {own} was removed from the cluster; add it again before it joins"
        ));
    }
    Ok(own)
}

fn assign_ids(
    config: &Config,
    cluster: &InitialCluster,
    answer: &Description,
    resolve: Resolve<'_>,
) -> Result<MemberId, String> {
    let named = cluster.founded_by(&config.name);
    let named = named.map(|found| found.founders).unwrap_or_default();
    if answer.members.len() != named.len() {
        return Err("member count is unequal".to_owned());
    }
    let mut own = None;
    for member in &answer.members {
        let mut last_reason = String::new();
        let matching = named.iter().find(|named| {
            same_peer_urls(urls_of(member), &named.peer_urls, resolve)
                .map_err(|reason| last_reason = reason)
                .is_ok()
        });
        let Some(matching) = matching else {
            return Err(format!(
                "PeerURLs: no match found for existing member ({}, [{}]), last resolver error ({last_reason})",
                MemberId(member.id),
                urls_of(member).join(" ")
            ));
        };
        if matching.name == config.name {
            own = Some(MemberId(member.id));
        }
    }
    // The numbers are equal and every one matched: only URLs that two members share can leave this
    // one without an id.
    own.ok_or_else(|| "two members have the same URLs".to_owned())
}

/// A cluster as etcd prints one.
fn shown(answer: &Description) -> String {
    let members = answer.members.iter().map(|member| {
        let attributes = member.member_attributes.clone().unwrap_or_default();
        let learner = member.raft_attributes.as_ref();
        format!(
            "&{{ID:{} RaftAttributes:{{PeerURLs:[{}] IsLearner:{}}} Attributes:{{Name:{} ClientURLs:[{}]}}}}",
            MemberId(member.id),
            urls_of(member).join(" "),
            learner.is_some_and(|raft| raft.is_learner),
            attributes.name,
            attributes.client_urls.join(" ")
        )
    });
    format!(
        "{{ClusterID:{} Members:[{}] RemovedMemberIDs:[]}}",
        ClusterId(answer.cluster_id),
        members.collect::<Vec<_>>().join(" ")
    )
}

/// Some member must know a cluster version, and no member one that this release does not support.
fn check_versions(answers: &[Description]) -> Result<(), String> {
    let mut known = answers
        .iter()
        .filter_map(|answer| Version::parse(&answer.cluster_version))
        .peekable();
    let some = known.peek().is_some();
    if !some || known.any(|version| !(LEAST..=NEWEST).contains(&version)) {
        return Err("incompatible with current running cluster".to_owned());
    }
    Ok(())
}

fn check_learners(config: &Config, answer: &Description) -> Result<(), String> {
    let learners = answer.members.iter().filter(|member| {
        let raft = member.raft_attributes.as_ref();
        raft.is_some_and(|raft| raft.is_learner)
    });
    if learners.count() > config.max_learners as usize {
        return Err("membership: too many learner members in cluster".to_owned());
    }
    Ok(())
}
