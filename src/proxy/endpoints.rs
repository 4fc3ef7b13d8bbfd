//! Where a cluster's members are: the endpoints of the flags, or the SRV records of the services
//! `etcd-client-ssl` and `etcd-client`.
//!
//! Who answers for the DNS could name any host. So a member of the records is taken only if it has TLS
//! and shows a certificate for the records' domain, unless `--insecure-discovery` says otherwise.
//! etcd only checks whether the port accepts a connection.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::net::TcpStream;

use super::error::Error;
use crate::config::{ClientRecords, ClusterPlace, Note};
use crate::net::tls::{Allowed, ClientSettings, Protocol, TlsClient, Version};
use crate::server::discovery::dns::{Servers, Target};
use crate::server::logging;

/// For the handshake with a member that a record names.
const VALIDATION_LIMIT: Duration = Duration::from_secs(5);

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// As it was given, or a URL.
    pub url: String,
    pub host: String,
    pub port: u16,
    pub priority: u16,
    pub weight: u16,
}

/// Finds the members.
///
/// # Errors
/// An endpoint without a port, or records that cannot be had.
pub async fn find(place: &ClusterPlace) -> Result<Vec<Endpoint>, Error> {
    let mut found = Vec::new();
    if let Some(records) = &place.srv {
        found = discovered(records, &Servers::of_machine()).await?;
    }
    if found.is_empty() {
        found = given(&place.endpoints)?;
    }
    match found.is_empty() {
        true => Err(Error::Refused("no endpoints found".to_owned())),
        false => Ok(found),
    }
}

/// `HOST:PORT`, or a URL with it.
fn given(endpoints: &[String]) -> Result<Vec<Endpoint>, Error> {
    let parse = |url: &String| {
        let bare = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        let bare = bare.split(['/', '?']).next().unwrap_or_default();
        let (host, port) = host_port(bare)
            .ok_or_else(|| Error::Refused(format!("error parsing endpoint {url:?}")))?;
        Ok(Endpoint {
            url: url.clone(),
            host,
            port,
            priority: 0,
            weight: 0,
        })
    };
    endpoints.iter().map(parse).collect()
}

/// Takes `HOST:PORT` apart; an IPv6 address is in brackets.
fn host_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return None;
    }
    Some((bare.unwrap_or(host).to_owned(), port.parse().ok()?))
}

/// The addresses of a host; all of the machine's where there is none, as in Go.
///
/// # Errors
/// The resolver's.
async fn addresses(what: &'static str, host: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
    let failed = |error: io::Error| Error::Resolve {
        what,
        host: host.to_owned(),
        error,
    };
    let host = if host.is_empty() { "::" } else { host };
    let found = tokio::net::lookup_host((host, port)).await;
    Ok(found.map_err(failed)?.collect())
}

/// Where to listen for a `HOST:PORT`: of a name that has addresses of both kinds an IPv4 one is taken,
/// as in Go. None where the text is no such thing.
///
/// # Errors
/// The resolver's.
pub async fn listen_address(text: &str) -> Result<Option<SocketAddr>, Error> {
    let Some((host, port)) = host_port(text) else {
        return Ok(None);
    };
    Ok(preferred(&addresses("listen host", &host, port).await?))
}

fn preferred(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    let ipv4 = addresses.iter().find(|one| one.is_ipv4());
    ipv4.or(addresses.first()).copied()
}

/// A process that is a member of its own cluster would call itself until nothing is left.
///
/// # Errors
/// It is one, or an endpoint has no address.
pub async fn refuse_itself(
    who: &str,
    listen_addr: &str,
    listening: SocketAddr,
    endpoints: &[Endpoint],
) -> Result<(), Error> {
    for Endpoint { host, port, .. } in endpoints {
        for found in addresses("endpoint host", host, *port).await? {
            if is_reached(listening, found) {
                return Err(Error::Refused(format!(
                    "SRV or endpoint ({host}:{port}->{found}) should not resolve to the {who} listen addr ({listen_addr})"
                )));
            }
        }
    }
    Ok(())
}

/// Whether a member's URL leads to who listens at `listening`, as far as its host has an address now.
pub async fn is_itself(url: &str, listening: SocketAddr) -> bool {
    // What names no host and port is no address of the network.
    let Ok(endpoints) = given(&[url.to_owned()]) else {
        return false;
    };
    let checked = refuse_itself("proxy", "", listening, &endpoints).await;
    matches!(checked, Err(Error::Refused(_)))
}

/// Whether who connects to `to` reaches who listens at `listening`.
fn is_reached(listening: SocketAddr, to: SocketAddr) -> bool {
    let (own, other) = (listening.ip().to_canonical(), to.ip().to_canonical());
    let same = own == other || own.is_unspecified() && is_of_this_machine(other);
    same && listening.port() == to.port()
}

fn is_of_this_machine(address: IpAddr) -> bool {
    // Only an own address can be bound.
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

async fn discovered(records: &ClientRecords, servers: &Servers) -> Result<Vec<Endpoint>, Error> {
    let suffix = match records.service.as_str() {
        "" => String::new(),
        service => format!("-{service}"),
    };
    let mut found = Vec::new();
    let mut reasons = Vec::new();
    for (scheme, service) in [("https", "etcd-client-ssl"), ("http", "etcd-client")] {
        let name = format!("_{service}{suffix}._tcp.{}", records.domain);
        match servers.srv(&name).await {
            Ok(targets) => found.extend(targets.into_iter().map(|one| of_record(scheme, one))),
            Err(reason) => reasons.push(reason),
        }
    }
    if reasons.len() == 2 {
        let reasons = reasons.join(" and ");
        return Err(Error::Refused(format!("dns lookup errors: {reasons}")));
    }
    say("discovered cluster from SRV", records, &found);
    if records.insecure {
        return Ok(found);
    }
    say("validating discovered SRV endpoints", records, &found);
    let validator = validator(records).map_err(crate::server::Error::from)?;
    let mut valid = Vec::new();
    let mut reasons = Vec::new();
    for endpoint in found {
        match validate(&validator, &records.domain, &endpoint).await {
            Ok(()) => valid.push(endpoint),
            Err(reason) => reasons.push(reason),
        }
    }
    match reasons.is_empty() {
        true => say("using validated discovered SRV endpoints", records, &valid),
        false => {
            let note = Note::warn("failed to validate discovered endpoints")
                .with("srv-server", records.domain.as_str())
                .with("endpoints", urls(&valid))
                .with("error", reasons.join(","));
            logging::notes(&[note]);
        }
    }
    Ok(valid)
}

fn of_record(scheme: &str, target: Target) -> Endpoint {
    Endpoint {
        url: format!("{scheme}://{}:{}", target.host, target.port),
        host: target.host,
        port: target.port,
        priority: target.priority,
        weight: target.weight,
    }
}

fn urls(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(|one| one.url.clone()).collect()
}

fn say(msg: &str, records: &ClientRecords, endpoints: &[Endpoint]) {
    let note = Note::info(msg)
        .with("srv-server", records.domain.as_str())
        .with("endpoints", urls(endpoints));
    logging::notes(&[note]);
}

fn validator(records: &ClientRecords) -> Result<std::sync::Arc<TlsClient>, crate::net::tls::Error> {
    let settings = ClientSettings {
        pair: None,
        verifies: true,
        authorities: records.authorities.clone(),
        revoked: None,
        allowed: Allowed::default(),
        protocol: any_protocol(),
    };
    TlsClient::new("connections to discovered members", settings)
}

/// Every version and cipher suite that there is.
pub fn any_protocol() -> Protocol {
    Protocol {
        least: Version::Tls12,
        most: Version::Tls13,
        cipher_suites: Vec::new(),
    }
}

async fn validate(validator: &TlsClient, domain: &str, endpoint: &Endpoint) -> Result<(), String> {
    let url = &endpoint.url;
    if !url.starts_with("https://") {
        return Err(format!("{url:?} is insecure"));
    }
    let handshake = async {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        validator.connect(domain, stream).await
    };
    let shaken = tokio::time::timeout(VALIDATION_LIMIT, handshake).await;
    let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let failed = |error| format!("{url:?} failed to dial ({error})");
    shaken.map(drop).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_a_host_and_a_port() {
        for (text, expected) in [
            ("127.0.0.1:2379", Some(("127.0.0.1", 2379))),
            ("http://a.test:1/x", Some(("a.test", 1))),
            ("https://[::1]:2", Some(("::1", 2))),
            (":3", Some(("", 3))),
            ("a.test", None),
            ("::1:2", None),
            ("a.test:", None),
            ("a.test:70000", None),
        ] {
            let found = given(&[text.to_owned()]).ok();
            let found = found.map(|all| (all[0].host.clone(), all[0].port));
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[tokio::test]
    async fn a_member_of_the_dns_shows_a_certificate_for_the_domain() {
        use crate::net::Versions;
        use tokio::net::TcpListener;

        let (_files, server, client) = crate::net::tls::tests::members();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("is bound").port();
        tokio::spawn(async move {
            for _ in 0..2 {
                let (stream, remote) = listener.accept().await.expect("accepts");
                let from = Some(remote.ip());
                // A caller that refuses the certificate ends the handshake.
                let _ = server.accept(stream, from, Versions::Both).await;
            }
        });
        let endpoint = |scheme: &str| Endpoint {
            url: format!("{scheme}://127.0.0.1:{port}"),
            host: "127.0.0.1".to_owned(),
            port,
            priority: 0,
            weight: 0,
        };
        let https = endpoint("https");
        assert_eq!(validate(&client, "localhost", &https).await, Ok(()));
        let other = validate(&client, "a.test", &https).await;
        assert!(other.is_err_and(|reason| reason.contains("failed to dial")));
        let plain = validate(&client, "localhost", &endpoint("http")).await;
        assert!(plain.is_err_and(|reason| reason.ends_with("is insecure")));
    }

    #[test]
    fn a_name_is_listened_at_by_ipv4() {
        for (addresses, expected) in [
            (&["[::1]:1", "127.0.0.1:1"][..], Some("127.0.0.1:1")),
            (&["127.0.0.2:1", "127.0.0.1:1"], Some("127.0.0.2:1")),
            (&["[::1]:1"], Some("[::1]:1")),
            (&[], None),
        ] {
            let addresses: Vec<SocketAddr> = addresses
                .iter()
                .map(|text| text.parse().expect(text))
                .collect();
            let expected = expected.map(|text| text.parse().expect(text));
            assert_eq!(preferred(&addresses), expected, "{addresses:?}");
        }
    }

    #[test]
    fn a_listener_is_known_by_every_own_address() {
        for (listening, to, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("[::]:1", "127.0.0.2:1", true),
            ("0.0.0.0:1", "192.0.2.1:1", false),
        ] {
            let [own, other] = [listening, to].map(|text| text.parse().expect(text));
            assert_eq!(is_reached(own, other), expected, "{listening} {to}");
        }
    }
}
