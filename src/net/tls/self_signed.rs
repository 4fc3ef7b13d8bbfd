//! A certificate that signs itself, as etcd makes it: an authority of its own, for servers, on P-521.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::Error;

const ORGANIZATION: &str = "etcd";
const SECONDS_OF_A_YEAR: i64 = 365 * 24 * 60 * 60;
/// 9999-12-31: none is valid for longer.
const LAST_SECOND: i64 = 253_402_300_799;

/// A certificate and its key, both in PEM.
pub struct SelfSigned {
    pub certificate: String,
    pub key: Zeroizing<String>,
    /// When it expires.
    pub not_after: OffsetDateTime,
}

/// Makes one for the names and addresses of a server; `now` is the time since 1970.
///
/// # Errors
/// A host that no certificate can name.
pub fn self_signed(hosts: &[String], now: Duration, years: u64) -> Result<SelfSigned, Error> {
    let failed = |reason: String| Error::Make {
        hosts: hosts.to_vec(),
        reason,
    };
    let from = i64::try_from(now.as_secs()).unwrap_or(LAST_SECOND);
    let years = i64::try_from(years).unwrap_or(i64::MAX);
    let until = from.saturating_add(SECONDS_OF_A_YEAR.saturating_mul(years));
    let time = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds.min(LAST_SECOND));
    let not_before = time(from).map_err(|error| failed(error.to_string()))?;
    let not_after = time(until).map_err(|error| failed(error.to_string()))?;

    let params = CertificateParams::new(hosts);
    let mut params = params.map_err(|error| failed(error.to_string()))?;
    params.distinguished_name = DistinguishedName::new();
    let name = &mut params.distinguished_name;
    name.push(DnType::OrganizationName, ORGANIZATION);
    params.not_before = not_before;
    params.not_after = not_after;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512);
    let key = key.map_err(|error| failed(error.to_string()))?;
    let signed = params.self_signed(&key);
    let signed = signed.map_err(|error| failed(error.to_string()))?;
    let secret = Zeroizing::new(key.serialize_der());
    Ok(SelfSigned {
        certificate: pem::encode(&pem::Pem::new("CERTIFICATE", signed.der().as_ref())),
        key: Zeroizing::new(pem::encode(&pem::Pem::new("PRIVATE KEY", &secret[..]))),
        not_after,
    })
}
