//! A log that was damaged while its member was down. At most one member has one at a time.
//!
//! Most damage must keep the member from starting. It is then as good as gone: an operator removes
//! it and adds another in its place.
//!
//! What was written behind the mark of the log may vanish unseen (`Lacking`). No cluster survives
//! that on a majority, and one that is in doubt in its majority waits for all its voters, so that
//! none may be gone. So damage happens in a calm world without a member in doubt, and no other fault
//! begins until the member has got again what it lacks or was replaced. Its vote, were it given,
//! would do most harm where a follower that never had the last entries is up, and who has them is
//! not or is in doubt; so that is brought about (`prepare`).

use super::elections;
use super::membership::{newest_status, operate};
use super::plan::{Also, Damaged, Event, Kind, MS, Phase, SECOND};
use super::targets::{leader, links_to_cut};
use crate::probe::{self, CoveragePoint};
use crate::proto::etchedpeer::{Nothing, member_change::Change};
use crate::proto::membershippb::RaftAttributes;
use crate::sim::history::Moment;
use crate::sim::world::World;
use crate::storage::raft_log::Damage;
use crate::types::MemberId;

/// An operator repeats a request that was not carried out.
const REPEAT_NS: u64 = 2 * SECOND;
/// With fewer voters, changes of membership under way may need the member that is lost.
const VOTERS_OF_CHANGES: usize = 5;

pub(super) fn begin(world: &mut World, id: MemberId, now: Moment) {
    let voters = voters(world);
    let kinds = &world.faults.kinds;
    let changes = kinds.contains(&Kind::Membership) || kinds.contains(&Kind::Newcomer);
    let few = if changes { VOTERS_OF_CHANGES } else { 3 };
    let is_well = |id: &MemberId| world.is_alive(*id);
    if world.faults.damaged.is_some()
        || voters.len() < few
        || !voters.contains(&id)
        || !voters.iter().all(is_well)
        || !is_calm(world, now)
    {
        return;
    }
    let random = &mut world.faults.random;
    if random.chance(250) {
        let damage = *random.pick(&Damage::REFUSED);
        let power = random.chance(500);
        let back_at = now + random.between(30 * MS, 2 * SECOND);
        world.die(id, power);
        world.faults.disturbed(back_at);
        world.faults.plan(back_at, Event::Restart(id));
        ruin(world, id, damage, Phase::Refusing);
        return;
    }
    let leader = leader(world).filter(|leader| *leader != id);
    let random = &mut world.faults.random;
    match leader {
        Some(leader) if voters.len() == 3 && random.chance(600) => {
            prepare(world, leader, id, &voters, now);
        }
        _ if random.chance(400) => {
            // A vote is what its log ends with.
            let to = *random.pick(&voters);
            let at = now + random.between(5 * MS, 300 * MS);
            elections::transfer(world, to);
            world.faults.damaged = Some(Damaged::new(id, Phase::Preparing));
            let also = *world.faults.random.pick(&[Also::Nobody, Also::All]);
            world.faults.plan(at, Event::LoseEnd { member: id, also });
        }
        _ => {
            let back_at = now + random.between(30 * MS, 2 * SECOND);
            lose_end(world, id, back_at);
        }
    }
}

/// Keeps entries from the third voter, before the other two lose power.
fn prepare(world: &mut World, leader: MemberId, id: MemberId, voters: &[MemberId], now: Moment) {
    let Some(third) = voters.iter().find(|one| ![leader, id].contains(one)) else {
        return;
    };
    for (from, to) in links_to_cut(world, Kind::Isolation, *third) {
        world.network.cut(from, to);
    }
    world.faults.damaged = Some(Damaged::new(id, Phase::Preparing));
    let at = now + world.faults.random.between(100 * MS, 900 * MS);
    world.faults.disturbed(at + 6 * SECOND);
    let also = *world.faults.random.pick(&[Also::Leader, Also::All]);
    world.faults.plan(at, Event::LoseEnd { member: id, also });
}

/// What was prepared happens: the links are back, and the member loses the end of its log, maybe
/// while others are away.
pub(super) fn lose_prepared_end(world: &mut World, id: MemberId, also: Also) {
    world.faults.damaged = None;
    world.network.heal_all();
    let now = world.time.now_ns();
    let back_at = now + world.faults.random.between(30 * MS, 200 * MS);
    let others = match also {
        Also::Nobody => Vec::new(),
        Also::Leader => leader(world).into_iter().collect(),
        Also::All => voters(world),
    };
    for other in others {
        if other != id && world.is_alive(other) {
            world.die(other, false);
            let late = now + world.faults.random.between(200 * MS, 7 * SECOND);
            world.faults.disturbed(late);
            world.faults.plan(late, Event::Restart(other));
        }
    }
    if world.is_alive(id) {
        lose_end(world, id, back_at);
    }
}

fn lose_end(world: &mut World, id: MemberId, back_at: Moment) {
    world.die(id, false);
    world.faults.disturbed(back_at);
    world.faults.plan(back_at, Event::Restart(id));
    if world.faults.random.chance(300) {
        // Nothing but the mark tells the next start of what was lost.
        let again = back_at + world.faults.random.between(10 * MS, 500 * MS);
        world.faults.plan(again, Event::Die(Some(id)));
    }
    ruin(world, id, Damage::EndLost, Phase::Lacking);
}

fn ruin(world: &mut World, id: MemberId, damage: Damage, phase: Phase) {
    let seed = world.faults.random.next();
    if world.damage_log(id, damage, seed) {
        world.faults.damaged = Some(Damaged::new(id, phase));
    }
}

/// No fault is under way, and none is planned.
fn is_calm(world: &World, now: Moment) -> bool {
    let harmless = |event: &Event| matches!(event, Event::InjectFault | Event::CheckMembership);
    world.faults.agenda.values().all(harmless)
        && world.network.is_sound()
        && !is_any_in_doubt(world)
        && world.conditions.values().all(|condition| {
            !condition.paused && condition.stalled_until <= now && condition.may_fail_until <= now
        })
}

fn is_any_in_doubt(world: &World) -> bool {
    let in_doubt = |id: MemberId| world.process(id).is_some_and(|p| p.raft.status().in_doubt);
    world.members.keys().copied().any(in_doubt)
}

fn voters(world: &World) -> Vec<MemberId> {
    let Some((_, status)) = newest_status(world) else {
        return Vec::new();
    };
    status.voters().map(|member| MemberId(member.id)).collect()
}

/// Checks whether the member has again what it lacks, and does the operator's work.
pub(super) fn advance_repair(world: &mut World) {
    let Some(damaged) = world.faults.damaged.take() else {
        return;
    };
    world.faults.damaged = match damaged.phase {
        Phase::Preparing | Phase::Refusing => Some(damaged),
        Phase::Lacking => still_lacks(world, damaged),
        Phase::Replacing => replace(world, damaged),
    };
}

fn still_lacks(world: &World, mut damaged: Damaged) -> Option<Damaged> {
    let status = |id| world.process(id).map(|process| process.raft.status());
    let (Some(own), Some(leader)) = (status(damaged.member), leader(world).and_then(status)) else {
        return Some(damaged);
    };
    if own.term != leader.term || own.leader == 0 || own.is_leader {
        return Some(damaged);
    }
    // Nothing that anybody had acknowledged by then is behind this entry.
    let all = *damaged.all.get_or_insert(leader.last_index);
    (own.commit_index < all || is_any_in_doubt(world)).then_some(damaged)
}

/// The operator removes the member and adds another.
fn replace(world: &mut World, mut damaged: Damaged) -> Option<Damaged> {
    let now = world.time.now_ns();
    // Operators stop with the faults.
    let waits = damaged.asked_at.is_some_and(|at| now < at + REPEAT_NS);
    if waits || now >= world.faults.until {
        return Some(damaged);
    }
    let Some((_, status)) = newest_status(world) else {
        return Some(damaged);
    };
    let alive = world.alive();
    let via = *world.faults.random.pick(&alive);
    damaged.asked_at = Some(now);
    if status.is_member(damaged.member) {
        operate(world, via, damaged.member, Change::Remove(Nothing {}));
        return Some(damaged);
    }
    let url = damaged.url.get_or_insert_with(|| world.new_url()).clone();
    let is_it = |raft: &RaftAttributes| raft.peer_urls.contains(&url);
    let mut members = status.members.iter();
    if members.any(|member| member.raft_attributes.as_ref().is_some_and(is_it)) {
        probe::reached(CoveragePoint::DamagedMemberReplaced);
        return None;
    }
    let raft = RaftAttributes {
        peer_urls: vec![url],
        is_learner: false,
    };
    operate(world, via, MemberId(0), Change::Add(raft));
    Some(damaged)
}
