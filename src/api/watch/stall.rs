//! Clients that take too little of what they are being sent. Where memory is short such a one is sent
//! away in the middle of a message: it can come back for it. One that takes a large message slowly
//! is not: it would get the same message again, and no further.

use std::time::Duration;

/// How long a client may take less than `LEAST_BYTES`.
const LIMIT: Duration = Duration::from_secs(10);
const LEAST_BYTES: u64 = 64 << 10;

/// Since when a client has taken too little, and what it had taken then.
#[derive(Default)]
pub struct Stall(Option<(u64, Duration)>);

impl Stall {
    /// How long it may still be so, where anything is being sent of which `taken_bytes` were taken.
    pub fn left(&mut self, taken_bytes: Option<u64>, now: Duration) -> Option<Duration> {
        let Some(taken_bytes) = taken_bytes else {
            self.0 = None;
            return None;
        };
        let (before, since) = self.0.get_or_insert((taken_bytes, now));
        if taken_bytes >= *before + LEAST_BYTES {
            (*before, *since) = (taken_bytes, now);
        }
        Some((*since + LIMIT).saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_enough_is_never_late() {
        let at = Duration::from_secs;
        let mut stall = Stall::default();
        assert_eq!(stall.left(Some(0), at(1)), Some(at(10)));
        // Other things that happen to the stream change nothing.
        assert_eq!(stall.left(Some(100), at(6)), Some(at(5)));
        assert_eq!(stall.left(Some(LEAST_BYTES), at(10)), Some(at(10)));
        assert_eq!(stall.left(Some(LEAST_BYTES + 1), at(20)), Some(at(0)));
        assert_eq!(stall.left(None, at(20)), None);
        assert_eq!(stall.left(Some(LEAST_BYTES + 1), at(21)), Some(at(10)));
    }
}
