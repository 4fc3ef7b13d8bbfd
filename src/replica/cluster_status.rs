//! The part of the state that changes rarely and is read often: members, alarms, versions.

use crate::probe::{self, CoveragePoint};
use crate::proto::etcdserverpb::{AlarmMember, AlarmType};
use crate::proto::membershippb::Member;
use crate::state::Machine;
use crate::state::membership::is_learner;
use crate::transport::Peer;
use crate::types::version;
use crate::types::{ClusterId, MemberId};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct ClusterStatus {
    pub alarms: Vec<AlarmMember>,
    pub members: Vec<Member>,
    pub cluster_version: Option<String>,
    /// The target version of a downgrade that was begun.
    pub downgrade_target: Option<String>,
    pub removed: Vec<MemberId>,
}

impl ClusterStatus {
    pub fn of(machine: &Machine) -> Self {
        Self {
            alarms: machine.alarms().list(AlarmType::None as i32),
            members: machine.members().iter().cloned().collect(),
            cluster_version: machine.versions().cluster().map(str::to_owned),
            downgrade_target: machine.versions().downgrade_target().map(str::to_owned),
            removed: machine.members().removed().collect(),
        }
    }

    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id.0)
    }

    pub fn is_learner(&self, id: MemberId) -> bool {
        self.member(id).is_some_and(is_learner)
    }

    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !is_learner(member))
    }

    /// The storage version, as in a downgrade's plan: as in etcd it follows the cluster version.
    /// etched's own format does not change with it.
    pub fn storage_version(&self) -> &str {
        version::of_storage(self.cluster_version.as_deref())
    }

    pub fn is_member(&self, id: MemberId) -> bool {
        self.members.iter().any(|member| member.id == id.0)
    }

    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id)
    }

    /// The other members, and their peer URLs.
    /// All members, and their peer URLs.
    pub fn addresses(&self) -> Vec<Peer> {
        self.members.iter().map(address).collect()
    }

    pub fn peers_of(&self, id: MemberId) -> Vec<Peer> {
        peers_in(self.members.iter(), id)
    }

    pub fn has_alarm(&self, kind: AlarmType) -> bool {
        self.alarms.iter().any(|alarm| alarm.alarm == kind as i32)
    }
}

/// The members other than `own`, and their peer URLs.
pub fn peers_in<'a>(members: impl Iterator<Item = &'a Member>, own: MemberId) -> Vec<Peer> {
    let others = members.filter(|member| member.id != own.0);
    others.map(address).collect()
}

fn address(member: &Member) -> Peer {
    Peer {
        member: MemberId(member.id),
        urls: member
            .raft_attributes
            .as_ref()
            .map(|raft| raft.peer_urls.clone())
            .unwrap_or_default(),
    }
}

/// Logs the differences to the previous status.
pub fn log_changes(cluster: ClusterId, own: MemberId, old: &ClusterStatus, new: &ClusterStatus) {
    log_version(cluster, own, old, new);
    for member in &new.members {
        let raft = member.raft_attributes.clone().unwrap_or_default();
        let id = MemberId(member.id);
        match old.member(id) {
            None => {
                tracing::info!("cluster-id" = %cluster, "local-member-id" = %own, "added-peer-id" = %id, "added-peer-peer-urls" = ?raft.peer_urls, "added-peer-is-learner" = raft.is_learner, "added member")
            }
            Some(before) => {
                let before = before.raft_attributes.clone().unwrap_or_default();
                if before.is_learner && !raft.is_learner {
                    probe::reached(CoveragePoint::LearnerPromoted);
                    tracing::info!("cluster-id" = %cluster, "local-member-id" = %own, "promoted-member-id" = %id, "promote member");
                }
                if before.peer_urls != raft.peer_urls {
                    tracing::info!("cluster-id" = %cluster, "local-member-id" = %own, "updated-remote-peer-id" = %id, "updated-remote-peer-urls" = ?raft.peer_urls, "updated member");
                }
            }
        }
    }
    let gone = |member: &&Member| new.member(MemberId(member.id)).is_none();
    for member in old.members.iter().filter(gone) {
        tracing::info!("cluster-id" = %cluster, "local-member-id" = %own, "removed-remote-peer-id" = %MemberId(member.id), "removed member");
    }
}

fn log_version(cluster: ClusterId, own: MemberId, old: &ClusterStatus, new: &ClusterStatus) {
    let short = |status: &ClusterStatus| status.cluster_version.as_deref().map(version::short);
    let (from, to) = (short(old), short(new));
    let Some(to) = to.filter(|to| Some(to) != from.as_ref()) else {
        return;
    };
    match from {
        Some(from) => {
            tracing::info!("cluster-id" = %cluster, "local-member-id" = %own, from, to, "updated cluster version")
        }
        None => {
            tracing::info!("cluster-id" = %cluster, "local-member-id" = %own, "cluster-version" = to, "set initial cluster version")
        }
    }
}
