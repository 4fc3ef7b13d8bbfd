//! The path and the parameters of a request, decoded.
//!
//! etcd redirects unusual spellings of a path (`//health`, `/a/../health`) to a cleaner one, as Go's
//! router does; here they name nothing. No probe, scraper or browser sends them.

use http::Uri;
use http::uri::PathAndQuery;
use percent_encoding::percent_decode_str;

/// The parts of a path, decoded one by one: an escaped slash is no separator.
pub fn parts(uri: &Uri) -> Vec<String> {
    let parts = uri.path().split('/').skip(1);
    parts
        .map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned())
        .collect()
}

/// The URI with `/v3/` in the place of `/v3beta/`, where its path begins so.
pub fn by_the_name_of_today(uri: &Uri) -> Option<Uri> {
    let rest = uri.path_and_query()?.as_str().strip_prefix("/v3beta/")?;
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(format!("/v3/{rest}")).ok();
    Uri::from_parts(parts).ok()
}

/// The parameters of a query.
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn of(uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        Self(
            form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// The first value of a parameter.
    pub fn first(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The values of a parameter that are not empty.
    pub fn all<'a>(&'a self, name: &str) -> Vec<&'a str> {
        let named = self.0.iter().filter(|(key, _)| key == name);
        named
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_decoded_part_by_part() {
        for (path, expected) in [
            ("/health", &["health"][..]),
            ("/health/", &["health", ""]),
            ("/heal%74h", &["health"]),
            ("//health", &["", "health"]),
            ("/livez%2fserializable_read", &["livez/serializable_read"]),
            ("/livez/serializable_read", &["livez", "serializable_read"]),
            ("/%zz", &["%zz"]),
        ] {
            assert_eq!(parts(&path.parse().expect("a URI")), expected, "{path}");
        }
    }

    #[test]
    fn an_old_name_leads_to_that_of_today() {
        for (uri, expected) in [
            (
                "/v3beta/kv/range?a=/v3beta/",
                Some("/v3/kv/range?a=/v3beta/"),
            ),
            ("http://a:1/v3beta/watch", Some("http://a:1/v3/watch")),
            ("/v3beta/", Some("/v3/")),
            ("/v3beta/v3beta/", Some("/v3/v3beta/")),
            ("/v3beta", None),
            ("/v3/v3beta/", None),
            ("/v3alpha/kv/range", None),
        ] {
            let found = by_the_name_of_today(&uri.parse().expect("a URI"));
            assert_eq!(
                found,
                expected.map(|uri| uri.parse().expect("a URI")),
                "{uri}"
            );
        }
    }

    #[test]
    fn queries_are_decoded() {
        let uri = "/h?exclude=A&exclude=&exclude=B%43&p+q=r+s&verbose&&s=1&s=2";
        let query = Query::of(&uri.parse().expect("a URI"));
        assert_eq!(query.all("exclude"), ["A", "BC"]);
        assert_eq!(query.first("p q"), Some("r s"));
        assert_eq!(query.first("s"), Some("1"));
        assert!(query.has("verbose"));
        assert!(!query.has("x") && !query.has(""));
    }
}
