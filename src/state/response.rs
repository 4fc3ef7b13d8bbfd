//! The responses to applied requests.

use prost::Message;

use crate::proto::etcdserverpb::{
    AlarmResponse, AuthDisableResponse, AuthEnableResponse, AuthRoleAddResponse,
    AuthRoleDeleteResponse, AuthRoleGetResponse, AuthRoleGrantPermissionResponse,
    AuthRoleListResponse, AuthRoleRevokePermissionResponse, AuthStatusResponse,
    AuthUserAddResponse, AuthUserChangePasswordResponse, AuthUserDeleteResponse,
    AuthUserGetResponse, AuthUserGrantRoleResponse, AuthUserListResponse,
    AuthUserRevokeRoleResponse, AuthenticateResponse, CompactionResponse, DeleteRangeResponse,
    LeaseCheckpointResponse, LeaseGrantResponse, LeaseRevokeResponse, PutResponse, TxnResponse,
};
use crate::proto::membershippb::Member;

/// Builds the enum, and what is the same for all messages.
macro_rules! responses {
    ($($name:ident($message:ident),)*) => {
        /// The response to an applied request; headers have only the revision.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Response {
            $($name($message),)*
            /// Its token is that of the log; see `Authenticated`.
            Authenticate(Authenticated),
            /// The members after a change of membership.
            Members(Vec<Member>),
            /// Requests without a response.
            Done,
        }

        impl Response {
            /// The size of its message; none if etcd has no message for it.
            pub fn encoded_len(&self) -> Option<usize> {
                Some(match self {
                    $(Response::$name(response) => response.encoded_len(),)*
                    Response::Authenticate(authenticated) => authenticated.response.encoded_len(),
                    Response::Members(_) | Response::Done => return None,
                })
            }
        }
    };
}

responses! {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compaction(CompactionResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    LeaseCheckpoint(LeaseCheckpointResponse),
    Alarm(AlarmResponse),
    AuthEnable(AuthEnableResponse),
    AuthDisable(AuthDisableResponse),
    AuthStatus(AuthStatusResponse),
    AuthUserAdd(AuthUserAddResponse),
    AuthUserGet(AuthUserGetResponse),
    AuthUserList(AuthUserListResponse),
    AuthUserDelete(AuthUserDeleteResponse),
    AuthUserChangePassword(AuthUserChangePasswordResponse),
    AuthUserGrantRole(AuthUserGrantRoleResponse),
    AuthUserRevokeRole(AuthUserRevokeRoleResponse),
    AuthRoleAdd(AuthRoleAddResponse),
    AuthRoleGet(AuthRoleGetResponse),
    AuthRoleList(AuthRoleListResponse),
    AuthRoleDelete(AuthRoleDeleteResponse),
    AuthRoleGrantPermission(AuthRoleGrantPermissionResponse),
    AuthRoleRevokePermission(AuthRoleRevokePermissionResponse),
}

/// The response to a log-in. The password was checked before the entry was proposed, at the
/// revision that the entry's header names.
#[derive(Clone, PartialEq)]
pub struct Authenticated {
    /// Without a token if the proposer asked for none, because it signs tokens itself.
    pub response: AuthenticateResponse,
    /// The auth revision at this entry.
    pub auth_revision: u64,
    /// True if users or roles changed between the check and this entry. No token was issued: the
    /// password has to be checked again.
    pub stale: bool,
}

impl std::fmt::Debug for Authenticated {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticated")
            .field("auth_revision", &self.auth_revision)
            .field("stale", &self.stale)
            .finish_non_exhaustive()
    }
}
