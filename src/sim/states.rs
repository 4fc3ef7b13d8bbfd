//! Disks in memory: what a member's machine has on its disk, as a `MemberDir`. How a received state
//! replaces the current one is production code (`server::states`).
//!
//! A `SimDisk` stays when its member's process ends. Destructors of a process that died must not do what
//! a dead process could not: a dropped directory is removed when its process performs its next
//! operation, which shows that it had not died.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::server::member_dir::{Error, MemberDir};
use crate::storage::memory::{Checkpoints, MemoryEngine};
use crate::storage::raft_log::{Files, MemoryDisk, Prepare};
use crate::storage::{self, Engine};
use crate::transport::SnapshotDir;
use crate::types::MemberId;

/// The directories of all machines in a world, each with a state.
#[derive(Default)]
pub struct SimDisks {
    /// Handed to the engines, which create checkpoints on it.
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

    /// The path of a member's directories.
    pub fn root(member: MemberId) -> PathBuf {
        PathBuf::from(format!("member-{member}"))
    }

    /// The engine in a directory.
    pub fn get(&self, path: &Path) -> Option<MemoryEngine> {
        self.directories.lock().get(path).cloned()
    }

    /// The directories of states below `root`.
    pub fn list(&self, root: &Path) -> Vec<PathBuf> {
        let directories = self.directories.lock();
        let below = directories.keys().filter(|path| path.starts_with(root));
        below.cloned().collect()
    }

    /// Copies a directory, like a checkpoint sent over the network; false if it no longer exists.
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

    /// A directory that is removed when the returned guard is dropped.
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

/// What a member's machine keeps across restarts of its process.
pub struct SimDisk {
    disks: Arc<SimDisks>,
    root: PathBuf,
    process: AtomicU64,
    /// The process ends after this many more operations on its directory.
    operations_left: AtomicU64,
    /// Directories that this process has dropped.
    dropped: Mutex<Vec<PathBuf>>,
    content: Mutex<Content>,
}

/// The files beside the states.
#[derive(Default)]
struct Content {
    log: Arc<MemoryDisk>,
    /// Small files, by name. Writes to them are durable at once.
    files: BTreeMap<String, String>,
}

impl SimDisk {
    /// An empty one.
    pub fn new(disks: Arc<SimDisks>, member: MemberId) -> Arc<Self> {
        let disk = Self {
            root: SimDisks::root(member),
            disks,
            process: AtomicU64::new(1),
            operations_left: AtomicU64::new(u64::MAX),
            dropped: Mutex::default(),
            content: Mutex::default(),
        };
        disk.wipe();
        Arc::new(disk)
    }

    /// The files of the raft log; the same until the disk is wiped.
    pub fn log(&self) -> Arc<MemoryDisk> {
        self.content.lock().log.clone()
    }

    /// The state in use, for the invariants.
    pub fn state(self: &Arc<Self>) -> MemoryEngine {
        let dir: &dyn MemberDir = &self.dir();
        let name = dir.current_state();
        let state = name.ok().and_then(|name| self.disks.get(&self.path(&name)));
        state.unwrap_or_default()
    }

    /// The directory for a process that starts now.
    pub fn dir(self: &Arc<Self>) -> SimDir {
        SimDir {
            process: self.process.load(Ordering::SeqCst),
            disk: self.clone(),
        }
    }

    /// The process ends after this many more operations on its directory; later ones, and those on
    /// the raft log's files, fail until `kill` or `crash`.
    #[cfg(test)]
    pub fn stop_after(&self, operations: u64) {
        self.operations_left.store(operations, Ordering::SeqCst);
    }

    /// The process is killed and the machine keeps running: writes to the raft log survive, a state
    /// loses what was not flushed.
    pub fn kill(&self) {
        self.log().kill();
        self.end_life();
    }

    /// The machine loses power.
    pub fn crash(&self, seed: u64) {
        self.log().crash(seed);
        self.end_life();
    }

    /// Wipes the disk, like a replacement disk. No process may be running on it.
    pub fn wipe(&self) {
        self.end_life();
        *self.content.lock() = Content::default();
        for path in self.disks.list(&self.root) {
            self.disks.remove(&path);
        }
    }

    fn end_life(&self) {
        self.process.fetch_add(1, Ordering::SeqCst);
        self.operations_left.store(u64::MAX, Ordering::SeqCst);
        self.dropped.lock().clear();
        for path in self.disks.list(&self.root) {
            if let Some(state) = self.disks.get(&path) {
                self.disks.put(path, state.survivor());
            }
        }
    }

    /// Counts an operation of a process; the last one allowed ends it.
    fn count_operation(&self, process: u64) {
        let one_less = |left: u64| left.checked_sub(1);
        let left = self
            .operations_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        if left.is_err() && self.is_alive(process) {
            let log = self.log();
            log.stop_at(log.operations() + 1);
            self.process.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn is_alive(&self, process: u64) -> bool {
        self.process.load(Ordering::SeqCst) == process
    }

    /// Removes a state, and what is written of it in small files.
    fn remove(&self, path: &Path) {
        self.disks.remove(path);
        let files = &mut self.content.lock().files;
        files.retain(|name, _| !self.path(name).starts_with(path));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

/// A member's directory as one process uses it: it refuses processes that have ended.
pub struct SimDir {
    disk: Arc<SimDisk>,
    process: u64,
}

impl SimDir {
    /// Removes what this process has dropped; an error if it has ended.
    fn live(&self) -> Result<&SimDisk, Error> {
        self.disk.count_operation(self.process);
        if !self.disk.is_alive(self.process) {
            let text = "the process that asks is dead";
            return Err(self.failed("use", "", text));
        }
        let dropped = std::mem::take(&mut *self.disk.dropped.lock());
        for path in dropped {
            self.disk.remove(&path);
        }
        Ok(&self.disk)
    }

    fn failed(&self, what: &'static str, name: &str, text: &str) -> Error {
        Error::io(what, &self.path(name))(io::Error::other(text))
    }

    fn engine_error(error: &Error) -> storage::Error {
        storage::Error::Engine(error.to_string())
    }
}

impl MemberDir for SimDir {
    fn path(&self, name: &str) -> PathBuf {
        self.disk.path(name)
    }

    fn list(&self) -> Result<Vec<String>, Error> {
        let disk = self.live()?;
        let paths = disk.disks.list(&disk.root);
        let states = paths.iter().filter_map(|path| path.file_name()?.to_str());
        let states = states.map(str::to_owned);
        let files = disk
            .content
            .lock()
            .files
            .keys()
            .cloned()
            .collect::<Vec<_>>();
        Ok(states.chain(files).collect())
    }

    fn read_file(&self, name: &str) -> Result<Option<String>, Error> {
        Ok(self.live()?.content.lock().files.get(name).cloned())
    }

    fn replace_file(&self, name: &str, text: &str) -> Result<(), Error> {
        let mut content = self.live()?.content.lock();
        content.files.insert(name.to_owned(), text.to_owned());
        Ok(())
    }

    fn exists(&self, name: &str) -> bool {
        let path = self.path(name);
        self.live()
            .is_ok_and(|disk| disk.disks.get(&path).is_some())
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.live()?.remove(&self.path(name));
        Ok(())
    }

    fn rename(&self, from: &Path, name: &str) -> Result<(), Error> {
        match self.live()?.disks.rename(from, self.path(name)) {
            true => Ok(()),
            false => Err(self.failed("rename to", name, "the files went away")),
        }
    }

    fn sync(&self) -> Result<(), Error> {
        self.live().map(drop)
    }

    /// A dead process removes nothing.
    fn lend(&self, name: &str) -> SnapshotDir {
        let (disk, process) = (Arc::downgrade(&self.disk), self.process);
        let remove = move |path: &Path| {
            if let Some(disk) = disk.upgrade()
                && disk.is_alive(process)
            {
                disk.dropped.lock().push(path.to_owned());
            }
        };
        SnapshotDir::of(self.path(name), Box::new(remove))
    }

    fn open_engine(&self, name: &str) -> storage::Result<Arc<dyn Engine>> {
        let disk = self.live().map_err(|error| Self::engine_error(&error))?;
        let path = self.path(name);
        let engine = disk.disks.get(&path).unwrap_or_else(|| {
            let engine = disk.disks.empty();
            disk.disks.put(path, engine.clone());
            engine
        });
        Ok(Arc::new(engine))
    }

    fn open_read_only(&self, path: &Path) -> storage::Result<Arc<dyn Engine>> {
        let disk = self.live().map_err(|error| Self::engine_error(&error))?;
        match disk.disks.get(path) {
            Some(engine) => Ok(Arc::new(engine)),
            None => Err(storage::Error::Open(format!(
                "{} is not there",
                path.display()
            ))),
        }
    }

    fn log_files(&self) -> Result<Arc<dyn Files>, Error> {
        Ok(self.live()?.log())
    }

    fn log_filler(&self) -> Result<Option<Box<dyn Prepare>>, Error> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::write::SliceLimit;
    use crate::proto::etcdserverpb::{DeleteRangeRequest, InternalRaftRequest, PutRequest};
    use crate::proto::membershippb::{Member, RaftAttributes};
    use crate::replica::state_store::{SnapshotStore, entry_id_of};
    use crate::server::restore::check_together;
    use crate::server::states::{StateDirs, open, received_name, remove_unused};
    use crate::state::machine::{Entry, Payload, Staged};
    use crate::state::{Group, Machine};
    use crate::storage::Family;
    use crate::storage::raft_log::{EntryId, Files};

    const MEMBER: MemberId = MemberId(0xa);

    /// A machine on the disk that has applied entries up to `index`, in term 1.
    fn grow(engine: &Arc<dyn Engine>, index: u64) {
        let mut machine = Machine::open(engine.clone()).expect("opens");
        if machine.applied_index() == 0 {
            let founder = Member {
                id: MEMBER.0,
                raft_attributes: Some(RaftAttributes::default()),
                ..Default::default()
            };
            machine
                .bootstrap(crate::types::ClusterId(1), vec![founder], 1, 1)
                .expect("writes");
        }
        let entries = (machine.applied_index() + 1..=index).map(|index| Entry {
            index,
            term: 1,
            payload: Payload::Empty,
        });
        machine.apply(entries.collect()).expect("applies");
    }

    fn applied(state: &dyn Engine) -> u64 {
        entry_id_of(state.latest()).expect("reads").index
    }

    /// As a start does.
    fn start(disk: &Arc<SimDisk>, reset_to: u64) -> Arc<dyn Engine> {
        let engine = open(&disk.dir(), reset_to).expect("opens");
        remove_unused(&disk.dir()).expect("removes");
        engine
    }

    fn states(disk: &Arc<SimDisk>) -> StateDirs {
        StateDirs::new(Arc::new(disk.dir()))
    }

    /// A disk whose state in use has applied up to `index`, durably.
    fn disk(disks: &Arc<SimDisks>, index: u64) -> Arc<SimDisk> {
        let disk = SimDisk::new(disks.clone(), MEMBER);
        let engine = start(&disk, 0);
        grow(&engine, index);
        engine.flush().expect("flushes");
        disk
    }

    /// A checkpoint's files as they come, of a state that has applied up to `index`.
    fn incoming(disks: &Arc<SimDisks>, index: u64) -> SnapshotDir {
        let engine: Arc<dyn Engine> = Arc::new(disks.empty());
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
        let (store, engine) = (states(&disk), start(&disk, 0));
        let made = store.checkpoint(engine.as_ref()).expect("a checkpoint");
        grow(&engine, 9);
        let metadata = made.snapshot.get_metadata();
        assert_eq!((metadata.index, metadata.term), (5, 1));
        assert_eq!(metadata.get_conf_state().voters, [MEMBER.0]);
        let copy = disks.get(made.files.path()).expect("a directory");
        assert_eq!((applied(&copy), applied(&disk.state())), (5, 9));
        let second = store.checkpoint(engine.as_ref()).expect("another");
        assert_ne!(second.files.path(), made.files.path());
        drop(made);
        let third = store.checkpoint(engine.as_ref());
        assert!(third.is_ok());
        assert_eq!(names(&disks), ["sending-2", "sending-3", "state"]);
        let alone = MemoryEngine::new();
        assert!(store.checkpoint(&alone).is_err());
    }

    fn request(request: InternalRaftRequest) -> Payload {
        Payload::Decoded(Arc::new(request))
    }

    /// A machine within a deletion of three keys, the entry `index`, of which it has written one;
    /// and a call that continues.
    fn within_deletion(
        engine: &Arc<dyn Engine>,
        index: u64,
    ) -> impl FnMut() -> (Staged, Option<i64>) {
        let put = |key: u64| {
            request(InternalRaftRequest {
                put: Some(PutRequest {
                    key: vec![b'k', key as u8].into(),
                    ..Default::default()
                }),
                ..Default::default()
            })
        };
        let delete = request(InternalRaftRequest {
            delete_range: Some(DeleteRangeRequest {
                key: "k".into(),
                range_end: "l".into(),
                ..Default::default()
            }),
            ..Default::default()
        });
        let payloads = (1..=3).map(put).chain([delete]);
        let entries: Vec<_> = (index - 3..=index)
            .zip(payloads)
            .map(|(index, payload)| Entry {
                index,
                term: 1,
                payload,
            })
            .collect();
        let limit = SliceLimit {
            keys: 1,
            ..SliceLimit::NONE
        };
        let mut machine = Machine::open_with(engine.clone(), limit).expect("opens");
        let mut group = Group::default();
        let mut resume = move || {
            let staged = machine.stage(&entries, &mut group, |_| 0, |_| ());
            let staged = staged.expect("stages");
            if staged == Staged::All {
                machine.commit().expect("writes");
            }
            (staged, group.sliced.first().map(|sliced| sliced.revision))
        };
        assert_eq!(resume(), (Staged::Slice, None));
        resume
    }

    fn keys(state: &dyn Engine) -> usize {
        let mut cursor = state.latest().cursor(Family::Current, &[], None);
        let cursor = cursor.as_mut().expect("reads");
        std::iter::from_fn(|| cursor.next().expect("reads").then_some(())).count()
    }

    /// The copy counts as the state behind the deletion, and is that once it is opened, also where
    /// a crash interrupts the first time.
    #[test]
    fn a_checkpoint_within_a_deletion_is_the_state_behind_it() {
        for crashes in [false, true] {
            let disks = SimDisks::new();
            let leader = disk(&disks, 5);
            let engine = start(&leader, 0);
            let mut resume = within_deletion(&engine, 9);
            let made = states(&leader).checkpoint(engine.as_ref());
            let made = made.expect("a checkpoint");
            let metadata = made.snapshot.get_metadata();
            assert_eq!((metadata.index, metadata.term), (9, 1));
            let copy = disks.get(made.files.path()).expect("a directory");
            assert_eq!((keys(&copy), keys(engine.as_ref())), (2, 2));
            while resume().0 == Staged::Slice {}
            assert_eq!(resume(), (Staged::All, Some(5)));

            let follower = MemberId(0xb);
            let path = SimDisks::root(follower).join("receiving-1");
            copy.checkpoint(&path).expect("the files on their way");
            let disk = SimDisk::new(disks.clone(), follower);
            let begun = start(&disk, 0);
            grow(&begun, 3);
            begun.flush().expect("flushes");
            let store = states(&disk);
            let early = store.receive(disks.lend(path.clone()), entry_id(8));
            assert!(early.is_err(), "it is not the state before the deletion");
            copy.checkpoint(&path).expect("the files on their way");
            let received = store.receive(disks.lend(path), entry_id(9));
            let mut adopted = store.adopt(received.expect("fits")).expect("adopts");
            assert_eq!(keys(adopted.as_ref()), 2, "nothing has opened it");
            if crashes {
                drop(Machine::open(adopted).expect("opens"));
                disk.kill();
                adopted = start(&disk, 9);
                assert_eq!(keys(adopted.as_ref()), 2, "what was not flushed is gone");
            }
            let machine = Machine::open(adopted).expect("opens");
            assert_eq!((machine.applied_index(), machine.head()), (9, 5));
            assert_eq!(keys(machine.engine().as_ref()), 0);
            assert_eq!(machine.keys(), 0);
            assert_eq!(
                disk.state().content_hash(),
                leader.state().content_hash(),
                "as where it was not interrupted"
            );
        }
    }

    #[test]
    fn a_received_state_takes_the_place_of_the_old_one() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        let store = states(&disk);
        let received = store
            .receive(incoming(&disks, 8), entry_id(8))
            .expect("fits");
        assert_eq!((received.entry_id, names(&disks).len()), (entry_id(8), 2));
        assert_eq!(applied(&disk.state()), 3);
        let engine = store.adopt(received).expect("adopts");
        assert_eq!(entry_id_of(engine.latest()).expect("reads"), entry_id(8));
        assert_eq!(applied(&disk.state()), 8);
        // The old state stays for its readers.
        assert_eq!(names(&disks), ["state".to_owned(), received_name(8)]);
        disk.kill();
        assert_eq!(applied(start(&disk, 8).as_ref()), 8);
        // The same state a second time is not wanted.
        let again = states(&disk).receive(incoming(&disks, 8), entry_id(8));
        assert_eq!(again.err(), Some("this state is already in use".to_owned()));
        assert_eq!(names(&disks), [received_name(8)]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_removed() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        let store = states(&disk);
        let wrong = store.receive(incoming(&disks, 8), entry_id(9)).err();
        let text = "its state is that after entry 8 of term 1, not 9 of 1";
        assert_eq!(wrong.as_deref(), Some(text));
        let received = store
            .receive(incoming(&disks, 8), entry_id(8))
            .expect("fits");
        let twice = store.receive(incoming(&disks, 8), entry_id(8)).err();
        let text = "the same state came before and is about to be used";
        assert_eq!(twice.as_deref(), Some(text));
        drop(received);
        let again = store.receive(incoming(&disks, 8), entry_id(8));
        assert_eq!(again.map(|received| received.entry_id), Ok(entry_id(8)));
        assert!(store.receive(incoming(&disks, 9), entry_id(9)).is_ok());
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
            let received = states(&disk).receive(incoming(&disks, 8), entry_id(8));
            let received = received.expect("fits");
            // The process dies; its destructors have no effect on the disk, whenever they run.
            if dropped_first {
                drop(received);
                disk.kill();
            } else {
                disk.kill();
                drop(received);
            }
            let state = start(&disk, reset_to);
            assert_eq!(applied(state.as_ref()), expected, "reset to {reset_to}");
            assert_eq!(names(&disks).len(), 1, "the others are gone");
            assert_eq!(check_together(expected, reset_to, 9), Ok(()));
            disk.crash(1);
            assert_eq!(applied(start(&disk, reset_to).as_ref()), expected);
        }
        // The log was reset to a state that does not exist: the caller has to detect that.
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        assert_eq!(applied(start(&disk, 8).as_ref()), 3);
        assert!(check_together(3, 8, 9).is_err());
    }

    #[test]
    fn what_was_not_flushed_dies_with_the_process() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        let engine = start(&disk, 0);
        grow(&engine, 7);
        disk.kill();
        assert_eq!(applied(&disk.state()), 3);
        // Writes of a dead process go to files that are no longer read.
        grow(&engine, 9);
        engine.flush().expect("flushes");
        assert_eq!(applied(start(&disk, 0).as_ref()), 3);
    }

    #[test]
    fn the_dead_neither_make_nor_take_states() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        let (store, engine) = (states(&disk), start(&disk, 0));
        let made = store.checkpoint(engine.as_ref()).expect("a checkpoint");
        let received = store
            .receive(incoming(&disks, 8), entry_id(8))
            .expect("fits");
        disk.kill();
        assert!(store.adopt(received).is_err());
        assert!(store.checkpoint(engine.as_ref()).is_err());
        assert!(store.receive(incoming(&disks, 9), entry_id(9)).is_err());
        // Leftovers stay until a start removes them; after that a dead process's guard must not
        // remove new files of the same name.
        assert!(names(&disks).contains(&"sending-1".to_owned()));
        let engine = start(&disk, 0);
        assert_eq!(names(&disks), ["state"]);
        let anew = states(&disk).checkpoint(engine.as_ref());
        assert_eq!(
            anew.as_ref().map(|made| made.files.path().exists()).ok(),
            Some(false)
        );
        drop(made);
        assert_eq!(names(&disks), ["sending-1", "state"]);
    }

    #[test]
    fn a_wiped_disk_is_a_new_one() {
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
        assert_eq!(names(&disks), [""; 0]);
        let store = states(&disk);
        let engine = start(&disk, 0);
        grow(&engine, 2);
        assert!(store.checkpoint(engine.as_ref()).is_ok());
    }

    #[test]
    fn disks_keep_nobody_alive() {
        let disks = SimDisks::new();
        let disk = disk(&disks, 3);
        let weak = Arc::downgrade(&disks);
        drop((disks, disk));
        assert_eq!(weak.strong_count(), 0);
    }
}
