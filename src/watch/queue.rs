//! The bounded queue between the hub and one stream.
//!
//! The hub fills it while it holds its own lock; the stream empties it. What does not fit is not
//! waited for: the watch is noted as *spilled* with the revision to catch up from, and the count
//! of items in front of it, so that its stream first hands those out.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::copies::Copies;
use super::{Counters, Limits};
use crate::budget::{Held, Share};
use crate::mvcc::Change;
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::EncodedEvent;
use crate::storage::schema::ChangeKind;

/// A queue may grow to this part of the room that all streams together have left: a crowd of
/// slow readers then shares the room, and never takes the last of it from the others.
const SHARE_OF_FREE_ROOM: usize = 4;

/// What an item takes beside its events.
const ITEM_BYTES: usize = 96;
/// Items that take no more are not counted: what a stream needs in any case.
const UNCOUNTED_BYTES: usize = if cfg!(test) { ITEM_BYTES } else { 1 << 10 };
/// A queue is counted in steps of this.
const STEP_BYTES: usize = if cfg!(test) { ITEM_BYTES } else { 4 << 10 };

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
    plain: Option<Arc<EncodedEvent>>,
    with_previous: Option<Arc<EncodedEvent>>,
}

impl Encoded {
    pub fn get(&mut self, copies: &Copies, change: &Change, previous: bool) -> &Arc<EncodedEvent> {
        let previous = previous && change.previous.is_some() && !change.is_create();
        let place = if previous {
            &mut self.with_previous
        } else {
            &mut self.plain
        };
        place.get_or_insert_with(|| Arc::new(copies.encode(change, previous)))
    }

    pub fn into_events(self) -> impl Iterator<Item = Arc<EncodedEvent>> {
        self.plain.into_iter().chain(self.with_previous)
    }
}

/// An event as a queue holds it: the event itself is in `recent`.
pub(super) type EventName = Weak<EncodedEvent>;

/// The events of one revision for one watch.
#[derive(Debug)]
pub(super) enum Events {
    One(EventName),
    Many(Vec<EventName>),
}

impl Events {
    /// The events; `None` where one of them is gone.
    pub fn read(&self) -> Option<Vec<EncodedEvent>> {
        let names = match self {
            Events::One(name) => std::slice::from_ref(name),
            Events::Many(names) => names,
        };
        let read = |name: &EventName| name.upgrade().map(|event| (*event).clone());
        names.iter().map(read).collect()
    }

    fn len(&self) -> usize {
        match self {
            Events::One(_) => 1,
            Events::Many(names) => names.len(),
        }
    }

    /// What they take in a queue.
    fn own_bytes(&self) -> usize {
        match self {
            Events::One(_) => ITEM_BYTES,
            Events::Many(names) => ITEM_BYTES + names.len() * std::mem::size_of::<EventName>(),
        }
    }
}

pub(super) enum Item {
    Events {
        watch: WatchName,
        revision: i64,
        events: Events,
        /// Of the events themselves, gone or not.
        bytes: usize,
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

/// Of an item, or of all together.
#[derive(Clone, Copy, Default)]
struct Size {
    events: usize,
    /// Of the events that are named.
    named_bytes: usize,
    /// Of the items themselves.
    own_bytes: usize,
}

impl Item {
    fn size(&self) -> Size {
        match self {
            Item::Events { events, bytes, .. } => Size {
                events: events.len(),
                named_bytes: *bytes + ITEM_BYTES,
                own_bytes: events.own_bytes(),
            },
            Item::Progress { .. } => Size {
                events: 1,
                named_bytes: ITEM_BYTES,
                own_bytes: ITEM_BYTES,
            },
        }
    }
}

#[derive(Default)]
struct WatchQueueState {
    items: VecDeque<Item>,
    size: Size,
    /// What of it is counted.
    held: Option<Held>,
    /// Items ever pushed.
    pushed: u64,
    spilled: Vec<Spilled>,
    /// The stream was woken, or never slept, since it last found nothing.
    awake: bool,
}

/// See the module.
pub(super) struct EventQueue {
    limits: Limits,
    counters: Arc<Counters>,
    /// See `Hub::names`.
    share: Arc<Share>,
    wake: Arc<dyn Fn() + Send + Sync>,
    state: Mutex<WatchQueueState>,
}

/// Whether the events found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    Fits,
    Spilled,
}

impl EventQueue {
    pub fn new(
        limits: Limits,
        counters: Arc<Counters>,
        share: Arc<Share>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Self {
            limits,
            counters,
            share,
            wake,
            state: Mutex::default(),
        })
    }

    /// Adds the events of one revision whole, or spills the watch; `bytes` is what the events
    /// take. True beside it: call `wake` when no lock is held any more.
    pub fn push_events(
        &self,
        watch: WatchName,
        revision: i64,
        events: Events,
        bytes: usize,
    ) -> (Pushed, bool) {
        let item = Item::Events {
            watch,
            revision,
            events,
            bytes,
        };
        let mut state = self.state.lock();
        if !self.push(&mut state, item) {
            if probe::injected(Defect::EventsDropped) {
                return (Pushed::Fits, false);
            }
            probe::reached(CoveragePoint::WatchFellBack);
            self.note_spilled(&mut state, watch, revision);
            return (Pushed::Spilled, wakes(&mut state));
        }
        (Pushed::Fits, wakes(&mut state))
    }

    /// Adds progress; false where there is no room.
    pub fn push_progress(&self, of: ProgressOf, revision: i64) -> bool {
        self.push(&mut self.state.lock(), Item::Progress { of, revision })
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
        let size = item.size();
        state.size.events -= size.events;
        state.size.named_bytes -= size.named_bytes;
        state.size.own_bytes -= size.own_bytes;
        if state.items.is_empty() && state.held.take().is_some() {
            state.items = VecDeque::new();
        }
        drop(state);
        self.release(size.events);
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
        state.items = VecDeque::new();
        state.spilled.clear();
        state.held = None;
        self.release(state.size.events);
        state.size = Size::default();
    }

    /// False where there is no room.
    fn push(&self, state: &mut WatchQueueState, item: Item) -> bool {
        let (more, size) = (item.size(), state.size);
        let size = Size {
            events: size.events + more.events,
            named_bytes: size.named_bytes + more.named_bytes,
            own_bytes: size.own_bytes + more.own_bytes,
        };
        let has_room = size.events <= self.limits.queue_events
            && size.named_bytes <= self.limits.queue_bytes
            && self.holds(state, size.own_bytes);
        if has_room {
            state.items.push_back(item);
            state.size = size;
            if !probe::injected(Defect::PageBeforeQueue) {
                state.pushed += 1;
            }
            let events = more.events as i64;
            self.counters.pending_events.fetch_add(events, Relaxed);
        }
        has_room
    }

    /// Counts the items themselves; false where too little is free.
    fn holds(&self, state: &mut WatchQueueState, own_bytes: usize) -> bool {
        let held = state.held.as_ref().map_or(0, Held::bytes);
        if own_bytes <= held.max(UNCOUNTED_BYTES) {
            return true;
        }
        let free = self
            .share
            .limit_bytes()
            .saturating_sub(self.share.used_bytes());
        if own_bytes > (held + free) / SHARE_OF_FREE_ROOM {
            return false;
        }
        let step = (own_bytes - held).next_multiple_of(STEP_BYTES);
        match &mut state.held {
            Some(held) => held.try_grow(step),
            none => {
                *none = self.share.try_take(step);
                none.is_some()
            }
        }
    }

    fn release(&self, events: usize) {
        let events = events as i64;
        self.counters.pending_events.fetch_sub(events, Relaxed);
    }

    fn note_spilled(&self, state: &mut WatchQueueState, watch: WatchName, next: i64) {
        self.counters.slow_watches.fetch_add(1, Relaxed);
        state.spilled.push(Spilled {
            watch,
            next,
            after: state.pushed,
        });
    }
}

fn wakes(state: &mut WatchQueueState) -> bool {
    !std::mem::replace(&mut state.awake, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCH: WatchName = WatchName { id: 1, serial: 7 };

    fn queue(limits: Limits) -> (Arc<EventQueue>, Arc<Counters>) {
        let counters = Arc::<Counters>::default();
        let share = Share::new(limits.total_bytes);
        let queue = EventQueue::new(limits, counters.clone(), share, Arc::new(|| {}));
        (queue, counters)
    }

    fn event() -> Events {
        Events::One(EventName::new())
    }

    #[test]
    fn wakes_once_and_never_sleeps_beside_something() {
        let (queue, _) = queue(Limits::default());
        assert_eq!(
            queue.push_events(WATCH, 1, event(), 1),
            (Pushed::Fits, true)
        );
        assert_eq!(
            queue.push_events(WATCH, 2, event(), 1),
            (Pushed::Fits, false)
        );
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
        let pushed = |size: usize| queue.push_events(WATCH, 1, event(), size).0;
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
    }

    #[test]
    fn slow_readers_leave_room_for_the_others() {
        let share = Share::new(1 << 20);
        let limits = Limits::default();
        let new = || {
            let counters = Arc::<Counters>::default();
            EventQueue::new(limits, counters, share.clone(), Arc::new(|| {}))
        };
        let queues: Vec<_> = (0..50)
            .map(|_| {
                let queue = new();
                while queue.push_events(WATCH, 1, event(), 10).0 == Pushed::Fits {}
                queue
            })
            .collect();
        assert!(share.used_bytes() > 700 << 10 && share.used_bytes() <= 1 << 20);
        // The first took the most, and made way as it was read.
        while queues[0].pop().is_some() {}
        let quick = new();
        let pushes = || quick.push_events(WATCH, 1, event(), 10).0 == Pushed::Fits;
        assert!((0..500).all(|_| pushes()));
        queues
            .iter()
            .chain([&quick])
            .for_each(|queue| queue.clear());
        assert_eq!(share.used_bytes(), 0);
    }

    #[test]
    fn an_event_that_is_gone_is_not_read() {
        let kept = Arc::new(EncodedEvent::from_encoded("event".into()));
        let other = Arc::new(EncodedEvent::default());
        let names = vec![Arc::downgrade(&kept), Arc::downgrade(&other)];
        let events = Events::Many(names);
        assert_eq!(events.read().map(|events| events.len()), Some(2));
        drop(other);
        assert_eq!(events.read(), None);
    }
}
