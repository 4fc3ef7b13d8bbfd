//! Who calls: made here alone, from a call's metadata and its connection.
//!
//! What a client shows is judged once, before the gate (`Known`); a stream keeps it.
//!
//! gRPC's `grpc-timeout` says how long the client still waits. One that cannot be read ends the call
//! before its service sees it.

use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap, Response, StatusCode};
use tonic::body::Body;
use tonic::{Request, Status};

use super::traces;
use crate::error::Error;
use crate::service::caller::{Caller, Credentials, Identity};
use crate::service::handle::Handle;
use crate::service::identity::{Kept, Shown};
use crate::types::call_timeout::timeout;

/// Who made a call, found before its service sees it; put beside the call. There is none where
/// authentication is off, but for streams, during which it may be enabled.
#[derive(Clone, Debug)]
pub struct Known {
    identity: Identity,
    credentials: Arc<dyn Credentials>,
}

impl Known {
    pub fn new(handle: Arc<Handle>, shown: Shown, identity: Result<Identity, Error>) -> Self {
        Self {
            // Refused by the operation that needs it, with that operation's error.
            identity: identity.unwrap_or(Identity::Invalid),
            credentials: Arc::new(Kept { handle, shown }),
        }
    }
}

/// The caller of an RPC.
pub fn of<T>(request: &Request<T>) -> Caller {
    // The simulator's clients have no metadata.
    #[cfg(any(test, feature = "simulation"))]
    if let Some(caller) = request.extensions().get::<Caller>() {
        return caller.clone();
    }
    beside(request.extensions())
}

/// Until when the client of a call waits, by the member's clock, where it says so: counted from the
/// arrival of the call's head, and put beside the call, which its service may see later.
#[derive(Clone, Copy, Debug)]
pub struct CallDeadline(pub Duration);

/// The caller, by what was put beside the call on its way here.
pub fn beside(extensions: &Extensions) -> Caller {
    let deadline = extensions.get::<CallDeadline>().map(|deadline| deadline.0);
    let span = traces::span_of(extensions);
    match extensions.get::<Known>() {
        None => Caller::client(Identity::Nobody, deadline, span),
        Some(known) => Caller::client(known.identity.clone(), deadline, span)
            .with_credentials(known.credentials.clone()),
    }
}

/// How long the client still waits, if it says so.
///
/// # Errors
/// The whole answer, as grpc-go has it: to a form that is not gRPC's, with HTTP's status of a bad
/// request; to a client that says that it waits no longer.
pub fn wait_limit(headers: &HeaderMap) -> Result<Option<Duration>, Box<Response<Body>>> {
    match timeout(headers) {
        Ok(Some(Duration::ZERO)) => {
            Err(Box::new(Status::from(Error::DeadlineExceeded).into_http()))
        }
        Ok(timeout) => Ok(timeout),
        Err(reason) => {
            let status = Status::internal(format!("malformed grpc-timeout: {reason}"));
            let mut response = status.into_http();
            *response.status_mut() = StatusCode::BAD_REQUEST;
            Err(Box::new(response))
        }
    }
}
