//! The members of a scenario: what they are handed, what they hand out, and what is printed of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::sync::Arc;

use prost::Message as _;

use super::{Life, Member, Player, Sent, show_request};
use crate::error::Error;
use crate::proto::etchedpeer::forwarded;
use crate::proto::membershippb::{Member as StoredMember, RaftAttributes};
use crate::raft::MessageType;
use crate::raft::replica::{Status, conf_state_of};
use crate::raft::tests::disk::{self, Disk, FOUNDING_ENTRY, Writer};
use crate::raft::tests::links::meant;
use crate::raft::tests::show;
use crate::replica::proposal::{ProposalRefusal, conf_change, request_id};
use crate::replica::router::Router;
use crate::script::number;
use crate::state::Machine;
use crate::state::machine::Payload;
use crate::storage::Engine;
use crate::storage::memory::MemoryEngine;
use crate::types::MemberId;

/// Ticks that a request may take.
const LIMIT_TICKS: u64 = 30;
/// Rounds after which a cluster that still has something to do never ends.
const MAX_ROUNDS: usize = 200;

impl Player {
    pub(super) fn found(&mut self, words: &[&str]) {
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
                .bootstrap(crate::types::ClusterId(1), members.clone(), index, term)
                .expect("writes");
            engine.flush().expect("flushes");
            self.add(id, Disk::founder(MemberId(id)), engine);
        }
        for id in joiners {
            self.add(id, Disk::joiner(MemberId(id)), Arc::default());
        }
    }

    pub(super) fn add(&mut self, id: u64, disk: Disk, engine: Arc<MemoryEngine>) {
        let member = Member {
            disk,
            engine,
            life: None,
        };
        self.members.insert(id, member);
        self.start(id);
    }

    pub(super) fn start(&mut self, id: u64) {
        self.lives += 1;
        let first_request = 100 * self.lives;
        let member = self.member(id);
        let (log, hard_state) = member.disk.open();
        let machine = Machine::open(member.engine.clone()).expect("opens");
        let members = machine.members();
        let conf_state = conf_state_of(members.voters(), members.learners());
        let applied = machine.applied_index();
        let replica = disk::replica(MemberId(id), &log, hard_state, conf_state, applied, true);
        let router = Router::new(MemberId(id), replica, first_request, LIMIT_TICKS);
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

    pub(super) fn tick(&mut self, id: u64, ticks: usize) {
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

    /// Takes and prints all that a member hands out.
    pub(super) fn work(&mut self, id: u64) {
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
                writeln!(printed, "{id} needs a checkpoint to send").expect("writes");
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

    pub(super) fn arrive(&mut self, from: MemberId, to: MemberId, sent: Sent) {
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
                let ProposalRefusal {
                    request_id, term, ..
                } = refusal;
                life.router.refused(request_id, term, refusal.error);
            }
        }
        self.work(to.0);
        self.work(from.0);
    }

    /// Only a forwarded proposal is missed by its sender.
    pub(super) fn bounce(&mut self, link: &str) {
        for ((from, _), sent) in self.links.take(meant(link), usize::MAX) {
            if let Sent::Forwarded(message) = sent {
                let router = self.router(from.0);
                router.refused(message.request_id, message.term, Error::NoLeader);
                self.work(from.0);
            }
        }
    }

    pub(super) fn persist(&mut self, id: u64) {
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

    pub(super) fn apply(&mut self, id: u64) {
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

    pub(super) fn settle(&mut self, ids: &[&str]) {
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
}
