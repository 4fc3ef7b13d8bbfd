//! Executes the requests that read and change users and roles, as etcd does: the same
//! preconditions in the same order.
//!
//! Every success that could change a verdict moves the auth revision by one; enabling, logging in
//! and granting a role that is held already do not. The revision of the keyspace never moves.
//! A change writes the records of what it changed and the revision, nothing else.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use prost::Message;

use super::event::AuthEvent;
use super::permissions::Rights;
use super::view::{AuthView, Role, User};
use super::{ROOT_ROLE, ROOT_USER};
use crate::error::Error;
use crate::probe::{self, Defect};
use crate::proto::authpb::{self, Permission, permission};
use crate::proto::etcdserverpb::*;
use crate::state::response::{Authenticated, Response};
use crate::storage::schema::{self, meta};
use crate::storage::{self, Batch, Family, Read};

/// Users and roles, as the state machine changes them.
#[derive(Debug, Default)]
pub struct AuthStore {
    view: Arc<AuthView>,
}

/// The entry that is applied, and where its effects are noted.
pub struct Effects<'a> {
    pub index: u64,
    /// That of the response.
    pub header: Option<ResponseHeader>,
    pub batch: &'a mut Batch,
    pub events: &'a mut Vec<AuthEvent>,
}

/// A permission whose kind is one. etcd stores any number.
///
/// # Errors
/// The kind is out of its range.
pub fn check_kind(permission: &Permission) -> Result<(), Error> {
    permission::Type::try_from(permission.perm_type)
        .map(|_| ())
        .map_err(|_| Error::InvalidPermissionType)
}

/// etcd's rule for a range that a role may be granted.
fn is_valid_range(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || range_end == b"\0" || key < range_end)
}

/// The bcrypt hash that an entry holds.
fn password_hash(encoded: &str) -> Result<Bytes, Error> {
    let hash = BASE64.decode(encoded).map_err(|_| Error::NoPasswordUser)?;
    Ok(hash.into())
}

impl AuthStore {
    pub fn load(read: &dyn Read) -> storage::Result<Self> {
        let mut view = AuthView {
            enabled: read.get(Family::Meta, meta::AUTH_ENABLED)?.is_some(),
            ..AuthView::default()
        };
        if let Some(value) = read.get(Family::Meta, meta::AUTH_REVISION)? {
            [view.revision] = schema::decode_numbers(&value, meta::AUTH_REVISION)?;
        }
        each(read, meta::ROLES, |name, stored: authpb::Role| {
            let role = Role {
                permissions: stored.key_permission,
            };
            view.roles.insert(name, Arc::new(role));
        })?;
        let mut users = Vec::new();
        each(read, meta::USERS, |name, stored: authpb::User| {
            users.push(User {
                name,
                roles: stored.roles,
                password_hash: stored.password,
                no_password: stored.options.is_some_and(|options| options.no_password),
                rights: Rights::default(),
            });
        })?;
        for mut user in users {
            if !probe::injected(Defect::RightsLostAtStart) {
                user.rights = rights(&view, &user.roles);
            }
            view.users.insert(user.name.clone(), Arc::new(user));
        }
        Ok(Self {
            view: Arc::new(view),
        })
    }

    /// The state after the last request.
    pub fn view(&self) -> &Arc<AuthView> {
        &self.view
    }

    /// Executes a request of this kind; nothing for one of another kind.
    pub fn apply(
        &mut self,
        request: &InternalRaftRequest,
        effects: &mut Effects<'_>,
    ) -> Option<Result<Response, Error>> {
        let header = effects.header;
        if let Some(login) = &request.authenticate {
            let header = request.header.as_ref();
            let checked_at = header.map_or(0, |header| header.auth_revision);
            return Some(self.authenticate(login, checked_at, effects));
        }
        if request.auth_status.is_some() {
            return Some(Ok(Response::AuthStatus(AuthStatusResponse {
                header,
                enabled: self.view.enabled,
                auth_revision: self.view.revision,
            })));
        }
        if request.auth_enable.is_some() {
            let done = self.enable(effects);
            return Some(done.map(|()| Response::AuthEnable(AuthEnableResponse { header })));
        }
        if request.auth_disable.is_some() {
            self.disable(effects);
            return Some(Ok(Response::AuthDisable(AuthDisableResponse { header })));
        }
        let about_users = self.apply_to_users(request, effects);
        about_users.or_else(|| self.apply_to_roles(request, effects))
    }

    fn apply_to_users(
        &mut self,
        request: &InternalRaftRequest,
        effects: &mut Effects<'_>,
    ) -> Option<Result<Response, Error>> {
        let header = effects.header;
        Some(if let Some(add) = &request.auth_user_add {
            let done = self.add_user(add, effects);
            done.map(|()| Response::AuthUserAdd(AuthUserAddResponse { header }))
        } else if let Some(get) = &request.auth_user_get {
            let user = self.view.user(&get.name).ok_or(Error::UserNotFound);
            user.map(|user| {
                let roles = user.roles.clone();
                Response::AuthUserGet(AuthUserGetResponse { header, roles })
            })
        } else if request.auth_user_list.is_some() {
            let users = self.view.users.keys().cloned().collect();
            Ok(Response::AuthUserList(AuthUserListResponse {
                header,
                users,
            }))
        } else if let Some(delete) = &request.auth_user_delete {
            let done = self.delete_user(&delete.name, effects);
            done.map(|()| Response::AuthUserDelete(AuthUserDeleteResponse { header }))
        } else if let Some(change) = &request.auth_user_change_password {
            let done = self.change_password(change, effects);
            done.map(|()| {
                Response::AuthUserChangePassword(AuthUserChangePasswordResponse { header })
            })
        } else if let Some(grant) = &request.auth_user_grant_role {
            let done = self.grant_role(&grant.user, &grant.role, effects);
            done.map(|()| Response::AuthUserGrantRole(AuthUserGrantRoleResponse { header }))
        } else if let Some(revoke) = &request.auth_user_revoke_role {
            let done = self.revoke_role(&revoke.name, &revoke.role, effects);
            done.map(|()| Response::AuthUserRevokeRole(AuthUserRevokeRoleResponse { header }))
        } else {
            return None;
        })
    }

    fn apply_to_roles(
        &mut self,
        request: &InternalRaftRequest,
        effects: &mut Effects<'_>,
    ) -> Option<Result<Response, Error>> {
        let header = effects.header;
        Some(if let Some(add) = &request.auth_role_add {
            let done = self.add_role(&add.name, effects);
            done.map(|()| Response::AuthRoleAdd(AuthRoleAddResponse { header }))
        } else if let Some(get) = &request.auth_role_get {
            let perm = self.permissions(&get.role);
            perm.map(|perm| Response::AuthRoleGet(AuthRoleGetResponse { header, perm }))
        } else if request.auth_role_list.is_some() {
            let roles = self.view.roles.keys().cloned().collect();
            Ok(Response::AuthRoleList(AuthRoleListResponse {
                header,
                roles,
            }))
        } else if let Some(delete) = &request.auth_role_delete {
            let done = self.delete_role(&delete.role, effects);
            done.map(|()| Response::AuthRoleDelete(AuthRoleDeleteResponse { header }))
        } else if let Some(grant) = &request.auth_role_grant_permission {
            let done = self.grant_permission(&grant.name, grant.perm.as_ref(), effects);
            done.map(|()| {
                Response::AuthRoleGrantPermission(AuthRoleGrantPermissionResponse { header })
            })
        } else if let Some(revoke) = &request.auth_role_revoke_permission {
            let done = self.revoke_permission(revoke, effects);
            done.map(|()| {
                Response::AuthRoleRevokePermission(AuthRoleRevokePermissionResponse { header })
            })
        } else {
            return None;
        })
    }

    fn enable(&mut self, effects: &mut Effects<'_>) -> Result<(), Error> {
        if self.view.enabled {
            return Ok(());
        }
        let root = self.view.user(ROOT_USER).ok_or(Error::RootUserNotExist)?;
        if !root.rights.root {
            return Err(Error::RootRoleNotExist);
        }
        effects.batch.put(Family::Meta, meta::AUTH_ENABLED, &[]);
        Arc::make_mut(&mut self.view).enabled = true;
        Ok(())
    }

    fn disable(&mut self, effects: &mut Effects<'_>) {
        if !self.view.enabled {
            return;
        }
        effects.batch.delete(Family::Meta, meta::AUTH_ENABLED);
        self.change(effects).enabled = false;
        effects.events.push(AuthEvent::AllTokensRevoked);
    }

    /// The password was checked where the client called, at the auth revision `checked_at`. What
    /// happened since then may have changed it, so nothing is issued at another one.
    fn authenticate(
        &self,
        login: &InternalAuthenticateRequest,
        checked_at: u64,
        effects: &mut Effects<'_>,
    ) -> Result<Response, Error> {
        if !self.view.enabled {
            return Err(Error::AuthNotEnabled);
        }
        let user = self.view.user(&login.name);
        if user.is_none_or(|user| user.no_password) {
            return Err(Error::AuthFailed);
        }
        let stale = checked_at != self.view.revision;
        let mut token = String::new();
        if !stale && !login.simple_token.is_empty() {
            token = format!("{}.{}", login.simple_token, effects.index);
            effects.events.push(AuthEvent::TokenIssued {
                token: token.clone(),
                user: login.name.clone(),
            });
        }
        Ok(Response::Authenticate(Authenticated {
            response: AuthenticateResponse {
                header: effects.header,
                token,
            },
            auth_revision: self.view.revision,
            stale,
        }))
    }

    fn add_user(
        &mut self,
        add: &AuthUserAddRequest,
        effects: &mut Effects<'_>,
    ) -> Result<(), Error> {
        if add.name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.view.user(&add.name).is_some() {
            return Err(Error::UserExists);
        }
        let no_password = add.options.is_some_and(|options| options.no_password);
        let user = User {
            name: add.name.clone(),
            roles: Vec::new(),
            password_hash: match no_password {
                true => Bytes::new(),
                false => password_hash(&add.hashed_password)?,
            },
            no_password,
            rights: Rights::default(),
        };
        set_user(self.change(effects), user, effects.batch);
        Ok(())
    }

    fn delete_user(&mut self, name: &str, effects: &mut Effects<'_>) -> Result<(), Error> {
        if self.view.enabled && name == ROOT_USER {
            return Err(Error::InvalidAuthManagement);
        }
        self.view.user(name).ok_or(Error::UserNotFound)?;
        self.change(effects).users.remove(name);
        let key = schema::meta_name(meta::USERS, name);
        effects.batch.delete(Family::Meta, &key);
        effects.events.push(AuthEvent::UserTokensRevoked {
            user: name.to_owned(),
        });
        Ok(())
    }

    fn change_password(
        &mut self,
        change: &AuthUserChangePasswordRequest,
        effects: &mut Effects<'_>,
    ) -> Result<(), Error> {
        let user = self.view.user(&change.name).ok_or(Error::UserNotFound)?;
        let password_hash = match user.no_password {
            true => Bytes::new(),
            false => password_hash(&change.hashed_password)?,
        };
        let user = User {
            password_hash,
            ..user.clone()
        };
        effects.events.push(AuthEvent::UserTokensRevoked {
            user: user.name.clone(),
        });
        set_user(self.change(effects), user, effects.batch);
        Ok(())
    }

    fn grant_role(
        &mut self,
        name: &str,
        role: &str,
        effects: &mut Effects<'_>,
    ) -> Result<(), Error> {
        let user = self.view.user(name).ok_or(Error::UserNotFound)?;
        if role != ROOT_ROLE && self.view.role(role).is_none() {
            return Err(Error::RoleNotFound);
        }
        let mut roles = user.roles.clone();
        let Err(place) = roles.binary_search_by(|held| held.as_str().cmp(role)) else {
            return Ok(());
        };
        roles.insert(place, role.to_owned());
        let user = with_roles(&self.view, user, roles);
        set_user(self.change(effects), user, effects.batch);
        Ok(())
    }

    fn revoke_role(
        &mut self,
        name: &str,
        role: &str,
        effects: &mut Effects<'_>,
    ) -> Result<(), Error> {
        if self.view.enabled && name == ROOT_USER && role == ROOT_ROLE {
            return Err(Error::InvalidAuthManagement);
        }
        let user = self.view.user(name).ok_or(Error::UserNotFound)?;
        let user = without_role(&self.view, user, role).ok_or(Error::RoleNotGranted)?;
        set_user(self.change(effects), user, effects.batch);
        Ok(())
    }

    fn add_role(&mut self, name: &str, effects: &mut Effects<'_>) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        if self.view.role(name).is_some() {
            return Err(Error::RoleExists);
        }
        self.set_role(name, Role::default(), effects);
        Ok(())
    }

    /// What a role permits; of the role `root` not what it was granted, but everything.
    fn permissions(&self, name: &str) -> Result<Vec<Permission>, Error> {
        let role = self.view.role(name).ok_or(Error::RoleNotFound)?;
        if name == ROOT_ROLE {
            return Ok(vec![Permission {
                perm_type: permission::Type::Readwrite as i32,
                key: Bytes::new(),
                range_end: Bytes::from_static(b"\0"),
            }]);
        }
        Ok(role.permissions.clone())
    }

    /// Takes the role from all users, too.
    fn delete_role(&mut self, name: &str, effects: &mut Effects<'_>) -> Result<(), Error> {
        if self.view.enabled && name == ROOT_ROLE {
            return Err(Error::InvalidAuthManagement);
        }
        self.view.role(name).ok_or(Error::RoleNotFound)?;
        let view = self.change(effects);
        view.roles.remove(name);
        let key = schema::meta_name(meta::ROLES, name);
        effects.batch.delete(Family::Meta, &key);
        let holders: Vec<User> = view
            .users()
            .filter_map(|user| without_role(view, user, name))
            .collect();
        for user in holders {
            set_user(view, user, effects.batch);
        }
        Ok(())
    }

    /// As in etcd the new permission replaces the old one only if that is the first of its key in
    /// the role; otherwise both are there, and together they permit what either does.
    fn grant_permission(
        &mut self,
        name: &str,
        permission: Option<&Permission>,
        effects: &mut Effects<'_>,
    ) -> Result<(), Error> {
        let permission = permission.ok_or(Error::PermissionNotGiven)?;
        check_kind(permission)?;
        if !is_valid_range(&permission.key, &permission.range_end) {
            return Err(Error::InvalidAuthManagement);
        }
        let mut role = self.view.role(name).ok_or(Error::RoleNotFound)?.clone();
        let held = &mut role.permissions;
        let first = held.partition_point(|held| held.key < permission.key);
        match held.get_mut(first) {
            Some(held) if held.key == permission.key && held.range_end == permission.range_end => {
                held.perm_type = permission.perm_type;
            }
            _ => {
                let behind = held.partition_point(|held| held.key <= permission.key);
                // Copies: the request's bytes are parts of a whole group of entries.
                let permission = Permission {
                    perm_type: permission.perm_type,
                    key: Bytes::copy_from_slice(&permission.key),
                    range_end: Bytes::copy_from_slice(&permission.range_end),
                };
                held.insert(behind, permission);
            }
        }
        self.set_role(name, role, effects);
        Ok(())
    }

    fn revoke_permission(
        &mut self,
        revoke: &AuthRoleRevokePermissionRequest,
        effects: &mut Effects<'_>,
    ) -> Result<(), Error> {
        let role = self.view.role(&revoke.role).ok_or(Error::RoleNotFound)?;
        let mut left = role.clone();
        left.permissions
            .retain(|held| held.key != revoke.key || held.range_end != revoke.range_end);
        if left.permissions.len() == role.permissions.len() {
            return Err(Error::PermissionNotGranted);
        }
        self.set_role(&revoke.role, left, effects);
        Ok(())
    }

    /// The state at the next auth revision, to be changed.
    fn change(&mut self, effects: &mut Effects<'_>) -> &mut AuthView {
        let view = Arc::make_mut(&mut self.view);
        view.revision += 1;
        let value = schema::encode_numbers(&[view.revision]);
        effects.batch.put(Family::Meta, meta::AUTH_REVISION, &value);
        view
    }

    fn set_role(&mut self, name: &str, role: Role, effects: &mut Effects<'_>) {
        let stored = authpb::Role {
            name: Bytes::copy_from_slice(name.as_bytes()),
            key_permission: role.permissions.clone(),
        };
        let key = schema::meta_name(meta::ROLES, name);
        let view = self.change(effects);
        view.roles.insert(name.to_owned(), Arc::new(role));
        let holders: Vec<User> = view
            .users()
            .filter(|user| user.has_role(name))
            .map(|user| with_roles(view, user, user.roles.clone()))
            .collect();
        for user in holders {
            // Its record has the names of its roles only.
            view.users.insert(user.name.clone(), Arc::new(user));
        }
        effects
            .batch
            .put(Family::Meta, &key, &stored.encode_to_vec());
    }
}

fn set_user(view: &mut AuthView, user: User, batch: &mut Batch) {
    let key = schema::meta_name(meta::USERS, &user.name);
    batch.put(Family::Meta, &key, &user.to_stored().encode_to_vec());
    view.users.insert(user.name.clone(), Arc::new(user));
}

/// What roles permit together.
fn rights(view: &AuthView, roles: &[String]) -> Rights {
    let root = roles.iter().any(|role| role == ROOT_ROLE);
    let held = roles.iter().filter_map(|role| view.role(role));
    Rights::of(root, held.flat_map(|role| &role.permissions))
}

fn with_roles(view: &AuthView, user: &User, roles: Vec<String>) -> User {
    User {
        rights: rights(view, &roles),
        roles,
        name: user.name.clone(),
        password_hash: user.password_hash.clone(),
        no_password: user.no_password,
    }
}

/// None if the user does not hold the role.
fn without_role(view: &AuthView, user: &User, role: &str) -> Option<User> {
    let roles: Vec<String> = user
        .roles
        .iter()
        .filter(|held| *held != role)
        .cloned()
        .collect();
    (roles.len() < user.roles.len()).then(|| with_roles(view, user, roles))
}

/// Reads the records below a prefix, by their names.
fn each<M: Message + Default>(
    read: &dyn Read,
    prefix: &[u8],
    mut found: impl FnMut(String, M),
) -> storage::Result<()> {
    let upper = schema::prefix_end(prefix);
    let mut cursor = read.cursor(Family::Meta, prefix, upper.as_deref())?;
    while cursor.next()? {
        let damaged = |reason| storage::Error::Damaged {
            family: Family::Meta,
            key: cursor.key().to_vec(),
            reason,
        };
        let name = cursor.key().strip_prefix(prefix).unwrap_or_default();
        let name = String::from_utf8(name.to_vec()).map_err(|_| damaged("its name is no text"))?;
        // A copy: the record must not keep a block of the engine in memory.
        let value = Bytes::copy_from_slice(cursor.value());
        let record = M::decode(value).map_err(|_| damaged("it is not a user or role"))?;
        found(name, record);
    }
    Ok(())
}
