//! Answers to range requests: whole, or measured where they are too large to be held. `pages`
//! gives what was measured piece by piece.

use bytes::Bytes;

use super::Result;
use super::frame::{Fields, Room};
use super::order::{Keeps, Round, Row};
use super::read::{PinnedView, RangeRead, parse_head};
use crate::proto::EncodedKvs;
use crate::storage;
use crate::storage::Family;
use crate::storage::schema::Frame;
use crate::types::KeyRange;

/// An answer, or how large it is.
#[derive(Debug)]
pub struct Measured {
    /// Where there was room for them.
    pub kvs: Option<EncodedKvs>,
    pub pairs: usize,
    /// Of all pairs, as `EncodedKvs` counts them.
    pub size_bytes: u64,
    pub count: i64,
    /// True where the limit cut the answer.
    pub more: bool,
}

impl PinnedView<'_> {
    /// Answers a range request, however large the answer is.
    #[cfg(test)]
    pub fn range(&self, request: &RangeRead) -> Result<Measured> {
        self.measure(request, &mut |_| true)
    }

    /// Answers a range request whose pairs `room` lets it hold, and measures any other.
    pub fn measure(&self, request: &RangeRead, room: Room<'_>) -> Result<Measured> {
        let revision = self.check_revision(request.revision)?;
        if request.range.is_empty() {
            return Ok(Frames::new(request).measured(0, false));
        }
        if let KeyRange::Point(key) = &request.range {
            return self.point(request, key, revision, room);
        }
        match request.is_in_key_order() {
            true => self.scan(request, revision, room),
            false => self.sorted(request, revision, room),
        }
    }

    /// How large the pairs of an answer are; what is beyond `most_bytes` is not read.
    pub fn size(&self, request: &RangeRead, most_bytes: usize) -> Result<usize> {
        let cut = request.limit > 0 && !request.is_in_key_order();
        if request.range.is_empty() || request.count_only || cut {
            let measured = self.measure(request, &mut |_| false)?;
            return Ok(measured.size_bytes as usize);
        }
        let revision = self.check_revision(request.revision)?;
        let mut walk = self.walk(&request.range, revision)?;
        let mut frames = Frames::new(request);
        while frames.size_bytes <= most_bytes as u64 && !frames.is_full() && walk.advance()? {
            let (key, record) = (walk.key(), walk.record());
            if request.passes_filters(&parse_head(key, record)?) {
                frames.push(key, record, &mut |_| false)?;
            }
        }
        Ok(frames.size_bytes as usize)
    }

    fn point(
        &self,
        request: &RangeRead,
        key: &Bytes,
        revision: i64,
        room: Room<'_>,
    ) -> Result<Measured> {
        let mut frames = Frames::new(request);
        let Some(version) = self.get(key, revision)? else {
            return Ok(frames.measured(0, false));
        };
        let record = version.record();
        let head = parse_head(key, record)?;
        if !request.count_only && request.passes_filters(&head) {
            frames.push(key, record, room)?;
        }
        Ok(frames.measured(1, false))
    }

    /// Answers in key order; what is behind the limit is counted.
    fn scan(&self, request: &RangeRead, revision: i64, room: Room<'_>) -> Result<Measured> {
        let filters = request.has_revision_filters();
        let mut frames = Frames::new(request);
        if request.count_only
            && let Some(count) = self.count(&request.range, revision)?
        {
            return Ok(frames.measured(count, false));
        }
        let mut walk = self.walk(&request.range, revision)?;
        let (mut count, mut more) = (0, false);
        while walk.advance()? {
            count += 1;
            if request.count_only {
                continue;
            }
            let (key, record) = (walk.key(), walk.record());
            if filters && !request.passes_filters(&parse_head(key, record)?) {
                continue;
            }
            if frames.is_full() {
                let behind = (!more).then(|| request.range.behind(key));
                more = true;
                if let Some(behind) = behind
                    && let Some(rest) = self.count(&behind, revision)?
                {
                    return Ok(frames.measured(count + rest, more));
                }
            } else {
                frames.push(key, record, room)?;
            }
        }
        Ok(frames.measured(count, more))
    }

    /// Filters and sorts everything, then cuts.
    fn sorted(&self, request: &RangeRead, revision: i64, room: Room<'_>) -> Result<Measured> {
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let most = if limit > 0 { limit } else { usize::MAX };
        let all = (None, most, Keeps::Records);
        let Round { rows, seen } = Round::walk(self, request, revision, all, room)?;
        let pairs = seen.candidates.min(most);
        let more = seen.candidates > pairs;
        if rows.len() == pairs {
            let mut frames = Frames::new(request);
            let mut rows_bytes: usize = rows.iter().map(Row::size_bytes).sum();
            for row in rows {
                let mut beside = |bytes| room(bytes + rows_bytes);
                frames.push(&row.key, &row.record, &mut beside)?;
                rows_bytes -= row.size_bytes();
            }
            room(frames.held_bytes());
            return Ok(frames.measured(seen.count, more));
        }
        drop(rows);
        let size_bytes = match more {
            false => seen.bytes,
            true => self.size_of_first(request, revision, pairs, room)?,
        };
        room(0);
        Ok(Measured {
            kvs: None,
            pairs,
            size_bytes,
            count: seen.count,
            more,
        })
    }

    /// How large the first `pairs` of a sorted answer are.
    fn size_of_first(
        &self,
        request: &RangeRead,
        revision: i64,
        pairs: usize,
        room: Room<'_>,
    ) -> Result<u64> {
        let (mut left, mut after, mut bytes) = (pairs, None::<Row>, 0);
        while left > 0 {
            room(0);
            let place = (after.as_ref(), left, Keeps::Keys);
            let rows = Round::walk(self, request, revision, place, room)?.rows;
            bytes += rows.iter().map(|row| row.frame_len as u64).sum::<u64>();
            left -= rows.len();
            after = rows.into_iter().last();
            if after.is_none() {
                return Err(changed().into());
            }
        }
        Ok(bytes)
    }
}

/// A pinned view gave less than it had held.
pub(super) fn changed() -> storage::Error {
    storage::Error::Engine(format!(
        "a range of one view of {:?} was read twice and differed",
        Family::Current
    ))
}

/// Collects the pairs of an answer for as long as there is room for them, in chunks: bytes that
/// are there are not copied to make room for more.
struct Frames<'a> {
    request: &'a RangeRead,
    full: Vec<Bytes>,
    full_bytes: usize,
    /// The last chunk.
    bytes: Vec<u8>,
    len: usize,
    size_bytes: u64,
    dropped: bool,
}

/// An answer of many pairs begins with so much memory.
const LEAST_BYTES: usize = 4096;
/// Chunks go to the network as they are: with smaller ones it asks again and again, which costs
/// more than to read the pairs, and larger ones the allocator gets from the system and gives back.
const CHUNK_BYTES: usize = 256 << 10;

impl<'a> Frames<'a> {
    fn new(request: &'a RangeRead) -> Self {
        Self {
            request,
            full: Vec::new(),
            full_bytes: 0,
            bytes: Vec::new(),
            len: 0,
            size_bytes: 0,
            dropped: false,
        }
    }

    fn push(&mut self, key: &[u8], record: &[u8], room: Room<'_>) -> storage::Result<()> {
        let fields = Fields::of(self.request, key, record)?;
        let frame = fields.frame(key);
        let len = frame.encoded_len();
        self.len += 1;
        self.size_bytes += len as u64;
        if !self.dropped && !self.append(&frame, len, room) {
            self.full = Vec::new();
            self.bytes = Vec::new();
            self.dropped = true;
            room(0);
        }
        Ok(())
    }

    /// False where there is no room for it.
    fn append(&mut self, frame: &Frame<'_>, len: usize, room: Room<'_>) -> bool {
        if len <= self.free_bytes() {
            frame.append(&mut self.bytes);
            return true;
        }
        let mut offset = 0;
        while offset < len {
            if !self.make_space(len - offset, room) {
                return false;
            }
            let most = self.free_bytes().min(len - offset);
            frame.append_part(offset, most, &mut self.bytes);
            offset += most;
        }
        true
    }

    fn free_bytes(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    fn held_bytes(&self) -> usize {
        self.full_bytes + self.bytes.capacity()
    }

    /// Makes space for the first of so many bytes: where a chunk is full the next is as large as
    /// all before it.
    fn make_space(&mut self, wanted: usize, room: Room<'_>) -> bool {
        if self.free_bytes() > 0 {
            return true;
        }
        self.end_chunk();
        let least = match self.request.range {
            KeyRange::Point(_) => wanted,
            _ => wanted.max(LEAST_BYTES).max(self.full_bytes),
        };
        let capacity = least.min(CHUNK_BYTES);
        if !room(self.full_bytes + capacity) {
            return false;
        }
        self.bytes.reserve_exact(capacity);
        true
    }

    fn end_chunk(&mut self) {
        if !self.bytes.is_empty() {
            self.full_bytes += self.bytes.capacity();
            self.full.push(std::mem::take(&mut self.bytes).into());
        }
    }

    /// True where the limit is reached.
    fn is_full(&self) -> bool {
        self.request.limit > 0 && self.len as i64 >= self.request.limit
    }

    fn measured(mut self, count: i64, more: bool) -> Measured {
        self.end_chunk();
        let kvs = EncodedKvs::from_chunks(self.full, self.len);
        Measured {
            kvs: (!self.dropped).then_some(kvs),
            pairs: self.len,
            size_bytes: self.size_bytes,
            count,
            more,
        }
    }
}
