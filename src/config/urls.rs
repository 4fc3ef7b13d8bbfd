//! URL lists as etcd reads them: `scheme://host:port`, de-duplicated and sorted.
//!
//! A member's identity is a hash over these strings, so a URL is kept as it was written (only its
//! scheme is lower-cased, as Go does). The `url` crate follows the browsers' standard: it drops
//! `:80`, adds a `/` and rewrites addresses, which would change the identity; so the few rules
//! that matter are spelled out here, with Go's texts for what they refuse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::go_syntax::quote;
use crate::types::socket_file;

/// The schemes that etcd knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    Http,
    Https,
    Unix,
    Unixs,
}

impl Scheme {
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        }
    }

    pub fn is_socket_file(self) -> bool {
        matches!(self, Scheme::Unix | Scheme::Unixs)
    }

    pub fn is_encrypted(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }
}

/// One URL. `host` has no brackets around an IPv6 address, no escapes, and may be empty; `port` is digits, or
/// empty, and not yet known to be a port number. Both are empty for the unix schemes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    text: String,
    pub scheme: Scheme,
    pub host: String,
    pub port: String,
}

impl Url {
    /// Reads one URL.
    ///
    /// # Errors
    /// etcd's text, e.g. `URL must not contain a path: http://a:1/`.
    pub fn parse(input: &str) -> Result<Url, String> {
        let input = input.trim();
        let parts =
            Parts::split(input).map_err(|reason| format!("parse {}: {reason}", quote(input)))?;
        let scheme = match parts.scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => {
                return Err(format!(
                    "URL scheme must be http, https, unix, or unixs: {input}"
                ));
            }
        };
        let text = format!("{}{}", parts.scheme, ascii(&input[parts.scheme.len()..]));
        if scheme.is_socket_file() {
            let (host, port) = (String::new(), String::new());
            return Ok(Url {
                text,
                scheme,
                host,
                port,
            });
        }
        let Some((host, port)) = split_host_port(parts.host) else {
            return Err(format!(
                "URL address does not have the form \"host:port\": {input}"
            ));
        };
        if !parts.path.is_empty() {
            return Err(format!("URL must not contain a path: {input}"));
        }
        let (host, port) = (unescaped(host), port.to_owned());
        Ok(Url {
            text,
            scheme,
            host,
            port,
        })
    }

    /// Reads a comma list; the result is sorted and has no URL twice.
    ///
    /// # Errors
    /// Those of [`Url::parse`], for the first URL that has one.
    pub fn parse_list(list: &str) -> Result<Vec<Url>, String> {
        let mut urls = list
            .split(',')
            .map(Url::parse)
            .collect::<Result<Vec<_>, _>>()?;
        urls.sort_by(|a, b| a.text.cmp(&b.text));
        urls.dedup();
        Ok(urls)
    }

    /// A URL for a host and port found out at run time.
    pub fn from_host_port(scheme: Scheme, host: &str, port: &str) -> Url {
        Url {
            text: format!("{}://{}", scheme.name(), join_host_port(host, port)),
            scheme,
            host: host.to_owned(),
            port: port.to_owned(),
        }
    }

    /// Where to listen: only an address or `localhost` can be listened on.
    pub fn bind_address(&self) -> Option<IpAddr> {
        match self.host.as_str() {
            "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            host => host.parse().ok(),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What is listened at: a host and port, or a file.
    pub fn place(&self) -> String {
        match socket_file(&self.text) {
            Some(path) => path.display().to_string(),
            None => self.host_port(),
        }
    }

    /// `host:port`, with brackets where Go puts them.
    pub fn host_port(&self) -> String {
        join_host_port(&self.host, &self.port)
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// The URLs' texts, in their order.
pub fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(|url| url.text.clone()).collect()
}

fn join_host_port(host: &str, port: &str) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Go's `net.SplitHostPort`: exactly one colon outside brackets.
fn split_host_port(address: &str) -> Option<(&str, &str)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, tail) = rest.split_once(']')?;
        let port = tail.strip_prefix(':')?;
        return (!host.contains('[') && !port.contains([':', '[', ']'])).then_some((host, port));
    }
    let (host, port) = address.rsplit_once(':')?;
    let plain = !host.contains([':', '[', ']']) && !port.contains(['[', ']']);
    plain.then_some((host, port))
}

/// What Go's `url.Parse` finds; only what the checks above need.
struct Parts<'a> {
    scheme: String,
    host: &'a str,
    path: &'a str,
}

impl<'a> Parts<'a> {
    fn split(input: &'a str) -> Result<Parts<'a>, String> {
        let input = input.split('#').next().unwrap_or_default();
        if input.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err("net/url: invalid control character in URL".to_owned());
        }
        let (scheme, rest) = split_scheme(input)?;
        let rest = rest.split('?').next().unwrap_or_default();
        let opaque = Parts {
            scheme: scheme.clone(),
            host: "",
            path: "",
        };
        let Some(after) = rest.strip_prefix("//") else {
            if scheme.is_empty() && !rest.starts_with('/') {
                let segment = rest.split('/').next().unwrap_or_default();
                if segment.contains(':') {
                    return Err("first path segment in URL cannot contain colon".to_owned());
                }
            }
            check_escapes(rest)?;
            return Ok(opaque);
        };
        let slash = after.find('/').unwrap_or(after.len());
        let (authority, path) = after.split_at(slash);
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        check_host(host)?;
        check_user(user)?;
        check_escapes(path)?;
        Ok(Parts { scheme, host, path })
    }
}

fn split_scheme(input: &str) -> Result<(String, &str), String> {
    for (at, c) in input.bytes().enumerate() {
        match c {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return Err("missing protocol scheme".to_owned()),
            b':' => return Ok((input[..at].to_ascii_lowercase(), &input[at + 1..])),
            _ => break,
        }
    }
    Ok((String::new(), input))
}

fn check_host(host: &str) -> Result<(), String> {
    let port = match host.rfind('[') {
        Some(0) => {
            let Some(end) = host.rfind(']') else {
                return Err("missing ']' in host".to_owned());
            };
            // The zone of a link-local address follows its %.
            let address = host[1..end].split('%').next().unwrap_or_default();
            if address.parse::<Ipv6Addr>().is_err() {
                let shown = quote(&host[1..end]);
                return Err(format!(
                    "invalid host: ParseAddr({shown}): unable to parse IP"
                ));
            }
            &host[end + 1..]
        }
        Some(_) => return Err("invalid IP-literal".to_owned()),
        None => host.find(':').map_or("", |at| &host[at..]),
    };
    let digits = port.strip_prefix(':').unwrap_or_default();
    if !port.is_empty() && (!port.starts_with(':') || !digits.bytes().all(|b| b.is_ascii_digit())) {
        return Err(format!("invalid port {} after host", quote(port)));
    }
    for (at, c) in host.char_indices() {
        if c == '%' {
            check_escape(host, at)?;
            // An escaped ASCII letter would be another spelling of the same host.
            let escaped = &host[at + 1..at + 3];
            if escaped.as_bytes()[0] < b'8' && escaped != "25" {
                return Err(format!("invalid URL escape {}", quote(&host[at..at + 3])));
            }
        } else if c.is_ascii() && !c.is_ascii_alphanumeric() && !HOST_MARKS.contains(c) {
            return Err(format!(
                "invalid character {} in host name",
                quote(&c.to_string())
            ));
        }
    }
    Ok(())
}

fn check_user(user: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || USER_MARKS.contains(c);
    if !user.chars().all(allowed) {
        return Err("net/url: invalid userinfo".to_owned());
    }
    check_escapes(user)
}

const HOST_MARKS: &str = "-_.~!$&'()*+,;=:[]<>\"";
const USER_MARKS: &str = "-._:~!$&'()*+,;=%@";

fn check_escapes(text: &str) -> Result<(), String> {
    text.match_indices('%')
        .try_for_each(|(at, _)| check_escape(text, at))
}

/// Whether two hexadecimal digits follow the % at `at`.
fn check_escape(text: &str, at: usize) -> Result<(), String> {
    let digits = text.as_bytes().get(at + 1..at + 3);
    if digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) {
        return Ok(());
    }
    let shown: String = text[at..].chars().take(3).collect();
    Err(format!("invalid URL escape {}", quote(&shown)))
}

/// Escapes what is not ASCII, as Go does when it prints a host, and control characters, which only
/// a fragment can have here.
fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_ascii() && !c.is_ascii_control() {
            true => out.push(c),
            false => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    out.push_str(&format!("%{byte:02X}"));
                }
            }
        }
    }
    out
}

/// A host without the escapes that `check_host` allows: the same name or zone, however it is
/// written. What is no UTF-8 without them is no name, and stays as it is.
fn unescaped(host: &str) -> String {
    let mut out = Vec::with_capacity(host.len());
    let mut bytes = host.bytes();
    while let Some(byte) = bytes.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let escape = match byte {
            b'%' => digit(bytes.next()).zip(digit(bytes.next())),
            _ => None,
        };
        out.push(escape.map_or(byte, |(high, low)| (high << 4 | low) as u8));
    }
    String::from_utf8(out).unwrap_or_else(|_| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_texts_and_refuses_as_etcd_does() {
        for (input, expected) in [
            ("http://localhost:2379", Ok("http://localhost:2379")),
            ("HTTP://Localhost:80", Ok("http://Localhost:80")),
            (" http://[::1]:2379 ", Ok("http://[::1]:2379")),
            ("unix:///tmp/a.sock", Ok("unix:///tmp/a.sock")),
            (
                "unix://localhost:m10",
                Err("parse \"unix://localhost:m10\": invalid port \":m10\" after host"),
            ),
            ("http://:2379", Ok("http://:2379")),
            ("https://a.b-c_d:0", Ok("https://a.b-c_d:0")),
            (
                "127.0.0.1:2379",
                Err("parse \"127.0.0.1:2379\": first path segment in URL cannot contain colon"),
            ),
            (
                "localhost:2379",
                Err("URL scheme must be http, https, unix, or unixs: localhost:2379"),
            ),
            (":2379", Err("parse \":2379\": missing protocol scheme")),
            ("", Err("URL scheme must be http, https, unix, or unixs: ")),
            (
                "foo",
                Err("URL scheme must be http, https, unix, or unixs: foo"),
            ),
            (
                "tcp://a:1",
                Err("URL scheme must be http, https, unix, or unixs: tcp://a:1"),
            ),
            (
                "http://localhost",
                Err("URL address does not have the form \"host:port\": http://localhost"),
            ),
            (
                "http:foo",
                Err("URL address does not have the form \"host:port\": http:foo"),
            ),
            (
                "http://::1:80",
                Err("parse \"http://::1:80\": invalid port \"::1:80\" after host"),
            ),
            (
                "http://a:1/",
                Err("URL must not contain a path: http://a:1/"),
            ),
            (
                "http://a:b",
                Err("parse \"http://a:b\": invalid port \":b\" after host"),
            ),
            (
                "http://a:1%zz",
                Err("parse \"http://a:1%zz\": invalid port \":1%zz\" after host"),
            ),
            (
                "http://%zz:1",
                Err("parse \"http://%zz:1\": invalid URL escape \"%zz\""),
            ),
            (
                "http://a:1/%zz",
                Err("parse \"http://a:1/%zz\": invalid URL escape \"%zz\""),
            ),
            (
                "http://a b:1",
                Err("parse \"http://a b:1\": invalid character \" \" in host name"),
            ),
            (
                "http://[::1:1",
                Err("parse \"http://[::1:1\": missing ']' in host"),
            ),
        ] {
            let found = Url::parse(input).map(|url| url.text);
            assert_eq!(
                found,
                expected.map(str::to_owned).map_err(str::to_owned),
                "{input}"
            );
        }
    }

    #[test]
    fn lists_are_sorted_and_unique() {
        let urls = Url::parse_list("http://b:1,http://a:1, http://b:1").unwrap();
        assert_eq!(texts(&urls), ["http://a:1", "http://b:1"]);
        assert!(Url::parse_list("http://a:1,").is_err());
    }

    #[test]
    fn takes_hosts_and_ports_apart() {
        let url = Url::parse("http://[fe80::1]:70").unwrap();
        assert_eq!((url.host.as_str(), url.port.as_str()), ("fe80::1", "70"));
        assert_eq!(url.host_port(), "[fe80::1]:70");
        for (text, host_port) in [
            ("http://[fe80::1%25eth0]:70", "[fe80::1%eth0]:70"),
            ("http://h\u{f6}st:70", "h\u{f6}st:70"),
            ("http://h%C3%B6st:70", "h\u{f6}st:70"),
            ("http://h%FFst:70", "h%FFst:70"),
        ] {
            assert_eq!(
                Url::parse(text).map(|url| url.host_port()).as_deref(),
                Ok(host_port)
            );
        }
    }
}
