//! Cluster: who belongs to it.

use tonic::{Request, Response, Status};

use super::header;
use crate::error::Error;
use crate::node::Handle;
use crate::proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, ResponseHeader, cluster_server::Cluster,
};
use crate::proto::membershippb;
use crate::state::Response as Applied;
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

/// A member as this service shows it.
fn member(member: &membershippb::Member) -> Member {
    let attributes = member.member_attributes.clone().unwrap_or_default();
    let raft = member.raft_attributes.clone().unwrap_or_default();
    Member {
        id: member.id,
        name: attributes.name,
        peer_ur_ls: raft.peer_urls,
        client_ur_ls: attributes.client_urls,
        is_learner: raft.is_learner,
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
        _request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(Error::MembershipNotBuilt.into())
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let request = request.into_inner();
        let id = MemberId(request.id);
        let status = self.handle.shared().status();
        let current = status
            .members
            .iter()
            .find(|member| member.id == id.0)
            .ok_or(Error::MemberNotFound)?;
        let raft = membershippb::RaftAttributes {
            peer_urls: request.peer_ur_ls,
            is_learner: current
                .raft_attributes
                .as_ref()
                .is_some_and(|raft| raft.is_learner),
        };
        let Applied::Members(members) = self.handle.update_member(id, raft).await? else {
            return Err(Error::UnknownMethod.into());
        };
        Ok(Response::new(MemberUpdateResponse {
            header: self.header(),
            members: members.iter().map(member).collect(),
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
            members: status.members.iter().map(member).collect(),
        }))
    }

    async fn member_promote(
        &self,
        _request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(Error::MembershipNotBuilt.into())
    }
}
