//! Named scenarios of clusters with one fault each. `Scenario::passes` checks at the end what has
//! to hold in every world; the scenario itself asserts what its name says.

use std::time::Duration;

use super::scenario::{Scenario, applied_index, calm, commit_index, last_index, leader, term};
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::etcdserverpb::{LeaseGrantRequest, PutRequest};
use crate::proto::etchedpeer::{Nothing, member_change::Change};
use crate::proto::membershippb::RaftAttributes;
use crate::proto::v3lockpb::LockRequest;
use crate::sim::call::{Ask, LockAnswer};
use crate::sim::history::{Answer, ClientRequest, Outcome};
use crate::sim::member::{ELECTION_TIMEOUT, SimConfig, TICK};
use crate::sim::workload::{get, put};
use crate::sim::world::World;
use crate::types::MemberId;

fn three() -> Scenario {
    Scenario::of(3, calm())
}

/// Members that are away for a while find the log truncated and have to be sent a state.
fn forgetful() -> SimConfig {
    SimConfig {
        catch_up_entries: 5,
        snapshot_count: 2,
        ..calm()
    }
}

/// One member applies much more slowly than another.
fn uneven() -> SimConfig {
    SimConfig {
        slow_apply_per_mille: 1_000,
        ..calm()
    }
}

/// The member that was added.
fn added(world: &World) -> Option<MemberId> {
    let joined = world.members.keys().find(|id| !world.founders.contains(id));
    joined.copied()
}

fn add(scenario: &mut Scenario, is_learner: bool) -> MemberId {
    let via = scenario.leader();
    let raft = RaftAttributes {
        peer_urls: vec![scenario.world.new_url()],
        is_learner,
    };
    let call = scenario.change(via, MemberId(0), Change::Add(raft));
    scenario.answer(&call);
    scenario.until("a machine for the new member", |world| {
        added(world).is_some_and(|id| world.is_alive(id))
    });
    added(&scenario.world).expect("a member")
}

fn caught_up(world: &World, id: MemberId) -> bool {
    world.is_alive(id) && world.is_even()
}

// The start.

/// How long a cluster whose members were all killed is without a leader when they start again.
fn time_to_lead_again(initial_election_tick_advance: bool) -> Duration {
    let config = SimConfig {
        initial_election_tick_advance,
        ..calm()
    };
    let mut world = Scenario::of(3, config);
    let members = world.world.alive();
    for member in &members {
        world.kill(*member);
    }
    for member in members {
        world.start(member);
    }
    let started_ns = world.world.time.now_ns();
    world.until("a leader", |world| leader(world).is_some());
    let took = Duration::from_nanos(world.world.time.now_ns() - started_ns);
    world.passes();
    took
}

#[test]
fn members_that_start_together_elect_a_leader_before_an_election_timeout_is_over() {
    assert!(time_to_lead_again(true) < ELECTION_TIMEOUT);
    assert!(time_to_lead_again(false) > ELECTION_TIMEOUT);
}

// The leader dies.

#[test]
fn a_leader_that_dies_before_its_entry_leaves_takes_the_write_along() {
    let mut world = three();
    let first = world.leader();
    world.isolate(first);
    let call = world.put(first, "a");
    let last = last_index(&world.world, first);
    world.until("proposed", |world| last_index(world, first) > last);
    world.kill(first);
    world.heal_links();
    let second = world.next_leader(first);
    world.start(first);
    assert_eq!(world.outcome(&call), Outcome::Unknown);
    assert_eq!(world.read(second, "a"), None);
    assert_eq!(world.read(first, "a"), None);
    world.passes();
}

#[test]
fn a_leader_that_dies_between_commit_and_answer_leaves_a_write_that_is_there() {
    let mut world = three();
    let first = world.leader();
    let value = world.value();
    let call = world.put(first, "a");
    let applied = applied_index(&world.world, first);
    world.until("committed", |world| commit_index(world, first) > applied);
    assert_eq!(applied_index(&world.world, first), applied);
    world.kill(first);
    assert_eq!(world.outcome(&call), Outcome::Unknown);
    let second = world.next_leader(first);
    assert_eq!(world.read(second, "a"), Some(value));
    world.passes();
}

#[test]
fn an_entry_that_never_was_on_its_leaders_disk_is_there_where_a_quorum_has_it() {
    let mut world = three();
    let first = world.leader();
    world.stall_disk(first, 600);
    let value = world.value();
    let call = world.put(first, "a");
    let last = last_index(&world.world, first);
    world.until("committed by the others", |world| {
        commit_index(world, first) > last
    });
    world.lose_power(first);
    assert_eq!(world.outcome(&call), Outcome::Unknown);
    let second = world.next_leader(first);
    assert_eq!(world.read(second, "a"), Some(value));
    world.passes();
}

#[test]
fn a_follower_that_was_asked_answers_although_the_leader_died() {
    let mut world = three();
    let first = world.leader();
    let asked = world.followers()[0];
    let value = world.value();
    let call = world.put(asked, "a");
    let last = last_index(&world.world, first);
    world.until("proposed", |world| last_index(world, first) > last);
    world.kill(first);
    world.answer(&call);
    assert_eq!(world.read(asked, "a"), Some(value));
    world.passes();
}

#[test]
fn a_cluster_without_a_quorum_answers_nothing_and_comes_back() {
    let mut world = three();
    let first = world.leader();
    for follower in world.followers() {
        world.kill(follower);
    }
    let write = world.put(first, "a");
    let read = world.ask(first, ClientRequest::Range(get("a")));
    assert_eq!(world.outcome(&write), Outcome::Unknown);
    assert_eq!(world.outcome(&read), Outcome::Unknown);
    world.passes();
}

// The leader is partitioned.

#[test]
fn a_leader_that_is_cut_off_is_replaced_and_shows_no_stale_read() {
    let mut world = three();
    let first = world.leader();
    world.write(first, "a");
    world.isolate(first);
    let second = world.next_leader(first);
    // Much to apply, so that the read has to wait.
    for _ in 0..40 {
        world.write(second, "b");
    }
    let value = world.value();
    world.write(second, "a");
    let stale = world.ask(first, ClientRequest::Range(get("a")));
    world.run_for(2_000);
    assert_eq!(stale.outcome(), None);
    world.heal_links();
    assert_eq!(world.read(first, "a"), Some(value));
    world.passes();
}

#[test]
fn a_member_that_applies_slowly_shows_every_write_that_was_answered() {
    let mut world = Scenario::of(3, uneven());
    let (first, slow) = (world.leader(), world.followers()[0]);
    for number in 0..20 {
        let key = format!("a{number}");
        let value = world.value();
        world.write(first, &key);
        assert_eq!(world.read(slow, &key), Some(value));
    }
    world.passes();
}

#[test]
fn a_leader_that_is_no_longer_heard_is_replaced() {
    let mut world = three();
    let first = world.leader();
    world.mute(first);
    let second = world.next_leader(first);
    world.write(second, "a");
    world.passes();
}

#[test]
fn a_leader_that_hears_nobody_steps_down() {
    let mut world = three();
    let first = world.leader();
    world.deafen(first);
    world.until("stepped down", |world| leader(world) != Some(first));
    let second = world.next_leader(first);
    world.write(second, "a");
    world.passes();
}

#[test]
fn a_member_that_comes_back_unseats_nobody() {
    let mut world = three();
    let first = world.leader();
    let away = world.followers()[0];
    let before = term(&world.world, first);
    world.isolate(away);
    world.run_for(5_000);
    world.heal_links();
    world.run_for(3_000);
    assert_eq!(world.leader(), first);
    assert_eq!(term(&world.world, first), before);
    assert_eq!(term(&world.world, away), before);
    world.passes();
}

#[test]
fn a_leader_that_stood_still_knows_that_it_may_have_been_replaced() {
    let mut world = three();
    let first = world.leader();
    world.write(first, "a");
    world.pause(first);
    world.isolate(first);
    let second = world.next_leader(first);
    let value = world.value();
    world.write(second, "a");
    world.resume(first);
    // It still believes that it leads, since it has not learned of a new leader.
    assert!(
        world
            .world
            .process(first)
            .expect("alive")
            .raft
            .status()
            .is_leader
    );
    let read = world.ask(first, ClientRequest::Range(get("a")));
    world.run_for(100);
    assert_eq!(read.outcome(), None);
    world.heal_links();
    assert_eq!(world.read(first, "a"), Some(value));
    world.passes();
}

// Disks.

#[test]
fn a_leader_whose_disk_stalls_hands_over_and_loses_no_write() {
    let mut world = three();
    let first = world.leader();
    world.stall_disk(first, 4_000);
    let call = world.put(first, "a");
    let second = world.next_leader(first);
    world.write(second, "b");
    world.answer(&call);
    let report = world.passes();
    assert!(
        report
            .paths
            .contains_key(&CoveragePoint::LeaderHandedOverForDisk)
    );
}

#[test]
fn a_leader_whose_disk_stalls_hands_over_to_a_member_that_is_alive() {
    for number in 0..4 {
        let mut world = Scenario::of(5, calm());
        let (first, dead) = (world.leader(), world.followers()[number]);
        world.kill(dead);
        world.run_for(2 * TICK.as_millis() as u64);
        world.stall_disk(first, 4_000);
        let call = world.put(first, "a");
        assert_ne!(world.next_leader(first), dead);
        world.answer(&call);
        let report = world.passes();
        assert!(
            report
                .paths
                .contains_key(&CoveragePoint::LeaderHandedOverForDisk)
        );
    }
}

#[test]
fn a_write_that_one_disk_of_three_has_is_not_answered() {
    let mut world = three();
    let (first, follower) = (world.leader(), world.followers()[0]);
    world.stall_disk(first, 5_000);
    world.stall_disk(follower, 5_000);
    let call = world.put(first, "a");
    world.run_for(800);
    assert_eq!(call.outcome(), None);
    for id in world.world.alive() {
        world.lose_power(id);
    }
    world.passes();
}

#[test]
fn a_follower_whose_disk_stalls_slows_nobody() {
    let mut world = three();
    let (first, follower) = (world.leader(), world.followers()[0]);
    let before = term(&world.world, first);
    world.stall_disk(follower, 8_000);
    for number in 0..20 {
        let start = world.world.time.now_ns();
        world.write(first, &format!("a{number}"));
        assert!(world.world.time.now_ns() < start + 300_000_000);
    }
    assert_eq!(term(&world.world, first), before);
    world.passes();
}

#[test]
fn what_was_answered_outlives_a_loss_of_power_everywhere() {
    let mut world = three();
    let first = world.leader();
    let mut values = Vec::new();
    for number in 0..40 {
        values.push(world.value());
        world.write(first, &format!("a{number}"));
    }
    let all = world.world.alive();
    for id in &all {
        world.lose_power(*id);
    }
    for id in &all {
        world.start(*id);
    }
    world.until("a leader", |world| leader(world).is_some());
    for (number, value) in values.into_iter().enumerate() {
        assert_eq!(world.read(all[0], &format!("a{number}")), Some(value));
    }
    world.passes();
}

#[test]
fn a_single_member_that_loses_power_keeps_what_it_answered() {
    let mut world = Scenario::of(1, calm());
    let only = world.leader();
    let value = world.value();
    world.write(only, "a");
    world.lose_power(only);
    world.start(only);
    assert_eq!(world.read(only, "a"), Some(value));
    world.passes();
}

#[test]
fn a_leader_whose_disk_fails_ends_and_the_others_continue() {
    let mut world = three();
    let first = world.leader();
    world.fail_next_sync(first);
    let call = world.put(first, "a");
    world.until("ended", |world| !world.is_alive(first));
    assert_eq!(world.outcome(&call), Outcome::Unknown);
    let second = world.next_leader(first);
    world.write(second, "b");
    world.passes();
}

// Transfers of states.

#[test]
fn a_member_that_was_away_for_long_comes_back_by_a_snapshot() {
    let mut world = Scenario::of(3, forgetful());
    let (first, away) = (world.leader(), world.followers()[0]);
    world.kill(away);
    for number in 0..60 {
        world.write(first, &format!("a{}", number % 7));
    }
    world.start(away);
    world.until("caught up", |world| caught_up(world, away));
    let value = world.value();
    world.write(away, "b");
    assert_eq!(world.read(away, "b"), Some(value));
    let report = world.passes();
    assert!(report.paths.contains_key(&CoveragePoint::SnapshotInstalled));
}

#[test]
fn a_member_that_dies_while_it_installs_a_snapshot_finds_it_when_it_starts() {
    let mut world = Scenario::of(3, forgetful());
    let (first, away) = (world.leader(), world.followers()[0]);
    world.kill(away);
    for number in 0..60 {
        world.write(first, &format!("a{}", number % 7));
    }
    world.start(away);
    world.until("about to reset its log", |world| {
        world
            .process(away)
            .is_some_and(|process| process.log_resets())
    });
    // The log has been reset, and the state not yet switched.
    world.until("reset its log", |world| {
        world
            .process(away)
            .is_some_and(|process| !process.log_resets())
    });
    world.kill(away);
    world.start(away);
    world.until("caught up", |world| caught_up(world, away));
    let report = world.passes();
    assert!(
        report
            .paths
            .contains_key(&CoveragePoint::StateTakenUpAfterCrash)
    );
}

#[test]
fn a_member_whose_disk_fails_while_it_resets_its_log_for_a_snapshot_starts_again() {
    let mut world = Scenario::of(3, forgetful());
    let (first, away) = (world.leader(), world.followers()[0]);
    world.kill(away);
    for number in 0..60 {
        world.write(first, &format!("a{}", number % 7));
    }
    world.start(away);
    world.until("about to reset its log", |world| {
        world
            .process(away)
            .is_some_and(|process| process.log_resets())
    });
    // The reset has been written, and its sync fails: the log may begin after the old state.
    world.fail_next_sync(away);
    world.until("ended", |world| !world.is_alive(away));
    world.start(away);
    world.until("caught up", |world| caught_up(world, away));
    world.passes();
}

#[test]
fn a_proposal_that_a_snapshot_took_from_sight_has_an_unknown_outcome() {
    let mut world = Scenario::of(3, forgetful());
    let (first, asked) = (world.leader(), world.followers()[0]);
    // The leader receives, and its messages are lost.
    world.world.network.cut(first, asked);
    let value = world.value();
    let call = world.put(asked, "a");
    for number in 0..60 {
        world.write(first, &format!("b{}", number % 7));
    }
    world.heal_links();
    assert_eq!(world.outcome(&call), Outcome::Unknown);
    world.until("caught up", |world| caught_up(world, asked));
    assert_eq!(world.read(asked, "a"), Some(value));
    let report = world.passes();
    assert!(
        report
            .paths
            .contains_key(&CoveragePoint::ProposalsLostFromSight)
    );
}

// Members.

#[test]
fn a_leader_that_is_removed_hands_over_first() {
    let mut world = three();
    let (first, via) = (world.leader(), world.followers()[0]);
    let call = world.change(via, first, Change::Remove(Nothing {}));
    world.answer(&call);
    world.until("gone", |world| !world.is_alive(first));
    let second = world.leader();
    world.write(second, "a");
    let report = world.passes();
    assert!(
        report
            .paths
            .contains_key(&CoveragePoint::LeaderSteppedAside)
    );
}

#[test]
fn a_leader_that_is_removed_hands_over_to_a_member_that_is_alive() {
    for number in 0..4 {
        let mut world = Scenario::of(5, calm());
        let (first, dead) = (world.leader(), world.followers()[number]);
        world.kill(dead);
        world.run_for(2 * TICK.as_millis() as u64);
        let begun = world.world.time.now_ns();
        world.change(first, first, Change::Remove(Nothing {}));
        assert_ne!(world.next_leader(first), dead);
        let took = Duration::from_nanos(world.world.time.now_ns() - begun);
        assert!(took < ELECTION_TIMEOUT / 2, "{took:?}");
        world.until("gone", |world| !world.is_alive(first));
        world.passes();
    }
}

#[test]
fn a_member_that_was_removed_while_it_was_down_ends_when_it_comes_back() {
    let mut world = three();
    let (first, away) = (world.leader(), world.followers()[0]);
    world.kill(away);
    let call = world.change(first, away, Change::Remove(Nothing {}));
    world.answer(&call);
    world.run_for(1_000);
    world.start(away);
    world.until("gone", |world| !world.is_alive(away));
    world.write(first, "a");
    world.passes();
}

#[test]
fn a_member_that_joins_is_promoted_when_it_has_caught_up_and_then_counts() {
    let mut world = three();
    let first = world.leader();
    let joined = add(&mut world, true);
    world.until("caught up", |world| caught_up(world, joined));
    // The leader publishes how far its members are once a tick.
    world.run_for(1_000);
    let call = world.change(first, joined, Change::Promote(Nothing {}));
    world.answer(&call);
    // Three of four are a quorum, including the new member.
    let founder = world.followers().into_iter().find(|id| *id != joined);
    world.kill(founder.expect("a founder"));
    let value = world.value();
    world.write(joined, "a");
    assert_eq!(world.read(first, "a"), Some(value));
    let report = world.passes();
    assert!(report.paths.contains_key(&CoveragePoint::LearnerPromoted));
}

#[test]
fn a_sole_voter_with_a_learner_reads_what_the_learner_answered() {
    let mut world = Scenario::of(1, uneven());
    let voter = world.leader();
    let learner = add(&mut world, true);
    world.until("caught up", |world| caught_up(world, learner));
    for number in 0..100 {
        let key = format!("a{number}");
        let value = world.value();
        world.write(learner, &key);
        assert_eq!(world.read(voter, &key), Some(value));
    }
    world.passes();
}

// Leases.

#[test]
fn a_lease_lives_anew_under_the_next_leader_and_ends_then() {
    let mut world = three();
    let first = world.leader();
    let grant = LeaseGrantRequest { ttl: 5, id: 77 };
    let call = world.ask(first, ClientRequest::LeaseGrant(grant));
    world.answer(&call);
    let value = world.value();
    let attached = PutRequest {
        lease: 77,
        ..put("a", value.clone())
    };
    let call = world.ask(first, ClientRequest::Put(attached));
    world.answer(&call);
    world.run_for(4_000);
    world.kill(first);
    let second = world.next_leader(first);
    world.run_for(3_000);
    assert_eq!(world.read(second, "a"), Some(value));
    world.run_for(4_000);
    assert_eq!(world.read(second, "a"), None);
    let call = world.ask(
        second,
        ClientRequest::LeaseTimeToLive { id: 77, keys: true },
    );
    match world.answer(&call) {
        Answer::LeaseTimeToLive(lease) => assert_eq!(lease.ttl, -1),
        other => panic!("{other:?}"),
    }
    world.passes();
}

/// Each of these scenarios finds a deliberate defect: one that cannot fail shows nothing.
#[test]
fn defects_are_found() {
    let scenarios: [(Defect, fn()); 9] = [
        (
            Defect::AnswerBeforeSync,
            a_write_that_one_disk_of_three_has_is_not_answered,
        ),
        (
            Defect::LogUnsynced,
            what_was_answered_outlives_a_loss_of_power_everywhere,
        ),
        (
            Defect::ReadWithoutQuorum,
            a_leader_that_stood_still_knows_that_it_may_have_been_replaced,
        ),
        (
            Defect::LearnerOverlooked,
            a_sole_voter_with_a_learner_reads_what_the_learner_answered,
        ),
        (
            Defect::LeasesNotRestarted,
            a_lease_lives_anew_under_the_next_leader_and_ends_then,
        ),
        (
            Defect::AdoptBeforeReset,
            a_member_that_was_away_for_long_comes_back_by_a_snapshot,
        ),
        (
            Defect::ForwardedTwice,
            a_leader_whose_disk_stalls_hands_over_and_loses_no_write,
        ),
        (
            Defect::ForwardedTwice,
            a_follower_that_was_asked_answers_although_the_leader_died,
        ),
        (
            Defect::ReadBeforeApplied,
            a_member_that_applies_slowly_shows_every_write_that_was_answered,
        ),
    ];
    let mut missed = Vec::new();
    for (defect, scenario) in scenarios {
        probe::inject(Some(defect));
        let ended = std::panic::catch_unwind(scenario);
        probe::inject(None);
        if ended.is_ok() {
            missed.push(defect.name());
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

// Locks.

fn lock(lease: i64) -> ClientRequest {
    ClientRequest::Concurrency(Ask::Lock(LockRequest {
        name: "lock/x".into(),
        lease,
    }))
}

#[test]
fn a_lock_outlives_the_member_that_gave_it_and_its_next_is_served_through_another() {
    let config = SimConfig {
        has_locks: true,
        ..calm()
    };
    let mut world = Scenario::of(3, config);
    let first = world.leader();
    let follower = world.followers()[0];
    for (id, ttl) in [(7, 3), (8, 60)] {
        let grant = LeaseGrantRequest { ttl, id };
        let call = world.ask(first, ClientRequest::LeaseGrant(grant));
        world.answer(&call);
    }
    let held = world.ask(first, lock(7));
    world.answer(&held);
    let waiting = world.ask(follower, lock(8));
    world.run_for(1_000);
    assert_eq!(waiting.outcome(), None);
    world.kill(first);
    world.next_leader(first);
    world.run_for(1_000);
    assert_eq!(waiting.outcome(), None);
    // Nobody renews the lease of who holds it.
    let Answer::Concurrency(LockAnswer::Locked(locked)) = world.answer(&waiting) else {
        panic!("another answer");
    };
    assert_eq!(locked.key, "lock/x/8");
    world.start(first);
    world.passes();
}
