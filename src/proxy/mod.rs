//! Processes that stand before a cluster: etcd's gateway, which passes connections on, and its gRPC
//! proxy.
//!
//! - `endpoints` finds the members of the cluster, from flags or the DNS.
//! - `remotes` chooses one for each connection (pure); `gateway` passes the connections on.
//! - `grpc` is the proxy of calls.

mod endpoints;
mod error;
mod gateway;
mod grpc;
mod remotes;

use crate::config::Proxy;
use crate::server::signals::StopSignals;
pub use error::Error;

/// Runs until a signal comes, which it returns.
///
/// # Errors
/// Why it did not start.
pub async fn run(command: Proxy) -> Result<i32, Error> {
    let signals = StopSignals::listen()?;
    match command {
        Proxy::Gateway(start) => gateway::run(start, signals).await,
        Proxy::Grpc(start) => grpc::run(*start, signals).await,
    }
}
