//! Handshakes with certificates of a test's own authorities.

mod expiry;
mod hello;
mod reread;
mod revoked;
mod self_signed;
mod versions;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CipherSuite, ClientConfig, ProtocolVersion, RootCertStore};
use tokio_rustls::TlsConnector;

use super::{
    Allowed, Certificate, ClientSettings, Clients, Error, Protocol, Refused, ServerSettings,
    Session, TlsClient, TlsServer, Version, suites,
};
use crate::net::Versions;

const LIMIT: Duration = Duration::from_secs(20);

/// The name in a client's certificate, or the reason of its refusal.
type Expected<'a> = Result<Option<&'a str>, &'a str>;
/// Of protocols.
type Names<'a> = &'a [&'a [u8]];
/// The protocol that was agreed on, if any, or nothing where there is no connection.
type Spoken<'a> = Result<Option<&'a [u8]>, ()>;

/// A certificate with its key.
struct Pair {
    pem: String,
    der: CertificateDer<'static>,
    key: KeyPair,
}

/// An authority.
struct Authority {
    pair: Pair,
    params: CertificateParams,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signs");
        let pair = Pair {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            key,
        };
        Self { pair, params }
    }

    fn issue(&self, common_name: Option<&str>, names: &[&str]) -> Pair {
        self.issue_with(
            KeyPair::generate().expect("a key"),
            common_name,
            names,
            |_| (),
        )
    }

    fn issue_with(
        &self,
        key: KeyPair,
        common_name: Option<&str>,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let issuer = Issuer::from_params(&self.params, &self.pair.key);
        let certificate = params.signed_by(&key, &issuer).expect("signs");
        Pair {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            key,
        }
    }
}

/// The files of a server, in a directory that is removed with them.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("writes");
        path
    }

    /// A server with this pair, whose clients need a certificate of these authorities, if any.
    fn settings(&self, pair: &Pair, authorities: Option<&[&Pair]>) -> ServerSettings {
        let bundle = authorities.map(|all| {
            let all: String = all.iter().map(|one| one.pem.as_str()).collect();
            self.write("ca.pem", &all)
        });
        ServerSettings {
            certificate: self.write("cert.pem", &pair.pem),
            key: self.write("key.pem", &pair.key.serialize_pem()),
            clients: bundle.map(|path| Clients {
                authorities: Some(path),
                revoked: None,
                allowed: Allowed::default(),
                checks_source: false,
            }),
            protocol: any(),
        }
    }
}

fn any() -> Protocol {
    Protocol {
        least: Version::Tls12,
        most: Version::Tls13,
        cipher_suites: Vec::new(),
    }
}

/// What a client offers.
struct Offer<'a> {
    trusts: &'a Pair,
    shows: Option<&'a Pair>,
    protocol: Protocol,
    alpn: Names<'a>,
}

impl<'a> Offer<'a> {
    fn trusting(trusts: &'a Pair) -> Self {
        Self {
            trusts,
            shows: None,
            protocol: any(),
            alpn: &[],
        }
    }

    fn showing(self, shows: &'a Pair) -> Self {
        Self {
            shows: Some(shows),
            ..self
        }
    }

    fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.trusts.der.clone()).expect("an authority");
        let builder = ClientConfig::builder_with_provider(suites::provider(&self.protocol))
            .with_protocol_versions(&suites::versions(&self.protocol))
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match self.shows {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let key = PrivateKeyDer::try_from(pair.key.serialize_der()).expect("a key");
                let chain = vec![pair.der.clone()];
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.to_vec()).collect();
        config
    }
}

/// What came of a handshake.
#[derive(Debug)]
struct Agreed {
    session: Session,
    protocol: Option<Vec<u8>>,
    version: Option<ProtocolVersion>,
    suite: Option<CipherSuite>,
}

async fn handshake(
    server: &TlsServer,
    offer: &Offer<'_>,
    versions: Versions,
) -> Result<Agreed, Refused> {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let connector = TlsConnector::from(Arc::new(offer.config()));
    let name = ServerName::try_from("server.test").expect("a name");
    let both = async {
        tokio::join!(
            server.accept(ours, Some(IpAddr::from([127, 0, 0, 1])), versions),
            connector.connect(name, theirs)
        )
    };
    let (accepted, _) = tokio::time::timeout(LIMIT, both).await.expect("in time");
    let (stream, session) = accepted?;
    let connection = stream.get_ref().1;
    Ok(Agreed {
        session,
        protocol: connection.alpn_protocol().map(<[u8]>::to_vec),
        version: connection.protocol_version(),
        suite: connection
            .negotiated_cipher_suite()
            .map(|suite| suite.suite()),
    })
}

/// A server for any client, and how one connects to it as `server.test`.
pub fn open_server() -> (Arc<TlsServer>, Arc<ClientConfig>) {
    let authority = Authority::new("ca");
    let pair = authority.issue(None, &["server.test"]);
    let server = server(&Files::new().settings(&pair, None)).expect("starts");
    (server, Arc::new(Offer::trusting(&authority.pair).config()))
}

/// A member's server and how others connect to it, both with a certificate for `localhost`. The
/// files are in the directory.
pub fn members() -> (tempfile::TempDir, Arc<TlsServer>, Arc<TlsClient>) {
    let authority = Authority::new("ca");
    let pair = authority.issue(None, &["localhost", "127.0.0.1"]);
    let files = Files::new();
    let mut settings = files.settings(&pair, Some(&[&authority.pair]));
    let client = ClientSettings {
        pair: Some((settings.certificate.clone(), settings.key.clone())),
        verifies: true,
        authorities: Some(files.path("ca.pem")),
        revoked: None,
        allowed: Allowed::default(),
        protocol: any(),
    };
    settings.clients.as_mut().expect("demanded").checks_source = true;
    let client = TlsClient::new("test", client).expect("starts");
    (files.dir, server(&settings).expect("starts"), client)
}

fn server(settings: &ServerSettings) -> Result<Arc<TlsServer>, Error> {
    TlsServer::new("test", settings.clone())
}

#[tokio::test]
async fn clients_show_what_is_demanded() {
    let (authority, other) = (Authority::new("ca"), Authority::new("other"));
    let pair = authority.issue(Some("server"), &["server.test"]);
    let alice = authority.issue(Some("alice"), &["alice.test", "10.0.0.7"]);
    let nameless = authority.issue(None, &["nameless.test"]);
    let unknown_issuer = other.issue(Some("alice"), &["alice.test"]);
    let of_server = authority.issue_with(
        KeyPair::generate().expect("a key"),
        Some("alice"),
        &[],
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
    );
    let expired = authority.issue_with(
        KeyPair::generate().expect("a key"),
        Some("alice"),
        &[],
        |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1),
    );
    let myself = Authority::new("myself");
    let files = Files::new();
    let trusted = [&authority.pair, &myself.pair];
    let demanding = files.settings(&pair, Some(&trusted));
    let hosts = |names: &[&str]| {
        let mut settings = demanding.clone();
        let clients = settings.clients.as_mut().expect("demanded");
        clients.allowed.host_names = names.iter().map(|name| (*name).to_owned()).collect();
        settings
    };
    let common_names = |names: &[&str]| {
        let mut settings = demanding.clone();
        let clients = settings.clients.as_mut().expect("demanded");
        clients.allowed.common_names = names.iter().map(|name| (*name).to_owned()).collect();
        settings
    };
    let open = ServerSettings {
        clients: None,
        ..demanding.clone()
    };
    let unknown =
        "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    let not_allowed = "client certificate authentication failed";
    // What is shown, and the name that is found in it or the reason of the refusal.
    let cases: [(&ServerSettings, Option<&Pair>, Expected<'_>); 16] = [
        (&open, None, Ok(None)),
        (&open, Some(&alice), Ok(None)),
        (
            &demanding,
            None,
            Err("tls: client didn't provide a certificate"),
        ),
        (&demanding, Some(&alice), Ok(Some("alice"))),
        (&demanding, Some(&nameless), Ok(Some(""))),
        (&demanding, Some(&unknown_issuer), Err(unknown)),
        (
            &demanding,
            Some(&of_server),
            Err(
                "tls: failed to verify certificate: x509: certificate specifies an incompatible key usage",
            ),
        ),
        (
            &demanding,
            Some(&expired),
            Err(
                "tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time ",
            ),
        ),
        // One that signs itself and is trusted.
        (&demanding, Some(&myself.pair), Ok(Some("myself"))),
        (&demanding, Some(&other.pair), Err(unknown)),
        (&hosts(&["alice.test"]), Some(&alice), Ok(Some("alice"))),
        (
            &hosts(&["x.test", "10.0.0.7"]),
            Some(&alice),
            Ok(Some("alice")),
        ),
        (&hosts(&["alice"]), Some(&alice), Err(not_allowed)),
        (
            &common_names(&["bob", "alice"]),
            Some(&alice),
            Ok(Some("alice")),
        ),
        (&common_names(&["bob"]), Some(&alice), Err(not_allowed)),
        (&common_names(&["bob"]), Some(&nameless), Err(not_allowed)),
    ];
    for (case, (settings, shows, expected)) in cases.into_iter().enumerate() {
        for version in [Version::Tls12, Version::Tls13] {
            let mut offer = Offer::trusting(&authority.pair);
            offer.shows = shows;
            offer.protocol.most = version;
            offer.protocol.least = version;
            let server = server(settings).expect("starts");
            let found = handshake(&server, &offer, Versions::Both).await;
            match (found, expected) {
                (Ok(agreed), Ok(name)) => {
                    let found = agreed.session.certificate;
                    let found = found.as_ref().map(|one| one.common_name.as_str());
                    assert_eq!(found, name, "case {case}");
                }
                (Err(refused), Err(reason)) => {
                    assert!(
                        refused.reason.starts_with(reason),
                        "case {case}: {refused:?}"
                    );
                    assert_eq!(refused.server_name, "server.test");
                    let shown = shows.and_then(|pair| Certificate::of(&pair.der));
                    assert_eq!(refused.certificate, shown, "case {case}");
                }
                (found, expected) => panic!("case {case}: {found:?}, not {expected:?}"),
            }
        }
    }
    let names = Certificate::of(&alice.der).expect("a certificate");
    assert_eq!(names.dns_names, ["alice.test"]);
    assert_eq!(names.ip_addresses, [IpAddr::from([10, 0, 0, 7])]);
}

#[tokio::test]
async fn versions_suites_and_protocols_are_agreed_on() {
    let authority = Authority::new("ca");
    let pair = authority.issue(Some("server"), &["server.test"]);
    let files = Files::new();
    let mut settings = files.settings(&pair, None);
    let suite = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
    settings.protocol.cipher_suites = vec![suite.to_owned()];
    let served = server(&settings).expect("starts");
    let mut offer = Offer::trusting(&authority.pair);
    offer.protocol.most = Version::Tls12;
    let agreed = handshake(&served, &offer, Versions::Both)
        .await
        .expect("agrees");
    assert_eq!(agreed.suite.and_then(|suite| suite.as_str()), Some(suite));
    assert_eq!(agreed.version, Some(ProtocolVersion::TLSv1_2));
    settings.protocol.least = Version::Tls13;
    let served = server(&settings).expect("starts");
    handshake(&served, &offer, Versions::Both)
        .await
        .expect_err("no version in common");
    // What is offered, what is spoken, and what comes of it.
    let protocols: [(Names<'_>, Versions, Spoken<'_>); 8] = [
        (&[], Versions::Both, Ok(None)),
        (&[b"h2"], Versions::Both, Ok(Some(b"h2"))),
        (&[b"http/1.1"], Versions::Both, Ok(Some(b"http/1.1"))),
        (&[b"http/1.1", b"h2"], Versions::Both, Ok(Some(b"h2"))),
        (
            &[b"h2", b"http/1.1"],
            Versions::Http1,
            Ok(Some(b"http/1.1")),
        ),
        (&[b"h2", b"http/1.1"], Versions::Http2, Ok(Some(b"h2"))),
        (&[b"http/1.1"], Versions::Http2, Err(())),
        (&[b"foo"], Versions::Both, Err(())),
    ];
    for (alpn, versions, expected) in protocols {
        let mut offer = Offer::trusting(&authority.pair);
        offer.alpn = alpn;
        let agreed = handshake(&served, &offer, versions).await;
        let agreed = agreed.map(|agreed| agreed.protocol).map_err(|_| ());
        assert_eq!(
            agreed,
            expected.map(|name| name.map(<[u8]>::to_vec)),
            "{alpn:?}"
        );
    }
}

/// The key inside PKCS #8, in the older form of its kind.
fn older(key: &KeyPair, label: &str) -> String {
    let (_, parsed) = x509_parser::der_parser::parse_der(key.serialized_der()).expect("is DER");
    let parts = parsed.as_sequence().expect("PKCS #8").clone();
    let octets = parts[2].as_slice().expect("a key");
    pem::encode(&pem::Pem::new(label, octets))
}

#[tokio::test]
async fn keys_have_any_of_their_usual_forms() {
    let authority = Authority::new("ca");
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
    let rsa = authority.issue_with(rsa, None, &["server.test"], |_| ());
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let ed25519 = authority.issue_with(ed25519, None, &["server.test"], |_| ());
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).expect("a key");
    let p521 = authority.issue_with(p521, None, &["server.test"], |_| ());
    let p256 = authority.issue(None, &["server.test"]);
    let parameters =
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    let forms = [
        (&rsa, rsa.key.serialize_pem()),
        (&rsa, older(&rsa.key, "RSA PRIVATE KEY")),
        (&p256, p256.key.serialize_pem()),
        (&p256, older(&p256.key, "EC PRIVATE KEY")),
        (
            &p256,
            parameters.to_owned() + &older(&p256.key, "EC PRIVATE KEY"),
        ),
        (&ed25519, ed25519.key.serialize_pem()),
        (&p521, p521.key.serialize_pem()),
    ];
    for (case, (pair, key)) in forms.into_iter().enumerate() {
        let files = Files::new();
        let settings = files.settings(pair, None);
        files.write("key.pem", &key);
        let server = server(&settings).unwrap_or_else(|error| panic!("case {case}: {error}"));
        let offer = Offer::trusting(&authority.pair);
        let agreed = handshake(&server, &offer, Versions::Both).await;
        agreed.unwrap_or_else(|refused| panic!("case {case}: {refused:?}"));
    }
}

#[test]
fn unusable_files_are_refused() {
    let authority = Authority::new("ca");
    let pair = authority.issue(None, &["server.test"]);
    let other = authority.issue(None, &["server.test"]);
    let files = Files::new();
    let sound = files.settings(&pair, Some(&[&authority.pair]));
    let refusal = |name: &str, text: Option<&str>| {
        let path = files.path(name);
        let before = fs::read(&path).expect("reads");
        match text {
            None => fs::remove_file(&path).expect("removes"),
            Some(text) => fs::write(&path, text).expect("writes"),
        }
        let error = server(&sound).err().map(|error| error.to_string());
        fs::write(&path, before).expect("writes");
        error
            .unwrap_or_default()
            .replace(&*path_text(files.dir.path()), "DIR")
    };
    let cut = &pair.pem[..pair.pem.len() / 2];
    let cases = [
        (
            "cert.pem",
            None,
            "open DIR/cert.pem: no such file or directory",
        ),
        (
            "cert.pem",
            Some("x"),
            "DIR/cert.pem: it holds no certificate in PEM",
        ),
        ("cert.pem", Some(cut), "DIR/cert.pem: "),
        (
            "cert.pem",
            Some(other.pem.as_str()),
            "tls: private key does not match public key",
        ),
        (
            "key.pem",
            None,
            "open DIR/key.pem: no such file or directory",
        ),
        (
            "key.pem",
            Some(pair.pem.as_str()),
            "DIR/key.pem: it holds no private key in PEM",
        ),
        (
            "ca.pem",
            Some(""),
            "DIR/ca.pem: it holds no certificate in PEM",
        ),
    ];
    for (name, text, expected) in cases {
        let found = refusal(name, text);
        assert!(found.starts_with(expected), "{name}: {found}");
    }
    assert!(server(&sound).is_ok());
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

#[tokio::test]
async fn changed_files_count_from_the_next_connection() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let pair = old.issue(None, &["server.test"]);
    let files = Files::new();
    let settings = files.settings(&pair, Some(&[&old.pair]));
    let server = server(&settings).expect("starts");
    let (alice, bob) = (old.issue(Some("alice"), &[]), new.issue(Some("bob"), &[]));
    let connects = async |trusts: &Authority, shows: &Pair| {
        let offer = Offer::trusting(&trusts.pair).showing(shows);
        handshake(&server, &offer, Versions::Both).await.is_ok()
    };
    assert!(connects(&old, &alice).await);
    assert!(!connects(&old, &bob).await);
    // A bundle of both authorities, and then only the new one.
    files.write("ca.pem", &(old.pair.pem.clone() + &new.pair.pem));
    assert!(connects(&old, &alice).await);
    assert!(connects(&old, &bob).await);
    files.write("ca.pem", &new.pair.pem);
    assert!(!connects(&old, &alice).await);
    assert!(connects(&old, &bob).await);
    // A certificate whose key comes later.
    let next = new.issue(None, &["server.test"]);
    files.write("cert.pem", &next.pem);
    assert!(connects(&old, &bob).await);
    files.write("key.pem", &next.key.serialize_pem());
    assert!(!connects(&old, &bob).await);
    assert!(connects(&new, &bob).await);
    // A file that is broken, or away for a while.
    files.write("ca.pem", "-----BEGIN CERTIFICATE-----\nAAAA");
    assert!(connects(&new, &bob).await);
    fs::remove_file(files.path("ca.pem")).expect("removes");
    assert!(connects(&new, &bob).await);
    files.write("ca.pem", &old.pair.pem);
    assert!(!connects(&new, &bob).await);
    assert!(connects(&new, &alice).await);
}

#[tokio::test]
async fn servers_are_known_by_their_names_and_authorities() {
    let (authority, other) = (Authority::new("ca"), Authority::new("other"));
    let files = Files::new();
    let pair = authority.issue(Some("m1"), &["server.test", "10.0.0.7"]);
    let myself = Authority::new("myself").pair;
    let ca = files.write("ca1.pem", &(authority.pair.pem.clone() + &myself.pem));
    let none = Allowed::default();
    let named = |common: &[&str], hosts: &[&str]| Allowed {
        common_names: common.iter().map(|name| (*name).to_owned()).collect(),
        host_names: hosts.iter().map(|name| (*name).to_owned()).collect(),
    };
    let unknown_issuer = other.issue(Some("m1"), &["server.test"]);
    let cases = [
        (&pair, "server.test", &none, true),
        (&pair, "10.0.0.7", &none, true),
        (&pair, "other.test", &none, false),
        (&pair, "10.0.0.8", &none, false),
        (&unknown_issuer, "server.test", &none, false),
        // It is trusted, and has no name.
        (&myself, "server.test", &none, false),
        (&pair, "server.test", &named(&["m1"], &[]), true),
        (&pair, "server.test", &named(&["m2"], &[]), false),
        (&pair, "server.test", &named(&[], &["10.0.0.7"]), true),
        (&pair, "server.test", &named(&[], &["m1"]), false),
    ];
    for (case, (pair, host, allowed, expected)) in cases.into_iter().enumerate() {
        let settings = files.settings(pair, None);
        let server = server(&settings).expect("starts");
        let client = ClientSettings {
            pair: None,
            verifies: true,
            authorities: Some(ca.clone()),
            revoked: None,
            allowed: allowed.clone(),
            protocol: any(),
        };
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
        if let Ok(stream) = connected {
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        }
    }
}
