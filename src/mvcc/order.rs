//! Orders that are not the walk's. A round walks the whole range and keeps the first rows behind
//! those that earlier rounds gave, as many as there is room for; so a sorted answer of any size
//! needs no more than that room, and with much room one round.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::Result;
use super::frame::{Fields, Room};
use super::read::{PinnedView, RangeRead, SortOrder, SortTarget, parse_head};
use crate::storage::schema::Head;

/// What a row takes beside its key and its record, in bytes.
const ROW_BYTES: usize = 160;
/// What a round takes unasked: with less it would give too few rows for its walk. Tests have few.
const LEAST_BYTES: usize = if cfg!(test) { 1 << 10 } else { 256 << 10 };
/// Room for more is asked for in steps.
const STEP_BYTES: usize = LEAST_BYTES / 4;

/// A version in an order.
pub struct Row {
    pub key: Box<[u8]>,
    pub head: Head,
    /// Empty where only keys are kept and the order is not that of the values.
    pub record: Box<[u8]>,
    pub frame_len: usize,
}

/// What a round keeps of its rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    Records,
    /// And the records where the order needs them.
    Keys,
}

/// What lies in the range.
#[derive(Default)]
pub struct Seen {
    pub count: i64,
    /// Those that may be part of the answer, before a limit cuts it.
    pub candidates: usize,
    /// Of their frames.
    pub bytes: u64,
}

/// The next rows, in order.
pub struct Round {
    pub rows: Vec<Row>,
    pub seen: Seen,
}

impl Round {
    /// Up to `most` rows behind `after`; fewer, but one at least, where `room` refuses to hold
    /// them. A few it need not be asked for.
    pub fn walk(
        pinned: &PinnedView<'_>,
        request: &RangeRead,
        revision: i64,
        (after, most, keeps): (Option<&Row>, usize, Keeps),
        room: Room<'_>,
    ) -> Result<Self> {
        let by = By::of(request);
        let first = match usize::try_from(request.limit) {
            Ok(limit) if limit > 0 && request.cuts_first() => limit.saturating_add(1),
            _ => usize::MAX,
        };
        let mut seen = Seen::default();
        let mut kept = FirstRows::new(by, most, room);
        let mut walk = pinned.walk(&request.range, revision)?;
        let mut asked = false;
        while walk.advance()? {
            seen.count += 1;
            let (key, record) = (walk.key(), walk.record());
            if seen.candidates == first {
                if !asked && let Some(rest) = pinned.count(&request.range.behind(key), revision)? {
                    seen.count += rest;
                    break;
                }
                asked = true;
                continue;
            }
            let head = parse_head(key, record)?;
            if !request.passes_filters(&head) {
                continue;
            }
            seen.candidates += 1;
            let frame_len = Fields::of(request, key, record)?.frame(key).encoded_len();
            seen.bytes += frame_len as u64;
            let here = SortKey { key, head, record };
            if after.is_some_and(|after| by.compare(&here, &after.place()).is_le())
                || !kept.takes(&here)
            {
                continue;
            }
            let keep = keeps == Keeps::Records || by.target == SortTarget::Value;
            kept.push(Row {
                key: key.into(),
                head,
                record: if keep { record.into() } else { Box::default() },
                frame_len,
            });
        }
        Ok(Self {
            rows: kept.in_order(),
            seen,
        })
    }
}

impl Row {
    fn place(&self) -> SortKey<'_> {
        SortKey {
            key: &self.key,
            head: self.head,
            record: &self.record,
        }
    }

    pub fn size_bytes(&self) -> usize {
        self.key.len() + self.record.len() + ROW_BYTES
    }
}

/// What decides where a row comes.
struct SortKey<'a> {
    key: &'a [u8],
    head: Head,
    record: &'a [u8],
}

#[derive(Clone, Copy)]
struct By {
    target: SortTarget,
    descends: bool,
}

impl By {
    fn of(request: &RangeRead) -> Self {
        Self {
            target: request.sort_target,
            descends: request.sort_order == SortOrder::Descend,
        }
    }

    /// Equal rows stay in key order; etcd's sort is not stable, so clients cannot rely on theirs.
    fn compare(self, a: &SortKey<'_>, b: &SortKey<'_>) -> Ordering {
        let order = match self.target {
            SortTarget::Key => a.key.cmp(b.key),
            SortTarget::Version => a.head.version.cmp(&b.head.version),
            SortTarget::Create => a.head.create_revision.cmp(&b.head.create_revision),
            SortTarget::Mod => a.head.mod_revision.main.cmp(&b.head.mod_revision.main),
            SortTarget::Value => a.head.value(a.record).cmp(b.head.value(b.record)),
        };
        let order = match self.descends {
            true => order.reverse(),
            false => order,
        };
        order.then_with(|| a.key.cmp(b.key))
    }
}

/// The first rows so far.
struct FirstRows<'a> {
    by: By,
    most: usize,
    room: Room<'a>,
    granted_bytes: usize,
    bytes: usize,
    rows: BinaryHeap<Ranked>,
    /// Rows behind the last one have been left out.
    full: bool,
}

impl<'a> FirstRows<'a> {
    fn new(by: By, most: usize, room: Room<'a>) -> Self {
        Self {
            by,
            most,
            room,
            granted_bytes: LEAST_BYTES,
            bytes: 0,
            rows: BinaryHeap::new(),
            full: most == 0,
        }
    }

    fn takes(&self, place: &SortKey<'_>) -> bool {
        let last = self.rows.peek();
        !self.full || last.is_some_and(|last| self.by.compare(place, &last.row.place()).is_lt())
    }

    fn push(&mut self, row: Row) {
        self.bytes += row.size_bytes();
        self.rows.push(Ranked { row, by: self.by });
        if self.rows.len() > self.most {
            self.drop_last();
        }
        while self.bytes > self.granted_bytes {
            let wanted = self.bytes + STEP_BYTES;
            if (self.room)(wanted) {
                self.granted_bytes = wanted;
            } else if self.rows.len() > 1 {
                self.drop_last();
            } else {
                break;
            }
        }
    }

    fn drop_last(&mut self) {
        self.full = true;
        if let Some(last) = self.rows.pop() {
            self.bytes -= last.row.size_bytes();
        }
    }

    fn in_order(self) -> Vec<Row> {
        let ranked = self.rows.into_sorted_vec();
        ranked.into_iter().map(|ranked| ranked.row).collect()
    }
}

struct Ranked {
    row: Row,
    by: By,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.by.compare(&self.row.place(), &other.row.place())
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ranked {}
