//! No circles of imports between the files of `src/`: what a file needs can be read, and changed,
//! without what needs it.
//!
//! A file imports another where it names what the other defines, directly or through a re-export.
//! To declare a module, to name it without anything in it, and to hand its items on by `pub use`
//! is no import; to use in code what is handed on is one. Tests may import what they like.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::imports::{Kind, Mention};
use super::modules::{Modules, Target};
use super::source::Source;

/// Circles that are there still, each with all of its files. It is to become empty.
#[rustfmt::skip]
pub const KNOWN: &[&[&str]] = &[
];

/// The names that a file takes from another.
type Edges<'a> = BTreeMap<&'a str, BTreeMap<&'a str, BTreeSet<&'a str>>>;

fn edges<'a>(modules: &Modules<'a>) -> Edges<'a> {
    let mut edges = Edges::new();
    for (file, mention) in modules.mentions() {
        if let Some((other, name)) = imported(modules, mention)
            && other != file
        {
            let names = edges.entry(file).or_default().entry(other).or_default();
            names.insert(name);
        }
    }
    edges
}

/// The file that a mention needs, and the name that it has there.
fn imported<'a>(modules: &Modules<'a>, mention: &Mention<'a>) -> Option<(&'a str, &'a str)> {
    let target = modules.resolve(&mention.module, &mention.path)?;
    match (mention.kind, target) {
        (Kind::Use { visible: true, .. } | Kind::Glob { visible: true }, _) => None,
        (Kind::Glob { .. }, Target::Module(module)) => Some((modules.file_of(&module)?, "*")),
        (_, Target::Module(_)) => None,
        (Kind::Code { called }, Target::Item { file, name }) => {
            // A lower-case word alone is a variable or a field, called or not at all.
            let is_variable = mention.path.len() == 1 && name.starts_with(char::is_lowercase);
            (called || !is_variable).then_some((file, name))
        }
        (_, Target::Item { file, name }) => Some((file, name)),
    }
}

/// The largest sets of files that all reach each other.
fn circles<'a>(edges: &Edges<'a>) -> Vec<BTreeSet<&'a str>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> = edges
        .keys()
        .map(|file| (*file, reached_from(edges, file)))
        .collect();
    let mut found = BTreeSet::new();
    for (file, others) in &reached {
        if others.contains(file) {
            let back = |other: &&&str| reached.get(**other).is_some_and(|all| all.contains(file));
            found.insert(others.iter().filter(back).copied().collect());
        }
    }
    found.into_iter().collect()
}

fn reached_from<'a>(edges: &Edges<'a>, file: &str) -> BTreeSet<&'a str> {
    let next = |file: &str| {
        edges
            .get(file)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .copied()
    };
    let mut reached: BTreeSet<&str> = next(file).collect();
    let mut waiting: Vec<&str> = reached.iter().copied().collect();
    while let Some(file) = waiting.pop() {
        waiting.extend(next(file).filter(|other| reached.insert(other)));
    }
    reached
}

fn describe(circle: &BTreeSet<&str>, edges: &Edges<'_>) -> String {
    let mut text = format!("a circle of {} files:", circle.len());
    for file in circle {
        for (other, names) in edges.get(file).into_iter().flatten() {
            if circle.contains(other) {
                let names: Vec<&str> = names.iter().copied().collect();
                let _ = write!(text, "\n    {file} -> {other}: {}", names.join(", "));
            }
        }
    }
    text
}

/// Circles that `known` does not allow, and what it allows although it is not there.
pub fn check(sources: &[Source], known: &[&[&str]]) -> Vec<String> {
    let modules = Modules::read(sources);
    let edges = edges(&modules);
    let circles = circles(&edges);
    let known: Vec<BTreeSet<&str>> = known
        .iter()
        .map(|files| files.iter().copied().collect())
        .collect();
    let mut findings: Vec<String> = circles
        .iter()
        .filter(|circle| !known.contains(circle))
        .map(|circle| describe(circle, &edges))
        .collect();
    for files in known.iter().filter(|files| !circles.contains(files)) {
        let files: Vec<&str> = files.iter().copied().collect();
        findings.push(format!(
            "tests/tidy/circles.rs allows a circle that is not there, or not of these files: {}",
            files.join(", ")
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(files: &[(&str, &str)], known: &[&[&str]]) -> Vec<String> {
        let sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source {
                path: (*path).to_owned(),
                text: (*text).to_owned(),
            })
            .collect();
        check(&sources, known)
    }

    #[test]
    fn a_circle_is_found_with_its_edges() {
        let files = [
            ("src/a.rs", "use crate::b::{B, f}; use crate::d::D;"),
            ("src/b.rs", "fn f() { super::c::g(C) } use crate::c::C;"),
            ("src/c.rs", "pub struct C; pub fn g(x: crate::a::A) {}"),
            ("src/d.rs", "pub struct D;"),
            ("src/lib.rs", "pub mod a; pub mod b; pub mod c; pub mod d;"),
        ];
        let expected = "a circle of 3 files:\
                        \n    src/a.rs -> src/b.rs: B, f\
                        \n    src/b.rs -> src/c.rs: C, g\
                        \n    src/c.rs -> src/a.rs: A";
        assert_eq!(findings(&files, &[]), [expected]);
        let all: &[&str] = &["src/a.rs", "src/b.rs", "src/c.rs"];
        assert_eq!(findings(&files, &[all]), [""; 0]);
        assert_eq!(findings(&files, &[&all[..2]]).len(), 2);
        assert_eq!(findings(&files[..1], &[all]).len(), 1);
    }

    #[test]
    fn a_face_that_hands_on_is_in_no_circle() {
        let child = "use super::Other; pub struct Child; fn f(x: Parent) {} use super::Parent;";
        let other = "pub struct Other; pub const fn make() {}";
        for (face, circle) in [
            ("pub struct Parent; pub use child::Child;", false),
            ("pub struct Parent; pub(crate) use self::child::*;", false),
            (
                "pub struct Parent; pub use other::make; fn f() { make() }",
                false,
            ),
            (
                "pub struct Parent; pub use child::Child; fn f() { x.child(Y) }",
                false,
            ),
            ("pub struct Parent; use child::Child;", true),
            ("pub struct Parent(child::Child);", true),
            ("pub struct Parent(Child); pub use child::Child;", true),
            (
                "pub struct Parent; pub use child::*; impl From<Child> for X {}",
                true,
            ),
            ("pub use other::Other as Parent; use child::Child;", false),
            (
                "pub struct Parent; #[cfg(test)] mod tests { use super::child::Child; }",
                false,
            ),
        ] {
            let face = format!("mod child; mod other; pub use other::Other; {face}");
            let files = [
                ("src/a/mod.rs", face.as_str()),
                ("src/a/child.rs", child),
                ("src/a/other.rs", other),
            ];
            assert_eq!(findings(&files, &[]).len(), usize::from(circle), "{face}");
        }
    }

    #[test]
    fn a_circle_through_a_face_is_one_between_its_files() {
        let files = [
            ("src/a/mod.rs", "mod b; mod c; pub use b::B; pub use c::C;"),
            ("src/a/b.rs", "use super::C; pub struct B;"),
            ("src/a/c.rs", "pub struct C(super::B);"),
        ];
        let found = findings(&files, &[]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("a circle of 2 files:\n    src/a/b.rs -> src/a/c.rs: C"));
    }
}
