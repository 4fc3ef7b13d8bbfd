//! Tells a process that stood still (a paused machine, SIGSTOP) from one that was only busy.
//!
//! A member that stood still could not be asked to renew a lease, so that time does not count.
//! What does count is time in which the process ran and waited, for revokes to be applied for
//! example: whoever waits has to report in between.

use std::time::Duration;

/// Notices when its owner was not there for longer than the clock should have let it.
pub struct Standstill {
    /// How often `note` is called by a process that runs.
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

    /// Says that the process runs now; returns for how long it did not, where it did not.
    pub fn note(&mut self, now: Duration) -> Option<Duration> {
        let stood_still = now.saturating_sub(self.noted_at).saturating_sub(self.every);
        self.noted_at = now;
        // An interval late is a busy machine.
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
