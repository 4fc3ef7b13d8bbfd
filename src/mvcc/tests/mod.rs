//! The keyspace alone, without what entries mean: scripts of `testdata/`.
//!
//! | command | does |
//! |---|---|
//! | `put K V [lease=N]`, `del RANGE` | one transaction |
//! | `txn OP; OP...` | one transaction of many such changes |
//! | `hold`, `commit` | keeps transactions pending, as within a group of entries; writes them |
//! | `get RANGE [OPTION...]` | a range read, pending changes included; options as in `read` |
//! | `history FROM [revisions=N] [records=N] [bytes=N] [only=RANGE] [prev] [noput] [nodelete]` | one page |
//! | `compact R`, `step N`, `steps` | asks for a compaction; N records of it; all of it |
//! | `hash [R]` | |
//! | `families` | what `current`, `undo` and `revisions` hold |

pub mod golden;

use std::fmt::Write;
use std::sync::Arc;

use self::golden::{bytes, number, range, show_bytes, show_event, show_kv};
use super::compaction::{self, Progress};
use super::history::{PageLimit, WithPrevious};
use super::read::{PinnedView, RangeRead, SortOrder, SortTarget};
use super::write::{Txn, Writer};
use super::{Change, Error};
use crate::script;
use crate::storage::memory::MemoryEngine;
use crate::storage::schema::{self, ChangeKind, RevisionRecord, Version};
use crate::storage::{Batch, Engine, Family, Read};
use crate::types::LeaseId;

struct Player {
    engine: Arc<MemoryEngine>,
    writer: Writer,
    index: u64,
    holds: bool,
    progress: Option<Progress>,
}

impl Player {
    fn new() -> Self {
        let engine = Arc::new(MemoryEngine::new());
        let writer = Writer::open(engine.clone()).expect("opens");
        Self {
            engine,
            writer,
            index: 0,
            holds: false,
            progress: None,
        }
    }

    fn play(&mut self, command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        match words[0] {
            "put" | "del" => self.txn(&[command]),
            "txn" => {
                let ops: Vec<_> = command["txn".len()..].split(';').collect();
                self.txn(&ops)
            }
            "hold" => {
                self.holds = true;
                String::new()
            }
            "commit" => {
                self.holds = false;
                self.commit();
                String::new()
            }
            "get" => self.get(&words[1..]),
            "history" => self.history(&words[1..]),
            "compact" => {
                let target = words[1].parse().expect("a revision");
                self.writer.set_compacted(target);
                self.commit();
                self.progress = compaction::unfinished(self.engine.as_ref()).expect("reads");
                format!("{:?}\n", self.progress)
            }
            "step" => self.step(words[1].parse().expect("a number")),
            "steps" => {
                while self.progress.is_some() {
                    self.step(1);
                }
                String::new()
            }
            "hash" => self.hash(
                words
                    .get(1)
                    .map_or(0, |word| word.parse().expect("a number")),
            ),
            "families" => families(self.engine.as_ref()),
            _ => panic!("not a command"),
        }
    }

    fn commit(&mut self) {
        self.index += 1;
        self.writer.commit(self.index, 1).expect("commits");
    }

    fn txn(&mut self, ops: &[&str]) -> String {
        let mut txn = self.writer.begin();
        for op in ops {
            change(&mut txn, &op.split_whitespace().collect::<Vec<_>>());
        }
        let (changes, _) = txn.finish();
        let mut text = format!("revision {}\n", self.writer.head());
        for change in &changes {
            writeln!(text, "{}", show_change(change)).expect("writes");
        }
        if !self.holds {
            self.commit();
        }
        text
    }

    /// Runs `read` on the newest state, pending changes included.
    fn read(&self, read: impl FnOnce(PinnedView<'_>) -> Result<String, Error>) -> String {
        let pending = self.writer.pending();
        let pinned = PinnedView {
            read: &pending,
            head: self.writer.head(),
            compacted: self.writer.compacted(),
            counts: None,
        };
        match read(pinned) {
            Ok(text) => text,
            Err(Error::Refused(error)) => format!("{error}\n"),
            Err(Error::Storage(error)) => panic!("{error}"),
        }
    }

    fn get(&self, words: &[&str]) -> String {
        let request = range_read(words);
        self.read(|pinned| {
            let ranged = pinned.range(&request)?;
            let mut text = format!("count {}", ranged.count);
            if ranged.more {
                text.push_str(" more");
            }
            text.push('\n');
            let kvs = ranged.kvs.expect("all pairs");
            for kv in kvs.decoded().expect("decodes") {
                writeln!(text, "{}", show_kv(&kv)).expect("writes");
            }
            Ok(text)
        })
    }

    fn history(&self, words: &[&str]) -> String {
        let size = |name| number(words, name).map_or(usize::MAX, |number| number as usize);
        let limit = PageLimit {
            revisions: size("revisions"),
            records: size("records"),
            bytes: size("bytes"),
            whole_bytes: size("whole"),
        };
        let only = words.iter().find_map(|word| word.strip_prefix("only="));
        let only = range(only.unwrap_or("\\x00.."));
        let has = |name| words.contains(&name);
        let mut wanted = |key: &[u8], kind, _| {
            let refused = match kind {
                ChangeKind::Put => has("noput"),
                ChangeKind::Delete => has("nodelete"),
            };
            (only.contains(key) && !refused).then_some(WithPrevious(has("prev")))
        };
        let from = words[0].parse().expect("a revision");
        self.read(|pinned| {
            let page = pinned.changes(from, limit, &mut wanted)?;
            let mut text = String::new();
            for change in &page.changes {
                writeln!(text, "{}", show_change(change)).expect("writes");
            }
            writeln!(text, "next {}", page.next).expect("writes");
            Ok(text)
        })
    }

    fn step(&mut self, limit: usize) -> String {
        let progress = self.progress.expect("a compaction that is asked for");
        let mut batch = Batch::default();
        let read = self.engine.view();
        self.progress =
            compaction::step(read.as_ref(), progress, limit, &mut batch).expect("steps");
        self.engine.write(&batch).expect("writes");
        match self.progress {
            Some(progress) => format!("next {}\n", progress.next),
            None => "finished\n".to_owned(),
        }
    }

    fn hash(&self, revision: i64) -> String {
        self.read(|pinned| {
            let hash = pinned.hash(revision, &std::env::temp_dir())?;
            Ok(format!(
                "{} up to {} compacted {}\n",
                hash.hash, hash.revision, hash.compacted
            ))
        })
    }
}

fn change(txn: &mut Txn<'_>, words: &[&str]) {
    match words {
        ["put", key, value, rest @ ..] => {
            let lease = LeaseId(number(rest, "lease").unwrap_or_default());
            txn.put(&bytes(key), &bytes(value), lease).expect("puts");
        }
        ["del", keys] => {
            txn.delete_piece(&mut range(keys), &mut |_, _| Ok(()))
                .expect("deletes");
        }
        _ => panic!("not a change: {words:?}"),
    }
}

fn range_read(words: &[&str]) -> RangeRead {
    let option = |name| number(words, name).unwrap_or_default();
    RangeRead {
        revision: option("rev"),
        limit: option("limit"),
        sort_target: match words.iter().find_map(|word| word.strip_prefix("sort=")) {
            None | Some("key") => SortTarget::Key,
            Some("version") => SortTarget::Version,
            Some("create") => SortTarget::Create,
            Some("mod") => SortTarget::Mod,
            Some("value") => SortTarget::Value,
            Some(other) => panic!("not a sort target: {other}"),
        },
        sort_order: match (words.contains(&"asc"), words.contains(&"desc")) {
            (true, _) => SortOrder::Ascend,
            (_, true) => SortOrder::Descend,
            _ => SortOrder::None,
        },
        keys_only: words.contains(&"keys_only"),
        count_only: words.contains(&"count_only"),
        min_mod_revision: option("min_mod"),
        max_mod_revision: option("max_mod"),
        min_create_revision: option("min_create"),
        max_create_revision: option("max_create"),
        ..RangeRead::all(range(words[0]))
    }
}

fn show_change(change: &Change) -> String {
    let event = change.to_event(true).decoded().expect("decodes");
    format!("{} {}", change.revision, show_event(&event))
}

fn show_version(version: &Version) -> String {
    format!(
        "c{} m{} v{} {}",
        version.create_revision,
        version.mod_revision,
        version.version,
        show_bytes(&version.value())
    )
}

fn families(read: &dyn Read) -> String {
    let mut text = String::new();
    for family in [Family::Current, Family::Undo, Family::Revisions] {
        let mut cursor = read.cursor(family, &[], None).expect("reads");
        while cursor.next().expect("reads") {
            let (key, value) = (cursor.key(), cursor.value().to_vec());
            let version = |value: Vec<u8>| {
                show_version(&Version::decode(value.into(), family, key).expect("decodes"))
            };
            let line = match family {
                Family::Current => format!("{} {}", show_bytes(key), version(value)),
                Family::Undo => {
                    let (key, superseding) = schema::decode_undo_key(key).expect("decodes");
                    format!(
                        "{} until {superseding} {}",
                        show_bytes(&key),
                        version(value)
                    )
                }
                _ => {
                    let revision = schema::decode_revision_key(key).expect("decodes");
                    let record = RevisionRecord::decode(key, &value).expect("decodes");
                    let over = record
                        .superseded
                        .map_or(String::new(), |revision| format!(" over {revision}"));
                    let key = show_bytes(record.key);
                    format!("{revision} {:?} {key}{over}", record.kind)
                }
            };
            writeln!(text, "{} {line}", family.name()).expect("writes");
        }
    }
    text
}

#[test]
fn scripts() {
    script::play_all("mvcc/testdata", Player::new, Player::play, drop);
}
