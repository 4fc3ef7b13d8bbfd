//! Sends clients away that ping too often, as grpc-go does.
//!
//! HTTP/2 libraries answer pings by themselves and tell nobody. Here pings are counted that come
//! sooner than the minimum time after the last one (or, with no call under way, sooner than two
//! hours), and forgiven whenever the server sends headers or data; the third is one too many.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::frames::{ACK_OR_END_STREAM, DATA, Frame, HEADERS, PING, RST_STREAM};

/// Pings too many before the client is sent away; grpc-go's figure.
const MAX_STRIKES: u32 = 2;
/// The minimum time between pings of a connection without a call; grpc-go's figure.
const IDLE_MIN_TIME: Duration = Duration::from_secs(2 * 3600);

/// GOAWAY, last stream unknown, ENHANCE_YOUR_CALM (11).
pub const GOAWAY: &[u8] =
    b"\x00\x00\x16\x07\x00\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x0btoo_many_pings";

/// What is known of a connection's pings.
pub struct Policy {
    min_time: Duration,
    /// The streams of calls under way, and whether their answers have begun.
    open: HashMap<u32, bool>,
    unanswered: usize,
    newest_stream: u32,
    last_ping: Option<Instant>,
    strikes: u32,
    forgiven: bool,
}

impl Policy {
    pub fn new(min_time: Duration) -> Self {
        Self {
            min_time,
            open: HashMap::new(),
            unanswered: 0,
            newest_stream: 0,
            last_ping: None,
            strikes: 0,
            forgiven: false,
        }
    }

    pub fn received(&mut self, frame: Frame, now: Instant) {
        match frame.kind {
            HEADERS if frame.stream > self.newest_stream => {
                self.newest_stream = frame.stream;
                self.open.insert(frame.stream, false);
                self.unanswered += 1;
            }
            RST_STREAM => self.end(frame.stream),
            PING if !frame.has(ACK_OR_END_STREAM) => self.ping(now),
            _ => {}
        }
    }

    pub fn sent(&mut self, frame: Frame) {
        match frame.kind {
            DATA | HEADERS => {
                self.forgiven = true;
                if frame.has(ACK_OR_END_STREAM) {
                    self.end(frame.stream);
                } else if frame.kind == HEADERS
                    && let Some(answered @ false) = self.open.get_mut(&frame.stream)
                {
                    *answered = true;
                    self.unanswered -= 1;
                }
            }
            RST_STREAM => self.end(frame.stream),
            _ => {}
        }
    }

    fn end(&mut self, stream: u32) {
        if self.open.remove(&stream) == Some(false) {
            self.unanswered -= 1;
        }
    }

    /// Calls under way whose answers have not begun.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Calls under way.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Whether a call is under way on this stream.
    pub fn is_open(&self, stream: u32) -> bool {
        self.open.contains_key(&stream)
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

    pub fn violated(&self) -> bool {
        self.strikes > MAX_STRIKES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goaway_is_a_whole_frame() {
        let frame = Frame::first(GOAWAY).expect("a header");
        assert_eq!((frame.kind, frame.stream), (7, 0));
        assert_eq!(frame.header().len() + frame.len, GOAWAY.len());
    }

    #[test]
    fn calls_wait_for_their_answers_until_these_begin_or_the_calls_end() {
        let frame = |kind, flags, stream| Frame {
            len: 0,
            kind,
            flags,
            stream,
        };
        let now = Instant::now();
        let mut policy = Policy::new(Duration::ZERO);
        for stream in [1, 3, 5, 7] {
            policy.received(frame(HEADERS, 0, stream), now);
        }
        // Trailers begin no call.
        policy.received(frame(HEADERS, ACK_OR_END_STREAM, 7), now);
        assert_eq!(policy.unanswered(), 4);
        policy.sent(frame(HEADERS, 0, 1));
        policy.sent(frame(DATA, 0, 1));
        policy.sent(frame(HEADERS, ACK_OR_END_STREAM, 1));
        assert_eq!((policy.unanswered(), policy.is_open(1)), (3, false));
        policy.sent(frame(HEADERS, ACK_OR_END_STREAM, 3));
        policy.received(frame(RST_STREAM, 0, 5), now);
        policy.received(frame(RST_STREAM, 0, 5), now);
        policy.sent(frame(RST_STREAM, 0, 7));
        assert_eq!(policy.unanswered(), 0);
    }

    #[test]
    fn the_third_early_ping_is_one_too_many() {
        let frame = |kind, stream| Frame {
            len: 0,
            kind,
            flags: 0,
            stream,
        };
        let (ping, call) = (frame(PING, 0), frame(HEADERS, 1));
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
