//! Checks a world from its history alone.
//!
//! The log as it was applied is the total order that everything is checked against: `replay`
//! applies its entries to the model, and so knows every state and the interval in which it was the
//! newest. Then `writes` matches entries with requests and responses; `reads` finds the state that
//! each response shows and checks real-time order; `watches` compares event streams with the
//! changes; `leases` checks the timing of leases, `locks` who had a lock or led, `kept` what
//! compactions left.
//!
//! `permissions` says what users were allowed to be shown.
//!
//! A finding is always a real violation: where the history is ambiguous, the most favourable
//! interpretation counts. The checks take time linear in the history, except for indistinguishable
//! requests and for reads that many states could have answered.

mod answers;
mod findings;
mod kept;
mod leases;
mod locks;
mod permissions;
mod reads;
mod replay;
#[cfg(test)]
mod tests;
mod watches;
mod writes;

use findings::Findings;
use replay::Replay;

use super::history::{Finding, History};

/// Every violation, a bounded number of each kind.
pub fn check(history: &History) -> Vec<Finding> {
    let mut findings = Findings::default();
    let replay = Replay::of(history, &mut findings);
    let origins = writes::check(history, &replay, &mut findings);
    let order = reads::check(history, &replay, &origins, &mut findings);
    watches::check(history, &replay, &mut findings);
    leases::check(history, &replay, &origins, &order, &mut findings);
    locks::check(history, &replay, &order.lower, &mut findings);
    kept::check(history, &replay, &mut findings);
    findings.into_list()
}
