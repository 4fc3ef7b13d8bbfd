//! Chooses the members and links that a fault affects.

use std::collections::BTreeSet;

use super::plan::Kind;
use crate::sim::world::World;
use crate::types::MemberId;

pub fn leader(world: &World) -> Option<MemberId> {
    let is_leader = |id: &MemberId| {
        let process = world.process(*id);
        process.is_some_and(|process| process.raft.status().is_leader)
    };
    world.alive().into_iter().find(is_leader)
}

pub fn links_to_cut(world: &mut World, kind: Kind, id: MemberId) -> Vec<(MemberId, MemberId)> {
    let random = &mut world.faults.random;
    let all: Vec<MemberId> = world.members.keys().copied().collect();
    let side: BTreeSet<MemberId> = match kind {
        Kind::Partition => all.iter().copied().filter(|_| random.chance(500)).collect(),
        _ => BTreeSet::from([id]),
    };
    let (out, back) = match kind {
        Kind::OneWay => {
            let out = random.chance(500);
            (out, !out)
        }
        _ => (true, true),
    };
    let mut links = Vec::new();
    for a in side.iter().copied() {
        for b in all.iter().copied().filter(|b| !side.contains(b)) {
            if out {
                links.push((a, b));
            }
            if back {
                links.push((b, a));
            }
        }
    }
    links
}
