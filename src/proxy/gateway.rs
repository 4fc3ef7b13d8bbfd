//! `etched gateway`: passes connections on to members, without reading what is in them.
//!
//! A connection holds two buffers of 8 KiB. When one side has sent its last byte the other hears that,
//! and may continue to answer. There are at most as many connections as the limit of open files has
//! room for, and they end with the process.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::sockopt;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

use super::endpoints::{self, Endpoint};
use super::error::Error;
use super::remotes::Remotes;
use crate::config::{GatewayStart, Note, duration};
use crate::env::{Rng as _, SystemRng};
use crate::metrics::Metrics;
use crate::net::listen::{self, SocketOptions};
use crate::net::{self, Allowance, Stream};
use crate::server::signals::StopSignals;
use crate::server::{descriptors, logging, notify};
use crate::types::{Address, MemberId};

/// For a connection to a member.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// A connection whose other side is gone without a word ends after this long, and nine probes.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// etcd's, where no delay is given.
const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(5 * 60);
/// Files that are open beside connections.
const OWN_FILES: u64 = 32;
/// A connection has a descriptor on either side.
const FILES_OF_A_CONNECTION: u64 = 2;

struct Gateway {
    remotes: Mutex<Remotes>,
    retry_delay: Duration,
}

/// Runs the gateway until a signal comes.
pub async fn run(start: GatewayStart, signals: StopSignals) -> Result<i32, Error> {
    let endpoints = endpoints::find(&start.cluster).await?;
    let refused = || {
        Error::Refused(format!(
            "failed to validate listen address: {}",
            start.listen_addr
        ))
    };
    let address = endpoints::listen_address(&start.listen_addr).await?;
    let address = address.ok_or_else(refused)?;
    endpoints::refuse_itself("gateway", &start.listen_addr, address, &endpoints).await?;
    let listener = listen::bind(&Address::Tcp(address), SocketOptions::default())?;
    let files = descriptors::raise_limit().saturating_sub(OWN_FILES) / FILES_OF_A_CONNECTION;
    let named = |one: &Endpoint| format!("{}:{}", one.host, one.port);
    let names: Vec<String> = endpoints.iter().map(named).collect();
    let gateway = Arc::new(Gateway {
        remotes: Mutex::new(Remotes::new(endpoints)),
        retry_delay: match start.retry_delay {
            Duration::ZERO => DEFAULT_RETRY_DELAY,
            delay => delay,
        },
    });
    logging::notes(&[Note::info("ready to proxy client requests").with("endpoints", names)]);
    notify::ready();
    let connections = usize::try_from(files).unwrap_or(usize::MAX).max(1);
    // For the count of refusals: a gateway has no page that would show it.
    let metrics = Arc::new(Metrics::new(MemberId::default(), false));
    let allowance = Allowance::new(connections, metrics);
    let serving = net::take(&listener, "client", &allowance, |stream, _, place| {
        let gateway = gateway.clone();
        async move {
            gateway.pass_on(stream).await;
            drop(place);
        }
    });
    tokio::select! {
        signal = signals.while_serving() => Ok(signal),
        never = serving => match never {},
        never = gateway.monitor() => match never {},
    }
}

impl Gateway {
    async fn pass_on(&self, mut incoming: Stream) {
        tune(&incoming);
        // A client that finds no member is hung up on.
        let Some(mut outgoing) = self.dial().await else {
            return;
        };
        let passed = copy_bidirectional(&mut incoming, &mut outgoing).await;
        if let Err(error) = passed {
            tracing::debug!(%error, "a connection ended");
        }
    }

    /// A connection to the first member that can be reached.
    async fn dial(&self) -> Option<Stream> {
        loop {
            let (at, endpoint) = {
                let mut remotes = self.remotes.lock();
                let at = remotes.pick(|| SystemRng.next_u64())?;
                (at, remotes.endpoint(at).clone())
            };
            match connect(&endpoint).await {
                Ok(stream) => return Some(stream),
                Err(error) => {
                    self.remotes.lock().set_active(at, false);
                    let (address, interval) = self.named(&endpoint);
                    tracing::warn!(address, interval, %error, "deactivated endpoint");
                }
            }
        }
    }

    /// Tries those that could not be reached again, now and then.
    async fn monitor(&self) -> Infallible {
        loop {
            tokio::time::sleep(self.retry_delay).await;
            let inactive = self.remotes.lock().inactive();
            let tries = inactive.into_iter().map(|at| self.try_again(at));
            futures_util::future::join_all(tries).await;
        }
    }

    async fn try_again(&self, at: usize) {
        let endpoint = self.remotes.lock().endpoint(at).clone();
        let (address, interval) = self.named(&endpoint);
        match connect(&endpoint).await {
            Ok(_) => {
                self.remotes.lock().set_active(at, true);
                tracing::info!(address, "activated");
            }
            Err(error) => {
                tracing::warn!(address, interval, %error, "failed to activate endpoint (stay inactive for another interval)");
            }
        }
    }

    fn named(&self, endpoint: &Endpoint) -> (String, String) {
        let address = format!("{}:{}", endpoint.host, endpoint.port);
        (address, duration::format(self.retry_delay))
    }
}

async fn connect(endpoint: &Endpoint) -> io::Result<Stream> {
    let place = (endpoint.host.as_str(), endpoint.port);
    let connected = tokio::time::timeout(DIAL_LIMIT, TcpStream::connect(place)).await;
    let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let stream = Stream::Tcp(stream);
    tune(&stream);
    Ok(stream)
}

/// As Go does: no delays, and probes when nothing is sent.
fn tune(stream: &Stream) {
    stream.tune(None);
    let Stream::Tcp(tcp) = stream else {
        return;
    };
    let kept = sockopt::set_socket_keepalive(tcp, true)
        .and_then(|()| sockopt::set_tcp_keepidle(tcp, KEEP_ALIVE))
        .and_then(|()| sockopt::set_tcp_keepintvl(tcp, KEEP_ALIVE));
    if let Err(error) = kept {
        tracing::debug!(%error, "cannot have a connection probed");
    }
}
