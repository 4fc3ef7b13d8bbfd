//! The licences of the dependencies, held against `deny.toml`, and its exceptions for advisories,
//! held against the lock file. Without a network: what an advisory says is for `cargo deny`, which
//! reads the same file.

use std::process::Command;

use serde_json::Value;

/// What `deny.toml` allows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Deny {
    /// Licences.
    pub allow: Vec<String>,
    /// Of each advisory that is put up with: id and reason.
    pub ignore: Vec<(String, String)>,
}

impl Deny {
    /// Reads the two lists, one entry a line; that is all of TOML that the file uses for them.
    pub fn read(text: &str) -> Self {
        let mut deny = Self::default();
        let mut place = (String::new(), String::new());
        for line in text.lines() {
            let line = line.trim();
            if let Some(section) = line.strip_prefix('[').filter(|_| line.ends_with(']')) {
                place = (section.trim_end_matches(']').to_owned(), String::new());
            } else if let Some(key) = line.strip_suffix("= [") {
                place.1 = key.trim().to_owned();
            } else if line.starts_with(']') {
                place.1.clear();
            } else if !line.starts_with('#') {
                let strings: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
                match ((place.0.as_str(), place.1.as_str()), strings.as_slice()) {
                    (("licenses", "allow"), [licence]) => deny.allow.push((*licence).to_owned()),
                    (("advisories", "ignore"), [id, reason]) => {
                        deny.ignore.push(((*id).to_owned(), (*reason).to_owned()));
                    }
                    _ => {}
                }
            }
        }
        deny
    }
}

/// What cargo knows of all packages of this platform's build.
pub fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        .args(["--filter-platform", &host()])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn host() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

/// Packages whose licence is not allowed, and licences that no package needs.
pub fn check(deny: &Deny, metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let mut findings = Vec::new();
    if packages.is_empty() {
        findings.push("cargo metadata lists no packages".to_owned());
    }
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or_default();
        match Expression::parse(licence) {
            Some(expression) if expression.holds(&deny.allow) => {}
            Some(_) => findings.push(format!("{name}: {licence} is not allowed by deny.toml")),
            None => findings.push(format!("{name}: its licence \"{licence}\" cannot be read")),
        }
    }
    for licence in &deny.allow {
        let used = packages.iter().any(|package| {
            let expression = package["license"].as_str().and_then(Expression::parse);
            expression.is_some_and(|expression| expression.names(licence))
        });
        if !used {
            findings.push(format!("deny.toml allows {licence}, which nothing has"));
        }
    }
    findings
}

/// Exceptions for advisories whose reason does not begin with a package of the lock file.
pub fn check_advisories(deny: &Deny, lock: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if deny.ignore.is_empty() {
        findings.push("deny.toml has no exception, or none that can be read".to_owned());
    }
    for (id, reason) in &deny.ignore {
        let package = reason.split(' ').next().unwrap_or_default();
        let entry = format!("name = \"{package}\"");
        if !lock.lines().any(|line| line == entry) {
            findings.push(format!(
                "deny.toml: {id} is about {package}, which is not in Cargo.lock"
            ));
        }
    }
    findings
}

/// A licence as packages state it.
#[derive(Debug, PartialEq, Eq)]
enum Expression {
    Licence(String),
    Any(Vec<Expression>),
    All(Vec<Expression>),
}

impl Expression {
    /// Reads an SPDX expression, and the old way to write OR as a slash.
    fn parse(text: &str) -> Option<Self> {
        let spaced = text
            .replace('(', " ( ")
            .replace(')', " ) ")
            .replace('/', " OR ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let mut rest = words.as_slice();
        let expression = Self::any(&mut rest)?;
        rest.is_empty().then_some(expression)
    }

    fn any(rest: &mut &[&str]) -> Option<Self> {
        let mut parts = vec![Self::all(rest)?];
        while rest.first() == Some(&"OR") {
            *rest = &rest[1..];
            parts.push(Self::all(rest)?);
        }
        if parts.len() == 1 {
            return parts.pop();
        }
        Some(Self::Any(parts))
    }

    fn all(rest: &mut &[&str]) -> Option<Self> {
        let mut parts = vec![Self::one(rest)?];
        while rest.first() == Some(&"AND") {
            *rest = &rest[1..];
            parts.push(Self::one(rest)?);
        }
        if parts.len() == 1 {
            return parts.pop();
        }
        Some(Self::All(parts))
    }

    fn one(rest: &mut &[&str]) -> Option<Self> {
        let (first, tail) = rest.split_first()?;
        *rest = tail;
        if *first == "(" {
            let expression = Self::any(rest)?;
            let (close, tail) = rest.split_first()?;
            *rest = tail;
            return (*close == ")").then_some(expression);
        }
        if matches!(*first, ")" | "OR" | "AND" | "WITH") {
            return None;
        }
        let mut licence = (*first).to_owned();
        if let [with, exception, tail @ ..] = rest
            && *with == "WITH"
        {
            licence = format!("{licence} WITH {exception}");
            *rest = tail;
        }
        Some(Self::Licence(licence))
    }

    fn holds(&self, allowed: &[String]) -> bool {
        match self {
            Self::Licence(licence) => allowed.contains(licence),
            Self::Any(parts) => parts.iter().any(|part| part.holds(allowed)),
            Self::All(parts) => parts.iter().all(|part| part.holds(allowed)),
        }
    }

    fn names(&self, wanted: &str) -> bool {
        match self {
            Self::Licence(licence) => licence == wanted,
            Self::Any(parts) | Self::All(parts) => parts.iter().any(|part| part.names(wanted)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: &str = r#"
# "Nothing"
[licenses]
allow = [
    # "Comment"
    "MIT",
    "Zlib", # "why": two strings more
    "ISC",
]
[advisories]
ignore = [
    { id = "RUSTSEC-1", reason = "left-pad is old" },
]
"#;

    #[test]
    fn the_file_s_lists_are_read() {
        let deny = Deny::read(DENY);
        assert_eq!(deny.allow, ["MIT", "ISC"]);
        assert_eq!(
            deny.ignore,
            [("RUSTSEC-1".to_owned(), "left-pad is old".to_owned())]
        );
    }

    #[test]
    fn expressions_are_weighed() {
        let allowed = ["MIT".to_owned(), "Unicode-3.0".to_owned()];
        let holds = |text: &str| Expression::parse(text).map(|e| e.holds(&allowed));
        for text in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "GPL-3.0 AND X OR MIT",
        ] {
            assert_eq!(holds(text), Some(true), "{text}");
        }
        for text in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "MIT WITH exception",
            "(GPL-3.0 OR X) AND MIT",
        ] {
            assert_eq!(holds(text), Some(false), "{text}");
        }
        for text in ["", "MIT OR", "(MIT", "MIT MIT", "AND", "MIT)"] {
            assert_eq!(holds(text), None, "{text}");
        }
    }

    #[test]
    fn findings_are_named() {
        let package =
            |name: &str, licence: &str| serde_json::json!({"name": name, "license": licence});
        let metadata = serde_json::json!({"packages": [
            package("a", "MIT"), package("b", "GPL-3.0"), package("c", ""),
        ]});
        let found = check(&Deny::read(DENY), &metadata);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("b: GPL-3.0"), "{found:?}");
        assert!(found[1].starts_with("c: "), "{found:?}");
        assert!(found[2].contains("ISC"), "{found:?}");
        assert!(!check(&Deny::default(), &Value::Null).is_empty());
    }

    #[test]
    fn stale_exceptions_are_found() {
        let deny = Deny::read(DENY);
        assert_eq!(check_advisories(&deny, "name = \"left-pad\"\n"), [""; 0]);
        assert_eq!(
            check_advisories(&deny, "name = \"left-padding\"\n").len(),
            1
        );
        assert_eq!(check_advisories(&Deny::default(), "").len(), 1);
    }
}
