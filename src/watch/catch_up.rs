//! The watches of one stream that are catching up, and the pages they read.
//!
//! A page is read once for all watches whose next revision lies in it. It begins by turns at the
//! watch that is farthest behind, so that the watches meet and share their pages, and at the one
//! that is nearest to the head, so that it need not wait for the others. Where a revision is too large
//! for a page, the watches that want little of it get a page of that, and the others are served one
//! by one (see `large`).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::Limits;
use super::copies::Copies;
use super::logged::PART;
use super::queue::{Encoded, Wanted, WatchName};
use super::range_set::{NodeId, RangeSet};
use crate::budget::Held;
use crate::mvcc::Change;
use crate::mvcc::history::{PageLimit, WithPrevious};
use crate::mvcc::read::PinnedView;
use crate::proto::EncodedEvent;
use crate::storage;
use crate::storage::schema::ChangeKind;
use crate::types::{KeyRange, Revision};

/// Of a large revision, what one watch gets beside others.
const FEW_CHANGES: usize = if cfg!(any(test, feature = "simulation")) {
    2
} else {
    100
};

/// How many changes are read for one call that finds none to hand out.
const SERVE_STEPS: usize = if cfg!(test) { 20 } else { 100_000 };

/// A page may take this part of what is free: the first streams that read at once get pages as
/// large as etcd's responses, the later ones smaller and smaller ones.
const SHARE_OF_FREE_ROOM: usize = 3;

/// No revision at all.
const NEVER: i64 = i64::MAX;

/// What the watches of one range want of a page, all of them taken together.
struct RangeWants {
    watches: usize,
    puts_from: i64,
    deletes_from: i64,
    previous_from: i64,
}

impl Default for RangeWants {
    fn default() -> Self {
        Self {
            watches: 0,
            puts_from: NEVER,
            deletes_from: NEVER,
            previous_from: NEVER,
        }
    }
}

impl RangeWants {
    fn add(&mut self, wanted: Wanted, next: i64) {
        for (wants, from) in [
            (wanted.puts, &mut self.puts_from),
            (wanted.deletes, &mut self.deletes_from),
            (wanted.previous, &mut self.previous_from),
        ] {
            if wants {
                *from = next.min(*from);
            }
        }
    }

    fn kind_from(&self, kind: ChangeKind) -> i64 {
        match kind {
            ChangeKind::Put => self.puts_from,
            ChangeKind::Delete => self.deletes_from,
        }
    }
}

/// A watch that catches up.
#[derive(Clone, Copy)]
struct LaggingWatch {
    serial: u64,
    node: NodeId,
    wanted: Wanted,
}

/// See the module.
#[derive(Default)]
pub(super) struct CatchUp {
    ranges: RangeSet<RangeWants>,
    /// By next revision and id.
    by_next: BTreeMap<(i64, i64), LaggingWatch>,
    next_of: HashMap<i64, i64>,
    newest_turn: bool,
}

impl CatchUp {
    pub fn is_empty(&self) -> bool {
        self.by_next.is_empty()
    }

    /// Adds a watch that was given everything below `next`.
    pub fn insert(&mut self, watch: WatchName, range: &KeyRange, wanted: Wanted, next: i64) {
        let node = self.ranges.insert(range);
        self.ranges.get_mut(node).watches += 1;
        let lagging = LaggingWatch {
            serial: watch.serial,
            node,
            wanted,
        };
        self.by_next.insert((next, watch.id), lagging);
        self.next_of.insert(watch.id, next);
    }

    /// Takes a watch out, where it is in here.
    pub fn remove(&mut self, id: i64) {
        let Some(next) = self.next_of.remove(&id) else {
            return;
        };
        if let Some(lagging) = self.by_next.remove(&(next, id)) {
            let wants = self.ranges.get_mut(lagging.node);
            wants.watches -= 1;
            if wants.watches == 0 {
                self.ranges.remove(lagging.node);
            }
        }
    }

    /// The next revision and the id of the watch that is farthest behind.
    pub fn oldest(&self) -> Option<(i64, i64)> {
        self.by_next.keys().next().copied()
    }

    /// The next revision and the id of the watch that is nearest to the head.
    pub fn newest(&self) -> Option<(i64, i64)> {
        self.by_next.keys().next_back().copied()
    }

    /// Puts a watch behind what it was given.
    pub fn pass(&mut self, id: i64, next: i64) {
        let Some(before) = self.next_of.get_mut(&id) else {
            return;
        };
        if let Some(lagging) = self.by_next.remove(&(*before, id)) {
            self.by_next.insert((next, id), lagging);
        }
        *before = next;
    }

    /// Reads a page for the watches that it can bring forward, or finds a revision that is too large
    /// for that. No watch may be behind the compacted revision.
    pub fn read(
        &mut self,
        pinned: &PinnedView<'_>,
        limits: &Limits,
        copies: &Arc<Copies>,
    ) -> storage::Result<Found> {
        let Some(from) = self.begin(pinned.head) else {
            return Ok(Found::Nothing);
        };
        self.sum_up_wants(from);
        let found = self.read_from(from, BTreeSet::new(), pinned, limits, copies)?;
        let Found::Large { revision, .. } = found else {
            return Ok(found);
        };
        let behind = |this: &Self, skip: &BTreeSet<NodeId>| {
            let behind = this
                .by_next
                .range((from, i64::MIN)..(revision + 1, i64::MIN));
            behind.filter(|(_, it)| !skip.contains(&it.node)).count()
        };
        if behind(self, &BTreeSet::new()) < 2 {
            return Ok(found);
        }
        let much = self.wanting_much(pinned, revision)?;
        if behind(self, &much) == 0 {
            return Ok(found);
        }
        Ok(match self.read_from(from, much, pinned, limits, copies)? {
            // It is not the number of changes, but their size.
            Found::Large { .. } => found,
            page => page,
        })
    }

    /// The ranges whose watches want more than a few changes of a revision.
    fn wanting_much(
        &self,
        pinned: &PinnedView<'_>,
        revision: i64,
    ) -> storage::Result<BTreeSet<NodeId>> {
        let (mut counts, mut matching) = (HashMap::<NodeId, usize>::new(), Vec::new());
        let mut next = Some(Revision::new(revision, 0));
        while let Some(at) = next {
            (_, next) = pinned.changes_of(at, PART, &mut |key, kind, revision| {
                matching.clear();
                self.ranges.matching(key, &mut matching);
                let wants = |node: &&NodeId| self.ranges.get(**node).kind_from(kind) <= revision;
                for node in matching.iter().filter(wants) {
                    *counts.entry(*node).or_default() += 1;
                }
                None
            })?;
        }
        let much = counts.into_iter().filter(|(_, count)| *count > FEW_CHANGES);
        Ok(much.map(|(node, _)| node).collect())
    }

    /// Reads a page for all but those of the ranges `skip`.
    fn read_from(
        &mut self,
        from: i64,
        skip: BTreeSet<NodeId>,
        pinned: &PinnedView<'_>,
        limits: &Limits,
        copies: &Arc<Copies>,
    ) -> storage::Result<Found> {
        let share = copies.share();
        let free = share.limit_bytes().saturating_sub(share.used_bytes());
        let mut hits = Hits {
            limit: limits.page_hits,
            skip,
            ..Hits::default()
        };
        let limit = PageLimit {
            revisions: limits.page_revisions,
            records: limits.page_records,
            bytes: limits.page_bytes.min(free / SHARE_OF_FREE_ROOM).max(1),
            whole_bytes: limits.whole_bytes,
        };
        let page = pinned.changes(from, limit, &mut |key, kind, revision| {
            hits.find(&self.ranges, key, kind, revision)
        })?;
        if page.too_large
            && let Some(change) = page.changes.first()
            && let Some(watch) = self.first_of(from, change, &hits)
        {
            return Ok(Found::Large {
                watch,
                revision: change.revision.main,
            });
        }
        let next = hits.cut.unwrap_or(page.next);
        let mut changes = page.changes;
        changes.truncate(changes.partition_point(|change| change.revision.main < next));
        let by_range = hits.by_range(changes.len());
        let serve = self.move_on(from, next, &by_range, &hits.skip);
        let bytes = changes.iter().map(Change::size_bytes).sum();
        Ok(Found::Page(Page {
            copies: copies.clone(),
            _held: share.take_anyway(bytes),
            changes: changes
                .into_iter()
                .map(|change| (change, Encoded::default()))
                .collect(),
            by_range,
            serve,
            next,
        }))
    }

    /// A watch that wants the first change that was found, `from` on.
    fn first_of(&self, from: i64, change: &Change, hits: &Hits) -> Option<WatchName> {
        let nodes = &hits.ranges[..*hits.ends.first()?];
        let next = change.revision.main + 1;
        let mut candidates = self.by_next.range((from, i64::MIN)..(next, i64::MIN));
        let ((_, id), lagging) = candidates.find(|(_, lagging)| {
            nodes.contains(&lagging.node) && lagging.wanted.kind(change.kind)
        })?;
        Some(WatchName {
            id: *id,
            serial: lagging.serial,
        })
    }

    fn begin(&mut self, head: i64) -> Option<i64> {
        self.newest_turn = !self.newest_turn;
        let oldest = self.oldest()?.0;
        let newest = self.newest()?.0;
        let from = if self.newest_turn && newest <= head {
            newest
        } else {
            oldest
        };
        (from <= head).then_some(from)
    }

    fn sum_up_wants(&mut self, from: i64) {
        for wants in self.ranges.values_mut() {
            *wants = RangeWants {
                watches: wants.watches,
                ..Default::default()
            };
        }
        for ((next, _), lagging) in self.by_next.range((from, i64::MIN)..) {
            let wants = self.ranges.get_mut(lagging.node);
            wants.add(lagging.wanted, *next);
        }
    }

    /// Puts the watches within a page behind it, but those of the ranges `skip`; returns those that
    /// it may hold events for.
    fn move_on(
        &mut self,
        from: i64,
        page_next: i64,
        by_range: &BTreeMap<NodeId, Vec<u32>>,
        skip: &BTreeSet<NodeId>,
    ) -> VecDeque<Served> {
        let mut behind = self.by_next.split_off(&(from, i64::MIN));
        let mut ahead = behind.split_off(&(page_next, i64::MIN));
        let mut serve = VecDeque::new();
        for ((next, id), lagging) in behind {
            if skip.contains(&lagging.node) {
                self.by_next.insert((next, id), lagging);
                continue;
            }
            if by_range.contains_key(&lagging.node) {
                serve.push_back(Served {
                    watch: WatchName {
                        id,
                        serial: lagging.serial,
                    },
                    node: lagging.node,
                    wanted: lagging.wanted,
                    from: next,
                });
            }
            self.next_of.insert(id, page_next);
            ahead.insert((page_next, id), lagging);
        }
        self.by_next.append(&mut ahead);
        serve
    }
}

/// What there is for the watches.
pub(super) enum Found {
    Nothing,
    Page(Page),
    /// A revision that is too large for a page, and a watch that wants something of it and nothing
    /// before.
    Large {
        watch: WatchName,
        revision: i64,
    },
}

/// Which ranges want the changes of a page, gathered while it is read.
#[derive(Default)]
struct Hits {
    limit: usize,
    /// These want nothing of it.
    skip: BTreeSet<NodeId>,
    /// The ranges of each wanted change, change by change.
    ranges: Vec<NodeId>,
    /// Where those of each change end.
    ends: Vec<usize>,
    matching: Vec<NodeId>,
    /// The revision of the first wanted change.
    first: Option<i64>,
    /// The first revision that is left to the next page.
    cut: Option<i64>,
}

impl Hits {
    fn find(
        &mut self,
        ranges: &RangeSet<RangeWants>,
        key: &[u8],
        kind: ChangeKind,
        revision: i64,
    ) -> Option<WithPrevious> {
        if self.cut.is_some() {
            return None;
        }
        self.matching.clear();
        ranges.matching(key, &mut self.matching);
        let skip = &self.skip;
        self.matching
            .retain(|node| !skip.contains(node) && ranges.get(*node).kind_from(kind) <= revision);
        if self.matching.is_empty() {
            return None;
        }
        let first = *self.first.get_or_insert(revision);
        if revision != first && self.ranges.len() + self.matching.len() > self.limit {
            self.cut = Some(revision);
            return None;
        }
        self.ranges.extend_from_slice(&self.matching);
        self.ends.push(self.ranges.len());
        let previous = self
            .matching
            .iter()
            .any(|node| ranges.get(*node).previous_from <= revision);
        Some(WithPrevious(previous))
    }

    /// The changes that each range wants, of the first `changes` ones.
    fn by_range(&self, changes: usize) -> BTreeMap<NodeId, Vec<u32>> {
        let mut by_range = BTreeMap::<NodeId, Vec<u32>>::new();
        let mut begin = 0;
        for (change, end) in self.ends.iter().take(changes).enumerate() {
            for node in &self.ranges[begin..*end] {
                by_range.entry(*node).or_default().push(change as u32);
            }
            begin = *end;
        }
        by_range
    }
}

struct Served {
    watch: WatchName,
    node: NodeId,
    wanted: Wanted,
    from: i64,
}

/// A run of history, and the watches that are still to be given their part of it.
pub(super) struct Page {
    changes: Vec<(Change, Encoded)>,
    /// Places in `changes` by range, as the ranges stood when the page was read.
    by_range: BTreeMap<NodeId, Vec<u32>>,
    serve: VecDeque<Served>,
    /// The first revision that it does not cover.
    pub next: i64,
    copies: Arc<Copies>,
    _held: Held,
}

/// What a page has for the next of its watches.
pub(super) enum Part {
    Events(WatchName, Vec<EncodedEvent>),
    /// Nothing yet, after a good deal of looking.
    Again,
    /// All watches were given theirs.
    Empty,
}

impl Page {
    pub fn is_served(&self) -> bool {
        self.serve.is_empty()
    }

    /// The watches that were not given their part, and where they were before it.
    pub fn into_unserved(self) -> impl Iterator<Item = (WatchName, i64)> {
        let serve = self.serve.into_iter();
        serve.map(|served| (served.watch, served.from))
    }

    /// The part of the next watch that `is_there` says is still wanted.
    pub fn serve(&mut self, is_there: impl Fn(WatchName) -> bool) -> Part {
        let mut steps = 0;
        while let Some(served) = self.serve.pop_front() {
            if !is_there(served.watch) {
                continue;
            }
            let places = self
                .by_range
                .get(&served.node)
                .map_or(&[][..], Vec::as_slice);
            let mut events = Vec::new();
            for place in places {
                let (change, encoded) = &mut self.changes[*place as usize];
                if change.revision.main >= served.from && served.wanted.kind(change.kind) {
                    let event = encoded.get(&self.copies, change, served.wanted.previous);
                    events.push((**event).clone());
                }
            }
            if !events.is_empty() {
                return Part::Events(served.watch, events);
            }
            steps += places.len() + 1;
            if steps > SERVE_STEPS {
                return Part::Again;
            }
        }
        Part::Empty
    }
}
