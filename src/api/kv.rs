//! KV: reads go to a view, writes to the raft log.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio_stream::Empty;
use tonic::{Request, Response, Status};
use tracing::Span;

use super::answers::{Answers, RangeAnswer, TxnAnswer};
use super::call_log::{CallLog, Content};
use super::gate::AskedOfLearner;
use super::range_stream::{Chunks, is_sorted_in_chunks};
use super::{ApiSettings, caller, header, spans, validate};
use crate::error::Error;
use crate::metrics::Operation;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    InternalRaftRequest, PutRequest, PutResponse, RangeRequest, RangeResponse, RangeStreamResponse,
    ResponseHeader, TxnRequest, TxnResponse, kv_server::Kv,
};
use crate::replica::view::ReadView;
use crate::service::caller::Caller;
use crate::service::handle::Handle;
use crate::service::permission::Asks;
use crate::service::rpcs;
use crate::state::Response as Applied;
use crate::state::{kv, txn};
use crate::trace::TimedSpan;
use crate::types::Remote;

/// Single keys that one transaction reads on a thread of the network's; more may be a hundred
/// megabytes, behind which all other calls would wait.
const MAX_POINTS_AT_ONCE: usize = 8;

/// Cheap to clone.
#[derive(Clone)]
pub struct KvService {
    handle: Handle,
    /// Apart, as there is a service for each client.
    settings: Arc<ApiSettings>,
    answers: Answers,
    log: CallLog,
}

impl KvService {
    pub fn new(handle: Handle, settings: ApiSettings, answers: Answers) -> Self {
        Self {
            log: CallLog::new(&handle, &settings),
            answers,
            handle,
            settings: Arc::new(settings),
        }
    }

    /// Of the client.
    pub fn log(&self) -> &CallLog {
        &self.log
    }

    /// The same service for one client.
    pub fn of_client(&self, remote: Remote) -> Self {
        Self {
            log: self.log.of_client(remote),
            ..self.clone()
        }
    }

    /// The state in which a range is read.
    async fn view(&self, caller: &Caller, request: &RangeRequest) -> Result<Arc<ReadView>, Error> {
        let asks = Asks::Read {
            key: &request.key,
            range_end: &request.range_end,
        };
        let serializable = request.serializable;
        self.handle.view_for(caller, asks, serializable).await
    }

    async fn read_range(
        &self,
        caller: &Caller,
        request: &RangeRequest,
    ) -> Result<RangeAnswer, Error> {
        let view = self.view(caller, request).await?;
        let read = kv::range_read(request)?;
        let shared = self.handle.shared();
        let start = shared.clock.now();
        let answer = if is_small(request) {
            let answer = self.answers.range(&view, &read);
            answer.map_err(|error| self.handle.refusal(error))
        } else {
            let answers = self.answers.clone();
            self.answers
                .read(caller, move || answers.range(&view, &read))
                .await
        };
        shared.metrics.ranges.increment();
        shared
            .metrics
            .ranged(answer.is_ok(), shared.clock.now() - start);
        answer
    }

    async fn read_txn(
        &self,
        caller: &Caller,
        view: Arc<ReadView>,
        request: &TxnRequest,
    ) -> Result<TxnAnswer, Error> {
        let metrics = &self.handle.shared().metrics;
        // Comparisons are reads at etcd, and one read alone is no transaction.
        let reads = request.compare.len() + request.success.len();
        metrics.ranges.add(reads as u64);
        if reads > 1 {
            metrics.txns.increment();
        }
        if txn::reads_few_points(request, MAX_POINTS_AT_ONCE) {
            let answer = self.answers.txn(&view, request);
            return answer.map_err(|error| self.handle.refusal(error));
        }
        let (answers, request) = (self.answers.clone(), request.clone());
        self.answers
            .read(caller, move || answers.txn(&view, &request))
            .await
    }

    /// Begins what a call asks for, as a stage below it.
    fn begin(&self, caller: Caller, span: impl FnOnce(&Span) -> Span) -> (Caller, TimedSpan) {
        let stage = TimedSpan::begin(self.log.now(), span(caller.span()));
        (caller.within(&stage), stage)
    }

    fn requested<T>(&self, operation: Operation, took: Duration, result: &Result<T, Error>) {
        let metrics = &self.handle.shared().metrics;
        metrics.requested(operation, result.is_ok(), took);
    }

    /// Has a request of a client agreed upon. `kind` takes out what it asked and what came of it.
    async fn write<Q, A: Message>(
        &self,
        (caller, writing): &(Caller, TimedSpan),
        method: &'static str,
        request: Arc<InternalRaftRequest>,
        kind: Write<Q, A>,
    ) -> Result<Response<A>, Status> {
        let held = self.answers.room_for_proposal(caller, &request).await?;
        let result = self.handle.propose_identified(caller, &request).await;
        let answered = result.and_then(|applied| {
            let mut response = (kind.answer)(applied).ok_or(Error::UnknownMethod)?;
            header::fill(&self.handle, (kind.header)(&mut response));
            Ok(response)
        });
        let took = writing.took(self.log.now());
        self.log.ended(rpcs::KV, method, took, || {
            let asked = (kind.asked)(&request);
            let response = answered.as_ref().ok();
            asked.map_or_else(Content::unknown, |asked| (kind.content)(asked, response))
        });
        self.answers.respond(answered?, held)
    }
}

/// A kind of write: how its request and its answer are found in what all kinds share.
struct Write<Q, A> {
    asked: fn(&InternalRaftRequest) -> Option<&Q>,
    answer: fn(Applied) -> Option<A>,
    header: fn(&mut A) -> &mut Option<ResponseHeader>,
    content: fn(&Q, Option<&A>) -> Content,
}

const PUT: Write<PutRequest, PutResponse> = Write {
    asked: |request| request.put.as_ref(),
    answer: |applied| match applied {
        Applied::Put(response) => Some(response),
        _ => None,
    },
    header: |response| &mut response.header,
    content: Content::put,
};

const DELETE_RANGE: Write<DeleteRangeRequest, DeleteRangeResponse> = Write {
    asked: |request| request.delete_range.as_ref(),
    answer: |applied| match applied {
        Applied::DeleteRange(response) => Some(response),
        _ => None,
    },
    header: |response| &mut response.header,
    content: Content::delete_range,
};

const TXN: Write<TxnRequest, TxnResponse> = Write {
    asked: |request| request.txn.as_ref(),
    answer: |applied| match applied {
        Applied::Txn(response) => Some(response),
        _ => None,
    },
    header: |response| &mut response.header,
    content: Content::txn,
};

fn is_small(request: &RangeRequest) -> bool {
    request.range_end.is_empty()
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let of_learner = request.extensions().get::<AskedOfLearner>().copied();
        let caller = caller::of(&request);
        let request = request.into_inner();
        if let Some(asked) = of_learner {
            asked.allows(request.serializable)?;
        }
        validate::range(&request)?;
        let (caller, reading) = self.begin(caller, |call| spans::range(call, &request));
        let result = self.read_range(&caller, &request).await;
        let took = reading.took(self.log.now());
        self.requested(Operation::Range, took, &result);
        self.log.range_read(took, &request, &result);
        let filled = result.map(|mut answer| {
            header::fill(&self.handle, &mut answer.response.header);
            answer
        });
        self.log.ended(rpcs::KV, "Range", took, || {
            Content::range(&request, filled.as_ref().ok())
        });
        self.answers.respond_range(filled?)
    }

    /// Its messages stand beside it.
    type RangeStreamStream = Empty<Result<RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        validate::range_stream(&request)?;
        let caller = caller.in_span(|call| spans::range_stream(call, &request));
        let view = self.view(&caller, &request).await?;
        let read = kv::range_read(&request)?;
        let nothing = tokio_stream::empty();
        if is_sorted_in_chunks(&read) {
            let target_bytes = self.settings.max_request_bytes;
            let chunks = Chunks::new(self.handle.clone(), view, &request, target_bytes)?;
            let span = caller.span().clone();
            return Ok(self.answers.respond_chunks(chunks, span, nothing));
        }
        let answers = self.answers.clone();
        let answer = self
            .answers
            .read(&caller, move || answers.range_stream(&view, &read));
        let mut answer = answer.await?;
        header::fill(&self.handle, &mut answer.response.header);
        Ok(self.answers.respond_stream(answer, nothing))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        validate::put(&request)?;
        let begun = self.begin(caller, |call| spans::put(call, &request));
        let request = InternalRaftRequest {
            put: Some(request),
            ..Default::default()
        };
        let request = self.handle.identified(&begun.0, request);
        self.write(&begun, "Put", request, PUT).await
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        validate::delete_range(&request)?;
        let begun = self.begin(caller, |call| spans::delete_range(call, &request));
        let request = InternalRaftRequest {
            delete_range: Some(request),
            ..Default::default()
        };
        let request = self.handle.identified(&begun.0, request);
        self.write(&begun, "DeleteRange", request, DELETE_RANGE)
            .await
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        validate::txn(&request, self.settings.max_txn_ops)?;
        let begun = self.begin(caller, |call| spans::txn(call, &request));
        if !txn::is_read_only(&request) {
            let request = InternalRaftRequest {
                txn: Some(request),
                ..Default::default()
            };
            let request = self.handle.identified(&begun.0, request);
            return self.write(&begun, "Txn", request, TXN).await;
        }
        let (caller, called) = begun;
        let (asks, stale) = (Asks::ReadTxn(&request), txn::is_serializable(&request));
        let answered = match self.handle.view_for(&caller, asks, stale).await {
            Ok(view) => {
                // As etcd measures it, the wait for a quorum is not part of it.
                let reading = TimedSpan::begin(self.log.now(), Span::none());
                let result = self.read_txn(&caller, view, &request).await;
                let took = reading.took(self.log.now());
                self.requested(Operation::ReadonlyTxn, took, &result);
                self.log.txn_read(took, &request, &result);
                result
            }
            Err(error) => Err(error),
        };
        let answered = answered.map(|mut answer| {
            header::fill(&self.handle, &mut answer.response.header);
            answer
        });
        let took = called.took(self.log.now());
        self.log.ended(rpcs::KV, "Txn", took, || {
            Content::read_txn(&request, answered.as_ref().ok())
        });
        self.answers.respond_txn(answered?)
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        let caller = caller.in_span(|call| spans::compact(call, &request));
        let mut response = self
            .handle
            .compact(&caller, request.revision, request.physical)
            .await?;
        // The newest revision as of the answer, as in etcd.
        response.header = None;
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }
}
