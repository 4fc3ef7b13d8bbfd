//! Faults around elections and around restarting members: each takes several steps, so that it
//! happens at the moment that matters.

use super::plan::{Event, Kind, MS, SECOND};
use super::targets::{leader, links_to_cut};
use crate::replica::inbox::Input;
use crate::sim::history::Moment;
use crate::sim::world::World;
use crate::types::MemberId;

/// Members die and restart one after the other; often the present leader is next.
pub(super) fn turmoil(world: &mut World, alive: &[MemberId], now: Moment) {
    let mut at = now;
    for _ in 0..world.faults.random.between(5, 20) {
        let random = &mut world.faults.random;
        at += random.between(200 * MS, 1_500 * MS);
        let id = match random.chance(400) {
            true => None,
            false => Some(*random.pick(alive)),
        };
        world.faults.plan(at, Event::Die(id));
    }
    world.faults.disturbed(at);
}

/// A member that was partitioned until then lags far behind, and has a slow disk.
pub(super) fn come_back_slow(world: &mut World, id: MemberId, heals_at: Moment) {
    let slow_until = heals_at + world.faults.random.between(300 * MS, 4 * SECOND);
    if let Some(condition) = world.conditions.get_mut(&id) {
        condition.stalled_until = slow_until;
    }
    let faults = &mut world.faults;
    match faults.random.below(4) {
        // Messages to it come from another leader in the meantime.
        0 => faults.plan((heals_at + slow_until) / 2, Event::Die(None)),
        // It dies meanwhile.
        1 => faults.plan(slow_until - 1, Event::Die(Some(id))),
        // Its acknowledgements are lost.
        _ => {
            world.network.set_conditions(100, 0, 0);
            faults.plan(slow_until, Event::LinksRecover);
        }
    }
    faults.disturbed(slow_until);
}

/// Leadership is transferred repeatedly, sometimes with delayed messages in flight.
pub(super) fn transfer_repeatedly(
    world: &mut World,
    to: MemberId,
    alive: &[MemberId],
    later: Moment,
) {
    let now = world.time.now_ns();
    transfer(world, to);
    let mut at = now;
    for _ in 0..world.faults.random.below(6) {
        let random = &mut world.faults.random;
        at += random.between(20 * MS, 400 * MS);
        let to = *random.pick(alive);
        world.faults.plan(at, Event::Transfer(to));
    }
    if world.faults.random.chance(600) {
        world.network.set_conditions(0, 0, 200);
        world.faults.plan(later.max(at), Event::LinksRecover);
    }
    world.faults.disturbed(later.max(at));
}

/// Partitions one member and makes the others elect a leader.
pub(super) fn prepare_coup(world: &mut World, id: MemberId, now: Moment) {
    let leader = leader(world);
    let others: Vec<MemberId> = world.alive().into_iter().filter(|one| *one != id).collect();
    if leader == Some(id) || others.len() < 2 {
        return;
    }
    let links = links_to_cut(world, Kind::Isolation, id);
    for (from, to) in &links {
        world.network.cut(*from, *to);
    }
    let end = now + 5 * SECOND;
    world.faults.coup = Some((end, id));
    world.faults.disturbed(end);
    world.faults.plan(end, Event::Heal(links));
    let to = *world.faults.random.pick(&others);
    transfer(world, to);
}

/// Partitions a new leader from its voters before they have received more from it, and restarts
/// them. The member that was partitioned before returns.
pub(super) fn coup(world: &mut World, leader: MemberId) {
    let now = world.time.now_ns();
    world.trace.note(format_args!("coup against {leader}"));
    world.network.heal_all();
    let links = links_to_cut(world, Kind::Isolation, leader);
    for (from, to) in &links {
        world.network.cut(*from, *to);
    }
    let heals_at = now + world.faults.random.between(2 * SECOND, 5 * SECOND);
    world.faults.disturbed(heals_at);
    world.faults.plan(heals_at, Event::Heal(links));
    for id in world.alive() {
        if id != leader && world.faults.random.chance(700) {
            world.die(id, false);
            let at = now + world.faults.random.between(30 * MS, 300 * MS);
            world.faults.plan(at, Event::Restart(id));
        }
    }
}

pub(super) fn transfer(world: &mut World, to: MemberId) {
    let leader = world
        .members
        .values()
        .filter_map(|member| member.process.as_ref())
        .find(|process| process.raft.status().is_leader);
    if let Some(process) = leader {
        let input = match to == process.handle.shared().member {
            true => Input::HandOver,
            false => Input::TransferLeader(to),
        };
        // A full inbox only loses the request.
        let _ = process.raft.inbox().push(input);
    }
}
