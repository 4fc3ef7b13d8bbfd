//! gofail's requests and answers, byte for byte: `GET /`, and `GET`, `PUT` and `DELETE` of a name.

use bytes::Buf;
use http::header::{ALLOW, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use tonic::body::Body;

use super::registry::{ListError, OrderError, Registry};
use crate::http::{body, page};

/// No list of terms is longer.
const MAX_BODY_BYTES: usize = 64 << 10;
/// In the place of a name: a list of several.
const SEVERAL: &str = "failpoints";

/// Answers a request.
pub async fn respond<B>(registry: &Registry, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data: Buf>,
{
    let (head, sent) = request.into_parts();
    let target = head.uri.path_and_query();
    let Some(name) = target.and_then(|target| target.as_str().strip_prefix('/')) else {
        return page::refusal(StatusCode::BAD_REQUEST, "malformed request URI");
    };
    match head.method {
        Method::PUT => match body::read(sent, MAX_BODY_BYTES).await {
            Ok(sent) => set(registry, name, &String::from_utf8_lossy(&sent)),
            Err(_) => page::refusal(StatusCode::BAD_REQUEST, "failed ReadAll in PUT"),
        },
        Method::GET => show(registry, name),
        Method::DELETE => match registry.clear(name) {
            Ok(()) => done(),
            Err(error) => {
                let text = format!("failed to delete failpoint {error}");
                page::refusal(StatusCode::BAD_REQUEST, &text)
            }
        },
        _ => {
            let mut refused = page::refusal(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed");
            let allowed = HeaderValue::from_static("PUT");
            refused.headers_mut().insert(ALLOW, allowed);
            refused
        }
    }
}

fn set(registry: &Registry, name: &str, text: &str) -> Response<Body> {
    let refused = if name.eq_ignore_ascii_case(SEVERAL) {
        match registry.set_all(text) {
            Ok(()) => return done(),
            Err(error @ ListError::Form(_)) => format!("fail to parse failpoint: {error}"),
            Err(ListError::Order { error, .. }) => format!("fail to set failpoint: {error}"),
        }
    } else {
        match registry.set(name, text) {
            Ok(()) => return done(),
            Err(error) => format!("fail to set failpoint: {error}"),
        }
    };
    page::refusal(StatusCode::BAD_REQUEST, &refused)
}

fn show(registry: &Registry, name: &str) -> Response<Body> {
    if name.is_empty() {
        let lines = registry.list().into_iter();
        let lines = lines.map(|(name, terms)| format!("{name}={terms}\n"));
        return page::plain(lines.collect::<String>());
    }
    let failed = |error: OrderError| format!("failed to GET: {error}");
    if let Some(name) = name.strip_suffix("/count") {
        return match registry.status(name) {
            Ok((_, executed)) => page::plain(executed.to_string()),
            Err(error @ OrderError::NoSuch) => page::refusal(StatusCode::NOT_FOUND, &failed(error)),
            Err(error) => page::refusal(StatusCode::INTERNAL_SERVER_ERROR, &failed(error)),
        };
    }
    match registry.status(name) {
        Ok((terms, _)) => page::plain(format!("{terms}\n")),
        // It writes an empty status behind the error.
        Err(error) => page::refusal(StatusCode::NOT_FOUND, &format!("{}\n", failed(error))),
    }
}

fn done() -> Response<Body> {
    let mut response = page::nothing();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::env::SystemRng;
    use crate::failpoints::Failpoint;

    /// The status and the text of an answer.
    async fn answer(registry: &Registry, line: &str) -> (u16, String) {
        let (method, rest) = line.split_once(' ').expect("a method");
        let (target, body) = rest.split_once(' ').unwrap_or((rest, ""));
        let request = Request::builder()
            .method(method)
            .uri(target)
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .expect("a request");
        let response = respond(registry, request).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body");
        let text = String::from_utf8(body.to_bytes().to_vec()).expect("a text");
        (status, text)
    }

    #[tokio::test]
    async fn requests_are_answered_as_by_gofail() {
        let registry = Registry::new(Box::new(SystemRng));
        let absent = "failpoint: failpoint does not exist";
        let disabled = "failpoint: failpoint is disabled";
        let bad = "failpoint: could not parse terms";
        for (line, status, text) in [
            (
                "GET /walAfterSync",
                404,
                format!("failed to GET: {disabled}\n\n"),
            ),
            ("GET /x", 404, format!("failed to GET: {absent}\n\n")),
            (
                "GET /walAfterSync/count",
                500,
                format!("failed to GET: {disabled}\n"),
            ),
            ("GET /x/count", 404, format!("failed to GET: {absent}\n")),
            ("PUT /walAfterSync 2*off->sleep(1)", 204, String::new()),
            ("GET /walAfterSync", 200, "2*off->sleep(1)\n".to_owned()),
            ("GET /walAfterSync/count", 200, "0".to_owned()),
            (
                "PUT /walAfterSync of",
                400,
                format!("fail to set failpoint: {bad}\n"),
            ),
            (
                "PUT /x off",
                400,
                format!("fail to set failpoint: {absent}\n"),
            ),
            (
                "PUT /walAfterSync?x off",
                400,
                format!("fail to set failpoint: {absent}\n"),
            ),
            ("DELETE /walAfterSync", 204, String::new()),
            (
                "DELETE /walAfterSync",
                400,
                format!("failed to delete failpoint {disabled}\n"),
            ),
            (
                "DELETE /x",
                400,
                format!("failed to delete failpoint {absent}\n"),
            ),
            (
                "PUT /failpoints walAfterSync=off;walBeforeSync=print",
                204,
                String::new(),
            ),
            ("GET /walBeforeSync", 200, "print\n".to_owned()),
            ("PUT /FailPoints walBeforeSync=off", 204, String::new()),
            ("GET /walBeforeSync", 200, "off\n".to_owned()),
            (
                "PUT /failpoints x=off",
                400,
                format!("fail to set failpoint: {absent}\n"),
            ),
            (
                "PUT /failpoints walAfterSync",
                400,
                "fail to parse failpoint: bad failpoint \"walAfterSync\"\n".to_owned(),
            ),
            (
                "POST /walAfterSync off",
                405,
                "Method not allowed\n".to_owned(),
            ),
        ] {
            assert_eq!(answer(&registry, line).await, (status, text), "{line}");
        }
        let (status, text) = answer(&registry, "GET /").await;
        assert_eq!(status, 200);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), Failpoint::ALL.len());
        assert_eq!(lines.first(), Some(&"afterCommit="));
        assert_eq!(lines.last(), Some(&"walBeforeSync=off"));
        assert!(text.ends_with('\n') && !text.ends_with("\n\n"));
    }
}
