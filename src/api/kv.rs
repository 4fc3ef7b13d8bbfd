//! KV: reads go to a view, writes to the raft log.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::gate::AskedOfLearner;
use super::{Settings, caller, header, validate};
use crate::error::Error;
use crate::mvcc;
use crate::mvcc::read::{RangeRead, Ranged};
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    InternalRaftRequest, PutRequest, PutResponse, RangeRequest, RangeResponse, RangeStreamResponse,
    TxnRequest, TxnResponse, kv_server::Kv,
};
use crate::replica::view::ReadView;
use crate::service::caller::Caller;
use crate::service::handle::Handle;
use crate::service::permission::Asks;
use crate::state::Response as Applied;
use crate::state::{kv, txn};
use crate::types::KeyRange;

/// Large reads at once; each may build an answer of any size in memory.
const MAX_LARGE_READS: usize = 8;

/// Pairs in the first chunk of a stream; etcd's figure.
const FIRST_CHUNK_KEYS: i64 = 10;
/// Chunks of a stream that wait for the network.
const WAITING_CHUNKS: usize = 1;

pub struct KvService {
    handle: Handle,
    settings: Settings,
    large_reads: Arc<Semaphore>,
}

impl KvService {
    pub fn new(handle: Handle, settings: Settings) -> Self {
        Self {
            handle,
            settings,
            large_reads: Arc::new(Semaphore::new(MAX_LARGE_READS)),
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

    /// Runs a read, off the network's threads where it may take long.
    async fn read<T, F>(&self, caller: &Caller, small: bool, read: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce() -> mvcc::Result<T> + Send + 'static,
    {
        let result = if small {
            read()
        } else {
            let turn = self.large_reads.clone().acquire_owned();
            let permit = self.handle.within(caller, turn).await?;
            let work = move || {
                let _permit = permit;
                read()
            };
            let done = self.handle.blocking(work);
            done.await.map_err(|_| Error::Stopped)?
        };
        result.map_err(|error| answer(&self.handle, error))
    }
}

/// A refusal goes to the client; a broken store ends the process.
pub(super) fn answer(handle: &Handle, error: mvcc::Error) -> Status {
    match error {
        mvcc::Error::Refused(error) => error.into(),
        mvcc::Error::Storage(error) => handle.shared().fail_storage(error).into(),
    }
}

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
        let caller = caller::of(&self.handle, "Range", &request);
        let request = request.into_inner();
        if let Some(asked) = of_learner {
            asked.allows(request.serializable)?;
        }
        validate::range(&request)?;
        let view = self.view(&caller, &request).await?;
        let read = kv::range_read(&request)?;
        let small = is_small(&request);
        let head = view.head;
        let shared = self.handle.shared();
        let start = shared.clock.now();
        let ranged = self.read(&caller, small, move || view.snapshot().range(&read));
        let ranged = ranged.await;
        shared.metrics.ranges.increment();
        shared
            .metrics
            .ranged(ranged.is_ok(), shared.clock.now() - start);
        let ranged = ranged?;
        let mut response = kv::range_response(ranged, head);
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }

    type RangeStreamStream = ReceiverStream<Result<RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let caller = caller::of(&self.handle, "RangeStream", &request);
        let request = request.into_inner();
        validate::range_stream(&request)?;
        let view = self.view(&caller, &request).await?;
        let (sender, receiver) = mpsc::channel(WAITING_CHUNKS);
        let chunks = Chunks::new(
            self.handle.clone(),
            view,
            &request,
            self.settings.max_request_bytes,
        )?;
        let sending = send_chunks(chunks, sender, self.large_reads.clone());
        self.handle.spawn(sending);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let caller = caller::of(&self.handle, "Put", &request);
        let request = request.into_inner();
        validate::put(&request)?;
        let request = InternalRaftRequest {
            put: Some(request),
            ..Default::default()
        };
        let Applied::Put(mut response) = self.handle.propose(&caller, request).await? else {
            return Err(Error::UnknownMethod.into());
        };
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let caller = caller::of(&self.handle, "DeleteRange", &request);
        let request = request.into_inner();
        validate::delete_range(&request)?;
        let request = InternalRaftRequest {
            delete_range: Some(request),
            ..Default::default()
        };
        let Applied::DeleteRange(mut response) = self.handle.propose(&caller, request).await?
        else {
            return Err(Error::UnknownMethod.into());
        };
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let caller = caller::of(&self.handle, "Txn", &request);
        let request = request.into_inner();
        validate::txn(&request, self.settings.max_txn_ops)?;
        let mut response = if txn::is_read_only(&request) {
            let (asks, stale) = (Asks::ReadTxn(&request), txn::is_serializable(&request));
            let view = self.handle.view_for(&caller, asks, stale).await?;
            let small = txn::reads_points(&request);
            self.read(&caller, small, move || {
                txn::read(&view.snapshot(), &request)
            })
            .await?
        } else {
            let request = InternalRaftRequest {
                txn: Some(request),
                ..Default::default()
            };
            match self.handle.propose(&caller, request).await? {
                Applied::Txn(response) => response,
                _ => return Err(Error::UnknownMethod.into()),
            }
        };
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let caller = caller::of(&self.handle, "Compact", &request);
        let request = request.into_inner();
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

/// Reads a chunk when the network has room for it, so that a client that does not read holds
/// neither a thread nor more than one chunk.
async fn send_chunks(
    mut chunks: Chunks,
    sender: mpsc::Sender<Result<RangeStreamResponse, Status>>,
    large_reads: Arc<Semaphore>,
) {
    loop {
        let Ok(place) = sender.reserve().await else {
            return;
        };
        let permit = large_reads.clone().acquire_owned().await;
        let handle = chunks.handle.clone();
        let read = handle.blocking(move || {
            let _permit = permit;
            let chunk = chunks.next_chunk();
            (chunks, chunk)
        });
        let Ok((rest, chunk)) = read.await else {
            return;
        };
        chunks = rest;
        match chunk {
            Ok(Some(range_response)) => place.send(Ok(RangeStreamResponse {
                range_response: Some(range_response),
            })),
            Ok(None) => return,
            Err(error) => {
                place.send(Err(answer(&chunks.handle, error)));
                return;
            }
        }
    }
}

/// A range read in chunks from one view; their size adapts to what the pairs take.
struct Chunks {
    handle: Handle,
    view: Arc<ReadView>,
    read: RangeRead,
    target_bytes: usize,
    /// How many pairs at most.
    total: i64,
    sent: i64,
    done: bool,
}

impl Chunks {
    fn new(
        handle: Handle,
        view: Arc<ReadView>,
        request: &RangeRequest,
        target_bytes: usize,
    ) -> Result<Self, Error> {
        let total = match request.limit {
            limit if limit > 0 => limit,
            _ => i64::MAX,
        };
        let mut read = kv::range_read(request)?;
        if !read.count_only {
            read.total_count = false;
            read.limit = FIRST_CHUNK_KEYS.min(total);
        }
        Ok(Self {
            handle,
            view,
            read,
            target_bytes,
            total,
            sent: 0,
            done: false,
        })
    }

    /// The next chunk; `None` behind the last.
    fn next_chunk(&mut self) -> mvcc::Result<Option<RangeResponse>> {
        if self.done {
            return Ok(None);
        }
        let view = self.view.clone();
        let snapshot = view.snapshot();
        let ranged = snapshot.range(&self.read)?;
        if self.read.count_only {
            let count = ranged.count;
            return Ok(Some(self.last(Ranged::default(), count, false)));
        }
        self.sent += ranged.kvs.len() as i64;
        let more = ranged.more;
        let rest = ranged
            .last_key
            .as_ref()
            .filter(|_| more)
            .map(|key| behind(&self.read.range, key));
        if !more || self.sent == self.total {
            let mut count = self.sent;
            if let Some(rest) = rest {
                let remaining = RangeRead {
                    count_only: true,
                    revision: self.read.revision,
                    ..RangeRead::all(rest)
                };
                count += snapshot.range(&remaining)?.count;
            }
            return Ok(Some(self.last(ranged, count, more)));
        }
        let bytes = ranged.kvs.size_bytes();
        if let Some(rest) = rest {
            self.read.range = rest;
        }
        self.read.limit =
            adapted(self.read.limit, bytes, self.target_bytes).min(self.total - self.sent);
        Ok(Some(RangeResponse {
            kvs: ranged.kvs,
            ..Default::default()
        }))
    }

    fn last(&mut self, ranged: Ranged, count: i64, more: bool) -> RangeResponse {
        self.done = true;
        RangeResponse {
            header: Some(header::at(&self.handle, self.view.head)),
            kvs: ranged.kvs,
            more,
            count,
        }
    }
}

/// The part of `range` behind `key`.
fn behind(range: &KeyRange, key: &[u8]) -> KeyRange {
    let mut start = key.to_vec();
    start.push(0);
    match range {
        KeyRange::Span(_, end) => KeyRange::Span(start.into(), end.clone()),
        KeyRange::Point(_) | KeyRange::From(_) => KeyRange::From(start.into()),
    }
}

/// Doubles or halves a chunk that was less than half or more than twice as large as it should.
fn adapted(keys: i64, bytes: usize, target_bytes: usize) -> i64 {
    let keys = if bytes < target_bytes / 2 {
        keys.saturating_mul(2)
    } else if bytes > target_bytes * 2 {
        keys / 2
    } else {
        keys
    };
    keys.max(1)
}
