//! The network as a start without data needs it: other members' descriptions, and name resolution.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::proto::etchedpeer::Description;
use crate::transport::{self, Boxed, Dialler};

/// See the module; tests have their own.
pub trait BootstrapNetwork: Send + Sync {
    /// Requests the description of the member that listens at a peer URL.
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

/// The description of a peer, or why there is none.
pub type Described = Result<Description, String>;

/// Queries all URLs at once. Late responses are left out; the order is that of the URLs.
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
            // A task that panicked has no response.
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

/// Seconds that name resolution may take, over the whole start: orchestrators often publish a
/// member's name only after it runs.
const RESOLVE_RETRIES: u32 = 30;

/// The machine's network.
pub struct RealNetwork {
    retries_left: AtomicU32,
    dialler: Dialler,
}

impl RealNetwork {
    pub fn new(dialler: Dialler) -> Self {
        Self {
            dialler,
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

impl BootstrapNetwork for RealNetwork {
    fn describe(&self, url: String, limit: Duration) -> Boxed<Result<Description, String>> {
        let dialler = self.dialler.clone();
        Box::pin(async move { transport::describe(&dialler, &[url], limit).await })
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
