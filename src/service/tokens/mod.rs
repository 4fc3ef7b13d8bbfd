//! Tokens: what a client gets for a password and shows with its calls. No part of the state; each
//! member has its own (`simple`) or verifies them by their signature (`jwt`).

pub mod jwt;
pub mod keys;
pub mod simple;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use parking_lot::Mutex;

use self::jwt::Jwt;
use self::keys::KeyError;
use self::simple::Table;
use super::caller::User;
use crate::config::AuthToken;
use crate::env::Clock;
use crate::error::Error;
use crate::notices::Notices;
use crate::replica::auth_observer::AuthObserver;
use crate::state::auth::{AuthEvent, AuthView};

/// What a log line says of a token: as many digits of its SHA-256 as etcd writes.
fn fingerprint(token: &str) -> String {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    let first = digest.as_ref().iter().take(6);
    first.map(|byte| format!("{byte:02x}")).collect()
}

/// The tokens of a member.
pub struct Tokens {
    clock: Arc<dyn Clock>,
    kind: Kind,
    notices: Notices,
}

enum Kind {
    /// None is issued and none is valid.
    None,
    Simple(Mutex<Table>),
    Jwt(Box<Jwt>),
}

impl Tokens {
    /// Of the kind that the flags name. `ttl` is that of simple ones.
    ///
    /// # Errors
    /// Keys that are not there or do not fit.
    pub fn load(
        kind: &AuthToken,
        ttl: Duration,
        clock: Arc<dyn Clock>,
        read_file: impl Fn(&Path) -> Result<Vec<u8>, String>,
    ) -> Result<Self, KeyError> {
        let kind = match kind {
            AuthToken::None => Kind::None,
            AuthToken::Simple => return Ok(Self::simple(ttl, clock)),
            AuthToken::Jwt(options) => Kind::Jwt(Box::new(Jwt::load(options, read_file)?)),
        };
        Ok(Self::of(kind, clock))
    }

    pub fn simple(ttl: Duration, clock: Arc<dyn Clock>) -> Self {
        Self::of(Kind::Simple(Mutex::new(Table::new(ttl))), clock)
    }

    fn of(kind: Kind, clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            kind,
            notices: Notices::default(),
        }
    }

    /// Tokens of the log up to this index are not issued: they are of an earlier process, which may
    /// have seen them expire.
    pub fn issue_behind(&self, index: u64) {
        if let Kind::Simple(table) = &self.kind {
            table.lock().issue_behind(index);
        }
    }

    /// Whose token it is. `auth_revision` is that of the state, which a simple token's user has.
    pub fn user(&self, token: &str, auth_revision: u64) -> Option<Arc<User>> {
        let user = match &self.kind {
            Kind::None => None,
            Kind::Simple(table) => table.lock().user(token, auth_revision, self.clock.now()),
            Kind::Jwt(jwt) => jwt.user(token, self.clock.wall()),
        };
        if user.is_none() {
            self.note_invalid(token);
        }
        user
    }

    /// Each again after a while, and few of many: the caller chooses what is shown.
    fn note_invalid(&self, token: &str) {
        let fingerprint = fingerprint(token);
        let kind = fingerprint.get(..1).unwrap_or_default();
        if self.notices.is_news(kind, self.clock.now()) {
            tracing::warn!("token-fingerprint" = fingerprint, "invalid auth token");
        }
    }

    /// The raft index without which it is not known whether a token is valid.
    pub fn index_of(&self, token: &str) -> Option<u64> {
        match &self.kind {
            Kind::Simple(_) => simple::index_of(token),
            Kind::None | Kind::Jwt(_) => None,
        }
    }

    /// True if the log is to issue tokens.
    pub fn are_simple(&self) -> bool {
        matches!(self.kind, Kind::Simple(_))
    }

    /// A token for somebody whose password was right, where the log issues none. It may take a
    /// millisecond of the processor.
    pub fn sign(&self, user: &User) -> Result<String, Error> {
        match &self.kind {
            Kind::Jwt(jwt) => {
                let signed = jwt.sign(user, self.clock.wall());
                signed.map_err(|_| Error::TokensNotSigned)
            }
            Kind::None | Kind::Simple(_) => Err(Error::AuthFailed),
        }
    }
}

impl AuthObserver for Tokens {
    fn applied(&self, events: &[AuthEvent]) {
        let Kind::Simple(table) = &self.kind else {
            return;
        };
        let now = self.clock.now();
        let mut table = table.lock();
        for event in events {
            match event {
                AuthEvent::TokenIssued { token, user } => table.issue(token, user, now),
                AuthEvent::UserTokensRevoked { user } => table.revoke_user(user),
                AuthEvent::AllTokensRevoked => table.revoke_all(),
            }
        }
    }

    /// A password may have changed in between. (etcd keeps its tokens.)
    fn replaced(&self, _auth: &AuthView) {
        if let Kind::Simple(table) = &self.kind {
            table.lock().revoke_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_has_the_fingerprint_that_etcd_would_write() {
        // printf %s abc.1 | sha256sum
        assert_eq!(fingerprint("abc.1"), "0eaeb6c374b6");
    }
}
