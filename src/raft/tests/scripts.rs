//! Scripts of `raft/testdata`: small groups of replicas in which nothing happens but what a script
//! says. Each command prints what the members hand out because of it.
//!
//! | command | does |
//! |---|---|
//! | `members 1 2 3 [learner 4] [without pre-vote]` | a cluster that was just founded, or joined by who has nothing yet: `joiner 5` |
//! | `tick ID [N]` | lets N ticks pass; what a tick prints that the one before did too is left out |
//! | `timeout ID` | lets ticks pass until the member says something, an election timeout at most |
//! | `campaign ID`, `transfer ID TO` | stands for election; hands leadership over |
//! | `elect ID` | campaigns, and settles; prints how that ends |
//! | `propose ID TEXT`, `change ID CHANGE MEMBER` | proposes; a change is `add`, `add-learner`, `promote` or `remove` |
//! | `read ID NAME` | asks for a read index |
//! | `persist ID [N]` | the disk takes the first N parts that wait for it, or all |
//! | `apply ID [N]` | applies the first N entries that are committed, or all |
//! | `deliver FROM->TO [N]`, `drop FROM->TO [N]` | messages arrive or get lost; `*` is any member |
//! | `settle [ID…]` | does all that there is to do, among these members; prints roles, reads, and what is applied |
//! | `kill ID`, `restart ID` | the process ends: what is not on disk is forgotten |
//! | `lose ID INDEX` | the disk of a member that is down loses the entries behind INDEX |
//! | `snapshot ID` | offers the applied state to members that are too far behind |
//! | `cut ID INDEX` | removes the log's entries up to INDEX |
//! | `status`, `log ID`, `progress ID`, `in flight` | |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;

use raft_proto::eraftpb::{ConfChange, ConfChangeType, ConfState, SnapshotMetadata};

use super::disk::{self, Disk, ELECTION_TICKS, FOUNDING_ENTRY, Writer};
use super::links::{Links, meant};
use super::show;
use crate::probe::Defect;
use crate::raft::log::from_disk;
use crate::raft::replica::{Status, conf_state_of};
use crate::raft::{Committed, CommittedKind, Message, MessageType, Replica, Snapshot};
use crate::script::{self, limit, number};
use crate::storage::raft_log::EntryId;
use crate::types::MemberId;

/// Rounds after which a group that still has something to do never ends.
const MAX_ROUNDS: usize = 200;

/// What was applied, durable at once.
#[derive(Clone)]
struct State {
    last: EntryId,
    requests: Vec<String>,
    voters: BTreeSet<u64>,
    learners: BTreeSet<u64>,
}

impl State {
    fn conf_state(&self) -> ConfState {
        let ids = |ids: &BTreeSet<u64>| ids.clone().into_iter().map(MemberId);
        conf_state_of(ids(&self.voters), ids(&self.learners))
    }
}

struct Life {
    replica: Replica,
    writer: Writer,
    committed: VecDeque<Committed>,
    status: Status,
}

struct Member {
    disk: Disk,
    state: State,
    life: Option<Life>,
}

struct Player {
    members: BTreeMap<u64, Member>,
    links: Links<Message>,
    /// By their index.
    snapshots: BTreeMap<u64, State>,
    pre_vote: bool,
    /// Prints roles, reads and what is applied, and nothing else.
    quiet: bool,
    printed: String,
}

fn show_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Player {
    fn new() -> Self {
        Self {
            members: BTreeMap::new(),
            links: Links::default(),
            snapshots: BTreeMap::new(),
            pre_vote: true,
            quiet: false,
            printed: String::new(),
        }
    }

    fn play(&mut self, command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        match words[..] {
            ["members", ref rest @ ..] => self.found(rest),
            ["settle", ref ids @ ..] => self.settle(ids),
            ["deliver", link, ref rest @ ..] => self.deliver(link, limit(rest)),
            ["drop", link, ref rest @ ..] => self.lose_messages(link, limit(rest)),
            ["status"] => self.show_status(),
            ["in", "flight"] => {
                let flying = self.links.iter();
                let flying = flying.map(|(_, message)| show::message(message, show_text));
                self.printed = flying.collect();
            }
            [what, id, ref rest @ ..] => self.play_member(what, number(id), rest),
            _ => panic!("{command:?} is no command"),
        }
        std::mem::take(&mut self.printed)
    }

    fn play_member(&mut self, what: &str, id: u64, rest: &[&str]) {
        match (what, rest) {
            ("tick", rest) => {
                let ticks = if rest.is_empty() { 1 } else { limit(rest) };
                self.tick(id, ticks);
            }
            ("timeout", []) => self.time_out(id),
            ("campaign", []) => self.life(id).replica.campaign().expect("campaigns"),
            ("elect", []) => {
                self.life(id).replica.campaign().expect("campaigns");
                self.settle(&[]);
                let status = self.life(id).replica.status();
                let (role, commit) = (show::role(&status), status.commit_index);
                self.printed = format!("{id} {role}, commit {commit}\n");
            }
            ("transfer", [to]) => self.life(id).replica.transfer_leader(MemberId(number(to))),
            ("propose", [text]) => {
                let proposed = self.life(id).replica.propose(text.as_bytes().to_vec());
                self.refused(proposed.map(|_| ()));
            }
            ("change", [kind, member]) => {
                let change = conf_change(kind, number(member));
                let proposed = self.life(id).replica.propose_conf_change(change);
                self.refused(proposed);
            }
            ("read", [name]) => {
                let replica = &mut self.life(id).replica;
                match replica.takes_reads() {
                    true => replica.read_index(name.as_bytes().to_vec()),
                    false => self.print("nobody can be asked\n"),
                }
            }
            ("persist", rest) => {
                for _ in 0..limit(rest).min(self.life(id).writer.queue.len()) {
                    self.persist(id);
                }
            }
            ("apply", rest) => {
                for _ in 0..limit(rest).min(self.life(id).committed.len()) {
                    self.apply(id);
                }
            }
            ("kill", []) => {
                self.member(id).life = None;
                self.member(id).disk.kill();
                return;
            }
            ("restart", []) => self.start(id),
            ("lose", [index]) => return self.member(id).disk.lose(number(index)),
            ("snapshot", []) => self.offer_snapshot(id),
            ("cut", [index]) => {
                let cut = self.life(id).writer.log.compact(number(index));
                cut.expect("cuts");
            }
            ("log", []) => return self.show_log(id),
            ("progress", []) => return self.show_progress(id),
            _ => panic!("{what} {id} {rest:?} is no command"),
        }
        self.work(id);
    }

    fn print(&mut self, text: &str) {
        if !self.quiet {
            self.printed += text;
        }
    }

    fn refused(&mut self, proposed: Result<(), crate::error::Error>) {
        if let Err(error) = proposed {
            self.print(&format!("refused: {error}\n"));
        }
    }

    fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).expect("a member")
    }

    fn life(&mut self, id: u64) -> &mut Life {
        let member = self.members.get_mut(&id).expect("a member");
        member.life.as_mut().expect("a member that runs")
    }

    fn found(&mut self, words: &[&str]) {
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
        let founded = State {
            last: FOUNDING_ENTRY,
            requests: Vec::new(),
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
        };
        let nothing = State {
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

    fn add(&mut self, id: u64, disk: Disk, state: State) {
        let member = Member {
            disk,
            state,
            life: None,
        };
        self.members.insert(id, member);
        self.start(id);
        self.work(id);
    }

    fn start(&mut self, id: u64) {
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
    fn work(&mut self, id: u64) {
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
            writeln!(printed, "{id} needs a snapshot to send").expect("writes");
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

    fn send(&mut self, message: Message) {
        let link = (MemberId(message.from), MemberId(message.to));
        self.links.send(link, message);
    }

    fn deliver(&mut self, link: &str, limit: usize) {
        for ((from, to), message) in self.links.take(meant(link), limit) {
            self.arrive(from, to, message);
        }
    }

    fn arrive(&mut self, from: MemberId, to: MemberId, message: Message) {
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

    fn lose_messages(&mut self, link: &str, limit: usize) {
        for ((from, to), message) in self.links.take(meant(link), limit) {
            let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            if let (true, Some(sender)) = (is_snapshot, &mut self.member(from.0).life) {
                sender.replica.report_snapshot(to, false);
            }
        }
    }

    fn persist(&mut self, id: u64) {
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

    fn apply(&mut self, id: u64) {
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

    fn offer_snapshot(&mut self, id: u64) {
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
        // Whoever needs it is sent it with the answer to a heartbeat.
        replica.ping();
        replica.offer_snapshot(Some(snapshot));
    }

    /// What a tick prints again is left out.
    fn tick(&mut self, id: u64, ticks: usize) {
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
    fn time_out(&mut self, id: u64) {
        for _ in 0..2 * ELECTION_TICKS {
            self.life(id).replica.tick();
            self.work(id);
            if !self.printed.is_empty() {
                return;
            }
        }
        self.print("nothing\n");
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

    fn show_status(&mut self) {
        for (id, member) in &self.members {
            let text = match &member.life {
                None => "is down".to_owned(),
                Some(life) => {
                    let status = life.replica.status();
                    format!(
                        "{}, last entry {}, commit {}, applied {}, term {} on disk",
                        show::role(&status),
                        status.last_index,
                        status.commit_index,
                        member.state.last.index,
                        status.durable_term
                    )
                }
            };
            writeln!(self.printed, "{id} {text}").expect("writes");
        }
    }

    /// What is on disk.
    fn show_log(&mut self, id: u64) {
        let log = &self.life(id).writer.log;
        let (first, last) = (log.first_index(), log.last_index());
        let mut text = format!("behind {}:", first - 1);
        if first <= last {
            for logged in log.read(first, last + 1, u64::MAX).expect("reads") {
                let entry = from_disk(&logged).expect("an entry");
                write!(text, " {},", show::entry(&entry, show_text)).expect("writes");
            }
        }
        self.printed = text.trim_end_matches(',').to_owned() + "\n";
    }

    fn show_progress(&mut self, id: u64) {
        let mut progress = self.life(id).replica.progress();
        progress.sort_by_key(|one| one.member);
        for one in progress {
            let member = one.member.0;
            write!(self.printed, "{member} matches at {}", one.matched).expect("writes");
            let notes = [
                (!one.voter, "does not vote"),
                (!one.active, "is silent"),
                (one.in_snapshot, "is sent a snapshot"),
            ];
            for (_, note) in notes.iter().filter(|(is_so, _)| *is_so) {
                write!(self.printed, ", {note}").expect("writes");
            }
            self.printed.push('\n');
        }
    }
}

fn conf_change(kind: &str, member: u64) -> ConfChange {
    let change_type = match kind {
        "add" | "promote" => ConfChangeType::AddNode,
        "add-learner" => ConfChangeType::AddLearnerNode,
        "remove" => ConfChangeType::RemoveNode,
        other => panic!("no change of membership is called {other}"),
    };
    ConfChange {
        change_type: change_type as i32,
        node_id: member,
        ..Default::default()
    }
}

#[test]
fn scripts() {
    let scenarios = script::play_scenarios("raft/testdata", Player::new, Player::play);
    assert!(scenarios >= 40, "only {scenarios} scenarios");
}

/// What a deliberate defect changes is seen, or the scripts say less than they seem to.
#[test]
fn defects_are_seen() {
    for defect in [Defect::VoteForgotten, Defect::ConflictKept] {
        script::assert_seen(defect, || {
            script::first_difference("raft/testdata", Player::new, Player::play)
        });
    }
}
