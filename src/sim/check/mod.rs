//! Judges what happened in a world, from its history alone.
//!
//! The log, as it was applied, is the total order that everything is held against: `replay` does
//! its entries once more on the model, and so knows every state there was and the moments
//! between which it was the newest. Then `writes` finds the request of each entry, and the entry
//! of each answer; `reads` finds the state that each answer shows and holds all of them against
//! real time; `watches` compares streams of events with the changes; `leases` looks at what
//! leases promise about time, `kept` at what compactions left.
//!
//! A finding is a broken promise for sure: where the history leaves open what happened, the
//! kindest reading counts. All of it takes time linear in the history, but for requests that
//! cannot be told apart and reads that many states could answer.

mod answers;
mod findings;
mod kept;
mod leases;
mod reads;
mod replay;
#[cfg(test)]
mod tests;
mod watches;
mod writes;

use findings::Findings;
use replay::Replay;

use super::history::{Finding, History};

/// Every promise that was broken, a bounded number of each kind.
pub fn check(history: &History) -> Vec<Finding> {
    let mut findings = Findings::default();
    let replay = Replay::of(history, &mut findings);
    let origins = writes::check(history, &replay, &mut findings);
    let order = reads::check(history, &replay, &origins, &mut findings);
    watches::check(history, &replay, &mut findings);
    leases::check(history, &replay, &origins, &order, &mut findings);
    kept::check(history, &replay, &mut findings);
    findings.into_list()
}
