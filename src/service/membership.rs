//! Changes of membership requested by an operator: etcd's checks before a proposal, in etcd's
//! order. What must hold for every proposal is checked again at apply.
//!
//! The strict check refuses a change that would leave the cluster without a quorum of started
//! members, or of members that this one has been connected to for a while. Only the leader knows
//! whether a learner has caught up, so promotions are sent to it.

use std::time::Duration;

use super::caller::Caller;
use super::handle::Handle;
use super::permission::Needs;
use super::settings::Rules;
use crate::config::{self, Url, urls};
use crate::error::Error;
use crate::probe::{self, CoveragePoint};
use crate::proto::etcdserverpb::{self, MemberPromoteRequest};
use crate::proto::etchedpeer::{
    Nothing, PeerRequest, member_change::Change, peer_request, peer_response,
};
use crate::proto::membershippb::{Member, RaftAttributes};
use crate::raft::replica::MemberProgress;
use crate::replica::cluster_status::ClusterStatus;
use crate::replica::shared::Shared;
use crate::types::MemberId;

/// A connection counts once it has lasted this long; etcd's figure.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);
/// The share of the leader's log that a learner must have to become a voter; etcd's figure.
const READY_SHARE: f64 = 0.9;
/// Wait before a change is proposed again after another one, or to another leader.
const RETRY: Duration = Duration::from_millis(50);

/// A member as the cluster's services show it.
pub fn shown(member: &Member) -> etcdserverpb::Member {
    let attributes = member.member_attributes.clone().unwrap_or_default();
    let raft = member.raft_attributes.clone().unwrap_or_default();
    etcdserverpb::Member {
        id: member.id,
        name: attributes.name,
        peer_ur_ls: raft.peer_urls,
        client_ur_ls: attributes.client_urls,
        is_learner: raft.is_learner,
    }
}

fn shown_all(members: &[Member]) -> Vec<etcdserverpb::Member> {
    members.iter().map(shown).collect()
}

/// The URLs of a request in etcd's order, or its refusal.
fn peer_urls(given: &[String]) -> Result<Vec<Url>, Error> {
    let parsed: Result<Vec<Url>, String> = given.iter().map(|url| Url::parse(url)).collect();
    let mut urls = parsed.map_err(|_| Error::MemberBadUrls)?;
    if urls.is_empty() {
        return Err(Error::MemberBadUrls);
    }
    urls.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    Ok(urls)
}

/// True once the member has published its name.
fn is_started(member: &Member) -> bool {
    let attributes = member.member_attributes.as_ref();
    attributes.is_some_and(|attributes| !attributes.name.is_empty())
}

fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// The voters and what is known of them.
struct Voters<'a> {
    voters: Vec<&'a Member>,
    own: MemberId,
    /// Whether a member has been connected for long enough.
    connected: &'a dyn Fn(MemberId) -> bool,
}

impl Voters<'_> {
    fn started(&self) -> usize {
        self.voters.iter().filter(|voter| is_started(voter)).count()
    }

    fn reached(&self) -> usize {
        let reached =
            |voter: &&&Member| voter.id == self.own.0 || (self.connected)(MemberId(voter.id));
        self.voters.iter().filter(reached).count()
    }

    fn may_add(&self, learner: bool) -> Result<(), Error> {
        let (count, started) = (self.voters.len() + 1, self.started());
        // A single member may always add a second one: that is how a cluster is restored.
        let restores = started == 1 && count == 2;
        if !learner && !restores && started < quorum(count) {
            return Err(Error::NotEnoughStartedMembers);
        }
        if self.voters.len() > 1 && self.reached() < quorum(count) {
            return Err(Error::Unhealthy);
        }
        Ok(())
    }

    fn may_promote(&self) -> Result<(), Error> {
        // The learner itself has been started.
        match self.started() + 1 < quorum(self.voters.len() + 1) {
            true => Err(Error::NotEnoughStartedMembers),
            false => Ok(()),
        }
    }

    /// Whether a voter may be removed. `is_active`: it is connected now.
    fn may_remove(&self, id: MemberId, is_active: bool) -> Result<(), Error> {
        let others = self.voters.iter().filter(|voter| voter.id != id.0);
        let left = others.clone().count();
        let started = others.filter(|voter| is_started(voter)).count();
        if started < quorum(left) {
            return Err(Error::NotEnoughStartedMembers);
        }
        // A member that is down does not count towards the active quorum.
        if id != self.own && !is_active {
            return Ok(());
        }
        // etcd's figure: half of the others, and one.
        let needed = 1 + self.voters.len().saturating_sub(1) / 2;
        if self.reached().saturating_sub(1) < needed {
            return Err(Error::Unhealthy);
        }
        Ok(())
    }
}

/// Whether a learner (or any member with this id) has caught up with the leader.
fn check_caught_up(
    id: MemberId,
    leader: MemberId,
    status: &ClusterStatus,
    progress: &[MemberProgress],
) -> Result<(), Error> {
    status.member(id).ok_or(Error::MemberNotFound)?;
    let matched = |id: MemberId| {
        let found = progress.iter().find(|progress| progress.member == id);
        found.map_or(0, |progress| progress.matched)
    };
    if (matched(id) as f64) < READY_SHARE * matched(leader) as f64 {
        return Err(Error::LearnerNotReady);
    }
    Ok(())
}

impl Handle {
    /// Adds a member; returns it and all members. Its id is etcd's: a hash over its URLs and the
    /// time.
    pub async fn add_member(
        &self,
        caller: &Caller,
        urls: &[String],
        learner: bool,
    ) -> Result<(etcdserverpb::Member, Vec<etcdserverpb::Member>), Error> {
        let urls = peer_urls(urls)?;
        // As in etcd what is wrong with the request comes first.
        self.check_call(caller, Needs::Root)?;
        let seconds = self.shared().clock.wall().as_secs();
        let id = config::member_id(&urls, &seconds.to_string());
        let added = RaftAttributes {
            peer_urls: urls::texts(&urls),
            is_learner: learner,
        };
        if self.rules().strict {
            let allowed = self.with_voters(|voters| voters.may_add(learner));
            allowed.inspect_err(|error| {
                let shared = self.shared();
                tracing::warn!(%error, "local-member-id" = %shared.member, "requested-member-add" = ?added, "rejecting member add request");
            })?;
        }
        let members = self.change(caller, id, Change::Add(added.clone())).await?;
        let member = etcdserverpb::Member {
            id: id.0,
            peer_ur_ls: added.peer_urls,
            is_learner: learner,
            ..Default::default()
        };
        Ok((member, shown_all(&members)))
    }

    /// Removes a member for good; returns the remaining ones. A leader transfers leadership before
    /// it is removed (see `replica::router`).
    pub async fn remove_member(
        &self,
        caller: &Caller,
        id: MemberId,
    ) -> Result<Vec<etcdserverpb::Member>, Error> {
        if self.rules().strict && !self.shared().status().is_learner(id) {
            let is_active = self.network().active_since(id).is_some();
            let allowed = self.with_voters(|voters| voters.may_remove(id, is_active));
            allowed.inspect_err(|error| {
                let shared = self.shared();
                tracing::warn!(%error, "local-member-id" = %shared.member, "requested-member-remove-id" = %id, "rejecting member remove request");
            })?;
        }
        let members = self.change(caller, id, Change::Remove(Nothing {})).await?;
        Ok(shown_all(&members))
    }

    /// Changes a member's peer URLs. etcd accepts any text as a URL, and its members then panic;
    /// here it is refused.
    pub async fn update_member(
        &self,
        caller: &Caller,
        id: MemberId,
        urls: Vec<String>,
    ) -> Result<Vec<etcdserverpb::Member>, Error> {
        // As in etcd, an unknown member is reported first.
        if self.shared().status().member(id).is_some() {
            peer_urls(&urls)?;
        }
        let change = Change::Update(RaftAttributes {
            peer_urls: urls,
            is_learner: false,
        });
        let members = self.change(caller, id, change).await?;
        Ok(shown_all(&members))
    }

    /// Makes a learner a voter, here or at the leader.
    pub async fn promote_member(
        &self,
        caller: &Caller,
        id: MemberId,
    ) -> Result<Vec<etcdserverpb::Member>, Error> {
        let shared = self.shared();
        let deadline = self.deadline(caller);
        let mut in_doubt = false;
        loop {
            let promoted = match self.promote_here(caller, id).await {
                Err(Error::NotLeader) => self.promote_at_leader(caller, id).await,
                promoted => promoted.map(|members| shown_all(&members)),
            };
            let elsewhere = matches!(
                promoted,
                Err(Error::NotLeader
                    | Error::NoLeader
                    | Error::Timeout
                    | Error::TimeoutConnectionLost
                    | Error::TimeoutLeaderFailed)
            );
            if !elsewhere {
                // The refusal may be due to an earlier attempt that succeeded.
                return promoted.map_err(|error| if in_doubt { Error::Timeout } else { error });
            }
            in_doubt |= !matches!(promoted, Err(Error::NotLeader | Error::NoLeader));
            if shared.clock.now() + RETRY >= deadline {
                return match shared.raft.leader() {
                    0 => Err(Error::NoLeader),
                    _ => Err(Error::Timeout),
                };
            }
            shared.clock.sleep(RETRY).await;
        }
    }

    async fn promote_at_leader(
        &self,
        caller: &Caller,
        id: MemberId,
    ) -> Result<Vec<etcdserverpb::Member>, Error> {
        let request = MemberPromoteRequest { id: id.0 };
        let request = PeerRequest {
            request: Some(peer_request::Request::Promote(request)),
        };
        match self.ask_leader(caller, request).await {
            Ok(answer) => match answer.response {
                Some(peer_response::Response::Promoted(promoted)) => Ok(promoted.members),
                _ => Err(Error::UnknownMethod),
            },
            // The other member is stopping, not this one.
            Err(Error::Stopped) => Err(Error::NotLeader),
            Err(error) => Err(error),
        }
    }

    /// Makes a learner a voter, if this member leads and the learner has caught up.
    pub async fn promote_here(&self, caller: &Caller, id: MemberId) -> Result<Vec<Member>, Error> {
        if !self.shared().raft.is_leader() {
            return Err(Error::NotLeader);
        }
        let promoted = self.promote_as_leader(caller, id).await;
        count_promotion(self.shared(), promoted.as_ref().err().copied());
        promoted
    }

    async fn promote_as_leader(&self, caller: &Caller, id: MemberId) -> Result<Vec<Member>, Error> {
        let shared = self.shared();
        let progress = shared.raft.progress();
        let status = shared.status();
        check_caught_up(id, shared.member, &status, &progress).inspect_err(|error| {
            tracing::error!(%error, learner = %id, "rejecting promote learner: learner is not ready");
        })?;
        if self.rules().strict {
            let allowed = self.with_voters(|voters| voters.may_promote());
            allowed.inspect_err(|error| {
                tracing::warn!(%error, "local-member-id" = %shared.member, "requested-member-promote-id" = %id, "rejecting member promote request");
            })?;
        }
        self.change(caller, id, Change::Promote(Nothing {})).await
    }

    fn rules(&self) -> Rules {
        self.settings().rules
    }

    fn with_voters<T>(&self, ask: impl FnOnce(&Voters<'_>) -> T) -> T {
        let shared = self.shared();
        let status = shared.status();
        let now = shared.clock.now();
        let connected = |id: MemberId| {
            let since = self.network().active_since(id);
            since.is_some_and(|since| since + HEALTHY_AFTER < now)
        };
        ask(&Voters {
            voters: status.voters().collect(),
            own: shared.member,
            connected: &connected,
        })
    }

    /// Has a change committed. Only one may be in progress in a cluster, so a second one waits.
    async fn change(
        &self,
        caller: &Caller,
        id: MemberId,
        change: Change,
    ) -> Result<Vec<Member>, Error> {
        let shared = self.shared();
        let deadline = self.deadline(caller);
        let max_learners = self.rules().max_learners;
        loop {
            let changed = self
                .change_members(caller, id, change.clone(), max_learners)
                .await
                .inspect(|_| {
                    tracing::info!(
                        "local-member-id" = %shared.member,
                        "raft-conf-change" = kind(&change),
                        "raft-conf-change-node-id" = %id,
                        "applied a configuration change through raft"
                    );
                });
            // It was certainly not proposed.
            let waits = matches!(changed, Err(Error::TooManyRequests));
            if !waits || shared.clock.now() + RETRY >= deadline {
                return changed;
            }
            probe::reached(CoveragePoint::ChangeWaited);
            shared.clock.sleep(RETRY).await;
        }
    }
}

fn count_promotion(shared: &Shared, failed: Option<Error>) {
    match failed {
        None => shared.metrics.learner_promote_successes.increment(),
        Some(error) => {
            // etcd compares with the error texts of its core.
            let reason = match error {
                Error::MemberNotFound => "membership: ID not found",
                Error::MemberNotLearner => "membership: can only promote a learner member",
                error => error.text(),
            };
            shared.metrics.learner_promotion_failed(reason);
        }
    }
}

/// The change as raft's ConfChange.
fn kind(change: &Change) -> &'static str {
    match change {
        Change::Add(raft) if raft.is_learner => "ConfChangeAddLearnerNode",
        Change::Add(_) | Change::Promote(_) => "ConfChangeAddNode",
        Change::Remove(_) => "ConfChangeRemoveNode",
        Change::Update(_) => "ConfChangeUpdateNode",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::membershippb::Attributes;

    fn member(id: u64, name: &str, is_learner: bool) -> Member {
        Member {
            id,
            raft_attributes: Some(RaftAttributes {
                peer_urls: vec![format!("http://127.0.0.1:{id}")],
                is_learner,
            }),
            member_attributes: Some(Attributes {
                name: name.to_owned(),
                client_urls: Vec::new(),
            }),
        }
    }

    /// Checks member 1 of a cluster written as `started,connected ...`, one word per voter.
    fn ask<T>(cluster: &str, what: impl FnOnce(&Voters<'_>) -> T) -> T {
        let words: Vec<_> = cluster.split(' ').collect();
        let named = |word: &str| if word.contains('s') { "m" } else { "" };
        let members: Vec<_> = (1..)
            .zip(&words)
            .map(|(id, word)| member(id, named(word), false))
            .collect();
        let connected = |id: MemberId| words[id.0 as usize - 1].contains('c');
        what(&Voters {
            voters: members.iter().collect(),
            own: MemberId(1),
            connected: &connected,
        })
    }

    const NOT_STARTED: Result<(), Error> = Err(Error::NotEnoughStartedMembers);
    const UNHEALTHY: Result<(), Error> = Err(Error::Unhealthy);

    /// s: started, c: connected for a while, -: neither. The first is this member.
    #[test]
    fn voters_are_added_only_to_a_quorum_that_holds() {
        for (cluster, voter, learner) in [
            ("s", Ok(()), Ok(())),
            ("-", NOT_STARTED, Ok(())),
            ("s sc", Ok(()), Ok(())),
            ("s s", UNHEALTHY, UNHEALTHY),
            ("s c", NOT_STARTED, Ok(())),
            ("s sc s", UNHEALTHY, UNHEALTHY),
            ("s sc sc", Ok(()), Ok(())),
            ("s sc c", NOT_STARTED, Ok(())),
            ("s sc sc s", Ok(()), Ok(())),
            ("s sc sc - -", Ok(()).and(NOT_STARTED), UNHEALTHY),
        ] {
            assert_eq!(ask(cluster, |v| v.may_add(false)), voter, "{cluster}");
            assert_eq!(ask(cluster, |v| v.may_add(true)), learner, "{cluster}");
        }
    }

    #[test]
    fn voters_are_removed_only_where_a_quorum_is_left() {
        for (cluster, id, active, expected) in [
            ("s", 1, true, NOT_STARTED),
            // An unknown member is refused later.
            ("s", 9, false, Ok(())),
            ("s s", 2, false, Ok(())),
            ("s sc", 2, true, Ok(())),
            ("s s", 2, true, UNHEALTHY),
            ("s -", 1, true, NOT_STARTED),
            ("s sc sc", 3, true, Ok(())),
            ("s sc sc", 1, true, Ok(())),
            ("s sc s", 3, false, Ok(())),
            ("s sc s", 3, true, UNHEALTHY),
            ("s sc s", 2, true, UNHEALTHY),
            ("s - -", 3, false, NOT_STARTED),
        ] {
            let asked = ask(cluster, |v| v.may_remove(MemberId(id), active));
            assert_eq!(asked, expected, "{cluster} {id} {active}");
        }
    }

    #[test]
    fn learners_are_promoted_only_into_a_quorum_of_started_members() {
        for (cluster, expected) in [
            ("s", Ok(())),
            ("-", NOT_STARTED),
            ("s -", Ok(())),
            ("s - -", NOT_STARTED),
            ("s s -", Ok(())),
        ] {
            assert_eq!(ask(cluster, |v| v.may_promote()), expected, "{cluster}");
        }
    }

    #[test]
    fn learners_have_nine_tenths_of_the_leader_s_log() {
        let status = ClusterStatus {
            members: vec![member(1, "a", false), member(2, "b", true)],
            ..Default::default()
        };
        for (matched, id, expected) in [
            (90, 2, Ok(())),
            (89, 2, Err(Error::LearnerNotReady)),
            (0, 2, Err(Error::LearnerNotReady)),
            // That it is no learner is detected at apply.
            (0, 1, Ok(())),
            (100, 3, Err(Error::MemberNotFound)),
        ] {
            let progress = |member, matched| MemberProgress {
                member: MemberId(member),
                matched,
                voter: member == 1,
                active: true,
                in_snapshot: false,
                in_doubt: false,
            };
            let progress = [progress(1, 100), progress(2, matched)];
            let checked = check_caught_up(MemberId(id), MemberId(1), &status, &progress);
            assert_eq!(checked, expected, "{matched} {id}");
        }
    }

    #[test]
    fn urls_are_read_as_etcd_reads_them() {
        let read = |given: &[&str]| {
            let given: Vec<_> = given.iter().map(|url| url.to_string()).collect();
            peer_urls(&given).map(|urls| urls::texts(&urls).join(" "))
        };
        assert_eq!(
            read(&["http://b:1", " http://a:1 "]),
            Ok("http://a:1 http://b:1".to_owned())
        );
        assert_eq!(
            read(&["http://a:1", "http://a:1"]),
            Ok("http://a:1 http://a:1".to_owned())
        );
        for bad in [
            &[][..],
            &[""],
            &["a:1"],
            &["http://a"],
            &["http://a:1/"],
            &["http://a:1", "x"],
        ] {
            assert_eq!(read(bad), Err(Error::MemberBadUrls), "{bad:?}");
        }
    }
}
