//! The shapes of answers: plain pages and refusals, as Go's net/http writes them.

use bytes::Bytes;
use http::header::{
    ALLOW, CONNECTION, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_TYPE, LOCATION,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use hyper::ext::ReasonPhrase;
use tonic::body::Body;

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const JSON_UTF8: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
const METRICS: HeaderValue = HeaderValue::from_static(crate::metrics::CONTENT_TYPE);
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

fn page(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = empty(status);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    *response.body_mut() = Body::new(Full::new(body.into()));
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// 200 with a text.
pub fn plain(body: impl Into<Bytes>) -> Response<Body> {
    page(StatusCode::OK, PLAIN, body)
}

/// 200 with a text that no browser is to take for anything else.
pub fn plain_nosniff(body: impl Into<Bytes>) -> Response<Body> {
    let mut response = plain(body);
    response
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    response
}

pub fn json(body: impl Into<Bytes>) -> Response<Body> {
    page(StatusCode::OK, JSON, body)
}

pub fn json_utf8(body: impl Into<Bytes>) -> Response<Body> {
    page(StatusCode::OK, JSON_UTF8, body)
}

/// A page of metrics.
pub fn metrics(body: impl Into<Bytes>, gzipped: bool) -> Response<Body> {
    let mut response = page(StatusCode::OK, METRICS, body);
    if gzipped {
        let gzip = HeaderValue::from_static("gzip");
        response.headers_mut().insert(CONTENT_ENCODING, gzip);
    }
    response
}

/// A page for browsers.
pub fn html(body: impl Into<Bytes>) -> Response<Body> {
    let mut response = page(StatusCode::OK, HTML, body);
    response
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    response
}

/// Bytes to be saved under a name.
pub fn attachment(body: impl Into<Bytes>, name: &'static str) -> Response<Body> {
    let mut response = page(StatusCode::OK, BYTES, body);
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    // The names are the pages'.
    if let Ok(disposition) = format!("attachment; filename=\"{name}\"").parse() {
        headers.insert(CONTENT_DISPOSITION, disposition);
    }
    response
}

/// The page is elsewhere. The text for browsers is what etcd answers; compat-tests compare it.
pub fn moved(to: &'static str) -> Response<Body> {
    let text = format!("<a href=\"{to}\">Temporary Redirect</a>.\n\n");
    let mut response = page(StatusCode::TEMPORARY_REDIRECT, HTML, text);
    let location = HeaderValue::from_static(to);
    response.headers_mut().insert(LOCATION, location);
    response
}

/// 200 without a body.
pub fn nothing() -> Response<Body> {
    empty(StatusCode::OK)
}

/// A refusal: the text and a newline.
pub fn refusal(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = plain_nosniff(format!("{text}\n"));
    *response.status_mut() = status;
    response
}

pub fn not_found() -> Response<Body> {
    refusal(StatusCode::NOT_FOUND, "404 page not found")
}

/// Only GET is served here.
pub fn only_get() -> Response<Body> {
    let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    let get = HeaderValue::from_static("GET");
    response.headers_mut().insert(ALLOW, get);
    response
}

/// 400 and the end of the connection, before anything read the request.
pub fn bad_request(reason: Option<&'static str>) -> Response<Body> {
    let mut text = "400 Bad Request".to_owned();
    let mut response = empty(StatusCode::BAD_REQUEST);
    if let Some(reason) = reason {
        text = format!("{text}: {reason}");
        let phrase = text.trim_start_matches("400 ").as_bytes().to_vec();
        if let Ok(phrase) = ReasonPhrase::try_from(phrase) {
            response.extensions_mut().insert(phrase);
        }
    }
    response.headers_mut().insert(CONTENT_TYPE, PLAIN);
    *response.body_mut() = Body::new(Full::new(Bytes::from(text)));
    closing(response)
}

/// 417: the client waits for something that will not come.
pub fn expectation_failed() -> Response<Body> {
    closing(empty(StatusCode::EXPECTATION_FAILED))
}

fn closing(mut response: Response<Body>) -> Response<Body> {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}
