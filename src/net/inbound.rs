//! What a client sends over HTTP/2, on its way to the library: finds the frames, mends header
//! blocks (see `authority`) and joins small frames of data (see `join`).
//!
//! Bytes pass as they are, and are not copied, where nothing is to be mended and no header block
//! ends in the middle: the usual case. A block that has not come as a whole is held back, up to
//! `MAX_HELD_BYTES`; the rest of a longer one passes unseen, as pseudo-headers stand first.
//!
//! Large blocks do not pass at once but become ready, so that the connection can be made to wait
//! before the library decodes them (see `turns`).

use std::borrow::Cow;

use super::authority::Authorities;
use super::frames::{
    ACK_OR_END_STREAM, CONTINUATION, DATA, END_HEADERS, Frame, HEADER_BYTES, HEADERS, PADDED,
    PREFACE_BYTES, PRIORITY,
};
use super::join::join;

/// Of a header block, with the headers of its frames.
const MAX_HELD_BYTES: usize = 64 << 10;
/// The largest payload that every receiver accepts; no larger one is passed to the library.
const MAX_PAYLOAD_BYTES: usize = 16 << 10;
/// Header blocks are large where those that come in one go have more, not counting small ones: those
/// of usual calls have a few hundred bytes at most, and a call costs more than they do.
const LARGE_BYTES: usize = 4 << 10;
const SMALL_BYTES: usize = 512;
/// What a header frame says of priorities.
const PRIORITY_BYTES: usize = 5;

/// The first frames of a header block, as far as they are parsed.
struct Block<'a> {
    headers: Frame,
    priority: &'a [u8],
    fragment: Cow<'a, [u8]>,
    /// No frame of it is missing.
    whole: bool,
    /// With the headers of its frames.
    len: usize,
}

/// What stands at the beginning of a frame.
enum Unit<'a> {
    /// More bytes are needed to tell.
    Incomplete,
    /// A frame that passes.
    Passes(Frame),
    Block(Block<'a>),
}

impl<'a> Unit<'a> {
    fn at(bytes: &'a [u8]) -> Self {
        let Some(headers) = Frame::first(bytes) else {
            return Self::Incomplete;
        };
        if headers.kind != HEADERS || headers.len > MAX_PAYLOAD_BYTES {
            return Self::Passes(headers);
        }
        let mut len = HEADER_BYTES + headers.len;
        let Some(payload) = bytes.get(HEADER_BYTES..len) else {
            return Self::Incomplete;
        };
        // Lengths that do not fit are for the library to refuse.
        let Some((priority, fragment)) = parts(headers, payload) else {
            return Self::Passes(headers);
        };
        let mut fragment = Cow::Borrowed(fragment);
        let mut whole = headers.has(END_HEADERS);
        while !whole && len < MAX_HELD_BYTES {
            let Some(next) = Frame::first(&bytes[len..]) else {
                return Self::Incomplete;
            };
            if next.kind != CONTINUATION
                || next.stream != headers.stream
                || next.len > MAX_PAYLOAD_BYTES
            {
                break;
            }
            let begin = len + HEADER_BYTES;
            let Some(payload) = bytes.get(begin..begin + next.len) else {
                return Self::Incomplete;
            };
            fragment.to_mut().extend_from_slice(payload);
            whole = next.has(END_HEADERS);
            len = begin + next.len;
        }
        Self::Block(Block {
            headers,
            priority,
            fragment,
            whole,
            len,
        })
    }
}

/// The priority, if any, and the piece of the header block in the payload of a HEADERS frame.
fn parts(headers: Frame, payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut payload = payload;
    if headers.has(PADDED) {
        let (padding, rest) = payload.split_first()?;
        payload = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
    }
    let priority_bytes = if headers.has(PRIORITY) {
        PRIORITY_BYTES
    } else {
        0
    };
    payload.split_at_checked(priority_bytes)
}

impl Block<'_> {
    /// All of its frames as one.
    fn frame(&self) -> Frame {
        Frame {
            len: self.len,
            flags: self.headers.flags | if self.whole { END_HEADERS } else { 0 },
            ..self.headers
        }
    }

    /// The frames of the same block with another fragment; without padding.
    fn with_fragment(&self, fragment: &[u8], out: &mut Vec<u8>) {
        let (first, rest) =
            fragment.split_at(fragment.len().min(MAX_PAYLOAD_BYTES - self.priority.len()));
        let mut pieces = rest.chunks(MAX_PAYLOAD_BYTES).peekable();
        let end = |last: bool| if last && self.whole { END_HEADERS } else { 0 };
        let headers = Frame {
            len: self.priority.len() + first.len(),
            flags: self.headers.flags & (ACK_OR_END_STREAM | PRIORITY)
                | end(pieces.peek().is_none()),
            ..self.headers
        };
        out.extend(headers.header());
        out.extend_from_slice(self.priority);
        out.extend_from_slice(first);
        while let Some(piece) = pieces.next() {
            let continuation = Frame {
                len: piece.len(),
                kind: CONTINUATION,
                flags: end(pieces.peek().is_none()),
                stream: self.headers.stream,
            };
            out.extend(continuation.header());
            out.extend_from_slice(piece);
        }
    }
}

/// The state between two reads.
pub struct Inbound {
    /// Bytes to pass before the next frame.
    skip: usize,
    /// The beginning of a frame or block of which more has to come.
    held: Vec<u8>,
    /// Bytes to pass before those of the next read.
    ready: Vec<u8>,
    /// What is to be passed before the next frame is of a large header block.
    skips_large: bool,
    /// Some of what is ready is.
    has_large: bool,
    /// Of the header blocks that came in one go and are not small.
    piece_bytes: usize,
    authorities: Authorities,
    /// Whether frames of data are joined.
    joins: bool,
}

impl Inbound {
    pub fn new() -> Self {
        Self {
            joins: true,
            skip: PREFACE_BYTES,
            held: Vec::new(),
            ready: Vec::new(),
            skips_large: false,
            has_large: false,
            piece_bytes: 0,
            authorities: Authorities::default(),
        }
    }

    /// Takes what was read. So many bytes at its beginning pass as they are, and after them what
    /// is ready; the rest has been taken over.
    pub fn feed(&mut self, bytes: &[u8], seen: impl FnMut(Frame)) -> usize {
        if self.held.is_empty() {
            return self.take(bytes, seen);
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let passing = self.take(&held, seen);
        let mut ready = held;
        ready.truncate(passing);
        ready.append(&mut self.ready);
        self.ready = ready;
        0
    }

    fn take(&mut self, bytes: &[u8], mut seen: impl FnMut(Frame)) -> usize {
        let mut passing = 0;
        let mut at = 0;
        loop {
            let skipped = self.skip.min(bytes.len() - at);
            self.skip -= skipped;
            self.has_large |= self.skips_large && skipped > 0;
            self.pass(&bytes[at..at + skipped], &mut passing);
            at += skipped;
            if at == bytes.len() {
                return passing;
            }
            let rest = &bytes[at..];
            let unit = match Frame::first(rest) {
                Some(frame) if frame.kind == DATA && self.joins => {
                    let len = self.pass_data(rest, &mut passing, &mut seen);
                    at += len;
                    match len {
                        0 => Unit::Passes(frame),
                        _ => continue,
                    }
                }
                Some(frame) if frame.kind != HEADERS => Unit::Passes(frame),
                _ => Unit::at(rest),
            };
            match unit {
                Unit::Incomplete => {
                    self.held = bytes[at..].to_vec();
                    return passing;
                }
                Unit::Passes(frame) => {
                    seen(frame);
                    self.skips_large = match frame.kind {
                        HEADERS => self.is_large(frame.len),
                        // Of a block that was too long to be held.
                        CONTINUATION => frame.len > 0,
                        _ => false,
                    };
                    self.skip = HEADER_BYTES + frame.len;
                }
                Unit::Block(block) => {
                    seen(block.frame());
                    self.has_large |= self.is_large(block.len);
                    match self.authorities.mend(&block.fragment, block.whole) {
                        Some(mended) => block.with_fragment(&mended, &mut self.ready),
                        None => self.pass(&bytes[at..at + block.len], &mut passing),
                    }
                    at += block.len;
                }
            }
        }
    }

    /// Passes the frames of data that `bytes` begin with, as far as they can be joined; returns how
    /// many bytes they had.
    fn pass_data(
        &mut self,
        bytes: &[u8],
        passing: &mut usize,
        seen: &mut impl FnMut(Frame),
    ) -> usize {
        let run = join(bytes, &mut self.ready, seen);
        if !run.is_joined {
            self.pass(&bytes[..run.bytes], passing);
        }
        run.bytes
    }

    /// Whether with this header block those of one go are large.
    fn is_large(&mut self, bytes: usize) -> bool {
        if bytes >= SMALL_BYTES {
            self.piece_bytes += bytes;
        }
        bytes >= SMALL_BYTES && self.piece_bytes > LARGE_BYTES
    }

    fn pass(&mut self, bytes: &[u8], passing: &mut usize) {
        if self.ready.is_empty() && !self.has_large {
            *passing += bytes.len();
        } else {
            self.ready.extend_from_slice(bytes);
        }
    }

    /// What passes now, up to `len` bytes.
    pub fn ready(&mut self, len: usize) -> impl AsRef<[u8]> + use<> {
        let rest = self.ready.split_off(len.min(self.ready.len()));
        self.has_large &= !rest.is_empty();
        std::mem::replace(&mut self.ready, rest)
    }

    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// What comes from now on is decoded in another go.
    pub fn paused(&mut self) {
        self.piece_bytes = 0;
    }

    /// Some of what is ready is of a large header block.
    pub fn has_large(&self) -> bool {
        self.has_large
    }

    /// Nothing more comes: what was held back passes.
    pub fn end(&mut self) {
        self.ready.append(&mut self.held);
    }
}

/// What the library gets of a connection whose bytes came in these pieces; frames of data are not
/// joined, since which are depends on the pieces.
#[cfg(any(test, feature = "fuzzing"))]
pub fn mended<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut inbound = Inbound {
        joins: false,
        ..Inbound::new()
    };
    let mut out = Vec::new();
    for piece in pieces {
        let passing = inbound.feed(piece, |_| ());
        out.extend_from_slice(&piece[..passing]);
        out.extend_from_slice(inbound.ready(usize::MAX).as_ref());
    }
    inbound.end();
    out.extend_from_slice(inbound.ready(usize::MAX).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::frames::DATA;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let frame = Frame {
            len: payload.len(),
            kind,
            flags,
            stream,
        };
        [&frame.header()[..], payload].concat()
    }

    /// What comes out where `bytes` come in pieces of so many, and the frames that were seen.
    fn passed(bytes: &[u8], piece: usize) -> (Vec<u8>, Vec<(u8, u32)>) {
        let mut inbound = Inbound::new();
        let (mut out, mut seen) = (Vec::new(), Vec::new());
        for chunk in bytes.chunks(piece) {
            let passing = inbound.feed(chunk, |frame| seen.push((frame.kind, frame.stream)));
            out.extend_from_slice(&chunk[..passing]);
            while inbound.is_ready() {
                out.extend_from_slice(inbound.ready(7).as_ref());
            }
        }
        inbound.end();
        out.extend_from_slice(inbound.ready(usize::MAX).as_ref());
        (out, seen)
    }

    const BAD: &[u8] = b"\x83\x86\x41\x03#ab\x04\x01/";
    const MENDED: &[u8] = b"\x83\x86\x41\x01x\x04\x01/";
    const GOOD: &[u8] = b"\x83\x86\x41\x03aab\x04\x01/";

    #[test]
    fn blocks_are_mended_however_they_are_cut() {
        let priority = [0x80, 0, 0, 0, 7];
        let padded = |block: &[u8]| [&[3], &priority[..], block, &[0; 3]].concat();
        let all = PADDED | PRIORITY | END_HEADERS;
        let end = END_HEADERS | ACK_OR_END_STREAM;
        // What comes in, and what the library sees.
        let cases = [
            (
                vec![frame(HEADERS, end, 1, BAD), frame(DATA, 0, 1, b"HELLO")],
                vec![frame(HEADERS, end, 1, MENDED), frame(DATA, 0, 1, b"HELLO")],
            ),
            (
                vec![frame(HEADERS, all, 1, &padded(BAD))],
                vec![frame(
                    HEADERS,
                    PRIORITY | END_HEADERS,
                    1,
                    &[&priority, MENDED].concat(),
                )],
            ),
            (
                vec![
                    frame(HEADERS, ACK_OR_END_STREAM, 5, &BAD[..4]),
                    frame(CONTINUATION, 0, 5, &BAD[4..5]),
                    frame(CONTINUATION, END_HEADERS, 5, &BAD[5..]),
                    frame(HEADERS, END_HEADERS, 7, GOOD),
                ],
                vec![
                    frame(HEADERS, end, 5, MENDED),
                    frame(HEADERS, END_HEADERS, 7, GOOD),
                ],
            ),
            // What needs nothing stays as it was, bytes that are no HTTP/2 too.
            (
                vec![frame(HEADERS, all, 1, &padded(GOOD))],
                vec![frame(HEADERS, all, 1, &padded(GOOD))],
            ),
            (
                vec![
                    frame(HEADERS, all, 1, &[255]),
                    frame(CONTINUATION, 0, 9, BAD),
                ],
                vec![
                    frame(HEADERS, all, 1, &[255]),
                    frame(CONTINUATION, 0, 9, BAD),
                ],
            ),
            (
                vec![frame(HEADERS, 0, 1, GOOD), frame(DATA, 0, 1, BAD)],
                vec![frame(HEADERS, 0, 1, GOOD), frame(DATA, 0, 1, BAD)],
            ),
        ];
        for (case, (from, to)) in cases.into_iter().enumerate() {
            let preface = vec![b'P'; PREFACE_BYTES];
            let from = [preface.clone(), from.concat()].concat();
            let to = [preface, to.concat()].concat();
            for piece in 1..=from.len() {
                assert_eq!(passed(&from, piece).0, to, "case {case}, pieces of {piece}");
            }
            // What is cut off in the middle passes as far as it came.
            for len in 0..from.len() {
                assert!(mended(from[..len].chunks(5)).len() <= len);
            }
        }
    }

    #[test]
    fn a_long_block_is_parsed_as_far_as_it_is_held() {
        let value = vec![b'v'; MAX_PAYLOAD_BYTES - 100];
        let field = [&[0x0f, 0x2b, 0x7f, 0x9d, 0x7e][..], &value].concat();
        let mut from = frame(HEADERS, 0, 1, BAD);
        for last in [0, 0, 0, 0, 0, 0, 0, END_HEADERS] {
            from.extend(frame(CONTINUATION, last, 1, &field));
        }
        from.extend(frame(HEADERS, END_HEADERS, 3, BAD));
        from.splice(0..0, vec![b'P'; PREFACE_BYTES]);
        let (whole, seen) = passed(&from, from.len());
        // Both authorities are two bytes shorter, and what was held was joined into full frames.
        assert!(from.len() - whole.len() < 50, "{}", whole.len());
        assert_eq!(seen.iter().filter(|(kind, _)| *kind == HEADERS).count(), 2);
        for piece in [1000, 16 << 10, 100 << 10] {
            assert_eq!(passed(&from, piece), (whole.clone(), seen.clone()));
        }
        let mut inbound = Inbound::new();
        for chunk in from.chunks(100) {
            inbound.feed(chunk, |_| ());
            inbound.ready(usize::MAX);
            assert!(inbound.held.len() < MAX_HELD_BYTES + MAX_PAYLOAD_BYTES + 100);
        }
    }

    #[test]
    fn pings_are_seen_and_not_held() {
        let bytes = [
            vec![b'P'; PREFACE_BYTES],
            frame(4, 0, 0, &[]),
            frame(6, 0, 0, &[1; 8]),
            frame(HEADERS, END_HEADERS, 1, GOOD),
            frame(DATA, 1, 1, &[]),
        ]
        .concat();
        for piece in 1..=bytes.len() {
            let (out, seen) = passed(&bytes, piece);
            assert_eq!(out, bytes);
            assert_eq!(seen, [(4, 0), (6, 0), (HEADERS, 1), (DATA, 1)]);
        }
    }
}
