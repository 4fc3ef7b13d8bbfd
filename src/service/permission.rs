//! Whether a caller may do something: one check before every read and every proposal, on all
//! surfaces.
//!
//! Everything is allowed: there are no users yet. The checks already get everything that the
//! decision will need. Key ranges are those of the request, not normalised: a range end of one zero
//! byte means all keys from the start key on, and has to be checked as such.

use super::caller::Caller;
use crate::error::Error;
use crate::proto::etcdserverpb::{InternalRaftRequest, TxnRequest};

/// The permission that is requested.
#[allow(dead_code, reason = "permissions and traces are about to read it")]
#[derive(Clone, Copy, Debug)]
pub enum Asks<'a> {
    /// To read a key or a range, now or as it changes; `range_end` as in a request.
    Read { key: &'a [u8], range_end: &'a [u8] },
    /// To execute a read-only transaction.
    ReadTxn(&'a TxnRequest),
    /// To have a request replicated. Its contents are checked again at apply, for the identity in
    /// its header: permissions may have changed in between.
    Propose(&'a InternalRaftRequest),
    /// To call an RPC of this kind at all.
    Call(Needs),
}

/// What an RPC requires of its caller; see `rpcs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// Permissions for the keys in the request, which are checked where it is executed.
    Content,
    /// To be authenticated, with any role.
    User,
    /// The role `root`.
    Root,
}

/// # Errors
/// The caller is not allowed to do that.
pub fn check(_caller: &Caller, _asks: Asks<'_>) -> Result<(), Error> {
    Ok(())
}
