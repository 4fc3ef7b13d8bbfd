//! The listening sockets of a member, bound before anything on its disk is touched: a start in a
//! place that is taken changes nothing.

use super::Error;
use super::security::Endpoint;
use crate::config::{Config, Listen};
use crate::net::listen::{self, Held, Listener, SocketOptions};

/// Where calls are accepted at once.
pub type Bound = (Endpoint, Listener);
/// Where connections are refused until it listens.
pub type HeldEndpoint = (Endpoint, Held);

/// All of a member's.
pub struct Sockets {
    /// A member that asks this one before it can answer is refused, and does not wait.
    pub peers: Vec<HeldEndpoint>,
    pub clients: Vec<Bound>,
    pub http: Vec<Bound>,
    pub metrics: Vec<Bound>,
}

impl Sockets {
    /// # Errors
    /// An address that is taken, or is none of this machine's.
    pub fn bind(config: &Config) -> Result<Self, Error> {
        let options = SocketOptions {
            reuse_port: config.socket_reuse_port,
        };
        let bind = |urls: &[Listen]| {
            Endpoint::of(urls)
                .into_iter()
                .map(|endpoint| {
                    let listener = listen::bind(&endpoint.address, options)?;
                    Ok((endpoint, listener))
                })
                .collect::<Result<Vec<Bound>, Error>>()
        };
        let hold = |endpoint: Endpoint| {
            let held = listen::hold(&endpoint.address, options)?;
            Ok((endpoint, held))
        };
        let peers = Endpoint::of(&config.listen_peer_urls).into_iter().map(hold);
        let peers: Result<Vec<_>, Error> = peers.collect();
        Ok(Self {
            peers: peers?,
            clients: bind(&config.listen_client_urls)?,
            http: bind(&config.listen_client_http_urls)?,
            metrics: bind(&config.listen_metrics_urls)?,
        })
    }
}
