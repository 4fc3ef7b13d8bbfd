//! TLS of listeners and of outgoing connections: who has to show a certificate, and what is taken of it.
//!
//! Versions, cipher suites and what a certificate must have are etcd's, as far as rustls has them.
//! No session is resumed, so that every connection is checked against the present files.
//!
//! - `files` reads certificates and keys; a server reads them again when they change (`reread`).
//! - `self_signed` makes a certificate without an authority.
//! - `suites` knows etcd's names of versions and cipher suites.
//! - `verify` decides about the other side's certificate, `certificate` takes the names from it, and
//!   `revoked` knows those that do not count any more.
//! - `server` and `client` make the handshakes, `hello` reads how one begins, and
//!   `handshakes` bounds how many are under way; `source` then asks whether a member's certificate
//!   belongs to the address that it calls from.
//! - `rejected` reports connections that came to nothing, with what was `shown`, in the `words` that
//!   etcd has for it.

mod certificate;
mod client;
mod files;
mod handshakes;
mod hello;
mod rejected;
mod reread;
mod revoked;
mod self_signed;
mod server;
mod shown;
mod source;
mod suites;
#[cfg(test)]
pub mod tests;
mod verify;
mod words;

use std::path::PathBuf;

pub use certificate::{Certificate, Expiry};
pub use client::{ClientSettings, TlsClient, common_name};
pub use rejected::Rejections;
pub use self_signed::self_signed;
pub use server::{Refused, Session, TlsServer};
#[cfg(test)]
pub use suites::suite;
#[cfg(any(test, feature = "fuzzing"))]
pub use verify::accepts;

/// Why TLS cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("open {}: {reason}", path.display())]
    Read { path: PathBuf, reason: String },
    #[error("{}: {reason}", path.display())]
    Content { path: PathBuf, reason: String },
    /// Go's words.
    #[error("tls: private key does not match public key")]
    Mismatch,
    #[error("cannot make a certificate for {hosts:?}: {reason}")]
    Make { hosts: Vec<String>, reason: String },
    #[error("{0}")]
    Library(String),
}

impl From<rustls::Error> for Error {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InconsistentKeys(_) => Error::Mismatch,
            error => Error::Library(format!("tls: {error}")),
        }
    }
}

/// A version of TLS, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Tls12,
    Tls13,
}

/// What both sides of a connection are held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    pub least: Version,
    pub most: Version,
    /// Those of TLS 1.2, by etcd's names; empty for all that the library has. Those of TLS 1.3
    /// cannot be chosen.
    pub cipher_suites: Vec<String>,
}

/// How a listener is encrypted.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Whose certificates clients must have; none: clients need no certificate.
    pub clients: Option<Clients>,
    pub protocol: Protocol,
}

/// Whose certificates are accepted.
#[derive(Clone, Debug)]
pub struct Clients {
    /// The authorities that vouch for them; none: those that the machine trusts.
    pub authorities: Option<PathBuf>,
    /// The list of those that are not accepted any more.
    pub revoked: Option<PathBuf>,
    pub allowed: Allowed,
    /// Whether the names in a certificate must be those of the address that it is shown from.
    pub checks_source: bool,
}

/// Names of which a certificate must have one; empty for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    pub common_names: Vec<String>,
    pub host_names: Vec<String>,
}
