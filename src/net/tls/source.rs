//! Whether a certificate belongs to the address that it is shown from, as etcd asks of members: one
//! of its addresses is that one, or one of its names is that of the address, or has it.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::Certificate;

/// For all look-ups about one connection.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);
/// Each takes a thread for as long as the resolver does.
static LOOKUPS: Semaphore = Semaphore::const_new(8);

/// Checks a certificate that was shown from an address. One without any name passes.
///
/// # Errors
/// Go's words.
pub async fn check(certificate: &Certificate, source: IpAddr) -> Result<(), String> {
    let source = source.to_canonical();
    let Certificate {
        dns_names,
        ip_addresses,
        ..
    } = certificate;
    if dns_names.is_empty() && ip_addresses.is_empty() || ip_addresses.contains(&source) {
        return Ok(());
    }
    if dns_names.is_empty() {
        let addresses: Vec<_> = ip_addresses.iter().map(IpAddr::to_string).collect();
        let addresses = addresses.join(", ");
        return Err(format!(
            "x509: certificate is valid for {addresses}, not {source}"
        ));
    }
    let names = dns_names.clone();
    let found = tokio::time::timeout(LOOKUP_LIMIT, async move {
        let place = LOOKUPS.acquire().await.ok()?;
        let lookup = tokio::task::spawn_blocking(move || {
            // The resolver may take longer than anyone waits for it.
            let _place = place;
            is_named(&names, source)
        });
        lookup.await.ok()
    });
    match found.await {
        Ok(Some(true)) => Ok(()),
        _ => Err(format!(
            "tls: \"{source}\" does not match any of DNSNames [{}]",
            dns_names
                .iter()
                .map(|name| format!("{name:?}"))
                .collect::<Vec<_>>()
                .join(" ")
        )),
    }
}

/// Asks the machine's resolver. May block.
fn is_named(names: &[String], source: IpAddr) -> bool {
    // An address without a name has only those that lead to it.
    let name = dns_lookup::lookup_addr(&source).unwrap_or_default();
    if names.iter().any(|pattern| covers(pattern, &name)) {
        return true;
    }
    let plain = names.iter().filter(|name| !name.starts_with("*."));
    plain.into_iter().any(|name| {
        let addresses = (name.as_str(), 0).to_socket_addrs();
        let addresses = addresses.into_iter().flatten();
        addresses
            .into_iter()
            .any(|one| one.ip().to_canonical() == source)
    })
}

/// Whether a name, or one whose first part is a star, is that of a host.
fn covers(pattern: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.');
    if host.is_empty() {
        return false;
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(rest), Some((_, domain))) => rest.eq_ignore_ascii_case(domain),
        (Some(_), None) => false,
        (None, _) => pattern.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_part_of_a_name() {
        for (pattern, host, expected) in [
            ("a.test", "a.test", true),
            ("a.test", "A.test.", true),
            ("a.test", "b.a.test", false),
            ("*.test", "a.test", true),
            ("*.test", "b.a.test", false),
            ("*.test", "test", false),
            ("*.test", "", false),
            ("", "", false),
        ] {
            assert_eq!(covers(pattern, host), expected, "{pattern} {host}");
        }
    }

    #[tokio::test]
    async fn a_member_has_a_certificate_for_its_address() {
        let local = IpAddr::from([127, 0, 0, 1]);
        let certificate = |names: &[&str], addresses: &[IpAddr]| Certificate {
            dns_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ip_addresses: addresses.to_vec(),
            ..Certificate::default()
        };
        let other = IpAddr::from([10, 0, 0, 7]);
        for (names, addresses, expected) in [
            (&[][..], &[][..], Ok(())),
            (&[], &[other, local], Ok(())),
            (&["localhost"], &[other], Ok(())),
            (&["localhost"], &[], Ok(())),
            (
                &[],
                &[other],
                Err("x509: certificate is valid for 10.0.0.7, not 127.0.0.1"),
            ),
        ] {
            let certificate = certificate(names, addresses);
            let found = check(&certificate, local).await;
            assert_eq!(found, expected.map_err(str::to_owned), "{certificate:?}");
        }
        let mapped = "::ffff:127.0.0.1".parse().expect("an address");
        assert_eq!(check(&certificate(&[], &[local]), mapped).await, Ok(()));
    }
}
