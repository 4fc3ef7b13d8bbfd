//! Clients that watch: several watches on a stream, read quickly or slowly, starting now or in the
//! past, and resumed after the stream broke.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::client::{Client, Clients};
use super::history::Watched;
use super::random::Random;
use crate::api::watch::Responses;
use crate::env::{self, Clock as _};
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::proto::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use crate::state::model::auth::Who;
use crate::watch::ALL_WATCHES;

/// After the clients have stopped, a stream without an event for this long is complete: it is
/// longer than the longest TTL.
const QUIET: Duration = Duration::from_secs(20);
/// Longer than the interval of progress notifications, so a stream that is silent for this long has
/// ended.
const WAIT: Duration = Duration::from_secs(2);

/// A watch on a stream, as far as its client has received it.
struct Open {
    /// Its index in the world's list of watches.
    place: usize,
    next_revision: i64,
    create: WatchCreateRequest,
    ended: bool,
}

struct Streamed {
    /// None once the client has closed its side, which ends no watch.
    requests: Option<mpsc::Sender<Result<WatchRequest, Status>>>,
    responses: Responses,
    /// Requested and not yet created, in order.
    asked_for: VecDeque<Open>,
    /// By id.
    open: BTreeMap<i64, Open>,
}

/// Starts a client that watches, as the user who others are or as another one.
pub fn start(clients: &Arc<Clients>, number: u32, user: Option<&'static str>, random: Random) {
    let mut client = Client::new(number, clients.clone(), random);
    client.user = user.or(client.user);
    let work = async move {
        let mut resumed = Vec::new();
        while !client.clients.stopping() {
            client.pause(1_000, 300_000).await;
            resumed = watch(&mut client, resumed).await.unwrap_or_default();
        }
    };
    env::Executor::spawn(clients.tasks.as_ref(), Box::pin(work));
}

fn random_create(random: &mut Random, head: i64, compacted: i64) -> WatchCreateRequest {
    let (key, range_end): (&str, &str) = *random.pick(&[
        ("\0", "\0"),
        ("", "\0"),
        ("a", ""),
        ("a", "b"),
        ("b/", "b0"),
        ("r", "s"),
        ("r1", ""),
        ("l", "m"),
        ("d", ""),
        // Empty.
        ("d", "a"),
    ]);
    WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision: match random.below(6) {
            5 if random.chance(100) => -1,
            4 => compacted.max(1),
            0 => (head - random.below(100) as i64).max(1),
            1 => head + random.below(20) as i64,
            _ => 0,
        },
        progress_notify: random.chance(300),
        filters: match random.below(8) {
            0 => vec![FilterType::Noput as i32],
            1 => vec![FilterType::Nodelete as i32],
            _ => Vec::new(),
        },
        prev_kv: random.chance(400),
        fragment: random.chance(200),
        ..Default::default()
    }
}

/// Opens a stream and reads it until it breaks, has lasted long enough, or the world ends. Returns
/// the watches to resume.
async fn watch(
    client: &mut Client,
    resumed: Vec<WatchCreateRequest>,
) -> Option<Vec<WatchCreateRequest>> {
    let Some(endpoint) = client.find().await else {
        return Some(resumed);
    };
    let (sender, receiver) = mpsc::channel(64);
    let requests = ReceiverStream::new(receiver);
    let caller = client.lasting_caller(&endpoint);
    let responses = endpoint.services.watch.open(caller, requests);
    let view = endpoint.services.handle.view();
    let (head, compacted) = (view.head, view.compacted);
    let mut streamed = Streamed {
        requests: Some(sender),
        responses,
        asked_for: VecDeque::new(),
        open: BTreeMap::new(),
    };
    let mut creates = resumed;
    for _ in 0..client.random.below(4) {
        creates.push(random_create(&mut client.random, head, compacted));
    }
    creates.truncate(6);
    for (number, create) in creates.into_iter().enumerate() {
        let create = WatchCreateRequest {
            watch_id: match client.random.below(8) {
                // The server chooses the id.
                0 => 0,
                // A duplicate id, unless it is the first.
                1 if number > 0 => number as i64,
                _ => number as i64 + 1,
            },
            ..create
        };
        streamed.create(client, create).await?;
    }
    if client.random.chance(50) {
        streamed.requests = None;
    }
    let slow = client.random.chance(250);
    let life = client.random.between(50, 3_000);
    let broken = streamed.read(client, slow, life).await;
    let resumes = client.random.chance(700) || broken;
    resumes.then(|| streamed.resumed())
}

impl Streamed {
    async fn create(&mut self, client: &Client, create: WatchCreateRequest) -> Option<()> {
        let watched = Watched {
            client: client.number,
            member: client.member,
            who: match client.user {
                None => Who::Nobody,
                Some(name) => Who::User {
                    name: name.to_owned(),
                    auth_revision: 0,
                },
            },
            create: create.clone(),
            created_at: client.clients.time.now_ns(),
            responses: Vec::new(),
            to_the_end: false,
        };
        let place = {
            let mut watches = client.clients.watches.lock();
            watches.push(watched);
            watches.len() - 1
        };
        let request = RequestUnion::CreateRequest(create.clone());
        self.asked_for.push_back(Open {
            place,
            next_revision: create.start_revision,
            create,
            ended: false,
        });
        self.ask(request).await
    }

    async fn ask(&self, request: RequestUnion) -> Option<()> {
        let request = WatchRequest {
            request_union: Some(request),
        };
        match &self.requests {
            Some(requests) => requests.send(Ok(request)).await.ok(),
            None => Some(()),
        }
    }

    /// Returns true if the stream broke.
    async fn read(&mut self, client: &mut Client, slow: bool, life: u64) -> bool {
        let mut last_event = client.clients.clock.now();
        let mut read = 0;
        loop {
            if slow && client.random.chance(300) && !client.clients.stopping() {
                client.pause(100_000, 3_000_000).await;
            }
            let clock = &client.clients.clock;
            match env::timeout(clock, WAIT, self.responses.next()).await {
                Some(Some(Ok(response))) => {
                    if !response.events.is_empty() {
                        last_event = client.clients.clock.now();
                    }
                    read += 1;
                    self.record(client, response);
                }
                Some(Some(Err(_)) | None) => return true,
                None => {}
            }
            let stopping = client.clients.stopping();
            if !stopping {
                // The quiet period starts when the clients stop: leases expire after that.
                last_event = client.clients.clock.now();
            }
            let quiet = client.clients.clock.now() - last_event;
            if stopping && quiet >= QUIET {
                self.end(client);
                return false;
            }
            if !stopping && read >= life {
                return false;
            }
            if !stopping && client.random.chance(20) {
                let id = client.random.below(6) as i64 + 1;
                let request = match client.random.chance(600) {
                    true => RequestUnion::ProgressRequest(WatchProgressRequest {}),
                    false => RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id }),
                };
                if self.ask(request).await.is_none() {
                    return true;
                }
            }
        }
    }

    fn record(&mut self, client: &Client, response: WatchResponse) {
        let now = client.clients.time.now_ns();
        client.clients.trace.note(format_args!(
            "client {} watches at {}: {} events of {} at revision {}{}",
            client.number,
            client.member,
            response.events.len(),
            response.watch_id,
            response.header.as_ref().map_or(0, |header| header.revision),
            if response.canceled { ", canceled" } else { "" },
        ));
        let mut watches = client.clients.watches.lock();
        if response.created
            && let Some(answered) = self.asked_for.pop_front()
        {
            if response.canceled {
                let watched = &mut watches[answered.place];
                watched.responses.push((now, response));
                return;
            }
            self.open.insert(response.watch_id, answered);
        }
        for (id, open) in &mut self.open {
            let for_all = response.watch_id == ALL_WATCHES && !response.canceled;
            if *id != response.watch_id && !for_all || open.ended {
                continue;
            }
            open.ended |= response.canceled;
            let revision = response.header.as_ref().map_or(0, |header| header.revision);
            let said_all = !response.fragment;
            if response.created && open.next_revision <= 0 {
                open.next_revision = revision + 1;
            } else if !response.created && !response.canceled && said_all {
                open.next_revision = open.next_revision.max(revision + 1);
            }
            let watched = &mut watches[open.place];
            watched.responses.push((now, response.clone()));
        }
    }

    /// Marks these watches as complete: no more events are to come.
    fn end(&self, client: &Client) {
        let mut watches = client.clients.watches.lock();
        let answered = self.open.values().filter(|open| !open.ended);
        for open in answered.chain(&self.asked_for) {
            watches[open.place].to_the_end = true;
        }
    }

    /// The same watches, starting after what was received.
    fn resumed(&self) -> Vec<WatchCreateRequest> {
        let open = self.open.values().filter(|open| !open.ended);
        open.map(|open| WatchCreateRequest {
            start_revision: open.next_revision,
            ..open.create.clone()
        })
        .collect()
    }
}
