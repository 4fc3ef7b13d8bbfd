//! Tells clients what changes: every event of a watch's range from its start revision, once, in
//! revision order, a revision never torn, or that the history it asked for is compacted.
//!
//! A watch is in one of two states. *Live*: it stands in the hub's index, and `Hub::publish`
//! puts its events into the bounded queue of its stream. *Catching up*: it stands in no index;
//! its stream reads pages of history from storage for it when the client is ready for more. A
//! watch whose event does not fit its queue leaves the index at that revision and catches up,
//! so a slow reader costs neither memory nor the writer's time. So does a watch whose queued
//! event is gone because all that is queued takes too much (see `recent`). It returns under the hub's lock
//! once it has seen everything that was published.
//!
//! Invariants:
//! - every revision up to the hub's head was put into the queue of each live watch it matters to,
//!   and none above it; a watch catching up from revision N has been given all below N;
//! - what a stream hands out of a page comes before what it hands out of its queue, and a watch
//!   that left the index reads no page before its queued events are out;
//! - the locks' order is hub, then stream; neither is held while storage is read or a wake-up
//!   runs. (The turn of `large` is held then, and comes before both.)
//!
//! No thread, no clock and no socket in here: `api` moves what `Stream::next` hands out.

mod catch_up;
mod copies;
mod fragment;
mod hub;
mod large;
mod logged;
mod queue;
mod range_set;
mod recent;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicI64, AtomicU64};

use crate::error::watch_reason;
use crate::proto::EncodedEvent;
use crate::types::KeyRange;

pub use fragment::fragments;
pub use hub::Hub;
pub use stream::Stream;

/// What one stream and all of them may hold in memory, and how much one step reads.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events in the queue of one stream.
    pub queue_events: usize,
    /// Bytes of the events that the queue of one stream names. One that several watches get
    /// counts for each.
    pub queue_bytes: usize,
    /// Bytes that queues, events and pages take together; an event counts once.
    pub total_bytes: usize,
    /// Revisions with at least one wanted change in a page.
    pub page_revisions: usize,
    /// Records read for a page, wanted or not: bounds the time that a step takes.
    pub page_records: usize,
    /// Pairs of a change and a range that wants it in a page: many overlapping ranges would else
    /// make a page of any size. One revision always fits.
    pub page_hits: usize,
    /// Bytes in a page; less where `total_bytes` runs out. One revision always fits that is not
    /// large.
    pub page_bytes: usize,
    /// A revision of more, and of more than a page may hold, is large: who wants much of it gets it
    /// alone.
    pub whole_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_events: 16_384,
            queue_bytes: 4 << 20,
            total_bytes: 24 << 20,
            // etcd sends no more revisions than this in one response to a watch catching up.
            page_revisions: 1_000,
            page_records: 5_000,
            page_hits: 1 << 20,
            page_bytes: 16 << 20,
            whole_bytes: 1 << 20,
        }
    }
}

/// What a client asks to watch.
#[derive(Clone, Debug)]
pub struct Request {
    /// 0 leaves the choice to the stream.
    pub watch_id: i64,
    pub range: KeyRange,
    /// The first revision of interest; 0 or below for everything from now on.
    pub start_revision: i64,
    pub prev_kv: bool,
    pub no_put: bool,
    pub no_delete: bool,
    /// Allows the answer to be split; handed back with each `Output::Events`.
    pub fragment: bool,
    /// Asks for progress at `Stream::progress_tick`.
    pub progress_notify: bool,
}

/// Why a watch was not made; the stream continues without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    #[error("{}", watch_reason::DUPLICATE_ID)]
    DuplicateId,
    #[error("{}", watch_reason::EMPTY_RANGE)]
    EmptyRange,
}

/// What a stream has to say next.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Events {
        watch_id: i64,
        /// All events of this watch up to this revision are out with these.
        header_revision: i64,
        /// In revision order, never empty.
        events: Vec<EncodedEvent>,
        /// Whether the client allows `fragments` to split them.
        fragment: bool,
    },
    /// The watch fell behind the compacted revision and gets nothing more. As in etcd its id
    /// stays taken, and holds back progress of the stream, until it is cancelled.
    Compacted {
        watch_id: i64,
        compact_revision: i64,
    },
    /// All events up to `header_revision` are out: of the watch, or with watch id
    /// `ALL_WATCHES` of every watch of the stream.
    Progress { watch_id: i64, header_revision: i64 },
    /// A step was done that has nothing to show: yield and call again.
    Again,
}

impl Output {
    /// The watch that it is about, if it is one.
    pub fn watch_id(&self) -> Option<i64> {
        match self {
            Self::Events { watch_id, .. }
            | Self::Compacted { watch_id, .. }
            | Self::Progress { watch_id, .. } => Some(*watch_id),
            Self::Again => None,
        }
    }
}

/// The watch id of progress that speaks for a whole stream.
pub const ALL_WATCHES: i64 = -1;

/// Figures for metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Open streams.
    pub streams: AtomicI64,
    /// Watches that can still get events.
    pub watches: AtomicI64,
    /// Those of them that are catching up.
    pub slow_watches: AtomicI64,
    /// Events in the queues.
    pub pending_events: AtomicI64,
    /// Events handed out since the start.
    pub events: AtomicU64,
}
