//! Who a client is, from what it shows: a token, or else the name in its certificate.
//!
//! etcd's rules. Where authentication is off nothing that is shown matters. A token that is not
//! valid is refused, and its caller is not taken for the holder of its certificate instead.
//! Nor is a token of the future: a simple one is known once its entry is applied, which is waited
//! for no longer than an election timeout, because nobody else vouches for the number in it. (etcd
//! waits as long as the caller does.)

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap, HeaderValue};
use tokio::sync::oneshot;

use super::caller::{Credentials, Identity, User};
use super::handle::Handle;
use crate::env;
use crate::error::Error;

/// gRPC's metadata with a token, in the order of their precedence. The second is what the gateway
/// makes of HTTP's.
const TOKEN_FIELDS: [&str; 2] = ["token", "authorization"];
const BEARER: &str = "Bearer ";

/// The common name in the verified certificate of a connection that authenticates by certificates;
/// empty if it has none. The connection puts it beside each of its calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateName(pub Arc<str>);

/// What a client shows.
#[derive(Clone)]
pub struct Shown {
    token: Option<HeaderValue>,
    certificate: Option<CertificateName>,
}

impl Shown {
    pub fn of(headers: &HeaderMap, extensions: &Extensions) -> Self {
        let mut tokens = TOKEN_FIELDS.iter().filter_map(|name| headers.get(*name));
        Self {
            token: tokens.next().cloned(),
            certificate: extensions.get::<CertificateName>().cloned(),
        }
    }

    /// The token, without what HTTP writes before one. What is no text is no token.
    fn token(&self) -> Option<&str> {
        let value = self.token.as_ref()?;
        let text = std::str::from_utf8(value.as_bytes()).unwrap_or_default();
        Some(text.strip_prefix(BEARER).unwrap_or(text))
    }
}

impl Handle {
    /// Who that is, or nothing if that takes a wait.
    pub fn identify_at_once(&self, shown: &Shown) -> Option<Result<Identity, Error>> {
        match self.awaited_index(shown) {
            Some(_) => None,
            None => Some(self.identify_now(shown)),
        }
    }

    /// Who that is; a client waits until its deadline, if it has one.
    pub async fn identify(
        &self,
        shown: &Shown,
        deadline: Option<Duration>,
    ) -> Result<Identity, Error> {
        if let Some(index) = self.awaited_index(shown) {
            let clock = &self.shared.clock;
            let until = clock.now() + self.settings().election_timeout;
            let until = deadline.map_or(until, |deadline| deadline.min(until));
            let limit = until.saturating_sub(clock.now());
            self.await_applied(index, limit).await;
            if deadline.is_some_and(|deadline| deadline <= clock.now()) {
                return Err(Error::DeadlineExceeded);
            }
        }
        self.identify_now(shown)
    }

    /// Who that is, as far as it is known here.
    fn identify_now(&self, shown: &Shown) -> Result<Identity, Error> {
        let Some(auth_revision) = self.shared.auth_revision_if_enabled() else {
            return Ok(Identity::Nobody);
        };
        match (shown.token(), &shown.certificate) {
            (Some(token), _) => {
                let user = self.tokens().user(token, auth_revision);
                user.map(Identity::User).ok_or(Error::InvalidAuthToken)
            }
            (None, Some(CertificateName(name))) => Ok(Identity::User(Arc::new(User {
                name: name.as_ref().to_owned(),
                auth_revision,
            }))),
            (None, None) => Ok(Identity::Nobody),
        }
    }

    /// The index that has to be applied before a token is looked up, if it is not yet.
    fn awaited_index(&self, shown: &Shown) -> Option<u64> {
        if !self.shared.is_auth_enabled() {
            return None;
        }
        let index = self.tokens().index_of(shown.token()?)?;
        (index > self.shared.raft.applied_index()).then_some(index)
    }

    async fn await_applied(&self, index: u64, limit: Duration) {
        let (sender, receiver) = oneshot::channel();
        let reply = Box::new(move |_| {
            // The caller may have gone.
            let _ = sender.send(());
        });
        let raft = &self.shared.raft;
        let Some(_place) = self.shared.waiting_reads.wait_for(index, reply, raft) else {
            return;
        };
        // Whether it was applied shows where the token is looked up.
        let _ = env::timeout(self.shared.clock.as_ref(), limit, receiver).await;
    }
}

/// What a stream's client showed when it began.
pub struct Kept {
    pub handle: Arc<Handle>,
    pub shown: Shown,
}

impl Credentials for Kept {
    fn identity(&self) -> Result<Identity, Error> {
        self.handle.identify_now(&self.shown)
    }
}

impl fmt::Debug for Kept {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::auth_observer::AuthObserver;
    use crate::service::fixture;
    use crate::state::auth::AuthEvent;
    use crate::transport::NoNetwork;

    /// `name=value ...`; `cert=NAME` is the certificate's, `_` a space.
    fn shown(text: &str) -> Shown {
        let (mut headers, mut extensions) = (HeaderMap::new(), Extensions::new());
        for pair in text.split_whitespace() {
            let (name, value) = pair.split_once('=').expect("a pair");
            let value = value.replace('_', " ");
            match name {
                "cert" => {
                    extensions.insert(CertificateName(value.as_str().into()));
                }
                name => {
                    let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a name");
                    let value = match value.as_str() {
                        "binary" => HeaderValue::from_bytes(b"\xff\xfe").expect("a value"),
                        value => HeaderValue::from_str(value).expect("a value"),
                    };
                    headers.append(name, value);
                }
            }
        }
        Shown::of(&headers, &extensions)
    }

    fn enabled() -> Handle {
        let clock = Arc::new(env::SystemClock::new());
        let (handle, _) = fixture::with_clock(Arc::new(NoNetwork), clock);
        fixture::apply(&handle, fixture::auth_requests(&[("root", &[])]));
        handle.tokens().applied(&[AuthEvent::TokenIssued {
            token: "abc.1".to_owned(),
            user: "alice".to_owned(),
        }]);
        handle
    }

    fn name(identity: Result<Identity, Error>) -> Result<String, Error> {
        Ok(match identity? {
            Identity::User(user) => format!("user {}", user.name),
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn a_token_goes_before_a_certificate_and_a_wrong_one_before_nothing() {
        let handle = enabled();
        let invalid = Err(Error::InvalidAuthToken);
        for (text, expected) in [
            ("", Ok("Nobody")),
            ("token=abc.1", Ok("user alice")),
            ("token=Bearer_abc.1", Ok("user alice")),
            ("authorization=abc.1", Ok("user alice")),
            ("authorization=Bearer_abc.1", Ok("user alice")),
            ("authorization=bearer_abc.1", invalid),
            ("authorization=Bearer_Bearer_abc.1", invalid),
            ("token=abc.1 authorization=x", Ok("user alice")),
            ("token=x authorization=abc.1", invalid),
            ("token= authorization=abc.1", invalid),
            ("token=abc.1 token=x", Ok("user alice")),
            ("token=binary", invalid),
            ("token=abc", invalid),
            ("cert=bob", Ok("user bob")),
            ("cert=", Ok("user ")),
            ("cert=bob token=abc.1", Ok("user alice")),
            ("cert=bob token=x", invalid),
        ] {
            let found = handle.identify_at_once(&shown(text)).expect("no wait");
            assert_eq!(name(found), expected.map(str::to_owned), "{text}");
        }
        let Ok(Identity::User(user)) = handle.identify_now(&shown("cert=bob")) else {
            panic!("nobody");
        };
        assert_eq!(user.auth_revision, handle.auth().revision());
    }

    #[test]
    fn nothing_that_is_shown_matters_where_authentication_is_off() {
        let handle = fixture::single_member();
        for text in ["", "token=x", "token=x.99", "authorization=", "cert=bob"] {
            let found = handle.identify_at_once(&shown(text)).expect("no wait");
            assert_eq!(name(found), Ok("Nobody".to_owned()), "{text}");
        }
    }

    #[tokio::test]
    async fn a_token_of_the_future_is_waited_for_but_not_for_long() {
        let handle = enabled();
        let next = handle.shared().raft.applied_index() + 1;
        let early = shown(&format!("token=new.{next}"));
        assert!(handle.identify_at_once(&early).is_none());
        let waiting = handle.identify(&early, None);
        let mut waiting = std::pin::pin!(waiting);
        let begun = tokio::time::timeout(Duration::from_millis(5), waiting.as_mut()).await;
        assert!(begun.is_err());
        handle.tokens().applied(&[AuthEvent::TokenIssued {
            token: format!("new.{next}"),
            user: "bob".to_owned(),
        }]);
        handle.shared().raft.set_applied_index(next);
        handle.shared().waiting_reads.applied(next);
        assert_eq!(name(waiting.await), Ok("user bob".to_owned()));

        let far = shown("token=abc.18446744073709551615");
        let limit = handle.settings().election_timeout + Duration::from_secs(2);
        let found = tokio::time::timeout(limit, handle.identify(&far, None)).await;
        assert_eq!(found, Ok(Err(Error::InvalidAuthToken)));
        let deadline = handle.shared().clock.now() + Duration::from_millis(5);
        let hasty = handle.identify(&far, Some(deadline));
        let found = tokio::time::timeout(handle.settings().election_timeout / 2, hasty).await;
        assert_eq!(found, Ok(Err(Error::DeadlineExceeded)));
        assert_eq!(handle.shared().waiting_reads.count(), 0, "nothing is left");
    }
}
