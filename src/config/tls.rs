//! TLS flags, as far as they can be checked without a certificate: etcd refuses unknown names even
//! if nothing is encrypted.

use super::go_syntax::quote;
use super::refusal::Refusal;
use super::values::Values;

/// Oldest first.
const VERSIONS: [&str; 2] = ["TLS1.2", "TLS1.3"];

/// What Go's TLS calls its cipher suites, those that it thinks insecure included, and two older
/// names that etcd takes beside them.
const CIPHER_SUITES: [&str; 27] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_RC4_128_SHA",
];

/// Checks names of versions and cipher suites.
///
/// # Errors
/// etcd's texts.
pub fn check(values: &Values) -> Result<(), Refusal> {
    let (min, max) = (
        values.text("tls-min-version"),
        values.text("tls-max-version"),
    );
    let (least, most) = (version(min)?, version(max)?);
    if most.is_some() && least > most {
        let text = format!("min version ({min}) is greater than max version ({max})");
        return Err(Refusal::Verify(text));
    }
    let suites = values.words("cipher-suites");
    let mut suites = suites.iter().filter(|name| !name.is_empty()).peekable();
    if least == version("TLS1.3")? && suites.peek().is_some() {
        let text = "cipher suites cannot be configured when only TLS1.3 is enabled";
        return Err(Refusal::Verify(text.to_owned()));
    }
    match suites.find(|name| !CIPHER_SUITES.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Refusal::Start(format!(
            "unexpected TLS cipher suite {}",
            quote(name)
        ))),
    }
}

/// A version's place in the order; nothing leaves it open.
fn version(name: &str) -> Result<Option<usize>, Refusal> {
    if name.is_empty() {
        return Ok(None);
    }
    match VERSIONS.iter().position(|known| *known == name) {
        Some(place) => Ok(Some(place)),
        None => Err(Refusal::Verify(format!(
            "unexpected TLS version {} (must be one of: TLS1.2, TLS1.3)",
            quote(name)
        ))),
    }
}
