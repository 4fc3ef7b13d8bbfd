//! What clients' requests may take, divided once more, and what each connection has of it.

use std::sync::Arc;

use super::share::{Held, Holder, Share, TakeBytes};
use super::unread::{self, Unread};

/// Of the part of requests: messages on their way in and until they are answered, what nobody has
/// read yet, encodings of what is proposed.
const SHARE_EIGHTHS: usize = 5;
const UNREAD_EIGHTHS: usize = 1;
const PROPOSED_EIGHTHS: usize = 2;
/// And the least of the first, in messages of the largest size: one of them is of three quarters
/// of that, and one connection has half of those.
const MIN_MESSAGES: usize = 4;

/// See the module.
pub struct Requests {
    share: Arc<Share>,
    unread: Arc<Unread>,
}

impl Requests {
    pub fn new(part_bytes: usize, max_message_bytes: usize) -> Self {
        let share_bytes = part_bytes / 8 * SHARE_EIGHTHS;
        Self {
            share: Share::new(share_bytes.max(MIN_MESSAGES * max_message_bytes)),
            unread: Unread::new(part_bytes / 8 * UNREAD_EIGHTHS),
        }
    }

    pub fn share(&self) -> &Arc<Share> {
        &self.share
    }

    pub fn unread(&self) -> &Arc<Unread> {
        &self.unread
    }

    /// What the requests of a connection take.
    pub fn of_connection(&self, unread: Arc<unread::Connection>) -> OfConnection {
        OfConnection {
            share: self.share.clone(),
            holder: Arc::default(),
            unread,
        }
    }
}

/// A connection's.
pub struct OfConnection {
    share: Arc<Share>,
    holder: Arc<Holder>,
    pub unread: Arc<unread::Connection>,
}

impl OfConnection {
    /// Takes bytes in the name of the connection where they are free and nobody waits for them.
    pub fn try_take(&self, bytes: usize) -> Option<Held> {
        self.share.try_take_as(&self.holder, bytes)
    }

    /// The same as soon as they are free.
    pub fn take(&self, bytes: usize) -> TakeBytes {
        self.share.take_as(&self.holder, bytes)
    }

    /// Takes bytes of small messages in its name, as `try_take`.
    pub fn try_take_small(&self, bytes: usize) -> Option<Held> {
        self.share.try_take_small_as(&self.holder, bytes)
    }

    /// The same as soon as they are free.
    pub fn take_small(&self, bytes: usize) -> TakeBytes {
        self.share.take_small_as(&self.holder, bytes)
    }

    /// Whether somebody waits for room that others have.
    pub fn is_awaited(&self) -> bool {
        self.share.is_awaited() || self.unread.all().is_over()
    }
}

/// What the encodings of proposals under way may take, of the part of requests.
pub fn proposed_bytes(part_bytes: usize) -> usize {
    part_bytes / 8 * PROPOSED_EIGHTHS
}

/// What may wait for the raft thread: what is proposed here, and as much from other members.
pub fn inbox_bytes(part_bytes: usize) -> usize {
    2 * proposed_bytes(part_bytes)
}
