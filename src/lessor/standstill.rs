//! Distinguishes a process that was suspended (a paused machine, SIGSTOP) from one that was busy.
//!
//! No lease could be renewed at a suspended member, so that time does not count. Time in which the
//! process ran and waited does count, for revocations to be applied for example: a waiting task has
//! to call `note` in between.

use std::time::Duration;

/// Detects that its owner did not run for longer than the clock should allow.
pub struct Standstill {
    /// The interval at which a running process calls `note`.
    every: Duration,
    noted_at: Duration,
}

impl Standstill {
    pub fn new(every: Duration, now: Duration) -> Self {
        Self {
            every,
            noted_at: now,
        }
    }

    /// Records that the process runs; returns for how long it was suspended, if it was.
    pub fn note(&mut self, now: Duration) -> Option<Duration> {
        let stood_still = now.saturating_sub(self.noted_at).saturating_sub(self.every);
        self.noted_at = now;
        // A delay of one interval is a busy machine.
        (stood_still > self.every).then_some(stood_still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_is_a_standstill() {
        let ms = Duration::from_millis;
        let mut standstill = Standstill::new(ms(500), ms(0));
        for (now_ms, expected_ms) in [
            (500, None),
            (1_000, None),
            // Late, but not for long.
            (1_999, None),
            (2_500, None),
            (10_500, Some(7_500)),
            (10_500, None),
            (11_500, None),
            (12_501, Some(501)),
        ] {
            assert_eq!(standstill.note(ms(now_ms)), expected_ms.map(ms), "{now_ms}");
        }
    }
}
