//! etched: a server that speaks the etcd v3 API.
//!
//! Code map, from the bottom up; a module imports only from layers below its own
//! (`tests/tidy.rs` holds the table):
//!
//! | layer | modules |
//! |---|---|
//! | 0 | `types`, `error`, `env`, `proto`, `metrics`, `budget`, `notices`, `probe`, `failpoints`, `profile`, `trace` |
//! | 0 | `script`, which plays the scripts of tests |
//! | 1 | `config`, `net`, `storage` |
//! | 2 | `mvcc`, `raft` |
//! | 3 | `state`, `watch` |
//! | 4 | `backup`, `transport`, `lessor` |
//! | 5 | `replica` |
//! | 6 | `service` |
//! | 7 | `jobs`, `api`, `gateway`, `http` |
//! | 8 | `server` |
//! | 9 | `offline`, `proxy`; `sim`, `fuzz` and `bench`, which no release holds |
//! | 10 | `program` |
//!
//! `program` is what the programs call, and all that a release shows of the crate.
//!
//! `docs/ARCHITECTURE.md` tells what each part promises and follows a request through them.
#![deny(unsafe_code)]

pub(crate) mod api;
pub(crate) mod backup;
#[cfg(feature = "bench")]
pub mod bench;
pub(crate) mod budget;
pub(crate) mod config;
pub(crate) mod env;
pub(crate) mod error;
pub(crate) mod failpoints;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod jobs;
pub(crate) mod lessor;
pub(crate) mod metrics;
pub(crate) mod mvcc;
pub(crate) mod net;
pub(crate) mod notices;
pub(crate) mod offline;
pub(crate) mod probe;
pub(crate) mod profile;
pub mod program;
pub(crate) mod proto;
pub(crate) mod proxy;
pub(crate) mod raft;
pub(crate) mod replica;
#[cfg(test)]
mod script;
pub(crate) mod server;
pub(crate) mod service;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod sim;
pub(crate) mod state;
pub(crate) mod storage;
pub(crate) mod trace;
pub(crate) mod transport;
pub(crate) mod types;
pub(crate) mod watch;
