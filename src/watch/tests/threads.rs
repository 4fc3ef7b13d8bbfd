//! The hub and its streams on real threads.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::random::Dice;
use super::world::{Checker, Expectation, View, WatchWorld};
use crate::watch::{Hub, Limits, Output, Stream};

const READERS: u64 = 4;
const WATCHES: usize = 8;
const TRANSACTIONS: usize = 1_500;

/// How long a reader sleeps before it checks whether it overslept.
const SOON: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_secs(10);

/// What the writer shows: a view first, then its changes in the hub.
struct Shown {
    view: Mutex<Arc<View>>,
    written: AtomicBool,
}

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock() = true;
        self.changed.notify_one();
    }

    /// False where nobody rang in time.
    fn wait(&self, limit: Duration) -> bool {
        let mut rung = self.rung.lock();
        if !*rung {
            self.changed.wait_for(&mut rung, limit);
        }
        std::mem::take(&mut rung)
    }
}

/// An output, and what was compacted when it came; or a watch that began or ended.
enum Note {
    Said(Output, i64),
    Began(i64, Expectation),
    Ended(i64),
}

struct Reader {
    dice: Dice,
    hub: Arc<Hub>,
    shown: Arc<Shown>,
    started: Arc<Barrier>,
    notes: Vec<Note>,
}

impl Reader {
    fn run(mut self) -> Vec<Note> {
        let bell = Arc::new(Bell::default());
        let ringer = bell.clone();
        let mut stream = self.hub.open(Arc::new(move || ringer.ring()));
        self.started.wait();
        for _ in 0..WATCHES {
            self.begin(&mut stream);
        }
        let mut more = true;
        loop {
            // Read before the drain: what is written after it rings the bell.
            let last = self.shown.written.load(SeqCst);
            let idle = self.drain(&mut stream, last);
            if last {
                return self.notes;
            }
            if more && self.dice.chance(3) {
                self.change(&mut stream);
                more = self.notes.len() < 100_000;
                continue;
            }
            if idle && !bell.wait(SOON) && self.step(&mut stream).is_some() {
                // The one who put it there may not have come to the bell yet.
                assert!(bell.wait(LATE), "nobody rang");
            }
        }
    }

    fn begin(&mut self, stream: &mut Stream) {
        let current = self.shown.view.lock().head;
        let request = self.dice.request(current);
        if let Ok(id) = stream.create(request.clone(), current) {
            self.notes
                .push(Note::Began(id, Expectation::new(request, current)));
        }
    }

    fn change(&mut self, stream: &mut Stream) {
        if self.dice.chance(2) {
            let id = self.dice.below(12);
            if stream.cancel(id) {
                self.notes.push(Note::Ended(id));
            }
        } else {
            self.begin(stream);
        }
        if self.dice.chance(2) {
            let head = self.shown.view.lock().head;
            stream.request_progress(head);
        }
    }

    /// Reads until there is nothing, or at times a few outputs only; true for the first.
    fn drain(&mut self, stream: &mut Stream, all: bool) -> bool {
        let mut steps = if all || self.dice.chance(2) {
            usize::MAX
        } else {
            self.dice.below(10) as usize
        };
        while steps > 0 {
            steps -= 1;
            if self.step(stream).is_none() {
                return true;
            }
        }
        false
    }

    /// One call of `next`; `None` where there is nothing.
    fn step(&mut self, stream: &mut Stream) -> Option<()> {
        let may_read = stream.reads_storage();
        let view = self.shown.view.lock().clone();
        let pinned = if may_read {
            view.pinned()
        } else {
            view.unreadable()
        };
        let output = stream.next(&pinned).expect("reads")?;
        if output != Output::Again {
            self.notes.push(Note::Said(output, view.compacted));
        }
        Some(())
    }
}

fn write(world: &mut WatchWorld, hub: &Hub, shown: &Shown, dice: &mut Dice) {
    let mut unpublished = Vec::new();
    for _ in 0..TRANSACTIONS {
        unpublished.extend(world.txn(&dice.ops()));
        if dice.chance(60) && world.head() - 30 > world.compacted() {
            world.compact(world.head() - 30);
        }
        if dice.chance(3) {
            *shown.view.lock() = Arc::new(world.view());
            hub.publish(world.head(), &unpublished);
            unpublished.clear();
            std::thread::sleep(Duration::from_micros(dice.below(100) as u64));
        }
    }
    *shown.view.lock() = Arc::new(world.view());
    shown.written.store(true, SeqCst);
    hub.publish(world.head(), &unpublished);
}

fn check(world: &WatchWorld, notes: Vec<Note>) -> usize {
    let mut checker = Checker::default();
    for note in notes {
        match note {
            Note::Began(id, expectation) => {
                checker.watches.insert(id, expectation);
            }
            Note::Ended(id) => {
                checker.watches.remove(&id);
            }
            Note::Said(output, compacted) => checker.check(&world.history, compacted, &output),
        }
    }
    checker.events
}

#[test]
fn readers_beside_a_writer_see_their_histories() {
    let limits = Limits {
        queue_events: 40,
        queue_bytes: 20_000,
        page_revisions: 20,
        page_records: 50,
        ..Limits::default()
    };
    let mut world = WatchWorld::new();
    let hub = Hub::new(world.head(), limits);
    let shown = Arc::new(Shown {
        view: Mutex::new(Arc::new(world.view())),
        written: AtomicBool::new(false),
    });
    let started = Arc::new(Barrier::new(READERS as usize + 1));
    let readers: Vec<_> = (0..READERS)
        .map(|seed| {
            let reader = Reader {
                dice: Dice(seed),
                hub: hub.clone(),
                shown: shown.clone(),
                started: started.clone(),
                notes: Vec::new(),
            };
            std::thread::spawn(move || reader.run())
        })
        .collect();
    started.wait();
    write(&mut world, &hub, &shown, &mut Dice(77));
    let mut events = 0;
    for reader in readers {
        let notes = reader.join().expect("no panic");
        events += check(&world, notes);
    }
    assert!(events > 1_000, "the readers saw {events} events only");
    assert_eq!(hub.held_bytes(), 0);
    assert_eq!(hub.counters().watches.load(SeqCst), 0);
}

#[test]
fn streams_can_move_between_threads() {
    fn is_send<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    is_send::<Stream>();
    is_shared::<Hub>();
}
