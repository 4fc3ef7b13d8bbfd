//! Users and roles as of one entry of the log.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::permissions::Rights;
use crate::proto::authpb::{self, Permission};
use crate::proto::etcdserverpb::InternalRaftRequest;
use crate::proto::nested_len;

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

    /// True if there ever were users or roles.
    pub fn was_changed(&self) -> bool {
        self.revision != FIRST_REVISION
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

    /// What a request for users or roles would be answered now, without the header; none for
    /// another request.
    pub fn answer_bytes(&self, request: &InternalRaftRequest) -> Option<usize> {
        let names = |names: &mut dyn Iterator<Item = &String>| {
            names.map(|name| nested_len(name.len())).sum::<usize>()
        };
        Some(if request.auth_user_list.is_some() {
            names(&mut self.users.keys())
        } else if request.auth_role_list.is_some() {
            names(&mut self.roles.keys())
        } else if let Some(get) = &request.auth_user_get {
            let user = self.user(&get.name);
            user.map_or(0, |user| names(&mut user.roles.iter()))
        } else if let Some(get) = &request.auth_role_get {
            let permissions = self
                .role(&get.role)
                .map_or(&[][..], |role| &role.permissions);
            let sizes = permissions.iter().map(|one| nested_len(one.encoded_len()));
            sizes.sum()
        } else {
            return None;
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::*;

    #[test]
    fn sizes_are_those_of_the_answers() {
        let role = |keys: &[usize]| {
            let permission = |len: &usize| Permission {
                perm_type: 2,
                key: vec![b'k'; *len].into(),
                range_end: vec![b'l'; *len].into(),
            };
            Arc::new(Role {
                permissions: keys.iter().map(permission).collect(),
            })
        };
        let user = |name: &str, roles: &[&str]| User {
            name: name.to_owned(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            password_hash: Bytes::new(),
            no_password: false,
            rights: Rights::default(),
        };
        let long = "x".repeat(200);
        let users = [user("a", &["few", &long]), user(&long, &[])];
        let view = AuthView {
            users: BTreeMap::from(users.map(|user| (user.name.clone(), Arc::new(user)))),
            roles: BTreeMap::from([
                ("few".to_owned(), role(&[1, 40_000])),
                (long.clone(), role(&[])),
            ]),
            ..AuthView::default()
        };
        let names: Vec<String> = view.users.keys().cloned().collect();
        let request = |field: fn(&mut InternalRaftRequest)| {
            let mut request = InternalRaftRequest::default();
            field(&mut request);
            view.answer_bytes(&request)
        };
        let users = AuthUserListResponse {
            header: None,
            users: names,
        };
        let roles = AuthRoleListResponse {
            header: None,
            roles: view.roles.keys().cloned().collect(),
        };
        let of_user = AuthUserGetResponse {
            header: None,
            roles: view.users["a"].roles.clone(),
        };
        let of_role = AuthRoleGetResponse {
            header: None,
            perm: view.roles["few"].permissions.clone(),
        };
        for (found, expected) in [
            (
                request(|it| it.auth_user_list = Some(Default::default())),
                Some(users.encoded_len()),
            ),
            (
                request(|it| it.auth_role_list = Some(Default::default())),
                Some(roles.encoded_len()),
            ),
            (
                request(|it| it.auth_user_get = Some(AuthUserGetRequest { name: "a".into() })),
                Some(of_user.encoded_len()),
            ),
            (
                request(|it| it.auth_role_get = Some(AuthRoleGetRequest { role: "few".into() })),
                Some(of_role.encoded_len()),
            ),
            (
                request(|it| it.auth_role_get = Some(AuthRoleGetRequest { role: "no".into() })),
                Some(0),
            ),
            (
                request(|it| it.auth_status = Some(Default::default())),
                None,
            ),
        ] {
            assert_eq!(found, expected);
        }
    }
}
