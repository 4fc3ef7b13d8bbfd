//! Users, roles and who may do what: a second, simple implementation. Nothing is computed in
//! advance; every verdict walks all permissions of the user's roles.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use super::super::Response;
use crate::error::Error;
use crate::proto::authpb::Permission;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::*;

/// Who asks, as an entry's header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    Nobody,
    User { name: String, auth_revision: u64 },
    Member,
}

impl Who {
    pub fn of(header: Option<&RequestHeader>) -> Self {
        let (name, auth_revision) =
            header.map_or(("", 0), |header| (&header.username, header.auth_revision));
        match (name, auth_revision) {
            ("", u64::MAX) => Self::Member,
            ("", 0) => Self::Nobody,
            (name, auth_revision) => Self::User {
                name: name.to_owned(),
                auth_revision,
            },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct User {
    roles: BTreeSet<String>,
    hash: Vec<u8>,
    no_password: bool,
}

/// To read or to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Read,
    Write,
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Auth {
    pub enabled: bool,
    pub revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Vec<Permission>>,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            enabled: false,
            revision: 1,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }
}

/// The keys attached to a lease.
pub type Attached<'a> = &'a dyn Fn(i64) -> Vec<Bytes>;

impl Auth {
    fn is_root(&self, name: &str) -> bool {
        let user = self.users.get(name);
        user.is_some_and(|user| user.roles.contains("root"))
    }

    /// Whether a user's permissions cover a range, one step after the other from its start.
    fn covers(&self, name: &str, right: Right, key: &[u8], range_end: &[u8]) -> bool {
        let Some(user) = self.users.get(name) else {
            return false;
        };
        let held = user.roles.iter().filter_map(|role| self.roles.get(role));
        let held: Vec<&Permission> = held
            .flatten()
            .filter(|permission| {
                permission.perm_type == 2
                    || permission.perm_type == i32::from(right == Right::Write)
            })
            .collect();
        if key.is_empty() {
            return false;
        }
        let mut at = key.to_vec();
        loop {
            let mut furthest: Option<Vec<u8>> = None;
            for permission in &held {
                let (start, end) = (&permission.key, &permission.range_end);
                let behind = match end.as_ref() {
                    b"" if start.as_ref() == at => [at.as_slice(), b"\0"].concat(),
                    b"\0" if start.as_ref() <= at.as_slice() => return true,
                    b"" | b"\0" => continue,
                    end if start.as_ref() <= at.as_slice() && at.as_slice() < end => end.to_vec(),
                    _ => continue,
                };
                furthest = Some(furthest.map_or(behind.clone(), |far| far.max(behind)));
            }
            let Some(behind) = furthest else {
                return false;
            };
            match range_end {
                b"" => return true,
                b"\0" => {}
                end if behind.as_slice() >= end => return true,
                _ => {}
            }
            at = behind;
        }
    }

    /// Whether somebody may use a range; what counts of a user's token is its revision.
    pub fn may(&self, who: &Who, right: Right, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        match who {
            _ if !self.enabled => Ok(()),
            Who::Member => Ok(()),
            Who::Nobody => Err(Error::UserEmpty),
            Who::User {
                auth_revision: 0, ..
            } => Err(Error::UserEmpty),
            Who::User { auth_revision, .. } if *auth_revision < self.revision => {
                Err(Error::AuthOldRevision)
            }
            Who::User { name, .. } if self.is_root(name) => Ok(()),
            Who::User { name, .. } => match self.covers(name, right, key, range_end) {
                true => Ok(()),
                false => Err(Error::PermissionDenied),
            },
        }
    }

    /// The same for what continues after the revision has moved.
    pub fn may_still(&self, who: &Who, right: Right, key: &[u8], range_end: &[u8]) -> bool {
        let who = match who {
            Who::User { name, .. } => Who::User {
                name: name.clone(),
                auth_revision: self.revision,
            },
            other => other.clone(),
        };
        self.may(&who, right, key, range_end).is_ok()
    }

    /// What is asked behind a read.
    pub fn is_of_now(&self, who: &Who) -> Result<(), Error> {
        match who {
            Who::User { auth_revision, .. }
                if self.enabled && *auth_revision != 0 && *auth_revision != self.revision =>
            {
                Err(Error::AuthOldRevision)
            }
            _ => Ok(()),
        }
    }

    fn may_all(&self, who: &Who) -> Result<(), Error> {
        match who {
            _ if !self.enabled => Ok(()),
            Who::Member => Ok(()),
            Who::Nobody => Err(Error::UserEmpty),
            Who::User { name, .. } if self.is_root(name) => Ok(()),
            Who::User { name, .. } if name.is_empty() => Err(Error::UserEmpty),
            Who::User { name, .. } if self.users.contains_key(name) => Err(Error::PermissionDenied),
            Who::User { .. } => Err(Error::UserNotFound),
        }
    }

    fn is_anybody(&self, who: &Who) -> Result<(), Error> {
        match self.enabled && *who == Who::Nobody {
            true => Err(Error::UserEmpty),
            false => Ok(()),
        }
    }

    fn may_put(&self, who: &Who, put: &PutRequest, attached: Attached<'_>) -> Result<(), Error> {
        self.may(who, Right::Write, &put.key, b"")?;
        self.may_write_attached(who, put.lease, attached)?;
        match put.prev_kv {
            true => self.may(who, Right::Read, &put.key, b""),
            false => Ok(()),
        }
    }

    /// To have a lease renewed.
    pub fn may_renew(&self, who: &Who, lease: i64, attached: Attached<'_>) -> Result<(), Error> {
        self.is_anybody(who)?;
        self.may_write_attached(who, lease, attached)
    }

    /// To have all leases listed, which have these keys.
    pub fn may_list_leases(&self, who: &Who, attached: &[Bytes]) -> Result<(), Error> {
        self.is_anybody(who)?;
        if self.may_all(who).is_ok() {
            return Ok(());
        }
        let mut keys = attached.iter();
        keys.try_for_each(|key| self.may(who, Right::Read, key, b""))
    }

    fn may_write_attached(
        &self,
        who: &Who,
        lease: i64,
        attached: Attached<'_>,
    ) -> Result<(), Error> {
        if lease == 0 || self.may_all(who).is_ok() {
            return Ok(());
        }
        let mut keys = attached(lease).into_iter();
        keys.try_for_each(|key| self.may(who, Right::Write, &key, b""))
    }

    fn may_delete(&self, who: &Who, delete: &DeleteRangeRequest) -> Result<(), Error> {
        self.may(who, Right::Write, &delete.key, &delete.range_end)?;
        match delete.prev_kv {
            true => self.may(who, Right::Read, &delete.key, &delete.range_end),
            false => Ok(()),
        }
    }

    /// All of a transaction.
    pub fn may_txn(
        &self,
        who: &Who,
        txn: &TxnRequest,
        attached: Attached<'_>,
    ) -> Result<(), Error> {
        for compare in &txn.compare {
            self.may(who, Right::Read, &compare.key, &compare.range_end)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(Request::RequestRange(read)) => {
                    self.may(who, Right::Read, &read.key, &read.range_end)?;
                }
                Some(Request::RequestPut(put)) => self.may_put(who, put, attached)?,
                Some(Request::RequestDeleteRange(delete)) => self.may_delete(who, delete)?,
                Some(Request::RequestTxn(nested)) => self.may_txn(who, nested, attached)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Whether an entry may be executed.
    pub fn permits(
        &self,
        request: &InternalRaftRequest,
        attached: Attached<'_>,
    ) -> Result<(), Error> {
        let who = &Who::of(request.header.as_ref());
        if let Some(put) = &request.put {
            self.may_put(who, put, attached)
        } else if let Some(txn) = &request.txn {
            self.may_txn(who, txn, attached)
        } else if let Some(delete) = &request.delete_range {
            self.may_delete(who, delete)
        } else if let Some(revoke) = &request.lease_revoke {
            self.is_anybody(who)?;
            self.may_write_attached(who, revoke.id, attached)
        } else if request.lease_grant.is_some() {
            self.is_anybody(who)
        } else if let Some(alarm) = &request.alarm {
            match alarm.action {
                0 => self.is_anybody(who),
                _ => self.may_all(who),
            }
        } else if let Some(get) = &request.auth_user_get {
            match who {
                Who::User { name, .. } if *name == get.name => Ok(()),
                Who::Nobody if get.name.is_empty() => Ok(()),
                _ => self.may_all(who),
            }
        } else if let Some(get) = &request.auth_role_get {
            match who {
                Who::User { name, .. } if self.holds(name, &get.role) => Ok(()),
                _ => self.may_all(who),
            }
        } else if request.auth_status.is_some()
            || request.authenticate.is_some()
            || request.lease_checkpoint.is_some()
            || request.cluster_version_set.is_some()
            || request.cluster_member_attr_set.is_some()
            || request.downgrade_info_set.is_some()
            || request.downgrade_version_test.is_some()
        {
            Ok(())
        } else {
            self.may_all(who)
        }
    }

    fn holds(&self, name: &str, role: &str) -> bool {
        let user = self.users.get(name);
        user.is_some_and(|user| user.roles.contains(role))
    }

    /// Executes a request about users and roles; nothing for one about something else.
    pub fn apply(
        &mut self,
        request: &InternalRaftRequest,
        header: Option<ResponseHeader>,
    ) -> Option<Result<Response, Error>> {
        let answer = if request.auth_enable.is_some() {
            let enabled = self.enable();
            enabled.map(|()| Response::AuthEnable(AuthEnableResponse { header }))
        } else if request.auth_disable.is_some() {
            self.revision += u64::from(self.enabled);
            self.enabled = false;
            Ok(Response::AuthDisable(AuthDisableResponse { header }))
        } else if request.auth_status.is_some() {
            Ok(Response::AuthStatus(AuthStatusResponse {
                header,
                enabled: self.enabled,
                auth_revision: self.revision,
            }))
        } else if let Some(get) = &request.auth_user_get {
            let user = self.users.get(&get.name).ok_or(Error::UserNotFound);
            user.map(|user| {
                let roles = user.roles.iter().cloned().collect();
                Response::AuthUserGet(AuthUserGetResponse { header, roles })
            })
        } else if request.auth_user_list.is_some() {
            let users = self.users.keys().cloned().collect();
            Ok(Response::AuthUserList(AuthUserListResponse {
                header,
                users,
            }))
        } else if let Some(get) = &request.auth_role_get {
            let everything = Permission {
                perm_type: 2,
                key: Bytes::new(),
                range_end: Bytes::from_static(b"\0"),
            };
            let role = self.roles.get(&get.role).ok_or(Error::RoleNotFound);
            role.map(|permissions| {
                let perm = match get.role.as_str() {
                    "root" => vec![everything],
                    _ => permissions.clone(),
                };
                Response::AuthRoleGet(AuthRoleGetResponse { header, perm })
            })
        } else if request.auth_role_list.is_some() {
            let roles = self.roles.keys().cloned().collect();
            Ok(Response::AuthRoleList(AuthRoleListResponse {
                header,
                roles,
            }))
        } else {
            return self.change(request, header);
        };
        Some(answer)
    }

    fn enable(&mut self) -> Result<(), Error> {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get("root").ok_or(Error::RootUserNotExist)?;
        if !root.roles.contains("root") {
            return Err(Error::RootRoleNotExist);
        }
        self.enabled = true;
        Ok(())
    }

    /// What moves the revision by each success.
    fn change(
        &mut self,
        request: &InternalRaftRequest,
        header: Option<ResponseHeader>,
    ) -> Option<Result<Response, Error>> {
        let (changed, response) = if let Some(add) = &request.auth_user_add {
            let response = Response::AuthUserAdd(AuthUserAddResponse { header });
            (self.add_user(add), response)
        } else if let Some(delete) = &request.auth_user_delete {
            let response = Response::AuthUserDelete(AuthUserDeleteResponse { header });
            (self.delete_user(&delete.name), response)
        } else if let Some(password) = &request.auth_user_change_password {
            let response =
                Response::AuthUserChangePassword(AuthUserChangePasswordResponse { header });
            (self.change_password(password), response)
        } else if let Some(grant) = &request.auth_user_grant_role {
            let response = Response::AuthUserGrantRole(AuthUserGrantRoleResponse { header });
            (self.grant(&grant.user, &grant.role), response)
        } else if let Some(revoke) = &request.auth_user_revoke_role {
            let response = Response::AuthUserRevokeRole(AuthUserRevokeRoleResponse { header });
            (self.revoke(&revoke.name, &revoke.role), response)
        } else if let Some(add) = &request.auth_role_add {
            let response = Response::AuthRoleAdd(AuthRoleAddResponse { header });
            (self.add_role(&add.name), response)
        } else if let Some(delete) = &request.auth_role_delete {
            let response = Response::AuthRoleDelete(AuthRoleDeleteResponse { header });
            (self.delete_role(&delete.role), response)
        } else if let Some(grant) = &request.auth_role_grant_permission {
            let response =
                Response::AuthRoleGrantPermission(AuthRoleGrantPermissionResponse { header });
            (self.permit(&grant.name, grant.perm.as_ref()), response)
        } else if let Some(revoke) = &request.auth_role_revoke_permission {
            let response =
                Response::AuthRoleRevokePermission(AuthRoleRevokePermissionResponse { header });
            (self.forbid(revoke), response)
        } else {
            return None;
        };
        Some(changed.map(|moves| {
            self.revision += u64::from(moves);
            response
        }))
    }

    fn add_user(&mut self, add: &AuthUserAddRequest) -> Result<bool, Error> {
        if add.name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.users.contains_key(&add.name) {
            return Err(Error::UserExists);
        }
        let no_password = add.options.is_some_and(|options| options.no_password);
        let user = User {
            roles: BTreeSet::new(),
            hash: match no_password {
                true => Vec::new(),
                false => decoded(&add.hashed_password)?,
            },
            no_password,
        };
        self.users.insert(add.name.clone(), user);
        Ok(true)
    }

    fn delete_user(&mut self, name: &str) -> Result<bool, Error> {
        if self.enabled && name == "root" {
            return Err(Error::InvalidAuthManagement);
        }
        self.users.remove(name).ok_or(Error::UserNotFound)?;
        Ok(true)
    }

    fn change_password(&mut self, change: &AuthUserChangePasswordRequest) -> Result<bool, Error> {
        let user = self.users.get_mut(&change.name);
        let user = user.ok_or(Error::UserNotFound)?;
        if !user.no_password {
            user.hash = decoded(&change.hashed_password)?;
        }
        Ok(true)
    }

    fn grant(&mut self, name: &str, role: &str) -> Result<bool, Error> {
        let user = self.users.get_mut(name).ok_or(Error::UserNotFound)?;
        if role != "root" && !self.roles.contains_key(role) {
            return Err(Error::RoleNotFound);
        }
        Ok(user.roles.insert(role.to_owned()))
    }

    fn revoke(&mut self, name: &str, role: &str) -> Result<bool, Error> {
        if self.enabled && name == "root" && role == "root" {
            return Err(Error::InvalidAuthManagement);
        }
        let user = self.users.get_mut(name).ok_or(Error::UserNotFound)?;
        match user.roles.remove(role) {
            true => Ok(true),
            false => Err(Error::RoleNotGranted),
        }
    }

    fn add_role(&mut self, name: &str) -> Result<bool, Error> {
        if name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(Error::RoleExists);
        }
        self.roles.insert(name.to_owned(), Vec::new());
        Ok(true)
    }

    fn delete_role(&mut self, name: &str) -> Result<bool, Error> {
        if self.enabled && name == "root" {
            return Err(Error::InvalidAuthManagement);
        }
        self.roles.remove(name).ok_or(Error::RoleNotFound)?;
        for user in self.users.values_mut() {
            user.roles.remove(name);
        }
        Ok(true)
    }

    fn permit(&mut self, name: &str, permission: Option<&Permission>) -> Result<bool, Error> {
        let new = permission.ok_or(Error::PermissionNotGiven)?;
        if !(0..3).contains(&new.perm_type) {
            return Err(Error::InvalidPermissionType);
        }
        let ends = new.range_end.is_empty() || new.range_end.as_ref() == b"\0";
        if new.key.is_empty() || !ends && new.range_end <= new.key {
            return Err(Error::InvalidAuthManagement);
        }
        let held = self.roles.get_mut(name).ok_or(Error::RoleNotFound)?;
        let first = held.iter_mut().find(|held| held.key == new.key);
        match first.filter(|held| held.range_end == new.range_end) {
            Some(held) => held.perm_type = new.perm_type,
            None => {
                held.push(new.clone());
                held.sort_by(|one, other| one.key.cmp(&other.key));
            }
        }
        Ok(true)
    }

    fn forbid(&mut self, revoke: &AuthRoleRevokePermissionRequest) -> Result<bool, Error> {
        let held = self
            .roles
            .get_mut(&revoke.role)
            .ok_or(Error::RoleNotFound)?;
        let before = held.len();
        held.retain(|held| (&held.key, &held.range_end) != (&revoke.key, &revoke.range_end));
        match held.len() < before {
            true => Ok(true),
            false => Err(Error::PermissionNotGranted),
        }
    }
}

fn decoded(hash: &str) -> Result<Vec<u8>, Error> {
    BASE64.decode(hash).map_err(|_| Error::NoPasswordUser)
}
