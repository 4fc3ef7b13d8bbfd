//! Which top-level modules of the crate a file names: by `crate::`, and by `super::` far enough
//! up to leave its own.

use super::source::Source;
use super::tokens::{Placed, placed};

/// One mention of a top-level module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub module: String,
    pub line: usize,
    pub in_test: bool,
}

/// Every mention of a top-level module in a file, its own included.
pub fn imports(source: &Source) -> Vec<Import> {
    let tokens = placed(&source.text);
    let file = source.module();
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match root_path(&tokens, at, &file) {
            Some(behind) => {
                first_names(&tokens, behind, source.is_test(), &mut found);
                at = behind;
            }
            None => at += 1,
        }
    }
    found
}

/// Where a path that begins at `at` goes on behind the top of the crate.
fn root_path(tokens: &[Placed<'_>], at: usize, file: &[&str]) -> Option<usize> {
    let text = |at: usize| tokens.get(at).map_or("", |one| one.token.text);
    // A name within a longer path is not where the path begins.
    if at > 0 && text(at - 1) == "::" {
        return None;
    }
    if text(at) == "crate" && text(at + 1) == "::" {
        return Some(at + 2);
    }
    let mut behind = at;
    let mut up = 0;
    if text(behind) == "self" && text(behind + 1) == "::" {
        behind += 2;
    }
    while text(behind) == "super" && text(behind + 1) == "::" {
        up += 1;
        behind += 2;
    }
    let depth = file.len() + tokens[at].modules.len();
    (up > 0 && up >= depth).then_some(behind)
}

/// The names that follow: one, or the first of each path in braces.
fn first_names(tokens: &[Placed<'_>], at: usize, in_test_file: bool, found: &mut Vec<Import>) {
    let mut add = |one: &Placed<'_>| {
        if one.token.is_ident() {
            found.push(Import {
                module: one.token.text.to_owned(),
                line: one.token.line,
                in_test: in_test_file || one.in_test,
            });
        }
    };
    let Some(first) = tokens.get(at) else {
        return;
    };
    if first.token.text != "{" {
        add(first);
        return;
    }
    let mut depth = 0;
    let mut begins = false;
    for one in &tokens[at..] {
        match one.token.text {
            "{" => {
                depth += 1;
                begins = depth == 1;
            }
            "}" => {
                depth -= 1;
                if depth == 0 {
                    return;
                }
            }
            "," => begins = depth == 1,
            _ if begins => {
                add(one);
                begins = false;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(path: &str, text: &str) -> Vec<String> {
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let found = imports(&source);
        found.into_iter().map(|import| import.module).collect()
    }

    #[test]
    fn paths_from_the_top_are_found() {
        let text = "use crate::a::b; // crate::no\nfn f() -> crate::c::D { $crate::e::g() }\n\
                    use crate::{h, i::{j, k}, l as m}; pub(crate) struct S; other::crate::n();";
        assert_eq!(modules("src/x/y.rs", text), ["a", "c", "e", "h", "i", "l"]);
    }

    #[test]
    fn paths_upwards_are_followed() {
        let text = "use super::a; use super::super::b; use super::super::super::c;\n\
                    mod t { use super::super::d; use super::super::super::e; }";
        assert_eq!(modules("src/x/y.rs", text), ["b", "c", "e"]);
        assert_eq!(
            modules("src/x.rs", "use super::a; use self::super::{b, c};"),
            ["a", "b", "c"]
        );
        assert_eq!(
            modules("src/x/mod.rs", "use super::a; mod t { use super::b; }"),
            ["a"]
        );
    }
}
