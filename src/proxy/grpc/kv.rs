//! Calls with keys in them. Each has one message, which is read here: ranges that were answered a
//! moment ago are answered again (`cache`), writes have those forgotten that they change, and where
//! there is a namespace messages are changed both ways.
//!
//! A compressed call is passed on unread, where there is no namespace, and counts as a write of every
//! key if it may be one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;

use super::cache::{CacheCounts, CachedAnswer, Lookup, MAX_ANSWER_BYTES, RangeCache, ReadId};
use super::caller;
use super::namespace::{Keyed, Namespace};
use super::ordering::{self, ShownRevision};
use super::passing::{self, PREFIX_BYTES};
use super::upstream::Upstream;
use crate::env::{Clock, SystemClock};
use crate::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    request_op,
};
use crate::service::rpcs::{self, CallEffect, RPCS, Unknown};
use crate::types::KeyRange;

/// A message that is read here has to come within this time.
const MESSAGE_LIMIT: Duration = Duration::from_secs(60);
/// A write of more keys and ranges counts as one of everything.
const MAX_CHANGED: usize = 128;

/// How these calls are answered.
#[derive(Clone, Copy, Debug)]
pub struct KvOptions {
    /// The largest request that is read here, and the largest answer.
    pub request_bytes: usize,
    pub answer_bytes: usize,
    /// No read shows an older state than one before it.
    pub orders_reads: bool,
}

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct KvProxy {
    upstream: Arc<Upstream>,
    namespace: Namespace,
    options: KvOptions,
    cache: Arc<SharedCache>,
    /// None: reads are not ordered.
    shown: Option<Arc<ShownRevision>>,
}

struct SharedCache {
    ranges: Mutex<RangeCache>,
    clock: Arc<dyn Clock>,
}

/// A write that is under way: what it changes is forgotten when it begins and when it ends, however
/// that is.
pub struct WriteUnderWay<'a> {
    cache: &'a SharedCache,
    /// None: everything.
    changed: Option<Vec<KeyRange>>,
}

impl<'a> WriteUnderWay<'a> {
    fn begin(cache: &'a SharedCache, changed: Option<Vec<KeyRange>>) -> Self {
        let begun = Self { cache, changed };
        begun.forget();
        begun
    }

    fn forget(&self) {
        let mut ranges = self.cache.ranges.lock();
        match &self.changed {
            Some(changed) => ranges.forget(changed),
            None => ranges.clear(),
        }
    }
}

impl Drop for WriteUnderWay<'_> {
    fn drop(&mut self) {
        self.forget();
    }
}

/// A range that is under way.
struct ReadUnderWay {
    cache: Arc<SharedCache>,
    id: ReadId,
    lookup: Lookup,
    request: RangeRequest,
    asked_at: Duration,
}

impl ReadUnderWay {
    fn begin(cache: &Arc<SharedCache>, lookup: Lookup, request: RangeRequest) -> Self {
        Self {
            id: cache.ranges.lock().begin(&request),
            asked_at: cache.clock.now(),
            cache: cache.clone(),
            lookup,
            request,
        }
    }

    fn answered(&self, framed: Bytes) {
        let revision = passing::revision(&framed).unwrap_or_default();
        let answer = CachedAnswer { framed, revision };
        let (id, lookup) = (self.id, self.lookup.clone());
        let mut ranges = self.cache.ranges.lock();
        ranges.add(id, lookup, &self.request, answer, self.asked_at);
    }
}

impl Drop for ReadUnderWay {
    fn drop(&mut self) {
        self.cache.ranges.lock().end(self.id);
    }
}

impl KvProxy {
    pub fn new(upstream: Arc<Upstream>, namespace: Namespace, options: KvOptions) -> Self {
        Self {
            upstream,
            namespace,
            options,
            cache: Arc::new(SharedCache {
                ranges: Mutex::default(),
                clock: Arc::new(SystemClock::new()),
            }),
            shown: options.orders_reads.then(Arc::default),
        }
    }

    /// Waits until the cluster says where the order of reads begins.
    pub async fn recover(&self) {
        if let Some(shown) = &self.shown {
            shown.recover(&self.upstream).await;
        }
    }

    pub fn counts(&self) -> CacheCounts {
        self.cache.ranges.lock().counts()
    }

    /// Something until the end of a call that is not for `call` and may be a write.
    pub fn writing(&self, path: &str) -> Option<WriteUnderWay<'_>> {
        is_write(path).then(|| WriteUnderWay::begin(&self.cache, None))
    }

    /// Makes a call.
    ///
    /// # Errors
    /// It cannot be read, or no member can be reached.
    pub async fn call(
        &self,
        keyed: Keyed,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        if passing::is_compressed(&head.headers) && self.namespace.is_empty() {
            let is_write = !matches!(keyed, Keyed::Range | Keyed::TimeToLive);
            let _writing = is_write.then(|| WriteUnderWay::begin(&self.cache, None));
            return passing::pass(&self.upstream, head.uri.path(), &head.headers, body).await;
        }
        let message = passing::message(body, self.options.request_bytes);
        let late = |_| Status::deadline_exceeded("the request has not come in a minute");
        let message = tokio::time::timeout(MESSAGE_LIMIT, message).await;
        let (message, _) = message.map_err(late)??;
        let none = || Status::internal("grpc: the call has no message");
        let message = message.ok_or_else(none)?;
        match keyed {
            Keyed::Range => return self.range(&head, &message).await,
            Keyed::TimeToLive => return self.ask(keyed, &head, &message).await,
            Keyed::Put | Keyed::DeleteRange | Keyed::Txn | Keyed::Compact => {}
        }
        let changed = changed(keyed, &message)?;
        let _writing = WriteUnderWay::begin(&self.cache, changed);
        let answer = self.ask(keyed, &head, &message).await?;
        let (revision, answer) = ordering::begun(answer).await;
        if let Some(revision) = revision {
            self.cache.ranges.lock().wrote(revision);
            if let Some(shown) = &self.shown {
                shown.show(revision);
            }
        }
        // A refusal has its status in its head.
        if keyed == Keyed::Compact && !answer.headers().contains_key(Status::GRPC_STATUS) {
            let CompactionRequest { revision, .. } = decoded(&message)?;
            self.cache.ranges.lock().compact(revision);
        }
        Ok(answer)
    }

    async fn range(&self, head: &Parts, message: &Bytes) -> Result<Response<Body>, Status> {
        let request: RangeRequest = decoded(message)?;
        let metadata = MetadataMap::from_headers(head.headers.clone());
        let lookup = Lookup::new(caller::identity(&metadata), &request);
        if request.serializable {
            let now = self.cache.clock.now();
            let at_least = self.shown.as_ref().map_or(0, |shown| shown.get());
            let found = self.cache.ranges.lock().get(&lookup, at_least, now);
            if let Some(found) = found {
                return Ok(passing::answer(found.framed));
            }
        }
        let reading = ReadUnderWay::begin(&self.cache, lookup, request);
        let answer = self.ask(Keyed::Range, head, message).await?;
        Ok(answer.map(|body| {
            Body::new(Remembering {
                body,
                held: BytesMut::new(),
                reading: Some(reading),
            })
        }))
    }

    /// Asks a member, within the namespace.
    async fn ask(
        &self,
        keyed: Keyed,
        head: &Parts,
        message: &Bytes,
    ) -> Result<Response<Body>, Status> {
        if self.namespace.is_empty() {
            return self.pass(keyed, head, &head.headers, message).await;
        }
        let message = self.namespace.request(keyed, message)?;
        let headers = passing::uncompressed(&head.headers);
        let answer = self.pass(keyed, head, &headers, &message.into()).await?;
        let (head, body) = answer.into_parts();
        let (message, trailers) = passing::message(body, self.options.answer_bytes).await?;
        let unreadable = |error| Status::internal(format!("an answer cannot be read: {error}"));
        let data = match (message, &trailers) {
            // An error, whose status is in the head, which has to end the stream then.
            (None, None) => return Ok(Response::from_parts(head, Body::empty())),
            (None, Some(_)) => Bytes::new(),
            (Some(message), _) => {
                let changed = self.namespace.answer(keyed, &message);
                passing::framed(&changed.map_err(unreadable)?)
            }
        };
        let ending = async move { trailers.map(Ok) };
        Ok(Response::from_parts(
            head,
            Body::new(Full::new(data).with_trailers(ending)),
        ))
    }

    async fn pass(
        &self,
        keyed: Keyed,
        head: &Parts,
        headers: &HeaderMap,
        message: &Bytes,
    ) -> Result<Response<Body>, Status> {
        let framed = passing::framed(message);
        let ask = || {
            let body = Body::new(Full::new(framed.clone()));
            passing::pass(&self.upstream, head.uri.path(), headers, body)
        };
        match &self.shown {
            // A write is never older, and is made once.
            Some(shown) if is_read(keyed, message) => {
                shown.ordered(self.upstream.members(), ask).await
            }
            _ => ask().await,
        }
    }
}

/// Whether a call changes no keys, and shows some.
fn is_read(keyed: Keyed, message: &Bytes) -> bool {
    match keyed {
        Keyed::Range => true,
        Keyed::Txn => decoded(message).is_ok_and(|txn| only_reads(&txn)),
        Keyed::Put | Keyed::DeleteRange | Keyed::Compact | Keyed::TimeToLive => false,
    }
}

fn only_reads(txn: &TxnRequest) -> bool {
    let mut operations = txn.success.iter().chain(&txn.failure);
    operations.all(|one| match &one.request {
        Some(request_op::Request::RequestRange(_)) | None => true,
        Some(request_op::Request::RequestTxn(txn)) => only_reads(txn),
        Some(request_op::Request::RequestPut(_) | request_op::Request::RequestDeleteRange(_)) => {
            false
        }
    })
}

/// Whether a call may change keys, or who may see them. Of a method that this program does not know
/// it has to be assumed: a member may be newer.
fn is_write(path: &str) -> bool {
    let names = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    let Some((service, method)) = names else {
        return false;
    };
    match rpcs::find(service, method) {
        Ok(number) => RPCS[number].effect != CallEffect::NoKeys,
        Err(Unknown::Method) => true,
        Err(Unknown::Service) => false,
    }
}

fn decoded<M: Message + Default>(message: &Bytes) -> Result<M, Status> {
    let unreadable =
        |error| Status::internal(format!("grpc: error unmarshalling request: {error}"));
    M::decode(message.clone()).map_err(unreadable)
}

/// The keys that a write may change, whatever comes of it; none: all.
fn changed(keyed: Keyed, message: &Bytes) -> Result<Option<Vec<KeyRange>>, Status> {
    let mut changed = Vec::new();
    match keyed {
        Keyed::Put => changed.push(put(decoded(message)?)),
        Keyed::DeleteRange => changed.push(delete(&decoded(message)?)),
        Keyed::Txn => of_txn(decoded(message)?, &mut changed),
        Keyed::Range | Keyed::Compact | Keyed::TimeToLive => {}
    }
    Ok(Some(changed).filter(|changed| changed.len() <= MAX_CHANGED))
}

fn put(request: PutRequest) -> KeyRange {
    KeyRange::Point(request.key)
}

fn delete(request: &DeleteRangeRequest) -> KeyRange {
    KeyRange::from_wire(&request.key, &request.range_end)
}

/// With what is compared: where a client is wrong about a key, it may be for what it read here.
fn of_txn(txn: TxnRequest, changed: &mut Vec<KeyRange>) {
    let compares = txn.compare.iter();
    changed.extend(compares.map(|one| KeyRange::from_wire(&one.key, &one.range_end)));
    for RequestOp { request } in txn.success.into_iter().chain(txn.failure) {
        match request {
            Some(request_op::Request::RequestPut(request)) => changed.push(put(request)),
            Some(request_op::Request::RequestDeleteRange(request)) => {
                changed.push(delete(&request));
            }
            Some(request_op::Request::RequestTxn(txn)) => of_txn(txn, changed),
            Some(request_op::Request::RequestRange(_)) | None => {}
        }
    }
}

/// An answer that the cache gets when it is whole and without an error.
struct Remembering {
    body: Body,
    held: BytesMut,
    /// None: it is not to be kept.
    reading: Option<ReadUnderWay>,
}

impl Remembering {
    fn hold(&mut self, data: &[u8]) {
        if self.reading.is_none() {
            return;
        }
        self.held.extend_from_slice(data);
        let is_large = self.held.len() >= PREFIX_BYTES
            && passing::length(&self.held) > MAX_ANSWER_BYTES - PREFIX_BYTES;
        if is_large || self.held.len() > MAX_ANSWER_BYTES {
            self.reading = None;
            self.held = BytesMut::new();
        }
    }

    fn end(&mut self, trailers: &HeaderMap) {
        let status = trailers.get(Status::GRPC_STATUS);
        let is_ok = status.is_some_and(|status| status.as_bytes() == b"0");
        let held = std::mem::take(&mut self.held);
        let is_whole = held.len() >= PREFIX_BYTES
            && held[0] == 0
            && held.len() == PREFIX_BYTES + passing::length(&held);
        if let Some(reading) = self.reading.take().filter(|_| is_ok && is_whole) {
            // Without the room that it grew into.
            reading.answered(Bytes::copy_from_slice(&held));
        }
    }
}

impl http_body::Body for Remembering {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.hold(data);
                }
                if let Some(trailers) = frame.trailers_ref() {
                    self.end(trailers);
                }
            }
            Some(Err(_)) | None => self.reading = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
