//! Documents that name files: a file that was renamed shall not live on in them.

/// What a document may name by a path from the top of the checkout.
const TOPS: &[&str] = &[
    "src/",
    "tests/",
    "docs/",
    "scripts/",
    "compat-tests/",
    "proto/",
    "benches/",
    "fuzz/",
    ".ci/",
];

/// Paths in backquotes that do not exist.
pub fn check(name: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    let mut fenced = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        for quoted in line.split('`').skip(1).step_by(2) {
            let path = quoted.split([' ', ':']).next().unwrap_or_default();
            let named = TOPS.iter().any(|top| path.starts_with(top));
            if named && !exists(path) {
                findings.push(format!("{name}:{}: there is no {path}", at + 1));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_gone_is_found() {
        let text = "`src/a.rs`, `src/b.rs: f`, `put a`\n```\n`src/c.rs`\n```\n`scripts/x PART`";
        let found = check("D.md", text, |path| path == "src/a.rs");
        assert_eq!(
            found,
            [
                "D.md:1: there is no src/b.rs",
                "D.md:5: there is no scripts/x"
            ]
        );
    }
}
