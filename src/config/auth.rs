//! `--auth-token`, `--auth-token-ttl` and `--bcrypt-cost`, as etcd reads them.
//!
//! etcd finds what is wrong with them while it starts, behind everything else, and says little: one
//! text for almost all mistakes. The reason is in a line before it, here as there. Files of keys
//! are read at the start (`service::tokens`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::duration;
use super::log::Level;
use super::note::Note;
use super::refusal::Refusal;
use super::values::Values;
use crate::types::MAX_PASSWORD_COST;

/// What etcd says of an `--auth-token` that it does not understand.
pub const INVALID_OPTIONS: &str = "auth: invalid auth options";

const DEFAULT_BCRYPT_COST: u32 = 10;
const MIN_BCRYPT_COST: u64 = 4;
const MAX_BCRYPT_COST: u64 = 31;

const DEFAULT_JWT_TTL_NS: i64 = 300_000_000_000;
const JWT_OPTIONS: [&str; 4] = ["sign-method", "pub-key", "priv-key", "ttl"];

/// How clients log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    pub token: AuthToken,
    /// Of a simple token; 0: the default.
    pub token_ttl: Duration,
    /// Of hashing a password: 4 to 31.
    pub bcrypt_cost: u32,
}

/// What clients get for a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthToken {
    /// Nothing: nobody can log in.
    None,
    Simple,
    Jwt(JwtOptions),
}

impl AuthToken {
    /// The kind, and how it is signed.
    pub fn name(&self) -> String {
        match self {
            AuthToken::None => String::new(),
            AuthToken::Simple => "simple".to_owned(),
            AuthToken::Jwt(options) => format!("jwt,sign-method={}", options.method.name),
        }
    }
}

/// How JSON web tokens are signed and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtOptions {
    pub method: SignMethod,
    pub public_key: Option<PathBuf>,
    pub private_key: Option<PathBuf>,
    /// Tokens without a time have expired when they are made, as in etcd.
    pub ttl: Duration,
}

/// The families of signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    Hmac,
    RsaPkcs1,
    RsaPss,
    Ecdsa,
    Ed25519,
}

/// How tokens are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignMethod {
    /// As in a token's header.
    pub name: &'static str,
    pub signature: Signature,
    /// Bits of the hash.
    pub bits: u16,
}

const fn method(name: &'static str, signature: Signature, bits: u16) -> SignMethod {
    SignMethod {
        name,
        signature,
        bits,
    }
}

/// Every method that etcd has.
pub const SIGN_METHODS: [SignMethod; 13] = [
    method("HS256", Signature::Hmac, 256),
    method("HS384", Signature::Hmac, 384),
    method("HS512", Signature::Hmac, 512),
    method("RS256", Signature::RsaPkcs1, 256),
    method("RS384", Signature::RsaPkcs1, 384),
    method("RS512", Signature::RsaPkcs1, 512),
    method("PS256", Signature::RsaPss, 256),
    method("PS384", Signature::RsaPss, 384),
    method("PS512", Signature::RsaPss, 512),
    method("ES256", Signature::Ecdsa, 256),
    method("ES384", Signature::Ecdsa, 384),
    method("ES512", Signature::Ecdsa, 512),
    method("EdDSA", Signature::Ed25519, 512),
];

/// Reads the flags.
///
/// # Errors
/// Those of `--auth-token`.
pub fn settle(values: &Values, notes: &mut Vec<Note>) -> Result<AuthConfig, Refusal> {
    Ok(AuthConfig {
        token: auth_token(values, notes)?,
        token_ttl: Duration::from_secs(values.uint("auth-token-ttl")),
        bcrypt_cost: bcrypt_cost(values, notes),
    })
}

/// The cost of hashing a password, with etcd's warning about one that cannot be.
fn bcrypt_cost(values: &Values, notes: &mut Vec<Note>) -> u32 {
    let cost = values.uint("bcrypt-cost");
    match u32::try_from(cost) {
        Ok(known) if (MIN_BCRYPT_COST..=MAX_BCRYPT_COST).contains(&cost) => {
            if known > MAX_PASSWORD_COST {
                let note = "use the highest bcrypt cost that is computed instead of the given cost";
                notes.push(
                    Note::warn(note)
                        .with("highest-cost", MAX_PASSWORD_COST)
                        .with("given-cost", cost),
                );
            }
            known.min(MAX_PASSWORD_COST)
        }
        _ => {
            let note = "use default bcrypt cost instead of the invalid given cost";
            notes.push(
                Note::warn(note)
                    .with("min-cost", MIN_BCRYPT_COST)
                    .with("max-cost", MAX_BCRYPT_COST)
                    .with("default-cost", DEFAULT_BCRYPT_COST)
                    .with("given-cost", cost),
            );
            DEFAULT_BCRYPT_COST
        }
    }
}

/// Reads `--auth-token`.
///
/// # Errors
/// etcd's texts; the reason is in a note.
fn auth_token(values: &Values, notes: &mut Vec<Note>) -> Result<AuthToken, Refusal> {
    let text = values.text("auth-token");
    parse(text, notes).map_err(|refused| {
        notes.extend(refused.note);
        Refusal::Start(refused.text.to_owned())
    })
}

struct Refused {
    note: Option<Note>,
    text: &'static str,
}

/// What is wrong, in a note of its own.
fn invalid(note: Note) -> Refused {
    Refused {
        note: Some(note),
        text: INVALID_OPTIONS,
    }
}

fn parse(text: &str, notes: &mut Vec<Note>) -> Result<AuthToken, Refused> {
    let mut words = text.split(',');
    let kind = words.next().unwrap_or_default();
    let mut options = BTreeMap::new();
    for word in words {
        let wrong = || Note::new(Level::Error, "invalid token option").with("option", text);
        let (name, value) = match word.split_once('=') {
            Some((name, value)) if !value.contains('=') => (name, value),
            _ => return Err(invalid(wrong())),
        };
        if options.insert(name, value).is_some() {
            return Err(invalid(wrong().with("duplicate-parameter", name)));
        }
    }
    match kind {
        "" => Ok(AuthToken::None),
        "simple" => {
            // etcd warns, of its default as well.
            notes.push(Note::info("simple token is not cryptographically signed"));
            Ok(AuthToken::Simple)
        }
        "jwt" => jwt(&options, notes).map(AuthToken::Jwt),
        other => Err(invalid(
            Note::warn("unknown token type")
                .with("type", other)
                .with("error", INVALID_OPTIONS),
        )),
    }
}

fn jwt(options: &BTreeMap<&str, &str>, notes: &mut Vec<Note>) -> Result<JwtOptions, Refused> {
    let given = |name: &str| options.get(name).copied().filter(|value| !value.is_empty());
    let problem = |why: String| {
        invalid(Note::new(Level::Error, "problem loading JWT options").with("error", why))
    };
    let ttl_ns = match given("ttl") {
        Some(ttl) => duration::parse_ns(ttl).map_err(problem)?,
        None => DEFAULT_JWT_TTL_NS,
    };
    let name = options.get("sign-method").copied().unwrap_or_default();
    let method = SIGN_METHODS.iter().find(|method| method.name == name);
    let Some(method) = method else {
        return Err(match name {
            "none" => Refused {
                note: None,
                text: "unsupported signing method: *jwt.signingMethodNone",
            },
            _ => problem("auth: invalid auth signature method".to_owned()),
        });
    };
    let unknown: Vec<&str> = options
        .keys()
        .copied()
        .filter(|name| !JWT_OPTIONS.contains(name))
        .collect();
    if !unknown.is_empty() {
        notes.push(Note::warn("unknown JWT options").with("keys", unknown));
    }
    Ok(JwtOptions {
        method: *method,
        public_key: given("pub-key").map(PathBuf::from),
        private_key: given("priv-key").map(PathBuf::from),
        ttl: Duration::from_nanos(u64::try_from(ttl_ns).unwrap_or(0)),
    })
}
