//! Streams of clients that share one at the cluster: one task for each token, which knows all that
//! its clients want (a [`Core`], pure) and keeps one stream at the cluster for them.
//!
//! A client that does not take what is sent to it holds up nobody: its stream ends with UNAVAILABLE
//! when `MAX_QUEUED` answers or `MAX_QUEUED_BYTES` wait for it, and clients begin again where they
//! stopped. What several get is in memory once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use prost::{DecodeError, Message};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::caller::{self, CallerKey};
use super::namespace::Namespace;
use super::permission;
use super::upstream::Upstream;
use crate::env::Boxed;
use crate::proto::etcdserverpb::RangeRequest;
use crate::transport::Channel;

pub const MAX_QUEUED: usize = 1024;
/// Requests of a client that wait for an answer each, on their way or not yet taken by it; it is not
/// read from while there are so many, so one that takes its answers never has too many of them.
const MAX_UNANSWERED: usize = MAX_QUEUED / 2;
const MAX_QUEUED_BYTES: usize = 16 << 20;
/// Requests of all clients that wait for the task; a client whose request waits is not read from.
const MAX_REQUESTS: usize = 64;
/// No client is read from while so many requests wait for the cluster.
const MAX_FOR_CLUSTER: usize = 64;
/// What waits on either side of the stream to the cluster, whose windows bound the rest.
const MAX_ON_THE_WAY: usize = 16;
/// Before the next try to reach the cluster.
const RETRY: Duration = Duration::from_millis(200);

/// A client's stream.
pub type StreamId = u64;

/// What is to be sent.
pub enum Sent<C: Core> {
    ToCluster(C::Request),
    ToClient(StreamId, C::Answer),
    /// A client has all that it asked for, and will ask for no more.
    End(StreamId),
}

/// What clients want, and what comes of it.
pub trait Core: Sized + Send + 'static {
    type Request: Send + Sync + 'static;
    type Answer: Message + Default + Send + Sync + 'static;
    /// For the metrics.
    type Counts: Default + Send;
    /// Whether each request gets one answer.
    const ANSWERS_EACH: bool;

    fn open(&mut self, stream: StreamId);
    fn close(&mut self, stream: StreamId);
    /// A client's request.
    fn take(&mut self, stream: StreamId, request: Self::Request);
    /// What a member has to be asked before a request is taken: whether its client may see a range.
    fn permission_check(namespace: &Namespace, request: &Self::Request) -> Option<RangeRequest>;
    /// It may not.
    fn refused(&mut self, stream: StreamId, status: &Status);
    /// A client has sent its last request.
    fn asked_all(&mut self, stream: StreamId);
    /// The cluster's answer.
    ///
    /// # Errors
    /// It cannot be read.
    fn heard(&mut self, answer: Self::Answer) -> Result<(), DecodeError>;
    /// The stream to the cluster is gone; what is sent from now on takes another.
    fn lost(&mut self);
    /// What is to be sent since the last call.
    fn sent(&mut self) -> Vec<Sent<Self>>;
    fn counts(&self) -> Self::Counts;
    fn add(total: &mut Self::Counts, counts: &Self::Counts);
    /// Makes the call at a member.
    fn call(
        channel: Channel,
        request: Request<ReceiverStream<Self::Request>>,
    ) -> Boxed<Result<Response<Streaming<Self::Answer>>, Status>>;
}

/// All groups; cheap to clone.
pub struct Groups<C: Core>(Arc<All<C>>);

struct All<C: Core> {
    upstream: Arc<Upstream>,
    namespace: Namespace,
    new: fn(&Namespace) -> C,
    groups: Mutex<HashMap<CallerKey, mpsc::Sender<Input<C>>>>,
    /// By group, and of those that have ended.
    counts: Mutex<BTreeMap<Option<u64>, C::Counts>>,
    next: AtomicU64,
}

impl<C: Core> Clone for Groups<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

enum Input<C: Core> {
    Opened(StreamId, Sink<C::Answer>),
    Request(StreamId, C::Request),
    Refused(StreamId, Status),
    AskedAll(StreamId),
    Closed(StreamId),
}

/// Where a client's answers go.
struct Sink<A> {
    answers: mpsc::Sender<Result<A, Status>>,
    state: Arc<SinkState>,
}

struct SinkState {
    queued_bytes: AtomicUsize,
    /// Nothing was left out.
    is_whole: AtomicBool,
    /// Permits for requests that get an answer each.
    unanswered: Semaphore,
}

impl Default for SinkState {
    fn default() -> Self {
        Self {
            queued_bytes: AtomicUsize::new(0),
            is_whole: AtomicBool::new(false),
            unanswered: Semaphore::new(MAX_UNANSWERED),
        }
    }
}

/// What a client gets.
pub struct Answers<C: Core> {
    answers: mpsc::Receiver<Result<C::Answer, Status>>,
    ended: bool,
    state: Arc<SinkState>,
    /// Reads its requests.
    reading: JoinHandle<()>,
    /// Not the end of its requests: a client that has sent its last waits for the answer.
    _closing: Closing<C>,
}

impl<C: Core> Drop for Answers<C> {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl<C: Core> tokio_stream::Stream for Answers<C> {
    type Item = Result<C::Answer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let answer = match std::task::ready!(self.answers.poll_recv(cx)) {
            Some(Ok(answer)) => answer,
            None if self.state.is_whole.load(Ordering::Acquire) => return Poll::Ready(None),
            None if !std::mem::replace(&mut self.ended, true) => {
                let status = Status::unavailable("the proxy ended the stream");
                return Poll::Ready(Some(Err(status)));
            }
            other => return Poll::Ready(other),
        };
        let bytes = answer.encoded_len();
        self.state.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if C::ANSWERS_EACH {
            self.state.unanswered.add_permits(1);
        }
        Poll::Ready(Some(Ok(answer)))
    }
}

/// Says that a stream is closed, however it ends.
struct Closing<C: Core>(Option<(StreamId, mpsc::Sender<Input<C>>)>);

impl<C: Core> Drop for Closing<C> {
    fn drop(&mut self) {
        if let Some((stream, inputs)) = self.0.take() {
            tokio::spawn(async move {
                // A group that ended has no streams.
                let _ = inputs.send(Input::Closed(stream)).await;
            });
        }
    }
}

impl<C: Core> Groups<C> {
    pub fn new(upstream: Arc<Upstream>, namespace: Namespace, new: fn(&Namespace) -> C) -> Self {
        Self(Arc::new(All {
            upstream,
            namespace,
            new,
            groups: Mutex::default(),
            counts: Mutex::default(),
            next: AtomicU64::new(0),
        }))
    }

    /// Of all groups together.
    pub fn counts(&self) -> C::Counts {
        let mut total = C::Counts::default();
        for counts in self.0.counts.lock().values() {
            C::add(&mut total, counts);
        }
        total
    }

    /// The task of those who show the same.
    fn group(&self, metadata: &MetadataMap) -> mpsc::Sender<Input<C>> {
        let identity = caller::identity(metadata);
        let mut groups = self.0.groups.lock();
        groups.retain(|_, inputs| !inputs.is_closed());
        let group = groups.entry(identity).or_insert_with(|| {
            let (inputs, receiver) = mpsc::channel(MAX_REQUESTS);
            let number = self.0.next.fetch_add(1, Ordering::Relaxed);
            let group = Group {
                number,
                all: self.0.clone(),
                metadata: caller::passed(metadata),
                core: (self.0.new)(&self.0.namespace),
                sinks: BTreeMap::new(),
                requests: VecDeque::new(),
                link: None,
            };
            tokio::spawn(group.run(receiver));
            inputs
        });
        group.clone()
    }
}

impl<C: Core> Groups<C> {
    /// Joins a client's stream with the others.
    ///
    /// # Errors
    /// The proxy is stopping.
    pub async fn join(
        &self,
        request: Request<Streaming<C::Request>>,
    ) -> Result<Response<Answers<C>>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let stream = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answers) = mpsc::channel(MAX_QUEUED);
        let state = Arc::<SinkState>::default();
        // A group may end between its look-up and the message to it.
        let mut sink = Some(Sink {
            answers: sender,
            state: state.clone(),
        });
        let inputs = loop {
            let inputs = self.group(&metadata);
            let Some(opened) = sink.take() else {
                return Err(Status::internal("a stream was opened twice"));
            };
            match inputs.send(Input::Opened(stream, opened)).await {
                Ok(()) => break inputs,
                Err(mpsc::error::SendError(Input::Opened(_, back))) => sink = Some(back),
                Err(_) => return Err(Status::unavailable("the proxy is stopping")),
            }
        };
        let closing = Closing(Some((stream, inputs.clone())));
        let (all, sink) = (self.0.clone(), state.clone());
        let reading = tokio::spawn(async move {
            // A group that ended has no streams.
            let _ = all.read(stream, &metadata, requests, &sink, &inputs).await;
        });
        Ok(Response::new(Answers {
            answers,
            ended: false,
            state,
            reading,
            _closing: closing,
        }))
    }
}

impl<C: Core> All<C> {
    /// Passes a client's requests to its group.
    async fn read(
        &self,
        stream: StreamId,
        metadata: &MetadataMap,
        mut requests: Streaming<C::Request>,
        sink: &SinkState,
        inputs: &mpsc::Sender<Input<C>>,
    ) -> Result<(), mpsc::error::SendError<Input<C>>> {
        loop {
            if C::ANSWERS_EACH
                && let Ok(permit) = sink.unanswered.acquire().await
            {
                // Given back with the answer; nobody closes the semaphore.
                permit.forget();
            }
            let input = match requests.next().await {
                Some(Ok(request)) => match C::permission_check(&self.namespace, &request) {
                    None => Input::Request(stream, request),
                    Some(check) => {
                        match permission::refusal(&self.upstream, metadata, &check).await {
                            None => Input::Request(stream, request),
                            Some(status) => Input::Refused(stream, status),
                        }
                    }
                },
                Some(Err(_)) => return inputs.send(Input::Closed(stream)).await,
                None => return inputs.send(Input::AskedAll(stream)).await,
            };
            inputs.send(input).await?;
        }
    }
}

/// The clients who show the same.
struct Group<C: Core> {
    number: u64,
    all: Arc<All<C>>,
    metadata: MetadataMap,
    core: C,
    sinks: BTreeMap<StreamId, Sink<C::Answer>>,
    /// For the cluster: `MAX_FOR_CLUSTER`, and what one input or answer adds to that; a client that is
    /// gone gives up each thing that it had, and a new link begins with all that there is.
    requests: VecDeque<C::Request>,
    link: Option<Link<C>>,
}

/// A stream at the cluster.
struct Link<C: Core> {
    requests: mpsc::Sender<C::Request>,
    answers: mpsc::Receiver<Result<C::Answer, Status>>,
    task: JoinHandle<()>,
}

impl<C: Core> Drop for Link<C> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a group does next.
enum Turn<C: Core> {
    Input(Option<Input<C>>),
    Heard(Option<Result<C::Answer, Status>>),
    Sent,
}

impl<C: Core> Group<C> {
    /// Until the last of its clients is gone.
    async fn run(mut self, mut inputs: mpsc::Receiver<Input<C>>) {
        loop {
            if self.link.is_none() && !self.requests.is_empty() {
                self.link = Some(self.connect());
            }
            match self.turn(&mut inputs).await {
                Turn::Input(None) => break,
                Turn::Input(Some(input)) => self.take(input),
                Turn::Sent => {}
                Turn::Heard(heard) => self.hear(heard).await,
            }
            self.carry_out();
            self.all
                .counts
                .lock()
                .insert(Some(self.number), self.core.counts());
            if self.sinks.is_empty() && inputs.is_empty() {
                // A stream that is opened in this moment ends, and its client begins again.
                break;
            }
        }
        let mut counts = self.all.counts.lock();
        counts.remove(&Some(self.number));
        let left = counts.entry(None).or_default();
        C::add(left, &self.core.counts());
    }

    async fn turn(&mut self, inputs: &mut mpsc::Receiver<Input<C>>) -> Turn<C> {
        let Some(link) = &mut self.link else {
            return Turn::Input(inputs.recv().await);
        };
        // Without clients nothing is added.
        let takes_more = self.requests.len() < MAX_FOR_CLUSTER || self.sinks.is_empty();
        tokio::select! {
            input = inputs.recv(), if takes_more => Turn::Input(input),
            heard = link.answers.recv() => Turn::Heard(heard),
            room = link.requests.reserve(), if !self.requests.is_empty() => {
                // A link that is gone is heard of.
                if let (Ok(room), Some(request)) = (room, self.requests.pop_front()) {
                    room.send(request);
                }
                Turn::Sent
            }
        }
    }

    fn take(&mut self, input: Input<C>) {
        match input {
            Input::Opened(stream, sink) => {
                self.sinks.insert(stream, sink);
                self.core.open(stream);
            }
            Input::Closed(stream) => {
                self.sinks.remove(&stream);
                self.core.close(stream);
            }
            Input::Request(stream, request) => {
                if self.sinks.contains_key(&stream) {
                    self.core.take(stream, request);
                }
            }
            Input::Refused(stream, status) => self.core.refused(stream, &status),
            Input::AskedAll(stream) => self.core.asked_all(stream),
        }
    }

    async fn hear(&mut self, heard: Option<Result<C::Answer, Status>>) {
        let status = match heard {
            Some(Ok(response)) => match self.core.heard(response) {
                Ok(()) => return,
                Err(error) => Status::internal(error.to_string()),
            },
            Some(Err(status)) => status,
            None => Status::unavailable("the stream ended"),
        };
        self.link = None;
        if self.ends_clients(&status) {
            for (stream, sink) in std::mem::take(&mut self.sinks) {
                // A client that takes nothing sees its stream end.
                let _ = sink.answers.try_send(Err(status.clone()));
                self.core.close(stream);
            }
            // A client that comes in this moment finds no trace of the stream that ended.
            self.core.lost();
            drop(self.core.sent());
            self.requests.clear();
            return;
        }
        tracing::debug!(%status, "a stream to the cluster ended; its clients continue with another");
        self.requests.clear();
        self.core.lost();
        tokio::time::sleep(RETRY).await;
    }

    /// Whether another try can make no difference, or a client wants to hear of it.
    fn ends_clients(&self, status: &Status) -> bool {
        let may_pass = permission::may_pass(status.code());
        !may_pass || caller::needs_leader(&self.metadata) && status.message() == caller::NO_LEADER
    }

    fn carry_out(&mut self) {
        for sent in self.core.sent() {
            match sent {
                Sent::ToCluster(request) => self.requests.push_back(request),
                Sent::ToClient(stream, answer) => self.send(stream, answer),
                Sent::End(stream) => {
                    if let Some(sink) = self.sinks.remove(&stream) {
                        sink.state.is_whole.store(true, Ordering::Release);
                    }
                    self.core.close(stream);
                }
            }
        }
    }

    fn send(&mut self, stream: StreamId, response: C::Answer) {
        let Some(sink) = self.sinks.get(&stream) else {
            return;
        };
        let bytes = response.encoded_len();
        let queued = sink.state.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let has_room = queued == 0 || queued + bytes <= MAX_QUEUED_BYTES;
        if has_room && sink.answers.try_send(Ok(response)).is_ok() {
            return;
        }
        tracing::warn!("a client does not take what is sent to it; its stream is ended");
        // Its answers end behind those that wait for it: with the last of them it hears the end.
        self.sinks.remove(&stream);
        self.core.close(stream);
    }

    fn connect(&self) -> Link<C> {
        let (requests, sent) = mpsc::channel(MAX_ON_THE_WAY);
        let (heard, answers) = mpsc::channel(MAX_ON_THE_WAY);
        let (all, metadata) = (self.all.clone(), self.metadata.clone());
        let task = tokio::spawn(async move {
            if let Err(status) = link::<C>(&all.upstream, metadata, sent, &heard).await {
                // A group that is gone asks for nothing.
                let _ = heard.send(Err(status)).await;
            }
        });
        Link {
            requests,
            answers,
            task,
        }
    }
}

async fn link<C: Core>(
    upstream: &Arc<Upstream>,
    metadata: MetadataMap,
    requests: mpsc::Receiver<C::Request>,
    heard: &mpsc::Sender<Result<C::Answer, Status>>,
) -> Result<(), Status> {
    let channel = upstream.channel().await?;
    let mut request = Request::new(ReceiverStream::new(requests));
    *request.metadata_mut() = metadata;
    let mut answers = C::call(channel, request).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if heard.send(Ok(answer)).await.is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
