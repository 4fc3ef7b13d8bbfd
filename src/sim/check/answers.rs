//! Whether a response is the one that the model gives. Which member answered, and in which term, is
//! not checked.

use super::replay::{Meant, Replay, StateIndex, Step};
use crate::error::Error;
use crate::proto::etcdserverpb::{
    RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse, request_op::Request,
};
use crate::sim::history::{Answer, Operation, Outcome};
use crate::state::Response;

/// The header as the model fills it: only the revision.
fn bare(header: Option<&ResponseHeader>) -> Option<ResponseHeader> {
    header.map(|header| ResponseHeader {
        revision: header.revision,
        ..Default::default()
    })
}

/// The revision in a header; 0 where there is none.
pub fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// Compares two responses of one kind, ignoring who sent them.
macro_rules! same {
    ($ours:expr, $theirs:expr) => {{
        let mut ours = $ours.clone();
        ours.header = bare(ours.header.as_ref());
        ours == *$theirs
    }};
}

pub fn same_range(ours: &RangeResponse, theirs: &RangeResponse) -> bool {
    same!(ours, theirs)
}

pub fn same_txn(ours: &TxnResponse, theirs: &TxnResponse) -> bool {
    same!(ours, theirs)
}

/// Whether the client's outcome is one that this entry can have produced.
pub fn fits(operation: &Operation, step: &Step, place: StateIndex, replay: &Replay) -> bool {
    match (&operation.outcome, &step.result) {
        (Outcome::Unknown, _) => true,
        (Outcome::Refused(text), Err(error)) => error.text() == text,
        (Outcome::Answered(answer), Ok(meant)) => {
            let newest = replay.until(operation.returned_at).max(place);
            same(
                answer,
                meant,
                replay.state(place).head,
                replay.state(newest).head,
            )
        }
        (Outcome::Refused(_), Ok(_)) | (Outcome::Answered(_), Err(_)) => false,
    }
}

/// `head`: the newest revision after the entry; `newest`: that at the time of the response.
fn same(answer: &Answer, meant: &Meant, head: i64, newest: i64) -> bool {
    match (answer, meant) {
        (Answer::Put(ours), Meant::Response(Response::Put(theirs))) => same!(ours, theirs),
        (Answer::DeleteRange(ours), Meant::Response(Response::DeleteRange(theirs))) => {
            same!(ours, theirs)
        }
        (Answer::Txn(ours), Meant::Response(Response::Txn(theirs))) => same!(ours, theirs),
        // As in etcd, its revision is the newest one at the time of the response.
        (Answer::Compaction(ours), Meant::Response(Response::Compaction(_))) => {
            (head..=newest).contains(&revision(ours.header.as_ref()))
        }
        (Answer::LeaseGrant(ours), Meant::Response(Response::LeaseGrant(theirs))) => {
            same!(ours, theirs)
        }
        (Answer::LeaseRevoke(ours), Meant::Response(Response::LeaseRevoke(theirs))) => {
            same!(ours, theirs)
        }
        (Answer::Alarm(ours), Meant::Response(Response::Alarm(theirs))) => same!(ours, theirs),
        (Answer::Auth(ours), Meant::Response(theirs)) => **ours == *theirs,
        (Answer::Member(ours), Meant::Members(theirs)) => {
            let mut ours = ours.clone();
            ours.sort_unstable();
            ours == *theirs
        }
        _ => false,
    }
}

/// Whether an error depends on the state at the entry; others depend on the request alone or on the
/// member that was called.
pub fn is_decided_by_the_log(error: Error) -> bool {
    matches!(
        error,
        Error::LeaseNotFound
            | Error::KeyNotFound
            | Error::LeaseExists
            | Error::LeaseTtlTooLarge
            | Error::Compacted
            | Error::FutureRevision
            | Error::PermissionDenied
            | Error::AuthOldRevision
            | Error::RootUserNotExist
            | Error::RootRoleNotExist
            | Error::UserExists
            | Error::UserNotFound
            | Error::RoleExists
            | Error::RoleNotFound
            | Error::RoleNotGranted
            | Error::PermissionNotGranted
    )
}

/// Whether a transaction may be rejected for changing a key twice; no other may.
pub fn has_duplicates(request: &TxnRequest) -> bool {
    let mut changes = Vec::new();
    gather_changes(&request.success, &mut changes);
    gather_changes(&request.failure, &mut changes);
    let touches = |(key, range_end): (&[u8], &[u8]), put: &[u8]| match range_end {
        [] => key == put,
        [0] => key <= put,
        end => key <= put && put < end,
    };
    changes.iter().enumerate().any(|(at, (change, is_put))| {
        let others = changes.iter().enumerate().filter(|(other, _)| *other != at);
        *is_put
            && others
                .into_iter()
                .any(|(_, (other, _))| touches(*other, change.0))
    })
}

/// Key, end of its range and whether it is a put.
type KeyChange<'a> = ((&'a [u8], &'a [u8]), bool);

fn gather_changes<'a>(ops: &'a [RequestOp], changes: &mut Vec<KeyChange<'a>>) {
    for op in ops {
        match &op.request {
            Some(Request::RequestPut(put)) => changes.push(((&put.key, b""), true)),
            Some(Request::RequestDeleteRange(delete)) => {
                changes.push(((&delete.key, &delete.range_end), false));
            }
            Some(Request::RequestTxn(nested)) => {
                gather_changes(&nested.success, changes);
                gather_changes(&nested.failure, changes);
            }
            Some(Request::RequestRange(_)) | None => {}
        }
    }
}
