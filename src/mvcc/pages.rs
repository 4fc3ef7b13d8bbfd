//! An answer in pages, each read from the same pinned view when it is asked for: between two of
//! them nothing is held but a place, and where the answer is sorted the next rows without their
//! values.

use std::collections::VecDeque;

use super::Result;
use super::frame::{Fields, Room};
use super::order::{Keeps, Round, Row};
use super::range::changed;
use super::read::{PinnedView, RangeRead, parse_head};
use crate::storage::schema::Frame;
use crate::types::KeyRange;

/// The pairs of a measured answer, framed as `EncodedKvs` holds them.
pub struct Pages {
    request: RangeRead,
    revision: i64,
    /// Pairs that are not given yet, the one included of which a part is.
    left: usize,
    /// Where the next page continues within its first pair.
    offset: usize,
    order: Order,
}

enum Order {
    /// That of the walk; the range that is not given yet.
    Key(KeyRange),
    Sorted {
        rows: VecDeque<Row>,
        /// The last that was given.
        after: Option<Row>,
    },
}

/// Frames of pairs.
pub struct PairPage {
    pub bytes: Vec<u8>,
    /// True where it begins within a pair; then it holds nothing else.
    pub continues: bool,
    /// What its last pair has behind it, in bytes.
    pub rest_bytes: usize,
    /// Of its first pair this much has been given before; of its last one, when it is done.
    offset: usize,
}

/// Smaller pages find in the engine's memory what the one before them read beside its own.
const ONCE_BYTES: usize = 128 << 10;

/// What a page may take.
pub struct Rooms<'a> {
    pub page_bytes: usize,
    /// For a pair larger than that to be given whole.
    pub large_pair: Room<'a>,
    /// For rows that are kept from page to page; refused they are read anew for every page.
    pub rows: Room<'a>,
}

/// What became of a pair.
#[derive(PartialEq, Eq)]
enum Put {
    Whole,
    Part,
    /// It belongs to the next page.
    Nothing,
}

impl Pages {
    /// Of the answer to `request`, which `pinned` has measured.
    pub fn new(pinned: &PinnedView<'_>, request: RangeRead, pairs: usize) -> Result<Self> {
        let revision = pinned.check_revision(request.revision)?;
        let order = match request.is_in_key_order() || matches!(request.range, KeyRange::Point(_)) {
            true => Order::Key(request.range.clone()),
            false => Order::Sorted {
                rows: VecDeque::new(),
                after: None,
            },
        };
        Ok(Self {
            request,
            revision,
            left: pairs,
            offset: 0,
            order,
        })
    }

    /// The next page from the same view; none behind the last.
    pub fn next(
        &mut self,
        pinned: &PinnedView<'_>,
        rooms: &mut Rooms<'_>,
    ) -> Result<Option<PairPage>> {
        if self.left == 0 {
            return Ok(None);
        }
        // What has to be paged is large, and most of it is read once; what a page gave a part of, or
        // has little of, is read again for the next.
        let is_once = self.offset == 0 && rooms.page_bytes >= ONCE_BYTES;
        let page = match is_once && !matches!(self.request.range, KeyRange::Point(_)) {
            true => pinned.once(|pinned| self.read_page(pinned, rooms))?,
            false => self.read_page(pinned, rooms)?,
        };
        Ok(Some(page))
    }

    fn read_page(&mut self, pinned: &PinnedView<'_>, rooms: &mut Rooms<'_>) -> Result<PairPage> {
        let mut page = PairPage {
            bytes: Vec::new(),
            continues: self.offset > 0,
            rest_bytes: 0,
            offset: self.offset,
        };
        match &mut self.order {
            Order::Key(range) => {
                let rest = Self::walk(
                    (&self.request, range, self.revision),
                    pinned,
                    &mut self.left,
                    &mut page,
                    rooms,
                )?;
                if let Some(rest) = rest {
                    *range = rest;
                }
            }
            Order::Sorted { .. } => self.take_rows(pinned, &mut page, rooms)?,
        }
        self.offset = page.offset;
        Ok(page)
    }

    /// Fills a page in key order; the range behind its last whole pair.
    fn walk(
        (request, range, revision): (&RangeRead, &KeyRange, i64),
        pinned: &PinnedView<'_>,
        left: &mut usize,
        page: &mut PairPage,
        rooms: &mut Rooms<'_>,
    ) -> Result<Option<KeyRange>> {
        let filters = request.has_revision_filters();
        let mut walk = pinned.walk(range, revision)?;
        let mut last = None;
        while *left > 0 {
            if !walk.advance()? {
                return Err(changed().into());
            }
            let (key, record) = (walk.key(), walk.record());
            if filters && !request.passes_filters(&parse_head(key, record)?) {
                continue;
            }
            let put = page.put(Fields::of(request, key, record)?.frame(key), rooms);
            if put != Put::Whole {
                break;
            }
            *left -= 1;
            last = Some(key.to_vec());
            if page.bytes.len() >= rooms.page_bytes {
                break;
            }
        }
        Ok(last.map(|last| range.behind(&last)))
    }

    fn take_rows(
        &mut self,
        pinned: &PinnedView<'_>,
        page: &mut PairPage,
        rooms: &mut Rooms<'_>,
    ) -> Result<()> {
        let (request, revision) = (&self.request, self.revision);
        let Order::Sorted { rows, after } = &mut self.order else {
            return Ok(());
        };
        while self.left > 0 && page.bytes.len() < rooms.page_bytes {
            if rows.is_empty() {
                (rooms.rows)(0);
                let place = (after.as_ref(), self.left, Keeps::Keys);
                let round = Round::walk(pinned, request, revision, place, rooms.rows)?;
                *rows = round.rows.into();
            }
            let row = rows.front().ok_or_else(changed)?;
            let put = if request.keys_only {
                page.put(Fields::numbers(request, &row.head).frame(&row.key), rooms)
            } else if row.record.is_empty() {
                let version = pinned.get(&row.key, revision)?.ok_or_else(changed)?;
                let fields = Fields::of(request, &row.key, version.record())?;
                page.put(fields.frame(&row.key), rooms)
            } else {
                let fields = Fields::of(request, &row.key, &row.record)?;
                page.put(fields.frame(&row.key), rooms)
            };
            if put != Put::Whole {
                break;
            }
            self.left -= 1;
            *after = rows.pop_front();
        }
        let rows_bytes = rows.iter().map(Row::size_bytes).sum();
        if !(rooms.rows)(rows_bytes) {
            *rows = VecDeque::new();
        }
        Ok(())
    }
}

impl PairPage {
    fn put(&mut self, frame: Frame<'_>, rooms: &mut Rooms<'_>) -> Put {
        let len = frame.encoded_len();
        let is_first = self.bytes.is_empty();
        if self.continues && !is_first {
            return Put::Nothing;
        }
        if self.offset == 0 {
            if self.bytes.len() + len <= rooms.page_bytes {
                if is_first {
                    self.bytes.reserve_exact(rooms.page_bytes);
                }
                frame.append(&mut self.bytes);
                return Put::Whole;
            }
            if !is_first {
                return Put::Nothing;
            }
            if (rooms.large_pair)(len) {
                self.bytes.reserve_exact(len);
                frame.append(&mut self.bytes);
                return Put::Whole;
            }
        }
        self.bytes.reserve_exact(rooms.page_bytes);
        frame.append_part(self.offset, rooms.page_bytes, &mut self.bytes);
        self.offset += self.bytes.len();
        self.rest_bytes = len - self.offset;
        if self.rest_bytes > 0 {
            return Put::Part;
        }
        self.offset = 0;
        Put::Whole
    }
}
