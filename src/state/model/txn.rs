//! Transactions: compares, then one of two branches.

use std::cmp::Ordering;

use super::{At, Model, Txn, header};
use crate::error::Error;
use crate::proto::KeyValue;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::{
    Compare, RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op::Request,
    response_op::Response as OpResponse,
};

impl Model {
    fn holds(&self, compare: &Compare, head: i64) -> bool {
        let pairs = self.pairs(&compare.key, &compare.range_end, head);
        match pairs.is_empty() {
            true => {
                compare.target != CompareTarget::Value as i32
                    && compares(compare, &KeyValue::default())
            }
            false => pairs.iter().all(|kv| compares(compare, kv)),
        }
    }

    /// The branches taken, this transaction's first and then those of nested ones, in order.
    fn decide(&self, request: &TxnRequest, taken: &mut Vec<bool>) {
        let succeeds = request
            .compare
            .iter()
            .all(|compare| self.holds(compare, self.head));
        taken.push(succeeds);
        for op in branch(request, succeeds) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.decide(nested, taken);
            }
        }
    }

    fn check(
        &self,
        request: &TxnRequest,
        taken: &mut impl Iterator<Item = bool>,
    ) -> Result<(), Error> {
        let succeeds = taken.next() == Some(true);
        for op in branch(request, succeeds) {
            match &op.request {
                Some(Request::RequestPut(put)) => self.check_put(put)?,
                Some(Request::RequestRange(range)) => check_range(range, self.now())?,
                Some(Request::RequestTxn(nested)) => self.check(nested, taken)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn execute(
        &mut self,
        txn: &mut Txn,
        request: &TxnRequest,
        taken: &mut impl Iterator<Item = bool>,
    ) -> Result<TxnResponse, Error> {
        let succeeded = taken.next() == Some(true);
        let mut responses = Vec::new();
        for op in branch(request, succeeded) {
            let response = match op.request.as_ref() {
                Some(Request::RequestPut(put)) => Some(OpResponse::ResponsePut(self.put(txn, put))),
                Some(Request::RequestDeleteRange(delete)) => {
                    Some(OpResponse::ResponseDeleteRange(self.delete(txn, delete)))
                }
                Some(Request::RequestRange(range)) => {
                    let at = At {
                        head: self.txn_head(txn),
                        ..self.now()
                    };
                    Some(OpResponse::ResponseRange(self.range(range, at)?))
                }
                Some(Request::RequestTxn(nested)) => {
                    let mut response = self.execute(txn, nested, taken)?;
                    response.header = header(0);
                    Some(OpResponse::ResponseTxn(response))
                }
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        Ok(TxnResponse {
            header: header(self.txn_head(txn)),
            succeeded,
            responses,
        })
    }

    pub fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Error> {
        let mut taken = Vec::new();
        self.decide(request, &mut taken);
        self.check(request, &mut taken.iter().copied())?;
        let mut txn = self.begin();
        let response = self.execute(&mut txn, request, &mut taken.into_iter())?;
        self.finish(&txn);
        Ok(response)
    }

    /// What a transaction of nothing but ranges answers in that state.
    pub fn read_txn(&self, request: &TxnRequest, at: At) -> Result<TxnResponse, Error> {
        let mut compares = request.compare.iter();
        let succeeded = compares.all(|compare| self.holds(compare, at.head));
        let mut responses = Vec::new();
        for op in branch(request, succeeded) {
            let Some(Request::RequestRange(range)) = &op.request else {
                return Err(Error::KeyNotFound);
            };
            check_range(range, at)?;
            let response = OpResponse::ResponseRange(self.range(range, at)?);
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        Ok(TxnResponse {
            header: header(at.head),
            succeeded,
            responses,
        })
    }
}

fn check_range(range: &RangeRequest, at: At) -> Result<(), Error> {
    if range.revision > at.head {
        return Err(Error::FutureRevision);
    }
    if range.revision != 0 && range.revision < at.compacted {
        return Err(Error::Compacted);
    }
    Ok(())
}

/// Whether a compare holds for a pair; what it does not say compares as zero.
fn compares(compare: &Compare, kv: &KeyValue) -> bool {
    let union = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => kv.version.cmp(&match union {
            Some(TargetUnion::Version(n)) => *n,
            _ => 0,
        }),
        Ok(CompareTarget::Create) => kv.create_revision.cmp(&match union {
            Some(TargetUnion::CreateRevision(n)) => *n,
            _ => 0,
        }),
        Ok(CompareTarget::Mod) => kv.mod_revision.cmp(&match union {
            Some(TargetUnion::ModRevision(n)) => *n,
            _ => 0,
        }),
        Ok(CompareTarget::Lease) => kv.lease.cmp(&match union {
            Some(TargetUnion::Lease(n)) => *n,
            _ => 0,
        }),
        Ok(CompareTarget::Value) => kv.value.as_ref().cmp(match union {
            Some(TargetUnion::Value(value)) => value.as_ref(),
            _ => &[],
        }),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}

fn branch(request: &TxnRequest, succeeds: bool) -> &[RequestOp] {
    match succeeds {
        true => &request.success,
        false => &request.failure,
    }
}
