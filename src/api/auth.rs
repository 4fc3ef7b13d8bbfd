//! Auth: users, roles and their tokens. All is in the log, reads too, so that an answer is
//! never old; etcd does the same.
//!
//! Passwords end here: the log gets hashes. A log-in is checked before it is proposed, at the auth
//! revision of a state that shows every change answered before. Where that has moved when the entry
//! is applied, no token is issued and the check is made again.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tonic::{Request, Response, Status};

use super::answers::Answers;
use super::{caller, header};
use crate::error::Error;
use crate::notices::Notices;
use crate::proto::etcdserverpb::auth_server::Auth;
use crate::proto::etcdserverpb::*;
use crate::service::caller::{Caller, Identity, User};
use crate::service::handle::Handle;
use crate::service::passwords::Password;
use crate::service::passwords::lines::{Requester, Source};
use crate::service::permission;
use crate::service::tokens::simple;
use crate::state::Response as Applied;
use crate::state::auth::store;
use crate::types::Remote;

/// A log-in is started over so often while users and roles change.
const MAX_CHECKS: usize = 16;

/// Of a name in the log, which anybody may choose.
const MAX_SHOWN_CHARS: usize = 256;

fn shown_name(name: &str) -> &str {
    let end = name.char_indices().nth(MAX_SHOWN_CHARS);
    &name[..end.map_or(name.len(), |(at, _)| at)]
}

/// Cheap to clone.
#[derive(Clone)]
pub struct AuthService {
    handle: Handle,
    answers: Answers,
    source: Source,
    refusals: Arc<Notices>,
}

impl AuthService {
    pub fn new(handle: Handle, answers: Answers) -> Self {
        Self {
            handle,
            answers,
            source: Source::default(),
            refusals: Arc::default(),
        }
    }

    /// The same service for one client.
    pub fn of_client(&self, remote: Remote) -> Self {
        Self {
            source: remote.into(),
            ..self.clone()
        }
    }

    /// Says once a minute for an address that a log-in came to nothing; some cost who asks for them
    /// less than a line of the log.
    fn report_refusal(&self, name: &str, error: &Error) {
        if matches!(error, Error::AuthNotEnabled | Error::TooManyRequests) {
            return;
        }
        let now = self.handle.shared().clock.now();
        if self.refusals.is_news(&format!("{:?}", self.source), now) {
            let user = shown_name(name);
            tracing::warn!(user, %error, "invalid authentication was requested");
        }
    }

    /// For whom a user's password waits to be hashed.
    fn requester(&self, name: &str) -> Requester {
        Requester {
            source: self.source,
            // Of any length, it would wait uncounted.
            name: shown_name(name).to_owned(),
        }
    }

    /// The hash of a password, as the log has it; nobody who may not do what it is for has
    /// one computed.
    async fn hash(
        &self,
        caller: &Caller,
        name: &str,
        password: Password,
        purpose: InternalRaftRequest,
    ) -> Result<String, Error> {
        password.check_length()?;
        if !self.handle.seems_permitted(caller, &purpose) {
            // As of now it may be permitted after all.
            let view = self.handle.linearizable_view(caller).await?;
            permission::check_request(&view.auth, caller, &purpose)?;
        }
        let hashed = self.handle.passwords().hash(self.requester(name), password);
        let hash = self.handle.within(caller, hashed).await??;
        Ok(BASE64.encode(hash))
    }

    /// Checks a password; returns the auth revision at which it was right.
    async fn check_password(
        &self,
        caller: &Caller,
        name: &str,
        password: &Password,
    ) -> Result<u64, Error> {
        let auth = self.handle.linearizable_view(caller).await?.auth.clone();
        if !auth.is_enabled() {
            return Err(Error::AuthNotEnabled);
        }
        let user = auth.user(name);
        if user.is_some_and(|user| user.no_password) {
            return Err(Error::NoPasswordUser);
        }
        let hash = user.map(|user| user.password_hash.clone());
        let passwords = self.handle.passwords();
        let matched = passwords.matches(self.requester(name), password.clone(), hash);
        match self.handle.within(caller, matched).await?? {
            true => Ok(auth.revision()),
            false => Err(Error::AuthFailed),
        }
    }

    /// A token for somebody whose password is right.
    async fn log_in(
        &self,
        caller: &Caller,
        name: String,
        password: Password,
    ) -> Result<AuthenticateResponse, Error> {
        let tokens = self.handle.tokens().clone();
        for _ in 0..MAX_CHECKS {
            let auth_revision = self.check_password(caller, &name, &password).await?;
            let user = User {
                name: name.clone(),
                auth_revision,
            };
            let simple_token = match tokens.are_simple() {
                true => simple::draw_prefix(self.handle.shared().rng.as_ref()),
                false => String::new(),
            };
            let request = InternalRaftRequest {
                authenticate: Some(InternalAuthenticateRequest {
                    name: name.clone(),
                    password: String::new(),
                    simple_token,
                }),
                ..Default::default()
            };
            // Of the entry's header, which says at which revision the check was made.
            let checked = caller.as_identity(Identity::User(user.clone().into()));
            let Applied::Authenticate(mut login) = self.handle.propose(&checked, request).await?
            else {
                return Err(Error::UnknownMethod);
            };
            if login.stale {
                continue;
            }
            if !tokens.are_simple() {
                let (tokens, requester) = (tokens.clone(), self.requester(&name));
                let passwords = self.handle.passwords();
                let signed = passwords.compute(requester, move || tokens.sign(&user));
                login.response.token = self.handle.within(caller, signed).await???;
            }
            return Ok(login.response);
        }
        Err(Error::AuthOldRevision)
    }
}

/// The body of a method: the request as it is logged, and the response's kind.
macro_rules! execute {
    ($self:ident, $request:ident, $kind:ident, $field:ident) => {{
        let caller = caller::of(&$request);
        execute!($self, &caller, $request.into_inner(), $kind, $field)
    }};
    ($self:ident, $caller:expr, $message:expr, $kind:ident, $field:ident) => {{
        let request = InternalRaftRequest {
            $field: Some($message),
            ..Default::default()
        };
        let held = $self.answers.room_for_proposal($caller, &request).await?;
        let Applied::$kind(mut response) = $self.handle.propose($caller, request).await? else {
            return Err(Error::UnknownMethod.into());
        };
        header::fill(&$self.handle, &mut response.header);
        $self.answers.respond(response, held)
    }};
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(
        &self,
        request: Request<AuthEnableRequest>,
    ) -> Result<Response<AuthEnableResponse>, Status> {
        execute!(self, request, AuthEnable, auth_enable)
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        execute!(self, request, AuthDisable, auth_disable)
    }

    async fn auth_status(
        &self,
        request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        execute!(self, request, AuthStatus, auth_status)
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        // Whatever else is shown, the password counts.
        let caller = caller::of(&request);
        let caller = caller.as_identity(Identity::Nobody);
        let mut message = request.into_inner();
        let password = Password::take(&mut message.password);
        let name = message.name;
        let mut response = match self.log_in(&caller, name.clone(), password).await {
            Ok(response) => response,
            Err(error) => {
                self.report_refusal(&name, &error);
                return Err(error.into());
            }
        };
        header::fill(&self.handle, &mut response.header);
        Ok(Response::new(response))
    }

    async fn user_add(
        &self,
        request: Request<AuthUserAddRequest>,
    ) -> Result<Response<AuthUserAddResponse>, Status> {
        let caller = caller::of(&request);
        let mut message = request.into_inner();
        let password = Password::take(&mut message.password);
        if !message.options.is_some_and(|options| options.no_password) {
            let purpose = InternalRaftRequest {
                auth_user_add: Some(message.clone()),
                ..Default::default()
            };
            message.hashed_password = self.hash(&caller, &message.name, password, purpose).await?;
        }
        execute!(self, &caller, message, AuthUserAdd, auth_user_add)
    }

    async fn user_get(
        &self,
        request: Request<AuthUserGetRequest>,
    ) -> Result<Response<AuthUserGetResponse>, Status> {
        execute!(self, request, AuthUserGet, auth_user_get)
    }

    async fn user_list(
        &self,
        request: Request<AuthUserListRequest>,
    ) -> Result<Response<AuthUserListResponse>, Status> {
        execute!(self, request, AuthUserList, auth_user_list)
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        execute!(self, request, AuthUserDelete, auth_user_delete)
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let caller = caller::of(&request);
        let mut message = request.into_inner();
        let password = Password::take(&mut message.password);
        if !password.is_empty() {
            let purpose = InternalRaftRequest {
                auth_user_change_password: Some(message.clone()),
                ..Default::default()
            };
            message.hashed_password = self.hash(&caller, &message.name, password, purpose).await?;
        }
        execute!(
            self,
            &caller,
            message,
            AuthUserChangePassword,
            auth_user_change_password
        )
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        execute!(self, request, AuthUserGrantRole, auth_user_grant_role)
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        execute!(self, request, AuthUserRevokeRole, auth_user_revoke_role)
    }

    async fn role_add(
        &self,
        request: Request<AuthRoleAddRequest>,
    ) -> Result<Response<AuthRoleAddResponse>, Status> {
        execute!(self, request, AuthRoleAdd, auth_role_add)
    }

    async fn role_get(
        &self,
        request: Request<AuthRoleGetRequest>,
    ) -> Result<Response<AuthRoleGetResponse>, Status> {
        execute!(self, request, AuthRoleGet, auth_role_get)
    }

    async fn role_list(
        &self,
        request: Request<AuthRoleListRequest>,
    ) -> Result<Response<AuthRoleListResponse>, Status> {
        execute!(self, request, AuthRoleList, auth_role_list)
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        execute!(self, request, AuthRoleDelete, auth_role_delete)
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        if let Some(permission) = &request.get_ref().perm {
            store::check_kind(permission)?;
        }
        execute!(
            self,
            request,
            AuthRoleGrantPermission,
            auth_role_grant_permission
        )
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        execute!(
            self,
            request,
            AuthRoleRevokePermission,
            auth_role_revoke_permission
        )
    }
}
