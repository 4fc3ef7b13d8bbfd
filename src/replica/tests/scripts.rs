//! Scripts of `replica/testdata`: small clusters of routers, each with a real log and a real state
//! machine, in which nothing happens but what a script says. Each command prints what the members
//! hand out because of it, and what becomes of requests. What raft says is written as in
//! `raft/testdata`, where its own rules are shown.
//!
//! | command | does |
//! |---|---|
//! | `members 1 2 3 [learner 4] [joiner 5]` | a cluster that was just founded; a joiner has nothing yet |
//! | `tick ID [N]` | lets N ticks pass; what a tick prints that the one before did too is left out |
//! | `elect ID` | campaigns, and settles; prints how that ends |
//! | `put ID KEY [in term N]` | asks the member for a put, fenced to a term or not |
//! | `change ID CHANGE MEMBER` | asks it for a change of members: `add`, `add-learner`, `promote`, `remove` |
//! | `read ID NAME` | asks it for a linearizable read |
//! | `persist ID [N]`, `apply ID [N]` | the disk takes, the machine applies, the first N parts that wait for it, or all |
//! | `deliver FROM->TO [N]`, `drop FROM->TO [N]` | messages arrive or get lost; `*` is any member |
//! | `bounce FROM->TO` | messages get lost, and their sender knows of each that it did not leave |
//! | `settle [ID…]` | does all that there is to do, among these members; prints roles, answers, and what is applied |
//! | `kill ID`, `restart ID`, `stop ID` | the process ends, is started again, ends in order |
//! | `campaign ID`, `transfer ID TO`, `hand-over ID` | leadership |
//! | `unreachable ID PEER` | a connection breaks |
//! | `snapshot ID` | offers the applied state to members that are too far behind |
//! | `cut ID INDEX` | removes the log's entries up to INDEX |
//! | `status`, `state` | where each member stands; what it has applied |
//! | `waiting ID` | how many requests wait for something |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;

use crate::error::Error;
use crate::mvcc::read::Snapshot as Keys;
use crate::probe::Defect;
use crate::proto::etcdserverpb::{InternalRaftRequest, PutRequest, RequestHeader};
use crate::proto::etchedpeer::{
    Forwarded, MemberChange, Nothing, forwarded, member_change::Change,
};
use crate::proto::membershippb::{Member as StoredMember, RaftAttributes};
use crate::raft::replica::{Status, conf_state_of};
use crate::raft::tests::disk::{self, Disk, FOUNDING_ENTRY, Writer};
use crate::raft::tests::links::{Links, meant};
use crate::raft::tests::show;
use crate::raft::{Message, MessageType};
use crate::replica::proposal::{Proposal, Proposed, Refusal, Reply, conf_change, request_id};
use crate::replica::reads::ReadReply;
use crate::replica::router::Router;
use crate::replica::state_store::snapshot_of;
use crate::script::{self, limit, number};
use crate::state::machine::{Entry, Payload, decode_request};
use crate::state::{Machine, Response};
use crate::storage::Engine;
use crate::storage::memory::MemoryEngine;
use crate::types::{KeyRange, MemberId};

/// Ticks that a request may take.
const LIMIT_TICKS: u64 = 30;
/// Rounds after which a cluster that still has something to do never ends.
const MAX_ROUNDS: usize = 200;

#[allow(clippy::large_enum_variant)] // A script has few messages under way.
enum Sent {
    Raft(Message),
    Forwarded(Forwarded),
    Refused(Refusal),
}

/// What a member loses when it dies.
struct Life {
    router: Router,
    writer: Writer,
    machine: Machine,
    to_apply: VecDeque<(Entry, Option<Reply>)>,
    /// By the index that has to be applied here.
    reads: BTreeMap<u64, Vec<ReadReply>>,
    status: Status,
}

struct Member {
    disk: Disk,
    engine: Arc<MemoryEngine>,
    life: Option<Life>,
}

struct Player {
    members: BTreeMap<u64, Member>,
    links: Links<Sent>,
    /// By their index.
    snapshots: BTreeMap<u64, MemoryEngine>,
    lives: u64,
    requests: u64,
    /// How each request is called.
    names: BTreeMap<u64, String>,
    /// What became of requests since that was last printed.
    outcomes: Arc<Mutex<String>>,
    /// Prints roles, answers and what is applied, and nothing else.
    quiet: bool,
    printed: String,
}

/// Whoever waits for an answer.
struct Asked {
    name: String,
    outcomes: Arc<Mutex<String>>,
}

impl Asked {
    fn tell(&self, outcome: &str) {
        let outcome = format!("{} {outcome}\n", self.name);
        self.outcomes.lock().push_str(&outcome);
    }

    fn refused(self, error: &Error) {
        self.tell(&format!("is refused: {error}"));
        std::mem::forget(self);
    }

    fn answered(self, how: &str) {
        self.tell(&format!("is answered{how}"));
        std::mem::forget(self);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.tell("is never answered");
    }
}

fn show_request(bytes: &[u8]) -> String {
    let request = decode_request(Bytes::copy_from_slice(bytes)).expect("a request");
    let put = request.put.expect("a put");
    format!("put {}", String::from_utf8_lossy(&put.key))
}

impl Player {
    fn new() -> Self {
        Self {
            members: BTreeMap::new(),
            links: Links::default(),
            snapshots: BTreeMap::new(),
            lives: 0,
            requests: 0,
            names: BTreeMap::new(),
            outcomes: Arc::default(),
            quiet: false,
            printed: String::new(),
        }
    }

    fn play(&mut self, command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        match words[..] {
            ["members", ref rest @ ..] => self.found(rest),
            ["settle", ref ids @ ..] => self.settle(ids),
            ["deliver", link, ref rest @ ..] => {
                for ((from, to), sent) in self.links.take(meant(link), limit(rest)) {
                    self.arrive(from, to, sent);
                }
            }
            ["drop", link, ref rest @ ..] => drop(self.links.take(meant(link), limit(rest))),
            ["bounce", link] => self.bounce(link),
            ["status"] => self.show_status(),
            ["state"] => self.show_state(),
            [what, id, ref rest @ ..] => self.play_member(what, number(id), rest),
            _ => panic!("{command:?} is no command"),
        }
        self.print_outcomes();
        std::mem::take(&mut self.printed)
    }

    fn play_member(&mut self, what: &str, id: u64, rest: &[&str]) {
        match (what, rest) {
            ("tick", rest) => self.tick(id, if rest.is_empty() { 1 } else { limit(rest) }),
            ("campaign", []) => self.router(id).campaign().expect("campaigns"),
            ("elect", []) => {
                self.router(id).campaign().expect("campaigns");
                self.settle(&[]);
                let status = self.router(id).status();
                let (role, commit) = (show::role(&status), status.commit_index);
                self.printed = format!("{id} {role}, commit {commit}\n");
            }
            ("transfer", [to]) => self.router(id).transfer_leader(MemberId(number(to))),
            ("hand-over", []) => {
                let text = match self.router(id).hand_over() {
                    Some(to) => format!("{id} hands over to {to}\n"),
                    None => format!("{id} hands over to nobody\n"),
                };
                self.print(&text);
            }
            ("put", [key]) => self.put(id, key, None),
            ("put", [key, "in", "term", term]) => self.put(id, key, Some(number(term))),
            ("change", [kind, member]) => self.change(id, kind, number(member)),
            ("read", [name]) => self.read(id, name),
            ("persist", rest) => {
                for _ in 0..limit(rest).min(self.life(id).writer.queue.len()) {
                    self.persist(id);
                }
            }
            ("apply", rest) => {
                for _ in 0..limit(rest).min(self.life(id).to_apply.len()) {
                    self.apply(id);
                }
            }
            ("kill", []) => {
                let member = self.member(id);
                member.life = None;
                member.disk.kill();
                member.engine.crash();
                return;
            }
            ("restart", []) => return self.start(id),
            ("stop", []) => self.router(id).stop(),
            ("unreachable", [peer]) => {
                let peer = MemberId(number(peer));
                self.router(id).report_unreachable(peer);
            }
            ("snapshot", []) => {
                let engine = self.member(id).engine.copy();
                let snapshot = snapshot_of(engine.latest()).expect("reads");
                let index = snapshot.get_metadata().index;
                self.snapshots.insert(index, engine);
                self.router(id).offer_snapshot(Some(snapshot));
            }
            ("cut", [index]) => {
                let cut = self.life(id).writer.log.compact(number(index));
                cut.expect("cuts");
            }
            ("waiting", []) => {
                let waiting = self.router(id).waiting().sum();
                self.print(&format!("{waiting} wait\n"));
            }
            _ => panic!("{what} {id} {rest:?} is no command"),
        }
        self.work(id);
    }

    fn print(&mut self, text: &str) {
        if !self.quiet {
            self.printed += text;
        }
    }

    fn print_outcomes(&mut self) {
        self.printed += &std::mem::take(&mut *self.outcomes.lock());
    }

    fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).expect("a member")
    }

    fn life(&mut self, id: u64) -> &mut Life {
        let member = self.members.get_mut(&id).expect("a member");
        member.life.as_mut().expect("a member that runs")
    }

    fn router(&mut self, id: u64) -> &mut Router {
        &mut self.life(id).router
    }

    fn found(&mut self, words: &[&str]) {
        assert!(
            self.members.is_empty(),
            "a scenario of its own, with a sentence"
        );
        let mut founders = Vec::new();
        let mut joiners = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut next = || number(words.next().expect("a member"));
            match *word {
                "joiner" => joiners.push(next()),
                "learner" => founders.push((next(), true)),
                id => founders.push((number(id), false)),
            }
        }
        let stored = |(id, is_learner): &(u64, bool)| StoredMember {
            id: *id,
            raft_attributes: Some(RaftAttributes {
                is_learner: *is_learner,
                ..Default::default()
            }),
            ..Default::default()
        };
        let members: Vec<StoredMember> = founders.iter().map(stored).collect();
        for (id, _) in founders {
            let engine = Arc::new(MemoryEngine::new());
            let mut machine = Machine::open(engine.clone()).expect("opens");
            let (index, term) = (FOUNDING_ENTRY.index, FOUNDING_ENTRY.term);
            machine
                .bootstrap(members.clone(), index, term)
                .expect("writes");
            engine.flush().expect("flushes");
            self.add(id, Disk::founder(MemberId(id)), engine);
        }
        for id in joiners {
            self.add(id, Disk::joiner(MemberId(id)), Arc::default());
        }
    }

    fn add(&mut self, id: u64, disk: Disk, engine: Arc<MemoryEngine>) {
        let member = Member {
            disk,
            engine,
            life: None,
        };
        self.members.insert(id, member);
        self.start(id);
    }

    fn start(&mut self, id: u64) {
        self.lives += 1;
        let first_question = 100 * self.lives;
        let member = self.member(id);
        let (log, hard_state) = member.disk.open();
        let machine = Machine::open(member.engine.clone()).expect("opens");
        let members = machine.members();
        let conf_state = conf_state_of(members.voters(), members.learners());
        let applied = machine.applied_index();
        let replica = disk::replica(MemberId(id), &log, hard_state, conf_state, applied, true);
        let router = Router::new(MemberId(id), replica, first_question, LIMIT_TICKS);
        let status = Status {
            term: router.status().term,
            ..Status::default()
        };
        member.life = Some(Life {
            router,
            writer: Writer::new(log),
            machine,
            to_apply: VecDeque::new(),
            reads: BTreeMap::new(),
            status,
        });
        // As in a real start: what is known to be committed is applied before the first tick.
        self.work(id);
        while !self.life(id).to_apply.is_empty() {
            self.apply(id);
        }
    }

    fn tick(&mut self, id: u64, ticks: usize) {
        let (mut printed, mut last) = (String::new(), String::new());
        for _ in 0..ticks {
            self.router(id).tick();
            self.work(id);
            self.print_outcomes();
            let tick = std::mem::take(&mut self.printed);
            if tick != last {
                printed += &tick;
                last = tick;
            }
        }
        self.printed = printed;
    }

    /// Somebody who waits, and the id of the request.
    fn asked(&mut self, name: &str) -> (Asked, u64) {
        self.requests += 1;
        self.names.insert(self.requests, name.to_owned());
        let asked = Asked {
            name: name.to_owned(),
            outcomes: self.outcomes.clone(),
        };
        (asked, self.requests)
    }

    fn propose(&mut self, id: u64, what: Proposed, fence_term: Option<u64>, asked: Asked) {
        let reply: Reply = Box::new(move |result| match result {
            Ok(Response::Put(put)) => {
                let revision = put.header.expect("a header").revision;
                asked.answered(&format!(": revision {revision}"));
            }
            Ok(_) => asked.answered(""),
            Err(error) => asked.refused(&error),
        });
        self.router(id).propose(Proposal {
            what,
            fence_term,
            awaited_until: None,
            reply,
        });
    }

    fn put(&mut self, id: u64, key: &str, fence_term: Option<u64>) {
        let (asked, request) = self.asked(&format!("put {key}"));
        let request = InternalRaftRequest {
            header: Some(RequestHeader {
                id: request,
                ..Default::default()
            }),
            put: Some(PutRequest {
                key: key.to_owned().into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let encoded = request.encode_to_vec();
        let what = Proposed::Request(Arc::new(request), encoded);
        self.propose(id, what, fence_term, asked);
    }

    fn change(&mut self, id: u64, kind: &str, member: u64) {
        let (asked, request_id) = self.asked(&format!("{kind} {member}"));
        let add = |is_learner| {
            Change::Add(RaftAttributes {
                peer_urls: vec![format!("http://{member}:2380")],
                is_learner,
            })
        };
        let change = match kind {
            "add" => add(false),
            "add-learner" => add(true),
            "promote" => Change::Promote(Nothing {}),
            "remove" => Change::Remove(Nothing {}),
            other => panic!("no change of membership is called {other}"),
        };
        let change = MemberChange {
            member_id: member,
            change: Some(change),
            max_learners: 1,
            request_id,
        };
        self.propose(id, Proposed::Member(change), None, asked);
    }

    fn read(&mut self, id: u64, name: &str) {
        let (asked, _) = self.asked(name);
        self.router(id)
            .read_index(Box::new(move |result| match result {
                Ok(()) => asked.answered(""),
                Err(error) => asked.refused(&error),
            }));
    }

    /// Takes and prints all that a member hands out.
    fn work(&mut self, id: u64) {
        let Some(life) = self.members.get_mut(&id).and_then(|m| m.life.as_mut()) else {
            return;
        };
        let mut printed = String::new();
        let mut sent = Vec::new();
        while let Some(work) = life.router.work() {
            for message in show::by_receiver(work.messages) {
                printed += &show::message(&message, show_request);
                sent.push((MemberId(message.to), Sent::Raft(message)));
            }
            for (to, message) in work.forwards {
                let (name, term) = (&self.names[&message.request_id], message.term);
                let proposed = match &message.proposal {
                    Some(forwarded::Proposal::Request(bytes)) => request_id(bytes),
                    Some(forwarded::Proposal::MemberChange(change)) => Some(change.request_id),
                    None => None,
                };
                assert_eq!(proposed, Some(message.request_id));
                writeln!(printed, "{id}->{to} forwards {name}, for term {term}").expect("writes");
                sent.push((to, Sent::Forwarded(message)));
            }
            for refusal in work.refusals {
                let (to, name) = (refusal.to, &self.names[&refusal.request_id]);
                let (term, error) = (refusal.term, refusal.error);
                writeln!(printed, "{id}->{to} refuses {name} of term {term}: {error}")
                    .expect("writes");
                sent.push((to, Sent::Refused(refusal)));
            }
            if let Some(persist) = work.persist {
                printed += &show::persist(id, &persist, show_request);
                life.writer.queue.push_back(persist);
            }
            if let (Some(first), Some(last)) = (work.entries.first(), work.entries.last()) {
                match first.index == last.index {
                    true => writeln!(printed, "{id} commits {}", first.index),
                    false => writeln!(printed, "{id} commits {} to {}", first.index, last.index),
                }
                .expect("writes");
            }
            life.to_apply
                .extend(work.entries.into_iter().zip(work.replies));
            for (index, replies) in work.reads {
                if index > life.machine.applied_index() {
                    writeln!(printed, "{id} has reads wait for {index}").expect("writes");
                }
                life.reads.entry(index).or_default().extend(replies);
            }
            if work.snapshot_wanted {
                writeln!(printed, "{id} needs a snapshot to send").expect("writes");
            }
        }
        let status = life.router.status();
        let place = |status: &Status| (status.term, status.leader, status.is_leader);
        if place(&status) != place(&life.status) {
            self.printed += &format!("{id} {}\n", show::role(&status));
        }
        life.status = status;
        let later = life.reads.split_off(&(life.machine.applied_index() + 1));
        for reply in std::mem::replace(&mut life.reads, later)
            .into_values()
            .flatten()
        {
            reply(Ok(()));
        }
        self.print(&printed);
        self.print_outcomes();
        for (to, message) in sent {
            self.links.send((MemberId(id), to), message);
        }
    }

    fn arrive(&mut self, from: MemberId, to: MemberId, sent: Sent) {
        let Some(life) = &mut self.member(to.0).life else {
            return;
        };
        match sent {
            Sent::Raft(message) if message.get_msg_type() == MessageType::MsgSnapshot => {
                let taken = life.router.restore(message);
                if let Some(sender) = &mut self.member(from.0).life {
                    sender.router.report_snapshot(to, taken);
                }
            }
            Sent::Raft(message) => life.router.step(message),
            Sent::Forwarded(message) => life.router.propose_for(from, message),
            Sent::Refused(refusal) => {
                let Refusal {
                    request_id, term, ..
                } = refusal;
                life.router.refused(request_id, term, refusal.error);
            }
        }
        self.work(to.0);
        self.work(from.0);
    }

    /// Only a forwarded proposal is missed by its sender.
    fn bounce(&mut self, link: &str) {
        for ((from, _), sent) in self.links.take(meant(link), usize::MAX) {
            if let Sent::Forwarded(message) = sent {
                let router = self.router(from.0);
                router.refused(message.request_id, message.term, Error::NoLeader);
                self.work(from.0);
            }
        }
    }

    fn persist(&mut self, id: u64) {
        let life = self.life(id);
        let Some(written) = life.writer.write() else {
            return;
        };
        life.router.persisted(written.number);
        if let Some(reset) = written.reset {
            // The log makes room for the state first, which comes into use then.
            let engine = Arc::new(self.snapshots[&reset.index].copy());
            let machine = Machine::open(engine.clone()).expect("opens");
            self.member(id).engine = engine;
            let life = self.life(id);
            life.machine = machine;
            life.router.applied(reset.index, &[]).expect("nothing");
            let as_of = show::entry_id(reset.index, reset.term);
            self.printed += &format!("{id} has the state as of {as_of}\n");
        }
        for message in show::by_receiver(written.messages) {
            self.print(&show::message(&message, show_request));
            let link = (MemberId(id), MemberId(message.to));
            self.links.send(link, Sent::Raft(message));
        }
        self.work(id);
    }

    fn apply(&mut self, id: u64) {
        let life = self.life(id);
        let Some((entry, reply)) = life.to_apply.pop_front() else {
            return;
        };
        let entry_id = show::entry_id(entry.index, entry.term);
        let what = match &entry.payload {
            Payload::Empty => "empty".to_owned(),
            Payload::Request(bytes) => show_request(bytes),
            Payload::Decoded(request) => show_request(&request.encode_to_vec()),
            Payload::Membership(change) => show::conf_change(&conf_change(change)),
        };
        let index = entry.index;
        let mut group = life.machine.apply(vec![entry]).expect("applies");
        let applied = life.router.applied(index, &group.member_changes);
        applied.expect("enacts");
        let result = group.applied.pop().expect("one entry").result;
        let removed = life.machine.members().removed().any(|one| one.0 == id);
        if let Some(reply) = reply {
            reply(result);
        }
        self.printed += &format!("{id} applies {entry_id} {what}\n");
        self.print_outcomes();
        self.work(id);
        if removed {
            self.printed += &format!("{id} was removed and ends\n");
            self.member(id).life = None;
        }
    }

    fn settle(&mut self, ids: &[&str]) {
        let ids: BTreeSet<u64> = match ids.is_empty() {
            true => self.members.keys().copied().collect(),
            false => ids.iter().map(|id| number(id)).collect(),
        };
        self.quiet = true;
        for _ in 0..MAX_ROUNDS {
            let mut busy = false;
            for id in &ids {
                self.work(*id);
                while self.member(*id).life.is_some() {
                    let (writes, applies) = {
                        let life = self.life(*id);
                        (life.writer.queue.len(), life.to_apply.len())
                    };
                    match (writes, applies) {
                        (0, 0) => break,
                        (0, _) => self.apply(*id),
                        _ => self.persist(*id),
                    }
                    busy = true;
                }
            }
            let among =
                |link: &(MemberId, MemberId)| ids.contains(&link.0.0) && ids.contains(&link.1.0);
            for ((from, to), sent) in self.links.take(among, usize::MAX) {
                busy = true;
                self.arrive(from, to, sent);
            }
            if !busy {
                self.quiet = false;
                return;
            }
        }
        panic!("it never settles");
    }

    fn show_status(&mut self) {
        for (id, member) in &self.members {
            let text = member.life.as_ref().map_or("is down".to_owned(), |life| {
                let status = life.router.status();
                let (role, commit) = (show::role(&status), status.commit_index);
                format!("{role}, last entry {}, commit {commit}", status.last_index)
            });
            writeln!(self.printed, "{id} {text}").expect("writes");
        }
    }

    /// The keys of each member, with their revisions, and how often they were put.
    fn show_state(&mut self) {
        for (id, member) in &self.members {
            let Some(life) = &member.life else {
                writeln!(self.printed, "{id} is down").expect("writes");
                continue;
            };
            let keys = Keys {
                read: member.engine.latest(),
                head: life.machine.head(),
                compacted: life.machine.compacted(),
            };
            let found = keys.key_values(&KeyRange::From(Bytes::new()), keys.head);
            write!(
                self.printed,
                "{id} applied {}:",
                life.machine.applied_index()
            )
            .expect("writes");
            for found in found.expect("reads") {
                let key = String::from_utf8_lossy(&found.key);
                write!(self.printed, " {key} at revision {}", found.mod_revision).expect("writes");
                if found.version > 1 {
                    write!(self.printed, " (put {} times)", found.version).expect("writes");
                }
            }
            self.printed.push('\n');
        }
    }
}

#[test]
fn scripts() {
    let scenarios = script::play_scenarios("replica/testdata", Player::new, Player::play);
    assert!(scenarios >= 30, "only {scenarios} scenarios");
}

/// What a deliberate defect changes is seen, or the scripts say less than they seem to.
#[test]
fn defects_are_seen() {
    for defect in [
        Defect::ReadJoinsRound,
        Defect::AnswerOfEarlierRound,
        Defect::RefusedChangeMade,
        Defect::RefusalUnchecked,
        Defect::ForwardedTwice,
        Defect::ForwardedKept,
        Defect::RevokeUnfenced,
    ] {
        script::assert_seen(defect, || {
            script::first_difference("replica/testdata", Player::new, Player::play)
        });
    }
}
