//! Cluster: who belongs to it.

use tonic::{Request, Response, Status};

use super::header;
use crate::error::Error;
use crate::node::Handle;
use crate::node::members::shown;
use crate::proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, ResponseHeader, cluster_server::Cluster,
};
use crate::proto::etchedpeer::{Nothing, member_change::Change};
use crate::proto::membershippb;
use crate::types::MemberId;

pub struct ClusterService {
    handle: Handle,
}

impl ClusterService {
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// The header of this service carries no revision.
    fn header(&self) -> Option<ResponseHeader> {
        Some(header::at(&self.handle, 0))
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(
        &self,
        _request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        Err(Error::MembershipNotBuilt.into())
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let id = MemberId(request.into_inner().id);
        let change = Change::Remove(Nothing {});
        let members = self.handle.change_members(id, change, 0).await?;
        Ok(Response::new(MemberRemoveResponse {
            header: self.header(),
            members: members.iter().map(shown).collect(),
        }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let request = request.into_inner();
        let change = Change::Update(membershippb::RaftAttributes {
            peer_urls: request.peer_ur_ls,
            is_learner: false,
        });
        let id = MemberId(request.id);
        let members = self.handle.change_members(id, change, 0).await?;
        Ok(Response::new(MemberUpdateResponse {
            header: self.header(),
            members: members.iter().map(shown).collect(),
        }))
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.handle.linearizable_view().await?;
        }
        let status = self.handle.shared().status();
        Ok(Response::new(MemberListResponse {
            header: self.header(),
            members: status.members.iter().map(shown).collect(),
        }))
    }

    async fn member_promote(
        &self,
        _request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(Error::MembershipNotBuilt.into())
    }
}
