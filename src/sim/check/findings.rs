//! Collects findings and describes operations in words.

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::sim::history::{Finding, Moment, Operation};

/// Findings kept per kind: one violation often shows in many places.
const MAX_OF_A_KIND: usize = 10;
/// Bytes of a request or response that are printed.
const MAX_SHOWN_BYTES: usize = 300;

/// See the module.
#[derive(Default)]
pub struct Findings {
    list: Vec<Finding>,
    counts: BTreeMap<&'static str, usize>,
}

impl Findings {
    pub fn add(&mut self, what: &'static str, details: impl FnOnce() -> String) {
        let count = self.counts.entry(what).or_default();
        *count += 1;
        if *count <= MAX_OF_A_KIND {
            self.list.push(Finding {
                what,
                details: details(),
            });
        }
    }

    /// In the order in which they were found; the last of a kind says how many were left out.
    pub fn into_list(mut self) -> Vec<Finding> {
        for (what, count) in self.counts {
            let last = self.list.iter_mut().rev().find(|one| one.what == what);
            if let Some(last) = last
                && count > MAX_OF_A_KIND
            {
                last.details += &format!("; and {} more", count - MAX_OF_A_KIND);
            }
        }
        self.list
    }
}

/// A moment in seconds.
pub fn moment(at: Moment) -> String {
    format!("{}.{:09}", at / 1_000_000_000, at % 1_000_000_000)
}

/// Any value, truncated when its text is long.
pub fn shortened(any: &impl Debug) -> String {
    let mut shown = format!("{any:?}");
    if shown.len() > MAX_SHOWN_BYTES {
        let end = (0..=MAX_SHOWN_BYTES).rev();
        let end = end.into_iter().find(|end| shown.is_char_boundary(*end));
        shown.truncate(end.unwrap_or(0));
        shown += " ...";
    }
    shown
}

/// A line about an operation: client, member, request, times and outcome.
pub fn operation(operation: &Operation) -> String {
    format!(
        "client {} asked member {} at {} for {} and had at {}: {}",
        operation.client,
        operation.member,
        moment(operation.called_at),
        shortened(&operation.request),
        moment(operation.returned_at),
        shortened(&operation.outcome),
    )
}
