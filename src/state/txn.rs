//! Txn: compares, then one of two branches, nested to any depth that the request limits allow.
//!
//! As in etcd every compare, nested ones included, sees the state before the transaction; the
//! branch that they choose is checked as a whole, and only then is anything changed.
//!
//! One that changes much is written in parts, and put aside behind each (`PartedTxn`).

use super::answer::AnswerLimit;
use super::kv::{self, DeleteSteps};
use super::lease::Leases;
use crate::error::Error;
use crate::mvcc::read::{PinnedView, RangeRead};
use crate::mvcc::write::{Txn, TxnState, Writer};
use crate::mvcc::{Error as MvccError, Result};
use crate::probe::{self, Defect};
use crate::proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp,
    TxnRequest, TxnResponse, compare, request_op::Request, response_op::Response,
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

/// Point operations that a batch holds whatever their values are.
const FEW_WRITES: usize = 16;

/// True where a branch may write more than one batch should hold.
pub fn may_write_much(request: &TxnRequest) -> bool {
    let mut writes = 0;
    deletes_ranges(request, &mut writes) || writes > FEW_WRITES
}

fn deletes_ranges(request: &TxnRequest, writes: &mut usize) -> bool {
    all_ops(request).any(|op| match &op.request {
        Some(Request::RequestDeleteRange(delete)) => {
            *writes += 1;
            !delete.range_end.is_empty()
        }
        Some(Request::RequestPut(_)) => {
            *writes += 1;
            false
        }
        Some(Request::RequestTxn(nested)) => deletes_ranges(nested, writes),
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

    /// The operations that are no transactions, in order.
    fn leaves(&self) -> Vec<Option<&'a Request>> {
        let mut leaves = Vec::with_capacity(self.ops.len());
        let mut nested = self.nested.iter();
        for op in self.ops {
            match &op.request {
                Some(Request::RequestTxn(_)) => {
                    leaves.extend(nested.next().into_iter().flat_map(Path::leaves));
                }
                other => leaves.push(other.as_ref()),
            }
        }
        leaves
    }

    /// The answer, of those to `leaves`.
    fn answer(
        &self,
        header: Option<ResponseHeader>,
        leaves: &mut impl Iterator<Item = Option<Response>>,
    ) -> TxnResponse {
        let mut nested = self.nested.iter();
        let mut answer = |op: &RequestOp| match &op.request {
            // etcd leaves the header of a nested response empty.
            Some(Request::RequestTxn(_)) => nested
                .next()
                .map(|path| path.answer(Some(Default::default()), &mut *leaves))
                .map(Response::ResponseTxn),
            _ => leaves.next().flatten(),
        };
        let responses = self.ops.iter().map(|op| ResponseOp {
            response: answer(op),
        });
        let responses = responses.collect();
        TxnResponse {
            header,
            succeeded: self.succeeded,
            responses,
        }
    }

    /// Which branches were chosen, each before those within it.
    fn choices(&self) -> Vec<bool> {
        let nested = self.nested.iter().flat_map(Path::choices);
        std::iter::once(self.succeeded).chain(nested).collect()
    }

    /// The path of these choices.
    fn of_choices(request: &'a TxnRequest, choices: &mut impl Iterator<Item = bool>) -> Self {
        let succeeded = choices.next().unwrap_or_default();
        let ops = match succeeded {
            true => &request.success,
            false => &request.failure,
        };
        let nested = ops.iter().filter_map(|op| match &op.request {
            Some(Request::RequestTxn(nested)) => Some(Self::of_choices(nested, &mut *choices)),
            _ => None,
        });
        let nested = nested.collect();
        Self {
            succeeded,
            ops,
            nested,
        }
    }
}

/// How far a transaction is executed, and its answer so far.
struct TxnProgress {
    answers: Vec<Option<Response>>,
    /// The deletion that is under way.
    deleting: Option<DeleteSteps>,
    kept: AnswerLimit,
}

impl TxnProgress {
    /// Executes what is left of `leaves`, or up to the end of a part; true at the end of all.
    fn proceed(&mut self, leaves: &[Option<&Request>], txn: &mut Txn<'_>) -> Result<bool> {
        let kept = &mut self.kept;
        while let Some(leaf) = leaves.get(self.answers.len()) {
            let answer = match leaf {
                Some(Request::RequestRange(range)) => {
                    Some(Response::ResponseRange(kv::range(txn, range, kept)?))
                }
                Some(Request::RequestPut(put)) => {
                    Some(Response::ResponsePut(kv::put(txn, put, kept)?))
                }
                Some(Request::RequestDeleteRange(delete)) => {
                    let deleting = self.deleting.take();
                    let mut deleting = deleting.unwrap_or_else(|| DeleteSteps::begin(delete, kept));
                    if deleting.step(txn)? {
                        self.deleting = Some(deleting);
                        if txn.end_piece()? {
                            return Ok(false);
                        }
                        continue;
                    }
                    Some(Response::ResponseDeleteRange(deleting.finish(txn, kept)))
                }
                Some(Request::RequestTxn(_)) | None => None,
            };
            self.answers.push(answer);
            if txn.end_piece()? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A transaction of which a part is written.
pub struct PartedTxn {
    request: TxnRequest,
    choices: Vec<bool>,
    progress: TxnProgress,
    state: TxnState,
}

/// What was done of a transaction.
pub enum Written<'a> {
    /// All: what it answers, still to be finished.
    All(TxnResponse, Txn<'a>),
    Part(PartedTxn),
}

impl PartedTxn {
    /// Executes more of it; what it reads is answered as far as `kept` had room at its begin.
    pub fn proceed<'a>(
        self,
        writer: &'a mut Writer,
        kept: &mut AnswerLimit,
    ) -> Result<Written<'a>> {
        let path = Path::of_choices(&self.request, &mut self.choices.iter().copied());
        let txn = writer.resume(self.state);
        proceed(&path, &self.request, txn, self.progress, kept)
    }
}

fn proceed<'a>(
    path: &Path<'_>,
    request: &TxnRequest,
    mut txn: Txn<'a>,
    mut progress: TxnProgress,
    kept: &mut AnswerLimit,
) -> Result<Written<'a>> {
    let proceeded = progress.proceed(&path.leaves(), &mut txn);
    let all = proceeded.map_err(|error| match error {
        MvccError::Refused(refused) => MvccError::Storage(storage::Error::Engine(format!(
            "a transaction that was checked failed half way: {refused}"
        ))),
        failed => failed,
    })?;
    if !all {
        return Ok(Written::Part(PartedTxn {
            request: request.clone(),
            choices: path.choices(),
            progress,
            state: txn.suspend(),
        }));
    }
    *kept = progress.kept;
    let mut answers = progress.answers.into_iter();
    let answer = path.answer(kv::header(txn.revision()), &mut answers);
    Ok(Written::All(answer, txn))
}

/// Runs a transaction that may write; what it reads is answered as far as `kept` has room.
pub fn write<'a>(
    txn: Txn<'a>,
    request: &TxnRequest,
    leases: &Leases,
    kept: &mut AnswerLimit,
) -> Result<Written<'a>> {
    let path = {
        let pending = txn.pending();
        let pinned = PinnedView {
            read: match probe::injected(Defect::CompareMissesBatch) {
                true => txn.base(),
                false => &pending,
            },
            head: txn.revision(),
            compacted: txn.compacted(),
            counts: None,
        };
        let path = Path::choose(&pinned, request)?;
        path.check(&pinned, leases)?;
        path
    };
    let progress = TxnProgress {
        answers: Vec::new(),
        deleting: None,
        kept: std::mem::replace(kept, AnswerLimit::up_to(0)),
    };
    proceed(&path, request, txn, progress, kept)
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
