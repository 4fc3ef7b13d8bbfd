//! Scripts of `testdata/`: the commands of `language`, each an entry of its own, and
//!
//! | command | does |
//! |---|---|
//! | `get`, `read txn` | reads outside of the log |
//! | `group`, `end` | gathers entries into one group; applies it |
//! | `empty` | an entry that holds nothing |
//! | `proposer member`, `proposer nobody`, `proposer NAME@REVISION` | who proposes the requests that follow |
//! | `member …` | a change of membership; see `member_change` |
//! | `events` | what the last group reported to watches and lease deadlines |
//! | `history FROM` | the same history from storage |
//! | `hash [R]` | |
//! | `compaction_hash` | the hash of the history as the last compaction found it |
//! | `leases`, `keys ID`, `members`, `voters`, `auth` | |
//! | `restart` | crashes, and applies again what was lost |
//! | `batches N` | deletions of more than so many keys are written in several batches |
//! | `part N COMMAND` | writes so many batches of a deletion, and no more |
//! | `open` | opens what is written |
//!
//! A compaction's removals follow it at once. At the end of a script its log is applied again in
//! other groups and with crashes between any two entries: that must change nothing.

use std::fmt::Write;
use std::sync::Arc;

use super::member::{Logged, Member, entry};
use super::{auth_language, language, restarts, show};
use crate::mvcc::hash::HistoryHash;
use crate::mvcc::history::{PageLimit, PartLimit, WithPrevious};
use crate::mvcc::read::PinnedView;
use crate::mvcc::tests::golden::show_bytes;
use crate::mvcc::write::SliceLimit;
use crate::mvcc::{Error, compaction};
use crate::proto::etcdserverpb::RequestHeader;
use crate::proto::etchedpeer::{MemberChange, Nothing, member_change::Change};
use crate::proto::membershippb::RaftAttributes;
use crate::script;
use crate::state::lease::attached_keys;
use crate::state::machine::Staged;
use crate::state::{Group, kv, sliced, txn};
use crate::storage::memory::MemoryEngine;
use crate::storage::schema::Unfinished;
use crate::types::{KeyRange, LeaseId, MemberId, Revision};

struct Player {
    engine: Arc<MemoryEngine>,
    member: Member,
    log: Vec<Logged>,
    groups: bool,
    proposer: Option<RequestHeader>,
    last: Group,
    compaction_hash: Option<HistoryHash>,
    limit: SliceLimit,
}

impl Player {
    fn new() -> Self {
        let engine = Arc::new(MemoryEngine::new());
        Self {
            member: Member::on(engine.clone()),
            engine,
            log: Vec::new(),
            groups: false,
            proposer: None,
            last: Group::default(),
            compaction_hash: None,
            limit: SliceLimit::NONE,
        }
    }

    fn play(&mut self, command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        match words[..] {
            ["get", ref rest @ ..] => self.get(rest),
            ["read", "txn", ..] => self.read_txn(&command["read ".len()..]),
            ["group"] => {
                self.groups = true;
                String::new()
            }
            ["end"] => {
                self.groups = false;
                self.apply()
            }
            ["proposer", who] => {
                self.proposer = language::proposer(who);
                String::new()
            }
            ["empty"] => self.push(Logged::Empty),
            ["member", kind, id, ref rest @ ..] => {
                self.push(Logged::Member(member_change(kind, id, rest)))
            }
            ["events"] => self.events(),
            ["history", from] => self.history(from.parse().expect("a revision")),
            ["hash"] => self.hash(0),
            ["compaction_hash"] => show_hash(self.compaction_hash.expect("a compaction")),
            ["hash", revision] => self.hash(revision.parse().expect("a revision")),
            ["leases"] => self.leases(),
            ["auth"] => auth_language::show(self.member.machine.auth()),
            ["keys", id] => {
                let id = LeaseId(id.parse().expect("a lease"));
                let keys = attached_keys(self.engine.as_ref(), id).expect("reads");
                keys.iter().map(|key| show_bytes(key) + "\n").collect()
            }
            ["voters"] => {
                let members = self.member.machine.members();
                let ids = |ids: &mut dyn Iterator<Item = MemberId>| {
                    ids.map(|id| format!(" {id}")).collect::<String>()
                };
                format!(
                    "voters{}, learners{}, removed{}\n",
                    ids(&mut members.voters()),
                    ids(&mut members.learners()),
                    ids(&mut members.removed())
                )
            }
            ["members"] => {
                let members = self.member.machine.members();
                let versions = self.member.machine.versions();
                let mut text = format!("version {:?}", versions.cluster());
                if let Some(target) = versions.downgrade_target() {
                    write!(text, " going down to {target}").expect("writes");
                }
                text += "\n";
                for member in members.iter() {
                    writeln!(text, "{member:?}").expect("writes");
                }
                text
            }
            ["batches", keys] => {
                self.limit.keys = keys.parse().expect("a number");
                self.member.machine.set_slice_limit(self.limit);
                String::new()
            }
            ["part", batches, ..] => {
                let (_, command) = command.split_once(batches).expect("a command");
                self.write_part(batches.parse().expect("a number"), command.trim())
            }
            ["open"] => {
                self.member = Member::with(self.engine.clone(), self.limit);
                format!("at index {}\n", self.member.machine.applied_index())
            }
            ["restart"] => {
                self.engine.crash();
                self.member = Member::with(self.engine.clone(), self.limit);
                let applied = self.member.machine.applied_index();
                self.member.apply_log(&self.log, self.log.len() as u64, 3);
                self.member.compact(2, usize::MAX);
                format!("from index {applied}\n")
            }
            _ => {
                let mut request = language::request(command);
                request.header = request.header.or_else(|| self.proposer.clone());
                self.push(Logged::Request(request))
            }
        }
    }

    fn write_part(&mut self, batches: usize, command: &str) -> String {
        self.log.push(Logged::Request(language::request(command)));
        let index = self.log.len() as u64;
        let entries = [entry(index, &self.log[index as usize - 1])];
        let mut group = Group::default();
        for _ in 0..batches {
            let machine = &mut self.member.machine;
            let staged = machine.stage(&entries, &mut group, |_| usize::MAX, |_| ());
            assert_eq!(staged.expect("stages"), Staged::Slice);
        }
        let applied = sliced::applied(self.engine.as_ref()).expect("reads");
        let Some(Unfinished::Delete(left)) = applied.unfinished else {
            panic!("not a deletion");
        };
        let rest = match &left.rest {
            KeyRange::Span(start, end) => show_bytes(start) + ".." + &show_bytes(end),
            KeyRange::From(start) => show_bytes(start) + "..",
            KeyRange::Point(_) => panic!("it is of one batch"),
        };
        format!(
            "behind index {}: revision {} has deleted {}, left {rest}\n",
            applied.index, left.revision, left.deleted
        )
    }

    fn push(&mut self, logged: Logged) -> String {
        self.log.push(logged);
        if self.groups {
            return String::new();
        }
        self.apply()
    }

    fn apply(&mut self) -> String {
        let before = self.member.machine.head();
        let from = self.member.machine.applied_index() + 1;
        let indexes: Vec<u64> = (from..=self.log.len() as u64).collect();
        self.last = self.member.apply_group(&self.log, &indexes);
        if !self.last.compacted {
            // Watches get at once what they would read later.
            assert_eq!(self.events_since(before + 1), self.published());
        }
        if self.last.compacted {
            let before = PinnedView {
                compacted: compaction::finished(self.engine.as_ref()).expect("reads"),
                ..self.member.pinned()
            };
            let target = self.member.machine.compacted();
            self.compaction_hash = Some(before.hash_for_compaction(target).expect("reads"));
        }
        self.member.compact(2, usize::MAX);
        let results = self.last.applied.iter();
        results
            .map(|applied| show::result(&applied.result))
            .collect()
    }

    fn published(&self) -> String {
        let mut changes = self.last.changes.clone();
        for sliced in &self.last.sliced {
            let pinned = self.member.pinned();
            let mut next = Some(Revision::new(sliced.revision, 0));
            let limit = PartLimit {
                records: 2,
                bytes: usize::MAX,
            };
            while let Some(from) = next {
                let wanted = &mut |_: &[u8], _, _| Some(WithPrevious(true));
                let part;
                (part, next) = pinned.changes_of(from, limit, wanted).expect("reads");
                assert!(part.iter().all(|change| sliced.span.contains(&change.key)));
                changes.extend(part);
            }
        }
        changes.sort_by_key(|change| change.revision);
        changes.iter().map(show::change).collect()
    }

    fn events_since(&self, from: i64) -> String {
        let limit = PageLimit {
            revisions: usize::MAX,
            records: usize::MAX,
            bytes: usize::MAX,
            whole_bytes: usize::MAX,
        };
        let page = self
            .member
            .pinned()
            .changes(from, limit, &mut |_, _, _| Some(WithPrevious(true)))
            .expect("reads");
        page.changes.iter().map(show::change).collect()
    }

    fn events(&self) -> String {
        let mut text = self.published();
        for event in &self.last.lease_events {
            text += &show::lease_event(event);
        }
        for event in &self.last.auth_events {
            text += &show::auth_event(event);
        }
        if self.last.status_changed {
            text += "status changed\n";
        }
        if self.last.compacted {
            text += "compacted\n";
        }
        text
    }

    fn history(&self, from: i64) -> String {
        self.events_since(from)
    }

    fn answer(result: Result<String, Error>) -> String {
        match result {
            Ok(text) => text,
            Err(Error::Refused(error)) => format!("{error}\n"),
            Err(Error::Storage(error)) => panic!("{error}"),
        }
    }

    fn get(&self, words: &[&str]) -> String {
        let request = language::range(words);
        let pinned = self.member.pinned();
        let ranged = kv::range_read(&request)
            .map_err(Error::from)
            .and_then(|read| pinned.range(&read));
        Self::answer(ranged.map(|ranged| show::range(&kv::range_response(ranged, pinned.head))))
    }

    fn read_txn(&self, command: &str) -> String {
        let request = language::request(command).txn.expect("a transaction");
        assert!(txn::is_read_only(&request));
        let pinned = self.member.pinned();
        let range = |read: &_| Ok(kv::range_response(pinned.range(read)?, pinned.head));
        Self::answer(txn::read(&pinned, &request, range).map(|txn| show::txn(&txn)))
    }

    fn hash(&self, revision: i64) -> String {
        let hash = self.member.pinned().hash(revision, &std::env::temp_dir());
        Self::answer(hash.map(show_hash).map_err(Error::from))
    }

    fn leases(&self) -> String {
        let mut text = String::new();
        for (id, lease) in self.member.machine.leases().iter() {
            let restart = lease.restart_ttl_s();
            writeln!(text, "{} ttl {} restarts with {restart}", id.0, lease.ttl_s).expect("writes");
        }
        text
    }
}

fn show_hash(hash: HistoryHash) -> String {
    let (number, compacted) = (hash.hash, hash.compacted);
    format!("{number} up to {} compacted {compacted}\n", hash.revision)
}

#[test]
fn scripts() {
    script::play_all("state/testdata", Player::new, Player::play, |player| {
        restarts::check(&player.log);
    });
}

/// `add ID URL [learner]`, `update ID URL`, `promote ID`, `remove ID`; one learner is allowed.
fn member_change(kind: &str, id: &str, rest: &[&str]) -> MemberChange {
    let raft = || RaftAttributes {
        peer_urls: vec![rest.first().expect("a URL").to_string()],
        is_learner: rest.contains(&"learner"),
    };
    let change = match kind {
        "add" => Change::Add(raft()),
        "update" => Change::Update(raft()),
        "promote" => Change::Promote(Nothing {}),
        "remove" => Change::Remove(Nothing {}),
        other => panic!("no change of membership is called {other}"),
    };
    MemberChange {
        member_id: id.parse().expect("a member"),
        change: Some(change),
        max_learners: 1,
        request_id: 0,
    }
}
