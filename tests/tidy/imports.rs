//! What a file names by a path: in `use` declarations and in code. A path is kept as it is
//! written; `modules.rs` finds what it leads to.

use super::source::Source;
use super::tokens::{Placed, placed};

/// One path, or one path of several in braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mention<'a> {
    /// The module around it, from the top of the crate.
    pub module: Vec<&'a str>,
    /// Its names, `crate`, `self` and `super` among them.
    pub path: Vec<&'a str>,
    pub line: usize,
    pub in_test: bool,
    pub kind: Kind<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// `use path;` and `use path as name;`: `visible` where others can name it from there.
    Use { name: &'a str, visible: bool },
    /// `use path::*;`
    Glob { visible: bool },
    /// A path in code: `called` where it is a macro's or a function's.
    Code { called: bool },
}

/// One mention of a top-level module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import<'a> {
    pub module: &'a str,
    pub line: usize,
    pub in_test: bool,
}

/// Every mention of a top-level module in a file, its own included.
pub fn imports(source: &Source) -> Vec<Import<'_>> {
    mentions(source)
        .iter()
        .filter_map(|mention| {
            let (base, rest) = rooted(&mention.module, &mention.path)?;
            let module = rest.first().filter(|_| base.is_empty())?;
            Some(Import {
                module,
                line: mention.line,
                in_test: mention.in_test,
            })
        })
        .collect()
}

/// Where a path begins that says so by `crate`, `self` or `super`, and the names behind that.
pub fn rooted<'a, 'p>(
    module: &[&'a str],
    path: &'p [&'a str],
) -> Option<(Vec<&'a str>, &'p [&'a str])> {
    let behind = path
        .iter()
        .take_while(|name| matches!(**name, "crate" | "self" | "super"))
        .count();
    let (start, rest) = path.split_at(behind);
    let mut base = match start.first()? {
        &"crate" => Vec::new(),
        _ => module.to_vec(),
    };
    for _ in start.iter().filter(|name| **name == "super") {
        base.pop();
    }
    Some((base, rest))
}

/// Every path in a file.
pub fn mentions(source: &Source) -> Vec<Mention<'_>> {
    let tokens = placed(&source.text);
    let mut reader = Reader {
        tokens: &tokens,
        file: source.module(),
        in_test_file: source.is_test(),
        found: Vec::new(),
    };
    let mut at = 0;
    while at < tokens.len() {
        at = reader.step(at);
    }
    reader.found
}

struct Reader<'t, 'a> {
    tokens: &'t [Placed<'a>],
    file: Vec<&'a str>,
    in_test_file: bool,
    found: Vec<Mention<'a>>,
}

impl<'a> Reader<'_, 'a> {
    fn text(&self, at: usize) -> &'a str {
        self.tokens.get(at).map_or("", |one| one.token.text)
    }

    fn before(&self, at: usize) -> &'a str {
        at.checked_sub(1).map_or("", |before| self.text(before))
    }

    fn is_ident(&self, at: usize) -> bool {
        self.tokens.get(at).is_some_and(|one| one.token.is_ident())
    }

    /// Reads what begins at `at`; where the next begins.
    fn step(&mut self, at: usize) -> usize {
        // `use<'a>` is no declaration.
        if self.text(at) == "use" && self.text(at + 1) != "<" {
            let visible = matches!(self.before(at), "pub" | ")");
            let leading = usize::from(self.text(at + 1) == "::");
            return self.tree(at + 1 + leading, &mut Vec::new(), visible);
        }
        let mut end = at + 1;
        if !self.is_ident(at) {
            return end;
        }
        let mut path = vec![self.text(at)];
        while self.text(end) == "::" && self.is_ident(end + 1) {
            path.push(self.text(end + 1));
            end += 2;
        }
        let before = self.before(at);
        let is_variable = before == "$" && path[0] != "crate";
        // Behind `::` and `.` stands what belongs to the type before.
        if !matches!(before, "::" | "." | "fn" | "mod") && !is_variable {
            let called = matches!(self.text(end), "(" | "!");
            self.add(at, path, Kind::Code { called });
        }
        end
    }

    /// Reads a tree of paths below `prefix`; where the next begins.
    fn tree(&mut self, mut at: usize, prefix: &mut Vec<&'a str>, visible: bool) -> usize {
        let outside = prefix.len();
        let first = at;
        loop {
            match self.text(at) {
                "::" => at += 1,
                "{" => {
                    at += 1;
                    while !matches!(self.text(at), "}" | "") {
                        at = self.tree(at, prefix, visible);
                        at += usize::from(self.text(at) == ",");
                    }
                    at += 1;
                    break;
                }
                "*" => {
                    self.add(first, prefix.clone(), Kind::Glob { visible });
                    at += 1;
                    break;
                }
                name if self.is_ident(at) && name != "as" => {
                    // Behind a name, `self` stands for it.
                    if name != "self" || prefix.is_empty() {
                        prefix.push(name);
                    }
                    at += 1;
                    if self.text(at) == "::" {
                        continue;
                    }
                    let mut name = prefix[prefix.len() - 1];
                    if self.text(at) == "as" {
                        name = self.text(at + 1);
                        at += 2;
                    }
                    self.add(first, prefix.clone(), Kind::Use { name, visible });
                    break;
                }
                // Not Rust, or a macro's pattern.
                _ => {
                    at += 1;
                    break;
                }
            }
        }
        prefix.truncate(outside);
        at
    }

    fn add(&mut self, at: usize, path: Vec<&'a str>, kind: Kind<'a>) {
        let one = &self.tokens[at];
        let mut module = self.file.clone();
        module.extend(&one.modules);
        self.found.push(Mention {
            module,
            path,
            line: one.token.line,
            in_test: self.in_test_file || one.in_test,
            kind,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn modules(path: &str, text: &str) -> Vec<String> {
        let source = source(path, text);
        let found = imports(&source);
        found.iter().map(|one| one.module.to_owned()).collect()
    }

    #[test]
    fn paths_from_the_top_are_found() {
        let text = "use crate::a::b; // crate::no\nfn f() -> crate::c::D { $crate::e::g() }\n\
                    use crate::{h, i::{j, k}, l as m}; pub(crate) struct S; other::crate::n();";
        assert_eq!(
            modules("src/x/y.rs", text),
            ["a", "c", "e", "h", "i", "i", "l"]
        );
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

    #[test]
    fn declarations_are_read_as_they_are_written() {
        let text = "pub(crate) use a::{self, b::C as D, e::*, f as _,};\nuse ::g; use h::*;\n\
                    fn i() -> impl J + use<'a> {} k.l::<M>();";
        let source = source("src/x.rs", text);
        let uses: Vec<String> = mentions(&source)
            .iter()
            .filter_map(|one| {
                let path = one.path.join("::");
                match one.kind {
                    Kind::Use { name, visible } => Some(format!("{path} as {name} {visible}")),
                    Kind::Glob { visible } => Some(format!("{path} * {visible}")),
                    Kind::Code { .. } => None,
                }
            })
            .collect();
        assert_eq!(
            uses,
            [
                "a as a true",
                "a::b::C as D true",
                "a::e * true",
                "a::f as _ true",
                "g as g false",
                "h * false",
            ]
        );
    }

    #[test]
    fn paths_in_code_are_read_to_their_end() {
        let text = "fn f(x: a::B) { c::d::<E>(x.g()); h!(i::J { k }); $m::n(); <O as P>::q(R()) }";
        let source = source("src/x.rs", text);
        let paths: Vec<String> = mentions(&source)
            .iter()
            .filter(|one| one.path.len() > 1 || matches!(one.kind, Kind::Code { called } if called))
            .map(|one| one.path.join("::"))
            .collect();
        assert_eq!(paths, ["a::B", "c::d", "h", "i::J", "R"]);
    }
}
