//! Whether somebody may do something: the one place that decides it, before a read, before a
//! proposal and for a running watch (`service::permission`), and when an entry is applied
//! (`state::machine`).
//!
//! It is a function of an auth state, an identity and what is asked. A transaction is judged as a
//! whole before any of it is executed: every compare, every operation of both branches, and nested
//! transactions likewise.
//!
//! **An entry's identity** is in its header. A client's proposal names its user, or nobody. One
//! that a member makes for itself (an expired lease, an alarm) is marked by `MEMBER_REVISION`, an
//! auth revision that no user can have: clients never write headers, and members take forwarded
//! proposals from members only. An unmarked header without a name is therefore a client that was
//! not authenticated, when that was not asked for; it is judged as such where authentication was
//! enabled in the meantime.

use super::permissions::{IntervalSet, Rights};
use super::view::{AuthView, User};
use crate::error::Error;
use crate::mvcc;
use crate::probe::{self, Defect};
use crate::proto::etcdserverpb::{
    AlarmRequest, DeleteRangeRequest, InternalRaftRequest, PutRequest, RequestHeader, RequestOp,
    TxnRequest, alarm_request::AlarmAction, request_op::Request,
};
use crate::types::LeaseId;

/// In the header of a request: a member made it for itself.
pub const MEMBER_REVISION: u64 = u64::MAX;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthIdentity<'a> {
    Nobody,
    /// Somebody with a token that is not valid.
    Invalid,
    User {
        name: &'a str,
        /// That at which it was authenticated.
        auth_revision: u64,
    },
    /// A member, for itself.
    Member,
}

impl<'a> AuthIdentity<'a> {
    /// Who proposed an entry.
    pub fn of(header: Option<&'a RequestHeader>) -> Self {
        match header {
            None => Self::Nobody,
            Some(header) if header.username.is_empty() && header.auth_revision == 0 => Self::Nobody,
            Some(header)
                if header.username.is_empty() && header.auth_revision == MEMBER_REVISION =>
            {
                Self::Member
            }
            // Without a name it is the holder of a certificate that has none.
            Some(header) => Self::User {
                name: &header.username,
                auth_revision: header.auth_revision,
            },
        }
    }
}

/// The keys that are attached to leases, as of the state that is asked about.
pub trait AttachedKeys {
    /// Calls `check` for each key of a lease, up to the first that it refuses; an unknown lease has
    /// none.
    fn check_all(
        &self,
        lease: LeaseId,
        check: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> mvcc::Result<()>;

    /// The same for the keys of all leases.
    fn check_every_lease(
        &self,
        check: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> mvcc::Result<()>;
}

/// No lease has a key: for what is asked about no lease.
pub struct NoKeys;

impl AttachedKeys for NoKeys {
    fn check_all(
        &self,
        _lease: LeaseId,
        _check: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> mvcc::Result<()> {
        Ok(())
    }

    fn check_every_lease(
        &self,
        _check: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> mvcc::Result<()> {
        Ok(())
    }
}

/// What an identity may do in an auth state. Made for one request or many; allocates nothing.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    /// The rights that keys are checked against; none: everything is allowed.
    keys: Result<Option<&'a Rights>, Error>,
    root: Result<(), Error>,
    user: Result<(), Error>,
    name: &'a str,
    record: Option<&'a User>,
    /// The auth revision of a user, and of the state.
    revisions: Option<(u64, u64)>,
}

impl<'a> Access<'a> {
    pub fn of(auth: &'a AuthView, identity: AuthIdentity<'a>) -> Self {
        let everything = Self {
            keys: Ok(None),
            root: Ok(()),
            user: Ok(()),
            name: "",
            record: None,
            revisions: None,
        };
        if !auth.is_enabled() {
            return everything;
        }
        let nothing = |error| Self {
            keys: Err(error),
            root: Err(error),
            user: Err(error),
            ..everything
        };
        match identity {
            AuthIdentity::Member => everything,
            AuthIdentity::Nobody => nothing(Error::UserEmpty),
            AuthIdentity::Invalid => nothing(Error::InvalidAuthToken),
            AuthIdentity::User {
                name,
                auth_revision,
            } => {
                let accepts_old = probe::injected(Defect::OldRevisionAccepted);
                let record = auth.user(name);
                let rights = record.map(|user| &user.rights);
                Self {
                    keys: match rights {
                        _ if auth_revision == 0 => Err(Error::UserEmpty),
                        _ if auth_revision < auth.revision() && !accepts_old => {
                            Err(Error::AuthOldRevision)
                        }
                        None => Err(Error::PermissionDenied),
                        Some(rights) if rights.root => Ok(None),
                        Some(rights) => Ok(Some(rights)),
                    },
                    root: match rights {
                        _ if name.is_empty() => Err(Error::UserEmpty),
                        None => Err(Error::UserNotFound),
                        Some(rights) if rights.root => Ok(()),
                        Some(_) => Err(Error::PermissionDenied),
                    },
                    user: Ok(()),
                    name,
                    record,
                    revisions: Some((auth_revision, auth.revision())),
                }
            }
        }
    }

    /// What needs an authenticated user, with whatever rights.
    pub fn user(&self) -> Result<(), Error> {
        self.user
    }

    /// What needs the role `root`. As in etcd the revision of the token does not matter.
    pub fn root(&self) -> Result<(), Error> {
        self.root
    }

    /// To be checked behind a read: a user of another revision than that of the state which was
    /// read gets nothing of it, even if that is a later one, which only a signed token can have.
    pub fn same_revision(&self) -> Result<(), Error> {
        match self.revisions {
            Some((token, state)) if token != 0 && token != state => Err(Error::AuthOldRevision),
            _ => Ok(()),
        }
    }

    fn covered(
        &self,
        set: impl Fn(&Rights) -> &IntervalSet,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), Error> {
        match self.keys? {
            Some(rights) if !set(rights).covers(key, range_end) => Err(Error::PermissionDenied),
            _ => Ok(()),
        }
    }

    /// To read a range, which is as a request has it: not normalised.
    pub fn read(&self, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.covered(|rights| &rights.read, key, range_end)
    }

    fn write(&self, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.covered(|rights| &rights.write, key, range_end)
    }

    fn put(&self, put: &PutRequest, attached: &dyn AttachedKeys) -> mvcc::Result<()> {
        self.write(&put.key, b"")?;
        // Who attaches a key to a lease can have all keys of it deleted.
        self.write_attached(LeaseId(put.lease), attached)?;
        if put.prev_kv && !probe::injected(Defect::PrevKvUnchecked) {
            self.read(&put.key, b"")?;
        }
        Ok(())
    }

    fn delete_range(&self, delete: &DeleteRangeRequest) -> Result<(), Error> {
        self.write(&delete.key, &delete.range_end)?;
        match delete.prev_kv {
            true => self.read(&delete.key, &delete.range_end),
            false => Ok(()),
        }
    }

    /// All of a transaction.
    pub fn txn(&self, txn: &TxnRequest, attached: &dyn AttachedKeys) -> mvcc::Result<()> {
        for compare in &txn.compare {
            self.read(&compare.key, &compare.range_end)?;
        }
        let most = match probe::injected(Defect::TxnJudgedInPart) {
            true => 1,
            false => usize::MAX,
        };
        let (success, failure) = (txn.success.iter(), txn.failure.iter());
        let mut ops = success.take(most).chain(failure.take(most));
        ops.try_for_each(|op| self.op(op, attached))
    }

    fn op(&self, op: &RequestOp, attached: &dyn AttachedKeys) -> mvcc::Result<()> {
        match &op.request {
            Some(Request::RequestRange(range)) => Ok(self.read(&range.key, &range.range_end)?),
            Some(Request::RequestPut(put)) => self.put(put, attached),
            Some(Request::RequestDeleteRange(delete)) => Ok(self.delete_range(delete)?),
            Some(Request::RequestTxn(_)) if probe::injected(Defect::NestedUnchecked) => Ok(()),
            Some(Request::RequestTxn(nested)) => self.txn(nested, attached),
            None => Ok(()),
        }
    }

    /// To write every key that is attached to a lease: to revoke it, to keep it alive, or to attach
    /// another.
    pub fn write_attached(&self, lease: LeaseId, attached: &dyn AttachedKeys) -> mvcc::Result<()> {
        let unchecked = probe::injected(Defect::LeaseKeysUnchecked);
        if !lease.is_some() || self.root.is_ok() || unchecked {
            return Ok(());
        }
        attached.check_all(lease, &mut |key| self.write(key, b""))
    }

    /// To read every key that is attached to any lease: to list them.
    pub fn read_all_attached(&self, attached: &dyn AttachedKeys) -> mvcc::Result<()> {
        match self.root {
            Ok(()) => Ok(()),
            Err(_) => attached.check_every_lease(&mut |key| self.read(key, b"")),
        }
    }

    /// To have a request executed.
    pub fn request(
        &self,
        request: &InternalRaftRequest,
        attached: &dyn AttachedKeys,
    ) -> mvcc::Result<()> {
        if let Some(put) = &request.put {
            return self.put(put, attached);
        }
        if let Some(txn) = &request.txn {
            return self.txn(txn, attached);
        }
        if let Some(delete) = &request.delete_range {
            return Ok(self.delete_range(delete)?);
        }
        if let Some(revoke) = &request.lease_revoke {
            self.user()?;
            return self.write_attached(LeaseId(revoke.id), attached);
        }
        if let Some(get) = &request.auth_user_get
            && get.name == self.name
        {
            return Ok(());
        }
        if let Some(get) = &request.auth_role_get
            && self.record.is_some_and(|user| user.has_role(&get.role))
        {
            return Ok(());
        }
        let lists_alarms = |alarm: &AlarmRequest| alarm.action == AlarmAction::Get as i32;
        if request.lease_grant.is_some() || request.alarm.as_ref().is_some_and(lists_alarms) {
            return Ok(self.user()?);
        }
        match needs_root(request) {
            true => Ok(self.root()?),
            false => Ok(()),
        }
    }
}

/// What is left that only the role `root` may have executed. What is not here has no client that
/// asks for it, or needs no right: to log in, and to ask whether one must.
fn needs_root(request: &InternalRaftRequest) -> bool {
    request.compaction.is_some()
        || request.alarm.is_some()
        || request.auth_enable.is_some()
        || request.auth_disable.is_some()
        || request.auth_user_add.is_some()
        || request.auth_user_get.is_some()
        || request.auth_user_list.is_some()
        || request.auth_user_delete.is_some()
        || request.auth_user_change_password.is_some()
        || request.auth_user_grant_role.is_some()
        || request.auth_user_revoke_role.is_some()
        || request.auth_role_add.is_some()
        || request.auth_role_get.is_some()
        || request.auth_role_list.is_some()
        || request.auth_role_delete.is_some()
        || request.auth_role_grant_permission.is_some()
        || request.auth_role_revoke_permission.is_some()
}
