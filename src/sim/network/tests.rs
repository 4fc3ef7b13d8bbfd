//! Tests of the simulated network, with members that only record what they receive.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use parking_lot::Mutex;

use super::conditions::MAX_ON_A_LINK;
use super::member_network::MemberNetwork;
use super::*;
use crate::env::{Boxed, Executor};
use crate::error::Error;
use crate::proto::etchedpeer::peer_request::Request as Kind;
use crate::proto::etchedpeer::{
    Description, Forwarded, Nothing, PeerRequest, PeerResponse, peer_response,
};
use crate::raft::Message;
use crate::sim::clock::MemberClock;
use crate::storage::memory::Checkpoints;
use crate::storage::memory::MemoryEngine;
use crate::transport::{Network, Peer, PeerMessage, SnapshotDir};

const MS: u64 = 1_000_000;

#[derive(Clone, Debug, PartialEq)]
enum Note {
    /// A raft message, identified by its index.
    Raft(u64, u64),
    Forwarded(u64, u64),
    Refused(u64, u64, Error),
    Unreachable(u64),
    SnapshotSent(u64, bool),
    SnapshotCame(u64, bool),
    Request(Option<MemberId>),
    Removed,
}

/// A recording member.
struct Member {
    notes: Mutex<Vec<Note>>,
    removed: Mutex<Vec<MemberId>>,
    disks: Arc<SimDisks>,
    /// Whether it accepts states that are sent to it.
    takes: Mutex<bool>,
    /// Whether it answers requests, or never responds.
    answers: Mutex<bool>,
}

impl Member {
    fn note(&self, note: Note) {
        self.notes.lock().push(note);
    }

    fn take(&self) -> Vec<Note> {
        std::mem::take(&mut self.notes.lock())
    }
}

impl Inbound for Member {
    fn received(&self, from: MemberId, messages: Vec<PeerMessage>) {
        for message in messages {
            self.note(match message {
                PeerMessage::Raft(message) => Note::Raft(from.0, message.index),
                PeerMessage::Forwarded(message) => Note::Forwarded(from.0, message.request_id),
                PeerMessage::Refused {
                    request_id, error, ..
                } => Note::Refused(from.0, request_id, error),
            });
        }
    }

    fn unreachable(&self, peer: MemberId) {
        self.note(Note::Unreachable(peer.0));
    }

    fn snapshot_sent(&self, to: MemberId, taken: bool) {
        self.note(Note::SnapshotSent(to.0, taken));
    }

    fn snapshot_received(&self, message: Message, files: SnapshotDir) -> Boxed<Result<(), Error>> {
        let there = self.disks.get(files.path()).is_some();
        self.note(Note::SnapshotCame(message.from, there));
        let takes = *self.takes.lock();
        Box::pin(async move {
            let _files = files;
            takes.then_some(()).ok_or(Error::Corrupt)
        })
    }

    fn asked(
        &self,
        from: Option<MemberId>,
        _request: PeerRequest,
        _limit: Option<Duration>,
    ) -> Boxed<Result<PeerResponse, Error>> {
        self.note(Note::Request(from));
        let answers = *self.answers.lock();
        Box::pin(async move {
            if !answers {
                std::future::pending::<()>().await;
            }
            Ok(PeerResponse {
                response: Some(peer_response::Response::Description(Description::default())),
            })
        })
    }

    fn is_removed(&self, member: MemberId) -> bool {
        self.removed.lock().contains(&member)
    }

    fn needed_format(&self) -> u64 {
        0
    }

    fn removed(&self, _: MemberId) {
        self.note(Note::Removed);
    }

    fn is_listed(&self, _: MemberId) -> bool {
        true
    }

    fn is_leader(&self, _: MemberId) -> bool {
        false
    }
}

/// A member that running.
struct RunningMember {
    member: Arc<Member>,
    network: Arc<MemberNetwork>,
    tasks: Arc<Tasks>,
}

struct TestNetwork {
    time: Arc<Time>,
    disks: Arc<SimDisks>,
    network: Arc<SimNetwork>,
    random: Random,
    running: Vec<RunningMember>,
}

fn id(number: usize) -> MemberId {
    MemberId(number as u64)
}

impl TestNetwork {
    /// Members are numbered from 1; slot 0 is unused.
    fn new(seed: u64, members: usize) -> Self {
        let mut random = Random::new(seed);
        let (time, disks) = (Time::new(), SimDisks::new());
        let network = SimNetwork::new(time.clone(), disks.clone(), random.fork(1));
        let mut world = Self {
            time,
            disks,
            network,
            random,
            running: Vec::new(),
        };
        for number in 0..=members {
            let life = world.start(number, members);
            world.running.push(life);
        }
        world
    }

    fn start(&self, number: usize, members: usize) -> RunningMember {
        let offset = Arc::new(AtomicI64::new(0));
        let clock = Arc::new(MemberClock::new(self.time.clone(), 0, offset));
        let (tasks, member) = (Tasks::new(), self.member());
        let network = self.network.network(id(number), clock, tasks.clone());
        let others = (1..=members).filter(|other| number > 0 && *other != number);
        let peers = others.map(|other| Peer {
            member: id(other),
            urls: Vec::new(),
        });
        network.set_peers(peers.collect());
        network.attach(member.clone());
        RunningMember {
            member,
            network,
            tasks,
        }
    }

    fn member(&self) -> Arc<Member> {
        Arc::new(Member {
            notes: Mutex::default(),
            removed: Mutex::default(),
            disks: self.disks.clone(),
            takes: Mutex::new(true),
            answers: Mutex::new(true),
        })
    }

    fn send(&self, from: usize, to: usize, messages: Vec<PeerMessage>) {
        self.running[from].network.send(id(to), messages);
    }

    fn notes(&self, member: usize) -> Vec<Note> {
        self.running[member].member.take()
    }

    fn poll(&mut self) {
        for life in &self.running {
            while life.tasks.poll_one(&mut self.random) {}
        }
    }

    /// Runs until nothing is in flight, within a time limit.
    fn run_for(&mut self, ns: u64) {
        let end = self.time.now_ns() + ns;
        loop {
            self.poll();
            let next = [self.time.next_timer(), self.network.next_delivery()];
            let Some(next) = next.into_iter().flatten().min().filter(|at| *at <= end) else {
                self.time.advance_to(end);
                return;
            };
            self.time.advance_to(next);
            self.poll();
            self.network.deliver_due(next, &mut self.random);
        }
    }

    /// Sends a request, and returns its outcome and the time.
    fn ask(&self, from: usize, to: usize, kind: Option<Kind>) -> Asking {
        let asking = Asking::default();
        let (network, noted) = (self.running[from].network.clone(), asking.clone());
        let (time, begun) = (self.time.clone(), self.time.now_ns());
        self.running[from].tasks.spawn(Box::pin(async move {
            let request = PeerRequest { request: kind };
            let answer = network.ask(id(to), request, LIMIT).await;
            *noted.lock() = Some((answer.map(drop), time.now_ns() - begun));
        }));
        asking
    }

    fn snapshot(&self, from: usize, to: usize) {
        let name = format!("sending-{}", self.disks.list(Path::new("")).len());
        let path = SimDisks::root(id(from)).join(name);
        self.disks
            .keep(&path, MemoryEngine::new())
            .expect("a new directory");
        let files = Arc::new(self.disks.lend(path));
        let message = Message {
            from: from as u64,
            to: to as u64,
            ..Default::default()
        };
        self.running[from].network.send_snapshot(message, files);
    }
}

type Asking = Arc<Mutex<Option<(Result<(), Error>, u64)>>>;

const LIMIT: Duration = Duration::from_secs(5);
const LIMIT_NS: u64 = 5_000 * MS;

fn raft(to: usize, index: u64) -> PeerMessage {
    PeerMessage::Raft(Message {
        to: to as u64,
        index,
        ..Default::default()
    })
}

fn forwarded(request_id: u64) -> PeerMessage {
    PeerMessage::Forwarded(Forwarded {
        request_id,
        ..Default::default()
    })
}

fn refused(request_id: u64) -> PeerMessage {
    PeerMessage::Refused {
        request_id,
        term: 1,
        error: Error::NotLeader,
    }
}

fn count(notes: &[Note], like: impl Fn(&Note) -> bool) -> usize {
    notes.iter().filter(|note| like(note)).count()
}

#[test]
fn in_fine_weather_everything_arrives_once_and_not_in_order() {
    let mut world = TestNetwork::new(1, 2);
    for index in 0..200 {
        world.send(1, 2, vec![raft(2, index), forwarded(index), refused(index)]);
    }
    assert!(world.network.in_flight() >= 200);
    world.run_for(MS);
    let notes = world.notes(2);
    assert_eq!((notes.len(), world.network.in_flight()), (600, 0));
    let order: Vec<u64> = notes
        .iter()
        .filter_map(|note| match note {
            Note::Raft(1, index) => Some(*index),
            _ => None,
        })
        .collect();
    assert!(!order.is_sorted(), "they overtake each other");
    for index in 0..200 {
        for expected in [
            Note::Raft(1, index),
            Note::Forwarded(1, index),
            Note::Refused(1, index, Error::NotLeader),
        ] {
            assert_eq!(count(&notes, |note| *note == expected), 1);
        }
    }
    assert_eq!(world.notes(1), []);
    assert_eq!(world.network.counts().delivered, 600);
}

#[test]
fn the_same_seed_is_the_same_network() {
    let run = |seed| {
        let mut world = TestNetwork::new(seed, 3);
        world.network.set_conditions(100, 100, 100);
        for index in 0..300 {
            world.send(1, 2, vec![raft(2, index), forwarded(index)]);
            world.run_for(MS / 10);
        }
        world.run_for(10_000 * MS);
        (world.notes(1), world.notes(2), world.network.counts())
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn bad_weather_loses_repeats_and_delays_but_repeats_no_proposal() {
    let mut world = TestNetwork::new(2, 3);
    world.network.set_conditions(100, 200, 100);
    for index in 0..1_000 {
        for to in [2, 3] {
            world.send(1, to, vec![raft(to, index), forwarded(index)]);
        }
        world.run_for(MS);
    }
    world.run_for(10_000 * MS);
    let reported = world.notes(1);
    let notes = [world.notes(2), world.notes(3)];
    let mut losses = Vec::new();
    for (at, notes) in notes.iter().enumerate() {
        let peer = at as u64 + 2;
        let mut rafts = 0;
        for index in 0..1_000 {
            rafts += count(notes, |note| *note == Note::Raft(1, index)).min(1);
            let proposals = count(notes, |note| *note == Note::Forwarded(1, index));
            let refusal = Note::Refused(peer, index, Error::NoLeader);
            let refusals = count(&reported, |note| *note == refusal);
            // The sender may propose it again after this.
            assert!(proposals + refusals <= 1, "{index}");
        }
        assert!(count(notes, |note| matches!(note, Note::Raft(..))) > rafts + 50);
        losses.push(1_000 - rafts);
    }
    assert_ne!(losses[0], losses[1], "each link has a loss of its own");
    let counts = world.network.counts();
    let count_of = |like: fn(&Note) -> bool| count(&reported, like) as u64;
    assert_eq!(
        count_of(|note| matches!(note, Note::Refused(..))),
        counts.refused
    );
    assert_eq!(
        count_of(|note| matches!(note, Note::Unreachable(_))),
        counts.reported_unreachable
    );
    for number in [
        counts.lost,
        counts.duplicated,
        counts.delayed_long,
        counts.refused,
        counts.reported_unreachable,
    ] {
        assert!(number > 10, "{counts:?}");
    }
}

#[test]
fn a_link_may_be_cut_in_one_direction() {
    let mut world = TestNetwork::new(3, 3);
    let active =
        |world: &TestNetwork, one: usize, other| world.running[one].network.active_since(id(other));
    let since = active(&world, 1, 2);
    assert!(since.is_some() && active(&world, 2, 1).is_some());
    world.run_for(50 * MS);
    world.send(1, 2, vec![raft(2, 0)]);
    world.network.cut(id(1), id(2));
    world.send(1, 2, vec![raft(2, 1)]);
    world.send(2, 1, vec![raft(1, 2)]);
    world.send(1, 3, vec![raft(3, 3)]);
    assert!(world.network.is_cut(id(1), id(2)) && !world.network.is_cut(id(2), id(1)));
    assert_eq!((active(&world, 1, 2), active(&world, 2, 1)), (None, None));
    assert!(active(&world, 1, 3).is_some());
    world.run_for(1_000 * MS);
    assert_eq!(world.notes(2), [], "neither what flew nor what came later");
    let notes = world.notes(1);
    assert_eq!(count(&notes, |note| *note == Note::Raft(2, 2)), 1);
    assert_eq!(world.notes(3), [Note::Raft(1, 3)]);
    assert_eq!(world.network.counts().lost, 2);
    world.network.heal(id(1), id(2));
    world.send(1, 2, vec![raft(2, 4)]);
    world.run_for(MS);
    assert_eq!(world.notes(2), [Note::Raft(1, 4)]);
    assert!(active(&world, 1, 2) > since, "connected again");
    world.network.cut(id(1), id(3));
    world.network.heal_all();
    assert!(!world.network.is_cut(id(1), id(3)));
}

#[test]
fn who_is_cut_off_is_noticed_now_and_then() {
    let noticed: usize = (0..20)
        .map(|seed| {
            let mut world = TestNetwork::new(seed, 2);
            world.network.cut(id(1), id(2));
            world.network.cut(id(2), id(1));
            world.run_for(1_000 * MS);
            count(&world.notes(1), |note| *note == Note::Unreachable(2))
        })
        .sum();
    assert!((3..18).contains(&noticed), "{noticed}");
}

#[test]
fn what_was_sent_to_one_life_does_not_reach_the_next() {
    let mut world = TestNetwork::new(4, 2);
    world.send(1, 2, vec![raft(2, 1), forwarded(1)]);
    world.send(2, 1, vec![raft(1, 2)]);
    let old = world.running[2].network.clone();
    world.network.detach(id(2));
    assert_eq!(world.running[1].network.active_since(id(2)), None);
    world.running[2] = world.start(2, 2);
    old.send(id(1), vec![raft(1, 3)]);
    assert_eq!(old.active_since(id(1)), None);
    world.run_for(1_000 * MS);
    assert_eq!(world.notes(2), []);
    let notes = world.notes(1);
    assert_eq!(count(&notes, |note| *note == Note::Raft(2, 2)), 1);
    assert_eq!(
        count(&notes, |note| *note == Note::Raft(2, 3)),
        0,
        "it died"
    );
    world.send(1, 2, vec![raft(2, 4)]);
    world.run_for(MS);
    assert_eq!(world.notes(2), [Note::Raft(1, 4)]);
}

#[test]
fn who_is_no_peer_is_refused_at_once() {
    let world = TestNetwork::new(5, 2);
    world.send(1, 3, vec![forwarded(1)]);
    assert_eq!(world.notes(1), [Note::Refused(3, 1, Error::NoLeader)]);
    world.send(1, 3, vec![raft(3, 1), forwarded(2)]);
    let expected = [Note::Unreachable(3), Note::Refused(3, 2, Error::NoLeader)];
    assert_eq!(world.notes(1), expected);
    assert_eq!(world.network.in_flight(), 0);
}

#[test]
fn a_link_holds_only_so_much() {
    let mut world = TestNetwork::new(6, 2);
    for index in 0..2 * MAX_ON_A_LINK as u64 {
        world.send(1, 2, vec![forwarded(index)]);
    }
    let notes = world.notes(1);
    assert_eq!(world.network.in_flight(), MAX_ON_A_LINK);
    assert_eq!(world.network.most_in_flight(), MAX_ON_A_LINK);
    assert_eq!(notes.len(), MAX_ON_A_LINK);
    let full = Note::Refused(2, MAX_ON_A_LINK as u64, Error::TooManyRequests);
    assert_eq!(notes[0], full);
    world.run_for(MS);
    assert_eq!(world.notes(2).len(), MAX_ON_A_LINK);
    world.send(1, 2, vec![forwarded(1)]);
    world.run_for(MS);
    assert_eq!(world.notes(2).len(), 1, "there is room again");
}

#[test]
fn a_suspended_member_gets_it_all_when_it_continues() {
    let mut world = TestNetwork::new(7, 2);
    world.network.hold(id(2), true);
    world.network.hold(id(2), true);
    for index in 0..50 {
        world.send(1, 2, vec![raft(2, index)]);
    }
    world.run_for(1_000 * MS);
    assert_eq!(
        (
            world.notes(2).len(),
            world.network.next_delivery().is_some()
        ),
        (0, true)
    );
    assert!(world.running[1].network.active_since(id(2)).is_some());
    world.run_for(2_000 * MS);
    assert_eq!(
        world.running[1].network.active_since(id(2)),
        None,
        "found silent"
    );
    assert_eq!(
        (world.network.next_delivery(), world.network.in_flight()),
        (None, 50)
    );
    world.network.hold(id(2), false);
    assert!(world.running[1].network.active_since(id(2)).is_some());
    world.run_for(MS);
    assert_eq!(world.notes(2).len(), 50);
    // A dead process receives nothing, paused or not.
    world.network.hold(id(2), true);
    world.send(1, 2, vec![raft(2, 1), forwarded(3)]);
    world.run_for(MS);
    world.network.detach(id(2));
    world.running[2] = world.start(2, 2);
    world.run_for(5_000 * MS);
    assert_eq!((world.notes(2), world.network.in_flight()), (Vec::new(), 0));
}

#[test]
fn a_removed_member_learns_of_it() {
    let mut world = TestNetwork::new(8, 2);
    world.running[2].member.removed.lock().push(id(1));
    for index in 0..30 {
        world.send(1, 2, vec![raft(2, index)]);
    }
    let asking = world.ask(1, 2, None);
    let describing = world.ask(1, 2, Some(Kind::Describe(Nothing {})));
    world.snapshot(1, 2);
    world.run_for(10_000 * MS);
    assert_eq!(world.notes(2), [Note::Request(None)]);
    let outcome = |asking: &Asking| asking.lock().take().map(|(answer, _)| answer);
    assert_eq!(outcome(&asking), Some(Err(Error::NoLeader)));
    assert_eq!(outcome(&describing), Some(Ok(())));
    let notes = world.notes(1);
    assert!(count(&notes, |note| *note == Note::Removed) > 3);
    assert_eq!(
        count(&notes, |note| *note == Note::SnapshotSent(2, false)),
        1
    );
}

#[test]
fn peer_rpcs_are_answered() {
    let mut world = TestNetwork::new(9, 2);
    let asking = world.ask(1, 2, None);
    world.run_for(10 * MS);
    let (answer, took) = asking.lock().take().expect("an answer");
    assert_eq!(answer, Ok(()));
    assert!((100_000..MS).contains(&took), "{took}");
    assert_eq!(world.notes(2), [Note::Request(Some(id(1)))]);
    let nobody = world.ask(1, 9, None);
    world.run_for(0);
    assert_eq!(*nobody.lock(), Some((Err(Error::NoLeader), 0)));
}

/// The errors of failed requests, and whether each took the whole timeout.
fn failures(
    prepare: impl Fn(&mut TestNetwork),
    interfere: impl Fn(&mut TestNetwork),
) -> Vec<(Error, bool)> {
    let mut seen = Vec::new();
    for seed in 0..40 {
        let mut world = TestNetwork::new(seed, 2);
        prepare(&mut world);
        let asking = world.ask(1, 2, None);
        world.run_for(MS);
        interfere(&mut world);
        world.run_for(LIMIT_NS);
        let (answer, took) = asking.lock().take().expect("an end within the limit");
        let error = answer.expect_err("no answer");
        let failure = (error, took == LIMIT_NS);
        if !seen.contains(&failure) {
            seen.push(failure);
        }
    }
    seen.sort_by_key(|(error, late)| (error.text(), *late));
    seen
}

#[test]
fn peer_rpcs_without_an_answer_end_as_they_should() {
    let broken = [(Error::Timeout, false), (Error::Timeout, true)];
    let unreachable = [
        (Error::NoLeader, false),
        (Error::NoLeader, true),
        (Error::Timeout, true),
    ];
    let sorted = |mut list: Vec<(Error, bool)>| {
        list.sort_by_key(|(error, late)| (error.text(), *late));
        list
    };
    let dead = failures(|world| world.network.detach(id(2)), |_| {});
    assert_eq!(dead, sorted(unreachable.to_vec()));
    let cut = failures(|world| world.network.cut(id(2), id(1)), |_| {});
    assert_eq!(cut, sorted(unreachable.to_vec()));
    let lost = failures(|world| world.network.set_conditions(1_000, 0, 0), |_| {});
    assert_eq!(lost, broken);
    let thinking = |world: &mut TestNetwork| *world.running[2].member.answers.lock() = false;
    assert_eq!(failures(thinking, |_| {}), [(Error::Timeout, true)]);
    let dies = failures(thinking, |world| {
        world.network.detach(id(2));
        world.running[2].tasks.clear();
    });
    assert_eq!(dies, broken);
}

#[test]
fn snapshots_come_whole_and_are_reported() {
    let mut world = TestNetwork::new(12, 3);
    world.snapshot(1, 2);
    // One at a time.
    world.snapshot(1, 2);
    world.run_for(5_000 * MS);
    assert_eq!(world.notes(2), [Note::SnapshotCame(1, true)]);
    let notes = [Note::SnapshotSent(2, false), Note::SnapshotSent(2, true)];
    assert_eq!(world.notes(1), notes);
    *world.running[3].member.takes.lock() = false;
    world.snapshot(1, 3);
    world.run_for(5_000 * MS);
    assert_eq!(world.notes(3), [Note::SnapshotCame(1, true)]);
    assert_eq!(world.notes(1), [Note::SnapshotSent(3, false)]);
    assert_eq!(
        world.disks.list(Path::new("")),
        Vec::<std::path::PathBuf>::new()
    );
    let counts = world.network.counts();
    let seen = (
        counts.snapshots_sent,
        counts.snapshots_arrived,
        counts.snapshots_cut,
    );
    assert_eq!(seen, (3, 2, 2));
}

#[test]
fn a_snapshot_that_fails_is_reported_once() {
    type Mishap = fn(&mut TestNetwork);
    let mishaps: [Mishap; 5] = [
        |world| world.network.detach(id(2)),
        |world| world.network.cut(id(1), id(2)),
        |world| world.network.set_conditions(1_000, 0, 0),
        |world| {
            world.network.hold(id(2), true);
            world.run_for(5_000 * MS);
            world.network.detach(id(2));
        },
        |world| {
            // It arrives, and its receiver dies.
            let mut next = world.network.next_delivery();
            while let Some(at) = next.filter(|_| world.running[2].tasks.is_empty()) {
                world.time.advance_to(at);
                world.network.deliver_due(at, &mut world.random);
                next = world.network.next_delivery();
            }
            world.network.detach(id(2));
            world.running[2].tasks.clear();
        },
    ];
    for (number, mishap) in mishaps.into_iter().enumerate() {
        for seed in 0..10 {
            let mut world = TestNetwork::new(seed, 2);
            if number == 2 {
                mishap(&mut world);
                world.snapshot(1, 2);
            } else {
                world.snapshot(1, 2);
                mishap(&mut world);
            }
            world.run_for(20_000 * MS);
            let notes = world.notes(1);
            let reports = count(&notes, |note| matches!(note, Note::SnapshotSent(..)));
            assert_eq!(reports, 1, "mishap {number}, seed {seed}");
            let taken = count(&notes, |note| *note == Note::SnapshotSent(2, true));
            assert!(taken == 0 || number == 2, "mishap {number}, seed {seed}");
            assert_eq!(world.disks.list(Path::new("")).len(), 0);
            assert_eq!(world.network.in_flight(), 0);
        }
    }
}

#[test]
fn a_sender_that_dies_takes_its_snapshot_along() {
    let mut world = TestNetwork::new(11, 2);
    world.snapshot(1, 2);
    world.network.detach(id(1));
    assert_eq!(world.disks.list(Path::new("")).len(), 0);
    world.running[1] = world.start(1, 2);
    world.snapshot(1, 2);
    world.run_for(5_000 * MS);
    let came = world.notes(2);
    assert_eq!(count(&came, |note| *note == Note::SnapshotCame(1, true)), 1);
    assert_eq!(world.notes(1), [Note::SnapshotSent(2, true)]);
}
