//! /debug/log-level: the level of the log, shown and changed while the member runs.
//!
//! etcd has no such page. The programs that have one are Go's with the same logger, so this one
//! takes and answers what that logger's own handler does: `{"level":"debug"}`, or the form
//! `level=debug`. A log that says less hides what is done to a member, so where authentication is on
//! a change needs the role `root`, by a token as the gateway takes it or by the name in a certificate;
//! without authentication everybody is root.

use bytes::Buf;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Deserializer, Value, json};
use tonic::Code;
use tonic::body::Body;
use tracing::Span;

use super::{body, page};
use crate::error::Error;
use crate::service::caller::Caller;
use crate::service::handle::Handle;
use crate::service::identity::Shown;
use crate::service::permission::{self, Asks, Needs};

/// No level is longer.
const MAX_BODY_BYTES: usize = 4096;

const FORM: &str = "application/x-www-form-urlencoded";
const UNSPECIFIED: &str = "must specify logging level";

/// The level of the process's log, by name.
#[derive(Clone, Copy)]
pub struct LogLevel {
    pub current: fn() -> &'static str,
    /// None where there is no such level.
    pub set: fn(&str) -> Option<()>,
}

/// Answers a request for the page.
pub async fn respond<B>(
    level: &LogLevel,
    handle: &Handle,
    request: &Request<()>,
    sent: B,
) -> Response<Body>
where
    B: http_body::Body<Data: Buf>,
{
    match *request.method() {
        Method::GET => {}
        Method::PUT => {
            if let Err(error) = check(handle, request).await {
                let status = match error.code() {
                    Code::Unauthenticated => StatusCode::UNAUTHORIZED,
                    _ => StatusCode::FORBIDDEN,
                };
                return refusal(status, &error.to_string());
            }
            let changed = match body::read(sent, MAX_BODY_BYTES).await {
                Ok(sent) => change(level, request, &sent),
                Err(reason) => Err(malformed(reason)),
            };
            if let Err(reason) = changed {
                return refusal(StatusCode::BAD_REQUEST, &reason);
            }
        }
        _ => {
            let reason = "Only GET and PUT are supported.";
            return refusal(StatusCode::METHOD_NOT_ALLOWED, reason);
        }
    }
    page::plain(line(&json!({ "level": (level.current)() })))
}

/// Whether the caller may change the level.
async fn check(handle: &Handle, request: &Request<()>) -> Result<(), Error> {
    let shown = Shown::of(request.headers(), request.extensions());
    let caller = Caller::client(handle.identify(&shown, None).await?, None, Span::none());
    permission::check(&handle.auth(), &caller, Asks::Call(Needs::Root))
}

fn refusal(status: StatusCode, reason: &str) -> Response<Body> {
    let mut response = page::plain(line(&json!({ "error": reason })));
    *response.status_mut() = status;
    response
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

fn malformed(reason: impl std::fmt::Display) -> String {
    format!("malformed request body: {reason}")
}

/// Sets the level that a request names.
fn change(level: &LogLevel, request: &Request<()>, body: &[u8]) -> Result<(), String> {
    let set = |name: &str| (level.set)(name).ok_or_else(|| format!("unrecognized level: {name:?}"));
    let kind = request.headers().get(CONTENT_TYPE);
    if kind.is_some_and(|kind| kind == FORM) {
        let query = request.uri().query().unwrap_or_default();
        return set(&of_form(body, query)?);
    }
    set(&of_json(body)?).map_err(malformed)
}

/// The level in a form; a body has precedence over a query.
fn of_form(body: &[u8], query: &str) -> Result<String, String> {
    let mut pairs = form_urlencoded::parse(body).chain(form_urlencoded::parse(query.as_bytes()));
    match pairs.find(|(key, _)| key == "level") {
        Some((_, level)) if !level.is_empty() => Ok(level.into_owned()),
        _ => Err(UNSPECIFIED.to_owned()),
    }
}

/// The level in an object; what follows that is not read.
fn of_json(body: &[u8]) -> Result<String, String> {
    let value = match Deserializer::from_slice(body).into_iter::<Value>().next() {
        None => return Err(malformed("EOF")),
        Some(Err(reason)) if reason.is_eof() => return Err(malformed("unexpected EOF")),
        Some(Err(reason)) => return Err(malformed(reason)),
        Some(Ok(value)) => value,
    };
    let Value::Object(fields) = value else {
        return Err(malformed("it is no object"));
    };
    // Go takes a name in any case.
    let mut named = fields
        .into_iter()
        .filter(|(key, _)| key.eq_ignore_ascii_case("level"));
    match named.next().map(|(_, level)| level) {
        None | Some(Value::Null) => Err(UNSPECIFIED.to_owned()),
        Some(Value::String(level)) => Ok(level),
        Some(_) => Err(malformed("the level is no text")),
    }
}
