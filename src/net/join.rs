//! Joins small frames of data that come one behind the other: a client that sends thousands of
//! messages without waiting (renewals of a lease, watches) sends each in a frame of its own, and the
//! HTTP/2 library keeps some hundred bytes for each until it is read. Joined by their streams they
//! take little more than what is in them.
//!
//! The data of one stream stays in order. That of two has no order between them, so frames of other
//! streams may stand in between; any other frame ends the run. What is not whole yet, large, or
//! padded passes as it is.

use super::frames::{ACK_OR_END_STREAM, DATA, Frame, HEADER_BYTES, PADDED};

/// Above this a frame costs the library little beside what is in it.
const SMALL_BYTES: usize = 256;
/// The largest payload that every receiver accepts.
const MAX_JOINED_BYTES: usize = 16 << 10;
/// Streams of one run, each of which is looked for among all.
const MAX_STREAMS: usize = 16;

/// Frames of data at the beginning of what was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// With the headers of its frames; 0 where the first is not one to be joined.
    pub bytes: usize,
    /// They were written to `out`; if not, they are to pass as they are.
    pub is_joined: bool,
}

/// All frames of one stream in a run.
#[derive(Clone, Copy, Default)]
struct Joined {
    stream: u32,
    frames: usize,
    len: usize,
    ends: bool,
    /// Where the next payload is written to.
    at: usize,
}

impl Joined {
    fn frame(&self) -> Frame {
        Frame {
            len: self.len,
            kind: DATA,
            flags: if self.ends { ACK_OR_END_STREAM } else { 0 },
            stream: self.stream,
        }
    }
}

/// The frame that `bytes` begin with, if it is whole and can be joined with others.
fn small(bytes: &[u8]) -> Option<Frame> {
    let frame = Frame::first(bytes)?;
    let is_whole = bytes.len() >= HEADER_BYTES + frame.len;
    let is_plain = frame.kind == DATA && frame.flags & !ACK_OR_END_STREAM == 0;
    debug_assert!(!is_plain || !frame.has(PADDED));
    (is_plain && is_whole && frame.len <= SMALL_BYTES).then_some(frame)
}

/// Writes the frames of data at the beginning of `bytes` to `out`, one for each stream, if there are
/// several of one. `seen` gets each frame that passes.
pub fn join(bytes: &[u8], out: &mut Vec<u8>, mut seen: impl FnMut(Frame)) -> Run {
    let Some(first) = small(bytes) else {
        return Run {
            bytes: 0,
            is_joined: false,
        };
    };
    let first_bytes = HEADER_BYTES + first.len;
    if small(&bytes[first_bytes..]).is_none() {
        seen(first);
        return Run {
            bytes: first_bytes,
            is_joined: false,
        };
    }
    let mut streams = [Joined::default(); MAX_STREAMS];
    let (run_bytes, streams) = {
        let (run_bytes, count) = measure(bytes, &mut streams);
        (run_bytes, &mut streams[..count])
    };
    let run = frames(&bytes[..run_bytes]);
    let is_joined = streams.iter().any(|joined| joined.frames > 1);
    if is_joined {
        write(run, streams, out);
        streams.iter().for_each(|joined| seen(joined.frame()));
    } else {
        run.for_each(|(frame, _)| seen(frame));
    }
    Run {
        bytes: run_bytes,
        is_joined,
    }
}

/// How long the run is, and how many streams it is of.
fn measure(bytes: &[u8], streams: &mut [Joined; MAX_STREAMS]) -> (usize, usize) {
    let (mut run_bytes, mut count) = (0, 0);
    while let Some(frame) = small(&bytes[run_bytes..]) {
        let mut known = streams[..count].iter_mut();
        let joined = match known.find(|joined| joined.stream == frame.stream) {
            Some(joined) => joined,
            None if count == MAX_STREAMS => break,
            None => {
                count += 1;
                &mut streams[count - 1]
            }
        };
        // What comes behind a stream's end is for the library to refuse.
        if joined.ends || joined.len + frame.len > MAX_JOINED_BYTES {
            break;
        }
        joined.stream = frame.stream;
        joined.frames += 1;
        joined.len += frame.len;
        joined.ends = frame.has(ACK_OR_END_STREAM);
        run_bytes += HEADER_BYTES + frame.len;
    }
    (run_bytes, count)
}

/// The frames of a run, with their payloads.
fn frames(mut run: &[u8]) -> impl Iterator<Item = (Frame, &[u8])> {
    std::iter::from_fn(move || {
        let frame = Frame::first(run)?;
        let (whole, rest) = run.split_at(HEADER_BYTES + frame.len);
        run = rest;
        Some((frame, &whole[HEADER_BYTES..]))
    })
}

fn write<'a>(
    run: impl Iterator<Item = (Frame, &'a [u8])>,
    streams: &mut [Joined],
    out: &mut Vec<u8>,
) {
    for joined in streams.iter_mut() {
        out.extend(joined.frame().header());
        joined.at = out.len();
        out.resize(out.len() + joined.len, 0);
    }
    for (frame, payload) in run {
        let of_stream = streams.iter_mut().find(|one| one.stream == frame.stream);
        if let Some(joined) = of_stream {
            out[joined.at..joined.at + payload.len()].copy_from_slice(payload);
            joined.at += payload.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(stream: u32, payload: &[u8], ends: bool) -> Vec<u8> {
        let joined = Joined {
            stream,
            len: payload.len(),
            ends,
            ..Joined::default()
        };
        [&joined.frame().header()[..], payload].concat()
    }

    fn joined(bytes: &[u8]) -> (Run, Vec<u8>, Vec<(u32, usize)>) {
        let (mut out, mut seen) = (Vec::new(), Vec::new());
        let run = join(bytes, &mut out, |frame| {
            seen.push((frame.stream, frame.len))
        });
        (run, out, seen)
    }

    #[test]
    fn frames_of_a_stream_become_one() {
        let run = [
            data(1, b"a", false),
            data(3, b"xy", false),
            data(1, b"bc", false),
            data(1, b"", true),
            data(3, b"z", false),
        ]
        .concat();
        let behind = data(5, &[7; SMALL_BYTES + 1], false);
        let (found, out, seen) = joined(&[&run[..], &behind].concat());
        let expected = Run {
            bytes: run.len(),
            is_joined: true,
        };
        assert_eq!(found, expected);
        assert_eq!(
            out,
            [data(1, b"abc", true), data(3, b"xyz", false)].concat()
        );
        assert_eq!(seen, [(1, 3), (3, 3)]);
    }

    #[test]
    fn what_cannot_be_joined_passes_as_it_is() {
        let one = data(1, b"a", false);
        let two = [data(1, b"a", false), data(3, b"b", true)].concat();
        let cut = [&data(1, b"a", false)[..], &data(1, b"bc", false)[..10]].concat();
        let behind_its_end = [data(1, b"a", true), data(1, b"b", false)].concat();
        let mut padded = data(1, b"\x01ab", false);
        padded[4] |= PADDED;
        for (bytes, passing, frames) in [
            (&one, one.len(), 1),
            (&two, two.len(), 2),
            (&cut, one.len(), 1),
            (&behind_its_end, one.len(), 1),
            (&padded, 0, 0),
            (&data(1, &[0; SMALL_BYTES + 1], false), 0, 0),
            (&Vec::new(), 0, 0),
        ] {
            let (run, out, seen) = joined(bytes);
            assert_eq!((run.bytes, run.is_joined), (passing, false), "{bytes:?}");
            assert_eq!((out.len(), seen.len()), (0, frames), "{bytes:?}");
        }
    }

    #[test]
    fn no_run_is_larger_than_a_frame_or_of_too_many_streams() {
        let many: Vec<u8> = (0..200).flat_map(|_| data(1, &[7; 100], false)).collect();
        let (run, out, _) = joined(&many);
        assert_eq!(run.bytes, MAX_JOINED_BYTES / 100 * (HEADER_BYTES + 100));
        assert!(out.len() <= HEADER_BYTES + MAX_JOINED_BYTES);
        let streams = 2 * MAX_STREAMS as u32;
        let many: Vec<u8> = (0..streams)
            .flat_map(|n| data(n + 1, b"a", false))
            .collect();
        assert_eq!(joined(&many).0.bytes, MAX_STREAMS * (HEADER_BYTES + 1));
    }
}
