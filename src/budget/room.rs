//! What one holder takes of a share as it grows.

use std::sync::Arc;

use super::share::{Held, Share};

/// Room of a share for one holder, up to a limit of its own; what is small is not counted.
pub struct Room<'a> {
    share: &'a Arc<Share>,
    free_bytes: usize,
    most_bytes: usize,
    held: Option<Held>,
}

impl<'a> Room<'a> {
    /// One that takes up to `free_bytes` unasked and never more than `most_bytes`, which is
    /// lowered so that no holder alone keeps out all others.
    pub fn new(share: &'a Arc<Share>, free_bytes: usize, most_bytes: usize) -> Self {
        Self {
            share,
            free_bytes,
            most_bytes: most_bytes.min(share.limit_bytes() / 8),
            held: None,
        }
    }

    /// One that takes over what another held.
    pub fn with_held(self, held: Option<Held>) -> Self {
        Self { held, ..self }
    }

    /// Whether so many bytes in all may be held; if so they are counted.
    pub fn holds(&mut self, bytes: usize) -> bool {
        if bytes <= self.free_bytes {
            self.held = None;
            return true;
        }
        if bytes > self.most_bytes {
            return false;
        }
        let Some(held) = &mut self.held else {
            self.held = self.share.try_take(bytes);
            return self.held.is_some();
        };
        match bytes.checked_sub(held.bytes()) {
            None => held.shrink(held.bytes() - bytes),
            Some(0) => {}
            Some(more) => return held.try_grow(more),
        }
        true
    }

    pub fn into_held(self) -> Option<Held> {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_holder_takes_grows_and_shrinks() {
        let share = Share::new(800 << 10);
        let mut room = Room::new(&share, 1 << 10, 1 << 20);
        // Bytes, whether they may be held, and what is counted then.
        for (bytes, may, counted) in [
            (1 << 10, true, 0),
            (50 << 10, true, 50 << 10),
            (100 << 10, true, 100 << 10),
            // More than an eighth of the share.
            (101 << 10, false, 100 << 10),
            (20 << 10, true, 20 << 10),
            (0, true, 0),
            (60 << 10, true, 60 << 10),
        ] {
            assert_eq!(room.holds(bytes), may, "{bytes}");
            assert_eq!(share.used_bytes(), counted, "{bytes}");
        }
        let others = share.try_take(540 << 10).expect("room");
        assert!(!room.holds(90 << 10));
        drop(others);
        assert!(room.holds(90 << 10));
        let held = room.into_held();
        assert_eq!(share.used_bytes(), 90 << 10);
        drop(held);
        assert_eq!(share.used_bytes(), 0);
    }
}
