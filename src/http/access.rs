//! Who may ask: the Host header, and the origins that a browser may ask for.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    EXPECT, HOST, ORIGIN, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use tonic::body::Body;

use super::page;

const ANY: &str = "*";

/// What is let in. The default lets everything in.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Origins, each with its port; empty or `*` for any.
    pub cors: Vec<String>,
    /// Names that a Host header may have; empty or `*` for any.
    pub host_whitelist: Vec<String>,
}

impl Access {
    /// The answer to a request whose Host is none or not known.
    pub fn refuse_host<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let allowed = &self.host_whitelist;
        if allowed.is_empty() || allowed.iter().any(|name| name == ANY) {
            return None;
        }
        let host = match request.uri().authority() {
            Some(authority) => authority.as_str(),
            None => header(request.headers(), HOST.as_str()),
        };
        let name = host_name(host);
        if allowed.iter().any(|allowed| allowed == name) {
            return None;
        }
        tracing::warn!(
            host = name,
            "rejecting HTTP request to prevent DNS rebinding attacks"
        );
        let text = format!(
            "The Host header {name:?} is not known here. Use https, or add the name to \
             --host-whitelist. The check keeps web pages from reaching this server under a name \
             of their own (CVE-2018-5702)."
        );
        Some(page::refusal(StatusCode::MISDIRECTED_REQUEST, &text))
    }

    /// The answer to a WebSocket that a page of another origin asks for: a browser asks nobody
    /// before it opens one, and sends its cookies with it.
    pub fn refuse_origin<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let origin = request.headers().get(ORIGIN)?;
        let opens = request.headers().contains_key(UPGRADE);
        if !opens || self.lets_any_in() || self.cors.iter().any(|allowed| *allowed == *origin) {
            return None;
        }
        let text = "The origin of the page is not in --cors.";
        Some(page::refusal(StatusCode::FORBIDDEN, text))
    }

    fn lets_any_in(&self) -> bool {
        self.cors.is_empty() || self.cors.iter().any(|origin| origin == ANY)
    }

    /// Tells browsers that pages of an allowed origin may read the answer.
    pub fn add_cors(&self, origin: Option<&HeaderValue>, response: &mut HeaderMap) {
        let origin = if self.lets_any_in() {
            HeaderValue::from_static(ANY)
        } else {
            match origin {
                Some(origin) if self.cors.iter().any(|allowed| *allowed == *origin) => {
                    origin.clone()
                }
                _ => return,
            }
        };
        let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
        let headers = HeaderValue::from_static("accept, content-type, authorization");
        response.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response.insert(ACCESS_CONTROL_ALLOW_HEADERS, headers);
    }
}

/// What HTTP itself forbids and the connection did not check.
pub fn refuse_malformed<B>(request: &Request<B>) -> Option<Response<Body>> {
    let headers = request.headers();
    let mut hosts = headers.get_all(HOST).iter();
    let reason = match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_11 => "missing required Host header",
        (_, Some(_)) => return Some(page::bad_request(None)),
        (Some(host), None) if !host.as_bytes().iter().all(|byte| may_be_in_host(*byte)) => {
            "malformed Host header"
        }
        _ => {
            let expected = headers.get(EXPECT)?;
            let known = expected.as_bytes().eq_ignore_ascii_case(b"100-continue");
            return (!known).then(page::expectation_failed);
        }
    };
    Some(page::bad_request(Some(reason)))
}

fn may_be_in_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(&byte)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

/// The name in `name:port`; the whole text where there is no port.
fn host_name(host: &str) -> &str {
    if let Some(bracketed) = host.strip_prefix('[') {
        return match bracketed.split_once(']') {
            Some((name, port)) if port.starts_with(':') => name,
            _ => host,
        };
    }
    match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_cut_from_a_host() {
        for (host, name) in [
            ("a.example:2379", "a.example"),
            ("a.example", "a.example"),
            ("a.example:", "a.example"),
            ("[::1]:2379", "::1"),
            ("[::1]", "[::1]"),
            ("::1", "::1"),
            ("", ""),
        ] {
            assert_eq!(host_name(host), name);
        }
    }

    #[test]
    fn only_listed_hosts_are_served() {
        let access = Access {
            host_whitelist: vec!["good".to_owned()],
            ..Default::default()
        };
        let request = |host| {
            Request::builder()
                .uri("/health")
                .header(HOST, host)
                .body(())
                .expect("a request")
        };
        assert!(access.refuse_host(&request("good:80")).is_none());
        let refused = access.refuse_host(&request("evil:80")).expect("a refusal");
        assert_eq!(refused.status(), StatusCode::MISDIRECTED_REQUEST);
        assert!(Access::default().refuse_host(&request("evil")).is_none());
    }

    #[test]
    fn a_websocket_is_for_pages_of_listed_origins() {
        let listed = Access {
            cors: vec!["http://a:1".to_owned()],
            ..Default::default()
        };
        for (access, headers, expected) in [
            (
                &listed,
                &[("upgrade", "websocket"), ("origin", "http://b:2")][..],
                Some(403),
            ),
            (
                &listed,
                &[("upgrade", "websocket"), ("origin", "http://a:1")],
                None,
            ),
            (&listed, &[("upgrade", "websocket")], None),
            (&listed, &[("origin", "http://b:2")], None),
            (
                &Access::default(),
                &[("upgrade", "websocket"), ("origin", "http://b:2")],
                None,
            ),
        ] {
            let mut request = Request::builder();
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.body(()).expect("a request");
            let refused = access.refuse_origin(&request);
            let status = refused.map(|response| response.status().as_u16());
            assert_eq!(status, expected, "{headers:?}");
        }
    }

    #[test]
    fn cors_names_the_origin_that_is_listed() {
        let access = Access {
            cors: vec!["http://a:1".to_owned(), "http://b:2".to_owned()],
            ..Default::default()
        };
        let answer = |access: &Access, origin: &'static str| {
            let mut answered = HeaderMap::new();
            access.add_cors(Some(&HeaderValue::from_static(origin)), &mut answered);
            answered.get(ACCESS_CONTROL_ALLOW_ORIGIN).cloned()
        };
        assert_eq!(
            answer(&access, "http://b:2").expect("allowed"),
            "http://b:2"
        );
        assert_eq!(answer(&access, "http://c:3"), None);
        assert_eq!(answer(&Access::default(), "http://c:3").expect("any"), "*");
    }
}
