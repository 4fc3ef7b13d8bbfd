//! What comes in before a connection is encrypted: hellos, certificates, and operators' files.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::{Builder, Runtime};

use super::{Seed, memory};
use crate::net::Versions;
use crate::net::tls::{Allowed, Clients, Protocol, ServerSettings, TlsServer, Version, accepts};

const CERTIFICATE: &[u8] = include_bytes!("../net/tls/testdata/leaf.pem");
const KEY: &[u8] = include_bytes!("../net/tls/testdata/leaf.key.pem");
const AUTHORITY: &[u8] = include_bytes!("../net/tls/testdata/authority.pem");
const REVOKED: &[u8] = include_bytes!("../net/tls/testdata/revoked.der");
const REVOKED_TEXT: &[u8] = include_bytes!("../net/tls/testdata/revoked.pem");
const OLD: &[u8] = include_bytes!("../net/tls/testdata/v1.pem");
/// In 2030, when all of these are valid.
const NOW: Duration = Duration::from_secs(1_900_000_000);
/// A message of a handshake may have 64 KiB, and is there more than once while it is read.
const HANDSHAKE_BYTES: usize = 1 << 20;

/// The files of a server in a directory of their own.
struct Files(tempfile::TempDir);

const NAMES: [&str; 4] = ["cert", "key", "ca", "crl"];
const SOUND: [&[u8]; 4] = [CERTIFICATE, KEY, AUTHORITY, REVOKED];

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().expect("a directory"));
        for (name, bytes) in NAMES.iter().zip(SOUND) {
            files.write(name, bytes);
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("writes");
    }

    fn clients(&self) -> Clients {
        Clients {
            authorities: Some(self.path("ca")),
            revoked: Some(self.path("crl")),
            allowed: Allowed {
                common_names: Vec::new(),
                host_names: vec!["b.alice.test".to_owned()],
            },
            checks_source: false,
        }
    }

    fn settings(&self) -> ServerSettings {
        ServerSettings {
            certificate: self.path("cert"),
            key: self.path("key"),
            clients: Some(self.clients()),
            protocol: Protocol {
                least: Version::Tls12,
                most: Version::Tls13,
                cipher_suites: Vec::new(),
            },
        }
    }
}

struct Listening {
    runtime: Runtime,
    server: Arc<TlsServer>,
}

static LISTENING: LazyLock<Mutex<Listening>> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_time().build();
    let settings = Files::new();
    let server = TlsServer::new("fuzz", settings.settings()).expect("starts");
    // Its directory is gone, which changes nothing for it.
    Mutex::new(Listening {
        runtime: runtime.expect("a runtime"),
        server,
    })
});

/// What a client sends and then ends never makes a connection.
pub fn hello(bytes: &[u8]) {
    let listening = LISTENING.lock();
    let (ours, mut theirs) = tokio::io::duplex(bytes.len() + HANDSHAKE_BYTES);
    let here = IpAddr::from([127, 0, 0, 1]);
    listening.runtime.block_on(async {
        theirs.write_all(bytes).await.expect("there is room");
        theirs.shutdown().await.expect("ends");
    });
    let refused = memory::within(HANDSHAKE_BYTES, || {
        let accepting = listening.server.accept(ours, Some(here), Versions::Both);
        listening.runtime.block_on(accepting).err()
    });
    let refused = refused.expect("nobody answered the server");
    assert!(!refused.reason.is_empty());
}

pub fn hello_seeds() -> Vec<Seed> {
    const TLS12: &[u8] = include_bytes!("../net/tls/testdata/tls12.hello");
    const TLS13: &[u8] = include_bytes!("../net/tls/testdata/tls13.hello");
    let change_cipher = [20, 3, 3, 0, 1, 1];
    let alert = [21, 3, 3, 0, 2, 2, 48];
    // A client's certificates in TLS 1.2, of which there are none.
    let none = [22, 3, 3, 0, 7, 11, 0, 0, 3, 0, 0, 0];
    vec![
        Seed::new("tls12", TLS12),
        Seed::new("tls13", TLS13),
        Seed::new("tls12-none", [TLS12, &none].concat()),
        Seed::new("tls13-alert", [TLS13, &change_cipher, &alert].concat()),
        Seed::new("http", "GET / HTTP/1.1\r\n\r\n"),
        Seed::new("empty", ""),
    ]
}

static CLIENTS: LazyLock<Mutex<Files>> = LazyLock::new(|| Mutex::new(Files::new()));

fn der(pem: &[u8]) -> Vec<u8> {
    pem::parse(pem).expect("PEM").into_contents()
}

/// The only certificate of a client that is accepted is that which was issued.
pub fn certificate(bytes: &[u8]) {
    let files = CLIENTS.lock();
    let accepted = accepts(&files.clients(), bytes, NOW).expect("sound files");
    assert_eq!(
        accepted,
        bytes == der(CERTIFICATE),
        "another one was issued"
    );
}

pub fn certificate_seeds() -> Vec<Seed> {
    vec![
        Seed::new("issued", der(CERTIFICATE)),
        Seed::new("authority", der(AUTHORITY)),
        Seed::new("version1", der(OLD)),
        Seed::new("revocations", REVOKED),
    ]
}

static REPLACED: LazyLock<Mutex<Files>> = LazyLock::new(|| Mutex::new(Files::new()));

/// The first byte says which file of a server is replaced by the rest. It starts or does not.
pub fn files(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    let which = usize::from(*which) % NAMES.len();
    let files = REPLACED.lock();
    let listening = LISTENING.lock();
    files.write(NAMES[which], bytes);
    memory::within(HANDSHAKE_BYTES, || {
        if let Ok(server) = TlsServer::new("fuzz", files.settings()) {
            listening.runtime.block_on(server.expiry());
        }
    });
    files.write(NAMES[which], SOUND[which]);
}

pub fn file_seeds() -> Vec<Seed> {
    let seed = |name: &str, which: u8, file: &[u8]| Seed::new(name, [&[which], file].concat());
    vec![
        seed("certificate", 0, CERTIFICATE),
        seed("chain", 0, &[CERTIFICATE, AUTHORITY].concat()),
        seed("version1", 0, OLD),
        seed("key", 1, KEY),
        seed("authority", 2, AUTHORITY),
        seed("bundle", 2, &[AUTHORITY, CERTIFICATE].concat()),
        seed("revocations", 3, REVOKED),
        seed("revocations-pem", 3, REVOKED_TEXT),
        seed("revocations-two", 3, &[REVOKED_TEXT, REVOKED_TEXT].concat()),
    ]
}
