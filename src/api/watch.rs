//! Watch: moves what a stream of the hub hands out to the network, one task a client stream.
//!
//! The task takes the hub's next output only when the network has taken the last one, so a slow
//! client fills nothing but its own bounded queue in the hub.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{GRPC_OVERHEAD_BYTES, Settings, broken_stream, header};
use crate::error::{Error, watch_reason};
use crate::node::Handle;
use crate::proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_create_request::FilterType,
    watch_request::RequestUnion, watch_server::Watch,
};
use crate::types::KeyRange;
use crate::watch::{self, ALL_WATCHES, Output, Stream};

/// Responses that wait for the network.
const WAITING_RESPONSES: usize = 16;
/// The shortest interval of progress notifications; etcd's.
const MIN_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

pub struct WatchService {
    handle: Handle,
    settings: Settings,
}

impl WatchService {
    pub fn new(handle: Handle, settings: Settings) -> Self {
        Self { handle, settings }
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let needs_leader = request
            .metadata()
            .get("hasleader")
            .is_some_and(|value| value == "true");
        if needs_leader && self.handle.shared().raft.leader() == 0 {
            return Err(Error::NoLeader.into());
        }
        let requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(WAITING_RESPONSES);
        let wake = Arc::new(Notify::new());
        let waker = wake.clone();
        let stream = self
            .handle
            .shared()
            .hub
            .open(Arc::new(move || waker.notify_one()));
        let session = Session {
            handle: self.handle.clone(),
            stream,
            sender,
            max_request_bytes: self.settings.max_request_bytes,
        };
        let interval = with_jitter(&self.handle, self.settings.progress_interval);
        tokio::spawn(session.run(requests, wake, interval));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Up to a tenth more, so that streams made together do not report together.
fn with_jitter(handle: &Handle, interval: Duration) -> Duration {
    let interval = interval.max(MIN_PROGRESS_INTERVAL);
    let tenth_ns = (interval.as_nanos() / 10).max(1) as u64;
    interval + Duration::from_nanos(handle.shared().rng.next_u64() % tenth_ns)
}

/// The client went away or the member stops; the stream ends without a word.
struct Gone;

struct Session {
    handle: Handle,
    stream: Stream,
    sender: mpsc::Sender<Result<WatchResponse, Status>>,
    max_request_bytes: usize,
}

impl Session {
    async fn run(
        mut self,
        mut requests: Streaming<WatchRequest>,
        wake: Arc<Notify>,
        every: Duration,
    ) {
        let mut progress = tokio::time::interval_at(Instant::now() + every, every);
        // A client that closes its side still gets its events.
        let mut open = true;
        loop {
            let step = tokio::select! {
                biased;
                request = requests.next(), if open => match request {
                    Some(Ok(request)) => self.request(request).await,
                    Some(Err(status)) => {
                        let status = broken_stream(&status, self.max_request_bytes);
                        // A client that has gone needs no error.
                        let _ = self.sender.send(Err(status)).await;
                        Err(Gone)
                    }
                    None => {
                        open = false;
                        Ok(())
                    }
                },
                () = wake.notified() => Ok(()),
                _ = progress.tick() => {
                    self.stream.progress_tick();
                    Ok(())
                }
                () = self.sender.closed() => Err(Gone),
            };
            if step.is_err() || self.drain().await.is_err() {
                return;
            }
        }
    }

    async fn request(&mut self, request: WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => {
                if !self.stream.cancel(cancel.watch_id) {
                    return Ok(());
                }
                self.send(WatchResponse {
                    header: Some(header::now(&self.handle)),
                    watch_id: cancel.watch_id,
                    canceled: true,
                    ..Default::default()
                })
                .await
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                let head = self.handle.view().head;
                self.stream.request_progress(head);
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, create: WatchCreateRequest) -> Result<(), Gone> {
        let head = self.handle.view().head;
        let created = if create.start_revision < 0 {
            Err(watch_reason::COMPACTED.to_owned())
        } else {
            self.stream
                .create(watch_request(create), head)
                .map_err(|error| error.to_string())
        };
        let mut response = WatchResponse {
            header: Some(header::at(&self.handle, head)),
            created: true,
            ..Default::default()
        };
        match created {
            Ok(watch_id) => response.watch_id = watch_id,
            Err(reason) => {
                response.watch_id = ALL_WATCHES;
                response.canceled = true;
                response.cancel_reason = reason;
            }
        }
        self.send(response).await
    }

    /// Sends everything that the stream has to say now.
    async fn drain(&mut self) -> Result<(), Gone> {
        loop {
            let output = if self.stream.reads_storage() {
                self.read_output().await?
            } else {
                let view = self.handle.view();
                match self.stream.next(&view.snapshot()) {
                    Ok(output) => output,
                    Err(error) => {
                        self.handle.shared().fail_storage(error);
                        return Err(Gone);
                    }
                }
            };
            match output {
                None => return Ok(()),
                Some(Output::Again) => tokio::task::yield_now().await,
                Some(output) => self.output(output).await?,
            }
        }
    }

    /// A step that reads history; done in place, but the runtime is told that it may take long.
    async fn read_output(&mut self) -> Result<Option<Output>, Gone> {
        let handle = self.handle.clone();
        let stream = &mut self.stream;
        let result = tokio::task::block_in_place(move || {
            let view = handle.view();
            stream.next(&view.snapshot())
        });
        result.map_err(|error| {
            self.handle.shared().fail_storage(error);
            Gone
        })
    }

    async fn output(&mut self, output: Output) -> Result<(), Gone> {
        match output {
            Output::Events {
                watch_id,
                header_revision,
                events,
                fragment,
            } => {
                let response = WatchResponse {
                    header: Some(header::at(&self.handle, header_revision)),
                    watch_id,
                    events,
                    ..Default::default()
                };
                if fragment {
                    self.send_fragments(response).await
                } else {
                    self.send(response).await
                }
            }
            Output::Compacted {
                watch_id,
                compact_revision,
            } => {
                // As in etcd the header of this one shows no revision.
                let response = WatchResponse {
                    header: Some(header::at(&self.handle, 0)),
                    watch_id,
                    canceled: true,
                    compact_revision,
                    ..Default::default()
                };
                self.send(response).await
            }
            Output::Progress {
                watch_id,
                header_revision,
            } => {
                let response = WatchResponse {
                    header: Some(header::at(&self.handle, header_revision)),
                    watch_id,
                    ..Default::default()
                };
                self.send(response).await
            }
            Output::Again => Ok(()),
        }
    }

    async fn send_fragments(&mut self, mut response: WatchResponse) -> Result<(), Gone> {
        let events = std::mem::take(&mut response.events);
        let base_bytes = response.encoded_len();
        let limit_bytes = self.max_request_bytes + GRPC_OVERHEAD_BYTES;
        let mut parts = watch::fragments(events, base_bytes, limit_bytes)
            .into_iter()
            .peekable();
        while let Some(events) = parts.next() {
            let part = WatchResponse {
                events,
                fragment: parts.peek().is_some(),
                ..response.clone()
            };
            self.send(part).await?;
        }
        Ok(())
    }

    async fn send(&mut self, response: WatchResponse) -> Result<(), Gone> {
        self.sender.send(Ok(response)).await.map_err(|_| Gone)
    }
}

fn watch_request(create: WatchCreateRequest) -> watch::Request {
    let has = |filter: FilterType| create.filters.contains(&(filter as i32));
    // An empty key stands for the smallest one.
    let key = if create.key.is_empty() {
        bytes::Bytes::from_static(&[0])
    } else {
        create.key.clone()
    };
    watch::Request {
        watch_id: create.watch_id,
        range: KeyRange::from_wire(&key, &create.range_end),
        start_revision: create.start_revision,
        prev_kv: create.prev_kv,
        no_put: has(FilterType::Noput),
        no_delete: has(FilterType::Nodelete),
        fragment: create.fragment,
        progress_notify: create.progress_notify,
    }
}
