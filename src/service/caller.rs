//! Who makes a request, until when it waits for the response, and in which trace span.
//!
//! Every surface creates one `Caller` per request (`api` from a call's metadata, `http` for a
//! probe, `peer` for another member's RPC, `jobs` for the member itself), and nothing in `service`
//! proposes for a client or reads what it asks for without one: permission and deadline follow
//! from it.
//!
//! A span without a subscriber and an anonymous caller allocate nothing.

use std::sync::Arc;
use std::time::Duration;

use tracing::Span;

use crate::error::Error;
use crate::probe::{self, Defect};
use crate::proto::etcdserverpb::RequestHeader;
use crate::state::auth::verdict::MEMBER_REVISION;
use crate::trace::TimedSpan;

/// The identity of a caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// A client that is not authenticated.
    #[default]
    Nobody,
    /// A client that showed a token which is not valid.
    Invalid,
    User(Arc<User>),
    /// This member, or another one of the cluster.
    Member,
}

/// An authenticated user, with the auth revision at which it was authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub auth_revision: u64,
}

/// What a client showed to say who it is.
pub trait Credentials: std::fmt::Debug + Send + Sync {
    /// Whose they are now. A token may have expired, and its user's auth revision is that of now.
    fn identity(&self) -> Result<Identity, Error>;
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Caller {
    identity: Identity,
    /// None for one whose identity stays what it is.
    credentials: Option<Arc<dyn Credentials>>,
    deadline: Option<Duration>,
    /// What it does stands below this one in a trace; see `trace`.
    span: Span,
}

impl Caller {
    /// A client with the deadline of its call, by the member's clock, if it has one.
    pub fn client(identity: Identity, deadline: Option<Duration>, span: Span) -> Self {
        Self {
            identity,
            credentials: None,
            deadline,
            span,
        }
    }

    /// The same with what it showed, for a stream, which lasts longer than an identity.
    pub fn with_credentials(self, credentials: Arc<dyn Credentials>) -> Self {
        Self {
            credentials: Some(credentials),
            ..self
        }
    }

    /// Who a caller is now, for each message of a stream.
    ///
    /// # Errors
    /// What it showed is not valid any more.
    pub fn again(&self) -> Result<Self, Error> {
        match &self.credentials {
            None => Ok(self.clone()),
            Some(credentials) => Ok(Self {
                identity: credentials.identity()?,
                ..self.clone()
            }),
        }
    }

    /// The same call as somebody else's.
    pub fn as_identity(&self, identity: Identity) -> Self {
        Self {
            identity,
            credentials: None,
            ..self.clone()
        }
    }

    /// The same without a deadline, for what is to be cleaned up behind a call.
    pub fn without_deadline(self) -> Self {
        Self {
            deadline: None,
            ..self
        }
    }

    /// The same call in a span below its own, if it has one.
    pub fn in_span(mut self, below: impl FnOnce(&Span) -> Span) -> Self {
        if !self.span.is_disabled() {
            self.span = below(&self.span);
        }
        self
    }

    /// The same call in a stage of its own.
    pub fn within(mut self, stage: &TimedSpan) -> Self {
        self.span.clone_from(stage.span());
        self
    }

    /// This member, for its background work.
    pub fn member() -> Self {
        Self::of_peer(None)
    }

    /// Another member, which waits until then.
    pub fn of_peer(deadline: Option<Duration>) -> Self {
        Self::client(Identity::Member, deadline, Span::none())
    }

    /// An anonymous client without a deadline.
    #[cfg(any(test, feature = "simulation"))]
    pub fn nobody() -> Self {
        Self::client(Identity::Nobody, None, Span::none())
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    pub fn span(&self) -> &Span {
        &self.span
    }

    /// True if the deadline has passed.
    pub fn is_late(&self, now: Duration) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// The earlier of `limit` and the deadline.
    pub fn until(&self, limit: Duration) -> Duration {
        self.deadline.map_or(limit, |deadline| deadline.min(limit))
    }

    /// The identity for the header of the proposed request.
    pub fn header(&self, id: u64) -> RequestHeader {
        let (username, auth_revision) = match &self.identity {
            // A signed token can name any revision; that of members is not for users.
            Identity::User(user) => (
                user.name.clone(),
                user.auth_revision.min(MEMBER_REVISION - 1),
            ),
            Identity::Nobody | Identity::Invalid => Default::default(),
            Identity::Member if probe::injected(Defect::MemberUnmarked) => Default::default(),
            Identity::Member => (String::new(), MEMBER_REVISION),
        };
        RequestHeader {
            id,
            username,
            auth_revision,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_wait_ends_with_its_caller_or_with_its_limit() {
        let hasty = Caller::client(Identity::Nobody, Some(seconds(3)), Span::none());
        assert_eq!(hasty.until(seconds(7)), seconds(3));
        assert_eq!(hasty.until(seconds(2)), seconds(2));
        assert!(hasty.is_late(seconds(3)) && !hasty.is_late(seconds(2)));
        let patient = Caller::member();
        assert_eq!(patient.until(seconds(7)), seconds(7));
        assert!(!patient.is_late(Duration::MAX));
    }

    #[test]
    fn an_entry_names_the_user_who_asked() {
        let alice = User {
            name: "alice".to_owned(),
            auth_revision: 7,
        };
        for (identity, name, revision) in [
            (Identity::Nobody, "", 0),
            (Identity::Member, "", MEMBER_REVISION),
            (Identity::User(Arc::new(alice)), "alice", 7),
        ] {
            let header = Caller::client(identity, None, Span::none()).header(9);
            assert_eq!(
                (header.id, &*header.username, header.auth_revision),
                (9, name, revision)
            );
        }
    }
}
