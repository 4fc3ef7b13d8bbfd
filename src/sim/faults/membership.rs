//! Changes of membership: operators request them, and machines are provided for added members. The
//! simulated network addresses members by id, so one whose peer URLs change is still reached.

use std::sync::Arc;

use super::plan::{Event, MS, SECOND};
use super::targets::leader;
use crate::env::Executor;
use crate::proto::etchedpeer::{MemberChange, Nothing, member_change::Change};
use crate::proto::membershippb::RaftAttributes;
use crate::replica::cluster_status::{ClusterStatus, peers_in};
use crate::sim::client::Client;
use crate::sim::history::{ClientRequest, Moment};
use crate::sim::world::World;
use crate::types::MemberId;

/// Operators that change the membership have client numbers above this.
const FIRST_OPERATOR: u32 = 10_000;
/// The largest cluster.
const MAX_MEMBERS: usize = 6;

/// The cluster status of the member that has applied most.
pub(super) fn newest_status(world: &World) -> Option<(u64, Arc<ClusterStatus>)> {
    let processes = world
        .members
        .values()
        .filter_map(|member| member.process.as_ref());
    processes
        .map(|process| {
            let shared = process.handle.shared();
            (shared.raft.applied_index(), shared.status())
        })
        .max_by_key(|(applied, _)| *applied)
}

pub(super) fn change(world: &mut World, via: MemberId) {
    let Some((_, status)) = newest_status(world) else {
        return;
    };
    let url = world.new_url();
    let leader = leader(world);
    let random = &mut world.faults.random;
    let learner = status
        .members
        .iter()
        .find(|m| status.is_learner(MemberId(m.id)));
    let learner = learner.map(|member| MemberId(member.id));
    let as_learner = random.chance(750);
    let members: Vec<MemberId> = status.members.iter().map(|m| MemberId(m.id)).collect();
    let target = match (leader, members.is_empty()) {
        (_, true) => via,
        // A leader has to hand leadership over first.
        (Some(leader), _) if random.chance(300) => leader,
        _ => *random.pick(&members),
    };
    let moves = random.chance(120);
    // Some are in use: the members do not know the founders' URLs.
    let founders = &world.founders;
    let others = status.members.iter().rev();
    let mut others = others.filter(|member| !founders.contains(&MemberId(member.id)));
    let raft = others.find_map(|member| member.raft_attributes.as_ref());
    let taken = raft.and_then(|raft| raft.peer_urls.first().cloned());
    let taken = taken.filter(|_| random.chance(300));
    let remove = members.len() >= MAX_MEMBERS || members.len() > 3 && random.chance(400);
    // A sole voter with a learner is a case of its own.
    let promote = random.chance(match status.voters().count() {
        1 => 250,
        _ => 700,
    });
    let (member, change) = match learner {
        _ if moves => {
            let raft = RaftAttributes {
                peer_urls: vec![taken.unwrap_or(url)],
                is_learner: false,
            };
            (target, Change::Update(raft))
        }
        Some(id) if promote => (id, Change::Promote(Nothing {})),
        _ if remove => (target, Change::Remove(Nothing {})),
        _ => {
            let raft = RaftAttributes {
                peer_urls: vec![url],
                is_learner: as_learner,
            };
            // The server chooses the id.
            (MemberId(0), Change::Add(raft))
        }
    };
    operate(world, via, member, change.clone());
    // The operator may repeat the request, or another may send the same. Peer URLs are unique.
    let again = world.faults.random.chance(300) && !matches!(change, Change::Add(_));
    if again {
        operate(world, via, member, change);
    }
}

/// Adds a member and makes it the leader while another member's disk is stalled; that one is then
/// killed and restarts with a leader that its state does not list. (If it were partitioned instead,
/// no member could be added.)
pub(super) fn newcomer(world: &mut World, away: MemberId, now: Moment) {
    let others: Vec<MemberId> = world.alive().into_iter().filter(|id| *id != away).collect();
    let full = newest_status(world).is_none_or(|(_, status)| status.members.len() >= MAX_MEMBERS);
    if others.len() < 2 || full {
        return;
    }
    let raft = RaftAttributes {
        peer_urls: vec![world.new_url()],
        is_learner: false,
    };
    let via = *world.faults.random.pick(&others);
    operate(world, via, MemberId(0), Change::Add(raft));
    let faults = &mut world.faults;
    let back_at = now + faults.random.between(4 * SECOND, 7 * SECOND);
    if let Some(condition) = world.conditions.get_mut(&away) {
        condition.stalled_until = back_at + SECOND;
    }
    let mut at = now + SECOND;
    while at < back_at + SECOND {
        faults.plan(at, Event::TransferToNewest);
        at += 400 * MS;
    }
    faults.plan(back_at, Event::Die(Some(away)));
    faults.disturbed(back_at + SECOND);
}

/// Sends a change of membership as an operator.
pub(super) fn operate(world: &mut World, via: MemberId, member: MemberId, change: Change) {
    world.faults.operators += 1;
    let number = FIRST_OPERATOR + world.faults.operators;
    let random = world.faults.random.fork(u64::from(number));
    let mut operator = Client::new(number, world.clients.clone(), random);
    let work = async move {
        operator.member = via;
        if let Some(endpoint) = operator.clients.endpoint(via) {
            let change = MemberChange {
                member_id: member.0,
                change: Some(change),
                ..Default::default()
            };
            operator
                .call_at(endpoint, ClientRequest::Member(change))
                .await;
        }
    };
    world.clients.tasks.spawn(Box::pin(work));
}

/// Provides machines for added members. Removed members learn of their removal when they dial
/// another, even if they have nothing to send.
pub(super) fn check_membership(world: &mut World) {
    let now = world.time.now_ns();
    let Some((_, status)) = newest_status(world) else {
        return;
    };
    for member in &status.members {
        let id = MemberId(member.id);
        if !world.members.contains_key(&id) {
            let peers = peers_in(status.members.iter(), id);
            world.add_joiner(id, peers);
            world.faults.newest = Some(id);
            world.faults.restart_soon(id, now);
        }
    }
    for id in &status.removed {
        if world.members.contains_key(id) && world.faults.removed.insert(*id) {
            world.trace.note(format_args!("{id} was removed"));
        }
    }
    for id in world.faults.removed.clone() {
        let reaches = |other: &MemberId| {
            *other != id && !world.network.is_cut(id, *other) && !world.network.is_cut(*other, id)
        };
        let knows = |other: &MemberId| {
            let process = world.process(*other);
            process.is_some_and(|process| process.handle.shared().status().is_removed(id))
        };
        let informed = world
            .alive()
            .into_iter()
            .any(|other| reaches(&other) && knows(&other));
        if let (true, Some(process)) = (informed, world.process(id)) {
            process.handle.shared().note_removed();
        }
    }
}
