//! Counts against walks, over random histories.

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::mvcc::compaction;
use crate::mvcc::read::{PinnedView, RangeRead};
use crate::mvcc::write::Writer;
use crate::storage::memory::MemoryEngine;
use crate::storage::schema::counts as records;
use crate::storage::{Batch, Engine, Family, Read};
use crate::types::{KeyRange, LeaseId};

/// A small generator, so that a seed names a run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn key(&mut self) -> Bytes {
        let bytes = *b"\0\x01ab\xff";
        let len = 1 + self.below(3);
        let byte = |_| bytes[self.below(bytes.len() as u64) as usize];
        (0..len).map(byte).collect::<Vec<_>>().into()
    }

    fn range(&mut self) -> KeyRange {
        let (a, b) = (self.key(), self.key());
        match self.below(6) {
            0 => KeyRange::From(Bytes::new()),
            1 => KeyRange::From(a),
            2 => KeyRange::Span(a, b),
            _ if a < b => KeyRange::Span(a, b),
            _ => KeyRange::Span(b, a),
        }
    }
}

/// A view as a reader holds it, with the number of keys.
struct Seen {
    read: Box<dyn Read>,
    head: i64,
    compacted: i64,
    keys: i64,
    counts: ViewCounts,
}

impl Seen {
    fn pinned(&self) -> PinnedView<'_> {
        PinnedView {
            read: self.read.as_ref(),
            head: self.head,
            compacted: self.compacted,
            counts: Some(&self.counts),
        }
    }
}

struct Member {
    engine: Arc<MemoryEngine>,
    writer: Writer,
    keeper: CountKeeper,
    index: u64,
    answered: u64,
}

impl Member {
    fn open(engine: Arc<MemoryEngine>) -> Self {
        let writer = Writer::open(engine.clone()).expect("opens");
        Self {
            keeper: CountKeeper::new(writer.compacted()),
            engine,
            writer,
            index: 0,
            answered: 0,
        }
    }

    fn see(&self) -> Seen {
        Seen {
            read: self.engine.view(),
            head: self.writer.head(),
            compacted: self.writer.compacted(),
            keys: self.writer.keys(),
            counts: self.keeper.of_view(),
        }
    }

    fn commit(&mut self) {
        self.index += 1;
        self.writer.commit(self.index, 1).expect("commits");
    }

    fn txn(&mut self, random: &mut Random) {
        let mut txn = self.writer.begin();
        for _ in 0..=random.below(3) {
            if random.below(8) == 0 {
                let mut rest = random.range();
                txn.delete_piece(&mut rest, &mut |_, _| Ok(()))
                    .expect("deletes");
            } else if random.below(3) == 0 {
                let mut point = KeyRange::Point(random.key());
                txn.delete_piece(&mut point, &mut |_, _| Ok(()))
                    .expect("deletes");
            } else {
                txn.put(&random.key(), b"v", LeaseId::NONE).expect("puts");
            }
        }
        txn.finish();
        // Some stand in a group with others.
        if random.below(3) > 0 {
            self.commit();
        }
    }

    /// Asks for a compaction, and does it where `prepare` says that nothing holds it up.
    fn compact(&mut self, random: &mut Random, prepares: bool) {
        self.commit();
        let (compacted, head) = (self.writer.compacted().max(0), self.writer.head());
        let target = compacted + random.below((head - compacted + 1) as u64) as i64;
        self.writer.set_compacted(target);
        self.commit();
        if prepares {
            let seen = self.see();
            let caught_up = self.keeper.catch_up(&seen.pinned(), seen.keys);
            caught_up.expect("reads");
            self.keeper.store(self.engine.as_ref()).expect("writes");
        }
        self.keeper.note_removal(target);
        let mut progress = compaction::unfinished(self.engine.as_ref()).expect("reads");
        while let Some(at) = progress {
            let mut batch = Batch::default();
            progress = compaction::step(self.engine.as_ref(), at, 3, &mut batch).expect("steps");
            self.engine.write(&batch).expect("writes");
        }
    }

    fn build(&mut self, random: &mut Random) {
        self.commit();
        let seen = self.see();
        let mut building = Building::new();
        while building
            .step(&seen.pinned(), 1 + random.below(20))
            .expect("reads")
        {}
        assert!(self.keeper.finish(building, &seen.pinned(), seen.keys));
    }

    fn compare(&mut self, random: &mut Random, seen: &Seen) {
        let pinned = seen.pinned();
        let walking = PinnedView {
            counts: None,
            ..pinned
        };
        let lowest = seen.compacted.max(1);
        let older = random.below((seen.head - lowest + 1) as u64) as i64;
        let request = RangeRead {
            revision: match random.below(3) {
                0 => seen.head - older,
                1 => seen.head - older / 8,
                _ => 0,
            },
            limit: random.below(6) as i64,
            count_only: random.below(2) == 0,
            keys_only: true,
            ..RangeRead::all(random.range())
        };
        let revision = pinned.check_revision(request.revision).expect("is there");
        let counted = pinned.count(&request.range, revision).expect("reads");
        self.answered += u64::from(counted.is_some());
        let [with, without] = [pinned, walking].map(|view| view.range(&request).expect("reads"));
        let what = |measured: crate::mvcc::range::Measured| {
            let kvs = measured.kvs.expect("all pairs");
            (
                measured.count,
                measured.more,
                kvs.decoded().expect("decodes"),
            )
        };
        assert_eq!(what(with), what(without), "{request:?}");
    }
}

fn run(seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut member = Member::open(Arc::new(MemoryEngine::new()));
    let mut old: Vec<Seen> = Vec::new();
    for _ in 0..400 {
        match random.below(40) {
            0 => member.build(&mut random),
            1 => {
                let prepares = random.below(4) > 0;
                member.compact(&mut random, prepares);
            }
            2..6 => {
                member.commit();
                let seen = member.see();
                let known = member.keeper.revision().is_some();
                let caught_up = member.keeper.catch_up(&seen.pinned(), seen.keys);
                if caught_up.expect("reads") {
                    assert!(known);
                    assert_eq!(member.keeper.revision(), Some(seen.head));
                }
                for counts in seen.counts.known() {
                    if counts.revision() >= seen.compacted {
                        assert_eq!(counts.miscounted(&seen.pinned()).expect("reads"), []);
                    }
                }
            }
            6 => member.keeper.store(member.engine.as_ref()).expect("writes"),
            7 => member.engine.flush().expect("flushes"),
            // Power fails: what was stored or not is as old as the state, or older.
            8 => {
                member.engine.crash();
                let answered = member.answered;
                member = Member::open(member.engine.clone());
                member.answered = answered;
                old.clear();
                let seen = member.see();
                let read = seen.read.as_ref();
                let taken = member.keeper.take_up(read, &seen.pinned(), seen.keys);
                let taken = taken.expect("reads");
                assert_eq!(taken, member.keeper.revision().is_some());
                assert_eq!(verify(&seen.pinned()).expect("reads"), []);
            }
            _ => member.txn(&mut random),
        }
        if random.below(4) == 0 {
            member.commit();
            let seen = member.see();
            member.compare(&mut random, &seen);
            old.push(seen);
        }
        if !old.is_empty() {
            let at = random.below(old.len() as u64) as usize;
            let seen = old.swap_remove(at);
            member.compare(&mut random, &seen);
            if random.below(3) > 0 {
                old.push(seen);
            }
        }
    }
    member.answered
}

#[test]
fn counts_are_those_of_a_walk() {
    let answered: u64 = (0..60).map(run).sum();
    assert!(answered > 2_000, "{answered} of the counts need no walk");
}

/// Of `count` keys, with counts of all of them.
fn filled(count: u64) -> Member {
    let mut member = Member::open(Arc::new(MemoryEngine::new()));
    for number in 0..count {
        let key = Bytes::from(format!("{number:06}"));
        let mut txn = member.writer.begin();
        txn.put(&key, b"v", LeaseId::NONE).expect("puts");
        txn.finish();
    }
    member.build(&mut Random(1));
    member
}

fn newest(member: &Member) -> Arc<KeyCounts> {
    let seen = member.see();
    seen.counts.known().pop().expect("there are counts")
}

#[test]
fn blocks_stay_of_a_size() {
    let mut member = filled(200);
    let sizes = |member: &Member| {
        let counts = newest(member);
        let most = counts.blocks().map(|block| block.keys).max();
        let chunks = counts.chunks.iter().map(|chunk| chunk.blocks.len());
        (counts.blocks().count(), most, chunks.max())
    };
    assert_eq!(sizes(&member), (50, Some(4), Some(3)));
    // All of them into one block.
    for number in 0..200 {
        let mut txn = member.writer.begin();
        let key = Bytes::from(format!("000100-{number:03}"));
        txn.put(&key, b"v", LeaseId::NONE).expect("puts");
        txn.finish();
    }
    let catch_up = |member: &mut Member| {
        member.commit();
        let seen = member.see();
        let caught_up = member.keeper.catch_up(&seen.pinned(), seen.keys);
        assert!(caught_up.expect("reads"));
        assert_eq!(
            newest(member).miscounted(&seen.pinned()).expect("reads"),
            []
        );
    };
    catch_up(&mut member);
    let (blocks, most, chunk) = sizes(&member);
    assert!(
        blocks >= 99 && most <= Some(8) && chunk <= Some(6),
        "{blocks} {most:?} {chunk:?}"
    );
    let mut txn = member.writer.begin();
    let mut all = KeyRange::From(Bytes::from("000001"));
    txn.delete_piece(&mut all, &mut |_, _| Ok(()))
        .expect("deletes");
    txn.finish();
    catch_up(&mut member);
    let (blocks, ..) = sizes(&member);
    assert!(blocks < 4, "{blocks} blocks of one key");
}

#[test]
fn what_was_stored_is_taken_up_or_made_anew() {
    let member = filled(100);
    let engine = member.engine.clone();
    member.keeper.store(engine.as_ref()).expect("writes");
    let stored = KeyCounts::load(engine.latest()).expect("reads");
    assert_eq!(stored.as_ref(), Some(newest(&member).as_ref()));
    let block = records::block_key(
        &stored
            .expect("is there")
            .blocks()
            .nth(3)
            .expect("a block")
            .from,
    );
    let head = engine.get(Family::Counts, records::HEAD).expect("reads");
    let head = head.expect("is there");
    // A record that is gone, one that is none, and a head that is not theirs.
    let damages: [(&[u8], Option<&[u8]>); 6] = [
        (&block, None),
        (&block, Some(b"\x03")),
        (&block, Some(b"")),
        (records::HEAD, None),
        (records::HEAD, Some(&head[1..])),
        (b"b\xff", Some(b"\x01")),
    ];
    for (key, value) in damages {
        let damaged = engine.copy();
        let mut batch = Batch::default();
        match value {
            Some(value) => batch.put(Family::Counts, key, value),
            None => batch.delete(Family::Counts, key),
        }
        damaged.write(&batch).expect("writes");
        assert_eq!(KeyCounts::load(damaged.latest()).expect("reads"), None);
        // What is stored over it is whole again.
        newest(&member).store(&damaged).expect("writes");
        let again = KeyCounts::load(damaged.latest()).expect("reads");
        assert_eq!(again.as_ref(), Some(newest(&member).as_ref()));
    }
}

#[test]
fn counts_that_are_wrong_in_sum_are_not_kept() {
    let mut member = filled(100);
    let mut txn = member.writer.begin();
    txn.put(&Bytes::from("x"), b"v", LeaseId::NONE)
        .expect("puts");
    txn.finish();
    member.commit();
    let seen = member.see();
    let caught_up = member.keeper.catch_up(&seen.pinned(), seen.keys + 1);
    assert!(!caught_up.expect("reads"));
    assert_eq!(member.keeper.revision(), None);
}

#[test]
fn verification_names_a_block_that_is_wrong() {
    let member = filled(100);
    let counts = newest(&member);
    let mut blocks: Vec<KeyBlock> = counts.blocks().cloned().collect();
    blocks[2].keys += 1;
    blocks[5].keys -= 1;
    KeyCounts::of(counts.revision, counts.block_keys, blocks)
        .store(member.engine.as_ref())
        .expect("writes");
    let seen = member.see();
    let found = verify(&seen.pinned()).expect("reads");
    let wrong: Vec<_> = found
        .iter()
        .map(|block| (block.counted, block.there))
        .collect();
    assert_eq!(wrong, [(5, 4), (3, 4)]);
}

#[test]
fn blocks_become_larger_where_their_keys_are_long() {
    let long = |number: u64| [vec![b'k'; 64 << 10], number.to_be_bytes().to_vec()].concat();
    let mut building = build::BlockBuilder::new(Bytes::new(), BLOCK_KEYS);
    for number in 0..1_000 {
        building.push(&long(number));
    }
    let (blocks, block_keys) = building.finish();
    assert!(
        block_keys > BLOCK_KEYS && blocks.len() < 128,
        "{block_keys}"
    );
    assert_eq!(blocks.iter().map(|block| block.keys).sum::<u64>(), 1_000);
}
