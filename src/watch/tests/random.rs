//! Random writers, watches, limits and readers, checked against a second history.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;

use super::world::{Checker, Expectation, Op, View, WatchWorld};
use crate::mvcc::Change;
use crate::mvcc::write::Sliced;
use crate::types::KeyRange;
use crate::watch::{Hub, Limits, Output, Request, Stream};

/// A small generator; the seed is the test's only chance.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: i64) -> i64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as i64
    }

    pub fn chance(&mut self, one_in: i64) -> bool {
        self.below(one_in) == 0
    }

    pub fn key(&mut self) -> Bytes {
        let name = b'a' + self.below(8) as u8;
        if self.chance(3) {
            Bytes::from(vec![name, b'x'])
        } else {
            Bytes::from(vec![name])
        }
    }

    pub fn range(&mut self) -> KeyRange {
        match self.below(5) {
            0 => KeyRange::From(self.key()),
            1 | 2 => KeyRange::Span(self.key(), self.key()),
            _ => KeyRange::Point(self.key()),
        }
    }

    pub fn ops(&mut self) -> Vec<Op> {
        let count = if self.chance(3) { 1 + self.below(6) } else { 1 };
        (0..count)
            .map(|_| {
                if self.chance(4) {
                    Op::Delete(self.range())
                } else {
                    let value = vec![b'v'; self.below(60) as usize];
                    Op::Put(self.key(), value.into())
                }
            })
            .collect()
    }

    pub fn request(&mut self, head: i64) -> Request {
        let start_revision = match self.below(4) {
            0 => 0,
            1 => 1 + self.below(head + 5),
            2 => 1 + self.below(head),
            _ => (head - self.below(6)).max(1),
        };
        Request {
            watch_id: if self.chance(3) { self.below(12) } else { 0 },
            range: self.range(),
            start_revision,
            prev_kv: self.chance(2),
            no_put: self.chance(6),
            no_delete: self.chance(6),
            fragment: self.chance(2),
            progress_notify: self.chance(2),
        }
    }

    fn limits(&mut self) -> Limits {
        Limits {
            queue_events: 1 + self.below(25) as usize,
            queue_bytes: 200 + self.below(4000) as usize,
            total_bytes: 2000 + self.below(40_000) as usize,
            page_revisions: 1 + self.below(12) as usize,
            page_records: 1 + self.below(60) as usize,
            page_hits: 1 + self.below(80) as usize,
            page_bytes: 1 + self.below(3000) as usize,
            whole_bytes: self.below(800) as usize,
        }
    }
}

struct Client {
    stream: Stream,
    checker: Checker,
    wakes: Arc<AtomicUsize>,
    /// The last call of `next` returned `None`, when this many wake-ups had come.
    asleep_at: Option<usize>,
}

/// What the runs came across, so that they cannot pass without having tested anything.
#[derive(Default, Debug)]
struct Seen {
    events: usize,
    compactions: usize,
    progresses: usize,
    slow: usize,
    pages_put_back: usize,
    parts: usize,
}

struct Run {
    dice: Dice,
    world: WatchWorld,
    hub: Arc<Hub>,
    /// Written, and not published yet; with a view of each.
    unpublished: Vec<(Vec<Change>, View)>,
    clients: Vec<Client>,
    seen: Seen,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let world = WatchWorld::new();
        let hub = Hub::new(world.head(), dice.limits());
        Self {
            dice,
            world,
            hub,
            unpublished: Vec::new(),
            clients: Vec::new(),
            seen: Seen::default(),
        }
    }

    fn step(&mut self) {
        match self.dice.below(24) {
            0..=6 => {
                let ops = self.dice.ops();
                let changes = self.world.txn(&ops);
                self.unpublished.push((changes, self.world.view()));
            }
            7..=10 => self.publish(),
            11 if self.clients.len() < 6 => self.open(),
            12 if self.dice.chance(8) => self.close(),
            13..=15 => self.watch(),
            16 => self.cancel(),
            17 if self.dice.chance(4) => self.compact(),
            18 if self.dice.chance(15) => {
                self.publish();
                self.hub.resync(self.world.head());
            }
            18 | 19 => self.ask_progress(),
            _ => self.read(),
        }
        let counters = self.hub.counters();
        self.seen.slow += counters.slow_watches.load(SeqCst) as usize;
        assert!(counters.slow_watches.load(SeqCst) <= counters.watches.load(SeqCst));
    }

    fn publish(&mut self) {
        let hub = self.hub.clone();
        let mut together = Vec::new();
        for (changes, view) in std::mem::take(&mut self.unpublished) {
            if !changes.is_empty() && self.dice.chance(3) {
                hub.publish(view.head - 1, &together);
                together.clear();
                self.publish_logged(&hub, &changes, &view);
            } else {
                together.extend(changes);
            }
        }
        hub.publish(self.world.head(), &together);
        for client in &mut self.clients {
            // A stream that sleeps beside something to say would sleep forever.
            if let Some(wakes) = client.asleep_at
                && client.wakes.load(SeqCst) == wakes
            {
                let view = self.world.view();
                let left = client.stream.next(&view.pinned()).unwrap();
                assert_eq!(left, None, "nobody woke the stream");
            }
        }
    }

    /// Clients continue between the parts.
    fn publish_logged(&mut self, hub: &Hub, changes: &[Change], view: &View) {
        let keys = || changes.iter().map(|change| &change.key);
        let (first, last) = (keys().min().unwrap(), keys().max().unwrap());
        let end = KeyRange::Point(last.clone()).behind(last).start().clone();
        let sliced = Sliced {
            revision: view.head,
            span: KeyRange::Span(first.clone(), end),
            puts: changes.iter().filter(|it| it.version.is_some()).count() as u64,
            put_bytes: 0,
            bytes: 0,
        };
        let mut logged = hub.begin_logged(&sliced);
        loop {
            match self.dice.below(6) {
                0 if self.clients.len() < 6 => self.open(),
                1 | 2 => self.watch(),
                3 => self.cancel(),
                _ => self.read(),
            }
            if !logged.step(&view.pinned()).unwrap() {
                break;
            }
            self.seen.parts += 1;
        }
        logged.finish();
    }

    fn open(&mut self) {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = wakes.clone();
        let stream = self.hub.open(Arc::new(move || {
            counted.fetch_add(1, SeqCst);
        }));
        self.clients.push(Client {
            stream,
            checker: Checker::default(),
            wakes,
            asleep_at: None,
        });
    }

    fn pick(&mut self) -> Option<usize> {
        let count = self.clients.len() as i64;
        (count > 0).then(|| self.dice.below(count) as usize)
    }

    fn close(&mut self) {
        if let Some(at) = self.pick() {
            let client = self.clients.swap_remove(at);
            self.note(&client.checker);
        }
    }

    fn note(&mut self, checker: &Checker) {
        self.seen.events += checker.events;
        self.seen.compactions += checker.compactions;
        self.seen.progresses += checker.progresses;
    }

    fn watch(&mut self) {
        let Some(at) = self.pick() else { return };
        let request = self.dice.request(self.world.head());
        let client = &mut self.clients[at];
        client.asleep_at = None;
        let current = self.world.head();
        let made = client.stream.create(request.clone(), current);
        let known = &mut client.checker.watches;
        match made {
            Ok(id) => {
                assert!(request.watch_id == 0 || request.watch_id == id);
                let expectation = Expectation::new(request, current);
                assert!(known.insert(id, expectation).is_none());
            }
            Err(_) => {
                assert!(request.range.is_empty() || known.contains_key(&request.watch_id));
            }
        }
    }

    fn cancel(&mut self) {
        let Some(at) = self.pick() else { return };
        let id = self.dice.below(12);
        let client = &mut self.clients[at];
        client.asleep_at = None;
        let known = client.checker.watches.remove(&id).is_some();
        assert_eq!(client.stream.cancel(id), known);
    }

    fn compact(&mut self) {
        let (head, compacted) = (self.world.head(), self.world.compacted());
        let wanted = head - self.dice.below(20);
        if wanted > compacted && wanted > 0 {
            self.world.compact(wanted);
        }
    }

    fn ask_progress(&mut self) {
        let Some(at) = self.pick() else { return };
        let client = &mut self.clients[at];
        client.asleep_at = None;
        if self.dice.chance(2) {
            // The view may have been taken some time ago.
            let current = self.world.head() - self.dice.below(3);
            client.stream.request_progress(current);
        } else {
            client.stream.progress_tick();
        }
    }

    fn read(&mut self) {
        let Some(at) = self.pick() else { return };
        if self.dice.chance(4) && self.clients[at].stream.holds_page() {
            self.clients[at].stream.put_back_page();
            self.seen.pages_put_back += 1;
        }
        let steps = self.dice.below(30);
        for _ in 0..steps {
            if self.read_one(at).is_none() {
                break;
            }
        }
    }

    fn read_one(&mut self, at: usize) -> Option<Output> {
        let view = self.world.view();
        let client = &mut self.clients[at];
        let wakes = client.wakes.load(SeqCst);
        let may_read = client.stream.reads_storage();
        let pinned = if may_read {
            view.pinned()
        } else {
            view.unreadable()
        };
        let output = client.stream.next(&pinned).unwrap();
        if let Some(output) = &output {
            let compacted = self.world.compacted();
            client.checker.check(&self.world.history, compacted, output);
        }
        client.asleep_at = output.is_none().then_some(wakes);
        output
    }

    /// Publishes and reads everything, and checks that nothing is left.
    fn finish(mut self) -> Seen {
        self.publish();
        for at in 0..self.clients.len() {
            let mut steps = 0;
            while self.read_one(at).is_some() {
                steps += 1;
                assert!(steps < 100_000, "it never ends");
            }
            let checker = &self.clients[at].checker;
            let (head, compacted) = (self.world.head(), self.world.compacted());
            checker.check_complete(&self.world.history, head, compacted);
        }
        let counters = self.hub.counters();
        assert_eq!(counters.slow_watches.load(SeqCst), 0);
        assert_eq!(counters.pending_events.load(SeqCst), 0);
        let live = |client: &Client| {
            let watches = client.checker.watches.values();
            watches.filter(|watch| !watch.compacted).count() as i64
        };
        let watches: i64 = self.clients.iter().map(live).sum();
        assert_eq!(counters.watches.load(SeqCst), watches);
        for client in std::mem::take(&mut self.clients) {
            self.note(&client.checker);
        }
        let counters = self.hub.counters();
        assert_eq!(counters.watches.load(SeqCst), 0);
        assert_eq!(counters.streams.load(SeqCst), 0);
        assert_eq!(self.hub.held_bytes(), 0);
        self.seen
    }
}

fn run_seeds(seeds: std::ops::Range<u64>) {
    let mut total = Seen::default();
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut run = Run::new(seed);
            for _ in 0..600 {
                run.step();
            }
            run.finish()
        });
        let seen = outcome.unwrap_or_else(|panic| {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic)
        });
        total.events += seen.events;
        total.compactions += seen.compactions;
        total.progresses += seen.progresses;
        total.slow += seen.slow;
        total.pages_put_back += seen.pages_put_back;
        total.parts += seen.parts;
    }
    let all = [
        total.events,
        total.compactions,
        total.progresses,
        total.slow,
        total.pages_put_back,
        total.parts,
    ];
    assert!(all.iter().all(|count| *count > 0), "{total:?}");
    println!("{total:?}");
}

#[test]
fn every_watch_sees_its_history() {
    run_seeds(0..30);
}

#[test]
#[ignore = "long; for a change of the hub"]
fn every_watch_sees_its_history_for_long() {
    run_seeds(1_000..21_000);
}
