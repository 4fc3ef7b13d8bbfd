//! Words that were given up for the field's own, and shall not come back: in code, in comments
//! and in documents.

/// What is no longer said, a name or some words in a row, and what is said instead.
pub const GIVEN_UP: &[(&str, &str)] = &[];

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

/// Whole names: `Away` is no part of `AwayTeam`, nor is it `away`.
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
