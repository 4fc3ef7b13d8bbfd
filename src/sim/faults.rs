//! Faults injected into a world, and when they end. Each world has some of the kinds, so that each
//! kind is also seen without the others.
//!
//! `plan` decides what happens when, from the seed alone; this file and `elections` and
//! `membership` carry it out.

mod damage;
mod elections;
mod membership;
pub mod plan;
mod targets;

use std::sync::atomic::Ordering;

use self::plan::{AFTERMATH_NS, CHECK_MEMBERSHIP_NS, Event, Kind, MS, SECOND};
use self::targets::{leader, links_to_cut};
use super::history::Moment;
use super::world::{Injector, World};
use crate::replica::inbox::Input;
use crate::storage::Engine as _;
use crate::storage::memory::Refuses;
use crate::types::MemberId;

/// A disk error is noticed by its member within this time.
const BROKEN_NS: u64 = 10 * SECOND;

/// The functions that a world calls when a fault is due.
pub const INJECTOR: Injector = Injector { strike, cut_short };

/// Carries out the faults that are due.
pub fn strike(world: &mut World) {
    let now = world.time.now_ns();
    let Some(entry) = world.faults.agenda.first_entry() else {
        return;
    };
    if entry.key().0 > now {
        return;
    }
    match entry.remove() {
        Event::InjectFault => {
            let faults = &mut world.faults;
            let next = now + faults.random.between(100 * MS, faults.interval_ns);
            if now < faults.until {
                faults.plan(next, Event::InjectFault);
                if faults.is_at_stake() {
                    return;
                }
                let kinds = faults.kinds.clone();
                let kind = *faults.random.pick(&kinds);
                begin(world, kind, now);
            }
        }
        Event::CheckMembership => {
            world
                .faults
                .plan(now + CHECK_MEMBERSHIP_NS, Event::CheckMembership);
            membership::check_membership(world);
            damage::advance_repair(world);
        }
        Event::Die(id) => {
            let id = id.or_else(|| leader(world));
            if let Some(id) = id.filter(|id| world.is_alive(*id)) {
                world.die(id, false);
                let at = now + world.faults.random.between(30 * MS, 1_500 * MS);
                world.faults.disturbed(at);
                world.faults.plan(at, Event::Restart(id));
            }
        }
        Event::Transfer(to) => elections::transfer(world, to),
        Event::Coup(id) => elections::coup(world, id),
        Event::TransferToNewest => {
            if let Some(id) = world.faults.newest {
                elections::transfer(world, id);
            }
        }
        Event::Restart(id) => restart(world, id),
        Event::LoseEnd { member, also } => damage::lose_prepared_end(world, member, also),
        Event::Stop(id) => {
            world.stop(id);
            world.faults.restart_soon(id, now);
        }
        Event::Continue(id) => resume(world, id),
        Event::Heal(links) => {
            world.trace.note(format_args!("links heal: {links:?}"));
            for (from, to) in links {
                world.network.heal(from, to);
            }
        }
        Event::LinksRecover => world.network.set_conditions(0, 0, 0),
        Event::FreeDisk(id) => {
            if let Some(member) = world.members.get(&id) {
                member.disk.log().fill(None);
            }
        }
    }
}

fn restart(world: &mut World, id: MemberId) {
    let gone = |world: &World| world.conditions.get(&id).is_none_or(|c| c.gone);
    if gone(world) || world.is_alive(id) {
        return;
    }
    world.start(id);
    if !world.is_alive(id) && !gone(world) {
        let now = world.time.now_ns();
        world.faults.restart_soon(id, now);
    }
}

/// Pauses the process.
pub(super) fn pause(world: &mut World, id: MemberId) {
    let now = world.time.now_ns();
    if let Some(condition) = world.conditions.get_mut(&id) {
        if !condition.paused {
            condition.paused_since = now;
        }
        condition.paused = true;
    }
    world.network.hold(id, true);
}

pub(super) fn resume(world: &mut World, id: MemberId) {
    if let Some(condition) = world.conditions.get_mut(&id)
        && std::mem::take(&mut condition.paused)
    {
        let now = world.time.now_ns();
        world.faults.stood_still.push((condition.paused_since, now));
    }
    world.network.hold(id, false);
}

/// A member that leads, or believes that it leads.
fn begin(world: &mut World, kind: Kind, now: Moment) {
    let alive = world.alive();
    if alive.is_empty() {
        return;
    }
    world.faults.note_calm(now);
    let leader = leader(world);
    let random = &mut world.faults.random;
    let id = match leader {
        // Faults at the leader have the largest effect.
        Some(leader) if random.chance(250) => leader,
        _ => *random.pick(&alive),
    };
    let soon = now + random.between(30 * MS, 2 * SECOND);
    let later = now + random.between(200 * MS, 7 * SECOND);
    *world.faults.counts.entry(kind).or_default() += 1;
    world.faults.disturbed(later);
    world.trace.note(format_args!("fault: {kind:?} {id}"));
    match kind {
        Kind::Kill | Kind::PowerLoss => {
            world.die(id, kind == Kind::Kill);
            world.faults.plan(later, Event::Restart(id));
        }
        Kind::Stop => {
            // A server that is stopped first hands leadership over, too.
            if let Some(process) = world.process(id) {
                // A full inbox only loses the request.
                let _ = process.raft.inbox().push(Input::HandOver);
            }
            world.faults.disturbed(soon);
            world.faults.plan(soon, Event::Stop(id));
        }
        Kind::Flush => {
            if let Some(member) = world.members.get(&id) {
                // The member detects an error on its own.
                let _ = member.disk.state().flush();
            }
        }
        Kind::PowerLossOfAll => {
            for id in alive {
                world.die(id, false);
                world.faults.restart_soon(id, now);
            }
        }
        Kind::Turmoil => elections::turmoil(world, &alive, now),
        Kind::Coup => elections::prepare_coup(world, id, now),
        Kind::Pause => {
            pause(world, id);
            world.faults.plan(later, Event::Continue(id));
        }
        Kind::Isolation | Kind::Partition | Kind::OneWay => cut_links(world, kind, id, later),
        Kind::LinkConditions => worsen_links(world, later),
        Kind::DiskStall => {
            if let Some(condition) = world.conditions.get_mut(&id) {
                condition.stalled_until = later;
            }
        }
        Kind::SyncFailure | Kind::DiskFull | Kind::EngineFailure => {
            break_disk(world, kind, id, soon);
        }
        Kind::ClockJump => {
            let hours = world.faults.random.between(0, 48) as i64 - 24;
            if let Some(member) = world.members.get(&id) {
                let jump = hours * 3_600 * SECOND as i64;
                member.wall_offset_ns.fetch_add(jump, Ordering::SeqCst);
            }
        }
        Kind::Transfer => elections::transfer_repeatedly(world, id, &alive, later),
        Kind::Membership => membership::change(world, id),
        Kind::Newcomer => membership::newcomer(world, id, now),
        Kind::LogDamaged => damage::begin(world, id, now),
    }
}

/// Cuts links until `heals_at`.
fn cut_links(world: &mut World, kind: Kind, id: MemberId, heals_at: Moment) {
    let links = links_to_cut(world, kind, id);
    for (from, to) in &links {
        world.network.cut(*from, *to);
    }
    let laggards = world.faults.kinds == [Kind::Isolation];
    if laggards || world.faults.random.chance(500) {
        elections::come_back_slow(world, id, heals_at);
    }
    world.faults.plan(heals_at, Event::Heal(links));
}

/// Loses, duplicates and delays messages until `recover_at`.
fn worsen_links(world: &mut World, recover_at: Moment) {
    let random = &mut world.faults.random;
    let loss = random.between(5, 250) as u32;
    let doubled = random.between(0, 250) as u32;
    let slow = random.between(0, 200) as u32;
    world.network.set_conditions(loss, doubled, slow);
    world.faults.plan(recover_at, Event::LinksRecover);
}

fn break_disk(world: &mut World, kind: Kind, id: MemberId, until: Moment) {
    let free = world.faults.random.below(4_096);
    if let Some(condition) = world.conditions.get_mut(&id) {
        let since = condition.may_fail_until;
        condition.may_fail_until = match kind {
            // Syncs or writes fail for a while.
            Kind::SyncFailure | Kind::EngineFailure => Moment::MAX,
            _ => since.max(until + BROKEN_NS),
        };
        if kind != Kind::EngineFailure {
            condition.may_not_start_until = condition.may_fail_until;
        }
    }
    let Some(member) = world.members.get(&id) else {
        return;
    };
    match kind {
        Kind::DiskFull => {
            member.disk.log().fill(Some(free));
            world.faults.plan(until, Event::FreeDisk(id));
        }
        Kind::EngineFailure => {
            let random = &mut world.faults.random;
            member.disk.state().refuse(match random.chance(500) {
                true => Refuses::Flushes,
                false => Refuses::AllAfter(random.below(40)),
            });
        }
        _ => member.disk.log().fail_next_sync(),
    }
}

/// Ends a member in the midst of what is named.
pub fn cut_short(world: &mut World, id: MemberId, what: &str) {
    let now = world.time.now_ns();
    if now < world.faults.until && !world.faults.is_at_stake() {
        world.faults.note_calm(now);
        let power = world.faults.random.chance(500);
        world.trace.note(format_args!("{id} ends while it {what}"));
        world.die(id, power);
        world.faults.restart_soon(id, now);
    }
}

/// Ends every fault, and starts every member that is down.
pub fn heal(world: &mut World) {
    let now = world.time.now_ns();
    world.trace.note(format_args!("everything heals"));
    world.faults.until = 0;
    let check = |event: &Event| *event == Event::CheckMembership;
    world.faults.agenda.retain(|_, event| check(event));
    world.faults.forget_preparations();
    world.network.heal_all();
    world.network.set_conditions(0, 0, 0);
    let ids: Vec<MemberId> = world.members.keys().copied().collect();
    for id in ids {
        resume(world, id);
        if let Some(condition) = world.conditions.get_mut(&id) {
            condition.stalled_until = 0;
        }
        if let Some(member) = world.members.get(&id) {
            member.disk.log().fill(None);
            member.disk.state().refuse(Refuses::Nothing);
        }
        restart(world, id);
    }
    world.faults.busy_until = now + AFTERMATH_NS;
}

/// Records the last calm interval, at the end of the world.
pub fn close(world: &mut World) {
    let now = world.time.now_ns();
    world.faults.note_calm(now);
}
