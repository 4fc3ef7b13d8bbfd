//! The fuzz targets: functions that take any bytes and panic where etched did what it must not do.
//! `tests.rs` runs them over the corpus, `fuzz/` hands them to libFuzzer. No release holds them.

mod client;
mod config;
mod etcd_files;
mod gateway;
mod input;
mod peer;
mod raft_log;
mod requests;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;

use crate::profile::counting as memory;
pub use memory::Counting;

/// A target.
pub struct Target {
    /// That of its directory in `fuzz/corpus` and of its program in `fuzz/fuzz_targets`.
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// What the corpus begins with.
    pub seeds: fn() -> Vec<Seed>,
    /// How many mutations of each file of the corpus `tests.rs` tries.
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

/// Runs the target of a name.
#[cfg(feature = "fuzzing")]
pub fn run(name: &str, bytes: &[u8]) {
    if let Some(target) = TARGETS.iter().find(|target| target.name == name) {
        (target.run)(bytes);
    } else {
        panic!("there is no target {name}");
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
    Target {
        name: "token_user",
        run: tokens::user,
        seeds: tokens::user_seeds,
        mutations: 300,
    },
    Target {
        name: "token_keys",
        run: tokens::keys,
        seeds: tokens::key_seeds,
        mutations: 100,
    },
    Target {
        name: "tls_hello",
        run: tls::hello,
        seeds: tls::hello_seeds,
        mutations: 200,
    },
    Target {
        name: "tls_certificate",
        run: tls::certificate,
        seeds: tls::certificate_seeds,
        mutations: 200,
    },
    Target {
        name: "tls_files",
        run: tls::files,
        seeds: tls::file_seeds,
        mutations: 50,
    },
    Target {
        name: "etcd_files",
        run: etcd_files::read,
        seeds: etcd_files::seeds,
        mutations: 300,
    },
    Target {
        name: "gateway_json",
        run: gateway::json,
        seeds: gateway::json_seeds,
        mutations: 200,
    },
];
