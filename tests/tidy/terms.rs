//! A word of several meanings stands beside one that says which: "snapshot" is raft's message, a
//! backup's file or a record of etcd's log (`docs/GLOSSARY.md`), so prose says "raft snapshot
//! message" or "etcd's snapshot file", and "checkpoint" or "received state" for what members send.

/// What makes it one of them, before and behind it.
const BEFORE: &[&str] = &["raft", "raft's", "etcd's", "rocksdb's"];
const BEHIND: &[&str] = &[
    "file", "files", "file's", "message", "messages", "metadata", "record", "records", "rpc",
];

/// The beginnings of paths where it has one meaning, etcd's: a backup's file, or a saved state in
/// etcd's log. The glossary names them, and is about the word.
pub const ALLOWED: &[&str] = &[
    "docs/GLOSSARY.md",
    "docs/KUBERNETES.md",
    "docs/MIGRATE.md",
    "docs/OPERATIONS.md",
    "src/backup/",
    "src/server/from_etcd/",
    "src/server/from_snapshot.rs",
];

/// Before it in a message of the program, where the word alone may be a command or a name.
const DETERMINERS: &[&str] = &[
    "a", "an", "another", "each", "every", "no", "of", "other", "that", "the", "this", "whole",
];

/// Where a text says "snapshot" and not which.
pub fn check(path: &str, text: &str, allowed: &[&str]) -> Vec<String> {
    if allowed.iter().any(|begin| path.starts_with(begin)) {
        return Vec::new();
    }
    let words = words(path, text);
    let at = |at: Option<usize>| at.and_then(|at| words.get(at)).map_or("", |word| word.text);
    let mut findings = Vec::new();
    for (number, word) in words.iter().enumerate() {
        let before = at(number.checked_sub(1)).to_lowercase();
        let behind = at(number.checked_add(1)).to_lowercase();
        let is_said = match word.text.to_lowercase().as_str() {
            // The name of an RPC, in a list of them.
            "snapshot" if word.text == "Snapshot" => DETERMINERS.contains(&&*before),
            "snapshot" => word.of == Prose::Text || DETERMINERS.contains(&&*before),
            "snapshots" => word.of == Prose::Text || !(before.is_empty() && behind.is_empty()),
            _ => false,
        };
        if is_said && !BEFORE.contains(&&*before) && !BEHIND.contains(&&*behind) {
            let (line, text) = (word.line, word.text);
            findings.push(format!(
                "{path}:{line}: \"{text}\" of what? docs/GLOSSARY.md has the words"
            ));
        }
    }
    findings
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Prose {
    /// Of a document, a comment or a scenario.
    Text,
    /// In quotation marks in code.
    Message,
}

/// A word; an empty one where what is before and behind it does not belong together.
struct Word<'a> {
    text: &'a str,
    line: usize,
    of: Prose,
}

fn words<'a>(path: &str, text: &'a str) -> Vec<Word<'a>> {
    let mut words = Vec::new();
    let mut is_fenced = false;
    for (at, line) in text.lines().enumerate() {
        is_fenced ^= path.ends_with(".md") && line.trim_start().starts_with("```");
        let parts = match is_fenced {
            true => Vec::new(),
            false => prose(path, line),
        };
        let gap = |of| Word {
            text: "",
            line: at + 1,
            of,
        };
        if parts.is_empty() {
            words.push(gap(Prose::Text));
        }
        for (part, of) in parts {
            // Between backquotes is code.
            for plain in part.split('`').step_by(2) {
                let is_word = |c: char| c.is_alphanumeric() || "_-'".contains(c);
                let found = plain.split(|c| !is_word(c)).filter(|word| !word.is_empty());
                words.extend(found.map(|text| Word { text, ..gap(of) }));
                if plain.len() < part.len() {
                    words.push(gap(of));
                }
            }
            if of == Prose::Message {
                words.push(gap(of));
            }
        }
    }
    words
}

/// What is written for people in a line: all of a document's, the sentence of a scenario, and of
/// code the comment or the messages.
fn prose<'a>(path: &str, line: &'a str) -> Vec<(&'a str, Prose)> {
    if path.ends_with(".md") {
        return vec![(line, Prose::Text)];
    }
    if path.ends_with(".txt") {
        let sentence = line.strip_prefix("## ").map(|text| (text, Prose::Text));
        return sentence.into_iter().collect();
    }
    let code = line.trim_start();
    if code.starts_with("//") {
        return vec![(code, Prose::Text)];
    }
    let quoted = line.split('"').skip(1).step_by(2);
    quoted.map(|message| (message, Prose::Message)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<String> {
        check(path, text, &["src/etcd/"])
    }

    #[test]
    fn a_word_alone_is_found() {
        for text in [
            "/// Takes a snapshot.",
            "//! Snapshots\n//! between members.",
            "    // The newest snapshot, of which",
            "f(\"sent a snapshot\")",
            "f(\"snapshots under way\")",
        ] {
            assert_eq!(lines("src/a.rs", text).len(), 1, "{text}");
        }
        assert_eq!(
            lines("D.md", "one\nthe snapshot"),
            ["D.md:2: \"snapshot\" of what? docs/GLOSSARY.md has the words"]
        );
        assert_eq!(lines("a.txt", "## A snapshot comes.").len(), 1);
        assert_eq!(lines("src/etcd/log.rs", "// a snapshot"), [""; 0]);
    }

    #[test]
    fn what_says_which_is_none() {
        for text in [
            "// a raft snapshot\n// message",
            "// raft's snapshot metadata, etcd's snapshot, RocksDB's snapshots",
            "// a snapshot file",
            "// `--snapshot-count`, the `Snapshot` RPC, --snapshot-count",
            "let snapshot = f(\"snapshot\", \"snapshots\", \"{id} snapshot as of\");",
            "fn a_snapshot() {}",
        ] {
            assert_eq!(lines("src/a.rs", text), [""; 0], "{text}");
        }
        assert_eq!(lines("D.md", "```\na snapshot\n```"), [""; 0]);
        assert_eq!(lines("a.txt", "snapshot 1\n1 is sent a snapshot"), [""; 0]);
    }

    #[test]
    fn what_is_allowed_exists() {
        for begin in ALLOWED {
            assert!(super::super::source::exists(begin), "there is no {begin}");
        }
    }
}
