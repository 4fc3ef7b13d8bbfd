//! Reports connections that were refused before their first request: once a minute for an address,
//! since who fails tries again at once.

use tokio::time::Instant;

use super::handshakes::network;
use super::server::EOF;
use super::{Certificate, Refused};
use crate::notices::Notices;
use crate::types::Remote;

/// The connections of one kind of listener that were refused.
pub struct Rejections {
    /// Who connects.
    who: &'static str,
    notices: Notices,
    since: Instant,
}

impl Rejections {
    pub fn new(who: &'static str) -> Self {
        Self {
            who,
            notices: Notices::default(),
            since: Instant::now(),
        }
    }

    /// Whether a line is due for this address.
    fn is_news(&self, remote: Remote) -> bool {
        let address = remote
            .ip()
            .map_or_else(|| remote.to_string(), |ip| network(ip).to_string());
        self.notices.is_news(&address, self.since.elapsed())
    }

    pub fn report(&self, remote: Remote, refused: &Refused) {
        // Probes of the port do nothing else.
        if refused.reason == EOF {
            tracing::debug!("remote-addr" = %remote, error = EOF, "rejected connection on {} endpoint", self.who);
            return;
        }
        if !self.is_news(remote) {
            return;
        }
        let addresses = |certificate: &Certificate| -> Vec<String> {
            let addresses = certificate.ip_addresses.iter();
            addresses.map(ToString::to_string).collect()
        };
        match &refused.certificate {
            Some(certificate) => tracing::warn!(
                "remote-addr" = %remote,
                "server-name" = refused.server_name,
                "ip-addresses" = ?addresses(certificate),
                "dns-names" = ?certificate.dns_names,
                error = refused.reason,
                "rejected connection on {} endpoint",
                self.who
            ),
            None => tracing::warn!(
                "remote-addr" = %remote,
                "server-name" = refused.server_name,
                error = refused.reason,
                "rejected connection on {} endpoint",
                self.who
            ),
        }
    }
}
