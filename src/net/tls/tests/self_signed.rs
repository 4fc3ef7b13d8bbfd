//! Certificates that sign themselves.

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::self_signed;
use super::*;

const YEAR: u64 = 365 * 24 * 60 * 60;

fn now() -> Duration {
    use crate::env::Clock as _;
    crate::env::SystemClock::new().wall()
}

#[test]
fn it_says_what_etcd_s_says() {
    let hosts = ["::1", "10.0.0.7", "localhost"].map(str::to_owned);
    let at = Duration::from_secs(1_800_000_000);
    let made = self_signed(&hosts, at, 2).expect("makes");
    let der = pem::parse(&made.certificate).expect("PEM");
    let (_, found) = X509Certificate::from_der(der.contents()).expect("a certificate");
    assert_eq!(found.subject().to_string(), "O=etcd");
    assert_eq!(found.issuer().to_string(), "O=etcd");
    let validity = found.validity();
    assert_eq!(validity.not_before.timestamp(), 1_800_000_000);
    let until = 1_800_000_000 + 2 * YEAR as i64;
    assert_eq!(validity.not_after.timestamp(), until);
    assert_eq!(made.not_after.unix_timestamp(), until);
    assert!(found.is_ca());
    let usage = found.extended_key_usage().expect("sound").expect("has it");
    assert!(usage.value.server_auth && !usage.value.client_auth && !usage.value.any);
    let usage = found.key_usage().expect("sound").expect("has it").value;
    assert!(usage.digital_signature() && usage.key_encipherment() && usage.crl_sign());
    assert!(!usage.key_cert_sign());
    // On P-521 a point has two numbers of 66 bytes.
    let point = &found.public_key().subject_public_key.data;
    assert_eq!(point.len(), 1 + 2 * 66);
    let names = Certificate::of(&der.contents().to_vec().into()).expect("a certificate");
    assert_eq!(names.dns_names, ["localhost"]);
    let addresses: Vec<_> = names.ip_addresses.iter().map(IpAddr::to_string).collect();
    assert_eq!(addresses, ["::1", "10.0.0.7"]);
    let for_ever = self_signed(&hosts, at, u64::MAX).expect("makes");
    assert_eq!(for_ever.not_after.year(), 9999);
    let refused = self_signed(&["b\u{fc}cher".to_owned()], at, 1).err();
    assert!(matches!(refused, Some(Error::Make { .. })), "{refused:?}");
}

#[tokio::test]
async fn it_serves_those_who_verify_nothing_or_trust_it() {
    let files = Files::new();
    let hosts = ["server.test".to_owned()];
    let expired = self_signed(&hosts, Duration::ZERO, 1).expect("makes");
    let sound = self_signed(&hosts, now(), 1).expect("makes");
    let other = self_signed(&hosts, now(), 1).expect("makes");
    // What is served, what is trusted, the name that is called, and whether that is enough.
    let cases = [
        (&sound, None, "server.test", true),
        (&sound, None, "other.test", true),
        (&expired, None, "server.test", true),
        (&sound, Some(&sound), "server.test", true),
        (&sound, Some(&sound), "other.test", false),
        (&sound, Some(&other), "server.test", false),
        (&expired, Some(&expired), "server.test", false),
    ];
    for (case, (serves, trusts, host, expected)) in cases.into_iter().enumerate() {
        let settings = ServerSettings {
            certificate: files.write("cert.pem", &serves.certificate),
            key: files.write("key.pem", &serves.key),
            clients: None,
            protocol: any(),
        };
        let client = ClientSettings {
            pair: Some((settings.certificate.clone(), settings.key.clone())),
            verifies: trusts.is_some(),
            authorities: trusts.map(|one| files.write("ca.pem", &one.certificate)),
            revoked: None,
            allowed: Allowed::default(),
            protocol: any(),
        };
        let server = server(&settings).expect("starts");
        let client = TlsClient::new("test", client).expect("starts");
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let here = IpAddr::from([127, 0, 0, 1]);
        let both = async {
            tokio::join!(
                server.accept(ours, Some(here), Versions::Both),
                client.connect(host, theirs)
            )
        };
        let (_, connected) = tokio::time::timeout(LIMIT, both).await.expect("in time");
        assert_eq!(connected.is_ok(), expected, "case {case}");
    }
}

#[tokio::test]
async fn who_verifies_nothing_still_wants_the_key() {
    let files = Files::new();
    let [shown, hidden] = [(), ()].map(|()| {
        let hosts = ["server.test".to_owned()];
        self_signed(&hosts, now(), 1).expect("makes")
    });
    // The library would not serve a key that is not the certificate's, so this is put together
    // from its parts.
    let der = pem::parse(&shown.certificate).expect("PEM").into_contents();
    let key = pem::parse(&*hidden.key).expect("PEM").into_contents();
    let key = PrivateKeyDer::try_from(key).expect("a key");
    let provider = suites::provider(&any());
    let key = provider.key_provider.load_private_key(key).expect("a key");
    let pair = rustls::sign::CertifiedKey::new(vec![der.into()], key);
    let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(pair));
    for version in [Version::Tls12, Version::Tls13] {
        let protocol = Protocol {
            least: version,
            most: version,
            cipher_suites: Vec::new(),
        };
        let config = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&suites::versions(&protocol))
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(resolver.clone());
        let client = ClientSettings {
            pair: None,
            verifies: false,
            authorities: Some(files.path("nowhere")),
            revoked: None,
            allowed: Allowed::default(),
            protocol,
        };
        let client = TlsClient::new("test", client).expect("starts");
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let server = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let both =
            async { tokio::join!(server.accept(ours), client.connect("server.test", theirs)) };
        let (_, connected) = tokio::time::timeout(LIMIT, both).await.expect("in time");
        let error = connected.err().map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("BadSignature")));
    }
}
