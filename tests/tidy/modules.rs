//! The modules of the crate without its tests, and which file defines what a path leads to. A
//! name that a module re-exports is followed to the file that it comes from.

use std::collections::{BTreeMap, BTreeSet};

use super::imports::{Kind, Mention, mentions, rooted};
use super::source::Source;
use super::tokens::placed;

/// Roots of crates beside the library: nothing can import them.
const OTHER_ROOTS: &[&str] = &["src/main.rs", "src/sim/main.rs"];

/// Re-exports of re-exports that are followed.
const MAX_STEPS: usize = 16;

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    Module(Vec<&'a str>),
    /// Something that a file defines.
    Item {
        file: &'a str,
        name: &'a str,
    },
}

/// The result of resolving a name in a module.
enum Found<'a> {
    Here(Target<'a>),
    /// It is imported from another crate.
    Elsewhere,
    Nothing,
}

#[derive(Default)]
struct Module<'a> {
    file: &'a str,
    items: BTreeSet<&'a str>,
    uses: BTreeMap<&'a str, Vec<Vec<&'a str>>>,
    globs: Vec<Vec<&'a str>>,
}

pub struct Modules<'a> {
    modules: BTreeMap<Vec<&'a str>, Module<'a>>,
    mentions: Vec<(&'a str, Mention<'a>)>,
}

impl<'a> Modules<'a> {
    pub fn read(sources: &'a [Source]) -> Self {
        let tests = test_modules(sources);
        let mut all = Self {
            modules: BTreeMap::new(),
            mentions: Vec::new(),
        };
        for source in sources {
            let module = source.module();
            let in_test = tests.iter().any(|test| module.starts_with(test));
            if !source.is_test() && !in_test && !OTHER_ROOTS.contains(&source.path.as_str()) {
                all.add(source);
            }
        }
        all
    }

    fn add(&mut self, source: &'a Source) {
        let file = source.path.as_str();
        self.module(file, source.module());
        let tokens = placed(&source.text);
        let text = |at: usize| tokens.get(at).map_or("", |one| one.token.text);
        let mut depth = 0usize;
        for (at, one) in tokens.iter().enumerate() {
            match one.token.text {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            if one.in_test {
                continue;
            }
            let mut path = source.module();
            path.extend(&one.modules);
            let module = self.module(file, path);
            if depth == one.modules.len()
                && let Some(name) = defined(one.token.text, text(at + 1), text(at + 2))
            {
                module.items.insert(name);
            }
        }
        for mention in mentions(source) {
            if mention.in_test {
                continue;
            }
            let module = self.module(file, mention.module.clone());
            match mention.kind {
                Kind::Use { name, .. } => {
                    let paths = module.uses.entry(name).or_default();
                    paths.push(mention.path.clone());
                }
                Kind::Glob { .. } => module.globs.push(mention.path.clone()),
                Kind::Code { .. } => {}
            }
            self.mentions.push((file, mention));
        }
    }

    fn module(&mut self, file: &'a str, path: Vec<&'a str>) -> &mut Module<'a> {
        self.modules.entry(path).or_insert_with(|| Module {
            file,
            ..Module::default()
        })
    }

    /// Everything that is named outside of tests, and the file that names it.
    pub fn mentions(&self) -> impl Iterator<Item = (&'a str, &Mention<'a>)> {
        self.mentions.iter().map(|(file, one)| (*file, one))
    }

    /// The file that a module's own text is in.
    pub fn file_of(&self, module: &[&'a str]) -> Option<&'a str> {
        self.modules.get(module).map(|module| module.file)
    }

    /// What `path` leads to from `module`; none where that is outside of the crate, or a local
    /// name.
    pub fn resolve(&self, module: &[&'a str], path: &[&'a str]) -> Option<Target<'a>> {
        match self.follow(module, path, MAX_STEPS) {
            Found::Here(target) => Some(target),
            Found::Elsewhere | Found::Nothing => None,
        }
    }

    fn follow(&self, module: &[&'a str], path: &[&'a str], steps: usize) -> Found<'a> {
        let (mut at, mut rest) = match rooted(module, path) {
            Some(start) => start,
            None => {
                let Some((first, rest)) = path.split_first() else {
                    return Found::Nothing;
                };
                match self.member(module, first, rest.is_empty(), steps) {
                    Found::Here(Target::Module(at)) => (at, rest),
                    found => return found,
                }
            }
        };
        while let Some((name, behind)) = rest.split_first() {
            match self.member(&at, name, behind.is_empty(), steps) {
                Found::Here(Target::Module(next)) => at = next,
                // What a macro makes is nowhere in the text.
                Found::Nothing => {
                    let item = self.file_of(&at).map(|file| Target::Item { file, name });
                    return item.map_or(Found::Nothing, Found::Here);
                }
                found => return found,
            }
            rest = behind;
        }
        Found::Here(Target::Module(at))
    }

    /// `name` in a module; `last` where nothing comes behind it, so that it may be no module.
    fn member(&self, at: &[&'a str], name: &'a str, last: bool, steps: usize) -> Found<'a> {
        let (Some(module), Some(steps)) = (self.modules.get(at), steps.checked_sub(1)) else {
            return Found::Nothing;
        };
        let item = module.items.contains(name).then_some(Target::Item {
            file: module.file,
            name,
        });
        let mut child = at.to_vec();
        child.push(name);
        let child = self
            .modules
            .contains_key(&child)
            .then_some(Target::Module(child));
        let uses = module.uses.get(name);
        let used = uses
            .into_iter()
            .flatten()
            .find_map(|path| match self.follow(at, path, steps) {
                Found::Here(target) => Some(target),
                Found::Elsewhere | Found::Nothing => None,
            });
        let (first, second) = match used {
            Some(Target::Module(_)) => (item, child.or(used)),
            _ => (item.or(used), child),
        };
        let found = if last {
            first.or(second)
        } else {
            second.or(first)
        };
        if let Some(target) = found {
            return Found::Here(target);
        }
        if uses.is_some() {
            return Found::Elsewhere;
        }
        for path in &module.globs {
            if let Found::Here(Target::Module(from)) = self.follow(at, path, steps)
                && from != at
                && let Found::Here(target) = self.member(&from, name, last, steps)
            {
                return Found::Here(target);
            }
        }
        Found::Nothing
    }
}

/// Modules in files of their own that only tests have.
fn test_modules(sources: &[Source]) -> Vec<Vec<&str>> {
    let mut found = Vec::new();
    for source in sources {
        let tokens = placed(&source.text);
        for three in tokens.windows(3) {
            let [word, name, end] = three else { continue };
            if word.in_test && word.token.text == "mod" && end.token.text == ";" {
                let mut module = source.module();
                module.extend(&word.modules);
                module.push(name.token.text);
                found.push(module);
            }
        }
    }
    found
}

/// What three tokens begin to define, if they do; modules aside.
fn defined<'a>(word: &str, second: &'a str, third: &'a str) -> Option<&'a str> {
    let name = match (word, second) {
        ("static", "mut") | ("macro_rules", "!") => third,
        ("const", "fn" | "unsafe" | "extern" | "async") => return None,
        ("struct" | "enum" | "union" | "trait" | "type" | "fn" | "const" | "static", second) => {
            second
        }
        _ => return None,
    };
    name.starts_with(|first: char| first == '_' || first.is_alphabetic())
        .then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where paths lead, in words.
    fn resolved(files: &[(&str, &str)], from: &str, path: &str) -> String {
        let sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source {
                path: (*path).to_owned(),
                text: (*text).to_owned(),
            })
            .collect();
        let modules = Modules::read(&sources);
        let module: Vec<&str> = from.split("::").collect();
        let path: Vec<&str> = path.split("::").collect();
        match modules.resolve(&module, &path) {
            None => "outside".to_owned(),
            Some(Target::Module(module)) => format!("module {}", module.join("::")),
            Some(Target::Item { file, name }) => format!("{file} {name}"),
        }
    }

    #[test]
    fn paths_lead_to_the_file_that_defines() {
        let files = [
            ("src/lib.rs", "pub mod a; pub mod b;"),
            (
                "src/a/mod.rs",
                "mod c; mod d; #[cfg(test)] mod fixture; pub use c::{Own, load}; pub use d::*; \
                 pub use other::Foreign; use crate::b::Deep as Renamed; struct Parent; \
                 pub mod edges { pub use super::c::Own as Edge; }",
            ),
            (
                "src/a/c.rs",
                "pub struct Own; pub fn load() {} impl Own { pub fn method() {} }",
            ),
            (
                "src/a/d.rs",
                "pub enum Globbed {} use super::c; made!(Made);",
            ),
            ("src/a/fixture.rs", "pub struct Fixture;"),
            ("src/a/tests/x.rs", "pub struct Test;"),
            (
                "src/b.rs",
                "pub use crate::a::Own as Again; pub struct Deep;",
            ),
            ("src/main.rs", "struct Main;"),
        ];
        for (from, path, expected) in [
            ("a::d", "super::Parent", "src/a/mod.rs Parent"),
            ("a::d", "super::Own", "src/a/c.rs Own"),
            ("a::d", "super::Own::method", "src/a/c.rs Own"),
            ("a::d", "c::load", "src/a/c.rs load"),
            ("a::d", "c", "module a::c"),
            ("a::d", "self::super::c", "module a::c"),
            ("a::d", "super::Renamed", "src/b.rs Deep"),
            ("a::d", "super::Foreign", "outside"),
            ("a::d", "unknown::X", "outside"),
            ("a", "c::Own", "src/a/c.rs Own"),
            ("a", "Globbed", "src/a/d.rs Globbed"),
            ("b", "crate::a::Globbed::One", "src/a/d.rs Globbed"),
            ("b", "crate::a::edges::Edge", "src/a/c.rs Own"),
            ("b", "crate::a::d::Made", "src/a/d.rs Made"),
            ("b", "Again", "src/a/c.rs Own"),
            ("b", "crate::a::fixture", "src/a/mod.rs fixture"),
        ] {
            assert_eq!(resolved(&files, from, path), expected, "{path} from {from}");
        }
    }

    #[test]
    fn a_module_and_an_item_may_share_a_name() {
        let files = [
            ("src/lib.rs", "mod a; mod b;"),
            ("src/a/mod.rs", "mod load; pub use load::load;"),
            ("src/a/load.rs", "pub fn load() {} pub struct X;"),
            ("src/b.rs", "use b::b; use c::d::c;"),
        ];
        assert_eq!(
            resolved(&files, "b", "crate::a::load"),
            "src/a/load.rs load"
        );
        assert_eq!(
            resolved(&files, "b", "crate::a::load::X"),
            "src/a/load.rs X"
        );
        assert_eq!(resolved(&files, "b", "b"), "outside");
        assert_eq!(resolved(&files, "b", "c"), "outside");
    }
}
