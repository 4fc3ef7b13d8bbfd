//! The members of a cluster from DNS: a record of `_etcd-server-ssl._tcp` or `_etcd-server._tcp`
//! for each, the first for those that are reached over https.
//!
//! The records do not name members, so this member recognises itself by its address, and the
//! others get numbers: their ids do not depend on names.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use super::dns::Servers;
use crate::config::{Config, DnsDiscovery, InitialCluster, Url};
use crate::server::Error;

/// Turns a host and a port into an address. May block.
type Address<'a> = &'a dyn Fn(&str, u16) -> io::Result<SocketAddr>;

/// Asks the DNS for the members.
pub async fn cluster(config: &Config, dns: &DnsDiscovery) -> Result<InitialCluster, Error> {
    let servers = Servers::of_machine();
    members(config, dns, &servers, &resolve)
        .await
        .map_err(|reason| Error::Refused(format!("error setting up initial cluster: {reason}")))
}

fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    // As in Go, an IPv4 address if there is one.
    let first = addresses.iter().find(|address| address.is_ipv4());
    first
        .or_else(|| addresses.first())
        .copied()
        .ok_or_else(|| io::Error::other("no such host"))
}

pub(super) async fn members(
    config: &Config,
    dns: &DnsDiscovery,
    servers: &Servers,
    address: Address<'_>,
) -> Result<InitialCluster, String> {
    let suffix = match dns.suffix.as_str() {
        "" => String::new(),
        suffix => format!("-{suffix}"),
    };
    let mut pairs = Vec::new();
    let mut reasons = Vec::new();
    for (scheme, service) in [("https", "etcd-server-ssl"), ("http", "etcd-server")] {
        let service = format!("{service}{suffix}");
        let found = records(config, &dns.domain, scheme, &service, servers, address).await;
        let shown = found.as_ref().err().map(String::as_str).unwrap_or_default();
        tracing::info!(
            "service-scheme" = scheme,
            "service-name" = service,
            "discovery-srv" = dns.domain,
            error = shown,
            "get cluster for {service} SRV"
        );
        match found {
            Ok(found) => pairs.extend(found),
            Err(reason) => reasons.push(reason),
        }
    }
    if pairs.is_empty() {
        return Err(reasons.join("\n"));
    }
    for pair in &pairs {
        tracing::info!(node = pair, "got bootstrap from DNS for etcd-server");
    }
    let cluster = InitialCluster::parse(&pairs.join(","), &config.initial_cluster_token)?;
    if !cluster.members().any(|(name, _)| name == config.name) {
        return Err(format!(
            "cannot find local etcd member {:?} in SRV records",
            config.name
        ));
    }
    Ok(cluster)
}

/// `NAME=URL` for each record of one service.
async fn records(
    config: &Config,
    domain: &str,
    scheme: &str,
    service: &str,
    servers: &Servers,
    address: Address<'_>,
) -> Result<Vec<String>, String> {
    let own = own_addresses(&config.initial_advertise_peer_urls, address)?;
    let failed = |reason: String| format!("error querying DNS SRV records for _{service} {reason}");
    let targets = servers
        .srv(&format!("_{service}._tcp.{domain}"))
        .await
        .map_err(failed)?;
    let mut pairs = Vec::new();
    let mut last_reason = String::new();
    let mut next_number = 0;
    for target in targets {
        let found = match address(&target.host, target.port) {
            Ok(found) => found,
            Err(error) => {
                let reason = crate::config::os_reason(&error);
                last_reason = format!("lookup {}: {reason}", target.host);
                continue;
            }
        };
        let url = format!("{scheme}://{}:{}", target.host, target.port);
        let own = own.get(&found);
        if let Some(own) = own.filter(|own| own.scheme.name() != scheme) {
            last_reason = format!(
                "bootstrap at {url} from DNS for {service} has scheme mismatch with expected peer {own}"
            );
            continue;
        }
        // A member without a name is numbered as well.
        let name = match own {
            Some(_) if !config.name.is_empty() => config.name.clone(),
            _ => {
                next_number += 1;
                (next_number - 1).to_string()
            }
        };
        pairs.push(format!("{name}={url}"));
    }
    match pairs.is_empty() {
        true => Err(failed(last_reason)),
        false => Ok(pairs),
    }
}

fn own_addresses<'a>(
    advertised: &'a [Url],
    address: Address<'_>,
) -> Result<BTreeMap<SocketAddr, &'a Url>, String> {
    let mut own = BTreeMap::new();
    for url in advertised {
        let failed = |reason: String| format!("lookup {}: {reason}", url.host);
        let port = url
            .port
            .parse()
            .map_err(|_| format!("address {}: invalid port", url.port))?;
        let found =
            address(&url.host, port).map_err(|error| failed(crate::config::os_reason(&error)))?;
        own.insert(found, url);
    }
    Ok(own)
}
