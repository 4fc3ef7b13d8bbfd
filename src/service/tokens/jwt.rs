//! JSON web tokens: who logged in, at which auth revision and until when, signed.
//!
//! A member keeps none of them, so they are valid on every member with the same keys and after a
//! restart, and nothing takes one back but the auth revision. The header has to name the method of
//! the flags: none is taken from the token. `exp` and `nbf` are checked if they are there. As in
//! etcd an `exp` of 0 counts as none.
//!
//! The form of a token, two JSON objects and a signature in base64, is made and read here: the crates
//! for it do not know ES512, which etcd has. Whatever is cryptography is in aws-lc-rs.
//!
//! A signature is checked at the first use of a token; the results of the newest are kept, as
//! digests, since a client sends the same token with each call.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::keys::{KeyError, Keys, NotSigned};
use crate::config::{JwtOptions, SignMethod};
use crate::service::caller::User;

/// Verified tokens in each of two generations, of which the older is dropped as a whole.
const MAX_KEPT: usize = 2048;

/// Makes and verifies tokens.
pub struct Jwt {
    method: SignMethod,
    ttl: Duration,
    keys: Keys,
    verified: Mutex<Verified>,
}

#[derive(Default)]
struct Verified {
    newer: HashMap<Digest, Claims>,
    older: HashMap<Digest, Claims>,
}

type Digest = [u8; digest::SHA256_OUTPUT_LEN];

/// What a token says, its signature apart.
#[derive(Clone, Debug, PartialEq)]
struct Claims {
    user: Arc<User>,
    /// Seconds since 1970.
    expires: Option<f64>,
    not_before: Option<f64>,
}

impl Claims {
    fn hold(&self, now: Duration) -> bool {
        let now = now.as_secs_f64();
        self.expires.is_none_or(|expires| now < expires)
            && self.not_before.is_none_or(|begin| now >= begin)
    }
}

impl Jwt {
    /// # Errors
    /// A key that is not there or not one for the method.
    pub fn load(
        options: &JwtOptions,
        read_file: impl Fn(&Path) -> Result<Vec<u8>, String>,
    ) -> Result<Self, KeyError> {
        let keys = Keys::load(options, read_file)?;
        Ok(Self::new(options.method, options.ttl, keys))
    }

    pub fn new(method: SignMethod, ttl: Duration, keys: Keys) -> Self {
        Self {
            method,
            ttl,
            keys,
            verified: Mutex::default(),
        }
    }

    /// A token for a user. It may take a millisecond of the processor.
    pub fn sign(&self, user: &User, wall: Duration) -> Result<String, NotSigned> {
        let header = format!(r#"{{"alg":"{}","typ":"JWT"}}"#, self.method.name);
        let claims = Value::from_iter([
            ("exp", Value::from(wall.saturating_add(self.ttl).as_secs())),
            ("revision", Value::from(user.auth_revision)),
            ("username", Value::from(user.name.as_str())),
        ]);
        let mut token = BASE64.encode(header);
        token.push('.');
        BASE64.encode_string(claims.to_string(), &mut token);
        let signature = self.keys.sign(token.as_bytes())?;
        token.push('.');
        BASE64.encode_string(signature, &mut token);
        Ok(token)
    }

    /// Whose token it is, if it is valid now.
    pub fn user(&self, token: &str, wall: Duration) -> Option<Arc<User>> {
        let digest = digest::digest(&digest::SHA256, token.as_bytes());
        let digest: Digest = digest.as_ref().try_into().ok()?;
        let kept = self.verified.lock().get(&digest);
        let claims = match kept {
            Some(claims) => claims,
            None => {
                let claims = self.verify(token)?;
                self.verified.lock().keep(digest, claims.clone());
                claims
            }
        };
        claims.hold(wall).then_some(claims.user)
    }

    /// What a token says, if its signature is right.
    fn verify(&self, token: &str) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        if claims.contains('.') {
            return None;
        }
        let header = object(header)?;
        if header.get("alg")?.as_str()? != self.method.name {
            return None;
        }
        let signature = BASE64.decode(signature).ok()?;
        if !self.keys.verifies(signed.as_bytes(), &signature) {
            return None;
        }
        let claims = object(claims)?;
        let user = User {
            name: claims.get("username")?.as_str()?.to_owned(),
            auth_revision: claims.get("revision")?.as_f64()? as u64,
        };
        Some(Claims {
            user: Arc::new(user),
            expires: time(&claims, "exp")?,
            not_before: time(&claims, "nbf")?,
        })
    }
}

impl Verified {
    fn get(&mut self, digest: &Digest) -> Option<Claims> {
        if let Some(claims) = self.newer.get(digest) {
            return Some(claims.clone());
        }
        let claims = self.older.remove(digest)?;
        self.keep(*digest, claims.clone());
        Some(claims)
    }

    fn keep(&mut self, digest: Digest, claims: Claims) {
        if self.newer.len() >= MAX_KEPT {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(digest, claims);
    }
}

fn object(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&BASE64.decode(part).ok()?).ok()
}

/// A claim that is a time, whole seconds; the outer nothing is one that is no time.
fn time(claims: &Map<String, Value>, name: &str) -> Option<Option<f64>> {
    match claims.get(name) {
        None => Some(None),
        Some(value) => {
            let seconds = value.as_f64()?;
            Some((seconds != 0.0).then_some(seconds.floor()))
        }
    }
}

#[cfg(test)]
mod tests;
