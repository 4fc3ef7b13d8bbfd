//! What listeners are encrypted with, from the configuration.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use time::format_description::well_known::Rfc3339;

use super::{Error, data_dir, member_dir};
use crate::config::{
    AllowedNames, Config, Discovery, DiscoveryService, Listen, ListenerTls, SelfSigned,
    TlsProtocol, TlsVersion, urls,
};
use crate::env::Clock;
use crate::net::Security;
use crate::net::tls::{
    Allowed, ClientSettings, Clients, Expiry, Protocol, ServerSettings, TlsClient, TlsServer,
    Version, self_signed,
};
use crate::transport::{Dialler, Encryption};
use crate::types::Address;

/// An address to listen on. URLs with and without TLS may share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: Address,
    pub plain: bool,
    pub tls: bool,
}

impl Endpoint {
    /// Those of a list of URLs, in its order.
    pub fn of(urls: &[Listen]) -> Vec<Self> {
        let mut endpoints: Vec<Self> = Vec::new();
        for listen in urls {
            let tls = listen.url.scheme.is_encrypted();
            let same = |one: &&mut Self| one.address == listen.address;
            match endpoints.iter_mut().find(same) {
                Some(shared) => {
                    shared.plain |= !tls;
                    shared.tls |= tls;
                }
                None => endpoints.push(Self {
                    address: listen.address.clone(),
                    plain: !tls,
                    tls,
                }),
            }
        }
        endpoints
    }

    /// How its connections are encrypted. A configuration has TLS for those that need it.
    pub fn security(&self, tls: Option<&Arc<TlsServer>>) -> Security {
        match tls.filter(|_| self.tls) {
            None => Security::Plain,
            Some(tls) if self.plain => Security::Either(tls.clone()),
            Some(tls) => Security::Tls(tls.clone()),
        }
    }
}

/// What the connections of a member are encrypted with.
#[derive(Clone)]
pub struct MemberSecurity {
    pub peers: PeerSecurity,
    pub clients: Option<Arc<TlsServer>>,
}

impl MemberSecurity {
    /// Reads the files that operators name; none where some are still to be made.
    pub fn of_given(config: &Config) -> Result<Option<Self>, Error> {
        match config.self_signed().next() {
            None => Ok(Some(Self::read(config)?)),
            Some(_) => Ok(None),
        }
    }

    /// Makes what is missing, in the data directory, which no other process may be using, and
    /// reads all.
    pub fn of_made(config: &Config, clock: &dyn Clock) -> Result<Self, Error> {
        for wanted in config.self_signed() {
            make(wanted, clock.wall())?;
        }
        Self::read(config)
    }

    /// When the certificates that are in use expire, in seconds since 1970, by what they are for.
    /// Checks whether there are newer ones.
    pub async fn expiries(&self) -> impl Iterator<Item = (&'static str, i64)> + use<> {
        let of_server = async |tls: &Option<Arc<TlsServer>>| match tls {
            Some(tls) => tls.expiry().await,
            None => Expiry::default(),
        };
        let clients = of_server(&self.clients).await;
        // Its authorities are those of the dialler.
        let listener = of_server(&self.peers.listener).await;
        let dialler = match &self.peers.dialler.tls {
            Some(tls) => tls.expiry().await,
            None => Expiry::default(),
        };
        let all = [
            ("client", clients.shown),
            ("client-ca", clients.authorities),
            ("peer", listener.shown),
            ("peer-client", dialler.shown),
            ("peer-ca", dialler.authorities),
        ];
        let known = all.into_iter();
        known.filter_map(|(role, at)| Some((role, at?)))
    }

    fn read(config: &Config) -> Result<Self, Error> {
        Ok(Self {
            peers: of_peers(config)?,
            clients: of_clients(config)?,
        })
    }
}

/// Makes a certificate and its key, unless there are both.
pub fn make(wanted: &SelfSigned, now: Duration) -> Result<(), Error> {
    let certificate = wanted.directory.join("cert.pem");
    let key = wanted.directory.join("key.pem");
    if certificate.exists() && key.exists() {
        return Ok(());
    }
    data_dir::make_dir(&wanted.directory)?;
    let made = self_signed(&wanted.hosts, now, wanted.years)?;
    let not_after = made.not_after.format(&Rfc3339).unwrap_or_default();
    tracing::warn!(
        "certificate-validity-bound-not-after" = not_after,
        "automatically generate certificates"
    );
    // The certificate is written last, and an old one removed first: its own key is always beside
    // it.
    if certificate.exists() {
        let removed = std::fs::remove_file(&certificate);
        removed.map_err(member_dir::Error::io("remove", &certificate))?;
    }
    data_dir::replace_durably(&key, made.key.as_bytes())?;
    tracing::info!(path = %key.display(), "created key file");
    data_dir::replace_durably(&certificate, made.certificate.as_bytes())?;
    tracing::info!(path = %certificate.display(), "created cert file");
    Ok(())
}

/// Reads what clients' connections are encrypted with, if any are.
fn of_clients(config: &Config) -> Result<Option<Arc<TlsServer>>, Error> {
    let Some(tls) = &config.client_tls else {
        return Ok(None);
    };
    let server =
        TlsServer::new("client", settings(&config.tls_protocol, tls)).map_err(Error::ClientTls)?;
    tracing::info!(
        cert = %tls.certificate.display(),
        key = %tls.key.display(),
        "trusted-ca" = tls.authorities.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        "client-cert-auth" = tls.authenticates,
        "cipher-suites" = ?config.tls_protocol.cipher_suites,
        "starting with client TLS"
    );
    Ok(Some(server))
}

/// What connections between members are encrypted with.
#[derive(Clone, Default)]
pub struct PeerSecurity {
    pub listener: Option<Arc<TlsServer>>,
    pub dialler: Dialler,
}

/// Reads it, as far as any are.
fn of_peers(config: &Config) -> Result<PeerSecurity, Error> {
    let local = local_address(config);
    let Some(tls) = &config.peer_tls else {
        return Ok(PeerSecurity {
            listener: None,
            dialler: Dialler {
                local,
                ..Dialler::default()
            },
        });
    };
    let listener = match &tls.listener {
        None => None,
        Some(listener) => Some(TlsServer::new(
            "peer",
            settings(&config.tls_protocol, listener),
        )?),
    };
    let dialler = ClientSettings {
        pair: tls.shown.clone(),
        verifies: tls.verifies,
        authorities: tls.authorities.clone(),
        revoked: tls.revoked.clone(),
        allowed: allowed(&tls.allowed),
        protocol: versions(&config.tls_protocol),
    };
    let dialler = TlsClient::new("connections to peers", dialler)?;
    tracing::info!(
        encrypted = listener.is_some(),
        "trusted-ca" = tls.authorities.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        "client-cert-auth" = tls.listener.as_ref().is_some_and(|tls| tls.authenticates),
        "cipher-suites" = ?config.tls_protocol.cipher_suites,
        "starting with peer TLS"
    );
    Ok(PeerSecurity {
        listener,
        dialler: Dialler {
            tls: Some(Encryption::new(dialler, server_name(config))),
            local,
            ..Dialler::default()
        },
    })
}

/// Where connections to members come from; says so where the gate asks for it, as etcd does.
fn local_address(config: &Config) -> Option<IpAddr> {
    if !config.feature_gates.enabled("SetMemberLocalAddr") {
        return None;
    }
    let advertised = urls::texts(&config.initial_advertise_peer_urls);
    let local = config.local_address();
    match local {
        Some(local) => tracing::info!("LocalAddr" = %local, "setting member local address"),
        None => tracing::warn!(
            "advertise-peer-urls" = ?advertised,
            "unable to set a member local address due to lack of suitable local addresses"
        ),
    }
    local
}

/// As in etcd, members that the DNS names are known by its domain, unless authorities of their own
/// vouch for them: who answers for the DNS could name any host that has a certificate.
pub fn server_name(config: &Config) -> Option<&str> {
    let authorities = config.peer_tls.as_ref().map(|tls| &tls.authorities);
    match &config.discovery {
        Discovery::Dns(dns) if authorities == Some(&None) => Some(&dns.domain),
        _ => None,
    }
}

/// What connections to a discovery service are encrypted with, where an endpoint demands it.
pub fn of_discovery(service: &DiscoveryService) -> Result<Dialler, String> {
    if !service.urls().any(|(_, is_encrypted)| is_encrypted) {
        return Ok(Dialler::default());
    }
    let settings = ClientSettings {
        pair: service.tls.pair.clone(),
        verifies: service.tls.verifies,
        authorities: service.tls.authorities.clone(),
        revoked: None,
        allowed: Allowed::default(),
        protocol: Protocol {
            least: Version::Tls12,
            most: Version::Tls13,
            cipher_suites: Vec::new(),
        },
    };
    let client = TlsClient::new("connections to the discovery service", settings);
    let client = client.map_err(|error| error.to_string())?;
    Ok(Encryption::new(client, None).into())
}

/// How a listener is encrypted.
pub fn settings(protocol: &TlsProtocol, tls: &ListenerTls) -> ServerSettings {
    let demanded = tls.authenticates || tls.authorities.is_some();
    ServerSettings {
        certificate: tls.certificate.clone(),
        key: tls.key.clone(),
        clients: demanded.then(|| Clients {
            authorities: tls.authorities.clone(),
            revoked: tls.revoked.clone(),
            allowed: allowed(&tls.allowed),
            checks_source: tls.checks_source,
        }),
        protocol: versions(protocol),
    }
}

fn allowed(names: &AllowedNames) -> Allowed {
    Allowed {
        common_names: names.common_names.clone(),
        host_names: names.host_names.clone(),
    }
}

fn versions(protocol: &TlsProtocol) -> Protocol {
    let version = |version| match version {
        TlsVersion::Tls12 => Version::Tls12,
        TlsVersion::Tls13 => Version::Tls13,
    };
    Protocol {
        least: version(protocol.least),
        most: version(protocol.most),
        cipher_suites: protocol.cipher_suites.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AVAILABLE_SUITES, Url};
    use crate::net::tls::suite;
    use crate::types::socket_file;

    #[test]
    fn suites_that_may_be_configured_exist() {
        let of_tls13 = |name: &&&str| !name.starts_with("TLS_ECDHE_");
        assert_eq!(AVAILABLE_SUITES.iter().filter(of_tls13).count(), 3);
        for name in AVAILABLE_SUITES.iter().filter(|name| !of_tls13(name)) {
            assert!(suite(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_certificate_is_made_once() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().expect("a directory");
        let directory = dir.path().join("fixtures/client");
        let wanted = SelfSigned {
            directory: directory.clone(),
            hosts: vec!["127.0.0.1".to_owned()],
            years: 1,
        };
        let now = Duration::from_secs(1_800_000_000);
        let names = ["cert.pem", "key.pem"].map(|name| directory.join(name));
        let read = || {
            make(&wanted, now).expect("makes");
            names
                .each_ref()
                .map(|path| std::fs::read(path).expect("reads"))
        };
        let mode = |path: &std::path::Path| {
            let found = std::fs::metadata(path).expect("is there");
            found.permissions().mode() & 0o777
        };
        let first = read();
        assert_eq!(read(), first);
        assert_eq!(mode(&names[1]), 0o600);
        for made in [&directory, &dir.path().join("fixtures")] {
            assert_eq!(mode(made), 0o700);
        }
        // One without the other is worth nothing.
        for path in &names {
            let before = read();
            std::fs::remove_file(path).expect("removes");
            let after = read();
            assert_ne!(after[0], before[0]);
            assert_ne!(after[1], before[1]);
        }
    }

    #[test]
    fn urls_of_one_address_share_a_listener() {
        let listen = |text: &str| {
            let url = Url::parse(text).expect(text);
            let address = match socket_file(text) {
                Some(path) => Address::File(path),
                None => Address::Tcp(url.host_port().parse().expect(text)),
            };
            Listen { url, address }
        };
        let urls = [
            "http://127.0.0.1:1",
            "https://127.0.0.1:1",
            "https://127.0.0.1:2",
            "http://127.0.0.1:3",
            "unixs:///run/s",
            "unix:///run/s",
        ];
        let found = Endpoint::of(&urls.map(listen));
        let found: Vec<_> = found
            .iter()
            .map(|one| (one.address.to_string(), one.plain, one.tls))
            .collect();
        let expected = [
            ("127.0.0.1:1", true, true),
            ("127.0.0.1:2", false, true),
            ("127.0.0.1:3", true, false),
            ("/run/s", true, true),
        ];
        let expected = expected.map(|(address, plain, tls)| (address.to_owned(), plain, tls));
        assert_eq!(found, expected);
    }
}
