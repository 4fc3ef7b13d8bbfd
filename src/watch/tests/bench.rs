//! How long a publish takes beside many watches; run with `--ignored --nocapture` in release.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::world::{Op, WatchWorld};
use crate::mvcc::Change;
use crate::types::KeyRange;
use crate::watch::{Hub, Limits, Request, Stream};

const ROUNDS: usize = 200;

fn request(range: KeyRange) -> Request {
    Request {
        watch_id: 0,
        range,
        start_revision: 0,
        prev_kv: false,
        no_put: false,
        no_delete: false,
        fragment: false,
        progress_notify: false,
    }
}

fn key(number: usize) -> Bytes {
    format!("key/{number:08}").into()
}

/// `streams` streams that share `ranges`, one watch a range.
fn streams(hub: &Arc<Hub>, streams: usize, ranges: Vec<KeyRange>) -> Vec<Stream> {
    let mut all: Vec<_> = (0..streams).map(|_| hub.open(Arc::new(|| {}))).collect();
    for (at, range) in ranges.into_iter().enumerate() {
        let made = all[at % streams].create(request(range), hub.head());
        assert!(made.is_ok());
    }
    all
}

fn measure(name: &str, count: usize, ranges: Vec<KeyRange>, changed: impl Fn(usize) -> usize) {
    let mut world = WatchWorld::new();
    let hub = Hub::new(world.head(), Limits::default());
    let mut all = streams(&hub, count, ranges);
    let batches: Vec<(i64, Vec<Change>)> = (0..ROUNDS)
        .map(|round| {
            let op = Op::Put(key(changed(round)), vec![b'v'; 256].into());
            let changes = world.txn(&[op]);
            (world.head(), changes)
        })
        .collect();
    let view = world.view();
    let (mut publishing, mut reading, mut outputs) = (0.0, 0.0, 0);
    for (head, changes) in &batches {
        let start = Instant::now();
        hub.publish(*head, changes);
        publishing += start.elapsed().as_secs_f64();
        let start = Instant::now();
        for stream in &mut all {
            while stream.next(&view.pinned()).expect("reads").is_some() {
                outputs += 1;
            }
        }
        reading += start.elapsed().as_secs_f64();
    }
    println!(
        "{name}: a publish {:.2} us, {:.1} outputs, reading them {:.2} us",
        publishing * 1e6 / ROUNDS as f64,
        outputs as f64 / ROUNDS as f64,
        reading * 1e6 / ROUNDS as f64,
    );
}

#[test]
#[ignore = "a measurement"]
fn publish_beside_many_watches() {
    let point = |number| KeyRange::Point(key(number));
    let same = || (0..1_000).map(|_| point(0)).collect();
    measure("1,000 watches of one key, 1 stream", 1, same(), |_| 0);
    measure(
        "1,000 watches of one key, 1,000 streams",
        1_000,
        same(),
        |_| 0,
    );
    let disjoint = || (0..10_000).map(point).collect();
    measure("10,000 keys watched, one put", 10, disjoint(), |round| {
        round * 37
    });
    measure("10,000 keys watched, another put", 10, disjoint(), |_| {
        1 << 20
    });
    let prefixes = (0..10_000)
        .map(|number| KeyRange::Span(key(number), key(number + 1)))
        .collect();
    measure("10,000 ranges watched, one put", 10, prefixes, |round| {
        round * 37
    });
    measure("nothing watched", 1, Vec::new(), |_| 0);
}
