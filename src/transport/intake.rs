//! Writes the files of an incoming checkpoint into a new directory, validated and synced, and reads
//! the raft snapshot message behind them: both together are a received state. Where that fails, or
//! is given up, nothing is left of the directory.
//!
//! All of it blocks on the disk. No file is begun that would leave too little space for the log.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::SnapshotDir;
use super::batch::read_snapshot;
use crate::proto::etchedpeer::snapshot_part::Part;
use crate::proto::etchedpeer::{SnapshotFile, SnapshotPart};
use crate::raft::Message;

const PREFIX: &str = "receiving-";
/// Accepted file names.
const MAX_NAME_BYTES: usize = 255;
/// More files than any state has: tables have megabytes.
const MAX_FILES: usize = 1 << 16;
/// What stays free for the log, which must not run out: of the file system at least this, or a part
/// of a small one.
const RESERVED_BYTES: u64 = 128 << 20;
const RESERVED_PART: u64 = 16;

/// Removes directories of an earlier run.
pub fn remove_leftovers(incoming: &Path) {
    // Not created yet: nothing to remove.
    let Ok(entries) = std::fs::read_dir(incoming) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            // It logs a failure to remove itself.
            drop(SnapshotDir::new(entry.path()));
        }
    }
}

/// Why a state was refused.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("{path}: {error}")]
    Disk { path: PathBuf, error: io::Error },
    #[error("{0:?} is no name for a file of a checkpoint")]
    Name(String),
    #[error("{0} comes twice")]
    Twice(String),
    #[error("{name}: {found} bytes instead of {announced}")]
    Size {
        name: String,
        announced: u64,
        found: u64,
    },
    #[error("{0}: the checksum is wrong")]
    Checksum(String),
    #[error(
        "{name}: {announced} bytes are announced, and {left} are left of the disk beside what this member needs itself"
    )]
    Room {
        name: String,
        announced: u64,
        left: u64,
    },
    #[error("it has more than {MAX_FILES} files")]
    Files,
    #[error("its parts are out of order")]
    Order,
    #[error("{0}")]
    Message(String),
    #[error("the stream ended before the raft snapshot message")]
    Cut,
}

/// A checkpoint that is being written.
pub struct Intake {
    dir: SnapshotDir,
    names: HashSet<String>,
    open: Option<OpenFile>,
    size_bytes: u64,
}

struct OpenFile {
    file: File,
    path: PathBuf,
    name: String,
    announced: u64,
    written: u64,
    crc: u32,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Unfit {
    let path = path.to_owned();
    |error| Unfit::Disk { path, error }
}

/// What a checkpoint may take of the file system that this directory is in.
fn room_bytes(dir: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    let reserved = RESERVED_BYTES.min(bytes(found.f_blocks) / RESERVED_PART);
    Ok(bytes(found.f_bavail).saturating_sub(reserved))
}

impl Intake {
    /// `number` makes the directory's name unique.
    pub fn begin(incoming: &Path, number: u64) -> Result<Self, Unfit> {
        std::fs::create_dir_all(incoming).map_err(at(incoming))?;
        let path = incoming.join(format!("{PREFIX}{number:016x}"));
        std::fs::create_dir(&path).map_err(at(&path))?;
        Ok(Self {
            dir: SnapshotDir::new(path),
            names: HashSet::new(),
            open: None,
            size_bytes: 0,
        })
    }

    /// Writes the next part; returns the raft snapshot message, which is the last.
    fn take(&mut self, part: SnapshotPart) -> Result<Option<Message>, Unfit> {
        match (part.part.ok_or(Unfit::Order)?, &mut self.open) {
            (Part::File(file), None) => self.create(file)?,
            (Part::Data(bytes), Some(open)) => open.write(&bytes)?,
            (Part::FileEnd(crc), open @ Some(_)) => {
                if let Some(open) = open.take() {
                    self.size_bytes += open.written;
                    open.finish(crc)?;
                }
            }
            (Part::Message(bytes), None) => {
                let path = self.dir.path();
                let dir = File::open(path).map_err(at(path))?;
                dir.sync_all().map_err(at(path))?;
                return read_snapshot(bytes).map(Some).map_err(Unfit::Message);
            }
            _ => return Err(Unfit::Order),
        }
        Ok(None)
    }

    /// Writes these parts; returns the received state where they are the last.
    pub fn take_all(
        mut self,
        parts: impl IntoIterator<Item = SnapshotPart>,
    ) -> Result<Taken, Unfit> {
        for part in parts {
            if let Some(message) = self.take(part)? {
                return Ok(Taken::Whole(Whole {
                    message,
                    dir: self.dir,
                    size_bytes: self.size_bytes,
                }));
            }
        }
        Ok(Taken::Part(self))
    }

    fn create(&mut self, file: SnapshotFile) -> Result<(), Unfit> {
        let SnapshotFile { name, size_bytes } = file;
        let named = !matches!(name.as_str(), "" | "." | "..")
            && !name.contains(['/', '\\', '\0'])
            && name.len() <= MAX_NAME_BYTES;
        if !named {
            return Err(Unfit::Name(name));
        }
        if !self.names.insert(name.clone()) {
            return Err(Unfit::Twice(name));
        }
        if self.names.len() > MAX_FILES {
            return Err(Unfit::Files);
        }
        let path = self.dir.path().join(&name);
        let left = room_bytes(self.dir.path()).map_err(at(&path))?;
        if size_bytes > left {
            return Err(Unfit::Room {
                name,
                announced: size_bytes,
                left,
            });
        }
        let file = File::create_new(&path).map_err(at(&path))?;
        self.open = Some(OpenFile {
            file,
            path,
            name,
            announced: size_bytes,
            written: 0,
            crc: 0,
        });
        Ok(())
    }
}

impl OpenFile {
    fn write(&mut self, bytes: &Bytes) -> Result<(), Unfit> {
        self.written += bytes.len() as u64;
        if self.written > self.announced {
            return Err(self.wrong_size());
        }
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.file.write_all(bytes).map_err(at(&self.path))
    }

    fn finish(self, crc: u32) -> Result<(), Unfit> {
        if self.written != self.announced {
            return Err(self.wrong_size());
        }
        if self.crc != crc {
            return Err(Unfit::Checksum(self.name));
        }
        self.file.sync_all().map_err(at(&self.path))
    }

    fn wrong_size(&self) -> Unfit {
        Unfit::Size {
            name: self.name.clone(),
            announced: self.announced,
            found: self.written,
        }
    }
}

/// What is there after some parts.
pub enum Taken {
    Part(Intake),
    Whole(Whole),
}

/// A received state, complete.
pub struct Whole {
    pub message: Message,
    pub dir: SnapshotDir,
    /// Of all its files.
    pub size_bytes: u64,
}

/// Writes a received state of which all parts are there. `number` makes the name of a directory
/// below `incoming` unique, which is removed on failure.
///
/// # Errors
/// The state is incomplete, or cannot be written.
#[cfg(any(test, feature = "fuzzing"))]
pub fn write(
    incoming: &Path,
    number: u64,
    parts: impl Iterator<Item = SnapshotPart>,
) -> Result<Whole, Unfit> {
    match Intake::begin(incoming, number)?.take_all(parts)? {
        Taken::Whole(whole) => Ok(whole),
        Taken::Part(_) => Err(Unfit::Cut),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::MessageType;
    use crate::transport::PeerMessage;
    use crate::transport::tests::raft;

    fn file(name: &str, size_bytes: u64) -> Part {
        let name = name.to_owned();
        Part::File(SnapshotFile { name, size_bytes })
    }

    fn data(text: &'static str) -> Part {
        Part::Data(Bytes::from_static(text.as_bytes()))
    }

    fn end(text: &str) -> Part {
        Part::FileEnd(crc32c::crc32c(text.as_bytes()))
    }

    fn message() -> Part {
        let message = match raft(MessageType::MsgSnapshot, 42, 0) {
            PeerMessage::Raft(message) => message,
            other => panic!("{other:?}"),
        };
        Part::Message(prost_11::Message::encode_to_vec(&message).into())
    }

    /// The result of these parts: the number of files, or the error.
    fn taken(parts: Vec<Part>) -> Result<usize, String> {
        let incoming = tempfile::tempdir().expect("a directory");
        let parts = parts.into_iter();
        let parts = parts.map(|part| SnapshotPart { part: Some(part) });
        let written = write(incoming.path(), 7, parts);
        let written = written.map(|whole| {
            let count = std::fs::read_dir(whole.dir.path()).map_or(0, Iterator::count);
            let bytes = std::fs::read(whole.dir.path().join("a")).expect("a file");
            assert_eq!(bytes.len() as u64, whole.size_bytes);
            count
        });
        let left = std::fs::read_dir(incoming.path()).map_or(0, Iterator::count);
        assert_eq!(left, 0, "nothing is left");
        written.map_err(|unfit| unfit.to_string())
    }

    #[test]
    fn only_a_whole_state_is_taken() {
        let whole = vec![file("a", 3), data("x"), data("yz"), end("xyz"), message()];
        assert_eq!(taken(whole), Ok(1));
        let empty = [file("b", 0), end(""), message()];
        let two = vec![file("a", 1), data("x"), end("x")];
        assert_eq!(taken(two.into_iter().chain(empty).collect()), Ok(2));
        let order = "its parts are out of order";
        let cut = "the stream ended before the raft snapshot message";
        for (parts, expected) in [
            (vec![], cut),
            (vec![file("a", 1), data("x"), end("x")], cut),
            (vec![file("a", 1), message()], order),
            (vec![data("x")], order),
            (vec![end("")], order),
            (vec![file("a", 1), file("b", 1)], order),
            (vec![file("a", 1), data("xy")], "a: 2 bytes instead of 1"),
            (
                vec![file("a", 2), data("x"), end("x")],
                "a: 1 bytes instead of 2",
            ),
            (
                vec![file("a", 1), data("x"), end("y")],
                "a: the checksum is wrong",
            ),
            (vec![file("a", 0), end(""), file("a", 0)], "a comes twice"),
        ] {
            assert_eq!(taken(parts), Err(expected.to_owned()));
        }
        let huge = taken(vec![file("a", 1 << 60)]).expect_err("no disk has that");
        assert!(
            huge.starts_with("a: 1152921504606846976 bytes are announced, and "),
            "{huge}"
        );
        let heartbeat = prost_11::Message::encode_to_vec(&Message {
            msg_type: MessageType::MsgHeartbeat as i32,
            from: 1,
            term: 1,
            ..Default::default()
        });
        for broken in [vec![0xff], vec![], heartbeat] {
            assert!(taken(vec![Part::Message(broken.into())]).is_err());
        }
    }

    #[test]
    fn files_stay_in_their_directory() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for name in [
            "", ".", "..", "../a", "a/b", "/etc/x", "a\0b", "a\\b", &long,
        ] {
            let expected = format!("{name:?} is no name for a file of a checkpoint");
            assert_eq!(taken(vec![file(name, 0)]), Err(expected));
        }
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let incoming = tempfile::tempdir().expect("a directory");
        for name in ["receiving-1", "receiving-00ff", "kept"] {
            std::fs::create_dir(incoming.path().join(name)).expect("a directory");
        }
        remove_leftovers(incoming.path());
        remove_leftovers(&incoming.path().join("nowhere"));
        let left = std::fs::read_dir(incoming.path()).expect("a directory");
        let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["kept"]);
    }
}
