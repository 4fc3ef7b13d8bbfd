//! Where sockets are: an address of the network, or a file.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Where to listen, or whom to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    /// The file of a Unix socket.
    File(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::File(path) => path.display().fmt(f),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Tcp(address)
    }
}

/// Who is at the other end of a connection that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    Tcp(SocketAddr),
    /// Some process of this machine, at a socket file.
    Local,
}

impl Remote {
    /// None for one of this machine.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Remote::Tcp(address) => Some(address.ip()),
            Remote::Local => None,
        }
    }
}

/// Go's spelling of a client without a name is `@`.
impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remote::Tcp(address) => address.fmt(f),
            Remote::Local => f.write_str("@"),
        }
    }
}

/// The file that a URL with the scheme `unix` or `unixs` names; none for other URLs, and for one
/// that names none. What stands where others have a host and port is the beginning of its path,
/// as in etcd: `unix://localhost:2379` is a file in the working directory.
pub fn socket_file(url: &str) -> Option<PathBuf> {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;

    let (scheme, rest) = url.split_once(':')?;
    if !matches!(scheme, "unix" | "unixs") {
        return None;
    }
    let rest = rest.split(['#', '?']).next()?;
    let named = match rest.strip_prefix("//") {
        Some(named) => {
            let (authority, _) = named.split_once('/').unwrap_or((named, ""));
            let user = authority.rfind('@').map_or(0, |at| at + 1);
            &named[user..]
        }
        // Without slashes it is no path in etcd, and nothing can be reached by it.
        None => Some(rest).filter(|rest| rest.starts_with('/'))?,
    };
    let mut path = Vec::with_capacity(named.len());
    let mut bytes = named.bytes();
    while let Some(byte) = bytes.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        path.push(match byte {
            b'%' => (digit(bytes.next())? << 4 | digit(bytes.next())?) as u8,
            byte => byte,
        });
    }
    let is_path = !path.is_empty() && !path.contains(&0);
    is_path.then(|| PathBuf::from(OsString::from_vec(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_files_as_in_etcd() {
        for (url, file) in [
            ("unix:///run/etcd.sock", Some("/run/etcd.sock")),
            ("unixs:///run/etcd.sock", Some("/run/etcd.sock")),
            ("unix:/run/etcd.sock", Some("/run/etcd.sock")),
            ("unix://localhost:2379", Some("localhost:2379")),
            ("unix://rel/a.sock", Some("rel/a.sock")),
            ("unix://user@rel/a@b", Some("rel/a@b")),
            ("unix:///a%20b?q#f", Some("/a b")),
            ("unix:///a%2", None),
            ("unix:///a%00", None),
            ("unix:a.sock", None),
            ("unix://", None),
            ("unix:", None),
            ("http:///run/etcd.sock", None),
            ("/run/etcd.sock", None),
        ] {
            assert_eq!(socket_file(url), file.map(PathBuf::from), "{url}");
        }
    }

    #[test]
    fn a_local_client_has_no_name() {
        assert_eq!(Remote::Local.to_string(), "@");
        assert_eq!(Remote::Local.ip(), None);
    }
}
