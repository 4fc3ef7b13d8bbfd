//! What no release holds: engines and disks in memory, the simulator, the fuzz targets, failpoints,
//! and what the benches see of the crate.
//!
//! Each is declared under a condition that is false in a release; the compiler sees to it that
//! nothing in a release names it.

use super::source::Source;

const IN_MEMORY: &str = r#"#[cfg(any(test, feature = "in-memory"))]"#;

/// A file, a line in it that begins a declaration, and the condition right above it.
pub const ABSENT: &[(&str, &str, &str)] = &[
    ("src/storage/mod.rs", "pub mod memory;", IN_MEMORY),
    ("src/storage/raft_log/mod.rs", "mod memory;", IN_MEMORY),
    ("src/env.rs", "pub struct ManualClock", "#[cfg(test)]"),
    (
        "src/state/mod.rs",
        "pub mod model;",
        r#"#[cfg(any(test, feature = "simulation"))]"#,
    ),
    (
        "src/lib.rs",
        "pub(crate) mod sim;",
        r#"#[cfg(any(test, feature = "simulation"))]"#,
    ),
    (
        "src/lib.rs",
        "pub mod fuzz;",
        r#"#[cfg(any(test, feature = "fuzzing"))]"#,
    ),
    (
        "src/profile/mod.rs",
        "pub mod counting;",
        r#"#[cfg(any(test, feature = "fuzzing"))]"#,
    ),
    (
        "src/server/mod.rs",
        "pub mod failpoints;",
        r#"#[cfg(any(test, feature = "failpoints"))]"#,
    ),
    (
        "src/failpoints.rs",
        "mod on {",
        r#"#[cfg(feature = "failpoints")]"#,
    ),
    (
        "src/lib.rs",
        "pub mod bench;",
        r#"#[cfg(feature = "bench")]"#,
    ),
];

/// All that programs, benches and fuzz targets see of the crate, which the compiler cannot tell to be
/// unused.
const FACE: (&str, &[&str]) = ("src/lib.rs", &["bench", "fuzz", "program"]);

/// What else the crate shows.
pub fn check_face(sources: &[Source]) -> Vec<String> {
    let (path, face) = FACE;
    let source = sources.iter().find(|source| source.path == path);
    let lines = source.map_or("", |source| source.text.as_str()).lines();
    let shown = lines.filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut findings: Vec<String> = Vec::new();
    for name in shown.filter(|name| !face.contains(name)) {
        findings.push(format!(
            "{path}: pub(crate) mod {name}: dead code in what is public is never found"
        ));
    }
    findings
}

/// Declarations without their condition, and features that a release has without asking for them.
pub fn check(sources: &[Source], manifest: &str, absent: &[(&str, &str, &str)]) -> Vec<String> {
    let mut findings = Vec::new();
    for (path, declaration, condition) in absent {
        let source = sources.iter().find(|source| source.path == *path);
        let lines: Vec<&str> = source.map_or(Vec::new(), |source| source.text.lines().collect());
        let at = lines.iter().position(|line| line.starts_with(declaration));
        let Some(at) = at else {
            findings.push(format!("{path}: there is no \"{declaration}\""));
            continue;
        };
        let mut above = lines[..at].iter().rev();
        let mut attributes = above.by_ref().take_while(|line| line.starts_with("#["));
        if !attributes.any(|line| line == condition) {
            findings.push(format!(
                "{path}:{}: \"{declaration}\" lacks {condition}: it would be in a release",
                at + 1
            ));
        }
    }
    let mut features = manifest
        .lines()
        .skip_while(|line| *line != "[features]")
        .skip(1)
        .take_while(|line| !line.starts_with('['));
    if features.any(|line| line.starts_with("default")) {
        findings.push("Cargo.toml: a release has no features".to_owned());
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str, manifest: &str) -> Vec<String> {
        let source = Source {
            path: "src/a.rs".to_owned(),
            text: text.to_owned(),
        };
        check(
            &[source],
            manifest,
            &[("src/a.rs", "mod b;", "#[cfg(test)]")],
        )
    }

    #[test]
    fn what_lacks_its_condition_is_found() {
        assert_eq!(findings("#[cfg(test)]\nmod b;", ""), [""; 0]);
        assert_eq!(findings("#[cfg(test)]\n#[path]\nmod b;", ""), [""; 0]);
        for text in [
            "mod b;",
            "#[cfg(test)]\nmod a;\nmod b;",
            "#[cfg(any(test, x))]\nmod b;",
            "#[cfg(test)]\nmod c;",
        ] {
            assert_eq!(findings(text, "").len(), 1, "{text}");
        }
    }

    #[test]
    fn what_is_public_and_no_part_of_the_face_is_found() {
        for (text, expected) in [
            ("pub mod program;\npub(crate) mod net;", 0),
            ("pub mod program;\npub mod net;", 1),
        ] {
            let source = Source {
                path: "src/lib.rs".to_owned(),
                text: text.to_owned(),
            };
            assert_eq!(check_face(&[source]).len(), expected, "{text}");
        }
    }

    #[test]
    fn features_of_a_release_are_found() {
        let text = "#[cfg(test)]\nmod b;";
        let manifest = "[features]\nsimulation = []\n[dependencies]\ndefault = \"1\"";
        assert_eq!(findings(text, manifest), [""; 0]);
        let manifest = "[features]\nx = []\ndefault = [\"x\"]\n";
        assert_eq!(findings(text, manifest).len(), 1);
    }
}
