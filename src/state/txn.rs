//! Txn: compares, then one of two branches, nested to any depth that the request limits allow.
//!
//! As in etcd every compare, nested ones included, sees the state before the transaction; the
//! branch that they choose is checked as a whole, and only then is anything changed.

use super::answer::Kept;
use super::kv;
use super::lease::Leases;
use crate::error::Error;
use crate::mvcc::read::{PinnedView, RangeRead};
use crate::mvcc::write::Txn;
use crate::mvcc::{Error as MvccError, Result};
use crate::probe::{self, Defect};
use crate::proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseOp, TxnRequest,
    TxnResponse, compare, request_op::Request, response_op::Response,
};
use crate::storage::schema::Version;
use crate::storage::{self, Family};
use crate::types::KeyRange;

/// True if no branch contains anything but ranges. As in etcd a nested transaction counts as a
/// write.
pub fn is_read_only(request: &TxnRequest) -> bool {
    all_ops(request).all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// True if every range of a read-only transaction is serializable.
pub fn is_serializable(request: &TxnRequest) -> bool {
    all_ops(request)
        .all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

/// True if a read-only transaction reads single keys only, of which each may be large, and `most`
/// at most.
pub fn reads_few_points(request: &TxnRequest, most: usize) -> bool {
    let points = |op: &RequestOp| matches!(&op.request, Some(Request::RequestRange(range)) if range.range_end.is_empty());
    all_ops(request).count() <= most
        && all_ops(request).all(points)
        && request.compare.iter().all(|c| c.range_end.is_empty())
}

/// True where a branch of the transaction holds a put.
pub fn has_put(request: &TxnRequest) -> bool {
    all_ops(request).any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => has_put(nested),
        _ => false,
    })
}

/// True where a branch reads at a revision of its own.
pub fn reads_past(request: &TxnRequest) -> bool {
    all_ops(request).any(|op| match &op.request {
        Some(Request::RequestRange(range)) => range.revision != 0,
        Some(Request::RequestTxn(nested)) => reads_past(nested),
        _ => false,
    })
}

fn all_ops(request: &TxnRequest) -> impl Iterator<Item = &RequestOp> {
    request.success.iter().chain(&request.failure)
}

/// The branch that the compares of a transaction choose, with those of its nested ones.
struct Path<'a> {
    succeeded: bool,
    ops: &'a [RequestOp],
    /// Of each operation that is a transaction, in order.
    nested: Vec<Path<'a>>,
}

impl<'a> Path<'a> {
    fn choose(pinned: &PinnedView<'_>, request: &'a TxnRequest) -> Result<Self> {
        let mut succeeded = true;
        for compare in &request.compare {
            if !holds(pinned, compare)? {
                succeeded = false;
                break;
            }
        }
        let ops = if succeeded {
            &request.success
        } else {
            &request.failure
        };
        let nested = ops
            .iter()
            .filter_map(|op| match &op.request {
                Some(Request::RequestTxn(nested)) => Some(Self::choose(pinned, nested)),
                _ => None,
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            succeeded,
            ops,
            nested,
        })
    }

    /// Checks all operations of a branch.
    fn check(&self, pinned: &PinnedView<'_>, leases: &Leases) -> Result<()> {
        let mut nested = self.nested.iter();
        for op in self.ops {
            match &op.request {
                Some(Request::RequestRange(range)) => check_range(pinned, range)?,
                Some(Request::RequestPut(put)) => check_put(pinned, put, leases)?,
                Some(Request::RequestTxn(_)) => {
                    if let Some(path) = nested.next() {
                        path.check(pinned, leases)?;
                    }
                }
                Some(Request::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    /// What it would answer in this state, about.
    fn size(&self, pinned: &PinnedView<'_>, most_bytes: usize) -> Result<usize> {
        let mut nested = self.nested.iter();
        let mut size = 0;
        for op in self.ops {
            let left = most_bytes.saturating_sub(size);
            if left == 0 {
                break;
            }
            let previous = |key, range_end| {
                let range = KeyRange::from_wire(key, range_end);
                pinned.size(&RangeRead::all(range), left)
            };
            size += match &op.request {
                Some(Request::RequestRange(range)) => {
                    check_range(pinned, range)?;
                    pinned.size(&kv::range_read(range)?, left)?
                }
                Some(Request::RequestPut(put)) if put.prev_kv => {
                    previous(&put.key, &Default::default())?
                }
                Some(Request::RequestDeleteRange(delete)) if delete.prev_kv => {
                    previous(&delete.key, &delete.range_end)?
                }
                Some(Request::RequestTxn(_)) => match nested.next() {
                    Some(path) => path.size(pinned, left)?,
                    None => 0,
                },
                _ => 0,
            };
        }
        Ok(size)
    }

    fn execute(&self, txn: &mut Txn<'_>, kept: &mut Kept) -> Result<TxnResponse> {
        let mut responses = Vec::with_capacity(self.ops.len());
        let mut nested = self.nested.iter();
        for op in self.ops {
            let response = match &op.request {
                Some(Request::RequestRange(range)) => {
                    Some(Response::ResponseRange(kv::range(txn, range, kept)?))
                }
                Some(Request::RequestPut(put)) => {
                    Some(Response::ResponsePut(kv::put(txn, put, kept)?))
                }
                Some(Request::RequestDeleteRange(delete)) => Some(Response::ResponseDeleteRange(
                    kv::delete_range(txn, delete, kept)?,
                )),
                Some(Request::RequestTxn(_)) => match nested.next() {
                    Some(path) => {
                        let mut response = path.execute(txn, kept)?;
                        // etcd leaves the header of a nested response empty.
                        response.header = Some(Default::default());
                        Some(Response::ResponseTxn(response))
                    }
                    None => None,
                },
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        Ok(TxnResponse {
            header: kv::header(txn.revision()),
            succeeded: self.succeeded,
            responses,
        })
    }
}

/// Runs a transaction that may write; what it reads is answered as far as `kept` has room.
pub fn write(
    txn: &mut Txn<'_>,
    request: &TxnRequest,
    leases: &Leases,
    kept: &mut Kept,
) -> Result<TxnResponse> {
    let path = {
        let pending = txn.pending();
        let pinned = PinnedView {
            read: match probe::injected(Defect::CompareMissesBatch) {
                true => txn.base(),
                false => &pending,
            },
            head: txn.revision(),
            compacted: txn.compacted(),
        };
        let path = Path::choose(&pinned, request)?;
        path.check(&pinned, leases)?;
        path
    };
    path.execute(txn, kept).map_err(|error| match error {
        MvccError::Refused(refused) => MvccError::Storage(storage::Error::Engine(format!(
            "a transaction that was checked failed half way: {refused}"
        ))),
        failed => failed,
    })
}

/// See `answer_size::of_now`.
pub fn size_now(pinned: &PinnedView<'_>, request: &TxnRequest, most_bytes: usize) -> Result<usize> {
    Path::choose(pinned, request)?.size(pinned, most_bytes)
}

/// Runs a read-only transaction on a pinned view; `range` answers each of its ranges, in order.
pub fn read(
    pinned: &PinnedView<'_>,
    request: &TxnRequest,
    mut range: impl FnMut(&RangeRead) -> Result<RangeResponse>,
) -> Result<TxnResponse> {
    let path = Path::choose(pinned, request)?;
    let mut responses = Vec::with_capacity(path.ops.len());
    for op in path.ops {
        let Some(Request::RequestRange(asked)) = &op.request else {
            return Err(Error::KeyNotFound.into());
        };
        check_range(pinned, asked)?;
        let response = range(&kv::range_read(asked)?)?;
        responses.push(ResponseOp {
            response: Some(Response::ResponseRange(response)),
        });
    }
    Ok(TxnResponse {
        header: kv::header(pinned.head),
        succeeded: path.succeeded,
        responses,
    })
}

fn check_range(pinned: &PinnedView<'_>, range: &RangeRequest) -> Result<()> {
    kv::range_read(range)?;
    match range.revision {
        0 => Ok(()),
        revision if revision > pinned.head => Err(Error::FutureRevision.into()),
        revision if revision < pinned.compacted => Err(Error::Compacted.into()),
        _ => Ok(()),
    }
}

fn check_put(pinned: &PinnedView<'_>, put: &PutRequest, leases: &Leases) -> Result<()> {
    kv::check_put(put, leases, &|key| {
        pinned.get(key, pinned.head).map_err(MvccError::from)
    })
}

/// Whether a compare holds for the key, or for every key of the range.
fn holds(pinned: &PinnedView<'_>, compare: &Compare) -> Result<bool> {
    let range = KeyRange::from_wire(&compare.key, &compare.range_end);
    let missing_holds =
        || compare.target != compare::CompareTarget::Value as i32 && compare_version(compare, None);
    if let KeyRange::Point(key) = &range {
        return Ok(match pinned.get(key, pinned.head)? {
            Some(version) => compare_version(compare, Some(&version)),
            None => missing_holds(),
        });
    }
    if range.is_empty() {
        return Ok(missing_holds());
    }
    let mut walk = pinned.walk(&range, pinned.head)?;
    let mut any = false;
    while walk.advance()? {
        any = true;
        let record = bytes::Bytes::copy_from_slice(walk.record());
        let version = Version::decode(record, Family::Current, walk.key())?;
        if !compare_version(compare, Some(&version)) {
            return Ok(false);
        }
    }
    Ok(any || missing_holds())
}

/// Compares one version; a missing key compares as all zeros.
fn compare_version(compare: &Compare, version: Option<&Version>) -> bool {
    use compare::{CompareResult, CompareTarget, TargetUnion};
    let number = |ours: fn(&Version) -> i64, theirs: i64| version.map_or(0, ours).cmp(&theirs);
    let union = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => {
            let theirs: &[u8] = match union {
                Some(TargetUnion::Value(value)) => value,
                _ => &[],
            };
            let ours = version.map(Version::value).unwrap_or_default();
            ours.as_ref().cmp(theirs)
        }
        Ok(CompareTarget::Create) => number(
            |version| version.create_revision,
            match union {
                Some(TargetUnion::CreateRevision(revision)) => *revision,
                _ => 0,
            },
        ),
        Ok(CompareTarget::Mod) => number(
            |version| version.mod_revision.main,
            match union {
                Some(TargetUnion::ModRevision(revision)) => *revision,
                _ => 0,
            },
        ),
        Ok(CompareTarget::Version) => number(
            |version| version.version,
            match union {
                Some(TargetUnion::Version(version)) => *version,
                _ => 0,
            },
        ),
        Ok(CompareTarget::Lease) => number(
            |version| version.lease.0,
            match union {
                Some(TargetUnion::Lease(lease)) => *lease,
                _ => 0,
            },
        ),
        // As in etcd an unknown target compares as equal.
        Err(_) => std::cmp::Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}
