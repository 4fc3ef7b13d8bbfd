//! Errors as etcd's gateway answers them.

use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use tonic::body::Body;
use tonic::{Code, Status};

pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// `google.rpc.Status`, as protobuf's mapping writes it: without what is empty.
#[derive(Serialize)]
struct Error<'a> {
    code: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
}

impl<'a> Error<'a> {
    fn of(status: &'a Status) -> Self {
        Self {
            code: status.code() as i32,
            message: status.message(),
        }
    }
}

/// HTTP's status for a code of gRPC.
pub fn http_status(code: Code) -> StatusCode {
    let number = match code {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::DeadlineExceeded => 504,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::PermissionDenied => 403,
        Code::Unauthenticated => 401,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    };
    // All of them are between 100 and 999.
    StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The answer to a call that failed.
pub fn response(status: &Status) -> Response<Body> {
    let mut response = with_text(status.code(), text(&Error::of(status)));
    if status.code() == Code::Unauthenticated
        && let Ok(value) = HeaderValue::from_str(status.message())
    {
        response.headers_mut().insert(WWW_AUTHENTICATE, value);
    }
    response
}

/// The answer to a stream that failed before its first message.
pub fn of_stream(status: &Status) -> Response<Body> {
    with_text(status.code(), line(status))
}

/// The last line of a stream that failed.
pub fn line(status: &Status) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a> {
        error: Error<'a>,
    }
    let mut line = text(&Line {
        error: Error::of(status),
    });
    line.push(b'\n');
    line
}

/// A number and a text can always be written.
fn text(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn with_text(code: Code, text: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(text.into())));
    *response.status_mut() = http_status(code);
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}
