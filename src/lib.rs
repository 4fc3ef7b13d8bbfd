//! etched: a server that speaks the etcd v3 API.
//!
//! Code map, from the bottom up; a module imports only from layers below its own
//! (`tests/tidy.rs` holds the table):
//!
//! | layer | modules |
//! |---|---|
//! | 0 | [`types`], [`error`], [`env`], [`proto`], [`metrics`], [`probe`] |
//! | 1 | [`config`], [`net`], [`storage`] |
//! | 2 | [`mvcc`], [`raft`] |
//! | 3 | [`state`], [`watch`] |
//! | 4 | [`transport`], [`lessor`] |
//! | 5 | [`replica`] |
//! | 6 | [`service`] |
//! | 7 | [`jobs`], [`api`], [`http`] |
//! | 8 | [`server`] |
//! | 9 | `sim`, which no release holds |
//!
//! `docs/ARCHITECTURE.md` tells what each part promises and follows a request through them.
#![deny(unsafe_code)]

pub mod api;
pub mod config;
pub mod env;
pub mod error;
pub mod http;
pub mod jobs;
pub mod lessor;
pub mod metrics;
pub mod mvcc;
pub mod net;
pub mod probe;
pub mod proto;
pub mod raft;
pub mod replica;
#[cfg(test)]
mod script;
pub mod server;
pub mod service;
#[cfg(any(test, feature = "simulation"))]
pub mod sim;
pub mod state;
pub mod storage;
pub mod transport;
pub mod types;
pub mod watch;
