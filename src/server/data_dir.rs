//! The data directory: who may use it, whose it is, and where things are in it.
//!
//! ```text
//! <data-dir>/member/LOCK      held by the process that uses the directory
//! <data-dir>/member/IDENTITY  format, cluster and member; written last when a member is made
//! <data-dir>/member/PEERS     whom a member that joined can reach until it knows the members itself
//! <data-dir>/member/wal/      the raft log (or --wal-dir, which then has a LOCK of its own)
//! <data-dir>/member/state/    the engine; see `states` for those that take its place
//! ```

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::storage::raft_log::LOCK_NAME;
use crate::storage::schema::FORMAT_VERSION;
use crate::transport::Peer;
use crate::types::{ClusterId, MemberId};

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}: {error}; check that the path exists, is a directory and belongs to this user", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("the data directory {} is in use by another process; stop it, or choose another --data-dir", .0.display())]
    InUse(PathBuf),
    #[error("the data directory {} has format {found}, and this etched knows formats up to {FORMAT_VERSION}; start it with a newer etched", path.display())]
    Newer { path: PathBuf, found: u64 },
    #[error("{} is damaged ({reason}); restore this member from a backup or from the other members", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{} holds the data of an etcd, which etched cannot take over yet; choose another --data-dir", .0.display())]
    Etcd(PathBuf),
}

/// What a member is called for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: ClusterId,
    pub member: MemberId,
}

/// An opened data directory; no other process can open it meanwhile.
pub struct DataDir {
    member: PathBuf,
    wal: PathBuf,
    _lock: File,
    _wal_lock: Option<File>,
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::Io { what, path, error }
}

impl DataDir {
    /// Opens the directory, or makes it, and keeps other processes out.
    pub fn open(data_dir: &Path, wal_dir: Option<&Path>) -> Result<Self, Error> {
        let member = data_dir.join("member");
        make_dir(&member)?;
        if member.join("snap").join("db").exists() {
            return Err(Error::Etcd(data_dir.to_owned()));
        }
        let lock = lock_dir(&member)?;
        let wal = wal_dir.map_or_else(|| member.join("wal"), Path::to_owned);
        make_dir(&wal)?;
        make_dir(&member.join("state"))?;
        // A power cut must not take a directory whose contents were acknowledged.
        for path in [&member, data_dir, &wal] {
            sync_with_parent(path)?;
        }
        let wal_lock = match wal_dir {
            Some(wal) => Some(lock_dir(wal)?),
            None => None,
        };
        Ok(Self {
            member,
            wal,
            _lock: lock,
            _wal_lock: wal_lock,
        })
    }

    /// Where the raft log is.
    pub fn wal(&self) -> &Path {
        &self.wal
    }

    /// Where everything but the raft log is.
    pub fn member(&self) -> &Path {
        &self.member
    }

    /// Where the state in use is.
    pub fn state(&self) -> Result<PathBuf, Error> {
        Ok(self.member.join(self.state_name()?))
    }

    fn state_name(&self) -> Result<String, Error> {
        let path = self.member.join("STATE");
        match std::fs::read_to_string(&path) {
            Ok(name) if name.starts_with("state") => Ok(name.trim_end().to_owned()),
            Ok(_) => Err(Error::Damaged {
                path,
                reason: "it does not name a state".to_owned(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok("state".to_owned()),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// Says which state is in use from now on.
    pub fn set_state(&self, name: &str) -> Result<(), Error> {
        self.replace_file("STATE", &format!("{name}\n"))
    }

    /// Makes what was created, renamed or removed in here durable.
    pub fn sync(&self) -> Result<(), Error> {
        sync_dir(&self.member).map_err(io_error("sync", &self.member))
    }

    /// Removes states that are not in use and snapshots that were on their way.
    pub fn remove_leftovers(&self) -> Result<(), Error> {
        let current = self.state_name()?;
        let entries = std::fs::read_dir(&self.member).map_err(io_error("read", &self.member))?;
        for entry in entries {
            let entry = entry.map_err(io_error("read", &self.member))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let ours = ["state", "receiving-", "sending-"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if ours && name != current.as_str() {
                let path = entry.path();
                std::fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }

    fn identity_path(&self) -> PathBuf {
        self.member.join("IDENTITY")
    }

    /// Whose directory this is; `None` where no member was made in it yet.
    pub fn identity(&self) -> Result<Option<Identity>, Error> {
        let path = self.identity_path();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let damaged = |reason: &str| Error::Damaged {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
                .ok_or_else(|| damaged(&format!("it has no line for {name}")))
        };
        let format: u64 = field("format")?
            .parse()
            .map_err(|_| damaged("its format is no number"))?;
        if format > FORMAT_VERSION {
            return Err(Error::Newer {
                path: self.member.clone(),
                found: format,
            });
        }
        let id = |name: &str| {
            u64::from_str_radix(field(name)?, 16).map_err(|_| damaged("an id is no number"))
        };
        Ok(Some(Identity {
            cluster: ClusterId(id("cluster")?),
            member: MemberId(id("member")?),
        }))
    }

    /// Says whose directory this is: the last step of making a member.
    pub fn set_identity(&self, identity: Identity) -> Result<(), Error> {
        let text = format!(
            "format {FORMAT_VERSION}\ncluster {}\nmember {}\n",
            identity.cluster, identity.member
        );
        self.replace_file("IDENTITY", &text)
    }

    /// The other members, as a member that joins was told of them: of use only until it has
    /// their list in its state.
    pub fn set_first_peers(&self, peers: &[Peer]) -> Result<(), Error> {
        let lines = peers
            .iter()
            .map(|peer| format!("{} {}\n", peer.member, peer.urls.join(" ")));
        self.replace_file("PEERS", &lines.collect::<String>())
    }

    /// What `set_first_peers` left; empty where nothing did.
    pub fn first_peers(&self) -> Result<Vec<Peer>, Error> {
        let path = self.member.join("PEERS");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let peer = |line: &str| {
            let mut words = line.split(' ');
            let id = u64::from_str_radix(words.next()?, 16).ok()?;
            Some(Peer {
                member: MemberId(id),
                urls: words.map(str::to_owned).collect(),
            })
        };
        let peers: Option<Vec<Peer>> = text.lines().map(peer).collect();
        peers.ok_or_else(|| Error::Damaged {
            path,
            reason: "an id is no number".to_owned(),
        })
    }

    fn replace_file(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.member.join(name);
        let new = path.with_extension("new");
        write_durably(&new, text.as_bytes()).map_err(io_error("write", &new))?;
        std::fs::rename(&new, &path).map_err(io_error("rename", &new))?;
        self.sync()
    }
}

/// Keeps other processes out of a directory while the file is open.
fn lock_dir(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK_NAME);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open", &path))?;
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    match rustix::fs::flock(&lock, exclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse(dir.to_owned())),
        Err(error) => Err(io_error("lock", &path)(error.into())),
    }
}

/// Makes a directory, and that it is there, durable.
fn sync_with_parent(path: &Path) -> Result<(), Error> {
    sync_dir(path).map_err(io_error("sync", path))?;
    match path.canonicalize() {
        Ok(whole) => match whole.parent() {
            Some(parent) => sync_dir(parent).map_err(io_error("sync", parent)),
            None => Ok(()),
        },
        Err(error) => Err(io_error("find", path)(error)),
    }
}

fn make_dir(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("create", path))
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
    use super::*;

    fn open(dir: &Path) -> Result<DataDir, Error> {
        DataDir::open(dir, None)
    }

    #[test]
    fn identity_is_kept_and_checked() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let identity = Identity {
            cluster: ClusterId(0xabc),
            member: MemberId(u64::MAX),
        };
        {
            let data = open(dir.path()).expect("opens");
            assert_eq!(data.identity().expect("reads"), None);
            data.set_identity(identity).expect("writes");
        }
        let data = open(dir.path()).expect("opens");
        assert_eq!(data.identity().expect("reads"), Some(identity));
        let path = data.identity_path();
        for (text, says) in [
            ("format 99\ncluster 1\nmember 1\n", "newer etched"),
            ("format x\n", "no number"),
            ("", "no line for format"),
            ("format 1\ncluster zz\nmember 1\n", "an id is no number"),
        ] {
            std::fs::write(&path, text).expect("writes");
            let error = data.identity().expect_err("is refused").to_string();
            assert!(error.contains(says), "{error}");
        }
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
