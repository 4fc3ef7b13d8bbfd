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
//! | `unlisted_peer FROM TO KEY` | somebody who is no member forwards a put to the member |
//! | `change ID CHANGE MEMBER` | asks it for a change of members: `add`, `add-learner`, `promote`, `remove` |
//! | `read ID NAME` | asks it for a linearizable read |
//! | `persist ID [N]`, `apply ID [N]` | the disk takes, the machine applies, the first N parts that wait for it, or all |
//! | `deliver FROM->TO [N]`, `drop FROM->TO [N]` | messages arrive or get lost; `*` is any member |
//! | `bounce FROM->TO` | messages get lost, and their sender knows of each that it did not leave |
//! | `settle [ID…]` | does all that there is to do, among these members; prints roles, answers, and what is applied |
//! | `kill ID`, `restart ID`, `stop ID` | the process ends, is started again, ends in order |
//! | `campaign ID`, `transfer ID TO`, `hand-over ID` | leadership |
//! | `unreachable ID PEER` | a connection breaks |
//! | `connected ID [PEER…]` | these peers are connected to it from now on, the first for the longest time |
//! | `advance ID [PEER…]` | the first election is brought forward, where these peers and the member are a quorum |
//! | `snapshot ID` | offers the applied state to members that are too far behind |
//! | `cut ID INDEX` | removes the log's entries up to INDEX |
//! | `status`, `state` | where each member stands; what it has applied |
//! | `waiting ID` | how many requests wait for something |

mod members;
mod requests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::mvcc::read::PinnedView as Keys;
use crate::probe::Defect;
use crate::proto::etchedpeer::Forwarded;
use crate::raft::Message;
use crate::raft::replica::Status;
use crate::raft::tests::disk::{Disk, Writer};
use crate::raft::tests::links::{Links, meant};
use crate::raft::tests::show;
use crate::replica::proposal::{ProposalRefusal, Reply};
use crate::replica::reads::ReadReply;
use crate::replica::router::Router;
use crate::replica::state_store::snapshot_of;
use crate::script::{self, limit, number};
use crate::state::Machine;
use crate::state::machine::{Entry, decode_request};
use crate::storage::Engine;
use crate::storage::memory::MemoryEngine;
use crate::types::{KeyRange, MemberId};

#[allow(clippy::large_enum_variant)] // A script has few messages under way.
enum Sent {
    Raft(Message),
    Forwarded(Forwarded),
    Refused(ProposalRefusal),
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
            ["unlisted_peer", from, to, key] => self.unlisted_peer(number(from), number(to), key),
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
            // The first for the longest time.
            ("connected", peers) => {
                let peers = peers.iter().map(|peer| MemberId(number(peer)));
                let connected = peers.zip((0..).map(Duration::from_secs));
                self.router(id).set_connected(connected.collect());
            }
            ("advance", peers) => {
                self.play_member("connected", id, peers);
                let text = match self.router(id).advance_election() {
                    true => "brought forward\n",
                    false => "no quorum is connected\n",
                };
                self.print(text);
            }
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
                counts: None,
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
