//! Stands between a client's socket and the HTTP/2 library, and sees what passes: counts the bytes,
//! has `pings` judge the frames of both sides, and `inbound` mend what the client sends. A client is
//! not read from while all have too much unread (`budget::unread`) and it is one of those that do;
//! its answers may then wait for what it has not been heard to say, so it is not for long.
//!
//! A connection of HTTP/2 has a time limit until its first frame: one on which less comes is no
//! client's and holds a place. From then on it may be idle for as long as it likes, as etcd's
//! clients are between two calls.
//!
//! Calls that a client gives up end when their tasks see it, behind all others that are ready. A
//! connection is read on when few of them are left: a megabyte of calls that are begun and given up
//! is twenty thousand of them, and the library takes as much in one turn. (Calls that this side resets
//! for an error of the client's cost what calls cost that are left open, which a client may have.)
//!
//! Large header blocks are handed to the library by turns (see `turns`).
//!
//! The streams that are open are counted here, where both their ends can be seen
//! (`budget::streams`). Beyond the limit their calls are refused behind the library, and a client that
//! does not take the refusals is not read from.
//!
//! HTTP/1 passes untouched.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::frames::{CONTINUATION, DATA, END_HEADERS, Frames, HEADERS, RST_STREAM};
use super::inbound::Inbound;
use super::pings::{GOAWAY, Policy};
use super::turns::{BlockTurn, BlockTurns};
use crate::budget::streams::{OpenStreams, StreamsOfConnection};
use crate::budget::unread;
use crate::metrics::Metrics;

/// Between two checks whether a connection that waits may be read from.
const PAUSE: Duration = Duration::from_millis(20);
/// One of which nothing is taken for so long is stuck (see `budget::unread`).
const STUCK_AFTER: Duration = Duration::from_millis(100);
/// One that waits and of which less than `PROGRESS_BYTES` were taken for so long is closed: those
/// that read its requests have given them up by then, so what it has unread is for nobody.
const PAUSE_LIMIT: Duration = Duration::from_secs(15);
const PROGRESS_BYTES: usize = 64 << 10;
/// Between two lines of the log about connections that were closed.
const REPORT_PAUSE: Duration = Duration::from_secs(60);

/// A connection with more to write lets the others have the thread: a socket of this machine takes
/// megabytes at once, and small answers would wait for those of every large one.
const BURST_BYTES: usize = 256 << 10;

/// A connection whose client gave up so many calls since it rested, or as many that waited for their
/// answers and whose tasks have not seen it, rests: an honest one gives up thousands when its own process stops, and waits for none.
const GIVEN_UP_LIMIT: usize = 32;
const REST: Duration = Duration::from_millis(1);
/// After a rest so many reads are of so few bytes, some twenty such calls: those of a usual piece take
/// milliseconds of a thread in one go.
const SHORT_READS: usize = 256;
const SHORT_READ_BYTES: usize = 1 << 10;

/// What clients are held to.
#[derive(Clone)]
pub struct Guard {
    /// Who pings more often is sent away.
    pub min_ping_time: Duration,
    /// From the first byte of HTTP/2 to the header of the first frame.
    pub first_frame_limit: Duration,
    pub metrics: Arc<Metrics>,
    pub closed: Arc<Closed>,
    pub block_turns: BlockTurns,
    pub streams: Arc<OpenStreams>,
}

/// The connections that were closed because what they sent was not read.
#[derive(Default)]
pub struct Closed(Mutex<Unreported>);

#[derive(Default)]
struct Unreported {
    connections: u64,
    last_report: Option<Instant>,
}

impl Closed {
    /// Counts one; says so once in a while.
    fn note(&self) {
        let mut unreported = self.0.lock();
        unreported.connections += 1;
        let last = unreported.last_report;
        if last.is_some_and(|last| last.elapsed() < REPORT_PAUSE) {
            return;
        }
        unreported.last_report = Some(Instant::now());
        tracing::warn!(
            connections = std::mem::take(&mut unreported.connections),
            "closed connections of clients that send more than is read; they may send less at once, or --memory-budget-bytes may allow more"
        );
    }
}

/// While a connection is not read from.
struct Pause {
    next_check: Pin<Box<Sleep>>,
    /// What was taken of it at some moment, and the last moments at which that had grown, at all and
    /// by `PROGRESS_BYTES`.
    taken_bytes: usize,
    moved: Instant,
    progress_bytes: usize,
    progressed: Instant,
}

impl Pause {
    fn new(taken_bytes: usize) -> Self {
        let now = Instant::now();
        Self {
            next_check: Box::pin(tokio::time::sleep(PAUSE)),
            taken_bytes,
            moved: now,
            progress_bytes: taken_bytes,
            progressed: now,
        }
    }

    /// Notes how much was taken by now.
    fn observe(&mut self, taken_bytes: usize) {
        let now = Instant::now();
        if taken_bytes != self.taken_bytes {
            (self.taken_bytes, self.moved) = (taken_bytes, now);
        }
        if taken_bytes.wrapping_sub(self.progress_bytes) >= PROGRESS_BYTES {
            (self.progress_bytes, self.progressed) = (taken_bytes, now);
        }
    }
}

/// A client's connection.
pub struct Guarded<S> {
    stream: S,
    policy: Policy,
    inbound: Inbound,
    sent: Frames,
    /// Written since others had the thread.
    burst_bytes: usize,
    /// Calls given up since the last rest, or one.
    given_up: usize,
    rest: Option<Pin<Box<Sleep>>>,
    short_reads: usize,
    block_turn: BlockTurn,
    /// Calls of the connection without the beginning of an answer; those that were given up are
    /// among them until their tasks have seen it.
    waiting: Arc<AtomicUsize>,
    /// Decided by the first byte: HTTP/1 has no frames.
    http2: Option<bool>,
    goodbye: &'static [u8],
    ended: bool,
    /// Until the first frame has begun.
    opening: Option<Pin<Box<Sleep>>>,
    unread: Arc<unread::Connection>,
    streams: Arc<StreamsOfConnection>,
    paused: Option<Pause>,
    metrics: Arc<Metrics>,
    closed: Arc<Closed>,
}

impl<S> Guarded<S> {
    pub fn new(
        stream: S,
        guard: Guard,
        unread: Arc<unread::Connection>,
        streams: Arc<StreamsOfConnection>,
        waiting: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            stream,
            policy: Policy::new(guard.min_ping_time),
            inbound: Inbound::new(),
            sent: Frames::default(),
            burst_bytes: 0,
            given_up: 0,
            rest: None,
            short_reads: 0,
            block_turn: guard.block_turns.connection(),
            waiting,
            http2: None,
            goodbye: &[],
            ended: false,
            opening: Some(Box::pin(tokio::time::sleep(guard.first_frame_limit))),
            unread,
            streams,
            paused: None,
            metrics: guard.metrics,
            closed: guard.closed,
        }
    }

    /// Takes what was read; so many bytes of it pass as they are.
    fn saw_read(&mut self, bytes: &[u8]) -> usize {
        let Some(first) = bytes.first() else {
            self.inbound.end();
            return 0;
        };
        // No method of HTTP/1 that is served begins as HTTP/2's preface does ("PRI").
        let http2 = *first == b'P' && bytes.get(1).is_none_or(|second| *second == b'R');
        if !*self.http2.get_or_insert(http2) {
            self.opening = None;
            return bytes.len();
        }
        self.metrics.grpc_received_bytes.add(bytes.len() as u64);
        let (policy, unread) = (&mut self.policy, &self.unread);
        let (opening, given_up) = (&mut self.opening, &mut self.given_up);
        let mut now = None;
        let passing = self.inbound.feed(bytes, |frame| {
            *opening = None;
            if frame.kind == RST_STREAM {
                *given_up += 1;
            }
            policy.received(frame, *now.get_or_insert_with(Instant::now));
            if matches!(frame.kind, HEADERS | CONTINUATION) {
                unread.came_of_block(frame.len, frame.has(END_HEADERS));
            }
            // What comes for a call that has ended is dropped at once.
            if frame.kind == DATA && frame.len > 0 && policy.is_open(frame.stream) {
                unread.came(frame.len);
            }
        });
        self.streams.set_open(policy.open());
        if policy.violated() && !self.ended {
            self.ended = true;
            self.goodbye = GOAWAY;
        }
        passing
    }

    /// Resolves when the client may be read from.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let is_full = self.streams.must_wait(self.unsent_answers());
            if self.http2 != Some(true) || !is_full && !self.unread.must_wait(false) {
                self.paused = None;
                return Poll::Ready(Ok(()));
            }
            let taken_bytes = self.unread.taken_bytes();
            let pause = self.paused.get_or_insert_with(|| Pause::new(taken_bytes));
            pause.observe(taken_bytes);
            if pause.progressed.elapsed() > PAUSE_LIMIT {
                self.closed.note();
                let reason = "the client sent too much that nobody reads";
                return Poll::Ready(Err(io::Error::other(reason)));
            }
            let is_stuck = pause.moved.elapsed() > STUCK_AFTER;
            if is_stuck && !is_full && !self.unread.must_wait(true) {
                return Poll::Ready(Ok(()));
            }
            ready!(pause.next_check.as_mut().poll(cx));
            pause.next_check.as_mut().reset(Instant::now() + PAUSE);
        }
    }

    /// Fails where the first frame has not come in time.
    fn check_opening(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let late = self.opening.as_mut();
        match late.is_some_and(|limit| limit.as_mut().poll(cx).is_ready()) {
            true => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no frame of HTTP/2 came in time",
            )),
            false => Ok(()),
        }
    }

    /// Resolves where the connection may write; it comes back behind the others where not.
    fn poll_burst(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.burst_bytes < BURST_BYTES {
            return Poll::Ready(());
        }
        self.burst_bytes = 0;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Resolves where few of the calls that the client gave up are left. The library asks for more
    /// after each call that it hands on, in the same turn: only a pause lets their tasks run first.
    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(rest) = &mut self.rest {
                ready!(rest.as_mut().poll(cx));
                (self.rest, self.given_up) = (None, 1);
            }
            if self.given_up == 0 {
                return Poll::Ready(());
            }
            let abandoned = self.waiting.load(Ordering::Relaxed);
            let abandoned = abandoned.saturating_sub(self.policy.unanswered());
            if self.given_up < GIVEN_UP_LIMIT && abandoned < GIVEN_UP_LIMIT {
                return Poll::Ready(());
            }
            self.rest = Some(Box::pin(tokio::time::sleep(REST)));
            self.short_reads = SHORT_READS;
        }
    }

    /// Calls whose answers have begun here and are not on the wire.
    fn unsent_answers(&self) -> usize {
        let waiting = self.waiting.load(Ordering::Relaxed);
        self.policy.unanswered().saturating_sub(waiting)
    }

    /// What was written; where nothing can be, nothing is read either.
    fn unless_stuck<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() {
            self.block_turn.give_up();
        }
        written
    }

    fn saw_written(&mut self, bytes: &[u8]) {
        self.burst_bytes += bytes.len();
        if self.http2 == Some(true) {
            self.metrics.grpc_sent_bytes.add(bytes.len() as u64);
            let policy = &mut self.policy;
            self.sent.feed(bytes, |frame| policy.sent(frame));
            self.streams.set_open(policy.open());
        }
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
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

impl<S: AsyncRead + Unpin> Guarded<S> {
    fn poll_socket(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = Pin::new(&mut self.stream);
        if self.short_reads == 0 {
            return stream.poll_read(cx, buffer);
        }
        let bytes = SHORT_READ_BYTES.min(buffer.remaining());
        let mut short = ReadBuf::new(buffer.initialize_unfilled_to(bytes));
        ready!(stream.poll_read(cx, &mut short))?;
        let read = short.filled().len();
        buffer.advance(read);
        self.short_reads -= 1;
        Poll::Ready(Ok(()))
    }
}

fn too_many_pings() -> io::Error {
    io::Error::other("got too many pings from the client")
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        if guard.block_turn.end() {
            guard.inbound.paused();
            // Behind the others that are ready.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if guard.ended {
                ready!(guard.poll_goodbye(cx))?;
                return Poll::Ready(Err(too_many_pings()));
            }
            if guard.inbound.is_ready() {
                if guard.inbound.has_large() {
                    ready!(guard.block_turn.poll_take(cx));
                }
                buffer.put_slice(guard.inbound.ready(buffer.remaining()).as_ref());
                return Poll::Ready(Ok(()));
            }
            ready!(guard.poll_pause(cx))?;
            ready!(guard.poll_given_up(cx));
            guard.check_opening(cx)?;
            let before = buffer.filled().len();
            let polled = guard.poll_socket(cx, buffer);
            if polled.is_pending() {
                guard.inbound.paused();
            }
            ready!(polled)?;
            let read = buffer.filled().len() - before;
            let passing = guard.saw_read(&buffer.filled()[before..]);
            buffer.set_filled(before + passing);
            let is_end = read == 0 && !guard.inbound.is_ready();
            // Nothing read would mean the end, so what was held back alone is no answer.
            if !guard.ended && (passing > 0 || is_end) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        guard.block_turn.end();
        ready!(guard.poll_burst(cx));
        let written = Pin::new(&mut guard.stream).poll_write(cx, bytes);
        let written = ready!(guard.unless_stuck(written))?;
        guard.saw_written(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        guard.block_turn.end();
        ready!(guard.poll_burst(cx));
        let written = Pin::new(&mut guard.stream).poll_write_vectored(cx, slices);
        let written = ready!(guard.unless_stuck(written))?;
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
        let guard = self.get_mut();
        guard.block_turn.end();
        let flushed = Pin::new(&mut guard.stream).poll_flush(cx);
        guard.unless_stuck(flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
