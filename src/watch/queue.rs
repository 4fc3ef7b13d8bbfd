//! The bounded queue between the hub and one stream.
//!
//! The hub fills it while it holds its own lock; the stream empties it. What does not fit is not
//! waited for: the watch is noted as *spilled* with the revision to catch up from, and the count
//! of items in front of it, so that its stream first hands those out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;

use super::{Counters, Limits};
use crate::mvcc::Change;
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::EncodedEvent;
use crate::storage::schema::ChangeKind;

/// A queue may grow to this part of the room that all streams together have left: a crowd of
/// slow readers then shares the room, and never takes the last of it from the others.
const SHARE_OF_FREE_ROOM: usize = 4;

/// What an item takes beside the bytes of its events.
const ITEM_BYTES: usize = 96;

/// Names a watch for its whole life; `serial` is never used again, the client's id may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WatchName {
    pub id: i64,
    pub serial: u64,
}

/// What a watch wants to see of a change in its range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub puts: bool,
    pub deletes: bool,
    pub previous: bool,
}

impl Wanted {
    pub fn kind(self, kind: ChangeKind) -> bool {
        match kind {
            ChangeKind::Put => self.puts,
            ChangeKind::Delete => self.deletes,
        }
    }
}

/// The encodings of one change, each made when first asked for.
#[derive(Default)]
pub(super) struct Encoded {
    plain: Option<EncodedEvent>,
    with_previous: Option<EncodedEvent>,
}

impl Encoded {
    pub fn get(&mut self, change: &Change, previous: bool) -> &EncodedEvent {
        let previous = previous && change.previous.is_some() && !change.is_create();
        let place = if previous {
            &mut self.with_previous
        } else {
            &mut self.plain
        };
        place.get_or_insert_with(|| change.to_event(previous))
    }
}

/// The events of one revision for one watch.
pub(super) enum Events {
    One(EncodedEvent),
    Many(Vec<EncodedEvent>),
}

impl Events {
    pub fn into_vec(self) -> Vec<EncodedEvent> {
        match self {
            Events::One(event) => vec![event],
            Events::Many(events) => events,
        }
    }

    fn len(&self) -> usize {
        match self {
            Events::One(_) => 1,
            Events::Many(events) => events.len(),
        }
    }

    fn size_bytes(&self) -> usize {
        let events = match self {
            Events::One(event) => event.encoded().len(),
            Events::Many(events) => events.iter().map(event_bytes).sum(),
        };
        events + ITEM_BYTES
    }
}

/// What one event of several takes in a queue.
pub(super) fn event_bytes(event: &EncodedEvent) -> usize {
    event.encoded().len() + std::mem::size_of::<EncodedEvent>()
}

pub(super) enum Item {
    Events {
        watch: WatchName,
        revision: i64,
        events: Events,
    },
    Progress {
        of: ProgressOf,
        revision: i64,
    },
}

/// Who progress speaks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum ProgressOf {
    Watch(WatchName),
    /// The whole stream, as it was when this many of its watches had begun in the past.
    Stream {
        past_starts: u64,
    },
}

/// A watch that left the hub's index.
pub(super) struct Spilled {
    pub watch: WatchName,
    /// The first revision that is not in the queue.
    pub next: i64,
    /// How many items were pushed before it left.
    pub after: u64,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    events: usize,
    bytes: usize,
    /// Items ever pushed.
    pushed: u64,
    spilled: Vec<Spilled>,
    /// The stream was woken, or never slept, since it last found nothing.
    awake: bool,
}

/// See the module.
pub(super) struct Queue {
    limits: Limits,
    counters: Arc<Counters>,
    wake: Arc<dyn Fn() + Send + Sync>,
    state: Mutex<State>,
}

/// Whether the events found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    Fits,
    Spilled,
}

impl Queue {
    pub fn new(
        limits: Limits,
        counters: Arc<Counters>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Self {
            limits,
            counters,
            wake,
            state: Mutex::default(),
        })
    }

    /// Adds the events of one revision whole, or spills the watch. True beside it: call `wake`
    /// when no lock is held any more.
    pub fn push_events(&self, watch: WatchName, revision: i64, events: Events) -> (Pushed, bool) {
        let (len, bytes) = (events.len(), events.size_bytes());
        let mut state = self.state.lock();
        if !self.has_room(&state, len, bytes) {
            if probe::injected(Defect::EventsDropped) {
                return (Pushed::Fits, false);
            }
            probe::reached(CoveragePoint::WatchFellBack);
            self.note_spilled(&mut state, watch, revision);
            return (Pushed::Spilled, wakes(&mut state));
        }
        self.push(&mut state, len, bytes, || Item::Events {
            watch,
            revision,
            events,
        });
        (Pushed::Fits, wakes(&mut state))
    }

    /// Adds progress; false where there is no room.
    pub fn push_progress(&self, of: ProgressOf, revision: i64) -> bool {
        let mut state = self.state.lock();
        let has_room = self.has_room(&state, 1, ITEM_BYTES);
        if has_room {
            let item = Item::Progress { of, revision };
            self.push(&mut state, 1, ITEM_BYTES, || item);
        }
        has_room
    }

    /// Notes that a watch left the index; true as for `push_events`.
    pub fn spill(&self, watch: WatchName, next: i64) -> bool {
        let mut state = self.state.lock();
        self.note_spilled(&mut state, watch, next);
        wakes(&mut state)
    }

    /// Marks the stream as woken; true as for `push_events`.
    pub fn rouse(&self) -> bool {
        wakes(&mut self.state.lock())
    }

    pub fn wake(&self) {
        (self.wake)();
    }

    /// Moves what was spilled to the end of `out`.
    pub fn take_spilled(&self, out: &mut VecDeque<Spilled>) {
        out.extend(self.state.lock().spilled.drain(..));
    }

    pub fn pop(&self) -> Option<Item> {
        let mut state = self.state.lock();
        let item = state.items.pop_front()?;
        let (len, bytes) = item_size(&item);
        state.events -= len;
        state.bytes -= bytes;
        drop(state);
        self.release(len, bytes);
        Some(item)
    }

    /// Items ever pushed.
    pub fn pushed(&self) -> u64 {
        self.state.lock().pushed
    }

    /// Lets the next arrival wake the stream; false where something is there already.
    pub fn sleep(&self) -> bool {
        let mut state = self.state.lock();
        let empty = state.items.is_empty() && state.spilled.is_empty();
        state.awake = !empty;
        empty
    }

    /// Forgets everything; the stream is gone.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.items.clear();
        state.spilled.clear();
        self.release(state.events, state.bytes);
        (state.events, state.bytes) = (0, 0);
    }

    fn has_room(&self, state: &State, len: usize, bytes: usize) -> bool {
        let taken = self.counters.pending_bytes.load(Relaxed).max(0) as usize;
        let free = self.limits.total_bytes.saturating_sub(taken);
        let queue_bytes = self.limits.queue_bytes.min(free / SHARE_OF_FREE_ROOM);
        state.events + len <= self.limits.queue_events && state.bytes + bytes <= queue_bytes
    }

    fn push(&self, state: &mut State, len: usize, bytes: usize, item: impl FnOnce() -> Item) {
        state.items.push_back(item());
        if !probe::injected(Defect::PageBeforeQueue) {
            state.pushed += 1;
        }
        state.events += len;
        state.bytes += bytes;
        self.counters.pending_events.fetch_add(len as i64, Relaxed);
        self.counters.pending_bytes.fetch_add(bytes as i64, Relaxed);
    }

    fn release(&self, len: usize, bytes: usize) {
        self.counters.pending_events.fetch_sub(len as i64, Relaxed);
        self.counters.pending_bytes.fetch_sub(bytes as i64, Relaxed);
    }

    fn note_spilled(&self, state: &mut State, watch: WatchName, next: i64) {
        self.counters.slow_watches.fetch_add(1, Relaxed);
        state.spilled.push(Spilled {
            watch,
            next,
            after: state.pushed,
        });
    }
}

fn wakes(state: &mut State) -> bool {
    !std::mem::replace(&mut state.awake, true)
}

fn item_size(item: &Item) -> (usize, usize) {
    match item {
        Item::Events { events, .. } => (events.len(), events.size_bytes()),
        Item::Progress { .. } => (1, ITEM_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCH: WatchName = WatchName { id: 1, serial: 7 };

    fn queue(limits: Limits) -> (Arc<Queue>, Arc<Counters>) {
        let counters = Arc::<Counters>::default();
        let queue = Queue::new(limits, counters.clone(), Arc::new(|| {}));
        (queue, counters)
    }

    fn event(len: usize) -> Events {
        Events::One(EncodedEvent::from_encoded(vec![0; len].into()))
    }

    #[test]
    fn wakes_once_and_never_sleeps_beside_something() {
        let (queue, _) = queue(Limits::default());
        assert_eq!(queue.push_events(WATCH, 1, event(1)), (Pushed::Fits, true));
        assert_eq!(queue.push_events(WATCH, 2, event(1)), (Pushed::Fits, false));
        assert!(queue.pop().is_some());
        assert!(!queue.sleep(), "an item is left");
        assert!(!queue.rouse());
        assert!(queue.pop().is_some());
        assert!(queue.sleep());
        assert!(queue.spill(WATCH, 3));
        assert!(!queue.sleep(), "a watch left");
        queue.take_spilled(&mut VecDeque::new());
        assert!(queue.sleep());
        assert!(queue.rouse());
    }

    #[test]
    fn spills_what_does_not_fit() {
        let (queue, counters) = queue(Limits {
            queue_events: 3,
            queue_bytes: 1_000,
            ..Limits::default()
        });
        let pushed = |size: usize| queue.push_events(WATCH, 1, event(size)).0;
        assert_eq!(pushed(1_000 - ITEM_BYTES + 1), Pushed::Spilled);
        assert_eq!(pushed(1_000 - ITEM_BYTES), Pushed::Fits);
        assert_eq!(pushed(0), Pushed::Spilled);
        queue.pop();
        assert!((0..3).all(|_| pushed(0) == Pushed::Fits));
        assert_eq!(pushed(0), Pushed::Spilled);
        let mut spilled = VecDeque::new();
        queue.take_spilled(&mut spilled);
        let after: Vec<_> = spilled.iter().map(|spilled| spilled.after).collect();
        assert_eq!(after, [0, 1, 4]);
        assert_eq!(counters.pending_events.load(Relaxed), 3);
        queue.clear();
        assert_eq!(counters.pending_events.load(Relaxed), 0);
        assert_eq!(counters.pending_bytes.load(Relaxed), 0);
    }

    #[test]
    fn slow_readers_leave_room_for_the_others() {
        let limits = Limits {
            total_bytes: 1 << 20,
            ..Limits::default()
        };
        let counters = Arc::<Counters>::default();
        let queues: Vec<_> = (0..50)
            .map(|_| {
                let queue = Queue::new(limits, counters.clone(), Arc::new(|| {}));
                while queue.push_events(WATCH, 1, event(1_000)).0 == Pushed::Fits {}
                queue
            })
            .collect();
        assert!(counters.pending_bytes.load(Relaxed) <= 1 << 20);
        // The first took the most, and made way as it was read.
        while queues[0].pop().is_some() {}
        let quick = Queue::new(limits, counters.clone(), Arc::new(|| {}));
        assert_eq!(quick.push_events(WATCH, 1, event(1_000)).0, Pushed::Fits);
    }
}
