//! What the log keeps in memory to find an entry: its term, and where on disk it lies. Both are
//! small whatever the number of entries: terms are kept as runs, places as extents that hold whole
//! frames.
//!
//! Extents are in order of index and of place at once: a conflicting suffix is cut off before its
//! successor is added. So the first extent still needed tells the first segment still needed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::EntryId;
use super::files::OpenFile;

/// Frames are added to an extent up to this size: one read finds an entry, and memory is bounded by
/// the log's bytes.
const EXTENT_BYTES: u64 = 16 << 10;

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameLocation {
    pub sequence: u64,
    pub offset: u64,
    pub bytes: u64,
}

/// Whole frames that follow each other in one segment, and hold the entries from `first` up to the
/// next extent's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub first: u64,
    pub place: FrameLocation,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    first: u64,
    term: u64,
}

/// The live log. Entries are those above `entry_id.index` up to `last`.
#[derive(Default)]
pub(super) struct Index {
    pub entry_id: EntryId,
    pub last: u64,
    /// Counts the changes that took entries away at the end: two reads with the same count saw one
    /// log.
    pub cuts: u64,
    pub segments: BTreeMap<u64, Arc<dyn OpenFile>>,
    runs: VecDeque<Run>,
    extents: VecDeque<Extent>,
}

impl Index {
    /// Adds entries from `first` on, with these terms, that lie at `place`; they replace all from
    /// `first` on.
    pub fn append(&mut self, first: u64, terms: impl Iterator<Item = u64>, place: FrameLocation) {
        let continues = first == self.last + 1;
        if !continues {
            self.cut(first);
        }
        let mut index = first;
        for term in terms {
            if self.runs.back().is_none_or(|run| run.term != term) {
                self.runs.push_back(Run { first: index, term });
            }
            index += 1;
        }
        self.last = index - 1;
        match self.extents.back_mut() {
            Some(extent) if continues && extent.takes(place) => {
                extent.place.bytes = place.offset + place.bytes - extent.place.offset;
            }
            _ => self.extents.push_back(Extent { first, place }),
        }
    }

    fn cut(&mut self, from: u64) {
        while self.runs.back().is_some_and(|run| run.first >= from) {
            self.runs.pop_back();
        }
        while self
            .extents
            .back()
            .is_some_and(|extent| extent.first >= from)
        {
            self.extents.pop_back();
        }
        self.cuts += 1;
    }

    /// Forgets the entries up to `entry_id`.
    pub fn compact(&mut self, entry_id: EntryId) {
        self.entry_id = entry_id;
        if entry_id.index >= self.last {
            self.runs.clear();
            self.extents.clear();
            return;
        }
        while self
            .runs
            .get(1)
            .is_some_and(|run| run.first <= entry_id.index + 1)
        {
            self.runs.pop_front();
        }
        while self
            .extents
            .get(1)
            .is_some_and(|extent| extent.first <= entry_id.index + 1)
        {
            self.extents.pop_front();
        }
    }

    /// Forgets all entries; the log continues after `entry_id`.
    pub fn reset(&mut self, entry_id: EntryId) {
        self.last = entry_id.index;
        self.cuts += 1;
        self.compact(entry_id);
    }

    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.entry_id.index {
            return Some(self.entry_id.term);
        }
        if index < self.entry_id.index || index > self.last {
            return None;
        }
        let after = self.runs.partition_point(|run| run.first <= index);
        Some(self.runs.get(after.checked_sub(1)?)?.term)
    }

    /// The extent that holds `index`, and the index after its last one.
    pub fn extent(&self, index: u64) -> Option<(Extent, u64)> {
        if index <= self.entry_id.index || index > self.last {
            return None;
        }
        let after = self.extents.partition_point(|extent| extent.first <= index);
        let extent = self.extents.get(after.checked_sub(1)?)?;
        let end = self
            .extents
            .get(after)
            .map_or(self.last + 1, |next| next.first);
        Some((*extent, end))
    }

    /// The first entry that lies in a segment.
    pub fn first(&self) -> Option<u64> {
        self.extents.front().map(|extent| extent.first)
    }

    /// The first segment that holds an entry of the log, if any does.
    pub fn first_needed_segment(&self) -> Option<u64> {
        self.extents.front().map(|extent| extent.place.sequence)
    }
}

impl Extent {
    /// Whether the extent can grow over the frame. What lies between them is whole frames without
    /// entries.
    fn takes(&self, frame: FrameLocation) -> bool {
        self.place.sequence == frame.sequence
            && frame.offset + frame.bytes - self.place.offset <= EXTENT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(sequence: u64, offset: u64) -> FrameLocation {
        FrameLocation {
            sequence,
            offset,
            bytes: 400,
        }
    }

    #[test]
    fn terms_are_runs() {
        let mut index = Index::default();
        index.append(1, [1, 1, 2, 2, 5].into_iter(), place(1, 64));
        assert_eq!(index.runs.len(), 3);
        assert_eq!(
            (1..=6).map(|i| index.term(i)).collect::<Vec<_>>(),
            [Some(1), Some(1), Some(2), Some(2), Some(5), None]
        );
        index.append(4, [6].into_iter(), place(1, 464));
        assert_eq!(
            (index.last, index.term(3), index.term(4), index.term(5)),
            (4, Some(2), Some(6), None)
        );
        index.compact(EntryId { index: 3, term: 2 });
        assert_eq!(
            (index.term(2), index.term(3), index.term(4)),
            (None, Some(2), Some(6))
        );
        assert_eq!(index.runs.len(), 1);
        index.reset(EntryId { index: 9, term: 7 });
        assert_eq!(
            (index.term(4), index.term(9), index.term(10)),
            (None, Some(7), None)
        );
    }

    #[test]
    fn frames_share_extents_of_bounded_size() {
        let mut index = Index::default();
        for i in 0..1000 {
            index.append(
                i + 1,
                [1].into_iter(),
                place(1 + i / 500, 64 + (i % 500) * 400),
            );
        }
        assert!(index.extents.len() <= 26, "{} extents", index.extents.len());
        for i in 1..=1000 {
            let (extent, end) = index.extent(i).expect("an entry of the log");
            assert!(extent.first <= i && i < end && extent.place.bytes <= EXTENT_BYTES);
            assert_eq!(extent.place.sequence, 1 + (i - 1) / 500);
        }
        assert_eq!(index.first_needed_segment(), Some(1));
        index.compact(EntryId {
            index: 500,
            term: 1,
        });
        assert_eq!(index.first_needed_segment(), Some(2));
    }

    #[test]
    fn a_cut_starts_a_new_extent() {
        let mut index = Index::default();
        index.append(1, [1, 1, 1].into_iter(), place(1, 64));
        index.append(2, [2].into_iter(), place(1, 464));
        index.append(3, [2].into_iter(), place(1, 864));
        assert_eq!(
            index
                .extent(1)
                .map(|(extent, end)| (extent.place.offset, end)),
            Some((64, 2))
        );
        assert_eq!(
            index
                .extent(3)
                .map(|(extent, end)| (extent.place.offset, end)),
            Some((464, 4))
        );
        assert_eq!(index.cuts, 1);
    }
}
