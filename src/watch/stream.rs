//! The watches of one client stream, and the order in which their responses are sent.
//!
//! ```text
//!            create: it starts with what is published next
//!  (nothing) ---------------------------------------------> Live <-------------+
//!      |                                                     |                 |
//!      |                       spill: the queue was full, or |                 | join: the next
//!      |                    a received state replaced it all |                 | that it needs is
//!      |                                                     v                 | not published
//!      |                                                  Leaving              | yet
//!      |                                                     |                 |
//!      |                        what was queued before it is |                 |
//!      | create: it starts with                          out |                 |
//!      | what is published                                   v                 |
//!      +------------------------------------------------> CatchingUp ----------+
//!                                                            |
//!                            the next that it needs is gone: |
//!                            it is cancelled                 v
//!                                                        Compacted
//! ```
//!
//! From each state `cancel` ends a watch, and so does the end of the stream. The hub feeds live
//! watches through the queue and spills them; the stream learns of a spill in its next step, and
//! does everything else.
//!
//! A step hands out, first to last: the rest of a page; news of a compacted watch; the first part
//! of a new page, where `order` lets one be read; the front of the queue. So neither live watches
//! nor those that catch up wait for more than one page or one queue of the others.

mod order;
mod progress;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use self::order::PageOrder;
use super::catch_up::{CatchUp, Found, Page, Part};
use super::hub::{Hub, Index, Live};
use super::large::MAX_MESSAGE_BYTES;
use super::queue::{EventQueue, Item, Wanted, WatchName};
use super::range_set::NodeId;
use super::{CreateError, Output, Request};
use crate::mvcc::read::PinnedView;
use crate::probe::{self, CoveragePoint, Defect};
use crate::storage;
use crate::types::KeyRange;

/// Watches that go live in one step: bounds how long the hub's lock is held.
const JOINS_PER_STEP: usize = if cfg!(test) { 3 } else { 512 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WatchState {
    /// In the hub's index, or just spilled from it.
    Live(NodeId),
    /// Spilled; items of it are still in the queue, or nobody checked yet.
    Leaving,
    /// In `CatchUp`.
    CatchingUp,
    /// Its compaction was reported.
    Compacted,
}

struct Watch {
    serial: u64,
    range: KeyRange,
    start_revision: i64,
    wanted: Wanted,
    fragment: bool,
    progress_notify: bool,
    /// No event went out since the last tick.
    quiet: bool,
    /// It started at what was the newest revision when its client asked, and catches up only
    /// because more was published since. To the client it counts as live.
    fresh: bool,
    state: WatchState,
}

/// The watches of one client stream, and what they have to say. Dropping it ends them all.
///
/// Its owner calls `next` until that returns `None`, waits for the wake-up, and does so again;
/// after a call of any other method too.
pub struct Stream {
    hub: Arc<Hub>,
    queue: Arc<EventQueue>,
    watches: BTreeMap<i64, Watch>,
    next_id: i64,
    order: PageOrder,
    catch_up: CatchUp,
    page: Option<Page>,
    held_progress: Option<HeldProgress>,
    /// The newest revision that the client heard of in a header; the hub's head may be behind it
    /// for a moment. Progress never says less.
    reported: i64,
    /// Watches that began with revisions published before.
    past_starts: u64,
}

/// Progress requests that came before the hub had published what their client knew of.
struct HeldProgress {
    current: i64,
    requests: usize,
}

impl Hub {
    /// A stream without watches. `wake` is called, from any thread and with no lock held, when
    /// the stream may have something to say after `Stream::next` returned `None`: once, until it
    /// does so again.
    pub fn open(self: &Arc<Self>, wake: Arc<dyn Fn() + Send + Sync>) -> Stream {
        let counters = self.counters().clone();
        let queue = EventQueue::new(*self.limits(), counters, self.names().clone(), wake);
        Stream::new(self.clone(), queue)
    }
}

impl Stream {
    pub(super) fn new(hub: Arc<Hub>, queue: Arc<EventQueue>) -> Self {
        hub.counters().streams.fetch_add(1, Relaxed);
        Self {
            hub,
            queue,
            watches: BTreeMap::new(),
            next_id: 0,
            order: PageOrder::default(),
            catch_up: CatchUp::default(),
            page: None,
            held_progress: None,
            reported: 0,
            past_starts: 0,
        }
    }

    /// Begins a watch and returns its id. `current` is the revision of a view taken just before:
    /// no event at or below it reaches a watch that starts now, and every one above it does.
    pub fn create(&mut self, request: Request, current: i64) -> Result<i64, CreateError> {
        if request.range.is_empty() {
            return Err(CreateError::EmptyRange);
        }
        let id = self.pick_id(request.watch_id)?;
        let start = request.start_revision;
        let from_now = start <= 0 || start > current;
        let next = if from_now {
            start.max(current + 1)
        } else {
            start
        };
        self.reported = self.reported.max(current);
        let name = WatchName {
            id,
            serial: self.hub.next_serial(),
        };
        let mut watch = Watch {
            serial: name.serial,
            range: request.range,
            start_revision: start,
            wanted: Wanted {
                puts: !request.no_put,
                deletes: !request.no_delete,
                previous: request.prev_kv,
            },
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            quiet: true,
            fresh: from_now,
            state: WatchState::CatchingUp,
        };
        let mut index = self.hub.lock();
        let behind = next <= index.head && !probe::injected(Defect::LiveTooEarly);
        if !behind {
            watch.go_live(&mut index, name, &self.queue, next);
        }
        drop(index);
        let counters = self.hub.counters();
        counters.watches.fetch_add(1, Relaxed);
        if watch.state == WatchState::CatchingUp {
            counters.slow_watches.fetch_add(1, Relaxed);
            self.past_starts += 1;
            self.catch_up.insert(name, &watch.range, watch.wanted, next);
        }
        self.watches.insert(id, watch);
        Ok(id)
    }

    /// Picks ids as etcd does: upwards from 0, past those that clients chose.
    fn pick_id(&mut self, asked: i64) -> Result<i64, CreateError> {
        if asked != 0 {
            return match self.watches.contains_key(&asked) {
                true => Err(CreateError::DuplicateId),
                false => Ok(asked),
            };
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    /// The watches that have not ended, and what they watch.
    pub fn ranges(&self) -> impl Iterator<Item = (i64, &KeyRange)> {
        let running = |watch: &Watch| watch.state != WatchState::Compacted;
        let watches = self.watches.iter();
        let running = watches.filter(move |(_, watch)| running(watch));
        running.map(|(id, watch)| (*id, &watch.range))
    }

    /// Ends a watch: nothing more comes of it. False where there is none of that id.
    pub fn cancel(&mut self, watch_id: i64) -> bool {
        let Some(watch) = self.watches.remove(&watch_id) else {
            return false;
        };
        self.catch_up.remove(watch_id);
        let mut index = self.hub.lock();
        watch.end(&mut index, &self.hub);
        true
    }

    /// Does one bounded step and hands out what it found. `None`: nothing until the wake-up.
    /// `pinned` is a view taken for this call, not one kept from before. Reads storage only
    /// where `reads_storage` says so.
    pub fn next(&mut self, pinned: &PinnedView<'_>) -> storage::Result<Option<Output>> {
        if let Some(output) = self.serve_page() {
            return Ok(Some(output));
        }
        self.begin_catching_up();
        self.join();
        self.answer_progress();
        if let Some(output) = self.tell_compacted(pinned) {
            return Ok(Some(output));
        }
        if self.reads_storage()
            && let Some(output) = self.read(pinned)?
        {
            return Ok(Some(output));
        }
        // Spilled watches are noted last, so that `reads_storage` knows of all that `next` knows.
        self.note_spilled();
        while let Some(item) = self.order.take(&self.queue) {
            if let Some(output) = self.take_item(item) {
                return Ok(Some(output));
            }
        }
        self.answer_progress();
        let idle = self.catch_up.is_empty() && self.order.is_empty() && self.queue.sleep();
        Ok((!idle).then_some(Output::Again))
    }

    /// Whether the next call of `next` may read storage; it does not where this says false.
    pub fn reads_storage(&self) -> bool {
        let behind = !self.catch_up.is_empty() || self.order.has_ready();
        self.page.is_none() && behind && self.order.page_is_due()
    }

    /// Takes note of the watches that left the index.
    fn note_spilled(&mut self) {
        for name in self.order.note_spilled(&self.queue) {
            if let Some(watch) = find(&mut self.watches, name) {
                watch.state = WatchState::Leaving;
                watch.fresh = false;
            }
        }
    }

    /// Lets those catch up whose queued items are out.
    fn begin_catching_up(&mut self) {
        while let Some(spilled) = self.order.take_ready() {
            if let Some(watch) = find(&mut self.watches, spilled.watch) {
                watch.state = WatchState::CatchingUp;
                self.catch_up
                    .insert(spilled.watch, &watch.range, watch.wanted, spilled.next);
            }
        }
    }

    /// Makes watches live that were given everything published.
    fn join(&mut self) {
        if self.catch_up.is_empty() {
            return;
        }
        let mut index = self.hub.lock();
        for _ in 0..JOINS_PER_STEP {
            let Some((next, id)) = self.catch_up.newest() else {
                return;
            };
            if next <= index.head {
                return;
            }
            self.catch_up.remove(id);
            if let Some(watch) = self.watches.get_mut(&id) {
                probe::reached(CoveragePoint::WatchCaughtUp);
                let name = watch.name(id);
                watch.go_live(&mut index, name, &self.queue, next);
                self.hub.counters().slow_watches.fetch_sub(1, Relaxed);
            }
        }
    }

    fn tell_compacted(&mut self, pinned: &PinnedView<'_>) -> Option<Output> {
        let (next, id) = self.catch_up.oldest()?;
        if next >= pinned.compacted {
            return None;
        }
        self.catch_up.remove(id);
        let watch = self.watches.get_mut(&id)?;
        watch.state = WatchState::Compacted;
        probe::reached(CoveragePoint::WatchCompacted);
        let counters = self.hub.counters();
        counters.watches.fetch_sub(1, Relaxed);
        counters.slow_watches.fetch_sub(1, Relaxed);
        Some(Output::Compacted {
            watch_id: id,
            compact_revision: pinned.compacted,
        })
    }

    /// Reads a page and hands out the first of it, or what a watch is to get of a large revision;
    /// nothing where there is nothing to read.
    fn read(&mut self, pinned: &PinnedView<'_>) -> storage::Result<Option<Output>> {
        let (limits, copies) = (self.hub.limits(), self.hub.copies());
        match self.catch_up.read(pinned, limits, copies)? {
            Found::Nothing => Ok(None),
            Found::Page(page) => {
                self.reported = self.reported.max(page.next - 1);
                self.page = Some(page);
                self.join();
                Ok(Some(self.serve_page().unwrap_or(Output::Again)))
            }
            Found::Large { watch, revision } => self.read_large(watch, revision, pinned).map(Some),
        }
    }

    /// The events of a large revision for one watch; `Again` where there is no room for them now.
    fn read_large(
        &mut self,
        name: WatchName,
        revision: i64,
        pinned: &PinnedView<'_>,
    ) -> storage::Result<Output> {
        let hub = self.hub.clone();
        let Some(watch) = find(&mut self.watches, name) else {
            self.catch_up.remove(name.id);
            return Ok(Output::Again);
        };
        let Some(turn) = hub.begin_large() else {
            return Ok(Output::Again);
        };
        let most_bytes = match watch.fragment {
            true => usize::MAX,
            false => MAX_MESSAGE_BYTES,
        };
        let events = turn.read(pinned, revision, &watch.range, watch.wanted, most_bytes)?;
        drop(turn);
        self.reported = self.reported.max(revision);
        self.catch_up.pass(name.id, revision + 1);
        let output = watch.events(&hub, name.id, revision, events);
        self.order.note_page_ended(&self.queue);
        self.join();
        Ok(output)
    }

    /// Whether a page is held, or the rest of one.
    pub fn holds_page(&self) -> bool {
        self.page.is_some()
    }

    /// Lets go of the page that is held: the client does not read. It is read again when `next`
    /// is called again.
    pub fn put_back_page(&mut self) {
        if let Some(page) = self.page.take() {
            for (name, from) in page.into_unserved() {
                self.fall_back(name, from);
            }
        }
    }

    fn serve_page(&mut self) -> Option<Output> {
        let page = self.page.as_mut()?;
        let header_revision = page.next - 1;
        let watches = &mut self.watches;
        let part = page.serve(|name| {
            watches
                .get(&name.id)
                .is_some_and(|watch| watch.serial == name.serial)
        });
        match part {
            Part::Events(name, events) => {
                let watch = find(watches, name);
                let output =
                    watch.map(|watch| watch.events(&self.hub, name.id, header_revision, events));
                if page.is_served() {
                    self.drop_page();
                }
                Some(output.unwrap_or(Output::Again))
            }
            Part::Again => Some(Output::Again),
            Part::Empty => {
                self.drop_page();
                Some(Output::Again)
            }
        }
    }

    fn drop_page(&mut self) {
        if self.page.take().is_some() {
            self.order.note_page_ended(&self.queue);
        }
    }

    /// What an item of the queue has to say; nothing where its watch was cancelled.
    fn take_item(&mut self, item: Item) -> Option<Output> {
        match item {
            Item::Events {
                watch: name,
                revision,
                events,
                ..
            } => {
                let watch = find(&mut self.watches, name)?;
                let Some(events) = events.read() else {
                    probe::reached(CoveragePoint::QueuedEventGone);
                    self.fall_back(name, revision);
                    return None;
                };
                Some(watch.events(&self.hub, name.id, revision, events))
            }
            Item::Progress { of, revision } => self.take_progress(of, revision),
        }
    }
}

impl Stream {
    /// Has a watch catch up, again or from further back: what it was to be given is gone. What is
    /// queued for it, or says that it left the index, names it by its old serial and is not for
    /// it any more.
    fn fall_back(&mut self, name: WatchName, revision: i64) {
        let Some(watch) = find(&mut self.watches, name) else {
            return;
        };
        match watch.state {
            WatchState::Compacted => return,
            WatchState::CatchingUp => self.catch_up.remove(name.id),
            // One that is leaving was counted as slow when it left the index.
            WatchState::Leaving => {}
            WatchState::Live(node) => {
                if self.hub.lock().remove(node, name.serial) {
                    self.hub.counters().slow_watches.fetch_add(1, Relaxed);
                }
            }
        }
        watch.state = WatchState::CatchingUp;
        watch.fresh = false;
        // Progress that is queued does not speak for it.
        self.past_starts += 1;
        watch.serial = self.hub.next_serial();
        let name = watch.name(name.id);
        self.catch_up
            .insert(name, &watch.range, watch.wanted, revision);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.drop_page();
        let mut index = self.hub.lock();
        index.stop_waiting(&self.queue);
        let left_behind = probe::injected(Defect::WatchesLeftBehind);
        for watch in self.watches.values().filter(|_| !left_behind) {
            watch.end(&mut index, &self.hub);
        }
        drop(index);
        self.queue.clear();
        self.hub.lock().trim();
        self.hub.counters().streams.fetch_sub(1, Relaxed);
    }
}

/// The watch of that name, where it was not cancelled since.
fn find(watches: &mut BTreeMap<i64, Watch>, name: WatchName) -> Option<&mut Watch> {
    watches
        .get_mut(&name.id)
        .filter(|watch| watch.serial == name.serial)
}

impl Watch {
    fn name(&self, id: i64) -> WatchName {
        WatchName {
            id,
            serial: self.serial,
        }
    }

    fn go_live(&mut self, index: &mut Index, watch: WatchName, queue: &Arc<EventQueue>, from: i64) {
        let live = Live {
            watch,
            queue: queue.clone(),
            wanted: self.wanted,
            from,
            gathered: 0,
        };
        self.state = WatchState::Live(index.insert(&self.range, live));
        self.fresh = false;
    }

    fn events(
        &mut self,
        hub: &Hub,
        watch_id: i64,
        header_revision: i64,
        events: Vec<crate::proto::EncodedEvent>,
    ) -> Output {
        self.quiet = false;
        let count = events.len() as u64;
        hub.counters().events.fetch_add(count, Relaxed);
        Output::Events {
            watch_id,
            header_revision,
            events,
            fragment: self.fragment,
        }
    }

    /// Leaves the index and the counts.
    fn end(&self, index: &mut Index, hub: &Hub) {
        let counters = hub.counters();
        let slow = match self.state {
            WatchState::Compacted => return,
            WatchState::Live(node) => !index.remove(node, self.serial),
            WatchState::Leaving | WatchState::CatchingUp => true,
        };
        counters.watches.fetch_sub(1, Relaxed);
        if slow {
            counters.slow_watches.fetch_sub(1, Relaxed);
        }
    }
}
