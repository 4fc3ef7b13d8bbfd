//! Reads of much leave the engine's cache to others.

use std::sync::Arc;

use super::super::Machine;
use super::super::machine::{Entry, Payload};
use crate::mvcc::pages::{Pages, Rooms};
use crate::mvcc::read::{PinnedView, RangeRead, SortOrder, SortTarget};
use crate::proto::etcdserverpb::{InternalRaftRequest, PutRequest};
use crate::storage::Engine;
use crate::storage::rocks::{EngineLimits, RocksEngine};
use crate::types::KeyRange;

const KEYS: u64 = 1_500;
const VALUE_BYTES: usize = 10 << 10;
/// Of all values.
const ALL_BYTES: usize = KEYS as usize * VALUE_BYTES;

/// An engine that holds the keys k0000, k0001, ... in files, and its head.
fn filled(dir: &std::path::Path) -> (Arc<RocksEngine>, i64) {
    let limits = EngineLimits {
        open_files: 64,
        block_cache_bytes: 4 * ALL_BYTES,
        memtable_bytes: 1 << 20,
    };
    let engine = Arc::new(RocksEngine::open(dir, limits).expect("opens"));
    let mut machine = Machine::open(engine.clone()).expect("opens");
    let put = |at: u64| {
        // Nothing that could be compressed.
        let value = (0..VALUE_BYTES as u64 / 8).flat_map(|place| {
            let mixed = (at << 32 | place).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed ^ mixed >> 29).to_le_bytes()
        });
        let put = PutRequest {
            key: format!("k{at:04}").into(),
            value: value.collect::<Vec<_>>().into(),
            ..Default::default()
        };
        Entry {
            index: at + 1,
            term: 1,
            payload: Payload::Decoded(Arc::new(InternalRaftRequest {
                put: Some(put),
                ..Default::default()
            })),
        }
    };
    for keys in (0..KEYS).collect::<Vec<_>>().chunks(50) {
        let entries = keys.iter().map(|at| put(*at)).collect();
        machine.apply(entries).expect("applies");
    }
    engine.flush().expect("flushes");
    (engine, machine.head())
}

fn pages(pinned: &PinnedView<'_>, read: &RangeRead) {
    let measured = pinned.measure(read, &mut |_| false).expect("reads");
    assert!(measured.kvs.is_none());
    let mut pages = Pages::new(pinned, read.clone(), measured.pairs).expect("pages");
    let mut bytes = 0;
    loop {
        let (mut any, mut rows) = (|_: usize| true, |_: usize| true);
        let mut rooms = Rooms {
            page_bytes: 256 << 10,
            large_pair: &mut any,
            rows: &mut rows,
        };
        let Some(page) = pages.next(pinned, &mut rooms).expect("reads") else {
            break;
        };
        bytes += page.bytes.len() as u64;
    }
    assert_eq!(bytes, measured.size_bytes);
}

#[test]
fn reads_of_everything_take_little_of_the_cache() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, head) = filled(dir.path());
    let view = engine.view();
    let pinned = PinnedView {
        read: view.as_ref(),
        head,
        compacted: -1,
        counts: None,
    };
    let all = RangeRead::all(KeyRange::From("k".into()));
    let by_value = RangeRead {
        sort_target: SortTarget::Value,
        sort_order: SortOrder::Ascend,
        ..all.clone()
    };
    let count = RangeRead {
        count_only: true,
        ..all.clone()
    };
    let past = RangeRead {
        revision: head - 1,
        ..count.clone()
    };
    let cached = || engine.size().block_cache_bytes as usize;
    let mut before = cached();
    for (name, read) in [
        ("pages", &all),
        ("sorted pages", &by_value),
        ("a count", &count),
        ("a count in the past", &past),
    ] {
        match read.count_only {
            true => drop(pinned.measure(read, &mut |_| false).expect("reads")),
            false => pages(&pinned, read),
        }
        let taken = cached() - before;
        assert!(taken < ALL_BYTES / 3, "{name}: {taken}");
        before += taken;
    }
    // Single reads fill it.
    for at in 0..KEYS {
        let key = format!("k{at:04}");
        assert!(pinned.get(key.as_bytes(), head).expect("reads").is_some());
    }
    let taken = cached() - before;
    assert!(taken > ALL_BYTES / 2, "{taken}");
}
