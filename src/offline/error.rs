//! Why a command could not do what it is for.

use std::io;

use crate::backup::{self, bbolt};
use crate::server::from_snapshot::HashError;
use crate::server::{self, member_dir};
use crate::{mvcc, storage};

/// Why a command could not do what it is for; one sentence.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Server(#[from] server::Error),
    #[error(transparent)]
    HashKv(#[from] mvcc::hash::HashError),
    #[error("{0}")]
    Refused(String),
    /// What was wrong is in the output.
    #[error("problems found: {0}")]
    Problems(usize),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl From<member_dir::Error> for Error {
    fn from(error: member_dir::Error) -> Self {
        match error {
            member_dir::Error::InUse(path) => Self::Refused(format!(
                "{} is in use by a running member; stop it first",
                path.display()
            )),
            error => Self::Server(error.into()),
        }
    }
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        Self::Server(error.into())
    }
}

/// Why etcd's snapshot file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    File(#[from] bbolt::read::Error),
    #[error(transparent)]
    Content(#[from] backup::import::Error),
    #[error(transparent)]
    Hash(#[from] HashError),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
