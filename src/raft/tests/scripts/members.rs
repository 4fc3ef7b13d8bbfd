//! The members of a scenario: what they are handed, what they hand out, and what is printed of it.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;

use raft_proto::eraftpb::{ConfChangeType, SnapshotMetadata};

use super::{AppliedState, Life, Member, Player, show_text};
use crate::raft::replica::Status;
use crate::raft::tests::disk::{self, Disk, ELECTION_TICKS, FOUNDING_ENTRY, Writer};
use crate::raft::tests::links::meant;
use crate::raft::tests::show;
use crate::raft::{CommittedKind, Message, MessageType, Snapshot};
use crate::script::number;
use crate::storage::raft_log::EntryId;
use crate::types::MemberId;

/// Rounds after which a group that still has something to do never ends.
const MAX_ROUNDS: usize = 200;

impl Player {
    pub(super) fn found(&mut self, words: &[&str]) {
        assert!(
            self.members.is_empty(),
            "a scenario of its own, with a sentence"
        );
        let (mut voters, mut learners, mut joiners) = (Vec::new(), Vec::new(), Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut next = || number(words.next().expect("a member"));
            match *word {
                "learner" => learners.push(next()),
                "joiner" => joiners.push(next()),
                "without" => self.pre_vote = words.next() != Some(&"pre-vote"),
                id => voters.push(number(id)),
            }
        }
        let founded = AppliedState {
            last: FOUNDING_ENTRY,
            requests: Vec::new(),
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
        };
        let nothing = AppliedState {
            last: EntryId { index: 0, term: 0 },
            voters: BTreeSet::new(),
            learners: BTreeSet::new(),
            ..founded.clone()
        };
        for id in voters.into_iter().chain(learners) {
            self.add(id, Disk::founder(MemberId(id)), founded.clone());
        }
        for id in joiners {
            self.add(id, Disk::joiner(MemberId(id)), nothing.clone());
        }
    }

    pub(super) fn add(&mut self, id: u64, disk: Disk, state: AppliedState) {
        let member = Member {
            disk,
            state,
            life: None,
        };
        self.members.insert(id, member);
        self.start(id);
        self.work(id);
    }

    pub(super) fn start(&mut self, id: u64) {
        let pre_vote = self.pre_vote;
        let member = self.member(id);
        let (log, hard_state) = member.disk.open();
        let conf_state = member.state.conf_state();
        let applied = member.state.last.index;
        let replica = disk::replica(
            MemberId(id),
            &log,
            hard_state,
            conf_state,
            applied,
            pre_vote,
        );
        let status = Status {
            term: replica.status().term,
            ..Status::default()
        };
        member.life = Some(Life {
            replica,
            writer: Writer::new(log),
            committed: VecDeque::new(),
            status,
        });
    }

    /// Takes and prints all that a member hands out.
    pub(super) fn work(&mut self, id: u64) {
        let member = self.members.get_mut(&id).expect("a member");
        let Some(life) = member.life.as_mut() else {
            return;
        };
        let mut printed = String::new();
        let mut sent = Vec::new();
        while let Some(output) = life.replica.output() {
            for read in &output.reads {
                let name = show_text(&read.context);
                self.printed += &format!("{id} may read {name} at {}\n", read.index);
            }
            for message in show::by_receiver(output.messages) {
                printed += &show::message(&message, show_text);
                sent.push(message);
            }
            if let Some(persist) = output.persist {
                printed += &show::persist(id, &persist, show_text);
                life.writer.queue.push_back(persist);
            }
            if let (Some(first), Some(last)) = (output.committed.first(), output.committed.last()) {
                match first.index == last.index {
                    true => writeln!(printed, "{id} commits {}", first.index),
                    false => writeln!(printed, "{id} commits {} to {}", first.index, last.index),
                }
                .expect("writes");
            }
            life.committed.extend(output.committed);
        }
        if life.replica.take_snapshot_wanted() {
            writeln!(printed, "{id} needs a checkpoint to send").expect("writes");
        }
        let status = life.replica.status();
        let place = |status: &Status| (status.term, status.leader, status.is_leader);
        let changed = place(&status) != place(&life.status);
        life.status = status;
        let lost = life.replica.check_log();
        if changed {
            self.printed += &format!("{id} {}\n", show::role(&status));
        }
        self.print(&printed);
        for message in sent {
            self.send(message);
        }
        if let Err(lost) = lost {
            self.printed += &format!("{id} stops: {lost}\n");
            self.member(id).life = None;
        }
    }

    pub(super) fn send(&mut self, message: Message) {
        let link = (MemberId(message.from), MemberId(message.to));
        self.links.send(link, message);
    }

    pub(super) fn deliver(&mut self, link: &str, limit: usize) {
        for ((from, to), message) in self.links.take(meant(link), limit) {
            self.arrive(from, to, message);
        }
    }

    pub(super) fn deliver_at_once(&mut self, link: &str) {
        let mut receivers = BTreeSet::new();
        for ((_, to), message) in self.links.take(meant(link), usize::MAX) {
            self.life(to.0).replica.step(message);
            receivers.insert(to.0);
        }
        for id in receivers {
            self.work(id);
        }
    }

    pub(super) fn arrive(&mut self, from: MemberId, to: MemberId, message: Message) {
        if self.member(to.0).life.is_none() {
            return;
        }
        let life = self.life(to.0);
        if message.get_msg_type() == MessageType::MsgSnapshot {
            let taken = life.replica.restore(message);
            if let Some(sender) = &mut self.member(from.0).life {
                sender.replica.report_snapshot(to, taken);
            }
        } else {
            life.replica.step(message);
        }
        self.work(to.0);
        self.work(from.0);
    }

    pub(super) fn lose_messages(&mut self, link: &str, limit: usize) {
        for ((from, to), message) in self.links.take(meant(link), limit) {
            let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            if let (true, Some(sender)) = (is_snapshot, &mut self.member(from.0).life) {
                sender.replica.report_snapshot(to, false);
            }
        }
    }

    pub(super) fn persist(&mut self, id: u64) {
        let life = self.life(id);
        let Some(written) = life.writer.write() else {
            return;
        };
        life.replica.persisted(written.number);
        if let Some(reset) = written.reset {
            // The log makes room for the state first, which comes into use then.
            life.replica.applied(reset.index);
            let state = self.snapshots[&reset.index].clone();
            let as_of = show::entry_id(reset.index, reset.term);
            let requests: String = state.requests.iter().map(|one| format!(" {one}")).collect();
            self.printed += &format!("{id} has the state as of {as_of}:{requests}\n");
            self.member(id).state = state;
        }
        for message in show::by_receiver(written.messages) {
            self.print(&show::message(&message, show_text));
            self.send(message);
        }
        self.work(id);
    }

    pub(super) fn apply(&mut self, id: u64) {
        let member = self.member(id);
        let life = member.life.as_mut().expect("a member that runs");
        let Some(committed) = life.committed.pop_front() else {
            return;
        };
        let entry_id = show::entry_id(committed.index, committed.term);
        let state = &mut member.state;
        state.last = EntryId {
            index: committed.index,
            term: committed.term,
        };
        let what = match &committed.kind {
            CommittedKind::Empty => "empty".to_owned(),
            CommittedKind::Request(bytes) => {
                state.requests.push(show_text(bytes));
                show_text(bytes)
            }
            CommittedKind::ConfChange(change) => {
                state.learners.remove(&change.node_id);
                state.voters.remove(&change.node_id);
                match change.get_change_type() {
                    ConfChangeType::AddNode => state.voters.insert(change.node_id),
                    ConfChangeType::AddLearnerNode => state.learners.insert(change.node_id),
                    ConfChangeType::RemoveNode => true,
                };
                life.replica.apply_conf_change(change).expect("enacts");
                show::conf_change(change)
            }
        };
        life.replica.applied(committed.index);
        self.printed += &format!("{id} applies {entry_id} {what}\n");
        self.work(id);
    }

    pub(super) fn offer_snapshot(&mut self, id: u64) {
        let state = self.member(id).state.clone();
        let metadata = SnapshotMetadata {
            conf_state: Some(state.conf_state()),
            index: state.last.index,
            term: state.last.term,
        };
        self.snapshots.insert(state.last.index, state);
        let snapshot = Snapshot {
            metadata: Some(metadata),
            ..Default::default()
        };
        let replica = &mut self.life(id).replica;
        // A member that needs it is sent it with the answer to a heartbeat.
        replica.ping();
        replica.offer_snapshot(Some(snapshot));
    }

    /// What a tick prints again is left out.
    pub(super) fn tick(&mut self, id: u64, ticks: usize) {
        let (mut printed, mut last) = (String::new(), String::new());
        for _ in 0..ticks {
            self.life(id).replica.tick();
            self.work(id);
            let tick = std::mem::take(&mut self.printed);
            if tick != last {
                printed += &tick;
                last = tick;
            }
        }
        self.printed = printed;
    }

    /// Ticks until the member says something.
    pub(super) fn time_out(&mut self, id: u64) {
        for _ in 0..2 * ELECTION_TICKS {
            self.life(id).replica.tick();
            self.work(id);
            if !self.printed.is_empty() {
                return;
            }
        }
        self.print("nothing\n");
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
                let Some(life) = &self.member(*id).life else {
                    continue;
                };
                let (writes, applies) = (life.writer.queue.len(), life.committed.len());
                busy |= writes + applies > 0;
                (0..writes).for_each(|_| self.persist(*id));
                (0..applies).for_each(|_| self.apply(*id));
            }
            let among =
                |link: &(MemberId, MemberId)| ids.contains(&link.0.0) && ids.contains(&link.1.0);
            for ((from, to), message) in self.links.take(among, usize::MAX) {
                busy = true;
                self.arrive(from, to, message);
            }
            if !busy {
                self.quiet = false;
                return;
            }
        }
        panic!("it never settles");
    }
}
