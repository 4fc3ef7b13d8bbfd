//! The layers of the crate: which module may name which.

use std::collections::BTreeSet;

use super::imports::imports;
use super::source::Source;

/// A module, its layer, and the modules above layer 0 that it may name beside itself.
struct Module {
    name: &'static str,
    layer: u8,
    may: &'static [&'static str],
}

const fn module(name: &'static str, layer: u8, may: &'static [&'static str]) -> Module {
    Module { name, layer, may }
}

/// docs/ARCHITECTURE.md shows this table to people. Layer 0 is open to all.
const MODULES: &[Module] = &[
    module("types", 0, &[]),
    module("error", 0, &[]),
    module("env", 0, &[]),
    module("proto", 0, &[]),
    module("metrics", 0, &[]),
    module("budget", 0, &[]),
    module("notices", 0, &[]),
    module("probe", 0, &[]),
    module("failpoints", 0, &[]),
    module("profile", 0, &[]),
    module("trace", 0, &[]),
    module("script", 0, &[]),
    module("config", 1, &[]),
    module("net", 1, &[]),
    module("storage", 1, &[]),
    module("mvcc", 2, &["storage"]),
    module("raft", 2, &["storage"]),
    module("state", 3, &["mvcc", "storage"]),
    module("watch", 3, &["mvcc", "storage"]),
    module("backup", 4, &["state", "mvcc", "storage"]),
    module("transport", 4, &["net", "raft"]),
    module("lessor", 4, &["state"]),
    module(
        "replica",
        5,
        &[
            "lessor",
            "transport",
            "state",
            "watch",
            "mvcc",
            "raft",
            "storage",
        ],
    ),
    module(
        "service",
        6,
        &[
            "backup",
            "replica",
            "transport",
            "state",
            "watch",
            "mvcc",
            "raft",
            "storage",
            "config",
        ],
    ),
    module(
        "jobs",
        7,
        &[
            "service",
            "replica",
            "lessor",
            "transport",
            "state",
            "mvcc",
            "raft",
            "storage",
        ],
    ),
    module("api", 7, &["service", "replica", "state", "watch", "mvcc"]),
    module("gateway", 7, &["service", "net"]),
    module("http", 7, &["service", "replica"]),
    module(
        "server",
        8,
        &[
            "backup",
            "http",
            "gateway",
            "api",
            "jobs",
            "service",
            "replica",
            "lessor",
            "transport",
            "state",
            "watch",
            "mvcc",
            "raft",
            "net",
            "storage",
            "config",
        ],
    ),
    module(
        "sim",
        9,
        &[
            "server",
            "api",
            "jobs",
            "service",
            "replica",
            "transport",
            "state",
            "watch",
            "mvcc",
            "raft",
            "storage",
        ],
    ),
    module(
        "offline",
        9,
        &[
            "server", "backup", "state", "mvcc", "raft", "storage", "config",
        ],
    ),
    module(
        "proxy",
        9,
        &[
            "server",
            "gateway",
            "http",
            "service",
            "transport",
            "net",
            "storage",
            "config",
        ],
    ),
    // Its files are tests, which may name all that is below.
    module("fuzz", 9, &[]),
    module("bench", 9, &["watch", "state", "mvcc", "storage"]),
    module(
        "program",
        10,
        &["sim", "offline", "proxy", "server", "config"],
    ),
];

fn find(name: &str) -> Option<&'static Module> {
    MODULES.iter().find(|module| module.name == name)
}

/// The layer of a file; `None` for the roots of the crate and for what the table does not know.
pub fn layer(source: &Source) -> Option<u8> {
    find(source.module().first()?).map(|module| module.layer)
}

/// What a file names and may not.
pub fn check(source: &Source) -> Vec<String> {
    let file = source.module();
    let Some(top) = file.first() else {
        // The roots name every module.
        return Vec::new();
    };
    let Some(own) = find(top) else {
        return vec![format!(
            "{}: the module {top} has no layer in tests/tidy/layers.rs",
            source.path
        )];
    };
    imports(source)
        .into_iter()
        .filter_map(|import| {
            let other = find(import.module)?;
            // Tests build what they need of anything below.
            let allowed = other.name == own.name
                || other.layer == 0
                || own.may.contains(&other.name)
                || (import.in_test && other.layer < own.layer);
            (!allowed).then(|| {
                format!(
                    "{}:{}: {} (layer {}) may not name {} (layer {})",
                    source.path, import.line, own.name, own.layer, other.name, other.layer
                )
            })
        })
        .collect()
}

/// Entries of the table without a module, and ones that point upwards or sideways.
pub fn stale(sources: &[Source]) -> Vec<String> {
    let there: BTreeSet<&str> = sources
        .iter()
        .filter_map(|source| source.module().first().copied())
        .collect();
    let mut findings = Vec::new();
    for module in MODULES {
        if !there.contains(module.name) {
            findings.push(format!(
                "the table names {}, which is not there",
                module.name
            ));
        }
        for name in module.may {
            if find(name).is_none_or(|below| below.layer >= module.layer) {
                findings.push(format!(
                    "{} may name {name}, which is not below it",
                    module.name
                ));
            }
        }
    }
    findings
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
    fn an_import_upwards_or_sideways_is_found() {
        let up = findings(
            "src/mvcc/read.rs",
            "use crate::types::X;\nuse crate::service::Y;",
        );
        assert_eq!(
            up,
            ["src/mvcc/read.rs:2: mvcc (layer 2) may not name service (layer 6)"]
        );
        assert_eq!(findings("src/mvcc/read.rs", "use crate::raft::X;").len(), 1);
        assert_eq!(
            findings("src/state/kv.rs", "fn f(x: crate::watch::Hub) {}").len(),
            1
        );
        assert_eq!(
            findings("src/watch/hub.rs", "use super::super::state;").len(),
            1
        );
        assert_eq!(
            findings("src/api/kv.rs", "use crate::{service, storage::Read};").len(),
            1
        );
        assert_eq!(
            findings("src/state/kv.rs", "use crate::{mvcc, storage, types};"),
            [""; 0]
        );
        let test = "#[cfg(test)] mod tests { use crate::storage::memory; use crate::server::S; }";
        assert_eq!(
            findings("src/api/kv.rs", test),
            ["src/api/kv.rs:1: api (layer 7) may not name server (layer 8)"]
        );
        assert_eq!(
            findings("src/api/tests.rs", "use crate::{raft, http};").len(),
            1
        );
    }

    #[test]
    fn a_module_without_a_layer_is_found() {
        assert_eq!(findings("src/misc/x.rs", "").len(), 1);
        assert_eq!(findings("src/lib.rs", "use crate::service;"), [""; 0]);
        assert!(stale(&[]).len() >= MODULES.len());
    }
}
