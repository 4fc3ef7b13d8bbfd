//! Certificates of the first version of X.509, as `openssl x509 -req` makes them without a file of
//! extensions.

use super::*;

const CERTIFICATE: &str = include_str!("../testdata/v1.pem");
const KEY: &str = include_str!("../testdata/v1.key.pem");
const AUTHORITY: &str = include_str!("../testdata/v1.ca.pem");

#[tokio::test]
async fn one_of_a_client_is_refused_for_its_version() {
    let authority = Authority::new("ca");
    let pair = authority.issue(None, &["server.test"]);
    let old = Pair {
        pem: CERTIFICATE.to_owned(),
        der: pem::parse(CERTIFICATE).expect("PEM").into_contents().into(),
        key: KeyPair::from_pem(KEY).expect("a key"),
    };
    let files = Files::new();
    let settings = files.settings(&pair, Some(&[&authority.pair]));
    // Its authority is trusted, and then it is itself.
    for trusted in [AUTHORITY, CERTIFICATE] {
        files.write("ca.pem", trusted);
        let server = server(&settings).expect("starts");
        for version in [Version::Tls12, Version::Tls13] {
            let mut offer = Offer::trusting(&authority.pair);
            offer.protocol.most = version;
            let config = offer.config();
            // The library's client does not show such a one unless it is made to.
            let key = PrivateKeyDer::try_from(old.key.serialize_der()).expect("a key");
            let provider = config.crypto_provider().clone();
            let key = provider.key_provider.load_private_key(key).expect("a key");
            let shown = rustls::sign::CertifiedKey::new(vec![old.der.clone()], key);
            let mut config = config;
            config.client_auth_cert_resolver =
                Arc::new(rustls::sign::SingleCertAndKey::from(shown));
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            let name = ServerName::try_from("server.test").expect("a name");
            let here = IpAddr::from([127, 0, 0, 1]);
            let both = async {
                tokio::join!(
                    server.accept(ours, Some(here), Versions::Both),
                    TlsConnector::from(Arc::new(config)).connect(name, theirs)
                )
            };
            let (accepted, _) = tokio::time::timeout(LIMIT, both).await.expect("in time");
            let refused = accepted.map(|_| ()).expect_err("is refused");
            let expected = "x509: certificate of version 1, and version 3 is needed";
            assert_eq!(refused.reason, expected);
            let shown = refused.certificate.expect("was shown");
            assert_eq!(shown.common_name, "old");
        }
    }
}

#[test]
fn one_of_a_server_is_refused_at_the_start() {
    let files = Files::new();
    let settings = ServerSettings {
        certificate: files.write("cert.pem", CERTIFICATE),
        key: files.write("key.pem", KEY),
        clients: None,
        protocol: any(),
    };
    let error = server(&settings).err().expect("is refused").to_string();
    let expected = "cert.pem: its certificate is of X.509 version 1, and version 3 is needed";
    assert!(error.contains(expected), "{error}");
}
