//! The form of a commit (`CONTRIBUTING.md`): `area: what changed` in at most 72 characters, an
//! empty line, and why. The newest commits are read where there is a history; sources alone, as in
//! a package, have none.

use std::path::Path;
use std::process::Command;

/// Commits up to this one were made before the form was checked.
const BASE: &str = "4672ebaa603ed798bdc3a0d9a44876b09892d02a";
/// Merges aside, so many are checked.
const NEWEST: &str = "20";
const MAX_SUBJECT_CHARS: usize = 72;

/// Between commits, and between the parts of one: no text has them.
const COMMIT_END: char = '\x1e';
const PART_END: char = '\x1f';

/// The newest commits as `check` reads them; none where git or the history is not there.
pub fn newest(top: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(top)
            .args(arguments)
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // Not the history of a repository that this one was unpacked into.
    git(&["rev-parse", "--show-prefix"]).filter(|prefix| prefix.trim().is_empty())?;
    let format = "--format=%h%x1f%s%x1f%b%x1e";
    let log = ["log", "--no-merges", "--max-count", NEWEST, format, "HEAD"];
    // A shallow clone may not have the base: then none of those that it has is checked.
    git(&[&log[..], &["--not", BASE]].concat())
}

/// What is wrong in commits, each with its hash, its subject and its body.
pub fn check(log: &str) -> Vec<String> {
    let commits = log.split(COMMIT_END).map(str::trim_start);
    let mut findings = Vec::new();
    for commit in commits.filter(|commit| !commit.is_empty()) {
        let mut parts = commit.splitn(3, PART_END);
        let mut part = || parts.next().unwrap_or_default().trim();
        let (hash, subject, body) = (part(), part(), part());
        // git's own, of which the first has a body of git's.
        if subject.starts_with("Revert \"") || subject.starts_with("fixup! ") {
            continue;
        }
        let mut find = |what: &str| findings.push(format!("commit {hash} ({subject}): {what}"));
        if subject.chars().count() > MAX_SUBJECT_CHARS {
            find("its subject has more than 72 characters");
        }
        let (areas, what) = subject.split_once(": ").unwrap_or_default();
        if !areas.split(", ").all(is_area) || what.trim().is_empty() {
            find("its subject is not `area: what changed`, the area in lower case");
        }
        if body.is_empty() {
            find("it has no body that says why");
        }
    }
    findings
}

/// A module, a directory or a document.
fn is_area(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-./".contains(c);
    text.starts_with(|c: char| c.is_ascii_lowercase() || c == '.') && text.chars().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(subject: &str, body: &str) -> Vec<String> {
        check(&format!(
            "abc{PART_END}{subject}{PART_END}{body}{COMMIT_END}\n"
        ))
    }

    #[test]
    fn the_form_of_a_commit_is_known() {
        let body = "It waited for the disk.\n";
        for subject in [
            "lease: a renewal does not wait for its checkpoint",
            "server, from_etcd: a start names the file",
            ".ci: runs: one more",
        ] {
            assert_eq!(findings(subject, body), [""; 0], "{subject}");
        }
        for subject in [
            "A renewal does not wait",
            "Lease: a renewal does not wait",
            "the lease: a renewal does not wait",
            "lease:",
            "lease: ",
            ": a renewal",
            "lease:a renewal",
            "",
        ] {
            assert_eq!(findings(subject, body).len(), 1, "{subject}");
        }
        let longest = format!("lease: {}", "é".repeat(65));
        assert_eq!(findings(&longest, body), [""; 0]);
        assert_eq!(findings(&format!("{longest}x"), body).len(), 1);
        assert_eq!(
            findings("lease: it renews", " \n"),
            ["commit abc (lease: it renews): it has no body that says why"]
        );
    }

    #[test]
    fn each_commit_is_checked() {
        let one = format!("a{PART_END}Wrong{PART_END}Why.\n{COMMIT_END}\n");
        assert_eq!(check(&one.repeat(3)).len(), 3);
        assert_eq!(check(""), [""; 0]);
    }
}
