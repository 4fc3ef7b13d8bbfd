//! What clients show as tokens, and what operators name as keys.

use std::sync::LazyLock;
use std::time::Duration;

use super::Seed;
use crate::config::{SIGN_METHODS, SignMethod};
use crate::service::caller::User;
use crate::service::tokens::jwt::Jwt;
use crate::service::tokens::keys::Keys;
use crate::service::tokens::simple::{self, Table};

const NOW: Duration = Duration::from_secs(1_800_000_000);
const SECRET: &[u8] = b"a secret of the targets";

fn hs256() -> SignMethod {
    SIGN_METHODS[0]
}

static SIGNED: LazyLock<(Jwt, String)> = LazyLock::new(|| {
    let keys = Keys::of(hs256(), SECRET, b"").expect("a key");
    let jwt = Jwt::new(hs256(), Duration::from_secs(60), keys);
    let user = User {
        name: "alice".to_owned(),
        auth_revision: 7,
    };
    let token = jwt.sign(&user, NOW).expect("signed");
    (jwt, token)
});

/// The only tokens that are anyone's are those that were issued.
pub fn user(bytes: &[u8]) {
    let Ok(token) = std::str::from_utf8(bytes) else {
        return;
    };
    let (jwt, issued) = &*SIGNED;
    if jwt.user(token, NOW).is_some() {
        assert_eq!(token, issued);
    }
    let mut table = Table::new(Duration::from_secs(60));
    table.issue("abcdefghijklmnop.7", "alice", NOW);
    if table.user(token, 1, NOW).is_some() {
        assert_eq!(token, "abcdefghijklmnop.7");
        assert_eq!(simple::index_of(token), Some(7));
    }
}

pub fn user_seeds() -> Vec<Seed> {
    let (_, token) = &*SIGNED;
    let unsigned = token.rsplit_once('.').map_or("", |(signed, _)| signed);
    let vectors = include_str!("../service/tokens/testdata/etcd.txt");
    let mut seeds = vec![
        Seed::new("signed", token.as_str()),
        Seed::new("unsigned", format!("{unsigned}.")),
        Seed::new("simple", "abcdefghijklmnop.7"),
        Seed::new("future", "abcdefghijklmnop.18446744073709551615"),
        Seed::new("empty", ""),
    ];
    for line in vectors.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        if let [method, _, token] = words[..] {
            seeds.push(Seed::new(method, token));
        }
    }
    seeds
}

/// The first byte is the method, the second says how much of the rest is the private key's file.
/// Keys that are accepted sign what they verify.
pub fn keys(bytes: &[u8]) {
    let [number, parts, files @ ..] = bytes else {
        return;
    };
    let method = SIGN_METHODS[usize::from(*number) % SIGN_METHODS.len()];
    let middle = files.len() * usize::from(*parts) / 255;
    let (private, public) = files.split_at(middle);
    let Ok(keys) = Keys::of(method, private, public) else {
        return;
    };
    if let Ok(signature) = keys.sign(bytes) {
        assert!(keys.verifies(bytes, &signature), "{method:?}");
    }
}

pub fn key_seeds() -> Vec<Seed> {
    const RSA: &[u8] = include_bytes!("../service/tokens/testdata/rsa.pem");
    const RSA_PUBLIC: &[u8] = include_bytes!("../service/tokens/testdata/rsa.pub");
    const P256: &[u8] = include_bytes!("../service/tokens/testdata/p256.pem");
    const P521: &[u8] = include_bytes!("../service/tokens/testdata/p521.pkcs8.pem");
    const ED: &[u8] = include_bytes!("../service/tokens/testdata/ed.pem");
    const ED_PUBLIC: &[u8] = include_bytes!("../service/tokens/testdata/ed.pub");
    let seed = |name: &str, method: u8, parts: u8, file: &[u8]| {
        Seed::new(name, [&[method, parts], file].concat())
    };
    vec![
        seed("secret", 0, 255, SECRET),
        seed("rsa", 3, 255, RSA),
        seed("rsa-public", 6, 0, RSA_PUBLIC),
        seed("p256", 9, 255, P256),
        seed("p521", 11, 255, P521),
        seed("ed25519", 12, 255, ED),
        seed("ed25519-public", 12, 0, ED_PUBLIC),
        seed("wrong-kind", 3, 255, ED),
        seed("nothing", 3, 128, b""),
    ]
}
