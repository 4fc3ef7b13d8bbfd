//! States on disks that are memory: what a member's machine has on its drive, and how a state
//! takes another's place, by the rules of the real ones (`node::states`).
//!
//! A `Drive` outlives the lives of its member. What a process that died would never have done, its
//! destructors must not do here: a `SimStates` of an earlier life removes nothing. So a drive has
//! to be told of a death before what lived on it is dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::node::states::{
    Checkpoint, Claimed, Received, States, mark_of, received_name, snapshot_of, takes_over,
};
use crate::storage::memory::{Checkpoints, MemoryEngine};
use crate::storage::raft_log::{Mark, MemoryDisk};
use crate::storage::{self, Engine};
use crate::transport::SnapshotDir;
use crate::types::MemberId;

/// The state that a member begins with.
const FIRST_NAME: &str = "state";

/// The directories of all machines of a world: each holds a state.
#[derive(Default)]
pub struct Shelf {
    /// For the engines, which can make checkpoints on it.
    itself: Weak<Shelf>,
    directories: Mutex<BTreeMap<PathBuf, MemoryEngine>>,
}

impl Shelf {
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            directories: Mutex::default(),
        })
    }

    /// Where the directories of a member's machine are.
    pub fn root(member: MemberId) -> PathBuf {
        PathBuf::from(format!("member-{member}"))
    }

    /// The state in a directory.
    pub fn get(&self, path: &Path) -> Option<MemoryEngine> {
        self.directories.lock().get(path).cloned()
    }

    /// The directories below `root`.
    pub fn list(&self, root: &Path) -> Vec<PathBuf> {
        let directories = self.directories.lock();
        let below = directories.keys().filter(|path| path.starts_with(root));
        below.cloned().collect()
    }

    /// Copies a directory, as a snapshot that went over the network; false where it is gone.
    pub fn copy(&self, from: &Path, to: &Path) -> bool {
        match self.get(from) {
            Some(state) => self.keep(to, state.copy()).is_ok(),
            None => false,
        }
    }

    pub fn remove(&self, path: &Path) {
        let gone = self.directories.lock().remove(path);
        drop(gone);
    }

    /// A directory that is removed when what is returned is dropped.
    pub fn lend(self: &Arc<Self>, path: PathBuf) -> SnapshotDir {
        let shelf = Arc::downgrade(self);
        let remove = move |path: &Path| {
            if let Some(shelf) = shelf.upgrade() {
                shelf.remove(path);
            }
        };
        SnapshotDir::of(path, Box::new(remove))
    }

    fn empty(&self) -> MemoryEngine {
        MemoryEngine::on(self.itself.clone())
    }

    fn put(&self, path: PathBuf, state: MemoryEngine) {
        let before = self.directories.lock().insert(path, state);
        drop(before);
    }

    fn rename(&self, from: &Path, to: PathBuf) -> bool {
        let state = self.directories.lock().remove(from);
        let found = state.is_some();
        if let Some(state) = state {
            self.put(to, state);
        }
        found
    }
}

impl Checkpoints for Shelf {
    fn keep(&self, dir: &Path, copy: MemoryEngine) -> storage::Result<()> {
        let mut directories = self.directories.lock();
        if directories.contains_key(dir) {
            let text = format!("{} is there already", dir.display());
            return Err(storage::Error::Engine(text));
        }
        directories.insert(dir.to_owned(), copy);
        Ok(())
    }
}

/// What a member's machine keeps over the member's lives.
pub struct Drive {
    shelf: Arc<Shelf>,
    root: PathBuf,
    life: AtomicU64,
    content: Mutex<Content>,
}

struct Content {
    log: Arc<MemoryDisk>,
    /// The name of the state in use.
    in_use: String,
}

impl Content {
    fn new() -> Self {
        Self {
            log: Arc::default(),
            in_use: FIRST_NAME.to_owned(),
        }
    }
}

impl Drive {
    /// An empty one.
    pub fn new(shelf: Arc<Shelf>, member: MemberId) -> Arc<Self> {
        let drive = Self {
            root: Shelf::root(member),
            shelf,
            life: AtomicU64::new(1),
            content: Mutex::new(Content::new()),
        };
        drive.wipe();
        Arc::new(drive)
    }

    /// Where the raft log is. The same until the drive is wiped.
    pub fn log(&self) -> Arc<MemoryDisk> {
        self.content.lock().log.clone()
    }

    /// The state in use, for those who look on.
    pub fn state(&self) -> MemoryEngine {
        let path = self.path(&self.content.lock().in_use);
        self.shelf.get(&path).unwrap_or_default()
    }

    /// Opens the state that a start opens, where the log begins behind the entry `log_reset_to`,
    /// and removes all others.
    pub fn open_state(&self, log_reset_to: u64) -> storage::Result<Arc<MemoryEngine>> {
        let mut content = self.content.lock();
        let mut engine = self.open(&content.in_use);
        let name = received_name(log_reset_to);
        let received = self.shelf.get(&self.path(&name));
        let applied = mark_of(engine.latest())?.index;
        if takes_over(applied, log_reset_to, received.is_some()) {
            engine = self.open(&name);
            content.in_use = name;
        }
        self.remove_all_but(&content.in_use);
        Ok(Arc::new(engine))
    }

    /// The states of a life that begins now.
    pub fn states(self: &Arc<Self>) -> Arc<SimStates> {
        Arc::new(SimStates {
            life: self.life.load(Ordering::SeqCst),
            drive: self.clone(),
            next_sending: AtomicU64::new(1),
            claimed: Mutex::default(),
        })
    }

    /// The process dies and the machine does not: what was written to the raft log is still
    /// there. A state loses what was not flushed.
    pub fn kill(&self) {
        self.log().kill();
        self.end_life();
    }

    /// The machine loses its power.
    pub fn crash(&self, seed: u64) {
        self.log().crash(seed);
        self.end_life();
    }

    /// Everything is gone, as on a new disk. Nothing may live on it.
    pub fn wipe(&self) {
        self.end_life();
        let mut content = self.content.lock();
        *content = Content::new();
        self.remove_all_but("");
        self.shelf.put(self.path(FIRST_NAME), self.shelf.empty());
    }

    fn end_life(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
        for path in self.shelf.list(&self.root) {
            if let Some(state) = self.shelf.get(&path) {
                self.shelf.put(path, state.survivor());
            }
        }
    }

    fn is_alive(&self, life: u64) -> bool {
        self.life.load(Ordering::SeqCst) == life
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn open(&self, name: &str) -> MemoryEngine {
        let path = self.path(name);
        self.shelf.get(&path).unwrap_or_else(|| {
            let engine = self.shelf.empty();
            self.shelf.put(path, engine.clone());
            engine
        })
    }

    fn remove_all_but(&self, name: &str) {
        let kept = self.path(name);
        for path in self.shelf.list(&self.root) {
            if path != kept {
                self.shelf.remove(&path);
            }
        }
    }
}

/// The state directories as one life of a member uses them.
pub struct SimStates {
    drive: Arc<Drive>,
    life: u64,
    next_sending: AtomicU64,
    claimed: Mutex<Claimed>,
}

impl SimStates {
    /// A directory that is removed when what is returned is dropped, but not by the dead.
    fn lend(&self, path: PathBuf) -> SnapshotDir {
        let (drive, life) = (Arc::downgrade(&self.drive), self.life);
        let remove = move |path: &Path| {
            if let Some(drive) = drive.upgrade()
                && drive.is_alive(life)
            {
                drive.shelf.remove(path);
            }
        };
        SnapshotDir::of(path, Box::new(remove))
    }

    fn check_alive(&self) -> Result<(), String> {
        match self.drive.is_alive(self.life) {
            true => Ok(()),
            false => Err("the process that asks is dead".to_owned()),
        }
    }
}

impl States for SimStates {
    fn checkpoint(&self, engine: &dyn Engine) -> storage::Result<Checkpoint> {
        self.check_alive().map_err(storage::Error::Engine)?;
        let number = self.next_sending.fetch_add(1, Ordering::Relaxed);
        let files = self.lend(self.drive.path(&format!("sending-{number}")));
        engine.checkpoint(files.path())?;
        let copy = self.drive.shelf.get(files.path()).unwrap_or_default();
        Ok(Checkpoint {
            snapshot: snapshot_of(&copy)?,
            files: Arc::new(files),
        })
    }

    fn receive(&self, files: SnapshotDir, mark: Mark) -> Result<Received, String> {
        self.check_alive()?;
        let shelf = &self.drive.shelf;
        let copy = shelf.get(files.path());
        let copy = copy.ok_or_else(|| format!("{} is not there", files.path().display()))?;
        let mut claimed = self.claimed.lock();
        claimed.check(&copy, mark)?;
        let name = received_name(mark.index);
        if name == self.drive.content.lock().in_use {
            return Err("this state is already in use".to_owned());
        }
        let path = self.drive.path(&name);
        shelf.remove(&path);
        if !shelf.rename(&files.keep(), path.clone()) {
            return Err("the files went away".to_owned());
        }
        Ok(Received {
            mark,
            files: self.lend(path),
            claim: claimed.claim(mark.index),
        })
    }

    fn adopt(&self, received: Received) -> storage::Result<Arc<dyn Engine>> {
        self.check_alive().map_err(storage::Error::Engine)?;
        let path = received.files.keep();
        let Some(engine) = self.drive.shelf.get(&path) else {
            let text = format!("{} is not there", path.display());
            return Err(storage::Error::Open(text));
        };
        let mut content = self.drive.content.lock();
        let name = received_name(received.mark.index);
        let before = std::mem::replace(&mut content.in_use, name);
        // Nobody opens it again; who reads it holds it.
        self.drive.shelf.remove(&self.drive.path(&before));
        Ok(Arc::new(engine))
    }
}
