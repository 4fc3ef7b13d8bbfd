//! How a file looks from outside: its head, its size, and what it and its types are called.

use super::source::Source;
use super::tokens::placed;

/// Lines that a file may have without its tests.
const MAX_LINES: usize = 600;
/// A file that has more says why in its head, in a sentence that begins so.
const EXCUSE: &str = "Long because";

/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &[
    "manager", "managers", "helper", "helpers", "util", "utils", "common", "inner", "misc",
];

/// What is wrong with a file.
pub fn check(source: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    let path = &source.path;
    let head: String = source
        .text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .collect();
    if head.is_empty() {
        findings.push(format!(
            "{path}:1: no head: a module begins with //! and says what it is for"
        ));
    }
    let lines = lines_without_tests(source);
    if lines > MAX_LINES && !head.contains(EXCUSE) {
        findings.push(format!(
            "{path}: {lines} lines without tests; {MAX_LINES} are the limit, or the head says \"{EXCUSE} ...\""
        ));
    }
    for (line, name) in names(source) {
        if let Some(word) = words(&name)
            .into_iter()
            .find(|word| EMPTY_NAMES.contains(&word.as_str()))
        {
            findings.push(format!("{path}:{line}: \"{word}\" in {name} says nothing"));
        }
    }
    findings
}

fn lines_without_tests(source: &Source) -> usize {
    if source.is_test() {
        return 0;
    }
    let tokens = placed(&source.text);
    let first_test = tokens
        .iter()
        .find(|one| one.in_test && one.modules.last() == Some(&"tests"));
    first_test.map_or(source.text.lines().count(), |one| one.token.line - 1)
}

/// The names of the file's directories, of itself, and of its types and modules.
fn names(source: &Source) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = source
        .module()
        .into_iter()
        .map(|name| (1, name.to_owned()))
        .collect();
    let tokens = placed(&source.text);
    for pair in tokens.windows(2) {
        let declares = matches!(
            pair[0].token.text,
            "struct" | "enum" | "trait" | "type" | "mod" | "union"
        );
        if declares && pair[1].token.is_ident() {
            found.push((pair[1].token.line, pair[1].token.text.to_owned()));
        }
    }
    found
}

/// The words of a name in any case, in small letters: `read_index`, `ReadIndex` and `READ_INDEX`
/// have the same.
pub fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = '_';
    let mut rest = name.chars().peekable();
    while let Some(c) = rest.next() {
        let ends_capitals = rest.peek().is_some_and(|next| next.is_lowercase());
        if c == '_' || c.is_uppercase() && (!before.is_uppercase() || ends_capitals) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c != '_') {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(&Source {
            path: path.to_owned(),
            text: text.to_owned(),
        })
    }

    #[test]
    fn heads_are_asked_for() {
        assert_eq!(findings("src/a.rs", "//! A.\nuse b;"), [""; 0]);
        assert_eq!(findings("src/a.rs", "// A.\nuse b;").len(), 1);
        assert_eq!(findings("src/a.rs", "").len(), 1);
    }

    #[test]
    fn sizes_are_counted_without_tests() {
        let lines = |head: &str, count: usize, tail: &str| {
            let body = "fn f() {}\n".repeat(count);
            findings("src/a.rs", &format!("//! {head}\n{body}{tail}")).len()
        };
        let tests = format!(
            "#[cfg(test)]\nmod tests {{\n{}}}\n",
            "fn t() {}\n".repeat(700)
        );
        assert_eq!(lines("A.", MAX_LINES - 1, ""), 0);
        assert_eq!(lines("A.", MAX_LINES, ""), 1);
        assert_eq!(lines("A. Long because of B.", MAX_LINES, ""), 0);
        assert_eq!(lines("A.", 100, &tests), 0);
        assert_eq!(lines("A.", MAX_LINES, &tests), 1);
        let long = format!("//! A.\n{}", "fn f() {}\n".repeat(700));
        assert_eq!(findings("src/a/tests/b.rs", &long), [""; 0]);
    }

    #[test]
    fn empty_names_are_found() {
        assert_eq!(findings("src/util.rs", "//! A.").len(), 1);
        assert_eq!(findings("src/common/a.rs", "//! A.").len(), 1);
        assert_eq!(
            findings(
                "src/a.rs",
                "//! A.\nstruct LeaseManager;\nmod log_helpers {}"
            )
            .len(),
            2
        );
        let fine = "//! A.\nstruct Winner; fn inner() {} impl X for manager::Y {} enum Commonly {}";
        assert_eq!(findings("src/a.rs", fine), [""; 0]);
    }
}
