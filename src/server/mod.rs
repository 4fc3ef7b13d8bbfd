//! Assembles a member from its configuration and data directory, and serves it.

pub mod assemble;
pub mod bootstrap;
pub mod data_dir;
pub mod descriptors;
pub mod discovery;
mod expiry;
#[cfg(any(test, feature = "failpoints"))]
pub mod failpoints;
pub mod from_etcd;
pub mod from_snapshot;
pub mod gate;
pub mod leave;
pub mod logging;
pub mod member_dir;
mod memory;
mod memory_lock;
pub mod notify;
pub mod publish;
pub mod restore;
pub mod run;
pub mod security;
pub mod signals;
mod sockets;
pub mod states;
pub mod threads;
pub mod to_etcd;
pub mod traces;

/// Why a member did not start, or stopped; one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    MemberDir(#[from] member_dir::Error),
    #[error(transparent)]
    Listen(#[from] crate::net::listen::Error),
    #[error("{0}")]
    Refused(String),
    #[error("failed to join discovery cluster ({reason})")]
    Discovery {
        token: String,
        endpoints: Vec<String>,
        reason: String,
    },
    #[error(transparent)]
    Tls(#[from] crate::net::tls::Error),
    /// That of the listeners for clients.
    #[error(transparent)]
    ClientTls(crate::net::tls::Error),
    #[error(transparent)]
    Tokens(#[from] crate::service::tokens::keys::KeyError),
    #[error(transparent)]
    Storage(#[from] crate::storage::Error),
    #[error("{0}")]
    RaftLog(#[from] crate::storage::raft_log::Error),
    #[error(transparent)]
    Replica(#[from] crate::replica::fatal::Fatal),
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    #[error("cannot {what}: {error}")]
    Os {
        what: &'static str,
        error: std::io::Error,
    },
    /// The member ran and cannot continue.
    #[error("{0}")]
    Failed(String),
}
