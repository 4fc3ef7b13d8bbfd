//! The member's state directories, and how one takes another's place.
//!
//! ```text
//! member/STATE            the name of the state in use; without it: state
//! member/state            the first state
//! member/state-<index>    one that came from the leader, whole, as of this entry
//! member/receiving-*      one that is coming
//! member/sending-*        a snapshot made for another member
//! ```
//!
//! A received state gets its lasting name only when it is whole, looked at and durable. Then the
//! log is reset to its index, and only then STATE names it. A crash in between leaves a log that
//! begins behind what the old state holds: the next start finds the state that fits by its name.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::data_dir::DataDir;
use crate::replica::state_store::{
    Checkpoint, Claimed, Received, SnapshotStore, received_name, snapshot_of,
};
use crate::storage::raft_log::EntryId;
use crate::storage::rocks::{Budget, RocksEngine};
use crate::storage::{self, Engine};
use crate::transport::SnapshotDir;

/// See the module.
pub struct StateDirs {
    dir: Arc<DataDir>,
    budget: Budget,
    next_sending: AtomicU64,
    claimed: Mutex<Claimed>,
}

impl StateDirs {
    pub fn new(dir: Arc<DataDir>, budget: Budget) -> Self {
        Self {
            dir,
            budget,
            next_sending: AtomicU64::new(1),
            claimed: Mutex::default(),
        }
    }
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> String {
    format!("cannot {what} {}: {error}", path.display())
}

impl SnapshotStore for StateDirs {
    fn checkpoint(&self, engine: &dyn Engine) -> storage::Result<Checkpoint> {
        let number = self.next_sending.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.member().join(format!("sending-{number}"));
        let files = SnapshotDir::new(path);
        engine.checkpoint(files.path())?;
        let copy = RocksEngine::open_read_only(files.path())?;
        Ok(Checkpoint {
            snapshot: snapshot_of(&copy)?,
            files: Arc::new(files),
        })
    }

    fn receive(&self, files: SnapshotDir, entry_id: EntryId) -> Result<Received, String> {
        let copy = RocksEngine::open_read_only(files.path()).map_err(|error| error.to_string())?;
        let mut claimed = self.claimed.lock();
        claimed.check(&copy, entry_id)?;
        drop(copy);
        let path = self.dir.member().join(received_name(entry_id.index));
        if path == self.dir.state().map_err(|error| error.to_string())? {
            return Err("this state is already in use".to_owned());
        }
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(|error| failed("remove", &path, &error))?;
        }
        let from = files.keep();
        std::fs::rename(&from, &path).map_err(|error| {
            drop(SnapshotDir::new(from.clone()));
            failed("rename", &from, &error)
        })?;
        let files = SnapshotDir::new(path);
        self.dir.sync().map_err(|error| error.to_string())?;
        let claim = claimed.claim(entry_id.index);
        Ok(Received {
            entry_id,
            files,
            claim,
        })
    }

    fn adopt(&self, received: Received) -> storage::Result<Arc<dyn Engine>> {
        let path = received.files.keep();
        self.dir
            .set_state(&received_name(received.entry_id.index))
            .map_err(|error| storage::Error::Engine(error.to_string()))?;
        Ok(Arc::new(RocksEngine::open(&path, self.budget)?))
    }
}
