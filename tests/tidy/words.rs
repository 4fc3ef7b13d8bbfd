//! Words that were given up for the field's own, and shall not come back: in code, in comments,
//! in scripts of tests and in documents.

use std::collections::{BTreeSet, HashMap};

use super::shape;

/// What is no longer said, and what is said instead. One word in small letters is meant as a word
/// and as a part of any name; words in a row as they are read, in capitals or not, and as a part of
/// any name; a name as it is written, in Rust and in documents.
pub const GIVEN_UP: &[(&str, &str)] = &[
    // Names of types, constants and modules.
    ("Around", "MemberEnv"),
    ("Asked", "ClientRequest, or what the request is"),
    ("Away", "ForwardedProposal"),
    ("Door", "MemberEndpoint"),
    ("Drive", "SimDisk"),
    ("Finished", "Watermark"),
    ("MAX_ELSEWHERE", "MAX_PENDING_PROPOSALS"),
    ("Manner", "SimConfig"),
    ("Mark", "EntryId"),
    ("Questions", "PeerRpcClient"),
    ("RealWorld", "RealNetwork"),
    ("Shelf", "SimDisks"),
    ("States", "SnapshotStore"),
    ("crate::node", "crate::replica or crate::service"),
    ("probe::Path", "CoveragePoint"),
    ("stand_in", "fixture"),
    // Words, also as parts of names.
    ("befall", "faults are injected"),
    ("befalls", "faults are injected"),
    ("befell", "faults were injected"),
    ("doubts", "leader_suspected_at, in doubt"),
    ("lone", "single-member, sole voter, isolated"),
    ("parked", "queued"),
    ("question", "request, peer RPC"),
    ("questions", "requests, peer RPCs"),
    ("stranger", "unlisted peer"),
    ("strangers", "unlisted peers"),
    ("told", "announced, answered, reported or seen"),
    ("untold", "unannounced, unanswered"),
    ("whoever", "the caller, the reader, the member"),
    ("wires", "network"),
    // Sentences.
    ("by a hasher without chance in it", "a deterministic hasher"),
    ("come to rest", "converge"),
    ("comes to rest", "converges"),
    ("came to rest", "converged"),
    ("ended without a word", "exited without a result"),
    ("from hand to hand", "transferred"),
    ("goes on", "continues"),
    ("go on", "continue"),
    ("going on", "under way"),
    ("gone on", "continued"),
    ("is called corrupt", "is reported as corrupt"),
    (
        "lets the raft log go",
        "truncates the raft log up to the flushed index",
    ),
    ("look at them aside", "validate them in a staging directory"),
    (
        "looks at them aside",
        "validates them in a staging directory",
    ),
    ("raft does not want", "raft rejects"),
    ("went on", "continued"),
    ("what 0 and nothing stand for", "defaults"),
];

/// Where a word is another's and has to be said: the beginning of a path, and the word.
pub const ALLOWED: &[(&str, &str)] = &[
    // What is asked of a DNS server is a question there, in the standard and in the library.
    ("src/server/discovery/", "question"),
    ("src/server/discovery/", "questions"),
    // This table, and what its tests are tried on.
    ("tests/tidy/words.rs", ""),
];

/// Where a text says what was given up.
pub fn check(
    path: &str,
    text: &str,
    given_up: &[(&str, &str)],
    allowed: &[(&str, &str)],
) -> Vec<String> {
    let is_allowed = |old: &str| {
        let mut allowed = allowed.iter();
        allowed.any(|(begin, word)| path.starts_with(begin) && [old, ""].contains(word))
    };
    let mut by_first: HashMap<String, Vec<(&str, &str)>> = HashMap::new();
    for (old, new) in given_up.iter().filter(|(old, _)| !is_allowed(old)) {
        let first = words(old).next().unwrap_or_default().to_lowercase();
        by_first.entry(first).or_default().push((*old, *new));
    }
    let found: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .flat_map(|(at, line)| words(line).map(move |word| (at + 1, word)))
        .collect();
    let mut findings = Vec::new();
    for (at, (line, word)) in found.iter().enumerate() {
        let parts = shape::words(word);
        let mut firsts: BTreeSet<String> = parts.iter().cloned().collect();
        firsts.insert(word.to_lowercase());
        for (old, new) in firsts
            .iter()
            .filter_map(|first| by_first.get(first))
            .flatten()
        {
            if is_word(old) || is_row(path, old, &found[at..]) || is_within(old, &parts) {
                findings.push(format!("{path}:{line}: not \"{old}\" but {new}"));
            }
        }
    }
    findings
}

/// True for one word in small letters.
fn is_word(old: &str) -> bool {
    old.chars().all(char::is_lowercase)
}

/// True where the words begin with those of a name or of a sentence.
fn is_row(path: &str, old: &str, found: &[(usize, &str)]) -> bool {
    let is_name = old.contains('_') || old.chars().any(char::is_uppercase);
    if is_name && !path.ends_with(".rs") && !path.ends_with(".md") {
        return false;
    }
    let mut found = found.iter().map(|(_, word)| *word);
    words(old).all(|wanted| {
        let same = |word: &str| match is_name {
            true => word == wanted,
            false => word.eq_ignore_ascii_case(wanted),
        };
        found.next().is_some_and(same)
    })
}

/// True where the parts of one name have the words of a sentence in a row.
fn is_within(old: &str, parts: &[String]) -> bool {
    let wanted: Vec<&str> = old.split(' ').collect();
    wanted.len() > 1 && parts.windows(wanted.len()).any(|row| row == wanted)
}

/// Whole names, as written: `Away` is no part of `AwayTeam`, nor is it `away`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c != '_' && !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[(&str, &str)] = &[
        ("Away", "ForwardedProposal"),
        ("comes to rest", "converges"),
        ("told", "seen"),
    ];

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(path, text, SAMPLE, &[("src/dns/", "told")])
    }

    #[test]
    fn words_that_were_given_up_are_found() {
        let text = "struct Away;\n/// It comes\n/// to rest far away.\nfn f(x: AwayTeam, away: u8)";
        assert_eq!(
            findings("src/a.rs", text),
            [
                "src/a.rs:1: not \"Away\" but ForwardedProposal",
                "src/a.rs:2: not \"comes to rest\" but converges",
            ]
        );
        assert_eq!(findings("D.md", "It comes and rests."), [""; 0]);
        assert_eq!(
            findings("D.md", "Comes to rest."),
            findings("D.md", "comes to\nrest")
        );
        // Other languages begin comments with such words.
        assert_eq!(findings("a.go", "// Away from here."), [""; 0]);
    }

    #[test]
    fn a_word_is_found_within_names() {
        for name in [
            "told",
            "Told",
            "is_told",
            "TOLD_WITHIN",
            "IsTold",
            "toldThem",
        ] {
            assert_eq!(
                findings("a.go", name),
                ["a.go:1: not \"told\" but seen"],
                "{name}"
            );
        }
        for name in ["it_comes_to_rest", "ComesToRest", "COMES_TO_REST"] {
            assert_eq!(
                findings("a.go", name),
                ["a.go:1: not \"comes to rest\" but converges"],
                "{name}"
            );
        }
        for name in ["comes_and_to_rest", "welcomes_to_rest", "comes_to"] {
            assert_eq!(findings("a.go", name), [""; 0], "{name}");
        }
        for name in ["untolds", "is_mantold", "toldest", "Mistold"] {
            assert_eq!(findings("a.go", name), [""; 0], "{name}");
        }
    }

    #[test]
    fn what_is_allowed_is_so_in_its_place_alone() {
        assert_eq!(findings("src/dns/client.rs", "told"), [""; 0]);
        assert_eq!(findings("src/dns/client.rs", "Away").len(), 1);
        assert_eq!(findings("src/dns.rs", "told").len(), 1);
        for (begin, _) in ALLOWED {
            assert!(super::super::source::exists(begin), "there is no {begin}");
        }
    }

    #[test]
    fn every_word_of_the_table_is_found() {
        for (old, _) in GIVEN_UP {
            assert!(!check("a.rs", old, GIVEN_UP, &[]).is_empty(), "{old}");
        }
    }
}
