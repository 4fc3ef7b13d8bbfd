//! Tests of the simulator itself: seeds are reproducible, differ from each other, and a few of them
//! pass. scripts/simulate runs many more in an optimised build. `scenarios` has worlds with chosen
//! faults, `starts` interrupts the creation of members.

mod scenario;
mod scenarios;
mod starts;

use super::run::{Report, RunOptions, run};
use crate::probe::{self, Defect};

const SHORT: RunOptions = RunOptions {
    seconds: 12,
    print: false,
};

fn passes(report: &Report) {
    assert!(
        report.findings.is_empty(),
        "{:#?}\n{}",
        report.findings,
        report.last_lines.join("\n")
    );
}

#[test]
fn a_seed_gives_the_same_trace_again() {
    for seed in [3, 6] {
        let (one, two) = (run(seed, SHORT), run(seed, SHORT));
        assert_eq!(one.trace, two.trace, "seed {seed}");
        assert_eq!(one.last_lines, two.last_lines, "seed {seed}");
        assert_eq!(one.steps, two.steps, "seed {seed}");
        assert!(one.trace.0 > 300, "only {} lines", one.trace.0);
    }
    assert_ne!(run(3, SHORT).trace.1, run(4, SHORT).trace.1);
}

#[test]
fn worlds_pass_and_things_happen_in_them() {
    let (mut answered, mut events, mut faults) = (0, 0, 0);
    for seed in 20..26 {
        println!("seed {seed}");
        let report = run(seed, SHORT);
        passes(&report);
        answered += report.operations - report.unknown;
        events += report.watch_events;
        faults += report.faults.values().sum::<u64>();
    }
    assert!(answered > 1_000, "{answered} requests were answered");
    assert!(events > 200, "{events} events were watched");
    assert!(faults > 10, "{faults} faults injected");
}

#[test]
fn a_defect_is_found() {
    probe::inject(Some(Defect::AnswerBeforeSync));
    let found = (1..40).any(|seed| !run(seed, SHORT).findings.is_empty());
    probe::inject(None);
    assert!(found, "writes were answered before the disk had them");
}
