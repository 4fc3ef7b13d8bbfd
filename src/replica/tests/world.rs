//! The members, the network between them, and what may befall both.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message as _;

use crate::error::Error;
use crate::proto::etcdserverpb::{InternalRaftRequest, PutRequest, RequestHeader};
use crate::proto::etchedpeer::Forwarded;
use crate::proto::membershippb::{Member, RaftAttributes};
use crate::raft::replica::{self, conf_state_of, encode_hard_state};
use crate::raft::{Message, Persist, Replica};
use crate::replica::proposal::{Proposal, Proposed, Refusal, Reply};
use crate::replica::router::Router;
use crate::state::machine::Entry;
use crate::state::{Machine, Response};
use crate::storage::memory::MemoryEngine;
use crate::storage::raft_log::{Batch, EntryId, Files, MemoryDisk, Options, RaftLog};
use crate::types::MemberId;

const MARK: EntryId = EntryId { index: 1, term: 1 };
const LIMIT_TICKS: u64 = 70;

#[allow(clippy::large_enum_variant)] // A test has few messages under way.
enum Sent {
    Raft(Message),
    Forwarded(Forwarded),
    Refused(Refusal),
}

struct Job {
    entries: Vec<Entry>,
    replies: Vec<Option<Reply>>,
}

/// What a member loses when it dies is in here.
struct Life {
    router: Router,
    log: RaftLog,
    machine: Machine,
    persists: VecDeque<Persist>,
    jobs: VecDeque<Job>,
    reads: Vec<(u64, Read)>,
}

/// The least revision that the read has to show.
struct Read {
    at_least: i64,
}

struct Node {
    id: MemberId,
    disk: Arc<MemoryDisk>,
    engine: Arc<MemoryEngine>,
    life: Option<Life>,
}

#[derive(Default)]
struct Told {
    /// Revisions of writes that were answered, by the number in their key.
    acknowledged: BTreeMap<u64, i64>,
    /// Reads that a quorum confirmed, and by whom they were asked.
    confirmed: Vec<(usize, Read)>,
    newest: i64,
}

#[derive(Debug)]
pub struct Outcome {
    pub acknowledged: usize,
    pub reads: usize,
    pub leaders: usize,
}

pub struct World {
    random: u64,
    nodes: Vec<Node>,
    flying: Vec<(usize, usize, Sent)>,
    cut: BTreeSet<(usize, usize)>,
    told: Arc<Mutex<Told>>,
    proposed: u64,
    reads: usize,
    leaders: BTreeSet<(u64, u64)>,
}

impl World {
    pub fn new(seed: u64, members: usize) -> Self {
        let founders: Vec<Member> = (1..=members as u64)
            .map(|id| Member {
                id,
                raft_attributes: Some(RaftAttributes::default()),
                ..Default::default()
            })
            .collect();
        let mut world = Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            nodes: Vec::new(),
            flying: Vec::new(),
            cut: BTreeSet::new(),
            told: Arc::default(),
            proposed: 0,
            reads: 0,
            leaders: BTreeSet::new(),
        };
        for founder in &founders {
            let (disk, engine) = (Arc::new(MemoryDisk::new()), Arc::new(MemoryEngine::new()));
            let hard_state = encode_hard_state(MARK.term, MARK.index);
            let files: Arc<dyn Files> = disk.clone();
            let mut log = RaftLog::create(files, options(founder.id)).expect("a new log");
            log.reset(MARK, Some(&hard_state)).expect("resets");
            let mut machine = Machine::open(engine.clone()).expect("opens");
            machine
                .bootstrap(founders.clone(), MARK.index, MARK.term)
                .expect("writes");
            crate::storage::Engine::flush(engine.as_ref()).expect("flushes");
            world.nodes.push(Node {
                id: MemberId(founder.id),
                disk,
                engine,
                life: None,
            });
        }
        for at in 0..members {
            world.start(at);
        }
        world
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    fn start(&mut self, at: usize) {
        let question = self.below(u64::MAX);
        let node = &mut self.nodes[at];
        let files: Arc<dyn Files> = node.disk.clone();
        let (log, recovered) = RaftLog::open(files, options(node.id.0)).expect("a sound log");
        let machine = Machine::open(node.engine.clone()).expect("opens");
        let members = machine.members();
        let restored = replica::Restored {
            reader: log.reader(),
            hard_state: recovered.hard_state.map(Into::into),
            conf_state: conf_state_of(members.voters(), members.learners()),
            applied_index: machine.applied_index(),
        };
        let options = replica::Options {
            member: node.id,
            election_ticks: 10,
            heartbeat_ticks: 1,
            pre_vote: true,
            election_seed: question,
            recent_entries: crate::raft::log::RECENT_ENTRIES,
        };
        let replica = Replica::new(options, restored).expect("a replica");
        node.life = Some(Life {
            router: Router::new(node.id, replica, question, LIMIT_TICKS),
            log,
            machine,
            persists: VecDeque::new(),
            jobs: VecDeque::new(),
            reads: Vec::new(),
        });
        // As in a real start: what is committed is applied before the first tick.
        self.work(at);
        while self.persist(at) | self.apply(at) {}
    }

    /// One random thing.
    pub fn step(&mut self) {
        let at = self.below(self.nodes.len() as u64) as usize;
        match self.below(100) {
            0..30 => self.deliver(),
            30..50 => {
                self.persist(at);
            }
            50..65 => {
                self.apply(at);
            }
            65..80 => self.tick(at),
            80..90 => self.put(at),
            90..96 => self.read(at),
            96 => self.change_links(),
            97 => {
                if let Some(life) = &mut self.nodes[at].life {
                    life.router.hand_over();
                }
            }
            _ if self.below(6) == 0 => self.die_or_come_back(at),
            _ => {}
        }
        self.work(at);
        self.answer_reads(at);
    }

    fn change_links(&mut self) {
        if !self.cut.is_empty() {
            self.cut.clear();
            return;
        }
        let lonely = self.below(self.nodes.len() as u64) as usize;
        let one_way = self.below(3) == 0;
        for other in (0..self.nodes.len()).filter(|other| *other != lonely) {
            self.cut.insert((lonely, other));
            if !one_way {
                self.cut.insert((other, lonely));
            }
        }
    }

    fn die_or_come_back(&mut self, at: usize) {
        let power_fails = self.below(2) == 0;
        let seed = self.below(u64::MAX);
        let node = &mut self.nodes[at];
        if node.life.take().is_none() {
            return self.start(at);
        }
        match power_fails {
            true => node.disk.crash(seed),
            false => node.disk.kill(),
        }
        node.engine.crash();
    }

    fn tick(&mut self, at: usize) {
        if let Some(life) = &mut self.nodes[at].life {
            life.router.tick();
            let status = life.router.status();
            if status.is_leader {
                self.leaders.insert((status.term, status.leader));
            }
        }
    }

    fn deliver(&mut self) {
        if self.flying.is_empty() {
            return;
        }
        let which = self.below(self.flying.len() as u64) as usize;
        let (from, to, sent) = self.flying.swap_remove(which);
        let lost = self.below(30) == 0 || self.cut.contains(&(from, to));
        if lost {
            // Sometimes the sender's side knows that it was not even written.
            if let (Sent::Forwarded(message), Some(life), 0) =
                (&sent, &mut self.nodes[from].life, self.random % 2)
            {
                life.router
                    .refused(message.request_id, message.term, Error::NoLeader);
            }
            return;
        }
        let from = self.nodes[from].id;
        if let Some(life) = &mut self.nodes[to].life {
            match sent {
                Sent::Raft(message) => life.router.step(message),
                Sent::Forwarded(message) => life.router.propose_for(from, message),
                Sent::Refused(refusal) => {
                    life.router
                        .refused(refusal.request_id, refusal.term, refusal.error);
                }
            }
        }
        self.work(to);
    }

    fn put(&mut self, at: usize) {
        self.proposed += 1;
        let number = self.proposed;
        let request = InternalRaftRequest {
            header: Some(RequestHeader {
                id: number,
                ..Default::default()
            }),
            put: Some(PutRequest {
                key: format!("{number}").into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let told = self.told.clone();
        let encoded = request.encode_to_vec();
        let proposal = Proposal {
            what: Proposed::Request(Arc::new(request), encoded),
            fence_term: None,
            awaited_until: None,
            reply: Box::new(move |result| {
                if let Ok(Response::Put(put)) = result {
                    let revision = put.header.expect("a header").revision;
                    let mut told = told.lock();
                    assert_eq!(told.acknowledged.insert(number, revision), None);
                    told.newest = told.newest.max(revision);
                }
            }),
        };
        if let Some(life) = &mut self.nodes[at].life {
            life.router.propose(proposal);
        }
    }

    fn read(&mut self, at: usize) {
        let told = self.told.clone();
        let at_least = told.lock().newest;
        if let Some(life) = &mut self.nodes[at].life {
            life.router.read_index(Box::new(move |result| {
                if result.is_ok() {
                    told.lock().confirmed.push((at, Read { at_least }));
                }
            }));
        }
    }

    fn work(&mut self, at: usize) {
        let Some(life) = &mut self.nodes[at].life else {
            return;
        };
        while let Some(work) = life.router.work() {
            let index = |id: u64| id as usize - 1;
            for message in work.messages {
                self.flying
                    .push((at, index(message.to), Sent::Raft(message)));
            }
            for (to, message) in work.forwards {
                self.flying
                    .push((at, index(to.0), Sent::Forwarded(message)));
            }
            for refusal in work.refusals {
                let to = index(refusal.to.0);
                self.flying.push((at, to, Sent::Refused(refusal)));
            }
            life.persists.extend(work.persist);
            if !work.entries.is_empty() {
                life.jobs.push_back(Job {
                    entries: work.entries,
                    replies: work.replies,
                });
            }
            for (index, replies) in work.reads {
                for reply in replies {
                    // Called now to learn which read it is; answered when the index is applied.
                    reply(Ok(()));
                    let read = self.told.lock().confirmed.pop().expect("a read").1;
                    life.reads.push((index, read));
                }
            }
        }
    }

    fn answer_reads(&mut self, at: usize) {
        let Some(life) = &mut self.nodes[at].life else {
            return;
        };
        let (applied, head) = (life.machine.applied_index(), life.machine.head());
        life.reads.retain(|(index, read)| {
            if *index > applied {
                return true;
            }
            assert!(
                head >= read.at_least,
                "a read at revision {head} after a write at {} was answered",
                read.at_least
            );
            self.reads += 1;
            false
        });
    }

    /// Makes the first part durable; false where there is none.
    fn persist(&mut self, at: usize) -> bool {
        let Some(life) = &mut self.nodes[at].life else {
            return false;
        };
        let Some(persist) = life.persists.pop_front() else {
            return false;
        };
        let batch = Batch {
            entries: &persist.entries,
            hard_state: persist.hard_state.as_deref(),
        };
        life.log.append(batch).expect("appends");
        life.router.persisted(persist.number);
        for message in persist.messages {
            let to = message.to as usize - 1;
            self.flying.push((at, to, Sent::Raft(message)));
        }
        self.work(at);
        true
    }

    /// Applies the first group; false where there is none.
    fn apply(&mut self, at: usize) -> bool {
        let Some(life) = &mut self.nodes[at].life else {
            return false;
        };
        let Some(job) = life.jobs.pop_front() else {
            return false;
        };
        let group = life.machine.apply(job.entries).expect("applies");
        let index = life.machine.applied_index();
        life.router
            .applied(index, &group.member_changes)
            .expect("enacts");
        for (applied, reply) in group.applied.into_iter().zip(job.replies) {
            if let Some(reply) = reply {
                reply(applied.result);
            }
        }
        self.work(at);
        true
    }

    /// Heals everything, lets all catch up, and looks at what is there.
    pub fn settle(mut self) -> Outcome {
        self.cut.clear();
        for at in 0..self.nodes.len() {
            if self.nodes[at].life.is_none() {
                self.start(at);
            }
        }
        let mut quiet = 0;
        for _ in 0..20_000 {
            for at in 0..self.nodes.len() {
                self.tick(at);
                self.work(at);
                while self.persist(at) | self.apply(at) {}
                self.answer_reads(at);
            }
            for _ in 0..self.flying.len() {
                self.deliver();
            }
            quiet = if self.is_even() { quiet + 1 } else { 0 };
            if quiet > 2 * LIMIT_TICKS {
                break;
            }
        }
        assert!(self.is_even(), "the members do not come to rest");
        let told = self.told.lock();
        let mut states = Vec::new();
        for node in &self.nodes {
            let life = node.life.as_ref().expect("all live");
            let state: Vec<(u64, i64, i64)> = (1..=self.proposed)
                .filter_map(|number| {
                    let versions = crate::mvcc::read::Snapshot {
                        read: crate::storage::Engine::latest(node.engine.as_ref()),
                        head: life.machine.head(),
                        compacted: life.machine.compacted(),
                    };
                    let found = versions
                        .get(number.to_string().as_bytes(), life.machine.head())
                        .expect("reads")?;
                    Some((number, found.mod_revision.main, found.version))
                })
                .collect();
            states.push(state);
        }
        for (number, revision) in &told.acknowledged {
            let found = states[0].iter().find(|(found, ..)| found == number);
            let (_, at, _) = found.unwrap_or_else(|| panic!("write {number} was lost"));
            assert_eq!(at, revision, "write {number} was answered at {revision}");
        }
        for (number, _, version) in &states[0] {
            assert_eq!(*version, 1, "write {number} was applied {version} times");
        }
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]));
        Outcome {
            acknowledged: told.acknowledged.len(),
            reads: self.reads,
            leaders: self.leaders.len(),
        }
    }

    /// All members are equally far and nothing waits.
    fn is_even(&self) -> bool {
        let lives = self.nodes.iter().filter_map(|node| node.life.as_ref());
        let applied: BTreeSet<u64> = lives.map(|life| life.machine.applied_index()).collect();
        applied.len() == 1
    }
}

fn options(member: u64) -> Options {
    Options {
        segment_bytes: 64 << 10,
        cluster_id: 1,
        member_id: member,
        sync: true,
    }
}
