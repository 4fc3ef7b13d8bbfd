//! Faults around elections and around members that come back: each takes several steps, so that
//! it happens in the very moment in which it matters.

use super::plan::{Event, Kind, MS, SECOND};
use super::targets::{leader, links_to_cut};
use crate::replica::inbox::Input;
use crate::sim::history::Moment;
use crate::sim::world::World;
use crate::types::MemberId;

/// Members die and come back, one after the other; often the one that leads by then.
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

/// A member that was cut off until then has much to catch up with, and a disk that is not up to
/// it.
pub(super) fn come_back_slow(world: &mut World, id: MemberId, heals_at: Moment) {
    let slow_until = heals_at + world.faults.random.between(300 * MS, 4 * SECOND);
    if let Some(condition) = world.conditions.get_mut(&id) {
        condition.stalled_until = slow_until;
    }
    let faults = &mut world.faults;
    match faults.random.below(4) {
        // What it is sent meanwhile comes from another leader.
        0 => faults.plan((heals_at + slow_until) / 2, Event::Die(None)),
        // It dies over it.
        1 => faults.plan(slow_until - 1, Event::Die(Some(id))),
        // It cannot say what it has.
        _ => {
            world.network.set_conditions(100, 0, 0);
            faults.plan(slow_until, Event::LinksRecover);
        }
    }
    faults.disturbed(slow_until);
}

/// Leadership goes from hand to hand, sometimes with messages of the past about.
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

/// Cuts one member off and has the others elect a leader.
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

/// Cuts a leader off from those that elected it, before they can have heard more of it, and
/// has them start again. The one that was cut off before comes back.
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
        // A full inbox has other worries.
        let _ = process.raft.inbox().push(input);
    }
}
