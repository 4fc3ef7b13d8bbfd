//! Whether a caller may do what it asks: one verdict, asked for before a read and before a
//! proposal, whichever surface the request came through.
//!
//! The answer is yes to all: no user can be made yet. What is asked already names all that the
//! answer will depend on. Keys are those of the request itself, as yet in no other form: a range
//! end of one zero byte means all keys from here on, and has to be judged as that.

use super::caller::Caller;
use crate::error::Error;
use crate::proto::etcdserverpb::{InternalRaftRequest, TxnRequest};

/// What a caller asks to do.
#[allow(dead_code, reason = "permissions and traces are about to read it")]
#[derive(Clone, Copy, Debug)]
pub enum Asks<'a> {
    /// To read a key or a range, now or as it changes; `range_end` as in a request.
    Read { key: &'a [u8], range_end: &'a [u8] },
    /// To read in a transaction that changes nothing.
    ReadTxn(&'a TxnRequest),
    /// To have a request agreed upon. What it holds is judged again when it is applied, by the
    /// identity in its header: permissions may have changed in between.
    Propose(&'a InternalRaftRequest),
    /// To make a call of this kind at all.
    Call(Needs),
}

/// What a kind of call needs; see `rpcs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// What the keys and the like in the request need, which is asked where it is carried out.
    Content,
    /// To be a user, of whatever role.
    User,
    /// The role `root`.
    Root,
}

/// # Errors
/// The caller may not do that.
pub fn check(_caller: &Caller, _asks: Asks<'_>) -> Result<(), Error> {
    Ok(())
}
