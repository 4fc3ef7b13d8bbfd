//! What both engines promise alike, tried on both with the same random changes.

use std::sync::Arc;

use super::memory::MemoryEngine;
use super::rocks::{EngineLimits, RocksEngine};
use super::{Batch, Cursor, Engine, Family, Read};

const KEYS: [&[u8]; 8] = [
    b"",
    b"\0",
    b"a",
    b"a\0",
    b"a\xff",
    b"b",
    b"\xff",
    b"\xff\xff",
];

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

    fn key(&mut self) -> &'static [u8] {
        KEYS[self.below(KEYS.len() as u64) as usize]
    }

    fn family(&mut self) -> Family {
        Family::ALL[self.below(Family::ALL.len() as u64) as usize]
    }

    fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        for _ in 0..self.below(8) {
            let (family, key) = (self.family(), self.key());
            match self.below(3) {
                0 => batch.delete(family, key),
                1 => batch.put(family, key, &[]),
                _ => batch.put_parts(family, &[key], &[b"v", &[self.below(256) as u8]]),
            }
        }
        batch
    }
}

/// The same moves of a cursor over the same bounds.
fn walk(random: &mut Random, reads: [&dyn Read; 2]) {
    let (family, lower) = (random.family(), random.key());
    let upper = (random.below(3) > 0).then(|| random.key());
    let mut cursors = reads.map(|read| read.cursor(family, lower, upper).expect("a cursor"));
    for _ in 0..random.below(12) {
        let seek = (random.below(3) == 0).then(|| random.key().max(lower));
        let seen = cursors.each_mut().map(|cursor| {
            let found = match seek {
                Some(key) => cursor.seek(key),
                None => cursor.next(),
            };
            let at = |cursor: &dyn Cursor| (cursor.key().to_vec(), cursor.value().to_vec());
            found.expect("moves").then(|| at(cursor.as_ref()))
        });
        assert_eq!(seen[0], seen[1], "{family:?} from {lower:?} to {upper:?}");
        let bounded = |key: &[u8]| key >= lower && upper.is_none_or(|upper| key < upper);
        assert!(seen[0].as_ref().is_none_or(|(key, _)| bounded(key)));
    }
}

#[test]
fn engines_agree() {
    for seed in 0..20 {
        let dir = tempfile::tempdir().expect("a directory");
        let budget = EngineLimits {
            open_files: 256,
            block_cache_bytes: 1 << 20,
            memtable_bytes: 8 << 20,
        };
        let rocks: Arc<dyn Engine> =
            Arc::new(RocksEngine::open(dir.path(), budget).expect("opens"));
        let memory: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
        let engines = [&rocks, &memory];
        let mut random = Random(seed);
        let mut views: Vec<[Box<dyn Read>; 2]> = Vec::new();
        for _ in 0..30 {
            let batch = random.batch();
            for engine in engines {
                engine.write(&batch).expect("writes");
            }
            if random.below(4) == 0 {
                for engine in engines {
                    engine.flush().expect("flushes");
                    assert_eq!(engine.unflushed_bytes(), 0);
                }
            }
            if random.below(4) == 0 {
                views.push(engines.map(|engine| engine.view()));
            }
            for _ in 0..4 {
                walk(&mut random, engines.map(|engine| engine.latest()));
                let (family, key) = (random.family(), random.key());
                let got = engines.map(|engine| engine.latest().get(family, key).expect("reads"));
                assert_eq!(got[0], got[1]);
                let persisted = engines.map(|engine| engine.persisted(key).expect("reads"));
                assert_eq!(persisted[0], persisted[1]);
                if let Some(at) = views.len().checked_sub(1 + random.below(5) as usize) {
                    walk(&mut random, views[at].each_ref().map(|view| view.as_ref()));
                }
            }
        }
    }
}

#[test]
fn a_crash_forgets_what_was_not_flushed() {
    let engine = MemoryEngine::new();
    let mut batch = Batch::default();
    batch.put(Family::Meta, b"a", b"1");
    engine.write(&batch).expect("writes");
    engine.flush().expect("flushes");
    batch.clear();
    batch.put(Family::Meta, b"a", b"2");
    batch.put(Family::Current, b"b", b"2");
    engine.write(&batch).expect("writes");
    let view = engine.view();
    engine.crash();
    assert_eq!(
        engine.get(Family::Meta, b"a").expect("reads"),
        Some("1".into())
    );
    assert_eq!(engine.get(Family::Current, b"b").expect("reads"), None);
    assert_eq!(
        view.get(Family::Meta, b"a").expect("reads"),
        Some("2".into())
    );
}

/// What an engine holds after these puts (`true`) and deletes.
fn holding(changes: &[(bool, Family, &[u8], &[u8])]) -> MemoryEngine {
    let engine = MemoryEngine::new();
    for (put, family, key, value) in changes {
        let mut batch = Batch::default();
        match put {
            true => batch.put(*family, key, value),
            false => batch.delete(*family, key),
        }
        engine.write(&batch).expect("writes");
    }
    engine
}

#[test]
fn the_content_hash_is_that_of_what_members_agree_on() {
    use super::schema::meta;
    use Family::{Current, Meta, Revisions, Undo};
    let once = holding(&[(true, Current, b"a", b"1"), (true, Meta, b"b", b"2")]);
    let detour = holding(&[
        (true, Meta, b"b", b"2"),
        (true, Current, b"a", b"0"),
        (true, Current, b"c", b"3"),
        (true, Undo, b"a", b"0"),
        (true, Revisions, b"1", b"a"),
        (true, Meta, meta::COMPACTION_FINISHED, b"7"),
        (true, Current, b"a", b"1"),
        (false, Current, b"c", b""),
        (false, Current, b"d", b""),
    ]);
    assert_eq!(once.content_hash(), detour.content_hash());
    assert_eq!(once.copy().content_hash(), once.content_hash());
    assert_eq!(once.survivor().content_hash(), holding(&[]).content_hash());
    for other in [
        holding(&[(true, Current, b"a", b"1"), (true, Meta, b"b", b"3")]),
        holding(&[(true, Meta, b"a", b"1"), (true, Current, b"b", b"2")]),
        holding(&[(true, Current, b"a", b"1")]),
        holding(&[(true, Current, b"a", b"1"), (true, Meta, b"b2", b"")]),
    ] {
        assert_ne!(once.content_hash(), other.content_hash());
    }
}

#[test]
fn an_engine_in_memory_has_a_size() {
    let engine = holding(&[
        (true, Family::Current, b"a", b"12345"),
        (true, Family::Current, b"a", b"1"),
        (true, Family::Current, b"bb", b"2"),
        (false, Family::Current, b"bb", b""),
    ]);
    let sizes = |engine: &MemoryEngine| {
        let size = engine.size();
        (size.total_bytes, size.in_use_bytes)
    };
    assert_eq!(sizes(&engine), (11, 2));
    engine.compact().expect("compacts");
    assert_eq!(sizes(&engine), (2, 2));
    assert!(engine.unflushed_bytes() > 0);
    engine.flush().expect("flushes");
    assert_eq!(engine.unflushed_bytes(), 0);
}
