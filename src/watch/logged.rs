//! Publishes a revision of more changes than should be held: from the revision log, part by part.
//!
//! The hub is free between two parts, and while one is read. A watch that becomes live meanwhile
//! may have missed a part; it leaves the index again and catches up, as does one whose queue
//! cannot hold the revision. Where none is left that could be given events the rest is not read.

use super::hub::{Gathered, Hub, Live, Wakes};
use super::range_set::{NodeId, RangeSet};
use crate::mvcc::history::{PartLimit, WithPrevious};
use crate::mvcc::read::PinnedView;
use crate::mvcc::write::Sliced;
use crate::storage;
use crate::types::Revision;

/// What is read at once.
pub(super) const PART: PartLimit = PartLimit {
    records: if cfg!(any(test, feature = "simulation")) {
        3
    } else {
        1_000
    },
    bytes: 1 << 20,
};

/// See the module.
pub(super) struct Logged<'a> {
    hub: &'a Hub,
    main: i64,
    /// The ranges of the watches that were live when it began, and which show previous pairs.
    ranges: RangeSet<bool>,
    /// How many watches these are.
    watches: usize,
    gathered: Vec<Gathered>,
    matching: Vec<NodeId>,
    /// Where the next part begins.
    next: Option<Revision>,
}

impl Hub {
    /// Hands the changes of the next revision to the live watches; `pinned` shows them. Otherwise as
    /// `publish`.
    pub fn publish_logged(&self, sliced: &Sliced, pinned: &PinnedView<'_>) -> storage::Result<()> {
        let mut logged = self.begin_logged(sliced);
        while logged.step(pinned)? {}
        logged.finish();
        Ok(())
    }

    pub(super) fn begin_logged(&self, sliced: &Sliced) -> Logged<'_> {
        let main = sliced.revision;
        let mut index = self.lock();
        let (mut ranges, mut watches) = (RangeSet::default(), 0);
        if main > index.head {
            for (range, members) in index.ranges.overlapping(&sliced.span) {
                let wants =
                    |live: &Live| live.wanted.deletes || live.wanted.puts && sliced.puts > 0;
                let wanting = members
                    .values()
                    .filter(|live| main >= live.from && wants(live));
                let (count, previous) = wanting.fold((0, false), |(count, previous), live| {
                    (count + 1, previous || live.wanted.previous)
                });
                if count > 0 {
                    *ranges.get_mut_of(&range) = previous;
                    watches += count;
                }
            }
            index.entered = Some((main, Vec::new()));
        }
        Logged {
            hub: self,
            main,
            ranges,
            watches,
            gathered: Vec::new(),
            matching: Vec::new(),
            next: (watches > 0).then_some(Revision::new(main, 0)),
        }
    }
}

impl Logged<'_> {
    /// Reads the next part; false where there is none.
    pub fn step(&mut self, pinned: &PinnedView<'_>) -> storage::Result<bool> {
        let Some(from) = self.next else {
            return Ok(false);
        };
        let (ranges, matching) = (&self.ranges, &mut self.matching);
        let (changes, next) = pinned.changes_of(from, PART, &mut |key, _, _| {
            matching.clear();
            ranges.matching(key, matching);
            let previous = matching.iter().map(|node| *ranges.get(*node));
            previous.reduce(|a, b| a || b).map(WithPrevious)
        })?;
        let mut index = self.hub.lock();
        let limits = self.hub.limits();
        index.gather(self.main, &changes, &mut self.gathered, matching, limits);
        // A watch whose events go before they are queued catches up.
        index.trim();
        let full = self.gathered.iter().filter(|gathered| gathered.overflowed);
        self.next = next.filter(|_| full.count() < self.watches);
        Ok(true)
    }

    /// Gives each watch what was found for it.
    pub fn finish(self) {
        let (mut spilled, mut wakes) = (Vec::new(), Wakes::new());
        let mut index = self.hub.lock();
        let (_, entered) = index.entered.take().unwrap_or_default();
        for (node, serial) in entered {
            if let Some(live) = index.ranges.get(node).get(&serial) {
                live.spill(self.main, &mut wakes);
                index.remove(node, serial);
            }
        }
        index.deliver_gathered(self.main, self.gathered, &mut spilled, &mut wakes);
        for (node, serial) in spilled {
            index.remove(node, serial);
        }
        index.trim();
        index.head = index.head.max(self.main);
        Hub::wake(index, wakes);
    }
}
