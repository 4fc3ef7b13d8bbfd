//! How clients call members, and how the outcome is recorded. A request takes a while to reach its
//! member, runs as one of the member's tasks, and the response takes a while to return; if the
//! member dies, both are lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Buf;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;
use tokio_stream::StreamExt;
use tonic::{Code, Response, Status};
use tracing::Span;

use super::call::of;
use super::clock::{MemberClock, Time};
use super::executor::Tasks;
use super::history::{Answer, ClientRequest, Observed, Operation, Outcome, Watched};
use super::member::Services;
use super::random::Random;
use super::trace::Trace;
use crate::api::body;
use crate::env::{self, Clock, Executor};
use crate::error::Error;
use crate::proto::EncodedKvs;
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::lease_server::Lease;
use crate::proto::etcdserverpb::maintenance_server::Maintenance;
use crate::proto::etcdserverpb::{
    DefragmentRequest, HashKvRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, MemberListRequest, MoveLeaderRequest, RangeRequest, RangeResponse,
    RangeStreamResponse, StatusRequest,
};
use crate::proto::etchedpeer::{MemberChange, member_change::Change};
use crate::service::caller::{Caller, Credentials, Identity, User};
use crate::service::handle::Handle;
use crate::state::model::auth::Who;
use crate::types::{LeaseId, MemberId};

/// How many lease ids clients share.
const KNOWN_LEASES: usize = 8;

/// What a client needs to call a running member.
#[derive(Clone)]
pub struct MemberEndpoint {
    pub tasks: Arc<Tasks>,
    pub services: Arc<Services>,
}

/// State shared by all clients of a world.
pub struct Clients {
    pub time: Arc<Time>,
    pub clock: MemberClock,
    pub tasks: Arc<Tasks>,
    pub trace: Arc<Trace>,
    endpoints: Mutex<BTreeMap<MemberId, MemberEndpoint>>,
    pub operations: Mutex<Vec<Operation>>,
    pub watches: Mutex<Vec<Watched>>,
    pub observed: Mutex<Vec<Observed>>,
    stopping: AtomicBool,
    /// Authentication is in use in this world: who is nobody else is `root`.
    has_users: AtomicBool,
    /// Requests that members are processing, whether or not their clients still wait.
    served: Arc<AtomicUsize>,
    /// Recently granted leases.
    leases: Mutex<VecDeque<i64>>,
}

impl Clients {
    pub fn new(time: Arc<Time>, trace: Arc<Trace>) -> Arc<Self> {
        Arc::new(Self {
            clock: MemberClock::new(time.clone(), 0, Arc::default()),
            time,
            tasks: Tasks::new(),
            trace,
            endpoints: Mutex::default(),
            operations: Mutex::default(),
            watches: Mutex::default(),
            observed: Mutex::default(),
            stopping: AtomicBool::new(false),
            has_users: AtomicBool::new(false),
            served: Arc::default(),
            leases: Mutex::default(),
        })
    }

    pub fn open(&self, member: MemberId, endpoint: MemberEndpoint) {
        self.endpoints.lock().insert(member, endpoint);
    }

    pub fn close(&self, member: MemberId) {
        self.endpoints.lock().remove(&member);
    }

    pub fn endpoint(&self, member: MemberId) -> Option<MemberEndpoint> {
        self.endpoints.lock().get(&member).cloned()
    }

    /// The running members, in order.
    pub fn running_members(&self) -> Vec<MemberId> {
        self.endpoints.lock().keys().copied().collect()
    }

    /// Shares a lease id with the other clients.
    pub fn share_lease(&self, id: i64) {
        let mut leases = self.leases.lock();
        leases.push_back(id);
        if leases.len() > KNOWN_LEASES {
            leases.pop_front();
        }
    }

    /// A recently granted lease.
    pub fn some_lease(&self, random: &mut Random) -> Option<i64> {
        let leases = self.leases.lock();
        let number = random.below(leases.len().max(1) as u64);
        leases.get(number as usize).copied()
    }

    /// Asks all clients to finish their current request and stop.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// How many requests members are processing, including those whose clients timed out.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    /// Has the clients made from now on be somebody.
    pub fn use_users(&self) {
        self.has_users.store(true, Ordering::SeqCst);
    }

    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// A request that a member is processing; dropped with the member's task.
struct Served(Arc<AtomicUsize>);

impl Served {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A client; it has one request in flight at a time.
pub struct Client {
    pub number: u32,
    pub clients: Arc<Clients>,
    pub random: Random,
    /// The member that it calls.
    pub member: MemberId,
    /// Whose requests it sends; nobody's in a world without users.
    pub user: Option<&'static str>,
    pub has_old_tokens: bool,
    /// How long it waits for an answer.
    pub patience: Duration,
    values: u64,
}

/// A token that is of the auth revision of now, as simple tokens are.
struct Token {
    handle: Handle,
    name: &'static str,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Credentials for Token {
    fn identity(&self) -> Result<Identity, Error> {
        Ok(Identity::User(Arc::new(User {
            name: self.name.to_owned(),
            auth_revision: self.handle.auth().revision(),
        })))
    }
}

impl Client {
    /// Of those who have no reason for another.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    pub fn new(number: u32, clients: Arc<Clients>, random: Random) -> Self {
        let has_users = clients.has_users.load(Ordering::SeqCst);
        Self {
            number,
            user: has_users.then_some("root"),
            has_old_tokens: false,
            patience: Self::PATIENCE,
            clients,
            random,
            member: MemberId(0),
            values: 0,
        }
    }

    /// A value that no other request in this world puts.
    pub fn unique_value(&mut self) -> bytes::Bytes {
        self.values += 1;
        format!("{}-{}", self.number, self.values).into()
    }

    pub async fn sleep(&self, duration: Duration) {
        self.clients.clock.sleep(duration).await;
    }

    /// Sleeps for a random time within the range, in microseconds.
    pub async fn pause(&mut self, low_us: u64, high_us: u64) {
        let us = self.random.between(low_us, high_us);
        self.sleep(Duration::from_micros(us)).await;
    }

    /// A running member, preferably the one that was called last.
    pub async fn find(&mut self) -> Option<MemberEndpoint> {
        if self.random.chance(30) {
            self.member = MemberId(0);
        }
        if let Some(endpoint) = self.clients.endpoint(self.member) {
            return Some(endpoint);
        }
        let open = self.clients.running_members();
        if open.is_empty() {
            self.pause(10_000, 200_000).await;
            return None;
        }
        self.member = *self.random.pick(&open);
        self.clients.endpoint(self.member)
    }

    /// This client as a member sees it, by the users and roles that the member knows now. Some have
    /// a token of an earlier time.
    pub fn caller(&mut self, endpoint: &MemberEndpoint) -> Caller {
        let Some(name) = self.user else {
            return Caller::nobody();
        };
        let user = User {
            name: name.to_owned(),
            auth_revision: endpoint.services.handle.auth().revision(),
        };
        let has_old = self.has_old_tokens && self.random.chance(100);
        let user = match has_old {
            true => User {
                auth_revision: user
                    .auth_revision
                    .saturating_sub(self.random.below(3))
                    .max(1),
                ..user
            },
            false => user,
        };
        Caller::client(Identity::User(Arc::new(user)), None, Span::none())
    }

    /// The same, for what lasts longer than a call.
    pub fn lasting_caller(&mut self, endpoint: &MemberEndpoint) -> Caller {
        match self.user {
            None => Caller::nobody(),
            Some(name) => {
                let handle = endpoint.services.handle.clone();
                let token = Arc::new(Token { handle, name });
                self.caller(endpoint).with_credentials(token)
            }
        }
    }

    /// Calls a member and records the operation; `None` if no member is running.
    pub async fn call(&mut self, request: ClientRequest) -> Option<Outcome> {
        let endpoint = self.find().await?;
        Some(self.call_at(endpoint, request).await)
    }

    /// Calls the given member.
    pub async fn call_at(&mut self, endpoint: MemberEndpoint, request: ClientRequest) -> Outcome {
        let called_at = self.clients.time.now_ns();
        self.pause(20, 400).await;
        let (mut sender, receiver) = oneshot::channel();
        let (services, copy) = (endpoint.services.clone(), request.clone());
        // Only these wait on in a call, and end with it.
        let waits = matches!(request, ClientRequest::Concurrency(_));
        let caller = match waits {
            true => self.lasting_caller(&endpoint),
            false => self.caller(&endpoint),
        };
        let who = who(&caller);
        let known_index = endpoint.services.handle.shared().raft.applied_index();
        let served = Served::new(&self.clients.served);
        endpoint.tasks.spawn(Box::pin(async move {
            let _served = served;
            let served = serve(&services, copy, &caller);
            let outcome = match waits {
                true => tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    outcome = served => outcome,
                },
                false => served.await,
            };
            // The receiver is gone if the client timed out.
            let _ = sender.send(outcome);
        }));
        let answered = env::timeout(&self.clients.clock, self.patience, receiver).await;
        let outcome = match answered {
            Some(Ok(outcome)) => outcome,
            // The member died, or the client timed out.
            Some(Err(_)) | None => Outcome::Unknown,
        };
        self.pause(20, 400).await;
        let operation = Operation {
            client: self.number,
            member: self.member,
            who,
            known_index,
            request,
            called_at,
            returned_at: self.clients.time.now_ns(),
            outcome: outcome.clone(),
        };
        self.clients.trace.operation(&operation);
        self.clients.operations.lock().push(operation);
        outcome
    }
}

/// A caller as the history names it.
pub fn who(caller: &Caller) -> Who {
    match caller.identity() {
        Identity::Nobody | Identity::Invalid => Who::Nobody,
        Identity::Member => Who::Member,
        Identity::User(user) => Who::User {
            name: user.name.clone(),
            auth_revision: user.auth_revision,
        },
    }
}

fn outcome<T>(result: Result<Response<T>, Status>, answer: fn(T) -> Answer) -> Outcome {
    match result {
        Ok(response) => Outcome::Answered(answer(response.into_inner())),
        Err(status) => failed(&status),
    }
}

/// What the client may conclude from an error.
fn failed(status: &Status) -> Outcome {
    let refused = match Error::from_text(status.message()) {
        Some(
            Error::TooManyRequests
            | Error::SessionExpired
            | Error::ElectionNoLeader
            | Error::ElectionNotLeader,
        ) => true,
        // The deadline may have passed after the request was proposed or forwarded.
        Some(Error::DeadlineExceeded) => false,
        _ => !matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled
        ),
    };
    match refused {
        true => Outcome::Refused(status.message().to_owned()),
        false => Outcome::Unknown,
    }
}

/// Changes the membership, as an operator would.
async fn change_members(services: &Services, change: MemberChange, caller: &Caller) -> Outcome {
    let id = MemberId(change.member_id);
    let handle = &services.handle;
    let changed = match change.change {
        Some(Change::Add(raft)) => {
            let added = handle
                .add_member(caller, &raft.peer_urls, raft.is_learner)
                .await;
            added.map(|(_, members)| members)
        }
        Some(Change::Update(raft)) => handle.update_member(caller, id, raft.peer_urls).await,
        Some(Change::Promote(_)) => handle.promote_member(caller, id).await,
        Some(Change::Remove(_)) => handle.remove_member(caller, id).await,
        None => Err(Error::UnknownMethod),
    };
    match changed {
        Ok(members) => Outcome::Answered(Answer::Member(
            members.iter().map(|member| member.id).collect(),
        )),
        Err(error) => failed(&error.into()),
    }
}

/// Executes a request, as one of the member's tasks.
async fn serve(services: &Services, request: ClientRequest, caller: &Caller) -> Outcome {
    match request {
        ClientRequest::Range(range) => {
            outcome(services.kv.range(of(caller, range)).await, Answer::Range)
        }
        ClientRequest::Put(put) => outcome(services.kv.put(of(caller, put)).await, Answer::Put),
        ClientRequest::DeleteRange(delete) => outcome(
            services.kv.delete_range(of(caller, delete)).await,
            Answer::DeleteRange,
        ),
        ClientRequest::Txn(txn) => outcome(services.kv.txn(of(caller, txn)).await, Answer::Txn),
        ClientRequest::Compaction(compaction) => outcome(
            services.kv.compact(of(caller, compaction)).await,
            Answer::Compaction,
        ),
        ClientRequest::LeaseGrant(grant) => outcome(
            services.lease.lease_grant(of(caller, grant)).await,
            Answer::LeaseGrant,
        ),
        ClientRequest::LeaseRevoke { id } => outcome(
            services
                .lease
                .lease_revoke(of(caller, LeaseRevokeRequest { id }))
                .await,
            Answer::LeaseRevoke,
        ),
        ClientRequest::LeaseKeepAlive { id } => {
            match services.handle.renew_lease(caller, LeaseId(id)).await {
                Ok(ttl) => Outcome::Answered(Answer::LeaseKeepAlive { ttl }),
                Err(error) => failed(&error.into()),
            }
        }
        ClientRequest::LeaseTimeToLive { id, keys } => outcome(
            services
                .lease
                .lease_time_to_live(of(caller, LeaseTimeToLiveRequest { id, keys }))
                .await,
            Answer::LeaseTimeToLive,
        ),
        ClientRequest::Auth(request) => {
            let proposed = services.handle.propose(caller, *request).await;
            match proposed {
                Ok(response) => Outcome::Answered(Answer::Auth(Box::new(response))),
                Err(error) => failed(&error.into()),
            }
        }
        ClientRequest::Member(change) => change_members(services, change, caller).await,
        ClientRequest::RangeStream(range) => range_stream(services, range, caller).await,
        ClientRequest::LeaseLeases => {
            let request = of(caller, LeaseLeasesRequest {});
            outcome(services.lease.lease_leases(request).await, |listed| {
                Answer::Leases(listed.leases.iter().map(|lease| lease.id).collect())
            })
        }
        ClientRequest::Concurrency(ask) => match &services.concurrency {
            None => Outcome::Refused(Error::UnknownMethod.text().to_owned()),
            Some(concurrency) => match concurrency.serve(ask, caller).await {
                Ok(seen) => Outcome::Answered(Answer::Concurrency(seen)),
                Err(status) => failed(&status),
            },
        },
        operated => operate(services, operated, caller).await,
    }
}

/// Executes operators' requests.
async fn operate(services: &Services, request: ClientRequest, caller: &Caller) -> Outcome {
    let maintenance = &services.maintenance;
    match request {
        ClientRequest::Alarm(request) => {
            outcome(maintenance.alarm(of(caller, request)).await, Answer::Alarm)
        }
        ClientRequest::HashKv { revision } => {
            let request = of(caller, HashKvRequest { revision });
            outcome(maintenance.hash_kv(request).await, Answer::HashKv)
        }
        ClientRequest::MemberList { linearizable } => {
            let request = of(caller, MemberListRequest { linearizable });
            outcome(services.cluster.member_list(request).await, |listed| {
                Answer::MemberList(listed.members.iter().map(|member| member.id).collect())
            })
        }
        ClientRequest::MoveLeader { to } => {
            let request = of(caller, MoveLeaderRequest { target_id: to.0 });
            outcome(maintenance.move_leader(request).await, |_| Answer::Done)
        }
        ClientRequest::Downgrade(request) => {
            let request = of(caller, request);
            outcome(maintenance.downgrade(request).await, |_| Answer::Done)
        }
        ClientRequest::Defragment => {
            let request = of(caller, DefragmentRequest {});
            outcome(maintenance.defragment(request).await, |_| Answer::Done)
        }
        ClientRequest::Status => {
            let request = of(caller, StatusRequest {});
            outcome(maintenance.status(request).await, |_| Answer::Done)
        }
        _ => Outcome::Refused(Error::UnknownMethod.text().to_owned()),
    }
}

/// Joins the parts of a stream into one range response.
async fn range_stream(services: &Services, range: RangeRequest, caller: &Caller) -> Outcome {
    let (chunks, mut extensions) = match services.kv.range_stream(of(caller, range)).await {
        Ok(response) => {
            let (_, chunks, extensions) = response.into_parts();
            (chunks, extensions)
        }
        Err(status) => return failed(&status),
    };
    let Some(body) = body::body_of(&mut extensions) else {
        return sorted_chunks(chunks).await;
    };
    let mut messages = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(status) => return failed(&status),
    };
    let (mut frames, mut pairs) = (Vec::new(), 0);
    while messages.has_remaining() {
        messages.advance(1);
        let size_bytes = messages.get_u32() as usize;
        let message = RangeStreamResponse::decode(messages.split_to(size_bytes));
        let Ok(message) = message else { break };
        let piece = message.range_response.unwrap_or_default();
        pairs += piece.kvs.len();
        frames.extend_from_slice(&piece.kvs.frames());
        // The last part carries the header and the counts of the whole range.
        if piece.header.is_some() {
            return Outcome::Answered(Answer::Range(RangeResponse {
                kvs: EncodedKvs::from_chunks(vec![frames.into()], pairs),
                ..piece
            }));
        }
    }
    Outcome::Unknown
}

/// The same of chunks that are sorted one by one.
async fn sorted_chunks(
    mut chunks: impl tokio_stream::Stream<Item = Result<RangeStreamResponse, Status>> + Unpin,
) -> Outcome {
    let (mut frames, mut pairs) = (Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let piece = match chunk {
            Ok(chunk) => chunk.range_response.unwrap_or_default(),
            Err(status) => return failed(&status),
        };
        pairs += piece.kvs.len();
        frames.extend_from_slice(&piece.kvs.frames());
        if piece.header.is_some() {
            return Outcome::Answered(Answer::Range(RangeResponse {
                kvs: EncodedKvs::from_chunks(vec![frames.into()], pairs),
                ..piece
            }));
        }
    }
    Outcome::Unknown
}
