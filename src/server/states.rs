//! The member's state directories, and how one takes another's place.
//!
//! ```text
//! STATE            the name of the state in use; without it: state
//! state            the first state
//! state-<index>    one that came from the leader, whole, as of this entry
//! */OWNER          whose it is
//! receiving-*      one that is coming
//! sending-*        a checkpoint made for another member
//! ```
//!
//! The replica calls it as its `SnapshotStore`; `transport::snapshot_in` brings the files.
//!
//! A received state is installed in four steps, each durable before the next begins:
//!
//! 1. its files come into `receiving-*`, whole and synced (`transport`);
//! 2. `receive` checks that they hold the state that was announced, renames the directory to
//!    `state-<index>` and marks it as this member's;
//! 3. the log thread resets the raft log to that entry;
//! 4. `adopt` has STATE name it. The engine that was in use removes its directory when its last
//!    reader is gone.
//!
//! A crash before the third step leaves the old state and its log; one after it leaves a log that
//! begins behind what the old state holds, and `open` finds the state that fits by its name.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Error;
use super::member_dir::MemberDir;
use crate::failpoints::{self, Failpoint};
use crate::probe::{self, CoveragePoint};
use crate::replica::state_store::{Checkpoint, Received, SnapshotStore, entry_id_of, snapshot_of};
use crate::state::Machine;
use crate::storage::raft_log::EntryId;
use crate::storage::{self, Engine, Read};
use crate::transport::SnapshotDir;

/// True for the names that are given here: a start removes such directories, but for the state in
/// use. What an operator put aside has another name, and stays.
fn is_ours(name: &str) -> bool {
    let index = name.strip_prefix("state-");
    let received = index.is_some_and(|index| {
        index.len() == 16 && index.bytes().all(|digit| digit.is_ascii_hexdigit())
    });
    name == "state" || received || name.starts_with("receiving-") || name.starts_with("sending-")
}

/// The name of a received state.
pub fn received_name(index: u64) -> String {
    format!("state-{index:016x}")
}

/// Opens the state in use. Where the log was reset to the entry
/// `reset_to` for a received state and a crash kept that from coming into use, it is the state
/// in use from now on.
pub fn open(dir: &dyn MemberDir, reset_to: u64) -> Result<Arc<dyn Engine>, Error> {
    let name = dir.current_state()?;
    let mut engine = dir.open_engine(&name)?;
    let applied = entry_id_of(engine.latest())?.index;
    let received = received_name(reset_to);
    if applied < reset_to && dir.exists(&received) {
        probe::reached(CoveragePoint::StateTakenUpAfterCrash);
        drop(engine);
        engine = dir.open_engine(&received)?;
        dir.set_current_state(&received)?;
        tracing::info!(
            index = reset_to,
            "took over a state that was received before the last stop"
        );
    }
    Ok(engine)
}

/// The same for reading, and the name of its directory: nothing is changed.
pub fn open_read_only(
    dir: &dyn MemberDir,
    reset_to: u64,
) -> Result<(String, Arc<dyn Engine>), Error> {
    let open = |name: &str| dir.open_read_only(&dir.path(name));
    let name = dir.current_state()?;
    let engine = open(&name)?;
    let received = received_name(reset_to);
    if entry_id_of(engine.latest())?.index < reset_to && dir.exists(&received) {
        let engine = open(&received)?;
        return Ok((received, engine));
    }
    Ok((name, engine))
}

/// Removes all directories of states but that in use, once it is known to be this member's.
pub fn remove_unused(dir: &dyn MemberDir) -> Result<(), Error> {
    let in_use = dir.current_state()?;
    for name in dir.list()? {
        if name != in_use && is_ours(&name) {
            dir.remove(&name)?;
        }
    }
    Ok(())
}

/// See the module.
pub struct StateDirs {
    dir: Arc<dyn MemberDir>,
    next_sending: AtomicU64,
    claimed: Mutex<Claimed>,
}

impl StateDirs {
    pub fn new(dir: Arc<dyn MemberDir>) -> Self {
        Self {
            dir,
            next_sending: AtomicU64::new(1),
            claimed: Mutex::default(),
        }
    }
}

impl SnapshotStore for StateDirs {
    fn checkpoint(&self, engine: &dyn Engine) -> storage::Result<Checkpoint> {
        let number = self.next_sending.fetch_add(1, Ordering::Relaxed);
        let files = self.dir.lend(&format!("sending-{number}"));
        engine.checkpoint(files.path())?;
        let copy = self.dir.open_read_only(files.path())?;
        Ok(Checkpoint {
            snapshot: snapshot_of(copy.latest())?,
            files: Arc::new(files),
        })
    }

    fn receive(&self, files: SnapshotDir, entry_id: EntryId) -> Result<Received, String> {
        let dir = self.dir.as_ref();
        let copy = dir
            .open_read_only(files.path())
            .map_err(|error| error.to_string())?;
        let mut claimed = self.claimed.lock();
        claimed.check(copy.latest(), entry_id)?;
        drop(copy);
        let name = received_name(entry_id.index);
        let files = rename(dir, files, &name)?;
        dir.own(&name).map_err(|error| error.to_string())?;
        Ok(Received {
            entry_id,
            files,
            claim: claimed.claim(entry_id.index),
        })
    }

    fn adopt(&self, received: Received) -> storage::Result<Arc<dyn Engine>> {
        // The log has been reset to it: from now on it must stay, whatever fails.
        received.files.keep();
        let name = received_name(received.entry_id.index);
        failpoints::hit(Failpoint::ApplyBeforeOpenSnapshot);
        let engine = self.dir.open_engine(&name)?;
        failpoints::hit(Failpoint::ApplyAfterOpenSnapshot);
        self.require_format(Machine::format_of(engine.latest())?)?;
        self.dir
            .set_current_state(&name)
            .map_err(|error| storage::Error::Engine(error.to_string()))?;
        Ok(engine)
    }

    fn require_format(&self, format: u64) -> storage::Result<()> {
        self.dir
            .require_format(format)
            .map_err(|error| storage::Error::Engine(error.to_string()))
    }
}

/// Renames received files to their final name, durably.
fn rename(dir: &dyn MemberDir, files: SnapshotDir, name: &str) -> Result<SnapshotDir, String> {
    let text = |error: super::member_dir::Error| error.to_string();
    if name == dir.current_state().map_err(text)? {
        return Err("this state is already in use".to_owned());
    }
    dir.remove(name).map_err(text)?;
    dir.rename(files.path(), name).map_err(text)?;
    files.keep();
    let files = dir.lend(name);
    dir.sync().map_err(text)?;
    Ok(files)
}

/// The received state that is about to be used, if any.
#[derive(Default)]
struct Claimed {
    index: u64,
    claim: Weak<()>,
}

impl Claimed {
    /// Refuses a received state that contains something else than announced, or that was received
    /// before and is about to be used.
    fn check(&self, state: &dyn Read, announced: EntryId) -> Result<(), String> {
        let found = entry_id_of(state).map_err(|error| error.to_string())?;
        if found != announced {
            return Err(format!(
                "its state is that after entry {} of term {}, not {} of {}",
                found.index, found.term, announced.index, announced.term
            ));
        }
        if self.index == announced.index && self.claim.strong_count() > 0 {
            return Err("the same state came before and is about to be used".to_owned());
        }
        Ok(())
    }

    /// Records the state received last; it is about to be used while the claim exists.
    fn claim(&mut self, index: u64) -> Arc<()> {
        let claim = Arc::new(());
        *self = Self {
            index,
            claim: Arc::downgrade(&claim),
        };
        claim
    }
}
