//! Finds the live watches of each change and fills their queues.
//!
//! One lock guards the index of live watches together with the head, the newest revision
//! published: so a watch enters the index at an exact point of the history. The lock is offered
//! to others after each revision.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use super::copies::Copies;
use super::queue::{Encoded, EventName, EventQueue, Events, Pushed, Wanted, WatchName};
use super::range_set::{NodeId, RangeSet};
use super::recent::Recent;
use super::{Counters, Limits};
use crate::budget::Share;
use crate::mvcc::Change;
use crate::probe::{self, CoveragePoint, Defect};
use crate::types::KeyRange;

/// All watches of a member.
pub struct Hub {
    limits: Limits,
    counters: Arc<Counters>,
    copies: Arc<Copies>,
    names: Arc<Share>,
    serials: AtomicU64,
    /// Held while a large message is made; names what the last one holds. See `large`.
    pub(super) large: Mutex<Weak<()>>,
    index: Mutex<Index>,
}

/// A watch in the index.
pub(super) struct Live {
    pub watch: WatchName,
    pub queue: Arc<EventQueue>,
    pub wanted: Wanted,
    /// Revisions below this are not for it.
    pub from: i64,
    /// Its place among the `Gathered` of the revision that is being delivered.
    pub gathered: usize,
}

/// The live watches of one range, by serial.
pub(super) type Members = BTreeMap<u64, Box<Live>>;

/// The live watches, and the history they have been given.
pub(super) struct Index {
    /// Every revision up to this has been put into the queues.
    pub head: i64,
    pub ranges: RangeSet<Members>,
    /// The revision that is being delivered in parts, and the watches that became live since it
    /// began and want it.
    pub entered: Option<(i64, Vec<(NodeId, u64)>)>,
    recent: Recent,
    copies: Arc<Copies>,
    /// Streams to wake after the next publish.
    waiting: Vec<Arc<EventQueue>>,
    /// Memory of `matching`, kept for the next change.
    matching: Vec<NodeId>,
}

/// The events of one revision for one watch, while they are looked for.
pub(super) struct Gathered {
    node: NodeId,
    serial: u64,
    events: Vec<EventName>,
    bytes: usize,
    /// They cannot fit any queue and are no longer kept.
    pub overflowed: bool,
}

/// What a publish leaves to be done when its lock is released.
pub(super) type Wakes = Vec<Arc<EventQueue>>;

impl Hub {
    /// A hub for a keyspace that stands at revision `head`.
    pub fn new(head: i64, limits: Limits) -> Arc<Self> {
        let names_bytes = limits.total_bytes / 4;
        let copies = Copies::new(Share::new(limits.total_bytes - names_bytes));
        Arc::new(Self {
            limits,
            counters: Arc::default(),
            copies: copies.clone(),
            names: Share::new(names_bytes),
            serials: AtomicU64::new(0),
            large: Mutex::default(),
            index: Mutex::new(Index {
                head,
                ranges: RangeSet::default(),
                entered: None,
                recent: Recent::default(),
                copies,
                waiting: Vec::new(),
                matching: Vec::new(),
            }),
        })
    }

    /// Hands `changes`, whole revisions in order, to the live watches; `head` is the newest
    /// revision now. Only the apply thread calls it, and only when a view taken from now on shows
    /// all of it. Never waits for a reader.
    pub fn publish(&self, head: i64, changes: &[Change]) {
        let mut wakes = Wakes::new();
        let mut index = self.index.lock();
        let torn = probe::injected(Defect::DeliveryTorn);
        for revision in changes.chunk_by(|a, b| a.revision.main == b.revision.main && !torn) {
            if index.ranges.len() == 0 {
                break;
            }
            let main = revision[0].revision.main;
            if main > index.head {
                index.deliver(main, revision, &self.limits, &mut wakes);
                index.head = main;
                MutexGuard::bump(&mut index);
            }
        }
        // Where no watch is live nobody missed the rest: the lock was held since the check.
        index.head = index.head.max(head);
        Self::wake(index, wakes);
    }

    /// Makes every live watch catch up: the keyspace was replaced by one at revision `head`.
    /// Views taken from now on must show the new one.
    pub fn resync(&self, head: i64) {
        let mut wakes = Wakes::new();
        let mut index = self.index.lock();
        let published = index.head;
        let all = match probe::injected(Defect::ResyncSkipped) {
            true => Vec::new(),
            false => index.ranges.take_all(),
        };
        for (_, live) in all.into_iter().flatten() {
            probe::reached(CoveragePoint::WatchResynced);
            let next = live.from.max(published + 1);
            if live.queue.spill(live.watch, next) {
                wakes.push(live.queue);
            }
        }
        index.head = head;
        Self::wake(index, wakes);
    }

    pub(super) fn wake(mut index: MutexGuard<'_, Index>, mut wakes: Wakes) {
        let waiting = std::mem::take(&mut index.waiting);
        drop(index);
        wakes.extend(waiting.into_iter().filter(|queue| queue.rouse()));
        for queue in wakes {
            queue.wake();
        }
    }

    /// No watch is live.
    #[cfg(any(test, feature = "simulation"))]
    pub fn is_idle(&self) -> bool {
        self.index.lock().ranges.len() == 0
    }

    /// The newest revision published.
    #[cfg(test)]
    pub fn head(&self) -> i64 {
        self.index.lock().head
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What events, pages and what is on its way to clients are taken from.
    pub fn share(&self) -> &Arc<Share> {
        self.copies.share()
    }

    pub(super) fn copies(&self) -> &Arc<Copies> {
        &self.copies
    }

    /// What queues are taken from. A share of their own: streams that nobody reads may use it up
    /// for good, and then no queue grows; those that catch up need room that comes back.
    pub fn names(&self) -> &Arc<Share> {
        &self.names
    }

    /// What all streams hold in memory.
    #[cfg(any(test, feature = "simulation"))]
    pub fn held_bytes(&self) -> usize {
        self.share().used_bytes() + self.names.used_bytes()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock()
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn next_serial(&self) -> u64 {
        self.serials.fetch_add(1, Relaxed)
    }
}

impl Index {
    /// Makes a watch live. `live.from` must be above `head`.
    pub fn insert(&mut self, range: &KeyRange, mut live: Live) -> NodeId {
        debug_assert!(
            live.from > self.head || probe::injected(Defect::LiveTooEarly),
            "it would miss what is published"
        );
        let node = self.ranges.insert(range);
        if let Some((main, entered)) = &mut self.entered
            && live.from <= *main
        {
            entered.push((node, live.watch.serial));
            // It catches up from there when the delivery ends, and is given nothing of it before.
            live.from = *main + 1;
        }
        let members = self.ranges.get_mut(node);
        members.insert(live.watch.serial, Box::new(live));
        node
    }

    /// Takes a watch out; false where the hub did so before.
    pub fn remove(&mut self, node: NodeId, serial: u64) -> bool {
        // The place may hold another range by now; the serial tells.
        let members = self.ranges.get_mut(node);
        let found = members.remove(&serial).is_some();
        if found && members.is_empty() {
            self.ranges.remove(node);
        }
        found
    }

    /// Has the stream woken once more was published.
    pub fn wait(&mut self, queue: &Arc<EventQueue>) {
        if !self.waiting.iter().any(|known| Arc::ptr_eq(known, queue)) {
            self.waiting.push(queue.clone());
        }
    }

    pub fn stop_waiting(&mut self, queue: &Arc<EventQueue>) {
        self.waiting.retain(|known| !Arc::ptr_eq(known, queue));
    }

    /// Lets go of events that nobody will read.
    pub fn trim(&mut self) {
        self.recent.trim(self.copies.share());
    }

    fn deliver(&mut self, main: i64, changes: &[Change], limits: &Limits, wakes: &mut Wakes) {
        let mut matching = std::mem::take(&mut self.matching);
        let mut spilled = Vec::new();
        if let [change] = changes {
            self.deliver_one(main, change, &mut matching, &mut spilled, wakes);
        } else {
            let mut gathered = Vec::new();
            self.gather(main, changes, &mut gathered, &mut matching, limits);
            self.deliver_gathered(main, gathered, &mut spilled, wakes);
        }
        for (node, serial) in spilled {
            self.remove(node, serial);
        }
        self.matching = matching;
        self.trim();
    }

    fn deliver_one(
        &mut self,
        main: i64,
        change: &Change,
        matching: &mut Vec<NodeId>,
        spilled: &mut Vec<(NodeId, u64)>,
        wakes: &mut Wakes,
    ) {
        let mut encoded = Encoded::default();
        matching.clear();
        self.ranges.matching(&change.key, matching);
        for node in matching.iter() {
            for (serial, live) in self.ranges.get_mut(*node) {
                if main < live.from || !live.wanted.kind(change.kind) {
                    continue;
                }
                let event = encoded.get(&self.copies, change, live.wanted.previous);
                let name = Events::One(Arc::downgrade(event));
                if live.push(main, name, event.encoded().len(), wakes) == Pushed::Spilled {
                    spilled.push((*node, *serial));
                }
            }
        }
        self.recent.keep(encoded);
    }

    /// Collects the events of a revision by watch, so that each gets them whole.
    pub fn gather(
        &mut self,
        main: i64,
        changes: &[Change],
        all: &mut Vec<Gathered>,
        matching: &mut Vec<NodeId>,
        limits: &Limits,
    ) {
        for change in changes {
            let mut encoded = Encoded::default();
            matching.clear();
            self.ranges.matching(&change.key, matching);
            for node in matching.iter() {
                for (serial, live) in self.ranges.get_mut(*node) {
                    if main < live.from || !live.wanted.kind(change.kind) {
                        continue;
                    }
                    let known = all
                        .get(live.gathered)
                        .is_some_and(|gathered| gathered.serial == *serial);
                    if !known {
                        live.gathered = all.len();
                        all.push(Gathered::new(*node, *serial));
                    } else if all[live.gathered].overflowed {
                        continue;
                    }
                    let event = encoded.get(&self.copies, change, live.wanted.previous);
                    let name = Arc::downgrade(event);
                    all[live.gathered].add(name, event.encoded().len(), limits);
                }
            }
            self.recent.keep(encoded);
        }
    }

    pub fn deliver_gathered(
        &mut self,
        main: i64,
        all: Vec<Gathered>,
        spilled: &mut Vec<(NodeId, u64)>,
        wakes: &mut Wakes,
    ) {
        for gathered in all {
            let Some(live) = self.ranges.get_mut(gathered.node).get(&gathered.serial) else {
                continue;
            };
            let fits = if gathered.overflowed {
                live.spill(main, wakes);
                Pushed::Spilled
            } else {
                live.push(main, Events::Many(gathered.events), gathered.bytes, wakes)
            };
            if fits == Pushed::Spilled {
                spilled.push((gathered.node, gathered.serial));
            }
        }
    }
}

impl Live {
    /// Has it catch up from `main`; the caller takes it out.
    pub fn spill(&self, main: i64, wakes: &mut Wakes) {
        if self.queue.spill(self.watch, main) {
            wakes.push(self.queue.clone());
        }
    }

    fn push(&self, main: i64, events: Events, bytes: usize, wakes: &mut Wakes) -> Pushed {
        let (pushed, wake) = self.queue.push_events(self.watch, main, events, bytes);
        if wake {
            wakes.push(self.queue.clone());
        }
        pushed
    }
}

impl Gathered {
    fn new(node: NodeId, serial: u64) -> Self {
        Self {
            node,
            serial,
            events: Vec::new(),
            bytes: 0,
            overflowed: false,
        }
    }

    fn add(&mut self, name: EventName, bytes: usize, limits: &Limits) {
        self.bytes += bytes;
        if self.events.len() >= limits.queue_events || self.bytes > limits.queue_bytes {
            probe::reached(CoveragePoint::RevisionOverflowed);
            self.overflowed = true;
            self.events = Vec::new();
        }
        if !self.overflowed {
            self.events.push(name);
        }
    }
}
