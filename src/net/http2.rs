//! Every limit of the HTTP/2 library, decided by name.
//!
//! The library guards itself with limits that a browser never meets and clients of etcd do: a
//! connection that lives for months, thousands of watches on one, metadata as large as etcd takes.
//! A limit that its client cannot know of ends the connection and every call on it, so those that
//! can be are set where memory and not a guess about honest clients is the reason.
//!
//! What the library does not let anybody set, and why that is no harm:
//! - 50 streams that this side reset are remembered for a second each; what comes for others is
//!   answered with STREAM_CLOSED, which no longer counts against the connection (see below).
//! - 100 DATA frames in a connection's life may be empty without ending their stream. No client
//!   of gRPC sends such: a message has five bytes at least.
//! - One frame of CONTINUATION more than a quarter above what the largest header list needs ends
//!   the connection: it grows with `HEADER_LIST_BYTES`.
//! - Small frames of data count as 256 bytes each against half of the connection's window; `join`
//!   makes few of many, and `guard` does not read on from a connection of which too much is unread
//!   (`budget::unread`). One that makes no progress for 15 s then is closed, with a line in the log.
//! - A header map holds 24,576 names; a request with more is refused alone.
//! - The table of compressed headers holds 4,096 bytes, what HTTP/2 begins with and grpc-go has.

use std::time::Duration;

use hyper::client::conn::http2 as dialled;
use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto;

/// Pings that find a connection dead which nothing else watches.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    pub interval: Duration,
    pub timeout: Duration,
}

/// Names and values of a request with 32 bytes for each header, as HTTP/2 counts; grpc-go's limit.
/// It is announced to the client, and a request above it is refused alone, up to four times as much.
const HEADER_LIST_BYTES: u32 = 16 << 20;
/// Calls that a client gave up before they were begun; one that gives up many at once (its own
/// process stops) is no attacker. They cost a few hundred bytes each, for a moment.
const PENDING_RESETS: usize = 16_384;
/// Streams that this side reset for an error of the client's: counted over a connection's whole
/// life, so that any number would end one that lives long enough. Data that was on its way when a
/// call was refused counts too. Nothing is won by the limit: a call that is reset is dropped, and
/// who would open streams again and again may as well have them open.
const ERROR_RESETS: Option<usize> = None;
/// What the answers of one stream may hold in the library's buffers while its client does not
/// read; those that produce answers wait, nobody is refused.
const SEND_BUFFER_BYTES: usize = 32 << 10;

/// Of a connection that was dialled: calls that this side gave up, for each of which it is remembered
/// for a second that what still comes is for nobody. A proxy passes on what its clients give up.
const GIVEN_UP: usize = 1024;
/// Calls before the other side has said how many it takes: what HTTP/2 recommends as the least.
const FIRST_CALLS: usize = 100;
/// What the requests of one call may hold in the library's buffers while they are not read: a
/// message to a member, or some of a client's.
const REQUEST_BUFFER_BYTES: usize = 1 << 20;
/// The largest frame of an answer; HTTP/2's least, and what grpc-go sends.
const ANSWER_FRAME_BYTES: u32 = 16 << 10;

/// How far answers may be sent ahead of their readers: that of a call, and those of a connection
/// together. What waits unread in one call counts against its connection, so a reader that stops
/// stops all calls of a connection whose window is not much larger than a call's.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    pub call_bytes: u32,
    pub connection_bytes: u32,
}

impl Windows {
    /// Of calls that this program makes and reads at once.
    pub const OWN_CALLS: Self = Self {
        call_bytes: 4 << 20,
        connection_bytes: 4 << 20,
    };

    /// Decides the limits of a connection that is dialled. Neither are pushed answers taken nor
    /// answers without a request, so that what is left to the library's choice has no use there.
    pub fn apply<E: Clone>(self, builder: &mut dialled::Builder<E>) {
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(self.call_bytes)
            .initial_connection_window_size(self.connection_bytes)
            .initial_max_send_streams(FIRST_CALLS)
            .adaptive_window(false)
            .max_frame_size(ANSWER_FRAME_BYTES)
            // An error's text may hold a name of any length.
            .max_header_list_size(HEADER_LIST_BYTES)
            .max_concurrent_reset_streams(GIVEN_UP)
            .max_local_error_reset_streams(ERROR_RESETS)
            .max_send_buf_size(REQUEST_BUFFER_BYTES);
    }
}

/// What differs between listeners.
#[derive(Clone, Copy, Debug)]
pub struct Http2 {
    /// Calls of a connection at once; announced to the client, and one above it is refused alone.
    pub max_streams: u32,
    /// A stream may send this much ahead of its reader.
    stream_window_bytes: u32,
    /// All streams of a connection together. Half of it is also what the library lets small DATA
    /// frames (below 256 bytes) that nobody has read yet take, each as if it had 256; beyond that
    /// it ends the connection with `too_many_data_frames`.
    connection_window_bytes: u32,
    /// The largest frame that is accepted; announced to the client.
    max_frame_bytes: u32,
    /// Connections are pinged this often, and closed if no answer comes in time.
    pub keep_alive: Option<KeepAlive>,
}

impl Http2 {
    /// A stream's window is grpc-go's. One that is full of requests of 5 bytes (13,107 of them)
    /// takes 3.4 MB of the library's allowance for small frames, and the connection's window gives
    /// 32: streams that nobody reads for a while must not hold up the others either, which a small
    /// window for all would do. What all connections together have unread is bounded by
    /// `budget::unread`.
    pub fn of_clients(max_streams: u32, keep_alive: Option<KeepAlive>) -> Self {
        Self {
            max_streams,
            stream_window_bytes: 64 << 10,
            connection_window_bytes: 64 << 20,
            // As grpc-go, which sends no larger ones whatever the peer announces.
            max_frame_bytes: 16 << 10,
            keep_alive,
        }
    }

    /// Members send each other few and large messages, over links that may be long. Every lease
    /// renewal of another member's clients is a call of its own.
    pub fn of_peers(keep_alive: KeepAlive) -> Self {
        Self {
            max_streams: 16_384,
            stream_window_bytes: 8 << 20,
            connection_window_bytes: 16 << 20,
            max_frame_bytes: 1 << 20,
            keep_alive: Some(keep_alive),
        }
    }

    pub(super) fn apply<E>(&self, mut builder: auto::Http2Builder<'_, E>) {
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.max_streams)
            .initial_stream_window_size(self.stream_window_bytes)
            .initial_connection_window_size(self.connection_window_bytes)
            // Would change both windows by what it guesses of the link.
            .adaptive_window(false)
            .max_frame_size(self.max_frame_bytes)
            .max_header_list_size(HEADER_LIST_BYTES)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(ERROR_RESETS)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            // grpc-go sends none.
            .auto_date_header(false);
        if let Some(keep_alive) = self.keep_alive {
            builder
                .keep_alive_interval(keep_alive.interval)
                .keep_alive_timeout(keep_alive.timeout);
        }
    }
}
