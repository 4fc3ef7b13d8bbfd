//! A member's directory in the file system: its lock, and `MemberDir` on files and `RocksDB`.
//!
//! ```text
//! <data-dir>/member/LOCK   held by the process that uses the directory
//! <data-dir>/member/wal/   the raft log (or --wal-dir, which then has a LOCK of its own)
//! <data-dir>/member/       all else: see `member_dir`
//! ```
//!
//! Where `member/` is an etcd's, which keeps it as it is, ours is `<data-dir>/etched/`, and below
//! --wal-dir the log is in `etched/` too (see `from_etcd`).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use super::member_dir::{Error, MemberDir};
use crate::backup::wal::read::Wal;
use crate::storage::raft_log::{Files, LOCK_NAME, Prepare, RealFiles, Retained, ZeroFiller};
use crate::storage::rocks::{EngineLimits, RocksEngine};
use crate::storage::{self, Engine};
use crate::transport::SnapshotDir;

/// An opened data directory; no other process can open it meanwhile.
pub struct DataDir {
    member: PathBuf,
    wal: PathBuf,
    /// What an engine in it may take.
    budget: EngineLimits,
    read_only: bool,
    retained: Retained,
    _locks: Vec<File>,
}

impl DataDir {
    /// Opens the directory, or makes it, and keeps other processes out.
    pub fn open(
        data_dir: &Path,
        wal_dir: Option<&Path>,
        budget: EngineLimits,
    ) -> Result<Self, Error> {
        let beside = beside_etcd(data_dir);
        if beside.is_dir() {
            let wal_dir = wal_dir.map(beside_etcd);
            return Self::open_at(&beside, wal_dir.as_deref(), budget);
        }
        let member = member_of_etcd(data_dir);
        make_dir(&member)?;
        if is_etcds(data_dir, wal_dir) {
            return Err(Error::Etcd(data_dir.to_owned()));
        }
        Self::open_at(&member, wal_dir, budget)
    }

    /// The same with a member's own directory, and that of its log where it is not in there.
    pub fn open_at(
        member: &Path,
        wal_dir: Option<&Path>,
        budget: EngineLimits,
    ) -> Result<Self, Error> {
        let member = member.to_owned();
        make_dir(&member)?;
        let lock = lock_dir(&member)?;
        let wal = wal_dir.map_or_else(|| member.join("wal"), Path::to_owned);
        make_dir(&wal)?;
        make_dir(&member.join("state"))?;
        // A power failure must not remove a directory whose contents were acknowledged.
        let data_dir = member.parent().unwrap_or(&member);
        for path in [&member, data_dir, &wal] {
            sync_with_parent(path)?;
        }
        let mut locks = vec![lock];
        if let Some(wal) = wal_dir {
            locks.push(lock_dir(wal)?);
        }
        Ok(Self {
            member,
            wal,
            budget,
            read_only: false,
            retained: Retained::None,
            _locks: locks,
        })
    }

    /// Keeps as many segments of the log that it no longer needs.
    #[must_use]
    pub fn retaining(self, retained: Retained) -> Self {
        Self { retained, ..self }
    }

    /// Opens the directory of a stopped member to read it: nothing in it is changed or made, and
    /// its log can only be read. A member cannot start meanwhile.
    pub fn open_read_only(
        data_dir: &Path,
        wal_dir: Option<&Path>,
        budget: EngineLimits,
    ) -> Result<Self, Error> {
        let beside = beside_etcd(data_dir);
        let (member, wal_dir) = match beside.is_dir() {
            true => (beside, wal_dir.map(beside_etcd)),
            false => (member_of_etcd(data_dir), wal_dir.map(Path::to_owned)),
        };
        let mut locks = Vec::new();
        for dir in std::iter::once(&member).chain(&wal_dir) {
            std::fs::read_dir(dir).map_err(Error::io("read", dir))?;
            locks.extend(lock_to_read(dir)?);
        }
        Ok(Self {
            wal: wal_dir.unwrap_or_else(|| member.join("wal")),
            member,
            budget,
            read_only: true,
            retained: Retained::None,
            _locks: locks,
        })
    }
}

impl MemberDir for DataDir {
    fn path(&self, name: &str) -> PathBuf {
        match name {
            "" => self.member.clone(),
            name => self.member.join(name),
        }
    }

    fn list(&self) -> Result<Vec<String>, Error> {
        let failed = || Error::io("read", &self.member);
        let entries = std::fs::read_dir(&self.member).map_err(failed())?;
        entries
            .map(|entry| {
                // Our names are all UTF-8.
                let entry = entry.map_err(failed())?;
                Ok(entry.file_name().to_string_lossy().into_owned())
            })
            .collect()
    }

    fn read_file(&self, name: &str) -> Result<Option<String>, Error> {
        let path = self.path(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let reason = "it holds bytes that are no text".to_owned();
                Err(Error::Damaged { path, reason })
            }
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    fn replace_file(&self, name: &str, text: &str) -> Result<(), Error> {
        replace_durably(&self.path(name), text.as_bytes())?;
        self.sync()
    }

    fn exists(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn rename(&self, from: &Path, name: &str) -> Result<(), Error> {
        std::fs::rename(from, self.path(name)).map_err(Error::io("rename", from))
    }

    fn sync(&self) -> Result<(), Error> {
        sync_dir(&self.member).map_err(Error::io("sync", &self.member))
    }

    fn lend(&self, name: &str) -> SnapshotDir {
        SnapshotDir::new(self.path(name))
    }

    fn open_engine(&self, name: &str) -> storage::Result<Arc<dyn Engine>> {
        Ok(Arc::new(RocksEngine::open(&self.path(name), self.budget)?))
    }

    fn open_read_only(&self, path: &Path) -> storage::Result<Arc<dyn Engine>> {
        let limits = match self.read_only {
            true => self.budget,
            // The state in use is open beside it.
            false => self.budget.for_inspection(),
        };
        Ok(Arc::new(RocksEngine::open_read_only(path, limits)?))
    }

    fn log_files(&self) -> Result<Arc<dyn Files>, Error> {
        let files = match self.read_only {
            true => RealFiles::read_only(&self.wal),
            false => RealFiles::new(&self.wal).map_err(Error::io("open", &self.wal))?,
        };
        Ok(Arc::new(files.retaining(self.retained)))
    }

    fn log_filler(&self) -> Result<Option<Box<dyn Prepare>>, Error> {
        let filler = ZeroFiller::start(self.log_files()?).map_err(Error::io(
            "start the thread that prepares segments of",
            &self.wal,
        ))?;
        Ok(Some(Box::new(filler)))
    }
}

/// Where an etcd has its files; ours, unless an etcd was there first.
pub fn member_of_etcd(data_dir: &Path) -> PathBuf {
    data_dir.join("member")
}

/// Where ours are beside those of an etcd, in the data directory or in that of the log.
pub fn beside_etcd(dir: &Path) -> PathBuf {
    dir.join("etched")
}

/// True where an etcd left its data.
pub fn is_etcds(data_dir: &Path, wal_dir: Option<&Path>) -> bool {
    let member = member_of_etcd(data_dir);
    let wal = wal_dir.map_or_else(|| member.join("wal"), Path::to_owned);
    // One with a hole is an etcd's as well.
    let has_log = wal.is_dir() && !matches!(Wal::find(&wal), Ok(None));
    member.join("snap").join("db").exists() || has_log
}

/// Locks a directory while the file is open.
fn lock_dir(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK_NAME);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    lock_file(dir, lock, FlockOperation::NonBlockingLockExclusive)
}

/// Keeps members out of a directory; none where none was ever in it.
fn lock_to_read(dir: &Path) -> Result<Option<File>, Error> {
    let path = dir.join(LOCK_NAME);
    match File::open(&path) {
        Ok(lock) => lock_file(dir, lock, FlockOperation::NonBlockingLockShared).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", &path)(error)),
    }
}

fn lock_file(dir: &Path, lock: File, operation: FlockOperation) -> Result<File, Error> {
    match rustix::fs::flock(&lock, operation) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse(dir.to_owned())),
        Err(error) => Err(Error::io("lock", &dir.join(LOCK_NAME))(error.into())),
    }
}

/// Creates a directory durably.
fn sync_with_parent(path: &Path) -> Result<(), Error> {
    sync_dir(path).map_err(Error::io("sync", path))?;
    match path.canonicalize() {
        Ok(whole) => match whole.parent() {
            Some(parent) => sync_dir(parent).map_err(Error::io("sync", parent)),
            None => Ok(()),
        },
        Err(error) => Err(Error::io("find", path)(error)),
    }
}

pub fn make_dir(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::io("create", path))
}

/// Replaces a file, which nobody else can read.
pub fn replace_durably(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let new = path.with_extension("new");
    write_durably(&new, bytes).map_err(Error::io("write", &new))?;
    std::fs::rename(&new, path).map_err(Error::io("rename", &new))
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::member_dir::{MemberIdentity, Owner};
    use super::*;
    use crate::storage::schema::{FIRST_FORMAT, FORMAT_WITH_USERS};
    use crate::types::{ClusterId, MemberId};

    const BUDGET: EngineLimits = EngineLimits {
        open_files: 256,
        block_cache_bytes: 1 << 20,
        memtable_bytes: 1 << 20,
    };

    fn open(dir: &Path) -> Result<DataDir, Error> {
        DataDir::open(dir, None, BUDGET)
    }

    #[test]
    fn identity_is_kept_and_checked() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let identity = MemberIdentity {
            cluster: ClusterId(0xabc),
            member: MemberId(u64::MAX),
        };
        {
            let data: &dyn MemberDir = &open(dir.path()).expect("opens");
            assert_eq!(data.identity().expect("reads"), None);
            data.set_identity(identity).expect("writes");
        }
        let data: &dyn MemberDir = &open(dir.path()).expect("opens");
        assert_eq!(data.identity().expect("reads"), Some(identity));
        let path = data.path("IDENTITY");
        for (text, says) in [
            (&b"format 99\ncluster 1\nmember 1\n"[..], "newer etched"),
            (b"format x\n", "no number"),
            (b"", "no line for format"),
            (b"format 1\ncluster zz\nmember 1\n", "an id is no number"),
            (b"format 1\ncluster \xb1\nmember 1\n", "no text"),
        ] {
            std::fs::write(&path, text).expect("writes");
            let error = data.identity().expect_err("is refused").to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    /// A program that knows the first format alone refuses the directory as soon as there are
    /// users, and can take it over until then.
    #[test]
    fn a_format_is_required_from_the_first_data_of_its_kind() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let opened = open(dir.path()).expect("opens");
        let data: &dyn MemberDir = &opened;
        data.require_format(FORMAT_WITH_USERS)
            .expect("nothing is there yet");
        assert_eq!(data.identity().expect("reads"), None);
        let identity = MemberIdentity {
            cluster: ClusterId(7),
            member: MemberId(8),
        };
        data.set_identity(identity).expect("writes");
        for (required, expected) in [
            (FIRST_FORMAT, "format 1"),
            (FORMAT_WITH_USERS, "format 2"),
            (FIRST_FORMAT, "format 2"),
        ] {
            data.require_format(required).expect("writes");
            let text = std::fs::read_to_string(data.path("IDENTITY")).expect("reads");
            assert_eq!(text.lines().next(), Some(expected));
            assert_eq!(data.identity().expect("reads"), Some(identity));
        }
    }

    /// A state is its member's from the first start on, and one that came with no mark is too.
    #[test]
    fn a_state_says_whose_it_is() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let opened = open(dir.path()).expect("opens");
        let data: &dyn MemberDir = &opened;
        data.own("state").expect("nobody's yet");
        assert_eq!(data.owner_of("state").expect("reads"), None);
        let identity = MemberIdentity {
            cluster: ClusterId(0xabc),
            member: MemberId(8),
        };
        data.set_identity(identity).expect("writes");
        for incarnation in [None, Some(7)] {
            if incarnation.is_some() {
                data.replace_file("INCARNATION", "7\n").expect("writes");
            }
            data.own("state").expect("writes");
            let owner = data.owner_of("state").expect("reads").expect("is marked");
            assert_eq!(
                owner,
                Owner {
                    identity,
                    incarnation
                }
            );
            assert_eq!(data.owner().expect("reads"), Some(owner));
        }
        std::fs::write(data.path("state/OWNER"), "member x\n").expect("writes");
        let error = data.owner_of("state").expect_err("is refused").to_string();
        assert!(error.contains("OWNER is damaged"), "{error}");
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let _first = open(dir.path()).expect("opens");
        assert!(matches!(open(dir.path()), Err(Error::InUse(_))));
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir_all(dir.path().join("member/snap")).expect("makes");
        std::fs::write(dir.path().join("member/snap/db"), "x").expect("writes");
        assert!(matches!(open(dir.path()), Err(Error::Etcd(_))));
        let file = dir.path().join("file");
        std::fs::write(&file, "x").expect("writes");
        assert!(matches!(open(&file), Err(Error::Io { .. })));
    }
}
