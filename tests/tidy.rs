//! Rules of this project that a machine can check: which module may know which, that files import
//! each other in no circle, what no release holds, where time and chance come from, how large a file
//! and a function may be and what a file may be called, which names several types share, which words
//! were given up and which need another beside them, that the documents name files that exist, and
//! the form of commits.
//!
//! Each rule is a function from text to findings, tried on small made-up texts beside it, and one
//! test here that lets it loose on the checkout.

mod tidy {
    pub mod circles;
    pub mod commits;
    pub mod documents;
    pub mod functions;
    pub mod homonyms;
    pub mod imports;
    pub mod layers;
    pub mod modules;
    pub mod purity;
    pub mod release;
    pub mod shape;
    pub mod source;
    pub mod terms;
    pub mod tokens;
    pub mod words;
}

use tidy::source::{self, Source};
use tidy::{
    circles, commits, documents, functions, homonyms, layers, purity, release, shape, terms, words,
};

/// Fails with every finding, one a line.
fn assert_none(findings: Vec<String>) {
    assert!(
        findings.is_empty(),
        "{} finding(s):\n{}",
        findings.len(),
        findings.join("\n")
    );
}

fn each(sources: &[Source], rule: impl Fn(&Source) -> Vec<String>) -> Vec<String> {
    sources.iter().flat_map(rule).collect()
}

#[test]
fn imports_point_downwards() {
    let sources = source::crate_sources();
    let mut findings = layers::stale(&sources);
    findings.extend(each(&sources, layers::check));
    assert_none(findings);
}

#[test]
fn files_import_each_other_in_no_circle() {
    assert_none(circles::check(&source::crate_sources(), circles::KNOWN));
}

#[test]
fn the_crate_shows_one_small_face() {
    assert_none(release::check_face(&source::crate_sources()));
}

#[test]
fn engines_in_memory_are_in_no_release() {
    let manifest = source::text("Cargo.toml");
    assert_none(release::check(
        &source::crate_sources(),
        &manifest,
        release::ABSENT,
    ));
}

#[test]
fn time_chance_and_the_runtime_stay_at_the_edge() {
    let sources = source::crate_sources();
    let mut findings = purity::stale(&sources);
    findings.extend(each(&sources, purity::check));
    assert_none(findings);
}

#[test]
fn files_have_a_head_a_size_and_a_name() {
    let mut sources = source::crate_sources();
    sources.extend(source::test_sources());
    assert_none(each(&sources, shape::check));
}

#[test]
fn functions_fit_on_a_screen() {
    assert_none(functions::check(&source::crate_sources(), functions::KNOWN));
}

#[test]
fn types_have_names_of_their_own() {
    assert_none(homonyms::check(&source::crate_sources(), homonyms::KNOWN));
}

/// Documents of the project's own.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/ARCHITECTURE.md",
    "docs/EDGES.md",
    "docs/GLOSSARY.md",
    "docs/SIMULATOR.md",
    "docs/STYLE.md",
];

/// Those at the top.
const AT_TOP: &[&str] = &["README.md", "CHANGELOG.md", "CONTRIBUTING.md"];

#[test]
fn documents_name_files_that_exist() {
    let findings = DOCUMENTS
        .iter()
        .flat_map(|name| documents::check(name, &source::text(name), source::exists))
        .collect();
    assert_none(findings);
}

#[test]
fn words_that_were_given_up_stay_away() {
    let check = |path: &str, text: &str| words::check(path, text, words::GIVEN_UP, words::ALLOWED);
    let mut findings = each(&source::texts(), |source| check(&source.path, &source.text));
    for name in AT_TOP {
        findings.extend(check(name, &source::text(name)));
    }
    assert_none(findings);
}

#[test]
fn words_of_several_meanings_say_which() {
    let check = |path: &str, text: &str| terms::check(path, text, terms::ALLOWED);
    let mut findings = each(&source::texts(), |source| {
        let of = ["src/", "docs/", "proto/peer.proto"];
        match of.iter().any(|begin| source.path.starts_with(begin)) {
            true => check(&source.path, &source.text),
            false => Vec::new(),
        }
    });
    for name in AT_TOP {
        findings.extend(check(name, &source::text(name)));
    }
    assert_none(findings);
}

#[test]
fn commits_have_their_form() {
    let log = commits::newest(source::top());
    assert_none(log.map_or_else(Vec::new, |log| commits::check(&log)));
}
