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
//! | 4 | [`transport`] |
//! | 5 | [`node`] |
//! | 6 | [`api`] |
//! | 7 | [`http`] |
//! | 8 | [`server`], and `sim`, which no release holds |
//!
//! `docs/ARCHITECTURE.md` tells what each part promises and follows a request through them.
#![deny(unsafe_code)]

pub mod api;
pub mod config;
pub mod env;
pub mod error;
pub mod http;
pub mod metrics;
pub mod mvcc;
pub mod net;
pub mod node;
pub mod probe;
pub mod proto;
pub mod raft;
pub mod server;
#[cfg(any(test, feature = "simulation"))]
pub mod sim;
pub mod state;
pub mod storage;
pub mod transport;
pub mod types;
pub mod watch;
