//! Where time, chance and the async runtime may be touched.
//!
//! Everything that decides has to run the same twice, in a simulator: its time and its random
//! numbers are handed in through `env`, and it does not know what an executor is. The simulator
//! itself has nothing of the machine at all, and no order that a seed does not name.

use super::layers::layer;
use super::source::Source;
use super::tokens::{Placed, placed};

/// Names that ask the machine for the time or for chance, and the crates that do.
const TIME_AND_CHANCE: &[&str] = &["Instant", "SystemTime", "rand", "getrandom"];
/// The one file that may; it hands the runtime on as well.
const ENV: &str = "src/env.rs";

const RUNTIME: &[&str] = &["tokio", "tokio_stream", "futures", "futures_util"];
/// Up to this layer nothing knows of the runtime.
const RUNTIME_FREE_LAYER: u8 = 3;
/// Sockets are the runtime's; what they carry is left to the layers above.
const SOCKETS: &str = "src/net/";
/// The one loop that accepts connections is there, with its limits.
const LISTENERS: &[&str] = &["TcpListener", "UnixListener"];
/// Nor do these files above it.
const RUNTIME_FREE_FILES: &[&str] = &["src/service/admission.rs"];
/// These rooms have its notifications, which work on any executor, and nothing else of it: threads
/// or a simulator run them.
const NOTIFYING_ROOMS: &[&str] = &["src/lessor/", "src/replica/"];
const NOTIFICATIONS: (&str, &str) = ("tokio", "sync");

/// Where one seed has to be one trace.
const SEEDED: &str = "src/sim";
/// The part of it that no world sees: it gives each world a thread, and is a command.
const BESIDE_WORLDS: &str = "src/sim/command.rs";
/// Their order differs from run to run.
const UNORDERED: &[&str] = &["HashMap", "HashSet"];
/// What is the machine's, or runs beside the scheduler.
const MACHINE: &[(&str, &[&str])] = &[
    ("std", &["thread", "net", "fs", "process"]),
    ("tokio", &["net", "time", "spawn", "task", "fs", "runtime"]),
];

/// A file that may use a name after all, and why.
struct Exception {
    path: &'static str,
    name: &'static str,
    #[expect(dead_code, reason = "for people")]
    why: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    Exception {
        path: "src/net/guard.rs",
        name: "Instant",
        why: "tokio's, read where bytes come in and handed to what decides; no state depends on it",
    },
    Exception {
        path: "src/net/turns.rs",
        name: "Instant",
        why: "tokio's, how long a connection has waited for its turn; no state depends on it",
    },
    Exception {
        path: "src/net/pings.rs",
        name: "Instant",
        why: "the type of what `guard` hands in",
    },
    Exception {
        path: "src/net/tls/rejected.rs",
        name: "Instant",
        why: "tokio's, for the time between two lines of the log",
    },
    Exception {
        path: "src/net/tls/reread.rs",
        name: "Instant",
        why: "tokio's, for how long a check of files takes, and the time between two lines of the log",
    },
    Exception {
        path: "src/net/tls/reread.rs",
        name: "SystemTime",
        why: "a file's, compared with an older one of the same file",
    },
    Exception {
        path: "src/service/tokens/keys.rs",
        name: "rand",
        why: "a signature takes its chance from the library that makes it, and nothing else does",
    },
];

fn is_exception(path: &str, name: &str) -> bool {
    EXCEPTIONS
        .iter()
        .any(|exception| exception.path == path && exception.name == name)
}

/// Names in `source`, outside test code, of `names`.
fn uses(source: &Source, names: &[&str]) -> Vec<(usize, String)> {
    if source.is_test() {
        return Vec::new();
    }
    placed(&source.text)
        .into_iter()
        .filter(|one| !one.in_test && names.contains(&one.token.text))
        .map(|one| (one.token.line, one.token.text.to_owned()))
        .collect()
}

/// The first names of the paths behind `tokens[at]`, which is the name of a crate; none where it
/// is not.
fn first_names<'a>(tokens: &[Placed<'a>], at: usize) -> Vec<&'a str> {
    let text = |at: usize| tokens.get(at).map_or("", |one| one.token.text);
    // A leading `::` is the root of all paths; behind a name it is within one.
    let is_within =
        at > 1 && text(at - 1) == "::" && (tokens[at - 2].token.is_ident() || text(at - 2) == ">");
    if text(at + 1) != "::" || is_within {
        return Vec::new();
    }
    if text(at + 2) != "{" {
        return vec![text(at + 2)];
    }
    let mut names = Vec::new();
    let mut depth = 0;
    for behind in at + 2..tokens.len() {
        match text(behind) {
            "{" => depth += 1,
            "}" => depth -= 1,
            name if depth == 1 && matches!(text(behind - 1), "{" | ",") => names.push(name),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// What of the runtime a file in one of the rooms uses beside its notifications.
fn runtime_uses(source: &Source) -> Vec<(usize, String)> {
    if source.is_test() {
        return Vec::new();
    }
    let (root, module) = NOTIFICATIONS;
    let tokens = placed(&source.text);
    let named = tokens.iter().enumerate().filter(|(_, one)| {
        let name = one.token.text;
        !one.in_test && RUNTIME.contains(&name)
    });
    let other = named.filter(|(at, one)| {
        let names = first_names(&tokens, *at);
        let notifies = !names.is_empty() && names.iter().all(|name| *name == module);
        one.token.text != root || !notifies
    });
    other
        .map(|(_, one)| (one.token.line, one.token.text.to_owned()))
        .collect()
}

/// What of the machine's a file names, its tests too.
fn machine_uses(source: &Source) -> Vec<(usize, String)> {
    let tokens = placed(&source.text);
    let mut found = Vec::new();
    for (at, one) in tokens.iter().enumerate() {
        let text = one.token.text;
        if UNORDERED.contains(&text) {
            found.push((one.token.line, text.to_owned()));
        }
        for (root, forbidden) in MACHINE.iter().filter(|(root, _)| *root == text) {
            let names = first_names(&tokens, at);
            let names = names.into_iter().filter(|name| forbidden.contains(name));
            found.extend(names.map(|name| (one.token.line, format!("{root}::{name}"))));
        }
    }
    found
}

/// What a file uses and may not.
pub fn check(source: &Source) -> Vec<String> {
    let path = &source.path;
    let mut findings = Vec::new();
    if path != ENV {
        for (line, name) in uses(source, TIME_AND_CHANCE) {
            if !is_exception(path, &name) {
                findings.push(format!("{path}:{line}: {name} belongs into {ENV} alone"));
            }
        }
    }
    if !path.starts_with(SOCKETS) {
        for (line, name) in uses(source, LISTENERS) {
            findings.push(format!(
                "{path}:{line}: connections are accepted in {SOCKETS} alone, not from a {name}"
            ));
        }
    }
    let is_low = layer(source).is_some_and(|layer| layer <= RUNTIME_FREE_LAYER);
    let runtime_free =
        (is_low && !path.starts_with(SOCKETS)) || RUNTIME_FREE_FILES.contains(&path.as_str());
    if runtime_free && path != ENV {
        for (line, name) in uses(source, RUNTIME) {
            findings.push(format!(
                "{path}:{line}: no async runtime here, not {name} either"
            ));
        }
    }
    if NOTIFYING_ROOMS.iter().any(|room| path.starts_with(room)) {
        for (line, name) in runtime_uses(source) {
            let (root, module) = NOTIFICATIONS;
            findings.push(format!(
                "{path}:{line}: {root}::{module} alone here, not {name}: no async runtime"
            ));
        }
    }
    if path.starts_with(SEEDED) && path != BESIDE_WORLDS {
        for (line, name) in machine_uses(source) {
            findings.push(format!(
                "{path}:{line}: no {name} here: a seed names one trace, on every machine"
            ));
        }
    }
    findings
}

/// Exceptions that nothing needs any more, and rules about files that are gone.
pub fn stale(sources: &[Source]) -> Vec<String> {
    let find = |path: &str| sources.iter().find(|source| source.path == path);
    let unused = EXCEPTIONS.iter().filter(|exception| {
        find(exception.path).is_none_or(|source| uses(source, &[exception.name]).is_empty())
    });
    let mut findings: Vec<String> = unused
        .map(|exception| {
            format!(
                "{} has an exception for {} and does not use it",
                exception.path, exception.name
            )
        })
        .collect();
    for path in RUNTIME_FREE_FILES.iter().chain([&ENV, &BESIDE_WORLDS]) {
        if find(path).is_none() {
            findings.push(format!("there is a rule about {path}, which is not there"));
        }
    }
    for room in NOTIFYING_ROOMS.iter().chain([&SEEDED]) {
        if !sources.iter().any(|source| source.path.starts_with(room)) {
            findings.push(format!("there is a rule about {room}, which is not there"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        check(&Source {
            path: path.to_owned(),
            text: text.to_owned(),
        })
        .len()
    }

    #[test]
    fn time_and_chance_are_found() {
        assert_eq!(
            findings(
                "src/replica/router.rs",
                "use std::time::{Duration, Instant};"
            ),
            1
        );
        assert_eq!(
            findings("src/api/kv.rs", "let x = rand::random(); // rand"),
            1
        );
        let listens = "tokio::net::TcpListener::bind(url)";
        assert_eq!(findings("src/server/run.rs", listens), 1);
        assert_eq!(findings("src/net/listen.rs", listens), 0);
        assert_eq!(findings("src/env.rs", "use std::time::SystemTime;"), 0);
        assert_eq!(
            findings("src/net/guard.rs", "Instant::now(); SystemTime::now()"),
            1
        );
        assert_eq!(findings("src/watch/tests/x.rs", "Instant::now()"), 0);
        assert_eq!(
            findings("src/mvcc/x.rs", "#[cfg(test)] mod tests { use rand::Rng; }"),
            0
        );
    }

    #[test]
    fn the_runtime_is_found() {
        assert_eq!(findings("src/mvcc/read.rs", "use tokio::sync::Notify;"), 1);
        assert_eq!(findings("src/service/handle.rs", "tokio::spawn(x)"), 0);
        assert_eq!(findings("src/net/accept.rs", "tokio::spawn(x)"), 0);
    }

    #[test]
    fn notifications_are_no_runtime() {
        for (text, expected) in [
            ("use tokio::sync::{Notify, watch};", 0),
            ("tokio::sync::Notify::new()", 0),
            ("use tokio::{sync::Notify, time};", 1),
            ("tokio::spawn(x)", 1),
            ("use tokio as runtime;", 1),
            ("use futures::StreamExt;", 1),
            ("#[cfg(test)] mod tests { use tokio::time; }", 0),
        ] {
            for room in NOTIFYING_ROOMS {
                assert_eq!(findings(&format!("{room}x.rs"), text), expected, "{text}");
            }
        }
    }

    #[test]
    fn the_machine_is_found_in_the_simulator() {
        for (text, expected) in [
            ("use std::thread;", 1),
            (
                "use std::{fs::File, net::{IpAddr, TcpStream}, sync::Arc};",
                2,
            ),
            ("std::thread::spawn(x); ::std::net::x()", 2),
            ("use std::collections::{BTreeMap, HashMap};", 1),
            ("HashSet::<u64>::new()", 1),
            ("use tokio::sync::oneshot; tokio::spawn(x)", 1),
            ("use tokio::{sync::{mpsc, time}, time::sleep};", 1),
            ("#[cfg(test)] mod tests { use std::thread; }", 1),
            (
                "use super::net; time.std(); crate::tokio::time(); self.spawn(x)",
                0,
            ),
            ("// std::thread\nlet x = \"std::net\";", 0),
        ] {
            assert_eq!(findings("src/sim/x.rs", text), expected, "{text}");
            for path in ["src/api/x.rs", BESIDE_WORLDS] {
                assert_eq!(findings(path, text), 0, "{text}");
            }
        }
    }

    #[test]
    fn rules_without_a_file_are_found() {
        assert_eq!(
            stale(&[]).len(),
            EXCEPTIONS.len() + RUNTIME_FREE_FILES.len() + NOTIFYING_ROOMS.len() + 3
        );
    }
}
