//! KV: reads go to a view, writes to the raft log.

use std::sync::Arc;

use prost::Message;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Settings, header, validate};
use crate::error::Error;
use crate::mvcc;
use crate::mvcc::read::Ranged;
use crate::node::{Handle, ReadView};
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    InternalRaftRequest, PutRequest, PutResponse, RangeRequest, RangeResponse, RangeStreamResponse,
    TxnRequest, TxnResponse, kv_server::Kv,
};
use crate::state::Response as Applied;
use crate::state::{kv, txn};
use crate::types::KeyRange;

/// Large reads at once; each may build an answer of any size in memory.
const MAX_LARGE_READS: usize = 8;

/// Pairs in the first chunk of a stream; etcd's figure.
const FIRST_CHUNK_KEYS: i64 = 10;
/// Chunks of a stream that wait for the network.
const WAITING_CHUNKS: usize = 2;

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

    async fn view(&self, serializable: bool) -> Result<Arc<ReadView>, Error> {
        if serializable {
            Ok(self.handle.view())
        } else {
            self.handle.linearizable_view().await
        }
    }

    /// Runs a read, off the network's threads where it may take long.
    async fn read<T, F>(&self, small: bool, read: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce() -> mvcc::Result<T> + Send + 'static,
    {
        let result = if small {
            read()
        } else {
            let permit = self.large_reads.clone().acquire_owned().await;
            let work = move || {
                let _permit = permit;
                read()
            };
            tokio::task::spawn_blocking(work)
                .await
                .map_err(|_| Error::Stopped)?
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
        let request = request.into_inner();
        validate::range(&request)?;
        let view = self.view(request.serializable).await?;
        let read = kv::range_read(&request)?;
        let small = is_small(&request);
        let head = view.head;
        let shared = self.handle.shared();
        let start = shared.clock.now();
        let ranged = self.read(small, move || view.snapshot().range(&read)).await;
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
        let request = request.into_inner();
        validate::range_stream(&request)?;
        let view = self.view(request.serializable).await?;
        let (sender, receiver) = mpsc::channel(WAITING_CHUNKS);
        let stream = Chunks {
            handle: self.handle.clone(),
            view,
            sender,
            target_bytes: self.settings.max_request_bytes,
        };
        tokio::task::spawn_blocking(move || stream.send_all(request));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let request = request.into_inner();
        validate::put(&request)?;
        let request = InternalRaftRequest {
            put: Some(request),
            ..Default::default()
        };
        let Applied::Put(mut response) = self.handle.propose(request).await? else {
            return Err(Error::UnknownMethod.into());
        };
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        validate::delete_range(&request)?;
        let request = InternalRaftRequest {
            delete_range: Some(request),
            ..Default::default()
        };
        let Applied::DeleteRange(mut response) = self.handle.propose(request).await? else {
            return Err(Error::UnknownMethod.into());
        };
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        validate::txn(&request, self.settings.max_txn_ops)?;
        let mut response = if txn::is_read_only(&request) {
            let view = self.view(txn::is_serializable(&request)).await?;
            self.read(false, move || txn::read(&view.snapshot(), &request))
                .await?
        } else {
            let request = InternalRaftRequest {
                txn: Some(request),
                ..Default::default()
            };
            match self.handle.propose(request).await? {
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
        let request = request.into_inner();
        let mut response = self
            .handle
            .compact(request.revision, request.physical)
            .await?;
        // The newest revision as of the answer, as in etcd.
        response.header = None;
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }
}

/// A range sent in chunks from one view, whose size adapts to what the pairs take.
struct Chunks {
    handle: Handle,
    view: Arc<ReadView>,
    sender: mpsc::Sender<Result<RangeStreamResponse, Status>>,
    target_bytes: usize,
}

impl Chunks {
    fn send_all(self, request: RangeRequest) {
        if let Err(error) = self.chunks(request) {
            let status = answer(&self.handle, error);
            // A client that has gone needs no error.
            let _ = self.sender.blocking_send(Err(status));
        }
    }

    /// False where the client has gone.
    fn send(&self, range_response: RangeResponse) -> bool {
        let chunk = RangeStreamResponse {
            range_response: Some(range_response),
        };
        self.sender.blocking_send(Ok(chunk)).is_ok()
    }

    fn last(&self, ranged: Ranged, count: i64, more: bool) -> RangeResponse {
        RangeResponse {
            header: Some(header::at(&self.handle, self.view.head)),
            kvs: ranged.kvs,
            more,
            count,
        }
    }

    fn chunks(&self, request: RangeRequest) -> mvcc::Result<()> {
        let snapshot = self.view.snapshot();
        let mut read = kv::range_read(&request)?;
        if read.count_only {
            let count = snapshot.range(&read)?.count;
            self.send(self.last(Ranged::default(), count, false));
            return Ok(());
        }
        read.total_count = false;
        let total = match request.limit {
            limit if limit > 0 => limit,
            _ => i64::MAX,
        };
        read.limit = FIRST_CHUNK_KEYS.min(total);
        let mut sent = 0;
        loop {
            let ranged = snapshot.range(&read)?;
            sent += ranged.kvs.len() as i64;
            let next = ranged.last_key.as_ref().map(|key| behind(&read.range, key));
            let more = ranged.more;
            if !more || sent == total {
                let mut count = sent;
                if let Some(rest) = next.filter(|_| more) {
                    read.range = rest;
                    read.count_only = true;
                    read.limit = 0;
                    count += snapshot.range(&read)?.count;
                }
                self.send(self.last(ranged, count, more));
                return Ok(());
            }
            let bytes = ranged.kvs.size_bytes();
            let chunk = RangeResponse {
                kvs: ranged.kvs,
                ..Default::default()
            };
            debug_assert!(chunk.encoded_len() >= bytes);
            if !self.send(chunk) {
                return Ok(());
            }
            if let Some(rest) = next {
                read.range = rest;
            }
            read.limit = adapted(read.limit, bytes, self.target_bytes).min(total - sent);
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
