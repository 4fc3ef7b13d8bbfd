//! Whether who was answered had the right to it.
//!
//! What the log decides (writes, and everything about users and roles) is the model's business: it
//! refuses what was not permitted when its entry was applied. This is about the rest: a read is
//! permitted by the very state that it shows; names of keys, by some state while they were asked
//! for; an event, by its own state or a later one that was there when it arrived. A renewal and a
//! list of leases are permitted by a state of the member that was called, which may lag.

use super::replay::{Replay, StateIndex};
use crate::error::Error;
use crate::proto::etcdserverpb::{
    LeaseTimeToLiveResponse, RangeRequest, TxnRequest, WatchCreateRequest,
};
use crate::sim::history::{Operation, Watched};
use crate::state::model::auth::{Auth, Right};

/// The right to read a range in a state.
pub fn range(auth: &Auth, operation: &Operation, read: &RangeRequest) -> Result<(), Error> {
    auth.may(&operation.who, Right::Read, &read.key, &read.range_end)?;
    auth.is_of_now(&operation.who)
}

/// The right to a read-only transaction in a state.
pub fn txn(auth: &Auth, operation: &Operation, txn: &TxnRequest) -> Result<(), Error> {
    auth.may_txn(&operation.who, txn, &|_| Vec::new())?;
    auth.is_of_now(&operation.who)
}

/// An error that is about rights, and no other check's business.
pub fn is_about_rights(error: Error) -> bool {
    matches!(
        error,
        Error::PermissionDenied | Error::AuthOldRevision | Error::UserEmpty | Error::UserNotFound
    )
}

/// Whether the keys of a lease were shown to who may read them all.
pub fn lease_keys(
    replay: &Replay,
    operation: &Operation,
    shown: &LeaseTimeToLiveResponse,
    (from, to): (StateIndex, StateIndex),
) -> bool {
    replay.auths(from, to).any(|auth| {
        let may = |key| auth.may_still(&operation.who, Right::Read, key, b"");
        shown.keys.iter().all(|key| may(key))
    })
}

/// Whether a request was refused for want of a right in some state.
pub fn was_refused(
    replay: &Replay,
    (from, to): (StateIndex, StateIndex),
    error: Error,
    asks: impl Fn(&Auth) -> Result<(), Error>,
) -> bool {
    replay.auths(from, to).any(|auth| asks(auth) == Err(error))
}

/// Whether a request is permitted by some state of the member that was called: `may` is asked for
/// users and roles and the revision of the keys.
fn is_permitted_there(
    replay: &Replay,
    operation: &Operation,
    to: StateIndex,
    may: impl Fn(&Auth, i64) -> Result<(), Error>,
) -> bool {
    let from = replay.place_of(operation.known_index);
    let mut seen = None;
    (from..=to).any(|place| {
        let (auth, head) = (replay.auth(place), replay.state(place).head);
        let is_other = seen.replace((std::ptr::from_ref(auth), head));
        is_other != Some((std::ptr::from_ref(auth), head)) && may(auth, head).is_ok()
    })
}

/// Whether a lease was renewed for who may write all its keys.
pub fn may_renew(replay: &Replay, operation: &Operation, lease: i64, to: StateIndex) -> bool {
    is_permitted_there(replay, operation, to, |auth, head| {
        let attached = |lease| replay.model.attached(lease, head);
        auth.may_renew(&operation.who, lease, &attached)
    })
}

/// Whether leases were listed for who may read the keys of all.
pub fn may_list_leases(replay: &Replay, operation: &Operation, to: StateIndex) -> bool {
    is_permitted_there(replay, operation, to, |auth, head| {
        auth.may_list_leases(&operation.who, &replay.model.attached_to_any(head))
    })
}

fn watched_range(create: &WatchCreateRequest) -> (&[u8], &[u8]) {
    let key: &[u8] = match create.key.is_empty() {
        true => b"\0",
        false => &create.key,
    };
    (key, &create.range_end)
}

/// Whether a watch was permitted in some state of these.
pub fn may_watch(replay: &Replay, watched: &Watched, from: StateIndex, to: StateIndex) -> bool {
    let (key, range_end) = watched_range(&watched.create);
    let mut auths = replay.auths(from, to);
    auths.any(|auth| auth.may_still(&watched.who, Right::Read, key, range_end))
}

/// Whether it was not permitted in some state of these.
pub fn may_not_watch(replay: &Replay, watched: &Watched, from: StateIndex, to: StateIndex) -> bool {
    let (key, range_end) = watched_range(&watched.create);
    let mut auths = replay.auths(from, to);
    auths.any(|auth| !auth.may_still(&watched.who, Right::Read, key, range_end))
}
