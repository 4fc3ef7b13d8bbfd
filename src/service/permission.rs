//! Whether a caller may do something: asked before every read and every proposal, on all surfaces.
//!
//! `state::auth::verdict` decides. Here is which state it decides by: a read is judged by the users
//! and roles of the very state that is read, so that it can neither see what was written after its
//! right was taken nor be refused what an earlier state allowed. A proposal is judged when it is
//! applied, by `state::machine`, which asks the verdict itself; only who is nobody at all is refused
//! before it reaches the log.

use super::caller::{Caller, Identity};
use crate::error::Error;
use crate::mvcc;
use crate::proto::etcdserverpb::{InternalRaftRequest, TxnRequest};
use crate::state::auth::AuthView;
use crate::state::auth::verdict::{self, Access, NoKeys};

/// The permission that is requested.
#[derive(Clone, Copy, Debug)]
pub enum Asks<'a> {
    /// To read a key or a range, now or as it changes. As in a request, not normalised: a range end
    /// of one zero byte means all keys from the start key on.
    Read { key: &'a [u8], range_end: &'a [u8] },
    /// To execute a read-only transaction.
    ReadTxn(&'a TxnRequest),
    /// To call an RPC of this kind at all.
    Call(Needs),
}

/// What an RPC requires of its caller; see `rpcs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// What depends on the request, which is checked where it is executed.
    Content,
    /// To be authenticated, with any role.
    User,
    /// The role `root`.
    Root,
}

/// What a caller may do, by an auth state.
pub fn access<'a>(auth: &'a AuthView, caller: &'a Caller) -> Access<'a> {
    let identity = match caller.identity() {
        Identity::Nobody => verdict::AuthIdentity::Nobody,
        Identity::Invalid => verdict::AuthIdentity::Invalid,
        Identity::Member => verdict::AuthIdentity::Member,
        Identity::User(user) => verdict::AuthIdentity::User {
            name: &user.name,
            auth_revision: user.auth_revision,
        },
    };
    Access::of(auth, identity)
}

/// The same for what began when the caller was authenticated and continues: what counts is its
/// name.
pub fn access_at_any_revision<'a>(auth: &'a AuthView, caller: &'a Caller) -> Access<'a> {
    match caller.identity() {
        Identity::User(user) => Access::of(
            auth,
            verdict::AuthIdentity::User {
                name: &user.name,
                auth_revision: auth.revision(),
            },
        ),
        Identity::Nobody | Identity::Invalid | Identity::Member => access(auth, caller),
    }
}

/// # Errors
/// The caller is not allowed to do that in the state that `auth` is of.
pub fn check(auth: &AuthView, caller: &Caller, asks: Asks<'_>) -> Result<(), Error> {
    if !auth.is_enabled() {
        return Ok(());
    }
    check_token(caller)?;
    let access = access(auth, caller);
    match asks {
        Asks::Read { key, range_end } => {
            access.read(key, range_end)?;
            access.same_revision()
        }
        Asks::ReadTxn(txn) => {
            without_leases(access.txn(txn, &NoKeys))?;
            access.same_revision()
        }
        Asks::Call(Needs::User) => access.user(),
        Asks::Call(Needs::Root) => access.root(),
        Asks::Call(Needs::Nothing | Needs::Content) => Ok(()),
    }
}

/// Whether a request would be refused whatever its leases are attached to, by an auth state.
pub fn check_request(
    auth: &AuthView,
    caller: &Caller,
    request: &InternalRaftRequest,
) -> Result<(), Error> {
    if auth.is_enabled() {
        check_token(caller)?;
    }
    without_leases(access(auth, caller).request(request, &NoKeys))
}

/// A token that is not valid is refused whatever is asked, also where nothing is needed.
fn check_token(caller: &Caller) -> Result<(), Error> {
    match caller.identity() {
        Identity::Invalid => Err(Error::InvalidAuthToken),
        _ => Ok(()),
    }
}

/// A verdict for which nothing was read.
fn without_leases(verdict: mvcc::Result<()>) -> Result<(), Error> {
    match verdict {
        Ok(()) => Ok(()),
        Err(mvcc::Error::Refused(error)) => Err(error),
        Err(mvcc::Error::Storage(_)) => Err(Error::PermissionDenied),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message as _;
    use prost_reflect::{DescriptorPool, DynamicMessage, Kind, Value};

    use super::*;
    use crate::service::fixture::{self, user};

    /// `alice` may read `a` to `c` and write `a`.
    fn auth() -> Arc<AuthView> {
        let handle = fixture::single_member();
        let alice: fixture::Permissions = &[(0, "a", "c"), (1, "a", "")];
        let requests = fixture::auth_requests(&[("alice", alice), ("root", &[])]);
        fixture::apply(&handle, requests);
        handle.auth()
    }

    #[test]
    fn requests_are_roots_but_for_those_that_are_known_to_be_for_others() {
        let auth = auth();
        let alice = user("alice", auth.revision());
        let compiled = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
        let pool = DescriptorPool::decode(&compiled[..]).expect("what the build wrote");
        let all = pool.get_message_by_name("etcdserverpb.InternalRaftRequest");
        let all = all.expect("it is declared");
        let mut permitted = Vec::new();
        for field in all.fields().filter(|field| field.name() != "header") {
            let Kind::Message(kind) = field.kind() else {
                continue;
            };
            let mut request = DynamicMessage::new(all.clone());
            request.set_field(&field, Value::Message(DynamicMessage::new(kind)));
            let request = InternalRaftRequest::decode(request.encode_to_vec().as_slice());
            let request = request.expect("the same declaration");
            if check_request(&auth, &alice, &request).is_ok() {
                permitted.push(field.name().to_owned());
            }
        }
        permitted.sort();
        let expected = [
            // To ask for alarms, for a lease, for a transaction of nothing, to end no lease; and
            // whether one must log in, and to do so.
            "alarm",
            "auth_status",
            "authenticate",
            "lease_grant",
            "lease_revoke",
            "txn",
            // No client asks for these: reads are judged elsewhere, the rest is members'.
            "cluster_member_attr_set",
            "cluster_version_set",
            "downgrade_info_set",
            "downgrade_version_test",
            "lease_checkpoint",
            "range",
        ];
        let mut expected = expected.map(str::to_owned);
        expected.sort();
        assert_eq!(permitted, expected);
    }

    #[test]
    fn reads_are_judged_by_the_state_that_is_read() {
        let auth = auth();
        let now = auth.revision();
        let read = |key: &'static str, end: &'static str| Asks::Read {
            key: key.as_bytes(),
            range_end: end.as_bytes(),
        };
        for (caller, asks, expected) in [
            (Caller::nobody(), read("a", ""), Err(Error::UserEmpty)),
            (Caller::member(), read("a", "\0"), Ok(())),
            (user("alice", now), read("a", "c"), Ok(())),
            (
                user("alice", now),
                read("a", "\0"),
                Err(Error::PermissionDenied),
            ),
            (
                user("alice", now - 1),
                read("a", "c"),
                Err(Error::AuthOldRevision),
            ),
            // A signed token of a state that this member has not seen yet.
            (
                user("alice", now + 1),
                read("a", "c"),
                Err(Error::AuthOldRevision),
            ),
            (
                user("alice", now + 1),
                read("x", ""),
                Err(Error::PermissionDenied),
            ),
            (
                user("bob", now),
                read("a", ""),
                Err(Error::PermissionDenied),
            ),
            (user("root", now), read("x", "\0"), Ok(())),
            (
                user("root", now - 1),
                read("x", "\0"),
                Err(Error::AuthOldRevision),
            ),
            (user("root", 1), Asks::Call(Needs::Root), Ok(())),
            (
                user("alice", now),
                Asks::Call(Needs::Root),
                Err(Error::PermissionDenied),
            ),
            (
                user("bob", now),
                Asks::Call(Needs::Root),
                Err(Error::UserNotFound),
            ),
            (user("bob", now), Asks::Call(Needs::User), Ok(())),
            (
                Caller::nobody(),
                Asks::Call(Needs::User),
                Err(Error::UserEmpty),
            ),
            (
                Caller::nobody(),
                Asks::Call(Needs::Root),
                Err(Error::UserEmpty),
            ),
            (Caller::nobody(), Asks::Call(Needs::Nothing), Ok(())),
        ] {
            let who = format!("{:?} {asks:?}", caller.identity());
            assert_eq!(check(&auth, &caller, asks), expected, "{who}");
        }
        let empty = TxnRequest::default();
        assert_eq!(
            check(&auth, &Caller::nobody(), Asks::ReadTxn(&empty)),
            Ok(())
        );
    }

    #[test]
    fn nothing_is_asked_where_authentication_is_not_enabled() {
        let auth = AuthView::default();
        for asks in [
            Asks::Read {
                key: b"a",
                range_end: b"\0",
            },
            Asks::Call(Needs::Root),
        ] {
            assert_eq!(check(&auth, &Caller::nobody(), asks), Ok(()));
            assert_eq!(check(&auth, &user("nobody", 99), asks), Ok(()));
        }
    }
}
