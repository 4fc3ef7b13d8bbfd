//! Election: as etcd's server-side election, which waits in the call itself. Who observes one has
//! a watch of this member's Watch service, with its bounds and its rights.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{StreamExt, once};
use tonic::{Request, Response, Status};

use super::watch::{Responses, WatchService};
use super::{arriving, caller, header};
use crate::error::Error;
use crate::proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion,
};
use crate::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse, election_server::Election,
};
use crate::proto::{EncodedKv, Event, KeyValue};
use crate::service::caller::Caller;
use crate::service::concurrency::Concurrency;
use crate::service::handle::Handle;
use crate::types::KeyRange;

/// News of an election that wait for the network; who does not read is followed no further.
const WAITING_NEWS: usize = 1;

/// The type of a deletion in an event.
const DELETE: i32 = 1;

pub struct ElectionService {
    handle: Handle,
    concurrency: Concurrency,
    watch: WatchService,
}

impl ElectionService {
    pub fn new(handle: Handle, concurrency: Concurrency, watch: WatchService) -> Self {
        Self {
            handle,
            concurrency,
            watch,
        }
    }
}

/// The key that a request has to name.
fn given(leader: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    leader.ok_or_else(|| Error::LeaderNotGiven.into())
}

#[tonic::async_trait]
impl Election for ElectionService {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let caller = caller::of(&request);
        let kept = arriving::kept(&request);
        let CampaignRequest { name, lease, value } = request.into_inner();
        let entered = self
            .concurrency
            .enter_election(&caller, &name, &value, lease);
        // Boxed: what it takes is free again while the call waits.
        let mut candidate = Box::pin(entered).await.map_err(Error::without_code)?;
        // What waits holds no more than its place; the name is part of its key.
        let name_bytes = name.len();
        drop((name, value));
        kept.lock().clear();
        candidate.lead().await.map_err(Error::without_code)?;
        Ok(Response::new(CampaignResponse {
            header: Some(header::at(&self.handle, candidate.revision)),
            leader: Some(LeaderKey {
                name: candidate.key().slice(..name_bytes),
                key: candidate.key().clone(),
                rev: candidate.created,
                lease: candidate.lease,
            }),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        let leader = given(request.leader)?;
        let (created, lease) = (leader.rev, leader.lease);
        let proclaimed =
            self.concurrency
                .proclaim(&caller, &leader.key, created, request.value, lease);
        let revision = proclaimed.await.map_err(Error::without_code)?;
        Ok(Response::new(ProclaimResponse {
            header: Some(header::at(&self.handle, revision)),
        }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        let read = self.concurrency.leader(&caller, &request.name).await;
        let (leader, revision) = read.map_err(Error::without_code)?;
        let kv = leader.ok_or(Error::ElectionNoLeader)?;
        Ok(Response::new(response(
            &self.handle,
            Leader { kv, revision },
        )))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let caller = caller::of(&request);
        // Without a lease etcd grants one here too, which serves nothing.
        let leader = given(request.into_inner().leader)?;
        let resigned = self.concurrency.resign(&caller, &leader.key, leader.rev);
        let revision = resigned.await.map_err(Error::without_code)?;
        Ok(Response::new(ResignResponse {
            header: Some(header::at(&self.handle, revision)),
        }))
    }

    type ObserveStream = ReceiverStream<Result<LeaderResponse, Status>>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let caller = caller::of(&request);
        let (news, receiver) = mpsc::channel(WAITING_NEWS);
        let observer = Observer {
            handle: self.handle.clone(),
            concurrency: self.concurrency.clone(),
            watch: self.watch.clone(),
            caller,
            name: request.into_inner().name,
        };
        self.handle.spawn(async move {
            tokio::select! {
                biased;
                // As in etcd the stream ends without an error, whatever ended it.
                _ = observer.run(&news) => {}
                () = news.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The leader of an election, as of a revision.
struct Leader {
    kv: KeyValue,
    revision: i64,
}

fn response(handle: &Handle, leader: Leader) -> LeaderResponse {
    LeaderResponse {
        header: Some(header::at(handle, leader.revision)),
        kv: Some(EncodedKv::from(&leader.kv)),
    }
}

/// Why there are no more news.
struct Ended;

type News = mpsc::Sender<Result<LeaderResponse, Status>>;

struct Observer {
    handle: Handle,
    concurrency: Concurrency,
    watch: WatchService,
    caller: Caller,
    name: Bytes,
}

impl Observer {
    /// Tells who leads, and what each leader proclaims, as long as that can be known.
    async fn run(&self, news: &News) -> Result<(), Ended> {
        loop {
            let caller = self.caller.again().map_err(|_| Ended)?;
            let read = self.concurrency.leader(&caller, &self.name).await;
            let leader = match read.map_err(|_| Ended)? {
                (Some(kv), revision) => Leader { kv, revision },
                (None, revision) => self.first_after(revision).await?,
            };
            let (key, revision) = (leader.kv.key.clone(), leader.revision);
            self.tell(news, leader).await?;
            self.follow(news, key, revision).await?;
        }
    }

    async fn tell(&self, news: &News, leader: Leader) -> Result<(), Ended> {
        let response = response(&self.handle, leader);
        news.send(Ok(response)).await.map_err(|_| Ended)
    }

    /// The first who campaigns after a revision.
    async fn first_after(&self, revision: i64) -> Result<Leader, Ended> {
        let mut events = self.events(&Concurrency::candidates(&self.name), revision);
        loop {
            let (_, batch) = next(&mut events).await?;
            let put = batch.into_iter().find_map(|event| event.ok());
            if let Some(kv) = put {
                let revision = kv.mod_revision;
                return Ok(Leader { kv, revision });
            }
        }
    }

    /// Tells what a leader proclaims after a revision, until its key is gone.
    async fn follow(&self, news: &News, key: Bytes, revision: i64) -> Result<(), Ended> {
        let mut events = self.events(&KeyRange::Point(key), revision + 1);
        loop {
            let (revision, batch) = next(&mut events).await?;
            for event in batch {
                match event {
                    Ok(kv) => self.tell(news, Leader { kv, revision }).await?,
                    Err(Deleted) => return Ok(()),
                }
            }
        }
    }

    fn events(&self, range: &KeyRange, start_revision: i64) -> Responses {
        let (key, range_end) = range.to_wire();
        let create = WatchCreateRequest {
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(range_end),
            start_revision,
            ..Default::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        self.watch.open(self.caller.clone(), once(Ok(request)))
    }
}

struct Deleted;

/// The next events of a watch, and the revision of their header.
async fn next(responses: &mut Responses) -> Result<(i64, Vec<Result<KeyValue, Deleted>>), Ended> {
    let response = responses.next().await;
    let Some(Ok(response)) = response else {
        return Err(Ended);
    };
    let WatchResponse {
        header,
        canceled,
        events,
        ..
    } = response;
    if canceled {
        return Err(Ended);
    }
    let events = events.iter().map(|event| match event.decoded() {
        Ok(Event { r#type, .. }) if r#type == DELETE => Ok(Err(Deleted)),
        Ok(Event { kv: Some(kv), .. }) => Ok(Ok(kv)),
        Ok(_) | Err(_) => Err(Ended),
    });
    let events: Result<Vec<_>, Ended> = events.collect();
    Ok((header.map_or(0, |header| header.revision), events?))
}
