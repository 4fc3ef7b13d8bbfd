//! The service Lease, of which only renewals come here; the rest is passed on.

use tonic::{Request, Response, Status, Streaming};

use super::group::{Answers, Groups};
use super::renewals::Renewals;
use crate::proto::etcdserverpb::lease_server::Lease;
use crate::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};

/// See the module.
#[derive(Clone)]
pub struct LeaseProxy(pub Groups<Renewals>);

fn elsewhere<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the call is passed on elsewhere"))
}

#[tonic::async_trait]
impl Lease for LeaseProxy {
    type LeaseKeepAliveStream = Answers<Renewals>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.0.join(request).await
    }

    async fn lease_grant(
        &self,
        _: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        elsewhere()
    }

    async fn lease_revoke(
        &self,
        _: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        elsewhere()
    }

    async fn lease_time_to_live(
        &self,
        _: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        elsewhere()
    }

    async fn lease_leases(
        &self,
        _: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        elsewhere()
    }
}
