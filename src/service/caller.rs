//! Who asks, until when it waits for the answer, and under which trace.
//!
//! Every surface makes one `Caller` a request (`api` from a call's metadata, `http` from a probe,
//! `peer` from another member's question, `jobs` as the member itself) and nothing in `service`
//! proposes or reads without one: what a request may do and how long it waits is decided from it.
//!
//! It costs nothing where nobody listens: a span that no subscriber wants holds nothing, and only
//! a caller with a name holds memory of its own.

use std::sync::Arc;
use std::time::Duration;

use tracing::Span;

use crate::proto::etcdserverpb::RequestHeader;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// A client that has not said who it is.
    #[default]
    Nobody,
    #[allow(dead_code, reason = "permissions and traces are about to read it")]
    User(Arc<User>),
    /// This member, or another one of the cluster.
    Member,
}

/// A user, as of the revision of users, roles and permissions at which it proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub auth_revision: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Caller {
    identity: Identity,
    deadline: Option<Duration>,
    #[allow(dead_code, reason = "permissions and traces are about to read it")]
    span: Span,
}

impl Caller {
    /// A client. `deadline`: when it gives up, by the member's clock; none: it does not say.
    pub fn client(identity: Identity, deadline: Option<Duration>, span: Span) -> Self {
        Self {
            identity,
            deadline,
            span,
        }
    }

    /// This member, for its own work.
    pub fn member() -> Self {
        Self::client(Identity::Member, None, Span::none())
    }

    /// A client of which nothing is known.
    #[cfg(any(test, feature = "simulation"))]
    pub fn nobody() -> Self {
        Self::client(Identity::Nobody, None, Span::none())
    }

    #[allow(dead_code, reason = "permissions and traces are about to read it")]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    #[allow(dead_code, reason = "permissions and traces are about to read it")]
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// True where it has given up by now.
    pub fn is_late(&self, now: Duration) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// When a wait ends that would last until `limit` for a caller with all the time.
    pub fn until(&self, limit: Duration) -> Duration {
        self.deadline.map_or(limit, |deadline| deadline.min(limit))
    }

    /// What the entry of a request tells every member about who asked.
    pub fn header(&self, id: u64) -> RequestHeader {
        let (username, auth_revision) = match &self.identity {
            Identity::User(user) => (user.name.clone(), user.auth_revision),
            Identity::Nobody | Identity::Member => Default::default(),
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
            (Identity::Member, "", 0),
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
