//! Sends clients away that ping too often, as grpc-go does.
//!
//! HTTP/2 libraries answer pings by themselves and tell nobody. This wrapper reads the frame
//! headers that pass through a connection: it counts pings that come sooner than the minimum
//! time after the last one (or, with no call under way, sooner than two hours), forgives them
//! whenever the server sends headers or data, and after the third writes GOAWAY with
//! ENHANCE_YOUR_CALM and `too_many_pings`, and ends the connection. The bytes that pass are
//! counted on the way.

use std::collections::HashSet;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::metrics::Metrics;

/// Pings too many before the client is sent away; grpc-go's figure.
const MAX_STRIKES: u32 = 2;
/// The minimum time between pings of a connection without a call; grpc-go's figure.
const IDLE_MIN_TIME: Duration = Duration::from_secs(2 * 3600);
const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const ACK_OR_END_STREAM: u8 = 1;

/// GOAWAY, last stream unknown, ENHANCE_YOUR_CALM (11).
const GOAWAY: &[u8] =
    b"\x00\x00\x16\x07\x00\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x0btoo_many_pings";

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Finds frame headers in a byte stream that comes in pieces.
#[derive(Default)]
struct Frames {
    /// Bytes to pass over before the next header.
    skip: usize,
    header: [u8; HEADER_BYTES],
    filled: usize,
}

impl Frames {
    /// True between two frames.
    fn at_boundary(&self) -> bool {
        self.skip == 0 && self.filled == 0
    }

    fn feed(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = (HEADER_BYTES - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + wanted].copy_from_slice(&bytes[..wanted]);
            self.filled += wanted;
            bytes = &bytes[wanted..];
            if self.filled < HEADER_BYTES {
                continue;
            }
            let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.header;
            self.filled = 0;
            self.skip = u32::from_be_bytes([0, l0, l1, l2]) as usize;
            seen(Frame {
                kind,
                flags,
                stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
            });
        }
    }
}

/// What is known of a connection's pings.
struct Policy {
    min_time: Duration,
    open: HashSet<u32>,
    newest_stream: u32,
    last_ping: Option<Instant>,
    strikes: u32,
    forgiven: bool,
}

impl Policy {
    fn new(min_time: Duration) -> Self {
        Self {
            min_time,
            open: HashSet::new(),
            newest_stream: 0,
            last_ping: None,
            strikes: 0,
            forgiven: false,
        }
    }

    fn received(&mut self, frame: Frame, now: Instant) {
        match frame.kind {
            HEADERS if frame.stream > self.newest_stream => {
                self.newest_stream = frame.stream;
                self.open.insert(frame.stream);
            }
            RST_STREAM => {
                self.open.remove(&frame.stream);
            }
            PING if frame.flags & ACK_OR_END_STREAM == 0 => self.ping(now),
            _ => {}
        }
    }

    fn sent(&mut self, frame: Frame) {
        match frame.kind {
            DATA | HEADERS => {
                self.forgiven = true;
                if frame.flags & ACK_OR_END_STREAM != 0 {
                    self.open.remove(&frame.stream);
                }
            }
            RST_STREAM => {
                self.open.remove(&frame.stream);
            }
            _ => {}
        }
    }

    fn ping(&mut self, now: Instant) {
        let last = self.last_ping.replace(now);
        if std::mem::take(&mut self.forgiven) {
            self.strikes = 0;
            return;
        }
        let min_time = if self.open.is_empty() {
            IDLE_MIN_TIME
        } else {
            self.min_time
        };
        if last.is_some_and(|last| now.duration_since(last) < min_time) {
            self.strikes += 1;
        }
    }

    fn violated(&self) -> bool {
        self.strikes > MAX_STRIKES
    }
}

/// A connection whose client may not ping as it likes.
pub struct PingGuard<S> {
    stream: S,
    policy: Policy,
    received: Frames,
    sent: Frames,
    /// Decided by the first byte: HTTP/1 has no pings.
    http2: Option<bool>,
    goodbye: &'static [u8],
    ended: bool,
    metrics: Arc<Metrics>,
}

impl<S> PingGuard<S> {
    pub fn new(stream: S, min_time: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            stream,
            policy: Policy::new(min_time),
            received: Frames {
                skip: PREFACE_BYTES,
                ..Frames::default()
            },
            sent: Frames::default(),
            http2: None,
            goodbye: &[],
            ended: false,
            metrics,
        }
    }

    fn saw_read(&mut self, bytes: &[u8]) {
        let Some(first) = bytes.first() else {
            return;
        };
        // No method of HTTP/1 that is served begins as HTTP/2's preface does ("PRI").
        let http2 = *first == b'P' && bytes.get(1).is_none_or(|second| *second == b'R');
        if !*self.http2.get_or_insert(http2) {
            return;
        }
        self.metrics.grpc_received_bytes.add(bytes.len() as u64);
        let policy = &mut self.policy;
        let mut now = None;
        self.received.feed(bytes, |frame| {
            policy.received(frame, *now.get_or_insert_with(Instant::now));
        });
        if policy.violated() && !self.ended {
            self.ended = true;
            self.goodbye = GOAWAY;
        }
    }

    fn saw_written(&mut self, bytes: &[u8]) {
        if self.http2 == Some(true) {
            self.metrics.grpc_sent_bytes.add(bytes.len() as u64);
            let policy = &mut self.policy;
            self.sent.feed(bytes, |frame| policy.sent(frame));
        }
    }
}

impl<S: AsyncWrite + Unpin> PingGuard<S> {
    /// Writes what is left of the goodbye, between two frames.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.goodbye.is_empty() && self.sent.at_boundary() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, self.goodbye))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.goodbye = &self.goodbye[written..];
        }
        Poll::Ready(Ok(()))
    }
}

fn too_many_pings() -> io::Error {
    io::Error::other("got too many pings from the client")
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for PingGuard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        if guard.ended {
            ready!(guard.poll_goodbye(cx))?;
            return Poll::Ready(Err(too_many_pings()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut guard.stream).poll_read(cx, buffer))?;
        guard.saw_read(&buffer.filled()[before..]);
        if guard.ended {
            ready!(guard.poll_goodbye(cx))?;
            return Poll::Ready(Err(too_many_pings()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PingGuard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        let written = ready!(Pin::new(&mut guard.stream).poll_write(cx, bytes))?;
        guard.saw_written(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        let written = ready!(Pin::new(&mut guard.stream).poll_write_vectored(cx, slices))?;
        let mut rest = written;
        for slice in slices {
            let part = rest.min(slice.len());
            guard.saw_written(&slice[..part]);
            rest -= part;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, len: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, len, kind, flags, 0, 0, 0, stream];
        bytes.resize(HEADER_BYTES + len as usize, 0);
        bytes
    }

    #[test]
    fn frames_are_found_in_any_pieces() {
        let bytes: Vec<u8> = [
            frame(PING, 0, 0, 8),
            frame(HEADERS, 1, 3, 20),
            frame(DATA, 0, 3, 0),
        ]
        .concat();
        for piece in 1..bytes.len() {
            let mut frames = Frames::default();
            let mut kinds = Vec::new();
            for chunk in bytes.chunks(piece) {
                frames.feed(chunk, |frame| kinds.push((frame.kind, frame.stream)));
            }
            assert_eq!(
                kinds,
                vec![(PING, 0), (HEADERS, 3), (DATA, 3)],
                "pieces of {piece}"
            );
            assert!(frames.at_boundary());
        }
    }

    #[test]
    fn goaway_is_a_whole_frame() {
        let mut frames = Frames::default();
        let mut kinds = Vec::new();
        frames.feed(GOAWAY, |frame| kinds.push(frame.kind));
        assert_eq!(kinds, vec![7]);
        assert!(frames.at_boundary());
    }

    #[tokio::test]
    async fn the_third_early_ping_is_one_too_many() {
        let ping = Frame {
            kind: PING,
            flags: 0,
            stream: 0,
        };
        let call = Frame {
            kind: HEADERS,
            flags: 0,
            stream: 1,
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut policy = Policy::new(Duration::from_secs(5));
        policy.received(call, start);
        for second in [0, 5, 10, 11, 12] {
            policy.received(ping, at(second));
            assert!(!policy.violated());
        }
        policy.received(ping, at(13));
        assert!(policy.violated());

        let mut forgiven = Policy::new(Duration::from_secs(5));
        forgiven.received(call, start);
        for second in 0..20 {
            forgiven.received(ping, at(second));
            forgiven.sent(call);
        }
        assert!(!forgiven.violated());

        let mut idle = Policy::new(Duration::from_secs(5));
        for minute in 0..4 {
            idle.received(ping, at(60 * minute));
        }
        assert!(idle.violated());
    }
}
