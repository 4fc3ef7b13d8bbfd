//! etcd's snapshot files: a bbolt file of the whole state, as etcd writes it. No other snapshot is
//! meant here, but in `wal`, where etcd calls a saved state's record and snap file by that name.
//!
//! - `bbolt` knows the file format, and nothing of etcd;
//! - `etcd` knows what etcd keeps in such a file;
//! - `export` makes a file of one consistent view of a state: it sorts the records by their revisions,
//!   the order that etcd keeps them in and etched does not;
//! - `import` makes a state of a file;
//! - `status` says what is in a file;
//! - `applied` says whose state a file is, and how far it is;
//! - `wal` knows the files of etcd's raft log, which stand beside such a file.

pub mod applied;
pub mod bbolt;
pub mod etcd;
pub mod export;
pub mod import;
pub mod status;
pub mod wal;

use std::io;

use crate::storage;

/// Why a file could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state cannot be read; the process must stop.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// Records could not be put aside for sorting.
    #[error("cannot sort the records in the data directory: {0}")]
    Sort(#[from] io::Error),
    /// Who asked for it is gone.
    #[error("nobody reads the snapshot")]
    Unread,
}
