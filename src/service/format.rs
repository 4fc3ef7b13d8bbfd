//! Whether all members know what a request has them store.
//!
//! An older program answers that it does not know a request and continues, with another state than
//! the others. For users and roles that would be a member that serves everybody. So the request
//! that makes the first of them is refused while a member says that it does not know the format.
//! From then on a member that knows it not starts on no data of this cluster (`storage::schema`).
//!
//! A member that does not answer is taken to know it: as in etcd, users can be added while one is
//! away. Should that one be older, it has to be replaced by a newer program before it is started.

use std::time::Duration;

use futures_util::future::join_all;

use super::caller::Caller;
use super::handle::Handle;
use crate::error::Error;
use crate::proto::etcdserverpb::InternalRaftRequest;
use crate::proto::etchedpeer::{Nothing, PeerRequest, peer_request, peer_response};
use crate::storage::schema::FORMAT_WITH_USERS;
use crate::types::MemberId;

/// How long a member is waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

impl Handle {
    /// # Errors
    /// The request begins something that a member does not know.
    pub(super) async fn check_format(
        &self,
        caller: &Caller,
        request: &InternalRaftRequest,
    ) -> Result<(), Error> {
        // Without any, all other changes of users and roles are refused.
        let begins = request.auth_user_add.is_some() || request.auth_role_add.is_some();
        if !begins || self.auth().was_changed() {
            return Ok(());
        }
        Box::pin(self.check_format_of_all(caller)).await
    }

    async fn check_format_of_all(&self, caller: &Caller) -> Result<(), Error> {
        let peers = self.shared.status().peers_of(self.shared.member);
        let asked = peers.into_iter().map(|peer| async move {
            let format = self.format_known_by(peer.member).await;
            (peer.member, format)
        });
        let answers = self.within(caller, join_all(asked)).await?;
        let mut all_know = true;
        for (member, answer) in answers {
            let reason = match answer {
                Ok(format) if format >= FORMAT_WITH_USERS => continue,
                Ok(format) => format!("it knows formats up to {format}"),
                Err(error) => format!("it does not answer: {error}"),
            };
            all_know &= answer.is_err();
            tracing::warn!(
                "remote-member-id" = %member,
                reason,
                "users and roles need all members to know them"
            );
        }
        match all_know {
            true => Ok(()),
            false => Err(Error::NotCapable),
        }
    }

    async fn format_known_by(&self, member: MemberId) -> Result<u64, Error> {
        let request = PeerRequest {
            request: Some(peer_request::Request::Describe(Nothing {})),
        };
        let answer = self.network.ask(member, request, ANSWER_LIMIT).await?;
        match answer.response {
            Some(peer_response::Response::Description(description)) => Ok(description.data_format),
            _ => Err(Error::UnknownMethod),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::env::Boxed;
    use crate::proto::etcdserverpb::{AuthRoleAddRequest, AuthUserAddRequest};
    use crate::proto::etchedpeer::{Description, PeerResponse};
    use crate::raft::Message;
    use crate::service::fixture;
    use crate::transport::{Inbound, Network, Peer, PeerMessage, SnapshotDir};

    type Answer = Result<PeerResponse, Error>;

    /// The members 1 and further answer like this.
    struct Members(Vec<Answer>);

    impl Network for Members {
        fn attach(&self, _: Arc<dyn Inbound>) {}
        fn send(&self, _: MemberId, _: Vec<PeerMessage>) {}
        fn send_snapshot(&self, _: Message, _: Arc<SnapshotDir>) {}
        fn set_peers(&self, _: Vec<Peer>) {}
        fn ask(&self, member: MemberId, _: PeerRequest, _: Duration) -> Boxed<Answer> {
            let answer = self.0[member.0 as usize - 1].clone();
            Box::pin(async move { answer })
        }
        fn active_since(&self, _: MemberId) -> Option<Duration> {
            None
        }
    }

    fn knows(format: u64) -> Answer {
        Ok(PeerResponse {
            response: Some(peer_response::Response::Description(Description {
                data_format: format,
                ..Default::default()
            })),
        })
    }

    #[tokio::test]
    async fn users_begin_when_all_members_know_them() {
        let user = InternalRaftRequest {
            auth_user_add: Some(AuthUserAddRequest::default()),
            ..Default::default()
        };
        let role = InternalRaftRequest {
            auth_role_add: Some(AuthRoleAddRequest::default()),
            ..Default::default()
        };
        let put = InternalRaftRequest::default();
        let refused = Err(Error::NotCapable);
        for (answers, expected) in [
            (vec![], Ok(())),
            (vec![knows(2), knows(2)], Ok(())),
            (vec![knows(2), knows(7)], Ok(())),
            (vec![knows(2), knows(0)], refused),
            (vec![knows(1), knows(2)], refused),
            (vec![knows(2), Err(Error::Unhealthy)], Ok(())),
            (vec![knows(1), Err(Error::Unhealthy)], refused),
        ] {
            let members = (1..).zip(&answers).map(|(id, _)| (MemberId(id), id == 2));
            let members: Vec<_> = members.chain([(fixture::ME, false)]).collect();
            let (handle, _) = fixture::with_network(Arc::new(Members(answers.clone())));
            fixture::set_members(&handle, &members);
            let caller = Caller::nobody();
            for request in [&user, &role] {
                let found = handle.check_format(&caller, request).await;
                assert_eq!(found, expected, "{answers:?}");
            }
            assert_eq!(handle.check_format(&caller, &put).await, Ok(()));
            // Once there are any, nobody is asked any more.
            fixture::apply(&handle, fixture::auth_requests(&[("root", &[])]));
            assert_eq!(handle.check_format(&caller, &user).await, Ok(()));
        }
    }
}
