//! Words that were given up for the field's own, and shall not come back: in code, in comments
//! and in documents.

/// What is no longer said, a name or some words in a row, and what is said instead.
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
    ("Told", "what was reported, announced or answered"),
    ("crate::node", "crate::replica or crate::service"),
    ("doubts", "leader_suspected_at"),
    ("parked", "queued"),
    ("probe::Path", "CoveragePoint"),
    ("stand_in", "fixture"),
    ("wires", "network"),
    // Sentences.
    ("a lone member", "a single member"),
    ("A lone member", "A single member"),
    ("befall", "faults are injected"),
    ("befalls", "faults are injected"),
    ("befell", "faults were injected"),
    ("by a hasher without chance in it", "a deterministic hasher"),
    ("come to rest", "converge"),
    ("comes to rest", "converges"),
    ("came to rest", "converged"),
    ("ended without a word", "exited without a result"),
    ("from hand to hand", "transferred"),
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
    ("lone member", "single-member"),
    ("nobody was told of", "not acknowledged"),
    ("raft does not want", "raft rejects"),
    ("strangers", "unlisted peers"),
    ("told", "announced, answered, reported or seen"),
    ("what 0 and nothing stand for", "defaults"),
    ("Whoever", "the caller, the reader, the member"),
    ("whoever", "the caller, the reader, the member"),
];

/// Where a text says what was given up.
pub fn check(path: &str, text: &str, given_up: &[(&str, &str)]) -> Vec<String> {
    let found: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .flat_map(|(at, line)| words(line).map(move |word| (at + 1, word)))
        .collect();
    let mut findings = Vec::new();
    for (old, new) in given_up {
        let wanted: Vec<&str> = words(old).collect();
        for row in found.windows(wanted.len()) {
            if row.iter().map(|(_, word)| word).eq(&wanted) {
                let line = row[0].0;
                findings.push(format!("{path}:{line}: not \"{old}\" but {new}"));
            }
        }
    }
    findings
}

/// Whole names, as written: `Away` is no part of `AwayTeam`, nor is it `away`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c != '_' && !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_were_given_up_are_found() {
        let given_up = [
            ("Away", "ForwardedProposal"),
            ("comes to rest", "converges"),
        ];
        let text = "struct Away;\n/// It comes\n/// to rest far away.\nfn f(x: AwayTeam, away: u8)";
        assert_eq!(
            check("src/a.rs", text, &given_up),
            [
                "src/a.rs:1: not \"Away\" but ForwardedProposal",
                "src/a.rs:2: not \"comes to rest\" but converges",
            ]
        );
        assert_eq!(check("D.md", "It comes and rests.", &given_up), [""; 0]);
    }
}
