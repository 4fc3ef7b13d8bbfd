//! Lease: granted and revoked through the raft log; renewed by the leader's clock alone.

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::answers::Answers;
use super::received::received;
use super::status_text::broken_stream;
use super::{ApiSettings, caller, header, spans};
use crate::budget::Held;
use crate::error::Error;
use crate::proto::etcdserverpb::{
    InternalRaftRequest, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest,
    LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    lease_server::Lease,
};
use crate::service::caller::Caller;
use crate::service::handle::Handle;
use crate::service::rpcs;
use crate::state::Response as Applied;
use crate::state::lease;
use crate::types::LeaseId;

/// Answers of a keep-alive stream that wait for the network.
const WAITING_ANSWERS: usize = 16;
/// Of a lease in the list of all, at most.
const LISTED_BYTES: usize = 13;

pub struct LeaseService {
    handle: Handle,
    settings: ApiSettings,
    answers: Answers,
}

impl LeaseService {
    pub fn new(handle: Handle, settings: ApiSettings, answers: Answers) -> Self {
        Self {
            handle,
            settings,
            answers,
        }
    }

    /// Room for the names of a lease's keys.
    async fn room_for_keys(&self, caller: &Caller, id: LeaseId) -> Result<Option<Held>, Error> {
        let view = self.handle.view();
        let bytes = self.answers.read(caller, move || {
            Ok(lease::attached_keys_bytes(view.read(), id)?)
        });
        let bytes = bytes.await?;
        self.answers.room_for(caller, bytes).await
    }
}

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        let mut response = self.handle.grant_lease(&caller, request).await?;
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        let caller = caller.in_span(|call| spans::lease_revoke(call, &request));
        let request = InternalRaftRequest {
            lease_revoke: Some(request),
            ..Default::default()
        };
        let Applied::LeaseRevoke(mut response) = self.handle.propose(&caller, request).await?
        else {
            return Err(Error::UnknownMethod.into());
        };
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let caller = caller::of(&request);
        let method = (rpcs::LEASE, "LeaseKeepAlive");
        let requests = request.into_inner();
        let mut requests = received(self.handle.shared(), method, requests);
        let handle = self.handle.clone();
        let max_request_bytes = self.settings.max_request_bytes;
        let (sender, receiver) = mpsc::channel(WAITING_ANSWERS);
        let spawner = self.handle.clone();
        spawner.spawn(async move {
            // Ends with the client's side of the stream, or with its connection.
            while let Some(request) = requests.next().await {
                let request = match request {
                    Ok(request) => request,
                    Err(status) => {
                        let status = broken_stream(&status, max_request_bytes);
                        // A client that has gone needs no error.
                        let _ = sender.send(Err(status)).await;
                        return;
                    }
                };
                // The header is made first, so that it never shows a revision at which the
                // lease may already be gone.
                let header = header::now(&handle);
                let renewed = match caller.again() {
                    Ok(caller) => {
                        let caller = caller.in_span(|call| spans::lease_renew(call, request.id));
                        handle.renew_lease(&caller, LeaseId(request.id)).await
                    }
                    Err(error) => Err(error),
                };
                let failed = renewed.is_err();
                let answer = renewed.map(|ttl| LeaseKeepAliveResponse {
                    header: Some(header),
                    id: request.id,
                    ttl,
                });
                let sent = sender.send(answer.map_err(Status::from)).await;
                if failed || sent.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        let id = LeaseId(request.id);
        self.handle.may_ask_about_leases(&caller)?;
        let held = match request.keys {
            true => self.room_for_keys(&caller, id).await?,
            false => None,
        };
        let left = self.handle.lease_left(&caller, id, request.keys).await?;
        let mut response = left.unwrap_or_else(|| LeaseTimeToLiveResponse {
            id: request.id,
            ttl: -1,
            ..Default::default()
        });
        response.header = Some(header::now(&self.handle));
        self.answers.respond(response, held)
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let caller = caller::of(&request);
        self.handle.may_ask_about_leases(&caller)?;
        let leases = self.handle.shared().deadlines.lock().len();
        let held = self.answers.room_for(&caller, leases * LISTED_BYTES);
        let held = held.await?;
        let ids = self.handle.list_leases(&caller).await?;
        let response = LeaseLeasesResponse {
            header: Some(header::now(&self.handle)),
            leases: ids.into_iter().map(|id| LeaseStatus { id: id.0 }).collect(),
        };
        self.answers.respond(response, held)
    }
}
