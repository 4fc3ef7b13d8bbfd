//! What a request line asks for, read as Go's net/http reads it: clients and probes were written
//! against that, down to which spellings of a path are sent elsewhere and which are unknown.

use http::{Method, Uri};

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// The path, decoded, without empty or dotted parts.
    Path(String),
    /// The same thing has a cleaner name: this path and query.
    Elsewhere(String),
    /// The path cannot be decoded.
    Malformed,
}

impl Target {
    pub fn of(method: &Method, uri: &Uri) -> Self {
        let Some(decoded) = unescape(uri.path().as_bytes(), false) else {
            return Self::Malformed;
        };
        let escaped = if is_proper(uri.path()) {
            uri.path().to_owned()
        } else {
            escape(&decoded)
        };
        let clean = clean(&escaped);
        if clean != escaped && method != Method::CONNECT {
            // Escaped once more, as Go does.
            let mut location = escape(clean.as_bytes());
            if let Some(query) = uri.query().filter(|query| !query.is_empty()) {
                location.push('?');
                location.push_str(query);
            }
            return Self::Elsewhere(location);
        }
        // A slash that was escaped is no separator; nothing that is served has one in a name.
        if clean.to_ascii_lowercase().contains("%2f") {
            return Self::Path(clean);
        }
        Self::Path(String::from_utf8_lossy(&decoded).into_owned())
    }
}

/// Drops empty and `.` parts and lets `..` take away what is before it.
fn clean(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            part => kept.push(part),
        }
    }
    let mut clean = format!("/{}", kept.join("/"));
    if path.ends_with('/') && !kept.is_empty() {
        clean.push('/');
    }
    clean
}

/// Decodes `%xx`, and `+` as a blank where `plus` says so; `None` where an escape is broken.
fn unescape(text: &[u8], plus: bool) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        decoded.push(match first {
            b'%' => {
                let [high, low, tail @ ..] = tail else {
                    return None;
                };
                rest = tail;
                hex(*high)? << 4 | hex(*low)?
            }
            b'+' if plus => b' ',
            other => *other,
        });
    }
    Some(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|value| value as u8)
}

fn needs_no_escape(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte)
}

/// Whether every byte of an escaped path stands for itself or begins an escape.
fn is_proper(path: &str) -> bool {
    path.bytes()
        .all(|byte| needs_no_escape(byte) || b"%!'()*[]".contains(&byte))
}

fn escape(path: &[u8]) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path {
        if needs_no_escape(*byte) {
            escaped.push(*byte as char);
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// The parameters of a query; a pair that is malformed is left out.
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn of(uri: &Uri) -> Self {
        let pairs = uri.query().unwrap_or_default().split('&');
        Self(pairs.filter_map(pair).collect())
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

fn pair(text: &str) -> Option<(String, String)> {
    if text.is_empty() || text.contains(';') {
        return None;
    }
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let decode = |part: &str| {
        let decoded = unescape(part.as_bytes(), true)?;
        Some(String::from_utf8_lossy(&decoded).into_owned())
    };
    Some((decode(key)?, decode(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> Target {
        Target::of(&Method::GET, &path.parse().expect("a URI"))
    }

    /// Each answer was taken from a running etcd.
    #[test]
    fn paths_are_cleaned_as_by_etcd() {
        for (path, clean) in [
            ("/health", None),
            ("/health/", None),
            ("//", Some("/")),
            ("//health", Some("/health")),
            ("//health?x=1&y", Some("/health?x=1&y")),
            ("//x?%zz", Some("/x?%zz")),
            ("//x?", Some("/x")),
            ("/./health", Some("/health")),
            ("/a/../health", Some("/health")),
            ("/foo//bar", Some("/foo/bar")),
            ("/foo/..", Some("/")),
            ("/foo/.", Some("/foo")),
            ("/foo//", Some("/foo/")),
            ("/..//x", Some("/x")),
            ("/foo/%2e%2e/x", None),
            ("//a%20b", Some("/a%2520b")),
            ("//%c3%a9", Some("/%25c3%25a9")),
            ("//a!b", Some("/a%21b")),
            ("//a\"", Some("/a%2522")),
        ] {
            match (target(path), clean) {
                (Target::Path(_), None) => {}
                (Target::Elsewhere(found), Some(clean)) => assert_eq!(found, clean, "{path}"),
                (found, _) => panic!("{path}: {found:?}"),
            }
        }
        let connect = Target::of(&Method::CONNECT, &"//x".parse().expect("a URI"));
        assert_eq!(connect, Target::Path("//x".to_owned()));
    }

    #[test]
    fn paths_are_decoded() {
        assert_eq!(target("/heal%74h"), Target::Path("/health".to_owned()));
        assert_eq!(
            target("/%2f/health"),
            Target::Path("/%2f/health".to_owned())
        );
        assert_eq!(
            target("/livez%2Fserializable_read"),
            Target::Path("/livez%2Fserializable_read".to_owned())
        );
        assert_eq!(target("/%zz"), Target::Malformed);
        assert_eq!(target("/%a"), Target::Malformed);
        assert_eq!(target("/%+1"), Target::Malformed);
    }

    #[test]
    fn queries_are_read_as_by_go() {
        let uri = "/h?exclude=A&exclude=&exclude=B%43&a;b=1&%zz=1&x=%zz&p+q=r+s&verbose&&s=1&s=2";
        let query = Query::of(&uri.parse().expect("a URI"));
        assert_eq!(query.all("exclude"), ["A", "BC"]);
        assert_eq!(query.first("p q"), Some("r s"));
        assert_eq!(query.first("s"), Some("1"));
        assert!(query.has("verbose"));
        assert!(!query.has("x") && !query.has("b") && !query.has("a") && !query.has(""));
    }
}
