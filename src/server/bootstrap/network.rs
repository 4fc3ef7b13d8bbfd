//! What a start without data asks of the network: other members, and the names' addresses.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::proto::etchedpeer::Description;
use crate::transport::{self, Boxed};

/// The network; a test brings its own.
pub trait BootstrapNetwork: Send + Sync {
    /// Asks whoever listens at a peer URL who belongs to its cluster.
    fn describe(&self, url: String, limit: Duration) -> Boxed<Result<Description, String>>;

    /// Turns `host:port` into `address:port`. May block.
    fn resolve(&self, host_port: &str) -> io::Result<String>;
}

/// How long to wait for answers.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the first answer.
    pub limit: Duration,
    /// For the others, once there is one.
    pub grace: Duration,
}

/// A peer that could not be asked, and what it answered.
pub type Described = Result<Description, String>;

/// Asks at all URLs at once. What is not there in time is left out; the order is that of the URLs.
pub async fn ask_all(
    network: &dyn BootstrapNetwork,
    urls: &[String],
    patience: Patience,
) -> Vec<(String, Described)> {
    let mut asking = JoinSet::new();
    for (at, url) in urls.iter().enumerate() {
        let asked = network.describe(url.clone(), patience.limit);
        asking.spawn(async move { (at, asked.await) });
    }
    let mut answers = Vec::new();
    let mut limit = Box::pin(tokio::time::sleep(patience.limit));
    let mut answered = false;
    loop {
        let joined = tokio::select! {
            joined = asking.join_next() => joined,
            () = &mut limit => None,
        };
        match joined {
            Some(Ok((at, asked))) => {
                if asked.is_ok() && !answered {
                    answered = true;
                    limit = Box::pin(tokio::time::sleep(patience.grace));
                }
                answers.push((at, asked));
            }
            // A question that panicked has no answer.
            Some(Err(_)) => {}
            None => break,
        }
    }
    answers.sort_by_key(|(at, _)| *at);
    let named = answers
        .into_iter()
        .filter_map(|(at, asked)| Some((urls.get(at)?.clone(), asked)));
    named.collect()
}

/// Seconds that names may take to become known, over the whole start: where a cluster is brought
/// up by an orchestrator, a member's name often is so only after it runs.
const RESOLVE_RETRIES: u32 = 30;

/// The machine's network.
pub struct RealNetwork {
    retries_left: AtomicU32,
}

impl RealNetwork {
    pub fn new() -> Self {
        Self {
            retries_left: AtomicU32::new(RESOLVE_RETRIES),
        }
    }

    /// Uses up one of the retries.
    fn may_retry(&self) -> bool {
        let take_one = |left: u32| left.checked_sub(1);
        self.retries_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take_one)
            .is_ok()
    }
}

impl Default for RealNetwork {
    fn default() -> Self {
        Self::new()
    }
}

impl BootstrapNetwork for RealNetwork {
    fn describe(&self, url: String, limit: Duration) -> Boxed<Result<Description, String>> {
        Box::pin(async move { transport::describe(&[url], limit).await })
    }

    fn resolve(&self, host_port: &str) -> io::Result<String> {
        loop {
            match resolve_once(host_port) {
                Ok(address) => {
                    tracing::info!(host = host_port, "resolved-addr" = %address, "resolved URL Host");
                    return Ok(address);
                }
                Err(error) => {
                    tracing::warn!(host = host_port, "retry-interval" = "1s", %error, "failed to resolve URL Host");
                    if !self.may_retry() {
                        return Err(error);
                    }
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
        }
    }
}

fn resolve_once(host_port: &str) -> io::Result<String> {
    use std::net::ToSocketAddrs;
    host_port
        .to_socket_addrs()?
        .next()
        .map(|address| address.to_string())
        .ok_or_else(|| io::Error::other("the name has no address"))
}
