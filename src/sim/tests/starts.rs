//! Starts that are interrupted, on a simulated disk.

use crate::proto::membershippb::{Attributes, Member, RaftAttributes};
use crate::server::Error;
use crate::server::member_dir::{MemberDir, MemberIdentity};
use crate::server::restore::{
    FOUNDING_ENTRY, Founding, Joining, RestoreOptions, Restored, found, join, restart,
};
use crate::sim::states::{SimDisk, SimDisks};
use crate::transport::Peer;
use crate::types::{ClusterId, MemberId};

const IDENTITY: MemberIdentity = MemberIdentity {
    cluster: ClusterId(0xc),
    member: MemberId(0xa),
};
const OPTIONS: RestoreOptions = RestoreOptions {
    segment_bytes: 16 << 10,
    sync: true,
    election_ticks: 10,
    pre_vote: true,
    election_seed: 1,
    new_incarnation: 2,
    recent_entries: 10,
};

fn founder(dir: &dyn MemberDir) -> Result<Restored, Error> {
    let member = |id: u64| Member {
        id,
        raft_attributes: Some(RaftAttributes {
            peer_urls: vec![format!("http://10.0.0.{id}:2380")],
            is_learner: false,
        }),
        member_attributes: Some(Attributes::default()),
    };
    let new = Founding {
        identity: IDENTITY,
        members: vec![member(0xa), member(0xb)],
    };
    found(dir, new, &OPTIONS)
}

fn joiner(dir: &dyn MemberDir) -> Result<Restored, Error> {
    let peer = Peer {
        member: MemberId(0xb),
        urls: vec!["http://10.0.0.11:2380".to_owned()],
    };
    let joining = Joining {
        identity: IDENTITY,
        peers: vec![peer],
    };
    join(dir, joining, &OPTIONS)
}

fn start(dir: &dyn MemberDir, make: Make) -> Result<Restored, Error> {
    match dir.identity()? {
        Some(identity) => restart(dir, identity, &OPTIONS),
        None => make(dir),
    }
}

type Make = fn(&dyn MemberDir) -> Result<Restored, Error>;

/// The result that a start has to reach, however often it was interrupted before.
fn check(restored: &Restored, applied: u64) {
    assert_eq!(restored.identity, IDENTITY);
    assert_eq!(restored.incarnation, OPTIONS.new_incarnation);
    assert_eq!(restored.machine.applied_index(), applied);
    assert_eq!(restored.log.last_index(), applied);
    let members = restored.machine.members().iter().count();
    assert_eq!(members as u64, 2 * applied);
    let peers: Vec<_> = restored.peers.iter().map(|peer| peer.member.0).collect();
    assert_eq!(peers, [0xb]);
}

/// Interrupts the creation of a member at every operation on its directory and on the raft log's
/// files, with and without a loss of power.
#[test]
fn making_a_member_can_be_cut_at_any_operation() {
    let cases: [(Make, u64); 2] = [(founder, FOUNDING_ENTRY.index), (joiner, 0)];
    let cuts: [fn(&SimDisk, u64); 2] = [
        |disk, at| disk.stop_after(at),
        |disk, at| disk.log().stop_at(at + 1),
    ];
    for (make, applied) in cases {
        for (cut, power) in cuts.iter().flat_map(|cut| [(cut, true), (cut, false)]) {
            let mut at = 0;
            loop {
                let disk = SimDisk::new(SimDisks::new(), IDENTITY.member);
                cut(&disk, at);
                let made = make(&disk.dir());
                let finished = made.is_ok();
                drop(made);
                match power {
                    true => disk.kill(),
                    false => disk.crash(at),
                }
                let restored = start(&disk.dir(), make).expect("starts");
                assert_eq!(restored.existed, finished, "cut at {at}");
                check(&restored, applied);
                if finished {
                    break;
                }
                at += 1;
            }
            assert!(at > 4, "only {at} operations");
        }
    }
}
