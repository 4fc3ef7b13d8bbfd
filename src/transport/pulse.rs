//! Whether a lane is alive: probes are sent periodically, and their responses, or at least some
//! traffic on the connection, have to be seen in time.
//!
//! Time is counted in ticks during which the process ran. A process that was suspended finds the
//! responses in its sockets when it continues, and must not take its own pause for the peer's.

/// Limits, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct PulseLimits {
    /// From one probe to the next.
    pub between_probes: u32,
    /// The longest wait for a probe's response without any traffic.
    pub silent: u32,
    /// The longest wait for a probe's response.
    pub unanswered: u32,
}

/// The action after a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    Rest,
    /// Send a probe with this number.
    Probe(u64),
    /// The peer is silent.
    Dead,
}

/// See the module.
pub struct Pulse {
    limits: PulseLimits,
    probes: u64,
    waiting: bool,
    /// Ticks since the newest probe was sent.
    since_probe: u32,
    /// Ticks since the last traffic, or since the newest probe was sent.
    since_sign: u32,
    moved: u64,
}

impl Pulse {
    pub fn new(limits: PulseLimits) -> Self {
        Self {
            limits,
            probes: 0,
            waiting: false,
            since_probe: limits.between_probes,
            since_sign: 0,
            moved: 0,
        }
    }

    /// A tick passed; `moved` counts the traffic so far.
    pub fn tick(&mut self, moved: u64) -> Beat {
        self.since_probe += 1;
        self.since_sign += 1;
        if moved != self.moved {
            self.moved = moved;
            self.since_sign = 0;
        }
        if self.waiting {
            let dead =
                self.since_sign >= self.limits.silent || self.since_probe >= self.limits.unanswered;
            return if dead { Beat::Dead } else { Beat::Rest };
        }
        if self.since_probe < self.limits.between_probes {
            return Beat::Rest;
        }
        self.probes += 1;
        self.waiting = true;
        self.since_probe = 0;
        self.since_sign = 0;
        Beat::Probe(self.probes)
    }

    /// A response arrived; true if it is to the newest probe.
    pub fn answered(&mut self, probe: u64) -> bool {
        let newest = self.waiting && probe == self.probes;
        if newest {
            self.waiting = false;
        }
        newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PulseLimits = PulseLimits {
        between_probes: 2,
        silent: 4,
        unanswered: 10,
    };

    fn beats(pulse: &mut Pulse, moved: impl IntoIterator<Item = u64>) -> Vec<Beat> {
        moved.into_iter().map(|moved| pulse.tick(moved)).collect()
    }

    #[test]
    fn a_lane_that_answers_is_probed_again() {
        use Beat::{Probe, Rest};
        let mut pulse = Pulse::new(LIMITS);
        assert_eq!(beats(&mut pulse, [0; 3]), [Probe(1), Rest, Rest]);
        assert!(!pulse.answered(7));
        assert!(pulse.answered(1));
        assert!(!pulse.answered(1));
        assert_eq!(beats(&mut pulse, [0; 2]), [Probe(2), Rest]);
        assert!(pulse.answered(2));
        assert_eq!(beats(&mut pulse, [0; 2]), [Probe(3), Rest]);
    }

    #[test]
    fn a_silent_lane_is_dead() {
        use Beat::{Dead, Probe, Rest};
        let mut pulse = Pulse::new(LIMITS);
        let expected = [Probe(1), Rest, Rest, Rest, Dead];
        assert_eq!(beats(&mut pulse, [5; 5]), expected);
    }

    #[test]
    fn a_lane_that_moves_lives_for_as_long_as_the_probe_may_take() {
        let mut pulse = Pulse::new(LIMITS);
        let beats = beats(&mut pulse, 0..11);
        assert_eq!(beats[0], Beat::Probe(1));
        assert!(beats[1..10].iter().all(|beat| *beat == Beat::Rest));
        assert_eq!(beats[10], Beat::Dead);
    }
}
