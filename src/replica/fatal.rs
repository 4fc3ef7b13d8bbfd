//! Fatal errors: the disk or an invariant failed, and the process has to end.

use crate::storage;
use crate::storage::raft_log;

/// Why a thread ended before it was stopped.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error("raft log: {0}")]
    Log(#[from] raft_log::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Lost(#[from] crate::raft::Lost),
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    #[error("raft took over the received state at entry {0}, whose files are not here")]
    NoFiles(u64),
    #[error("cannot start the {0} thread: {1}")]
    Thread(&'static str, std::io::Error),
}
