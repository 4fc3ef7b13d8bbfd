//! The log's bytes on disk: the only place that knows them. All numbers are little-endian.
//!
//! A segment is a header of 64 bytes, then frames, then zeros:
//!
//! | at | bytes | segment header |
//! |---|---|---|
//! | 0 | 8 | `etchedRL` |
//! | 8 | 4 | format version |
//! | 12 | 4 | CRC in the header of the last frame of the segment before this one, 0 without one |
//! | 16, 24 | 8, 8 | cluster id, member id |
//! | 32 | 8 | sequence number, as in the file's name |
//! | 40 | 8 | first index: the one after the log's last entry when the segment was begun |
//! | 48 | 8 | offset at which the segment before this one ended, 0 in the first |
//! | 56 | 4 | bytes of the file as it was made, divided by 8 |
//! | 60 | 4 | CRC-32 of the 60 bytes before |
//!
//! Size, magic and place of the CRC are the same in every version, so that an older etched can name
//! the one it needs. Version 1 has zeros at 12 and 56; its frames are the same.
//!
//! | at | bytes | frame |
//! |---|---|---|
//! | 0 | 4 | `eRLf` |
//! | 4 | 2 | flags: 1 hard state, 2 compaction entry_id, 4 reset, 8 entries |
//! | 6 | 2 | zero |
//! | 8 | 4 | bytes of the payload, without its padding |
//! | 12 | 4 | mask |
//! | 16, 24 | 8, 8 | index of the first and of the last entry, 0 without entries |
//! | 32 | 4 | CRC-32 of the payload and its padding, as stored |
//! | 36 | 4 | CRC-32 of the 36 bytes before |
//! | 40 | | payload: hard state (u32 length, bytes), entry_id (u64 index, u64 term), |
//! | | | entries (each u64 term, u32 length, bytes) |
//! | | 0–7 | zeros, to a multiple of 8 |
//!
//! Both CRCs of a frame begin with one over cluster id, member id, sequence number and the frame's
//! offset: a frame is valid in one place only, so bytes that somebody stored as a value never pass
//! for one.
//!
//! **No sector of a frame is empty.** Recovery takes an all-zero sector as proof that a write did
//! not reach the disk. So each 512-byte sector, as far as the frame covers it, has at least two
//! bits set: data that would break this is stored XORed with a mask. Two bits, because then no
//! single flipped bit can pass for a torn write.

use std::borrow::Cow;
use std::ops::Range;

use super::entry::{EntryId, LogEntry};

pub(super) const SEGMENT_HEADER_BYTES: u64 = 64;
pub(super) const FRAME_HEADER_BYTES: u64 = 40;
pub(super) const FORMAT_VERSION: u32 = 2;
/// Its headers neither tell how long a file was made nor name the frame before.
const UNLINKED_VERSION: u32 = 1;
/// The unit that a disk writes wholly or not at all.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Frames begin at multiples of this.
pub(super) const ALIGNMENT: u64 = 8;
/// Bounds what recovery has to hold in memory for one frame.
pub(super) const MAX_PAYLOAD_BYTES: u64 = 1 << 30;

/// Beyond the end of any log; what lies behind it was not written. So no sum of indexes overflows.
const MAX_INDEX: u64 = u64::MAX / 2;

const SEGMENT_MAGIC: &[u8; 8] = b"etchedRL";
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"eRLf");

const HARD_STATE: u16 = 1;
const MARK: u16 = 2;
const RESET: u16 = 4;
const ENTRIES: u16 = 8;

const HARD_STATE_PREFIX_BYTES: u64 = 4;
const MARK_BYTES: u64 = 16;
const ENTRY_PREFIX_BYTES: u64 = 12;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub cluster_id: u64,
    pub member_id: u64,
}

impl Owner {
    /// The segment's part of what every CRC in it begins with.
    pub fn segment_key(self, sequence: u64) -> SegmentKey {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.cluster_id.to_le_bytes());
        hasher.update(&self.member_id.to_le_bytes());
        hasher.update(&sequence.to_le_bytes());
        SegmentKey(hasher.finalize())
    }
}

/// Ties a frame's CRCs to its segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentKey(u32);

impl SegmentKey {
    fn checksum(self, offset: u64, bytes: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.update(&offset.to_le_bytes());
        hasher.update(bytes);
        hasher.finalize()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub owner: Owner,
    pub sequence: u64,
    pub first_index: u64,
    pub previous_end: u64,
    /// `None` in version 1.
    pub link: Option<Link>,
}

/// What a segment's header tells of files since version 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    /// That of the last frame of the segment before, 0 without one.
    pub previous_checksum: u32,
    /// The file's length before its first use, a multiple of 8; up to 32 GiB of it.
    pub made_bytes: u64,
}

/// What the first bytes of a segment are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// Zeros: made ahead, never begun.
    Unused,
    /// Not what was written.
    Bad,
    /// Whole, but of a later format.
    Newer(u32),
    Valid(SegmentHeader),
}

impl SegmentHeader {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let (version, previous_checksum, made_bytes) = match self.link {
            Some(link) => (FORMAT_VERSION, link.previous_checksum, link.made_bytes),
            None => (UNLINKED_VERSION, 0, 0),
        };
        let made_units = u32::try_from(made_bytes / ALIGNMENT).unwrap_or(u32::MAX);
        out.extend_from_slice(SEGMENT_MAGIC);
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&previous_checksum.to_le_bytes());
        let Owner {
            cluster_id,
            member_id,
        } = self.owner;
        for number in [
            cluster_id,
            member_id,
            self.sequence,
            self.first_index,
            self.previous_end,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&made_units.to_le_bytes());
        let checksum = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&checksum.to_le_bytes());
    }

    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES as usize]) -> Head {
        if bytes.iter().all(|byte| *byte == 0) {
            return Head::Unused;
        }
        Self::decode_whole(bytes).unwrap_or(Head::Bad)
    }

    fn decode_whole(bytes: &[u8]) -> Option<Head> {
        let checked = bytes.get(..60)?;
        if checked.get(..8)? != SEGMENT_MAGIC || crc32fast::hash(checked) != u32_at(bytes, 60)? {
            return None;
        }
        let version = u32_at(bytes, 8)?;
        if version == 0 {
            return None;
        }
        if version > FORMAT_VERSION {
            return Some(Head::Newer(version));
        }
        let first_index = u64_at(bytes, 40)?;
        if !(1..=MAX_INDEX).contains(&first_index) {
            return None;
        }
        let link = Link {
            previous_checksum: u32_at(bytes, 12)?,
            made_bytes: u64::from(u32_at(bytes, 56)?) * ALIGNMENT,
        };
        Some(Head::Valid(Self {
            owner: Owner {
                cluster_id: u64_at(bytes, 16)?,
                member_id: u64_at(bytes, 24)?,
            },
            sequence: u64_at(bytes, 32)?,
            first_index,
            previous_end: u64_at(bytes, 48)?,
            link: (version > UNLINKED_VERSION).then_some(link),
        }))
    }
}

/// What a frame is to hold.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Content<'a> {
    pub hard_state: Option<&'a [u8]>,
    pub entry_id: Option<EntryId>,
    /// The log is emptied, and continues after `entry_id`.
    pub reset: bool,
    pub entries: &'a [LogEntry],
}

impl Content<'_> {
    fn payload_bytes(&self) -> u64 {
        let hard_state = self
            .hard_state
            .map_or(0, |state| HARD_STATE_PREFIX_BYTES + state.len() as u64);
        let entry_id = self.entry_id.map_or(0, |_| MARK_BYTES);
        let entries: u64 = self
            .entries
            .iter()
            .map(|entry| ENTRY_PREFIX_BYTES + entry.data.len() as u64)
            .sum();
        hard_state + entry_id + entries
    }

    /// Bytes of the whole frame; an error holds the bytes of a payload that is too large.
    pub fn frame_bytes(&self) -> Result<u64, u64> {
        match self.payload_bytes() {
            bytes if bytes > MAX_PAYLOAD_BYTES => Err(bytes),
            bytes => Ok(FRAME_HEADER_BYTES + bytes.next_multiple_of(ALIGNMENT)),
        }
    }

    /// Appends the frame to `out`, for `offset` in the segment of `key`. [`Content::frame_bytes`]
    /// was asked before, so no length overflows. Answers the CRC of the frame's header.
    pub fn encode(&self, key: SegmentKey, offset: u64, out: &mut Vec<u8>) -> u32 {
        let start = out.len();
        let payload_start = start + FRAME_HEADER_BYTES as usize;
        out.resize(payload_start, 0);
        self.encode_payload(out);
        let payload_bytes = (out.len() - payload_start) as u32;
        out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);

        let mut header = FrameHeader {
            flags: self.flags(),
            payload_bytes,
            mask: 0,
            first: self.entries.first().map_or(0, |entry| entry.index),
            last: self.entries.last().map_or(0, |entry| entry.index),
            payload_checksum: 0,
            checksum: 0,
        };
        header.seal(key, offset, &mut out[start..]);
        if sectors(offset, &out[start..]).all(has_two_bits) {
            return header.checksum;
        }
        let plain = out[payload_start..].to_vec();
        for mask in masks(offset + FRAME_HEADER_BYTES, &plain) {
            out[payload_start..].copy_from_slice(&plain);
            xor(&mut out[payload_start..], mask);
            header.mask = mask;
            header.seal(key, offset, &mut out[start..]);
            if sectors(offset, &out[start..]).all(has_two_bits) {
                break;
            }
        }
        header.checksum
    }

    fn flags(&self) -> u16 {
        let mut flags = 0;
        for (present, flag) in [
            (self.hard_state.is_some(), HARD_STATE),
            (self.entry_id.is_some(), MARK),
            (self.reset, RESET),
            (!self.entries.is_empty(), ENTRIES),
        ] {
            flags |= if present { flag } else { 0 };
        }
        flags
    }

    fn encode_payload(&self, out: &mut Vec<u8>) {
        if let Some(state) = self.hard_state {
            out.extend_from_slice(&(state.len() as u32).to_le_bytes());
            out.extend_from_slice(state);
        }
        if let Some(entry_id) = self.entry_id {
            out.extend_from_slice(&entry_id.index.to_le_bytes());
            out.extend_from_slice(&entry_id.term.to_le_bytes());
        }
        for entry in self.entries {
            out.extend_from_slice(&entry.term.to_le_bytes());
            out.extend_from_slice(&(entry.data.len() as u32).to_le_bytes());
            out.extend_from_slice(&entry.data);
        }
    }
}

/// The pieces of `bytes`, which begin at `offset` of a file, that lie in different sectors.
pub(super) fn sectors(offset: u64, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let first = (SECTOR_BYTES - offset % SECTOR_BYTES) as usize;
    let (head, rest) = bytes.split_at(first.min(bytes.len()));
    std::iter::once(head).chain(rest.chunks(SECTOR_BYTES as usize))
}

fn has_two_bits(sector: &[u8]) -> bool {
    let mut bits = 0;
    sector.iter().any(|byte| {
        bits += byte.count_ones();
        bits >= 2
    })
}

/// The masks that leave at least two bits in each sector of `payload`, which begins at `offset`.
///
/// A mask leaves less only where one of the sector's first two words equals it, so those are ruled
/// out at once: trying each in turn would let a crafted value keep the log busy.
fn masks(offset: u64, payload: &[u8]) -> impl Iterator<Item = u32> {
    let mut excluded: Vec<u32> = sectors(offset, payload)
        .flat_map(|sector| [u32_at(sector, 0), u32_at(sector, 4)])
        .flatten()
        .collect();
    excluded.sort_unstable();
    (1..=u32::MAX)
        .map(|count| count.wrapping_mul(0x9e37_79b9))
        .filter(move |mask| excluded.binary_search(mask).is_err())
}

/// `bytes` begin at a multiple of 4 from the start of their frame's payload.
fn xor(bytes: &mut [u8], mask: u32) {
    for (byte, mask) in bytes.iter_mut().zip(mask.to_le_bytes().iter().cycle()) {
        *byte ^= mask;
    }
}

/// A frame's header whose CRC was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    flags: u16,
    payload_bytes: u32,
    mask: u32,
    first: u64,
    last: u64,
    payload_checksum: u32,
    /// Of the header itself; it covers the payload's.
    pub checksum: u32,
}

impl FrameHeader {
    /// Writes the header in front of the stored payload that `frame` holds behind it.
    fn seal(&mut self, key: SegmentKey, offset: u64, frame: &mut [u8]) {
        let (header, stored) = frame.split_at_mut(FRAME_HEADER_BYTES as usize);
        self.payload_checksum = key.checksum(offset, stored);
        self.encode(key, offset, header);
    }

    fn encode(&mut self, key: SegmentKey, offset: u64, out: &mut [u8]) {
        out[0..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&self.flags.to_le_bytes());
        out[6..8].fill(0);
        out[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[12..16].copy_from_slice(&self.mask.to_le_bytes());
        out[16..24].copy_from_slice(&self.first.to_le_bytes());
        out[24..32].copy_from_slice(&self.last.to_le_bytes());
        out[32..36].copy_from_slice(&self.payload_checksum.to_le_bytes());
        self.checksum = key.checksum(offset, &out[..36]);
        out[36..40].copy_from_slice(&self.checksum.to_le_bytes());
    }

    /// `None` if `bytes` do not begin with a frame's header, as it was written at this place.
    pub fn decode(key: SegmentKey, offset: u64, bytes: &[u8]) -> Option<Self> {
        let checksum = u32_at(bytes, 36)?;
        if !begins_frame(bytes) || key.checksum(offset, bytes.get(..36)?) != checksum {
            return None;
        }
        let header = Self {
            flags: u16_at(bytes, 4)?,
            payload_bytes: u32_at(bytes, 8)?,
            mask: u32_at(bytes, 12)?,
            first: u64_at(bytes, 16)?,
            last: u64_at(bytes, 24)?,
            payload_checksum: u32_at(bytes, 32)?,
            checksum,
        };
        (u64::from(header.payload_bytes) <= MAX_PAYLOAD_BYTES).then_some(header)
    }

    /// Bytes of the payload with its padding.
    pub fn stored_payload_bytes(&self) -> usize {
        (self.payload_bytes as usize).next_multiple_of(ALIGNMENT as usize)
    }

    pub fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES + self.stored_payload_bytes() as u64
    }

    /// Whether `stored`, the payload with its padding, is what was written.
    pub fn matches(&self, key: SegmentKey, offset: u64, stored: &[u8]) -> bool {
        key.checksum(offset, stored) == self.payload_checksum
    }

    /// The payload without padding and mask.
    pub fn plain<'a>(&self, stored: &'a [u8]) -> Cow<'a, [u8]> {
        let payload = stored.get(..self.payload_bytes as usize).unwrap_or(stored);
        if self.mask == 0 {
            return Cow::Borrowed(payload);
        }
        let mut plain = payload.to_vec();
        xor(&mut plain, self.mask);
        Cow::Owned(plain)
    }

    /// Flags that this version does not know: a later one wrote them.
    pub fn has_unknown_flags(&self) -> bool {
        self.flags & !(HARD_STATE | MARK | RESET | ENTRIES) != 0
    }

    /// Whether the frame empties the log before its entries.
    pub fn is_reset(&self) -> bool {
        self.flags & RESET != 0
    }

    /// First and last index of the frame's entries.
    pub fn entries(&self) -> Option<(u64, u64)> {
        (self.flags & ENTRIES != 0).then_some((self.first, self.last))
    }

    /// Takes a plain payload apart. `None` if it is not laid out as a payload is.
    pub fn parse(&self, payload: &[u8]) -> Option<Payload> {
        let mut at = 0;
        let mut hard_state = None;
        if self.flags & HARD_STATE != 0 {
            let start = at + HARD_STATE_PREFIX_BYTES as usize;
            let end = start + u32_at(payload, at)? as usize;
            payload.get(start..end)?;
            hard_state = Some(start..end);
            at = end;
        }
        let mut entry_id = None;
        if self.flags & MARK != 0 {
            let index = u64_at(payload, at).filter(|index| *index <= MAX_INDEX)?;
            let term = u64_at(payload, at + 8)?;
            entry_id = Some(EntryId { index, term });
            at += MARK_BYTES as usize;
        } else if self.is_reset() {
            return None;
        }
        let mut entries = Vec::new();
        if let Some((first, last)) = self.entries() {
            // Bounded by the payload, whatever the header claims.
            let count = last.checked_sub(first)?.checked_add(1)?;
            if first == 0 || last > MAX_INDEX || count > payload.len() as u64 / ENTRY_PREFIX_BYTES {
                return None;
            }
            entries.reserve_exact(count as usize);
            for _ in 0..count {
                let start = at + ENTRY_PREFIX_BYTES as usize;
                let end = start + u32_at(payload, at + 8)? as usize;
                payload.get(start..end)?;
                entries.push((u64_at(payload, at)?, start..end));
                at = end;
            }
        }
        (at == payload.len()).then_some(Payload {
            hard_state,
            entry_id,
            entries,
        })
    }
}

/// Where the parts of a plain payload lie in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Payload {
    pub hard_state: Option<Range<usize>>,
    pub entry_id: Option<EntryId>,
    /// Term and data of each entry, in order of index.
    pub entries: Vec<(u64, Range<usize>)>,
}

/// Whether a frame may begin here: the cheap test before the CRCs.
pub(super) fn begins_frame(bytes: &[u8]) -> bool {
    u32_at(bytes, 0) == Some(FRAME_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner {
        cluster_id: 0x1122,
        member_id: 0x3344,
    };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn entry(index: u64, data: &[u8]) -> LogEntry {
        LogEntry {
            index,
            term: 3,
            data: data.to_vec().into(),
        }
    }

    /// The bytes of the format. They change with its version only.
    #[test]
    fn the_format_is_as_it_was() {
        let mut bytes = Vec::new();
        SegmentHeader {
            owner: OWNER,
            sequence: 5,
            first_index: 6,
            previous_end: 7000,
            link: Some(Link {
                previous_checksum: 0x0a0b_0c0d,
                made_bytes: 64_000_000,
            }),
        }
        .encode(&mut bytes);
        Content {
            hard_state: Some(b"hs"),
            entry_id: Some(EntryId { index: 6, term: 3 }),
            reset: true,
            entries: &[entry(7, b"abc"), entry(8, b"")],
        }
        .encode(OWNER.segment_key(5), 64, &mut bytes);
        let golden = include_str!("tests/golden.txt");
        let golden: String = golden
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .flat_map(str::split_whitespace)
            .collect();
        assert_eq!(hex(&bytes), golden);
    }

    #[test]
    fn a_frame_reads_as_it_was_written_and_nowhere_else() {
        // Every mask in the order of trial, so that as many as possible are ruled out.
        let crafted: Vec<u8> = (0..2000_u32)
            .flat_map(|count| count.wrapping_mul(0x9e37_79b9).to_le_bytes().repeat(128))
            .collect();
        let sparse = [vec![0; 3000], vec![1], vec![0; 3000]].concat();
        for data in [&b""[..], b"x", &[0; 5000], &sparse, &crafted] {
            for offset in [64, 504, 4096] {
                let entries = [entry(7, data), entry(8, b"after")];
                let content = Content {
                    entries: &entries,
                    ..Content::default()
                };
                let key = OWNER.segment_key(5);
                let mut bytes = Vec::new();
                content.encode(key, offset, &mut bytes);
                assert_eq!(content.frame_bytes(), Ok(bytes.len() as u64));
                assert!(sectors(offset, &bytes).all(has_two_bits));

                let header = FrameHeader::decode(key, offset, &bytes).expect("a header");
                let stored = &bytes[FRAME_HEADER_BYTES as usize..];
                assert!(header.matches(key, offset, stored));
                let plain = header.plain(stored);
                let payload = header.parse(&plain).expect("a payload");
                let read: Vec<_> = payload
                    .entries
                    .iter()
                    .map(|(term, range)| (*term, &plain[range.clone()]))
                    .collect();
                assert_eq!(read, [(3, data), (3, &b"after"[..])]);

                assert_eq!(FrameHeader::decode(key, offset + 8, &bytes), None);
                let other = OWNER.segment_key(6);
                assert_eq!(FrameHeader::decode(other, offset, &bytes), None);
            }
        }
    }

    #[test]
    fn a_payload_that_claims_too_much_is_refused() {
        let entries = [entry(7, b"abc")];
        let content = Content {
            hard_state: Some(b"hs"),
            entries: &entries,
            ..Content::default()
        };
        let mut bytes = Vec::new();
        let key = OWNER.segment_key(1);
        content.encode(key, 64, &mut bytes);
        let header = FrameHeader::decode(key, 64, &bytes).expect("a header");
        let stored = &bytes[FRAME_HEADER_BYTES as usize..];
        let plain = header.plain(stored).into_owned();
        assert!(header.parse(&plain).is_some());
        for length in 0..plain.len() {
            assert_eq!(header.parse(&plain[..length]), None, "{length} bytes");
        }
        for (first, last) in [(0, 0), (8, 7), (7, 8), (7, u64::MAX), (0, u64::MAX)] {
            let lying = FrameHeader {
                first,
                last,
                ..header
            };
            assert_eq!(lying.parse(&plain), None, "entries {first} to {last}");
        }
        let mut long = plain;
        long[0] = 0xff;
        assert_eq!(header.parse(&long), None);
    }
}
