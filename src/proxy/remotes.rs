//! Which member a connection is made to: as SRV records ask for, the best priority of those that can be
//! reached, and within it by weight; those without a weight in turn.
//!
//! Pure: who was reached is said from outside, and chance is passed in.

use super::endpoints::Endpoint;

/// Beside members that have a weight, those that have none get one connection in so many: they
/// "should have a very small chance of being selected" (RFC 2782).
const RARELY: u64 = 100;

/// The members, each active until it cannot be reached.
#[derive(Debug)]
pub struct Remotes {
    all: Vec<Remote>,
    /// Chosen so far among those without a weight.
    turns: usize,
}

#[derive(Debug)]
struct Remote {
    endpoint: Endpoint,
    active: bool,
}

impl Remotes {
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        let active = |endpoint| Remote {
            endpoint,
            active: true,
        };
        Self {
            all: endpoints.into_iter().map(active).collect(),
            turns: 0,
        }
    }

    pub fn endpoint(&self, at: usize) -> &Endpoint {
        &self.all[at].endpoint
    }

    /// Returns whether it was otherwise before.
    pub fn set_active(&mut self, at: usize, active: bool) -> bool {
        std::mem::replace(&mut self.all[at].active, active) != active
    }

    pub fn inactive(&self) -> Vec<usize> {
        let all = self.all.iter().enumerate();
        all.filter(|(_, one)| !one.active)
            .map(|(at, _)| at)
            .collect()
    }

    /// The member for the next connection; none if none is active.
    pub fn pick(&mut self, random: impl Fn() -> u64) -> Option<usize> {
        let all = self.all.iter().enumerate();
        let active: Vec<_> = all.filter(|(_, one)| one.active).collect();
        let best = active.iter().map(|(_, one)| one.endpoint.priority).min()?;
        let (weighted, unweighted): (Vec<_>, Vec<_>) = active
            .into_iter()
            .filter(|(_, one)| one.endpoint.priority == best)
            .map(|(at, one)| (at, u64::from(one.endpoint.weight)))
            .partition(|(_, weight)| *weight > 0);
        let total: u64 = weighted.iter().map(|(_, weight)| weight).sum();
        let by_turn = total == 0 || !unweighted.is_empty() && random().is_multiple_of(RARELY);
        if by_turn {
            let (at, _) = unweighted[self.turns % unweighted.len()];
            self.turns = self.turns.wrapping_add(1);
            return Some(at);
        }
        let mut rest = random() % total;
        weighted.into_iter().find_map(|(at, weight)| {
            let found = rest < weight;
            rest = rest.saturating_sub(weight);
            found.then_some(at)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Members with a priority and a weight each.
    fn remotes(all: &[(u16, u16)]) -> Remotes {
        let endpoint = |(priority, weight): &(u16, u16)| Endpoint {
            url: String::new(),
            host: String::new(),
            port: 1,
            priority: *priority,
            weight: *weight,
        };
        Remotes::new(all.iter().map(endpoint).collect())
    }

    /// How often each is chosen in a thousand, with numbers that come in turn.
    fn chosen(remotes: &mut Remotes) -> Vec<usize> {
        let mut counts = vec![0; remotes.all.len()];
        let next = Cell::new(0);
        let random = || next.replace(next.get() + 1);
        for _ in 0..1000 {
            if let Some(at) = remotes.pick(random) {
                counts[at] += 1;
            }
        }
        counts
    }

    #[test]
    fn the_best_priority_is_shared_by_weight() {
        for (all, expected) in [
            (&[(0, 0), (0, 0)][..], &[500, 500][..]),
            (&[(1, 9), (0, 0), (0, 0)], &[0, 500, 500]),
            (&[(0, 3), (0, 1), (9, 9)], &[750, 250, 0]),
            (&[(65535, 1)], &[1000]),
            (&[], &[]),
        ] {
            assert_eq!(chosen(&mut remotes(all)), expected, "{all:?}");
        }
        let rare = chosen(&mut remotes(&[(0, 10), (0, 0)]));
        assert!((1..=20).contains(&rare[1]), "{rare:?}");
    }

    #[test]
    fn those_that_cannot_be_reached_are_passed_over() {
        let mut remotes = remotes(&[(0, 0), (0, 0), (1, 1)]);
        assert!(remotes.set_active(0, false));
        assert!(!remotes.set_active(0, false));
        assert_eq!(chosen(&mut remotes), [0, 1000, 0]);
        remotes.set_active(1, false);
        assert_eq!(chosen(&mut remotes), [0, 0, 1000]);
        remotes.set_active(2, false);
        assert_eq!(remotes.inactive(), [0, 1, 2]);
        assert_eq!(remotes.pick(|| 0), None);
        remotes.set_active(1, true);
        assert_eq!(chosen(&mut remotes), [0, 1000, 0]);
    }
}
