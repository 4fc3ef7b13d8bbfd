//! Cluster: who belongs to it.

use prost::Message;
use tonic::{Request, Response, Status};

use super::answers::Answers;
use super::{caller, header};
use crate::proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, ResponseHeader, cluster_server::Cluster,
};
use crate::service::handle::Handle;
use crate::service::membership::shown;
use crate::types::MemberId;

pub struct ClusterService {
    handle: Handle,
    answers: Answers,
}

impl ClusterService {
    pub fn new(handle: Handle, answers: Answers) -> Self {
        Self { handle, answers }
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
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        let (member, members) = self
            .handle
            .add_member(&caller, &request.peer_ur_ls, request.is_learner)
            .await?;
        Ok(Response::new(MemberAddResponse {
            header: self.header(),
            member: Some(member),
            members,
        }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let caller = caller::of(&request);
        let id = MemberId(request.into_inner().id);
        let members = self.handle.remove_member(&caller, id).await?;
        Ok(Response::new(MemberRemoveResponse {
            header: self.header(),
            members,
        }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let caller = caller::of(&request);
        let request = request.into_inner();
        let id = MemberId(request.id);
        let urls = request.peer_ur_ls;
        let members = self.handle.update_member(&caller, id, urls).await?;
        Ok(Response::new(MemberUpdateResponse {
            header: self.header(),
            members,
        }))
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let caller = caller::of(&request);
        if request.into_inner().linearizable {
            self.handle.linearizable_view(&caller).await?;
        }
        let status = self.handle.shared().status();
        let response = MemberListResponse {
            header: self.header(),
            members: status.members.iter().map(shown).collect(),
        };
        let held = self.answers.room_for(&caller, response.encoded_len());
        self.answers.respond(response, held.await?)
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let caller = caller::of(&request);
        let id = MemberId(request.into_inner().id);
        let members = self.handle.promote_member(&caller, id).await?;
        Ok(Response::new(MemberPromoteResponse {
            header: self.header(),
            members,
        }))
    }
}
