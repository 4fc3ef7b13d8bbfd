//! The fuzz targets as plain tests: each over its corpus, and over mutations of it that are the
//! same on every machine. `fuzz/` runs the same targets for longer, under libFuzzer.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use super::{Counting, TARGETS, Target, memory};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn corpus(target: &Target) -> PathBuf {
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    top.join("fuzz/corpus").join(target.name)
}

/// The files of a target's corpus by name, in their order.
fn files(target: &Target) -> BTreeMap<String, Vec<u8>> {
    let dir = corpus(target);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries
        .map(|entry| {
            let entry = entry.expect("a directory entry");
            let name = entry.file_name().to_string_lossy().into_owned();
            (
                name,
                std::fs::read(entry.path()).expect("a file of the corpus"),
            )
        })
        .collect()
}

/// Runs an input; where the target panics, says how to run it alone.
fn run(target: &Target, name: &str, bytes: &[u8]) {
    let ran = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    if let Err(panic) = ran {
        let kept = std::env::temp_dir().join(format!("etched-{}-{name}", target.name));
        let written = std::fs::write(&kept, bytes).is_ok();
        let place = if written { kept } else { PathBuf::new() };
        eprintln!(
            "{} fails with {name}; the input is {}; keep it in fuzz/corpus/{}",
            target.name,
            place.display(),
            target.name
        );
        std::panic::resume_unwind(panic);
    }
}

/// Draws and changes. `SplitMix64`: the same everywhere, and no seed is a bad one.
struct Mutator(u64);

impl Mutator {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// Some bytes of `from`.
    fn piece<'a>(&mut self, from: &'a [u8]) -> &'a [u8] {
        let start = self.below(from.len());
        let count = self.below(from.len() - start) + 1;
        &from[start..(start + count).min(from.len())]
    }

    /// A few changes; `other` is another file of the corpus.
    fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(8) {
                0 | 1 if !bytes.is_empty() => {
                    let at = at.min(bytes.len() - 1);
                    bytes[at] ^= 1 << self.below(8);
                }
                2 if !bytes.is_empty() => {
                    let at = at.min(bytes.len() - 1);
                    bytes[at] = self.next() as u8;
                }
                3 => bytes.truncate(at),
                // Lengths and numbers that are as large as they can be, in protobuf's form and
                // in plain ones.
                4 => {
                    const LARGE: &[&[u8]] = &[
                        &[0xff, 0xff, 0xff, 0xff, 0x0f],
                        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
                        &[0xff; 8],
                        &[0xff, 0xff, 0xff, 0x7f],
                        &[0; 8],
                        &[0x80],
                    ];
                    let large = LARGE[self.below(LARGE.len())];
                    bytes.splice(at..at, large.iter().copied());
                }
                5 => {
                    let piece = self.piece(other).to_vec();
                    bytes.splice(at..at, piece);
                }
                6 => {
                    let piece = self.piece(bytes).to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => {
                    let end = (at + self.below(16)).min(bytes.len());
                    bytes.drain(at..end);
                }
            }
        }
    }
}

/// Inputs do not grow beyond this here.
const MAX_BYTES: usize = 64 << 10;

fn run_target(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("a target of this name");
    let files = files(target);
    for (name, bytes) in &files {
        run(target, name, bytes);
    }
    let all: Vec<&Vec<u8>> = files.values().collect();
    let factor = std::env::var("ETCHED_FUZZ_FACTOR").ok();
    let factor: u64 = factor.map_or(1, |factor| factor.parse().expect("a number"));
    for (name, bytes) in &files {
        // Its name, not its place, so that a new file changes nothing for the others.
        let mut mutator = Mutator(u64::from(crc32fast::hash(name.as_bytes())));
        for count in 0..target.mutations * factor {
            let other = all[mutator.below(all.len())];
            let mut mutant = bytes.clone();
            mutator.mutate(&mut mutant, other);
            mutant.truncate(MAX_BYTES);
            run(target, &format!("{name}-{count}"), &mutant);
        }
    }
}

/// One test a target: they run beside each other, and a failure names its own.
macro_rules! tests {
    ($($name:ident),*) => {
        $(
            #[test]
            fn $name() {
                run_target(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_tested() {
            let tested = [$(stringify!($name)),*];
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, tested);
            for name in names {
                let program = format!("fuzz/fuzz_targets/{name}.rs");
                let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(program);
                assert!(program.exists(), "there is no {}", program.display());
            }
        }
    };
}

tests!(
    client_frames,
    request_decode,
    request_apply,
    raft_log_open,
    raft_log_damage,
    config_load,
    config_values,
    peer_batch,
    peer_snapshot,
    peer_step,
    token_user,
    token_keys,
    tls_hello,
    tls_certificate,
    tls_files,
    etcd_files,
    gateway_json
);

#[test]
fn the_corpus_begins_with_the_seeds() {
    for target in TARGETS {
        let files = files(target);
        for seed in (target.seeds)() {
            let found = files.get(&seed.name);
            assert!(
                found == Some(&seed.bytes),
                "{}/{} is not the seed; write_the_seeds writes it",
                target.name,
                seed.name
            );
        }
    }
}

/// Name and version of each package of a lock file.
fn packages(lock: &str) -> BTreeSet<(String, String)> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(lock);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let field = |entry: &str, key: &str| {
        let value = entry.lines().find_map(|line| line.strip_prefix(key));
        value.unwrap_or_default().to_owned()
    };
    let entries = text.split("[[package]]").skip(1);
    let packages = entries.map(|entry| (field(entry, "name = "), field(entry, "version = ")));
    packages.collect()
}

/// libFuzzer is to try what is shipped.
#[test]
fn the_fuzz_workspace_has_the_same_dependencies() {
    const OWN: [&str; 3] = ["\"arbitrary\"", "\"etched-fuzz\"", "\"libfuzzer-sys\""];
    let (ours, theirs) = (packages("Cargo.lock"), packages("fuzz/Cargo.lock"));
    let other = theirs.difference(&ours);
    let other: Vec<_> = other
        .filter(|(name, _)| !OWN.contains(&name.as_str()))
        .collect();
    assert!(
        other.is_empty() && theirs.len() > 100,
        "copy Cargo.lock over fuzz/Cargo.lock and build there: {other:?}"
    );
}

#[test]
#[ignore = "writes into the checkout; see docs/STYLE.md"]
fn write_the_seeds() {
    for target in TARGETS {
        let dir = corpus(target);
        std::fs::create_dir_all(&dir).expect("a directory");
        for seed in (target.seeds)() {
            std::fs::write(dir.join(seed.name), seed.bytes).expect("writes");
        }
    }
}

#[test]
fn mutations_are_the_same_every_time_and_of_many_kinds() {
    let mutants = || -> Vec<Vec<u8>> {
        let mut mutator = Mutator(1);
        let mutant = |_| {
            let mut bytes = b"some bytes".to_vec();
            mutator.mutate(&mut bytes, b"others");
            bytes
        };
        (0..200).map(mutant).collect()
    };
    let mut found = mutants();
    assert_eq!(found, mutants());
    found.sort();
    found.dedup();
    assert!(found.len() > 150, "{} different ones", found.len());
}

#[test]
#[should_panic(expected = "were held at a time")]
fn memory_is_counted() {
    memory::within(1 << 20, || drop(vec![1u8; 2 << 20]));
}

/// What a request's span costs where nobody listens; it follows every put from its call to its
/// answer. It stands here because the allocator that counts does.
#[test]
fn a_span_that_nobody_wants_allocates_nothing() {
    use crate::service::caller::{Caller, Identity};
    use crate::trace;
    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt;

    let call = || {
        let span = tracing::trace_span!("call", method = "Put");
        let caller = Caller::client(Identity::Nobody, None, span);
        let header = caller.header(7);
        let key = |call: &_| trace::below!(call, "put", key = &*trace::key(b"a\xff"));
        let caller = caller.in_span(key);
        let span = trace::below!(caller.span(), "propose");
        trace::event!(&span, index = 2, "proposed");
        trace::event!(&span, success = true, "answered");
        drop(trace::below!(&span, "log", entries = 1));
        assert_eq!(header.id, 7);
        span.is_disabled()
    };
    let quiet = tracing_subscriber::registry().with(LevelFilter::INFO);
    tracing::subscriber::with_default(quiet, || {
        // The first call makes the callsites known.
        call();
        assert!(memory::within(0, call));
    });
    // It is the level that makes the difference.
    let listening = tracing_subscriber::registry().with(LevelFilter::TRACE);
    tracing::subscriber::with_default(listening, || {
        call();
        assert!(!call());
    });
}
