//! The names in a certificate, and when it expires.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};

/// What a verified certificate says of its holder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// Empty if it has none; the last one if it has several, as in Go.
    pub common_name: String,
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<IpAddr>,
}

impl Certificate {
    /// None for what is no certificate.
    pub fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let common_name = parsed.subject().iter_common_name().last();
        let common_name = common_name.and_then(|name| name.as_str().ok());
        let mut names = Self {
            common_name: common_name.unwrap_or_default().to_owned(),
            ..Self::default()
        };
        // One that cannot be read has been refused before.
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        let general = alternatives.map(|found| &found.value.general_names);
        for name in general.into_iter().flatten() {
            match name {
                GeneralName::DNSName(name) => names.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(octets) => names.ip_addresses.extend(address(octets)),
                _ => {}
            }
        }
        Some(names)
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}

/// The version of a certificate of X.509, if it is none that the library has: it knows the third,
/// which alone has the names of servers and the usages of keys.
pub fn other_version(der: &CertificateDer<'_>) -> Option<u32> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let version = parsed.version();
    (version != X509Version::V3).then_some(version.0.saturating_add(1))
}

/// When certificates in use expire, in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// The first of what is shown to others; none if nothing is.
    pub shown: Option<i64>,
    /// The last of a file's authorities; none for the machine's.
    pub authorities: Option<i64>,
}

/// From when to when a certificate is valid, in seconds since 1970; as long as nothing says it, for
/// ever.
pub fn validity(der: &CertificateDer<'_>) -> (i64, i64) {
    match X509Certificate::from_der(der) {
        Ok((_, parsed)) => {
            let validity = parsed.validity();
            (
                validity.not_before.timestamp(),
                validity.not_after.timestamp(),
            )
        }
        Err(_) => (i64::MIN, i64::MAX),
    }
}

/// When each of these expires, of those that say so.
pub fn expiries(certificates: &[CertificateDer<'_>]) -> impl Iterator<Item = i64> {
    let parsed = certificates
        .iter()
        .map(|der| X509Certificate::from_der(der));
    let parsed = parsed.filter_map(Result::ok);
    parsed.map(|(_, certificate)| certificate.validity().not_after.timestamp())
}
