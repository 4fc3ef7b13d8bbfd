//! SnapshotStore on disks that are memory: what a member's machine has on its disk, and how a state
//! takes another's place, by the rules of the real ones (`node::states`).
//!
//! A `SimDisk` outlives the lives of its member. What a process that died would never have done, its
//! destructors must not do here: a directory that is dropped is removed when its life next does
//! something, for only then was it not the end that dropped it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::replica::state_store::{
    Checkpoint, Claimed, Received, SnapshotStore, entry_id_of, received_name, snapshot_of,
    takes_over,
};
use crate::storage::memory::{Checkpoints, MemoryEngine};
use crate::storage::raft_log::{EntryId, MemoryDisk};
use crate::storage::{self, Engine};
use crate::transport::SnapshotDir;
use crate::types::MemberId;

/// The state that a member begins with.
const FIRST_NAME: &str = "state";

/// The directories of all machines of a world: each holds a state.
#[derive(Default)]
pub struct SimDisks {
    /// For the engines, which can make checkpoints on it.
    itself: Weak<SimDisks>,
    directories: Mutex<BTreeMap<PathBuf, MemoryEngine>>,
}

impl SimDisks {
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
        let disks = Arc::downgrade(self);
        let remove = move |path: &Path| {
            if let Some(disks) = disks.upgrade() {
                disks.remove(path);
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

impl Checkpoints for SimDisks {
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
pub struct SimDisk {
    disks: Arc<SimDisks>,
    root: PathBuf,
    life: AtomicU64,
    /// Directories that this life has dropped.
    dropped: Mutex<Vec<PathBuf>>,
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

impl SimDisk {
    /// An empty one.
    pub fn new(disks: Arc<SimDisks>, member: MemberId) -> Arc<Self> {
        let disk = Self {
            root: SimDisks::root(member),
            disks,
            life: AtomicU64::new(1),
            dropped: Mutex::default(),
            content: Mutex::new(Content::new()),
        };
        disk.wipe();
        Arc::new(disk)
    }

    /// Where the raft log is. The same until the disk is wiped.
    pub fn log(&self) -> Arc<MemoryDisk> {
        self.content.lock().log.clone()
    }

    /// The state in use, for those who look on.
    pub fn state(&self) -> MemoryEngine {
        let path = self.path(&self.content.lock().in_use);
        self.disks.get(&path).unwrap_or_default()
    }

    /// Opens the state that a start opens, where the log begins behind the entry `log_reset_to`,
    /// and removes all others.
    pub fn open_state(&self, log_reset_to: u64) -> storage::Result<Arc<MemoryEngine>> {
        let mut content = self.content.lock();
        let mut engine = self.open(&content.in_use);
        let name = received_name(log_reset_to);
        let received = self.disks.get(&self.path(&name));
        let applied = entry_id_of(engine.latest())?.index;
        if takes_over(applied, log_reset_to, received.is_some()) {
            engine = self.open(&name);
            content.in_use = name;
        }
        self.remove_all_but(&content.in_use);
        Ok(Arc::new(engine))
    }

    /// The states of a life that begins now.
    pub fn states(self: &Arc<Self>) -> Arc<SimSnapshotStore> {
        Arc::new(SimSnapshotStore {
            life: self.life.load(Ordering::SeqCst),
            disk: self.clone(),
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
        self.disks.put(self.path(FIRST_NAME), self.disks.empty());
    }

    fn end_life(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
        self.dropped.lock().clear();
        for path in self.disks.list(&self.root) {
            if let Some(state) = self.disks.get(&path) {
                self.disks.put(path, state.survivor());
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
        self.disks.get(&path).unwrap_or_else(|| {
            let engine = self.disks.empty();
            self.disks.put(path, engine.clone());
            engine
        })
    }

    fn remove_all_but(&self, name: &str) {
        let kept = self.path(name);
        for path in self.disks.list(&self.root) {
            if path != kept {
                self.disks.remove(&path);
            }
        }
    }
}

/// The state directories as one life of a member uses them.
pub struct SimSnapshotStore {
    disk: Arc<SimDisk>,
    life: u64,
    next_sending: AtomicU64,
    claimed: Mutex<Claimed>,
}

impl SimSnapshotStore {
    /// A directory that is removed after what is returned was dropped, but not by the dead.
    fn lend(&self, path: PathBuf) -> SnapshotDir {
        let (disk, life) = (Arc::downgrade(&self.disk), self.life);
        let remove = move |path: &Path| {
            if let Some(disk) = disk.upgrade()
                && disk.is_alive(life)
            {
                disk.dropped.lock().push(path.to_owned());
            }
        };
        SnapshotDir::of(path, Box::new(remove))
    }

    /// Removes what this life has dropped; an error where it has ended.
    fn live(&self) -> Result<(), String> {
        if !self.disk.is_alive(self.life) {
            return Err("the process that asks is dead".to_owned());
        }
        let dropped = std::mem::take(&mut *self.disk.dropped.lock());
        for path in dropped {
            self.disk.disks.remove(&path);
        }
        Ok(())
    }
}

impl SnapshotStore for SimSnapshotStore {
    fn checkpoint(&self, engine: &dyn Engine) -> storage::Result<Checkpoint> {
        self.live().map_err(storage::Error::Engine)?;
        let number = self.next_sending.fetch_add(1, Ordering::Relaxed);
        let files = self.lend(self.disk.path(&format!("sending-{number}")));
        engine.checkpoint(files.path())?;
        let copy = self.disk.disks.get(files.path()).unwrap_or_default();
        Ok(Checkpoint {
            snapshot: snapshot_of(&copy)?,
            files: Arc::new(files),
        })
    }

    fn receive(&self, files: SnapshotDir, entry_id: EntryId) -> Result<Received, String> {
        self.live()?;
        let disks = &self.disk.disks;
        let copy = disks.get(files.path());
        let copy = copy.ok_or_else(|| format!("{} is not there", files.path().display()))?;
        let mut claimed = self.claimed.lock();
        claimed.check(&copy, entry_id)?;
        let name = received_name(entry_id.index);
        if name == self.disk.content.lock().in_use {
            return Err("this state is already in use".to_owned());
        }
        let path = self.disk.path(&name);
        disks.remove(&path);
        if !disks.rename(&files.keep(), path.clone()) {
            return Err("the files went away".to_owned());
        }
        Ok(Received {
            entry_id,
            files: self.lend(path),
            claim: claimed.claim(entry_id.index),
        })
    }

    fn adopt(&self, received: Received) -> storage::Result<Arc<dyn Engine>> {
        self.live().map_err(storage::Error::Engine)?;
        let path = received.files.keep();
        let Some(engine) = self.disk.disks.get(&path) else {
            let text = format!("{} is not there", path.display());
            return Err(storage::Error::Open(text));
        };
        let mut content = self.disk.content.lock();
        let name = received_name(received.entry_id.index);
        let before = std::mem::replace(&mut content.in_use, name);
        // Nobody opens it again; who reads it holds it.
        self.disk.disks.remove(&self.disk.path(&before));
        Ok(Arc::new(engine))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::membershippb::{Member, RaftAttributes};
    use crate::replica::state_store::check_together;
    use crate::state::Machine;
    use crate::state::machine::{Entry, Payload};
    use crate::storage::raft_log::Files;

    const MEMBER: MemberId = MemberId(0xa);

    /// A machine on the disk that has applied entries up to `index`, in term 1.
    fn grow(engine: &Arc<MemoryEngine>, index: u64) {
        let mut machine = Machine::open(engine.clone()).expect("opens");
        if machine.applied_index() == 0 {
            let founder = Member {
                id: MEMBER.0,
                raft_attributes: Some(RaftAttributes::default()),
                ..Default::default()
            };
            machine.bootstrap(vec![founder], 1, 1).expect("writes");
        }
        let entries = (machine.applied_index() + 1..=index).map(|index| Entry {
            index,
            term: 1,
            payload: Payload::Empty,
        });
        machine.apply(entries.collect()).expect("applies");
    }

    fn applied(state: &MemoryEngine) -> u64 {
        entry_id_of(state.latest()).expect("reads").index
    }

    /// A disk whose state in use has applied up to `index`, durably.
    fn disk(disks: &Arc<SimDisks>, index: u64) -> Arc<SimDisk> {
        let disk = SimDisk::new(disks.clone(), MEMBER);
        let engine = disk.open_state(0).expect("opens");
        grow(&engine, index);
        engine.flush().expect("flushes");
        disk
    }

    /// A snapshot's files as they come, of a state that has applied up to `index`.
    fn incoming(disks: &Arc<SimDisks>, index: u64) -> SnapshotDir {
        let engine = Arc::new(disks.empty());
        grow(&engine, index);
        let path = SimDisks::root(MEMBER).join(format!("receiving-{index}"));
        engine.checkpoint(&path).expect("a checkpoint");
        disks.lend(path)
    }

    fn entry_id(index: u64) -> EntryId {
        EntryId { index, term: 1 }
    }

    fn names(disks: &SimDisks) -> Vec<String> {
        let paths = disks.list(Path::new(""));
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_owned());
        let names = paths.iter().filter_map(name);
        names.filter_map(|name| name.into_string().ok()).collect()
    }

    #[test]
    fn a_checkpoint_is_a_copy_as_of_its_moment() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 5);
        let (states, engine) = (disk.states(), disk.open_state(0).expect("opens"));
        let made = states.checkpoint(engine.as_ref()).expect("a checkpoint");
        grow(&engine, 9);
        let metadata = made.snapshot.get_metadata();
        assert_eq!((metadata.index, metadata.term), (5, 1));
        assert_eq!(metadata.get_conf_state().voters, [MEMBER.0]);
        let copy = disks.get(made.files.path()).expect("a directory");
        assert_eq!((applied(&copy), applied(&disk.state())), (5, 9));
        let second = states.checkpoint(engine.as_ref()).expect("another");
        assert_ne!(second.files.path(), made.files.path());
        drop(made);
        let third = states.checkpoint(engine.as_ref());
        assert!(third.is_ok());
        assert_eq!(names(&disks), ["sending-2", "sending-3", "state"]);
        let alone = MemoryEngine::new();
        assert!(states.checkpoint(&alone).is_err());
    }

    #[test]
    fn a_received_state_takes_the_place_of_the_old_one() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        let states = disk.states();
        let received = states
            .receive(incoming(&disks, 8), entry_id(8))
            .expect("fits");
        assert_eq!((received.entry_id, names(&disks).len()), (entry_id(8), 2));
        assert_eq!(applied(&disk.state()), 3);
        let engine = states.adopt(received).expect("adopts");
        assert_eq!(entry_id_of(engine.latest()).expect("reads"), entry_id(8));
        assert_eq!(applied(&disk.state()), 8);
        assert_eq!(names(&disks), [received_name(8)]);
        disk.kill();
        assert_eq!(applied(&disk.open_state(8).expect("opens")), 8);
        // The same once more is not wanted.
        let again = disk.states().receive(incoming(&disks, 8), entry_id(8));
        assert_eq!(again.err(), Some("this state is already in use".to_owned()));
        assert_eq!(names(&disks), [received_name(8)]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_removed() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        let states = disk.states();
        let wrong = states.receive(incoming(&disks, 8), entry_id(9)).err();
        let text = "its state is that after entry 8 of term 1, not 9 of 1";
        assert_eq!(wrong.as_deref(), Some(text));
        let received = states
            .receive(incoming(&disks, 8), entry_id(8))
            .expect("fits");
        let twice = states.receive(incoming(&disks, 8), entry_id(8)).err();
        let text = "the same state came before and is about to be used";
        assert_eq!(twice.as_deref(), Some(text));
        drop(received);
        let again = states.receive(incoming(&disks, 8), entry_id(8));
        assert_eq!(again.map(|received| received.entry_id), Ok(entry_id(8)));
        assert!(states.receive(incoming(&disks, 9), entry_id(9)).is_ok());
        assert_eq!(names(&disks), ["state".to_owned(), received_name(9)]);
    }

    #[test]
    fn a_start_takes_over_what_the_log_was_reset_for() {
        let cases = [(0, 3), (3, 3), (8, 8)];
        let cases = cases
            .into_iter()
            .flat_map(|case| [(case, true), (case, false)]);
        for ((reset_to, expected), dropped_first) in cases {
            let disks = SimDisks::new();
            let disk = disk(&disks, 3);
            let received = disk.states().receive(incoming(&disks, 8), entry_id(8));
            let received = received.expect("fits");
            // The process dies; what its destructors would do, the dead do not, whenever the
            // disk hears of it.
            if dropped_first {
                drop(received);
                disk.kill();
            } else {
                disk.kill();
                drop(received);
            }
            let state = disk.open_state(reset_to).expect("opens");
            assert_eq!(applied(&state), expected, "reset to {reset_to}");
            assert_eq!(names(&disks).len(), 1, "the others are gone");
            assert_eq!(check_together(expected, reset_to, 9), Ok(()));
            disk.crash(1);
            assert_eq!(
                applied(&disk.open_state(reset_to).expect("opens")),
                expected
            );
        }
        // It was reset for a state that is not there: the caller finds that it lacks a part.
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        assert_eq!(applied(&disk.open_state(8).expect("opens")), 3);
        assert!(check_together(3, 8, 9).is_err());
    }

    #[test]
    fn what_was_not_flushed_dies_with_the_process() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        let engine = disk.open_state(0).expect("opens");
        grow(&engine, 7);
        disk.kill();
        assert_eq!(applied(&disk.state()), 3);
        // The dead write into what nobody reads.
        grow(&engine, 9);
        engine.flush().expect("flushes");
        assert_eq!(applied(&disk.open_state(0).expect("opens")), 3);
    }

    #[test]
    fn the_dead_neither_make_nor_take_states() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        let (states, engine) = (disk.states(), disk.open_state(0).expect("opens"));
        let made = states.checkpoint(engine.as_ref()).expect("a checkpoint");
        let received = states
            .receive(incoming(&disks, 8), entry_id(8))
            .expect("fits");
        disk.kill();
        assert!(states.adopt(received).is_err());
        assert!(states.checkpoint(engine.as_ref()).is_err());
        assert!(states.receive(incoming(&disks, 9), entry_id(9)).is_err());
        // Leftovers stay until a start removes them, and then no dead hand reaches the new ones.
        assert!(names(&disks).contains(&"sending-1".to_owned()));
        let engine = disk.open_state(0).expect("opens");
        assert_eq!(names(&disks), ["state"]);
        let anew = disk.states().checkpoint(engine.as_ref());
        assert_eq!(
            anew.as_ref().map(|made| made.files.path().exists()).ok(),
            Some(false)
        );
        drop(made);
        assert_eq!(names(&disks), ["sending-1", "state"]);
    }

    #[test]
    fn a_wiped_drive_is_a_new_one() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        disk.log().create("a").expect("a file");
        let log = disk.log();
        disk.wipe();
        assert_eq!(
            (log.list().expect("a list").len(), applied(&disk.state())),
            (1, 0)
        );
        assert_eq!(disk.log().list().expect("a list").len(), 0);
        assert_eq!(names(&disks), ["state"]);
        let states = disk.states();
        let engine = disk.open_state(0).expect("opens");
        grow(&engine, 2);
        assert!(states.checkpoint(engine.as_ref()).is_ok());
    }

    #[test]
    fn a_shelf_keeps_nobody_alive() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        let weak = Arc::downgrade(&disks);
        drop((disks, disk));
        assert_eq!(weak.strong_count(), 0);
    }
}
