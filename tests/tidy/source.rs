//! Finds the files that the rules are about.

use std::path::{Path, PathBuf};

/// One Rust file.
pub struct Source {
    /// From the top of the checkout, with `/`.
    pub path: String,
    pub text: String,
}

impl Source {
    /// Where the file's module is: `src/a/b.rs` and `src/a/b/mod.rs` are `["a", "b"]`.
    pub fn module(&self) -> Vec<&str> {
        let inside = self.path.split_once('/').map_or("", |(_, inside)| inside);
        let mut module: Vec<&str> = inside
            .strip_suffix(".rs")
            .unwrap_or(inside)
            .split('/')
            .collect();
        let last = module.last().copied();
        if last == Some("mod") || (module.len() == 1 && matches!(last, Some("lib" | "main"))) {
            module.pop();
        }
        module
    }

    /// True for a file that holds nothing but tests; fuzz targets are tests too.
    pub fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.starts_with("src/fuzz/")
            || self.module().contains(&"tests")
    }
}

/// The checkout.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file of the checkout.
pub fn text(path: &str) -> String {
    let full = top().join(path);
    std::fs::read_to_string(&full).unwrap_or_else(|error| panic!("{}: {error}", full.display()))
}

pub fn exists(path: &str) -> bool {
    top().join(path).exists()
}

/// The files of the crate.
pub fn crate_sources() -> Vec<Source> {
    below("src", &["rs"])
}

/// The files of this directory.
pub fn test_sources() -> Vec<Source> {
    below("tests", &["rs"])
}

/// Where there is text of the project's own, and what its files' names end in; "" for nothing.
const TEXTS: &[(&str, &[&str])] = &[
    ("src", &["rs", "txt"]),
    ("tests", &["rs"]),
    ("benches", &["rs"]),
    ("fuzz", &["rs", "toml"]),
    ("proto", &["proto"]),
    ("compat-tests", &["go", "md", "js", "py", "java", "rs", "c"]),
    ("scripts", &["", "sh"]),
    (
        "packaging",
        &[
            "", "sh", "service", "default", "yaml", "yml", "tpl", "install", "1",
        ],
    ),
    ("docs", &["md"]),
    (".ci", &[""]),
];

/// Such text at the top.
const AT_TOP: &[&str] = &["Cargo.toml", "deny.toml", "build.rs"];

/// Text of the project's own: code, scripts of tests, programs, documents.
pub fn texts() -> Vec<Source> {
    let at_top = AT_TOP.iter().map(|path| Source {
        path: (*path).to_owned(),
        text: text(path),
    });
    let found = TEXTS.iter().flat_map(|(dir, ends)| below(dir, ends));
    found.chain(at_top).collect()
}

/// Directories of what others made, or what a build did.
const NOT_OURS: &[&str] = &["target", "node_modules", "corpus", "artifacts"];

fn below(dir: &str, ends: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from(dir)];
    while let Some(dir) = dirs.pop() {
        let entries = std::fs::read_dir(top().join(&dir)).expect("a directory of the checkout");
        for entry in entries {
            let name = entry.expect("a directory entry").file_name();
            let path = dir.join(&name);
            let end = path.extension().unwrap_or_default();
            if top().join(&path).is_dir() {
                if !NOT_OURS.iter().any(|other| name == *other) {
                    dirs.push(path);
                }
            } else if ends.iter().any(|wanted| end == *wanted) {
                let path = path.to_str().expect("a name in UTF-8").to_owned();
                let text = text(&path);
                found.push(Source { path, text });
            }
        }
    }
    assert!(!found.is_empty(), "no file of {ends:?} below {dir}");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_of_every_kind() {
        let texts = texts();
        for path in [
            "src/lib.rs",
            "src/raft/testdata/elections.txt",
            "tests/tidy.rs",
            "compat-tests/harness/network.go",
            "scripts/test",
            "packaging/try",
            "packaging/debian/rules",
            "docs/OPERATIONS.md",
            "proto/peer.proto",
            ".ci/run",
            "Cargo.toml",
        ] {
            assert!(texts.iter().any(|text| text.path == path), "{path}");
        }
    }

    #[test]
    fn modules_follow_paths() {
        let module = |path: &str| {
            let source = Source {
                path: path.to_owned(),
                text: String::new(),
            };
            (source.module().join("::"), source.is_test())
        };
        assert_eq!(module("src/lib.rs"), (String::new(), false));
        assert_eq!(module("src/types.rs"), ("types".to_owned(), false));
        assert_eq!(module("src/a/mod.rs"), ("a".to_owned(), false));
        assert_eq!(module("src/a/main.rs"), ("a::main".to_owned(), false));
        assert_eq!(module("src/a/tests.rs"), ("a::tests".to_owned(), true));
        assert_eq!(module("src/a/tests/b.rs"), ("a::tests::b".to_owned(), true));
        assert_eq!(module("src/fuzz/peer.rs"), ("fuzz::peer".to_owned(), true));
        assert_eq!(module("tests/tidy.rs"), ("tidy".to_owned(), true));
    }
}
