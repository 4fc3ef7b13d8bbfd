//! The directory of a stopped member, opened to be read.

use std::path::Path;
use std::sync::Arc;

use super::error::{Error, Result};
use crate::config::Offline;
use crate::server::data_dir::{DataDir, beside_etcd};
use crate::server::member_dir::{MemberDir, MemberIdentity};
use crate::server::states;
use crate::state::Machine;
use crate::storage::Engine;
use crate::storage::raft_log::{self, RaftLog, Reader, Recovered, Stretch};
use crate::storage::rocks::EngineLimits;

/// For reading all of a state once, or writing it anew.
pub const LIMITS: EngineLimits = EngineLimits {
    open_files: 256,
    block_cache_bytes: 32 << 20,
    memtable_bytes: 32 << 20,
};

/// A directory whose member does not run, and cannot be started while this exists.
pub struct Stopped {
    pub dir: DataDir,
    pub identity: MemberIdentity,
}

/// Opens a member's directory; nothing in it is changed.
pub fn open(command: &Offline) -> Result<Stopped> {
    let path = &command.path;
    if !path.join("member").is_dir() && !beside_etcd(path).is_dir() {
        return Err(Error::Refused(format!(
            "{} is no data directory of etched: it has no directory \"member\"",
            path.display()
        )));
    }
    let dir = DataDir::open_read_only(path, command.wal_dir.as_deref(), LIMITS)?;
    match as_dyn(&dir).identity()? {
        Some(identity) => Ok(Stopped { dir, identity }),
        None => Err(Error::Refused(no_identity(path))),
    }
}

fn no_identity(path: &Path) -> String {
    let file = path.join("member").join("snap").join("db");
    let path = path.display();
    match file.exists() {
        true => format!(
            "{path} holds the data of an etcd, not of etched; `etched status {}` reads etcd's file",
            file.display()
        ),
        false => format!(
            "{path} holds no member of etched: its IDENTITY file is missing; if there was one, restore it from a backup"
        ),
    }
}

fn as_dyn(dir: &DataDir) -> &dyn MemberDir {
    dir
}

impl Stopped {
    pub fn dir(&self) -> &dyn MemberDir {
        as_dyn(&self.dir)
    }

    /// The raft log, and how it ends.
    pub fn log(&self) -> Result<(Reader, Recovered)> {
        let files = self.dir().log_files()?;
        let opened = RaftLog::inspect(files, &self.log_options());
        Ok(opened.map_err(crate::server::Error::from)?)
    }

    /// All entries that its segments hold, those that are compacted included.
    pub fn log_history(&self) -> Result<Vec<Stretch>> {
        let files = self.dir().log_files()?;
        let found = raft_log::history(&files, &self.log_options());
        Ok(found.map_err(crate::server::Error::from)?)
    }

    fn log_options(&self) -> raft_log::LogOptions {
        raft_log::LogOptions {
            segment_bytes: raft_log::DEFAULT_SEGMENT_BYTES,
            cluster_id: self.identity.cluster.0,
            member_id: self.identity.member.0,
            sync: true,
        }
    }

    /// The keyspace of `state`.
    ///
    /// # Errors
    /// It holds a part of a large write.
    pub fn machine(&self, begins_behind: u64) -> Result<(String, Machine)> {
        let (name, engine) = self.state(begins_behind)?;
        match Machine::is_between_entries(engine.latest())? {
            true => Ok((name, Machine::open(engine)?)),
            false => Err(Error::Refused(format!(
                "{} was left within a write of many keys; start the member and stop it, which ends that write",
                self.dir.path(&name).display()
            ))),
        }
    }

    /// The state that a start would take for a log that begins behind this entry, and its name.
    pub fn state(&self, begins_behind: u64) -> Result<(String, Arc<dyn Engine>)> {
        Ok(states::open_read_only(self.dir(), begins_behind)?)
    }
}
