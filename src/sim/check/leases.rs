//! The timing guarantees of leases: none ends early, and none is kept for much too long.
//!
//! The leader's clock decides when a lease ends, and it may run slightly fast or slow. For "too
//! early" a renewal counts from its call, since the leader may have executed it at once; for "too
//! long" it counts until it returned or timed out.

use std::collections::BTreeMap;

use super::findings::{self, Findings, moment};
use super::reads::Order;
use super::replay::{LeaseSpan, Replay, StateIndex};
use super::writes::Origins;
use crate::sim::history::{Answer, ClientRequest, History, Moment, Operation, Outcome};

/// The largest drift of a member's clock, in millionths.
pub const MAX_DRIFT_PPM: u64 = 10_000;
/// How much later than twice its TTL a lease may end in a calm interval, in nanoseconds: a request
/// that timed out may still renew it, and the leader checks leases periodically.
pub const KEPT_SLACK: Moment = 10 * SECOND;

const SECOND: Moment = 1_000_000_000;

pub fn check(
    history: &History,
    replay: &Replay,
    origins: &Origins,
    order: &Order,
    findings: &mut Findings,
) {
    let leaders = new_leaders(replay);
    let corrupt = replay.corrupt_times();
    let asks = asks_by_lease(history);
    for life in replay.lives.values().flatten() {
        let none = Vec::new();
        let asked = asks.get(&life.id).unwrap_or(&none);
        let lease = Lease {
            history,
            replay,
            life,
            asked,
        };
        lease.check_revoke(origins, findings);
        lease.check_denials(order, findings);
        lease.check_kept(&leaders, &corrupt, findings);
    }
}

/// The times at which leaders may have restarted all leases.
fn new_leaders(replay: &Replay) -> Vec<Moment> {
    let pairs = replay.steps.windows(2);
    let changes = pairs.filter(|pair| pair[0].term != pair[1].term);
    changes.map(|pair| pair[1].at).collect()
}

/// The renewals and queries of each lease, by operation number, in the order of their returns.
fn asks_by_lease(history: &History) -> BTreeMap<i64, Vec<usize>> {
    let mut asks = BTreeMap::<i64, Vec<usize>>::new();
    for (number, operation) in history.operations.iter().enumerate() {
        if let ClientRequest::LeaseKeepAlive { id } | ClientRequest::LeaseTimeToLive { id, .. } =
            operation.request
        {
            asks.entry(id).or_default().push(number);
        }
    }
    asks
}

struct Lease<'a> {
    history: &'a History,
    replay: &'a Replay,
    life: &'a LeaseSpan,
    /// The operations on this lease.
    asked: &'a [usize],
}

impl<'a> Lease<'a> {
    fn operations(&self) -> impl Iterator<Item = (usize, &'a Operation)> + use<'a> {
        let operations = &self.history.operations;
        let asked = self.asked.iter();
        asked.map(|number| (*number, &operations[*number]))
    }

    /// The earliest time at which it can have been granted.
    fn granted_at(&self) -> Moment {
        self.replay.moment(self.life.from)
    }

    /// The earliest time at which it can have expired if it was last renewed at `renewed`.
    fn lives_until(&self, renewed: Moment) -> Moment {
        let mut ttl = seconds(self.life.ttl_s);
        ttl -= ttl / 1_000_000 * MAX_DRIFT_PPM;
        if self.life.checkpointed {
            ttl = ttl.saturating_sub(SECOND);
        }
        renewed.saturating_add(ttl)
    }

    /// The part of a single-member cluster's pause that extends its leases: the leader checks its
    /// clock periodically, and short pauses do not count.
    fn given_back(&self, from: Moment, to: Moment) -> Moment {
        let inside = |(begin, end): &&(Moment, Moment)| *begin >= from && *end <= to;
        let still = self.history.stood_still.iter().filter(inside);
        let parts = still.map(|(begin, end)| (end - begin).saturating_sub(SECOND));
        let given_back: Moment = parts.sum();
        given_back - given_back / 1_000_000 * MAX_DRIFT_PPM
    }

    /// The last call of an acknowledged renewal for which `counts` holds, or the grant.
    fn last_renewal(&self, counts: impl Fn(&Operation) -> bool) -> Moment {
        let renewals = self.operations().map(|(_, operation)| operation);
        let renewals = renewals.filter(|operation| renews(operation) == Some(true));
        let calls = renewals
            .filter(|operation| counts(operation))
            .map(|operation| operation.called_at);
        calls.fold(self.granted_at(), Moment::max)
    }

    fn check_revoke(&self, origins: &Origins, findings: &mut Findings) {
        let Some(until) = self.life.until else {
            return;
        };
        if origins.asked_by[until - 1].is_some() {
            return;
        }
        let revoked_at = self.replay.moment(until);
        let renewed = self.last_renewal(|operation| operation.called_at < revoked_at);
        let lives_until = self.lives_until(renewed);
        let given_back = self.given_back(renewed, revoked_at);
        if revoked_at < lives_until.saturating_add(given_back) {
            findings.add("a lease was revoked early", || {
                format!(
                    "lease {:x} of {} s, last renewed at {}, was revoked at {}; {} s were to be given back",
                    self.life.id,
                    self.life.ttl_s,
                    moment(renewed),
                    moment(revoked_at),
                    moment(given_back)
                )
            });
        }
    }

    /// Checks responses that report the lease as not found.
    fn check_denials(&self, order: &Order, findings: &mut Findings) {
        for (number, operation) in self.operations() {
            let denies = match &operation.outcome {
                Outcome::Answered(Answer::LeaseKeepAlive { ttl }) => *ttl <= 0,
                Outcome::Answered(Answer::LeaseTimeToLive(left)) => left.ttl < 0,
                _ => false,
            };
            let there = self.is_there(order.lower[number], operation.returned_at);
            if !denies || !there {
                continue;
            }
            let renewed = self.last_renewal(|other| other.returned_at < operation.called_at);
            if operation.returned_at < self.lives_until(renewed) {
                findings.add("a live lease was reported as not found", || {
                    let operation = findings::operation(operation);
                    format!("{operation}; last renewed at {}", moment(renewed))
                });
            }
        }
    }

    /// Whether the lease exists in every state from `from` to the newest at a time.
    fn is_there(&self, from: StateIndex, moment: Moment) -> bool {
        let last = self.replay.until(moment);
        self.life.from <= from && self.life.until.is_none_or(|until| last < until)
    }

    /// Finds a calm interval in which the lease was neither renewed nor revoked.
    fn check_kept(
        &self,
        leaders: &[Moment],
        corrupt: &[(Moment, Moment)],
        findings: &mut Findings,
    ) {
        let limit = seconds(self.life.ttl_s)
            .saturating_mul(2)
            .saturating_add(KEPT_SLACK);
        let gone = self.life.until.map(|until| self.replay.moment(until));
        let mut renewals: Vec<(Moment, Moment)> = self
            .operations()
            .filter(|(_, operation)| renews(operation) != Some(false))
            .map(|(_, operation)| (operation.called_at, operation.returned_at))
            .chain(leaders.iter().map(|at| (*at, *at)))
            .chain(corrupt.iter().copied())
            .collect();
        renewals.sort_unstable();
        for (calm_from, calm_to) in &self.history.calm {
            let end = gone.map_or(*calm_to, |gone| gone.min(*calm_to));
            let mut from = self.granted_at().max(*calm_from);
            for (called_at, returned_at) in renewals.iter().copied().chain([(end, end)]) {
                let to = called_at.min(end);
                if to > from && to - from > limit {
                    findings.add("a lease was kept for too long", || {
                        format!(
                            "lease {:x} of {} s was there from {} to {}",
                            self.life.id,
                            self.life.ttl_s,
                            moment(from),
                            moment(to)
                        )
                    });
                    return;
                }
                from = from.max(returned_at);
            }
        }
    }
}

/// Whether an operation renewed the lease; `None` if its outcome is unknown.
fn renews(operation: &Operation) -> Option<bool> {
    match (&operation.request, &operation.outcome) {
        (ClientRequest::LeaseKeepAlive { .. }, Outcome::Unknown) => None,
        (
            ClientRequest::LeaseKeepAlive { .. },
            Outcome::Answered(Answer::LeaseKeepAlive { ttl }),
        ) => Some(*ttl > 0),
        _ => Some(false),
    }
}

fn seconds(ttl_s: i64) -> Moment {
    (ttl_s.max(0) as u64).saturating_mul(SECOND)
}
