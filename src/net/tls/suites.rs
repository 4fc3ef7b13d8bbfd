//! Versions and cipher suites, by etcd's names.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CipherSuite, SupportedCipherSuite, SupportedProtocolVersion};

use super::{Protocol, Version};

/// Those of TLS 1.2 that there are: Go's name, and the library's.
const TLS12_SUITES: [(&str, CipherSuite); 6] = [
    (
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

/// A suite of TLS 1.2 by its name; etcd takes two of them without their hash as well.
pub fn suite(name: &str) -> Option<CipherSuite> {
    let known = TLS12_SUITES.iter();
    let mut known = known.filter(|(known, _)| {
        *known == name || known.strip_suffix("_SHA256") == Some(name) && name.ends_with("POLY1305")
    });
    known.next().map(|(_, suite)| *suite)
}

/// The library's cryptography, with the suites that may be used.
pub fn provider(protocol: &Protocol) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    let chosen: Vec<_> = protocol
        .cipher_suites
        .iter()
        .filter_map(|name| suite(name))
        .collect();
    if !protocol.cipher_suites.is_empty() {
        provider.cipher_suites.retain(|found| match found {
            SupportedCipherSuite::Tls12(_) => chosen.contains(&found.suite()),
            SupportedCipherSuite::Tls13(_) => true,
        });
    }
    Arc::new(provider)
}

/// The versions that may be used, which are not none.
pub fn versions(protocol: &Protocol) -> Vec<&'static SupportedProtocolVersion> {
    let all = [
        (Version::Tls12, &rustls::version::TLS12),
        (Version::Tls13, &rustls::version::TLS13),
    ];
    let within = all
        .into_iter()
        .filter(|(version, _)| (protocol.least..=protocol.most).contains(version));
    within.map(|(_, version)| version).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_those_of_the_library() {
        let all = |suites: &[&str]| Protocol {
            least: Version::Tls12,
            most: Version::Tls13,
            cipher_suites: suites.iter().map(|name| (*name).to_owned()).collect(),
        };
        let library = aws_lc_rs::default_provider().cipher_suites;
        let tls12 = |suites: &[SupportedCipherSuite]| {
            let is_12 =
                |suite: &&SupportedCipherSuite| matches!(suite, SupportedCipherSuite::Tls12(_));
            suites.iter().filter(is_12).count()
        };
        assert_eq!(tls12(&library), TLS12_SUITES.len());
        for (name, expected) in TLS12_SUITES {
            let found = &provider(&all(&[name])).cipher_suites;
            assert_eq!(tls12(found), 1, "{name}");
            assert!(found.iter().any(|found| found.suite() == expected));
            assert_eq!(found.len(), library.len() - TLS12_SUITES.len() + 1);
        }
        for (name, count) in [
            ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", 1),
            ("TLS_ECDHE_RSA_WITH_AES_128_GCM", 0),
            ("TLS_AES_128_GCM_SHA256", 0),
        ] {
            assert_eq!(
                tls12(&provider(&all(&[name])).cipher_suites),
                count,
                "{name}"
            );
        }
        assert_eq!(provider(&all(&[])).cipher_suites.len(), library.len());
    }
}
