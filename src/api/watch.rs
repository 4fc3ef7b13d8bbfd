//! Watch: moves what a stream of the hub hands out to the network, one task a client stream.
//!
//! The task takes the hub's next output only when the network asks for it, so a client that does
//! not read fills nothing but its own bounded queue in the hub. Requests are read meanwhile.

mod frames;
mod outbox;
mod rechecks;
mod sent;
mod stall;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_stream::{Empty, Stream as TokioStream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tracing::Span;

use self::stall::Stall;
use super::body::beside;
use super::received::received;
use super::status_text::broken_stream;
use super::{ApiSettings, caller, header, spans};
use crate::budget::{Exhausted, Held, Share};
use crate::env::Interval;
use crate::error::{Error, watch_reason};
use crate::failpoints::{self, Failpoint};
use crate::probe::{self, CoveragePoint, Defect};
use crate::proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_create_request::FilterType,
    watch_request::RequestUnion, watch_server::Watch,
};
use crate::service::caller::Caller;
use crate::service::handle::Handle;
use crate::service::permission;
use crate::service::rpcs::{self, Costly};
use crate::state::auth::AuthView;
use crate::types::KeyRange;
use crate::watch::{self, ALL_WATCHES, Output, Stream};

/// Answers to requests that wait behind events; a client that does not read is not read from.
const MAX_WAITING_ANSWERS: usize = 64;
/// See `room_bytes`; less only where a test has less to give.
const ROOM_BYTES: usize = 16 << 10;
/// For history, since each read needs a thread and what it reads.
const TURNS: Costly = rpcs::turns_of(rpcs::WATCH, "Watch");
/// How long to wait where already too many wait for that.
const LINE_FULL_PAUSE: Duration = Duration::from_millis(100);
/// A page of history is kept so long for a client that does not take it.
const PAGE_KEPT: Duration = Duration::from_millis(100);
/// Outputs handed on before other things get their turn. With failpoints each by itself: one that
/// sleeps is to hold up what comes behind it, and nothing before it.
const OUTPUTS_A_TURN: usize = if cfg!(feature = "failpoints") { 1 } else { 64 };
/// The shortest interval of progress notifications; etcd's.
const MIN_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

pub use frames::MessageCount;
use outbox::Outbox;
pub use outbox::Responses;
use rechecks::{Rechecks, Woken};
use sent::Sent;

/// Cheap to clone.
#[derive(Clone)]
pub struct WatchService {
    handle: Handle,
    settings: ApiSettings,
    rechecks: Arc<Rechecks>,
}

impl WatchService {
    pub fn new(handle: Handle, settings: ApiSettings) -> Self {
        Self {
            rechecks: Rechecks::begin(&handle, settings.recheck_watches),
            handle,
            settings,
        }
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    /// What is sent is beside it: large events are shared, and tonic would copy each.
    type WatchStream = Empty<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller::of(&request);
        let method = (rpcs::WATCH, "Watch");
        let requests = request.into_inner();
        let requests = received(self.handle.shared(), method, requests);
        let responses = self.open(caller, requests);
        Ok(beside(tokio_stream::empty(), responses))
    }
}

impl WatchService {
    /// Answers the requests of a client stream.
    pub fn open<R>(&self, caller: Caller, requests: R) -> Responses
    where
        R: TokioStream<Item = Result<WatchRequest, Status>> + Send + Unpin + 'static,
    {
        let hub = &self.handle.shared().hub;
        let (outbox, responses) = outbox::outbox(hub.share().clone());
        let wake = Arc::new(Notify::new());
        let waker = wake.clone();
        let woken = self.rechecks.join(wake.clone());
        let stream = hub.open(Arc::new(move || waker.notify_one()));
        let session = Session {
            handle: self.handle.clone(),
            caller,
            stream,
            outbox,
            waiting: VecDeque::new(),
            spans: BTreeMap::new(),
            busy: false,
            stall: Stall::default(),
            judged: None,
            rechecks: self.settings.recheck_watches,
            _woken: woken,
            max_request_bytes: self.settings.max_request_bytes,
            fragment_bytes: self.settings.fragment_bytes,
        };
        let interval = with_jitter(&self.handle, self.settings.progress_interval);
        self.handle.spawn(session.run(requests, wake, interval));
        responses
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

/// What it takes to read history.
struct Room {
    _held: Held,
    _turn: Option<OwnedSemaphorePermit>,
}

struct Session {
    handle: Handle,
    caller: Caller,
    stream: Stream,
    outbox: Outbox,
    /// What is to be sent next, in order, before anything more of `stream`.
    waiting: VecDeque<WatchResponse>,
    /// Those of the watches that are in a trace, until they end.
    spans: BTreeMap<i64, Span>,
    /// True while `stream` may have something to say.
    busy: bool,
    stall: Stall,
    /// The users and roles by which all watches were judged last.
    judged: Option<Arc<AuthView>>,
    /// False: as in etcd a watch continues when its user loses the right to it.
    rechecks: bool,
    _woken: Woken,
    max_request_bytes: usize,
    fragment_bytes: usize,
}

impl Session {
    async fn run(
        mut self,
        mut requests: impl TokioStream<Item = Result<WatchRequest, Status>> + Unpin,
        wake: Arc<Notify>,
        every: Duration,
    ) {
        let mut progress = Interval::new(&self.handle.shared().clock, every);
        // A client that closes its side still gets its events.
        let mut open = true;
        // Requests and events take turns where there is no end of both.
        let mut was_request = false;
        loop {
            let sends = self.busy || !self.waiting.is_empty();
            let reads = open && self.waiting.len() < MAX_WAITING_ANSWERS;
            let unread_page = self.stream.holds_page() && !self.outbox.has_room();
            let clock = self.handle.shared().clock.clone();
            let now = clock.now();
            let stall = self.stall.left(self.outbox.taken_bytes_before(), now);
            let last_was_request = std::mem::take(&mut was_request);
            let step = tokio::select! {
                biased;
                () = self.outbox.closed() => Err(Gone),
                () = wake.notified(), if !self.busy => {
                    self.busy = true;
                    self.recheck();
                    Ok(())
                }
                () = progress.tick() => {
                    self.stream.progress_tick();
                    self.busy = true;
                    Ok(())
                }
                room = self.ready(), if sends && last_was_request => self.turn(room),
                request = requests.next(), if reads => match request {
                    Some(Ok(request)) => {
                        was_request = true;
                        self.request(request);
                        Ok(())
                    }
                    Some(Err(status)) => {
                        let status = broken_stream(&status, self.max_request_bytes);
                        self.outbox.end(status);
                        Err(Gone)
                    }
                    None => {
                        open = false;
                        Ok(())
                    }
                },
                room = self.ready(), if sends => self.turn(room),
                () = async { clock.sleep(PAGE_KEPT).await }, if unread_page => {
                    self.stream.put_back_page();
                    self.busy = true;
                    Ok(())
                }
                () = async { clock.sleep(stall.unwrap_or_default()).await }, if stall.is_some() && !unread_page => {
                    self.give_up_if_short()
                }
            };
            if step.is_err() {
                return;
            }
        }
    }

    /// Returns when the network asks for more and, where history is to be read for it, there is
    /// room: who waits for that holds nothing but its place.
    async fn ready(&self) -> Option<Room> {
        self.outbox.asked().await;
        if !self.waiting.is_empty() || !self.stream.reads_storage() {
            return None;
        }
        let shared = self.handle.shared();
        let share = shared.hub.share();
        loop {
            match share.take(room_bytes(share)).await {
                Ok(held) => {
                    let turns = self.handle.turns(TURNS).clone();
                    let turn = turns.acquire_owned().await.ok();
                    return Some(Room {
                        _held: held,
                        _turn: turn,
                    });
                }
                Err(Exhausted) => shared.clock.sleep(LINE_FULL_PAUSE).await,
            }
        }
    }

    /// Ends the stream where it is stalled and others wait for what it holds.
    fn give_up_if_short(&mut self) -> Result<(), Gone> {
        let now = self.handle.shared().clock.now();
        let stall = self.stall.left(self.outbox.taken_bytes_before(), now);
        if stall.is_none_or(|left| left > Duration::ZERO) {
            return Ok(());
        }
        self.stall = Stall::default();
        let share = self.handle.shared().hub.share();
        if share.used_bytes() + room_bytes(share) <= share.limit_bytes() {
            return Ok(());
        }
        self.outbox.break_off(Status::unavailable(
            "memory is short and the client does not read what its watches sent",
        ));
        Err(Gone)
    }

    fn request(&mut self, request: WatchRequest) {
        self.busy = true;
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => {
                let head = self.handle.view().head;
                self.stream.request_progress(head);
            }
            None => {}
        }
    }

    fn cancel(&mut self, watch_id: i64) {
        if self.stream.cancel(watch_id) {
            self.spans.remove(&watch_id);
            self.waiting.push_back(WatchResponse {
                header: Some(header::now(&self.handle)),
                watch_id,
                canceled: true,
                ..Default::default()
            });
        }
    }

    fn create(&mut self, create: WatchCreateRequest) {
        let head = self.handle.view().head;
        let span = spans::watch(self.caller.span(), &create);
        let created = if create.start_revision < 0 {
            Err(watch_reason::COMPACTED.to_owned())
        } else if let Err(error) = self.check(&create) {
            Err(refusal_text(error))
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
            Ok(watch_id) => {
                response.watch_id = watch_id;
                if !span.is_disabled() {
                    self.spans.insert(watch_id, span);
                }
            }
            Err(reason) => {
                response.watch_id = ALL_WATCHES;
                response.canceled = true;
                response.cancel_reason = reason;
            }
        }
        self.waiting.push_back(response);
    }

    /// Whether a watch may be made. Its range is judged as it was asked for.
    fn check(&self, create: &WatchCreateRequest) -> Result<(), Error> {
        let shared = self.handle.shared();
        if !shared.is_auth_enabled() {
            return Ok(());
        }
        let caller = self.caller.again()?;
        let auth = self.handle.auth();
        let access = permission::access(&auth, &caller);
        access.read(first_key(create), &create.range_end)
    }

    /// Ends the watches whose user may not read what they watch any more; returns their ids.
    fn recheck(&mut self) -> Vec<i64> {
        if !self.rechecks
            || probe::injected(Defect::WatchNotJudgedAgain)
            || !self.handle.shared().is_auth_enabled()
        {
            return Vec::new();
        }
        let auth = self.handle.auth();
        let judged = self.judged.as_ref();
        if judged.is_some_and(|judged| Arc::ptr_eq(judged, &auth)) {
            return Vec::new();
        }
        // A caller whose token has expired stays the user that it was.
        let caller = self.caller.again().unwrap_or_else(|_| self.caller.clone());
        let access = permission::access_at_any_revision(&auth, &caller);
        let refused = self.stream.ranges().filter_map(|(watch_id, range)| {
            let (key, range_end) = range.to_wire();
            Some((watch_id, access.read(key, range_end).err()?))
        });
        let refused: Vec<(i64, Error)> = refused.collect();
        self.judged = Some(auth.clone());
        for (watch_id, error) in &refused {
            probe::reached(CoveragePoint::WatchEndedByAuth);
            self.stream.cancel(*watch_id);
            self.spans.remove(watch_id);
            self.waiting.push_back(WatchResponse {
                header: Some(header::now(&self.handle)),
                watch_id: *watch_id,
                canceled: true,
                cancel_reason: refusal_text(*error),
                ..Default::default()
            });
        }
        refused.into_iter().map(|(watch_id, _)| watch_id).collect()
    }

    /// Hands on what there is, up to a bounded number and while the network asks for more.
    /// Reads history once, with `room` for it.
    fn turn(&mut self, mut room: Option<Room>) -> Result<(), Gone> {
        let shared = self.handle.shared().clone();
        let mut sent = Sent::begin(shared.clock.now());
        for _ in 0..OUTPUTS_A_TURN {
            let reads = self.waiting.is_empty() && self.stream.reads_storage();
            if !self.outbox.has_room() || reads && room.is_none() {
                break;
            }
            if reads {
                sent.end(shared.clock.now(), &shared.metrics);
            }
            if self.waiting.is_empty() && self.busy {
                self.step()?;
                if reads {
                    room = None;
                }
            }
            if let Some(response) = self.waiting.pop_front() {
                sent.count(&response);
                self.outbox.push(response);
            } else if !self.busy {
                break;
            }
            if reads {
                sent.end(shared.clock.now(), &shared.metrics);
            }
        }
        sent.end(shared.clock.now(), &shared.metrics);
        self.outbox.hand_over();
        Ok(())
    }

    /// Takes the stream's next output.
    fn step(&mut self) -> Result<(), Gone> {
        let view = self.handle.view();
        let stream = &mut self.stream;
        let output = if stream.reads_storage() {
            // The runtime has to know that this may take long.
            let mut output = Ok(None);
            let executor = self.handle.shared().executor.as_ref();
            executor.block_in_place(&mut || {
                failpoints::hit(Failpoint::BeforeSyncWatchers);
                output = stream.next(&view.pinned());
            });
            output
        } else {
            stream.next(&view.pinned())
        };
        match output {
            Ok(Some(output)) => {
                // What it holds was shown to readers before: the users and roles of now are at
                // least as new.
                let ended = self.recheck();
                if !output.watch_id().is_some_and(|id| ended.contains(&id)) {
                    self.output(output);
                }
            }
            Ok(None) => self.busy = false,
            Err(error) => {
                self.handle.shared().fail_storage(error);
                return Err(Gone);
            }
        }
        Ok(())
    }

    fn output(&mut self, output: Output) {
        if !matches!(output, Output::Again) {
            let executor = self.handle.shared().executor.as_ref();
            failpoints::hit_in_task(executor, Failpoint::BeforeSendWatchResponse);
        }
        let response = match output {
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
                    self.push_fragments(response);
                    return;
                }
                response
            }
            Output::Compacted {
                watch_id,
                compact_revision,
            } => {
                self.spans.remove(&watch_id);
                WatchResponse {
                    // As in etcd the header of this one shows no revision.
                    header: Some(header::at(&self.handle, 0)),
                    watch_id,
                    canceled: true,
                    compact_revision,
                    ..Default::default()
                }
            }
            Output::Progress {
                watch_id,
                header_revision,
            } => WatchResponse {
                header: Some(header::at(&self.handle, header_revision)),
                watch_id,
                ..Default::default()
            },
            Output::Again => return,
        };
        self.waiting.push_back(response);
    }

    fn push_fragments(&mut self, mut response: WatchResponse) {
        let events = std::mem::take(&mut response.events);
        let base_bytes = response.encoded_len();
        let mut parts = watch::fragments(events, base_bytes, self.fragment_bytes)
            .into_iter()
            .peekable();
        if parts.len() > 1 {
            probe::reached(CoveragePoint::ResponseSplit);
        }
        while let Some(events) = parts.next() {
            self.waiting.push_back(WatchResponse {
                events,
                fragment: parts.peek().is_some(),
                ..response.clone()
            });
        }
    }
}

/// What has to be free before history is read for a stream.
fn room_bytes(share: &Share) -> usize {
    ROOM_BYTES.min(share.limit_bytes() / 16)
}

/// Why a watch is refused or ended, as etcd has it: the error as its client prints it. What etcd
/// does not foresee there is a missing permission.
fn refusal_text(error: Error) -> String {
    let shown = match error {
        Error::InvalidAuthToken | Error::AuthOldRevision | Error::UserEmpty => error,
        _ => Error::PermissionDenied,
    };
    format!("rpc error: code = {:?} desc = {shown}", shown.code())
}

/// An empty key stands for the smallest one.
fn first_key(create: &WatchCreateRequest) -> &[u8] {
    match create.key.is_empty() {
        true => &[0],
        false => &create.key,
    }
}

fn watch_request(create: WatchCreateRequest) -> watch::Request {
    let has = |filter: FilterType| create.filters.contains(&(filter as i32));
    let key = match create.key.is_empty() {
        true => bytes::Bytes::copy_from_slice(first_key(&create)),
        false => create.key.clone(),
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
