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
//! | `deliver at once FROM->TO` | the same, and the receiver hands out nothing before all have |
//! | `settle [ID…]` | does all that there is to do, among these members; prints roles, reads, and what is applied |
//! | `kill ID`, `restart ID` | the process ends: what is not on disk is forgotten |
//! | `doubt ID` | takes the log for one that may have lost its end |
//! | `lose ID INDEX` | the disk of a member that is down loses the entries behind INDEX |
//! | `snapshot ID` | offers the applied state to members that are too far behind |
//! | `cut ID INDEX` | removes the log's entries up to INDEX |
//! | `status`, `log ID`, `progress ID`, `in flight` | |

mod members;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;

use raft_proto::eraftpb::{ConfChange, ConfChangeType, ConfState};

use super::disk::{Disk, Writer};
use super::links::Links;
use super::show;
use crate::probe::Defect;
use crate::raft::log::from_disk;
use crate::raft::replica::{Status, conf_state_of};
use crate::raft::{Committed, Message, Replica};
use crate::script::{self, limit, number};
use crate::storage::raft_log::EntryId;
use crate::types::MemberId;

/// What was applied, durable at once.
#[derive(Clone)]
struct AppliedState {
    last: EntryId,
    requests: Vec<String>,
    voters: BTreeSet<u64>,
    learners: BTreeSet<u64>,
}

impl AppliedState {
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
    state: AppliedState,
    life: Option<Life>,
}

struct Player {
    members: BTreeMap<u64, Member>,
    links: Links<Message>,
    /// By their index.
    snapshots: BTreeMap<u64, AppliedState>,
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
            ["deliver", "at", "once", link] => self.deliver_at_once(link),
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
            ("doubt", []) => self.life(id).replica.doubt_log(),
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
                (one.in_snapshot, "is sent a checkpoint"),
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
