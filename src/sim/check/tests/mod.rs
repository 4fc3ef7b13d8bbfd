//! Correct histories, in which nothing may be found, and damaged ones, in which exactly the damage
//! has to be found.
//!
//! `ETCHED_SEEDS` says how many seeds are tried.

mod cluster;
mod corners;
mod coverage;
mod damage;
mod damaged_streams;
mod locks;
mod requests;
mod rights;
mod streams;

use std::collections::BTreeSet;

use cluster::Trick;
use requests::Random;

use super::check;
use crate::sim::history::History;

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = std::env::var("ETCHED_SEEDS").ok();
    0..number.map_or(default, |number| number.parse().expect("a number of seeds"))
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    for seed in seeds(200) {
        let made = cluster::make(seed, Trick::None);
        let findings = check(&made.history);
        assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
    }
}

/// The kinds of findings in a history.
fn kinds(history: &History) -> BTreeSet<&'static str> {
    check(history).iter().map(|finding| finding.what).collect()
}

#[test]
fn broken_promises_are_found() {
    // A client that cannot know of the lease may be answered that it does not exist.
    let table = [
        (
            Trick::LoseWrite,
            "an acknowledged request is not in the log",
        ),
        (Trick::Phantom, "an entry has no request"),
        (Trick::ApplyTwice, "a request was applied twice"),
        (Trick::ProposeTwice, "a request was applied twice"),
        (Trick::RefuseDone, "a refused request was applied"),
        (Trick::RevokeEarly, "a lease was revoked early"),
        (Trick::KeepLease, "a lease was kept for too long"),
        (Trick::DenyLease, "a live lease was reported as not found"),
    ];
    let mut wrong = Vec::new();
    for (trick, what) in table {
        let mut caught = 0;
        for seed in seeds(20) {
            let made = cluster::make(seed, trick);
            let expected: BTreeSet<_> = made.played.then_some(what).into_iter().collect();
            let found = kinds(&made.history);
            let unsure = trick == Trick::DenyLease && found.is_empty();
            caught += u64::from(found == [what].into());
            if found != expected && !unsure {
                wrong.push(format!("{trick:?}, seed {seed}: {found:?}"));
            }
        }
        if caught < 5 {
            wrong.push(format!("{trick:?} was caught in {caught} worlds"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn damage_is_found() {
    let blameless = seeds(20).map(|seed| cluster::make(seed, Trick::None));
    let blameless: Vec<_> = blameless.collect();
    let mut wrong = Vec::new();
    for (name, damage, what) in damage::TABLE.iter().chain(damaged_streams::TABLE) {
        let mut damaged = 0;
        for (seed, made) in blameless.iter().enumerate() {
            let mut made = made.clone();
            if damage(&mut made, &mut Random::new(seed as u64)).is_none() {
                continue;
            }
            damaged += 1;
            let found = kinds(&made.history);
            if found != [*what].into() {
                wrong.push(format!("{name}, seed {seed}: {found:?}"));
            }
        }
        if damaged < 2 {
            wrong.push(format!("{name} had {damaged} occasions"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_lease_may_be_kept_while_faults_last() {
    let kept = |seed: &u64| cluster::make(*seed, Trick::KeepLease).played;
    let seed = seeds(20).find(kept).expect("an occasion");
    let mut history = cluster::make(seed, Trick::KeepLease).history;
    assert!(!kinds(&history).is_empty());
    history.calm.clear();
    assert_eq!(kinds(&history), [].into());
}
