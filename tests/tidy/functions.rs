//! How long a function may be: it fits on a screen. Tests may be as long as they like.

use super::source::Source;
use super::tokens::{Placed, placed};

/// Lines from `fn` to the last brace.
const MAX_LINES: usize = 80;

/// Functions that are longer still: a file and a name each. It is to become empty.
pub const KNOWN: &[(&str, &str)] = &[];

struct Function<'a> {
    name: &'a str,
    line: usize,
    lines: usize,
}

/// Functions that are too long and not in `known`, and what `known` allows without need.
pub fn check(sources: &[Source], known: &[(&str, &str)]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut used = vec![false; known.len()];
    for source in sources.iter().filter(|source| !source.is_test()) {
        for function in functions(&placed(&source.text)) {
            let Function { name, line, lines } = function;
            if lines <= MAX_LINES {
                continue;
            }
            let allowed = known.iter().position(|one| *one == (&source.path, name));
            match allowed {
                Some(at) => used[at] = true,
                None => findings.push(format!(
                    "{}:{line}: {name} has {lines} lines; {MAX_LINES} are the limit",
                    source.path
                )),
            }
        }
    }
    for ((path, name), _) in known.iter().zip(used).filter(|(_, used)| !used) {
        findings.push(format!(
            "tests/tidy/functions.rs allows {name} of {path} to be long, and it is not"
        ));
    }
    findings
}

/// The functions with a body outside of tests.
fn functions<'a>(tokens: &[Placed<'a>]) -> Vec<Function<'a>> {
    let mut found = Vec::new();
    for (at, pair) in tokens.windows(2).enumerate() {
        let [word, name] = pair else { continue };
        if word.token.text != "fn" || !name.token.is_ident() || word.in_test {
            continue;
        }
        if let Some(end) = last_line(&tokens[at..]) {
            found.push(Function {
                name: name.token.text,
                line: word.token.line,
                lines: end + 1 - word.token.line,
            });
        }
    }
    found
}

/// The line on which the body ends; none where there is no body.
fn last_line(tokens: &[Placed<'_>]) -> Option<usize> {
    let mut parentheses = 0usize;
    let mut braces = 0usize;
    for one in tokens {
        match one.token.text {
            "(" | "[" => parentheses += 1,
            ")" | "]" => parentheses = parentheses.saturating_sub(1),
            ";" if parentheses == 0 && braces == 0 => return None,
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                if braces == 0 && parentheses == 0 {
                    return Some(one.token.line);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str, known: &[(&str, &str)]) -> Vec<String> {
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        check(&[source], known)
    }

    fn function(name: &str, lines: usize) -> String {
        format!(
            "fn {name}(x: [u8; 2]) {{\n{}}}\n",
            "f();\n".repeat(lines - 2)
        )
    }

    #[test]
    fn long_functions_are_found() {
        let fits = function("fits", MAX_LINES);
        let long = function("long", MAX_LINES + 1);
        assert_eq!(findings("src/a.rs", &fits, &[]), [""; 0]);
        assert_eq!(
            findings("src/a.rs", &format!("{fits}{long}"), &[]),
            ["src/a.rs:81: long has 81 lines; 80 are the limit"]
        );
        let many = "fn f() { g(|| { h }) }\n".repeat(200);
        assert_eq!(findings("src/a.rs", &many, &[]), [""; 0]);
        let without_body = format!("trait T {{\n{}}}", "fn f(x: [u8; 2]);\n".repeat(200));
        assert_eq!(findings("src/a.rs", &without_body, &[]), [""; 0]);
    }

    #[test]
    fn tests_may_be_long() {
        let long = function("long", MAX_LINES + 1);
        assert_eq!(findings("src/a/tests.rs", &long, &[]), [""; 0]);
        let inside = format!("#[cfg(test)]\nmod tests {{ {long} }}");
        assert_eq!(findings("src/a.rs", &inside, &[]), [""; 0]);
    }

    #[test]
    fn allowances_are_about_what_is_there() {
        let long = function("long", MAX_LINES + 1);
        assert_eq!(
            findings("src/a.rs", &long, &[("src/a.rs", "long")]),
            [""; 0]
        );
        assert_eq!(
            findings("src/a.rs", &long, &[("src/b.rs", "long")]).len(),
            2
        );
        let fits = function("long", MAX_LINES);
        assert_eq!(
            findings("src/a.rs", &fits, &[("src/a.rs", "long")]).len(),
            1
        );
    }
}
