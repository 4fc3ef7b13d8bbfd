//! Users and roles as of one entry of the log.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::permissions::Rights;
use crate::proto::authpb::{self, Permission};

/// The revision of a state in which nobody has changed users or roles.
pub const FIRST_REVISION: u64 = 1;

/// See the module. A change makes a new one that shares all users and roles but the changed.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthView {
    pub(super) enabled: bool,
    pub(super) revision: u64,
    pub(super) users: BTreeMap<String, Arc<User>>,
    pub(super) roles: BTreeMap<String, Arc<Role>>,
}

impl Default for AuthView {
    fn default() -> Self {
        Self {
            enabled: false,
            revision: FIRST_REVISION,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }
}

impl AuthView {
    /// True if permissions are checked.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Moved by every change of users, roles and permissions.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(Arc::as_ref)
    }

    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name).map(Arc::as_ref)
    }

    /// All users, by name.
    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values().map(Arc::as_ref)
    }

    /// All roles, by name.
    #[cfg(test)]
    pub fn roles(&self) -> impl Iterator<Item = (&str, &Role)> {
        let roles = self.roles.iter();
        roles.map(|(name, role)| (name.as_str(), role.as_ref()))
    }
}

/// A user.
#[derive(Clone, PartialEq)]
pub struct User {
    pub name: String,
    /// The names of its roles, sorted.
    pub roles: Vec<String>,
    /// A bcrypt hash as text; empty for a user who cannot log in by a password.
    pub password_hash: Bytes,
    /// True if it was added to log in without a password, by a certificate.
    pub no_password: bool,
    pub rights: Rights,
}

impl User {
    pub fn has_role(&self, role: &str) -> bool {
        self.roles
            .binary_search_by(|held| held.as_str().cmp(role))
            .is_ok()
    }

    /// As it is stored; its rights follow from the roles.
    pub(super) fn to_stored(&self) -> authpb::User {
        authpb::User {
            name: Bytes::copy_from_slice(self.name.as_bytes()),
            password: self.password_hash.clone(),
            roles: self.roles.clone(),
            options: Some(authpb::UserAddOptions {
                no_password: self.no_password,
            }),
        }
    }
}

impl fmt::Debug for User {
    /// Without the hash.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("roles", &self.roles)
            .field("no_password", &self.no_password)
            .finish_non_exhaustive()
    }
}

/// What a role permits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Role {
    /// Sorted by key.
    pub permissions: Vec<Permission>,
}
