//! Random entries on RocksDB beside memory: what a crash or a restart leaves is the state after
//! one of the batches, whole, and no older than the last flush.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::member::{Dump, Member, dump};
use super::random::{Pair, seeds};
use crate::state::Machine;
use crate::storage::memory::MemoryEngine;
use crate::storage::rocks::{EngineLimits, RocksEngine};
use crate::storage::{self, Batch, Cursor, Engine, Family, Read, Size};

/// RocksDB, and what it has to hold after each batch since it was opened.
struct Twin {
    rocks: RocksEngine,
    memory: MemoryEngine,
    after: Mutex<Vec<Dump>>,
    flushed: Mutex<usize>,
}

impl Twin {
    fn open(dir: &Path, budget: EngineLimits) -> Self {
        let rocks = RocksEngine::open(dir, budget).expect("opens");
        let found = dump(&rocks);
        let memory = MemoryEngine::new();
        let mut batch = Batch::default();
        for (family, key, value) in &found {
            batch.put(*family, key, value);
        }
        memory.write(&batch).expect("writes");
        Self {
            rocks,
            memory,
            after: Mutex::new(vec![found]),
            flushed: Mutex::new(0),
        }
    }
}

impl Read for Twin {
    fn get(&self, family: Family, key: &[u8]) -> storage::Result<Option<Bytes>> {
        self.rocks.get(family, key)
    }

    fn cursor<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> storage::Result<Box<dyn Cursor + 'a>> {
        self.rocks.cursor(family, lower, upper)
    }
}

impl Engine for Twin {
    fn latest(&self) -> &dyn Read {
        self.rocks.latest()
    }

    fn view(&self) -> Box<dyn Read> {
        self.rocks.view()
    }

    fn write(&self, batch: &Batch) -> storage::Result<()> {
        self.rocks.write(batch)?;
        self.memory.write(batch)?;
        let (now, mut after) = (dump(&self.memory), self.after.lock());
        // A batch that changes nothing cannot be distinguished from the one before it.
        if after.last() != Some(&now) {
            after.push(now);
        }
        Ok(())
    }

    fn flush(&self) -> storage::Result<()> {
        self.rocks.flush()?;
        *self.flushed.lock() = self.after.lock().len() - 1;
        Ok(())
    }

    fn persisted(&self, key: &[u8]) -> storage::Result<Option<Bytes>> {
        self.rocks.persisted(key)
    }

    fn size(&self) -> Size {
        self.rocks.size()
    }

    fn unflushed_bytes(&self) -> u64 {
        self.rocks.unflushed_bytes()
    }

    fn compact(&self) -> storage::Result<()> {
        self.rocks.compact()
    }

    fn checkpoint(&self, dir: &Path) -> storage::Result<()> {
        self.rocks.checkpoint(dir)
    }

    fn retire(&self) {
        self.rocks.retire();
    }
}

fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("reads")
        .filter_map(|entry| {
            let entry = entry.expect("an entry");
            // A file that is being removed has no size any more.
            Some((entry.path(), entry.metadata().ok()?.len()))
        })
        .collect();
    files.sort();
    files
}

/// The files of `from` at one moment, as a machine that stops dead leaves them.
fn copy(from: &Path, to: &Path) {
    loop {
        let _ = std::fs::remove_dir_all(to);
        std::fs::create_dir(to).expect("creates");
        let before = files(from);
        let copied = before.iter().all(|(path, _)| {
            let name = path.file_name().expect("a file");
            std::fs::copy(path, to.join(name)).is_ok()
        });
        // A flush in between would tear the copy, as no crash does.
        if copied && files(from) == before {
            return;
        }
    }
}

/// How a run ended.
struct End {
    /// What was there after each batch that changed something.
    after: Vec<Dump>,
    /// The batch that was flushed last.
    flushed: usize,
    crashed: bool,
}

/// Applies some groups, then stops: by a crash, or in order.
fn live(pair: &mut Pair, dir: &Path, next_dir: &Path, budget: EngineLimits) -> End {
    let twin = Arc::new(Twin::open(dir, budget));
    let mut member = Member::on(twin.clone());
    let lost = pair.log.len() as u64;
    let group = 1 + pair.random.below(5) as usize;
    member.apply_log(&pair.log, lost, group);
    member.compact(7, usize::MAX);
    pair.compare(&member, true);
    for _ in 0..15 {
        pair.grow(&mut member);
        member.compact(3, pair.random.below(4) as usize);
        if pair.random.once_in(6) {
            twin.flush().expect("flushes");
            let applied = member.machine.applied_index();
            let durable = || Machine::durable_applied_index(twin.as_ref()).expect("reads");
            let shown = (0..500).any(|_| {
                durable() == applied || {
                    std::thread::sleep(Duration::from_millis(10));
                    false
                }
            });
            assert!(shown, "{} of {applied}", durable());
        }
        assert!(dump(&twin.rocks) == dump(&twin.memory));
    }
    member.compact(7, usize::MAX);
    pair.compare(&member, true);
    if pair.random.once_in(3) {
        twin.compact().expect("compacts");
    }
    let (after, flushed) = (twin.after.lock().clone(), *twin.flushed.lock());
    let crashed = pair.random.once_in(2);
    if !crashed {
        // Closes the database before its files are taken.
        drop((member, twin));
    }
    copy(dir, next_dir);
    End {
        after,
        flushed,
        crashed,
    }
}

/// Returns how many crashes kept more than was flushed on demand.
fn play(seed: u64, memtable_bytes: usize) -> usize {
    println!("seed {seed}");
    let budget = EngineLimits {
        open_files: 256,
        block_cache_bytes: 1 << 20,
        memtable_bytes,
    };
    let base = tempfile::tempdir().expect("a directory");
    let dir = |round: u64| base.path().join(round.to_string());
    std::fs::create_dir(dir(0)).expect("creates");
    let mut pair = Pair::new(seed);
    let mut kept_more = 0;
    for round in 0..4 {
        let end = live(&mut pair, &dir(round), &dir(round + 1), budget);
        let found = dump(&RocksEngine::open(&dir(round + 1), budget).expect("opens"));
        let position = end.after.iter().rposition(|dump| *dump == found);
        let position = position.expect("the state after some batch");
        assert!(position >= end.flushed);
        kept_more += usize::from(end.crashed && position > end.flushed);
    }
    let mut plain = Member::new();
    plain.apply_log(&pair.log, pair.log.len() as u64, 4);
    let last = Arc::new(Twin::open(&dir(4), budget));
    let mut member = Member::on(last);
    member.apply_log(&pair.log, pair.log.len() as u64, 3);
    assert!(member.settled_dump() == plain.settled_dump());
    kept_more
}

#[test]
fn crashes_leave_what_was_flushed() {
    for seed in seeds(4) {
        assert_eq!(play(seed, 64 << 20), 0);
    }
}

/// RocksDB flushes on its own all the time: never one family without the others.
#[test]
fn crashes_between_flushes_of_the_engine() {
    let kept_more: usize = seeds(6).map(|seed| play(100 + seed, 8 << 10)).sum();
    assert!(kept_more > 0, "the engine did not flush on its own");
}
