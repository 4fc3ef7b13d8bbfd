//! Who calls: made here alone, from a call's metadata and its connection.
//!
//! What a client shows is looked at once, before the gate (`Known`); a stream keeps it.
//!
//! gRPC's `grpc-timeout` says how long the client still waits. Its form is gRPC's: up to eight
//! digits and a unit. One that cannot be read ends the call before its service sees it, in
//! grpc-go's words.

use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap, HeaderName, Response, StatusCode};
use tonic::body::Body;
use tonic::{Request, Status};

use super::traces;
use crate::error::Error;
use crate::replica::shared::Shared;
use crate::service::caller::{Caller, Credentials, Identity};
use crate::service::handle::Handle;
use crate::service::identity::{Kept, Shown};

static TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Digits and the unit; gRPC's figure.
const MAX_TIMEOUT_BYTES: usize = 9;

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
pub fn of<T>(handle: &Handle, request: &Request<T>) -> Caller {
    // The simulator's clients have no metadata.
    #[cfg(any(test, feature = "simulation"))]
    if let Some(caller) = request.extensions().get::<Caller>() {
        return caller.clone();
    }
    let (headers, extensions) = (request.metadata().as_ref(), request.extensions());
    with_headers(handle.shared(), headers, extensions)
}

/// The same, before it is known what is asked.
pub fn with_headers(shared: &Shared, headers: &HeaderMap, extensions: &Extensions) -> Caller {
    // One that cannot be read has been refused by then.
    let timeout = timeout(headers).ok().flatten();
    let deadline = timeout.map(|timeout| shared.clock.now().saturating_add(timeout));
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

fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, String> {
    let Some(value) = headers.get(&TIMEOUT) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    if text.len() < 2 {
        return Err(format!("transport: timeout string is too short: {text:?}"));
    }
    if text.len() > MAX_TIMEOUT_BYTES {
        return Err(format!("transport: timeout string is too long: {text:?}"));
    }
    let unit: fn(u64) -> Duration = match text.as_bytes().last() {
        Some(b'H') => |hours| Duration::from_secs(hours * 3600),
        Some(b'M') => |minutes| Duration::from_secs(minutes * 60),
        Some(b'S') => Duration::from_secs,
        Some(b'm') => Duration::from_millis,
        Some(b'u') => Duration::from_micros,
        Some(b'n') => Duration::from_nanos,
        _ => {
            return Err(format!(
                "transport: timeout unit is not recognized: {text:?}"
            ));
        }
    };
    let digits = &text[..text.len() - 1];
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "strconv.ParseUint: parsing {digits:?}: invalid syntax"
        ));
    }
    // Eight digits always fit.
    Ok(digits.parse().ok().map(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |value: &str| {
            let value = http::HeaderValue::from_str(value).expect("a header");
            timeout(&HeaderMap::from_iter([(TIMEOUT.clone(), value)]))
        };
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        for (value, expected_ns) in [
            ("1n", 1_u128),
            ("20u", 20_000),
            ("4999936u", 4_999_936_000),
            ("300m", 300_000_000),
            ("7S", 7_000_000_000),
            ("0S", 0),
            ("2M", 120_000_000_000),
            ("3H", 10_800_000_000_000),
            ("99999999H", 359_999_996_400_000_000_000),
        ] {
            let found = read(value).expect(value).expect(value);
            assert_eq!(found.as_nanos(), expected_ns, "{value}");
        }
        for bad in ["", "S", "5", "5s", "-5S", "+5S", "5.5S", "123456789S"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
