//! Why a process before a cluster did not start; one sentence.

use std::io;

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Listen(#[from] crate::net::listen::Error),
    #[error(transparent)]
    Server(#[from] crate::server::Error),
    #[error("failed to resolve {what}: {host}: {error}")]
    Resolve {
        what: &'static str,
        host: String,
        error: io::Error,
    },
}
