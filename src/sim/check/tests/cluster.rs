//! A correct cluster that consists of the model alone: clients with overlapping requests, lost
//! responses, expiring leases, lagging watches. It generates histories without violations, and can
//! be made to violate one property once.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use super::requests::{self, Random};
use crate::error::Error;
use crate::proto::etcdserverpb::{
    AlarmRequest, InternalRaftRequest, LeaseCheckpoint, LeaseCheckpointRequest, LeaseRevokeRequest,
    LeaseTimeToLiveResponse, PutRequest, RequestHeader, ResponseHeader,
};
use crate::sim::check::tests::streams::Stream;
use crate::sim::history::{
    Answer, AppliedEntry, ClientRequest, History, Moment, Operation, Outcome, RecordedPayload,
};
use crate::state::Response;
use crate::state::model::auth::Who;
use crate::state::model::{At, Model};
use crate::state::txn::{is_read_only, is_serializable};
use crate::types::MemberId;

pub const MILLISECOND: Moment = 1_000_000;
pub const SECOND: Moment = 1_000_000_000;
const CLIENTS: u32 = 6;
const STEPS: u64 = 1500;

/// A violation, introduced once where it is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trick {
    None,
    /// A put is acknowledged and not applied.
    LoseWrite,
    /// An entry without a request.
    Phantom,
    /// A put is applied twice, from two entries.
    ApplyTwice,
    /// The same, with the same request id.
    ProposeTwice,
    /// A put is applied and refused.
    RefuseDone,
    /// A lease ends early.
    RevokeEarly,
    /// A lease never ends.
    KeepLease,
    /// A live lease is reported as not found.
    DenyLease,
}

/// What a client is doing.
enum Client {
    Idle,
    Called(Moment, ClientRequest),
    /// Applied; the response is on its way.
    Done(Moment, ClientRequest, Outcome),
}

/// When a lease ends.
struct Deadline {
    ttl_s: i64,
    at: Moment,
}

pub struct Cluster {
    pub random: Random,
    pub model: Model,
    pub history: History,
    now: Moment,
    term: u64,
    clients: Vec<Client>,
    /// Requests that timed out, and may still be applied.
    late: Vec<ClientRequest>,
    streams: Vec<Stream>,
    deadlines: BTreeMap<i64, Deadline>,
    /// Earlier states, for members that lag.
    past: Vec<At>,
    next_request_id: u64,
    trick: Trick,
    /// Whether the client receives a response.
    heard: bool,
}

/// The result of a cluster.
#[derive(Clone)]
pub struct Made {
    pub history: History,
    /// The model after the last entry.
    pub model: Model,
    /// Whether the violation was introduced.
    pub played: bool,
}

pub fn make(seed: u64, trick: Trick) -> Made {
    let mut cluster = Cluster {
        random: Random::new(seed),
        model: Model::new(),
        history: History::default(),
        now: SECOND,
        term: 2,
        clients: (0..CLIENTS).map(|_| Client::Idle).collect(),
        late: Vec::new(),
        streams: Vec::new(),
        deadlines: BTreeMap::new(),
        past: Vec::new(),
        next_request_id: 1,
        trick,
        heard: true,
    };
    cluster.past.push(cluster.model.now());
    for _ in 0..STEPS {
        cluster.step();
    }
    cluster.rest();
    Made {
        history: cluster.history,
        model: cluster.model,
        played: cluster.trick != trick,
    }
}

impl Cluster {
    fn step(&mut self) {
        self.now += match self.random.below(200) {
            0 => 700 * MILLISECOND,
            1..80 => 0,
            _ => self.random.below(3 * MILLISECOND),
        };
        self.expire();
        match self.random.below(100) {
            0..86 => self.client(),
            86..88 => self.job(),
            88..90 => self.done_late(),
            90..92 => {
                let member = MemberId(1 + self.random.below(3));
                let head = self.random.below(2) as i64;
                let stream = Stream::open(&mut self.random, &self.model, member, self.now, head);
                self.streams.push(stream);
            }
            _ if self.streams.is_empty() => {}
            _ => {
                let stream = self.random.below(self.streams.len() as u64) as usize;
                self.streams[stream].deliver(&mut self.random, &self.model, self.now);
            }
        }
    }

    /// True once, if this is the violation to introduce.
    fn plays(&mut self, trick: Trick) -> bool {
        let late_enough = self.history.entries.len() > 60;
        if self.trick == trick && late_enough && self.heard {
            self.trick = Trick::None;
            return true;
        }
        false
    }

    fn client(&mut self) {
        let number = self.random.below(u64::from(CLIENTS)) as usize;
        let client = std::mem::replace(&mut self.clients[number], Client::Idle);
        self.clients[number] = match client {
            Client::Idle => {
                Client::Called(self.now, requests::asked(&mut self.random, &self.model))
            }
            Client::Called(at, asked) => match self.random.below(40) {
                0 => Client::Done(at, asked, refused(Error::TooManyRequests)),
                1 => {
                    self.late.push(asked.clone());
                    Client::Done(at, asked, Outcome::Unknown)
                }
                choice => {
                    self.heard = choice != 2;
                    let done = self.perform(&asked);
                    let outcome = if self.heard { done } else { Outcome::Unknown };
                    self.heard = true;
                    Client::Done(at, asked, outcome)
                }
            },
            Client::Done(at, asked, outcome) => {
                self.record(number as u32, at, asked, outcome);
                Client::Idle
            }
        };
    }

    fn record(
        &mut self,
        client: u32,
        called_at: Moment,
        asked: ClientRequest,
        mut outcome: Outcome,
    ) {
        // As in etcd, its revision is the newest one.
        if let Outcome::Answered(Answer::Compaction(answer)) = &mut outcome
            && self.random.once_in(2)
        {
            answer.header = header(self.model.head);
        }
        self.history.operations.push(Operation {
            who: Who::Nobody,
            known_index: 0,
            client,
            member: MemberId(1 + u64::from(client) % 3),
            request: asked,
            called_at,
            returned_at: self.now,
            outcome,
        });
    }

    fn append(&mut self, payload: RecordedPayload) {
        let index = self.history.entries.len() as u64 + 5;
        let entry = AppliedEntry {
            index,
            term: self.term,
            payload,
        };
        self.history.entries.push((self.now, entry));
    }

    fn apply(&mut self, mut request: InternalRaftRequest) -> Result<Response, Error> {
        self.next_request_id += 1;
        request.header = Some(RequestHeader {
            id: self.next_request_id,
            ..Default::default()
        });
        self.append(RecordedPayload::Request(request.encode_to_vec().into()));
        let result = self.model.apply(&request);
        if result.is_ok() {
            self.note_lease(&request);
        }
        self.past.push(self.model.now());
        result
    }

    fn note_lease(&mut self, request: &InternalRaftRequest) {
        if let Some(grant) = &request.lease_grant {
            let at = self.now + grant.ttl as u64 * SECOND;
            let deadline = Deadline {
                ttl_s: grant.ttl,
                at,
            };
            self.deadlines.insert(grant.id, deadline);
        }
        if let Some(revoke) = &request.lease_revoke {
            self.deadlines.remove(&revoke.id);
        }
    }

    fn done_late(&mut self) {
        if let Some(asked) = self.late.pop() {
            self.heard = false;
            self.perform(&asked);
            self.heard = true;
        }
    }

    fn job(&mut self) {
        match self.random.below(5) {
            0 => {
                self.term += 1;
                self.append(RecordedPayload::Empty);
                for deadline in self.deadlines.values_mut() {
                    deadline.at = self.now + deadline.ttl_s as u64 * SECOND;
                }
            }
            1 => {
                let checkpoints = self.deadlines.iter().take(1);
                let checkpoints = checkpoints.map(|(id, deadline)| LeaseCheckpoint {
                    id: *id,
                    remaining_ttl: deadline.at.saturating_sub(self.now).div_euclid(SECOND) as i64,
                });
                let request = InternalRaftRequest {
                    lease_checkpoint: Some(LeaseCheckpointRequest {
                        checkpoints: checkpoints.collect(),
                    }),
                    ..Default::default()
                };
                let _ = self.apply(request);
            }
            2 if self.random.once_in(4) => {
                let request = InternalRaftRequest {
                    alarm: Some(AlarmRequest {
                        action: 1,
                        member_id: 1,
                        alarm: 1,
                    }),
                    ..Default::default()
                };
                let _ = self.apply(request);
            }
            3 if self.plays(Trick::Phantom) => {
                let request = InternalRaftRequest {
                    put: Some(PutRequest {
                        key: "a".into(),
                        value: "nobody put this".into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                };
                let _ = self.apply(request);
            }
            _ => {}
        }
    }

    /// Ends the leases that have expired, mostly with a delay.
    fn expire(&mut self) {
        let now = self.now;
        let lag = self.random.below(SECOND);
        let due = |deadline: &Deadline| deadline.at + lag <= now;
        let mut ended: Vec<i64> = Vec::new();
        for (id, deadline) in &self.deadlines {
            if due(deadline) {
                ended.push(*id);
            }
        }
        for id in ended {
            if self.plays(Trick::KeepLease) {
                self.deadlines.remove(&id);
            } else {
                self.revoke(id);
            }
        }
        let lively = self
            .deadlines
            .iter()
            .find(|(_, deadline)| deadline.at > now + 2 * SECOND);
        if let Some(id) = lively.map(|(id, _)| *id)
            && self.plays(Trick::RevokeEarly)
        {
            self.revoke(id);
        }
    }

    fn revoke(&mut self, id: i64) {
        let request = InternalRaftRequest {
            lease_revoke: Some(LeaseRevokeRequest { id }),
            ..Default::default()
        };
        let _ = self.apply(request);
        self.deadlines.remove(&id);
    }

    /// Applies a client's request.
    fn perform(&mut self, asked: &ClientRequest) -> Outcome {
        if let Some(request) = requests::proposal(asked) {
            return self.propose(request);
        }
        match asked {
            ClientRequest::Range(request) => {
                let at = self.read_at(request.serializable);
                outcome(self.model.range(request, at), |mut range| {
                    range.header = header(at.head);
                    Answer::Range(range)
                })
            }
            ClientRequest::Txn(request) if is_read_only(request) => {
                let at = self.read_at(is_serializable(request));
                outcome(self.model.read_txn(request, at), |mut txn| {
                    txn.header = header(at.head);
                    Answer::Txn(txn)
                })
            }
            ClientRequest::LeaseKeepAlive { id } => Outcome::Answered(self.renew(*id)),
            ClientRequest::LeaseTimeToLive { id, keys } => Outcome::Answered(self.left(*id, *keys)),
            _ => Outcome::Unknown,
        }
    }

    fn read_at(&mut self, serializable: bool) -> At {
        if serializable {
            let behind = self.random.below(self.past.len().min(20) as u64) as usize;
            return self.past[self.past.len() - 1 - behind];
        }
        self.model.now()
    }

    fn propose(&mut self, request: InternalRaftRequest) -> Outcome {
        let is_put = request.put.as_ref().is_some_and(|put| put.lease == 0);
        if is_put && self.plays(Trick::LoseWrite) {
            let put = crate::proto::etcdserverpb::PutResponse {
                header: header(self.model.head + 1),
                prev_kv: None,
            };
            return Outcome::Answered(Answer::Put(put));
        }
        let again = request.clone();
        let result = self.apply(request);
        if result.is_ok() && is_put {
            if self.plays(Trick::ApplyTwice) {
                let _ = self.apply(again);
            } else if self.plays(Trick::ProposeTwice) {
                self.next_request_id -= 1;
                let _ = self.apply(again);
            } else if self.plays(Trick::RefuseDone) {
                return refused(Error::TooManyRequests);
            }
        }
        let head = self.model.head;
        outcome(result, |response| requests::answer(response, header(head)))
    }

    fn renew(&mut self, id: i64) -> Answer {
        let now = self.now;
        let lively = self
            .deadlines
            .get(&id)
            .is_some_and(|deadline| deadline.at > now + SECOND);
        if lively && self.plays(Trick::DenyLease) {
            return Answer::LeaseKeepAlive { ttl: 0 };
        }
        match self.deadlines.get_mut(&id) {
            Some(deadline) if deadline.at > now => {
                deadline.at = now + deadline.ttl_s as u64 * SECOND;
                Answer::LeaseKeepAlive {
                    ttl: deadline.ttl_s,
                }
            }
            _ => Answer::LeaseKeepAlive { ttl: 0 },
        }
    }

    fn left(&mut self, id: i64, keys: bool) -> Answer {
        let mut left = LeaseTimeToLiveResponse {
            header: header(self.model.head),
            id,
            ttl: -1,
            ..Default::default()
        };
        if let Some(deadline) = self.deadlines.get(&id).filter(|d| d.at > self.now) {
            left.ttl = ((deadline.at - self.now) / SECOND) as i64;
            left.granted_ttl = deadline.ttl_s;
            if keys {
                left.keys = self.model.attached(id, self.model.head);
            }
        }
        Answer::LeaseTimeToLive(left)
    }

    /// Lets all clients finish, and all leases end.
    fn rest(&mut self) {
        for number in 0..self.clients.len() {
            self.now += MILLISECOND;
            match std::mem::replace(&mut self.clients[number], Client::Idle) {
                Client::Idle => {}
                Client::Called(at, asked) => {
                    self.record(number as u32, at, asked, Outcome::Unknown)
                }
                Client::Done(at, asked, outcome) => self.record(number as u32, at, asked, outcome),
            }
        }
        for _ in 0..60 {
            self.now += SECOND;
            self.expire();
        }
        for mut stream in std::mem::take(&mut self.streams) {
            self.now += MILLISECOND;
            if self.random.once_in(2) {
                stream.finish(&mut self.random, &self.model, self.now);
            }
            self.history.watches.push(stream.watched);
        }
        self.history.calm.push((0, self.now));
    }
}

fn refused(error: Error) -> Outcome {
    Outcome::Refused(error.text().to_owned())
}

fn outcome<T>(result: Result<T, Error>, answer: impl FnOnce(T) -> Answer) -> Outcome {
    match result {
        Ok(response) => Outcome::Answered(answer(response)),
        Err(error) => refused(error),
    }
}

/// A header as members send it.
pub fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        cluster_id: 7,
        member_id: 8,
        revision,
        raft_term: 9,
    })
}

/// A value that no other request puts.
pub fn unique(random: &mut Random) -> Bytes {
    format!("v{}", random.next_number()).into()
}
