//! The operations of a member's directory, on a file system (`data_dir`) or in the simulator's
//! memory. The trait has the operations of a disk; what is built on them here, in `states` and in
//! `restore` is the same for both.
//!
//! ```text
//! IDENTITY     format, cluster and member; written last when a member is made
//! INCARNATION  a number that tells the directory from any other of the same member
//! PEERS        whom a member that joined can reach until it knows the members itself
//! STATE        the name of the state in use; without it: state
//! state*       states; see `states`
//! state*/OWNER whose state it is; none in those of an etched of before
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::raft_log::{Files, Prepare};
use crate::storage::schema::{FIRST_FORMAT, FORMAT_VERSION};
use crate::storage::{self, Engine};
use crate::transport::{Peer, SnapshotDir};
use crate::types::{ClusterId, MemberId};

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}: {error}; {}", path.display(), hint(error))]
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
    #[error("{} holds the data of an etcd; start a member on it, which takes it over, or choose another --data-dir", .0.display())]
    Etcd(PathBuf),
}

/// What to do about an error of the disk.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space or inodes on this file system, and start again"
        }
        _ => "check that the path exists, is a directory and belongs to this user",
    }
}

impl Error {
    /// For `map_err`: the operation, and its path.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { what, path, error }
    }
}

/// A member's permanent identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberIdentity {
    pub cluster: ClusterId,
    pub member: MemberId,
}

/// Whose a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub identity: MemberIdentity,
    /// Of the member's directory; none before that has one.
    pub incarnation: Option<u64>,
}

/// The disk operations of a member, below a directory of its own. Names are those of entries of the
/// directory.
pub trait MemberDir: Send + Sync + 'static {
    /// The path of an entry, for engines' checkpoints and for messages.
    fn path(&self, name: &str) -> PathBuf;

    /// The names of all entries, in no particular order.
    fn list(&self) -> Result<Vec<String>, Error>;

    /// The text of a small file, or `None` where there is none.
    fn read_file(&self, name: &str) -> Result<Option<String>, Error>;

    /// Creates or replaces a small file, atomically and durably.
    fn replace_file(&self, name: &str, text: &str) -> Result<(), Error>;

    /// True where the directory has such an entry.
    fn exists(&self, name: &str) -> bool;

    /// Removes a directory with its contents; no error if it does not exist.
    fn remove(&self, name: &str) -> Result<(), Error>;

    /// Renames a directory into this one. Durable after `sync`.
    fn rename(&self, from: &Path, name: &str) -> Result<(), Error>;

    /// Makes entries that were created, renamed or removed here durable.
    fn sync(&self) -> Result<(), Error>;

    /// A directory in here that is removed when the returned guard is dropped.
    fn lend(&self, name: &str) -> SnapshotDir;

    /// Opens the engine in a directory, or creates an empty one.
    fn open_engine(&self, name: &str) -> storage::Result<Arc<dyn Engine>>;

    /// Opens an engine whose files are not written to, such as a checkpoint's, for reading.
    fn open_read_only(&self, path: &Path) -> storage::Result<Arc<dyn Engine>>;

    /// The files of the raft log.
    fn log_files(&self) -> Result<Arc<dyn Files>, Error>;

    /// Prepares segments of the raft log in advance, if the directory supports it.
    fn log_filler(&self) -> Result<Option<Box<dyn Prepare>>, Error>;
}

const IDENTITY: &str = "IDENTITY";
const INCARNATION: &str = "INCARNATION";
const PEERS: &str = "PEERS";
const STATE: &str = "STATE";
const OWNER: &str = "OWNER";
/// The initial state of a new member.
const FIRST_STATE: &str = "state";

impl dyn MemberDir {
    /// The identity; `None` if no member was created here yet.
    pub fn identity(&self) -> Result<Option<MemberIdentity>, Error> {
        Ok(self.marked_identity()?.map(|(identity, _)| identity))
    }

    /// The same with the directory's format.
    fn marked_identity(&self) -> Result<Option<(MemberIdentity, u64)>, Error> {
        let Some(text) = self.read_file(IDENTITY)? else {
            return Ok(None);
        };
        let damaged = |reason: &str| self.damaged(IDENTITY, reason);
        let format: u64 = self
            .field(IDENTITY, &text, "format")?
            .parse()
            .map_err(|_| damaged("its format is no number"))?;
        if format > FORMAT_VERSION {
            return Err(Error::Newer {
                path: self.path(""),
                found: format,
            });
        }
        Ok(Some((self.identity_in(IDENTITY, &text)?, format)))
    }

    /// The rest of a line of a small file that begins with a name.
    fn field<'a>(&self, file: &str, text: &'a str, name: &str) -> Result<&'a str, Error> {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .ok_or_else(|| self.damaged(file, &format!("it has no line for {name}")))
    }

    fn id(&self, file: &str, text: &str, name: &str) -> Result<u64, Error> {
        u64::from_str_radix(self.field(file, text, name)?, 16)
            .map_err(|_| self.damaged(file, "an id is no number"))
    }

    fn identity_in(&self, file: &str, text: &str) -> Result<MemberIdentity, Error> {
        Ok(MemberIdentity {
            cluster: ClusterId(self.id(file, text, "cluster")?),
            member: MemberId(self.id(file, text, "member")?),
        })
    }

    /// Writes the identity: the last step of creating a member.
    pub fn set_identity(&self, identity: MemberIdentity) -> Result<(), Error> {
        self.write_identity(identity, FIRST_FORMAT)
    }

    fn write_identity(&self, identity: MemberIdentity, format: u64) -> Result<(), Error> {
        let text = format!(
            "format {format}\ncluster {}\nmember {}\n",
            identity.cluster, identity.member
        );
        self.replace_file(IDENTITY, &text)
    }

    /// Has programs that do not know a format refuse the directory, durably.
    pub fn require_format(&self, format: u64) -> Result<(), Error> {
        match self.marked_identity()? {
            Some((identity, marked)) if marked < format => self.write_identity(identity, format),
            // One that is created now holds nothing yet.
            Some(_) | None => Ok(()),
        }
    }

    /// The same as far as the directory has it: whose the states in it have to be.
    pub fn owner(&self) -> Result<Option<Owner>, Error> {
        let owner = |identity| {
            Ok(Owner {
                identity,
                incarnation: self.known_incarnation()?,
            })
        };
        self.identity()?.map(owner).transpose()
    }

    /// Whose a state was when it was last in use, or came from the leader. A checkpoint has no such
    /// mark, so it is the receiver's from the start.
    pub fn owner_of(&self, state: &str) -> Result<Option<Owner>, Error> {
        let file = format!("{state}/{OWNER}");
        let Some(text) = self.read_file(&file)? else {
            return Ok(None);
        };
        let has_incarnation = self.field(&file, &text, "incarnation").is_ok();
        Ok(Some(Owner {
            identity: self.identity_in(&file, &text)?,
            incarnation: match has_incarnation {
                true => Some(self.id(&file, &text, "incarnation")?),
                false => None,
            },
        }))
    }

    /// Marks a state as this member's.
    pub fn own(&self, state: &str) -> Result<(), Error> {
        match self.owner()? {
            Some(owner) => self.mark(state, owner),
            None => Ok(()),
        }
    }

    /// Marks whose a state is, unless that is so.
    pub fn mark(&self, state: &str, owner: Owner) -> Result<(), Error> {
        if self.owner_of(state).ok().flatten() == Some(owner) {
            return Ok(());
        }
        let MemberIdentity { cluster, member } = owner.identity;
        let mut text = format!("cluster {cluster}\nmember {member}\n");
        if let Some(incarnation) = owner.incarnation {
            text.push_str(&format!("incarnation {incarnation:x}\n"));
        }
        self.replace_file(&format!("{state}/{OWNER}"), &text)
    }

    fn known_incarnation(&self) -> Result<Option<u64>, Error> {
        let parsed = |text: String| {
            u64::from_str_radix(text.trim_end(), 16)
                .map_err(|_| self.damaged(INCARNATION, "it is no number"))
        };
        self.read_file(INCARNATION)?.map(parsed).transpose()
    }

    /// The number that tells this directory from any other that the member had or will have: `new`
    /// where it has none yet.
    pub fn incarnation(&self, new: u64) -> Result<u64, Error> {
        if let Some(incarnation) = self.known_incarnation()? {
            return Ok(incarnation);
        }
        self.replace_file(INCARNATION, &format!("{new:x}\n"))?;
        Ok(new)
    }

    /// Stores the peers of a joining member, which it uses until its state has the members.
    pub fn set_first_peers(&self, peers: &[Peer]) -> Result<(), Error> {
        let lines = peers
            .iter()
            .map(|peer| format!("{} {}\n", peer.member, peer.urls.join(" ")));
        self.replace_file(PEERS, &lines.collect::<String>())
    }

    /// What `set_first_peers` stored; empty if nothing was.
    pub fn first_peers(&self) -> Result<Vec<Peer>, Error> {
        let text = self.read_file(PEERS)?.unwrap_or_default();
        let peer = |line: &str| {
            let mut words = line.split(' ');
            let id = u64::from_str_radix(words.next()?, 16).ok()?;
            Some(Peer {
                member: MemberId(id),
                urls: words.map(str::to_owned).collect(),
            })
        };
        let peers: Option<Vec<Peer>> = text.lines().map(peer).collect();
        peers.ok_or_else(|| self.damaged(PEERS, "an id is no number"))
    }

    /// The name of the state in use.
    pub fn current_state(&self) -> Result<String, Error> {
        match self.read_file(STATE)? {
            Some(name) if name.starts_with(FIRST_STATE) => Ok(name.trim_end().to_owned()),
            Some(_) => Err(self.damaged(STATE, "it does not name a state")),
            None => Ok(FIRST_STATE.to_owned()),
        }
    }

    /// Switches the state in use.
    pub fn set_current_state(&self, name: &str) -> Result<(), Error> {
        self.replace_file(STATE, &format!("{name}\n"))
    }

    fn damaged(&self, name: &str, reason: &str) -> Error {
        Error::Damaged {
            path: self.path(name),
            reason: reason.to_owned(),
        }
    }
}
