//! The targets: functions that take any bytes and panic where etched did what it must not do.
//! `tests/fuzz.rs` runs them over the corpus, `fuzz/` hands them to libFuzzer.

pub mod client;
pub mod config;
pub mod input;
pub mod memory;
pub mod peer;
pub mod raft_log;
pub mod requests;

/// A target.
pub struct Target {
    /// That of its directory in `fuzz/corpus` and of its program in `fuzz/fuzz_targets`.
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// What the corpus begins with.
    pub seeds: fn() -> Vec<Seed>,
    /// How many mutations of each file of the corpus `tests/fuzz.rs` tries.
    pub mutations: u64,
}

/// A file of the corpus.
pub struct Seed {
    pub name: String,
    pub bytes: Vec<u8>,
}

impl Seed {
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

pub const TARGETS: &[Target] = &[
    Target {
        name: "client_frames",
        run: client::frames,
        seeds: client::frame_seeds,
        mutations: 1000,
    },
    Target {
        name: "request_decode",
        run: requests::decode,
        seeds: requests::decode_seeds,
        mutations: 300,
    },
    Target {
        name: "request_apply",
        run: requests::apply,
        seeds: requests::apply_seeds,
        mutations: 100,
    },
    Target {
        name: "raft_log_open",
        run: raft_log::open,
        seeds: raft_log::open_seeds,
        mutations: 100,
    },
    Target {
        name: "raft_log_damage",
        run: raft_log::damage,
        seeds: raft_log::damage_seeds,
        mutations: 100,
    },
    Target {
        name: "config_load",
        run: config::load,
        seeds: config::load_seeds,
        mutations: 100,
    },
    Target {
        name: "config_values",
        run: config::values,
        seeds: config::value_seeds,
        mutations: 300,
    },
    Target {
        name: "peer_batch",
        run: peer::batch,
        seeds: peer::batch_seeds,
        mutations: 300,
    },
    Target {
        name: "peer_snapshot",
        run: peer::snapshot,
        seeds: peer::snapshot_seeds,
        mutations: 50,
    },
    Target {
        name: "peer_step",
        run: peer::step,
        seeds: peer::step_seeds,
        mutations: 200,
    },
];
