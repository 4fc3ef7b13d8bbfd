//! Incoming checkpoints with their raft snapshot message: the files are written into a new
//! directory, validated, synced, and only then is the message passed on.
//! Incomplete or invalid ones are removed and affect nothing else.
//!
//! What happens next is elsewhere: `raft` decides whether the state is newer than this member's,
//! and `server::states` opens it in place of the one in use.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::batch::read_snapshot;
use super::context::Context;
use super::identity::why;
use super::{Inbound, SnapshotDir};
use crate::error::Error;
use crate::proto::etchedpeer::snapshot_part::Part;
use crate::proto::etchedpeer::{SnapshotFile, SnapshotPart};
use crate::raft::Message;
use crate::types::MemberId;

const PREFIX: &str = "receiving-";
/// Parts between the connection and the writing thread.
const PARTS_AHEAD: usize = 8;
/// Accepted file names.
const MAX_NAME_BYTES: usize = 255;

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

/// Why a snapshot was refused.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("{path}: {error}")]
    Disk { path: PathBuf, error: io::Error },
    #[error("{0:?} is no name for a file of a snapshot")]
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
    #[error("its parts are out of order")]
    Order,
    #[error("{0}")]
    Message(String),
    #[error("the stream ended before the snapshot did")]
    Cut,
}

/// A snapshot that is being written.
struct Intake {
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

impl Intake {
    /// `number` makes the directory's name unique.
    fn begin(incoming: &Path, number: u64) -> Result<Self, Unfit> {
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

    /// Writes the next part; returns the raft message when the snapshot is complete.
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
        let path = self.dir.path().join(&name);
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

/// The members that are sending a snapshot to this one.
pub struct Arrivals {
    context: Arc<Context>,
    senders: Mutex<HashSet<MemberId>>,
}

/// Held until all work on the snapshot has ended.
struct Arrival {
    arrivals: Arc<Arrivals>,
    from: MemberId,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.arrivals.senders.lock().remove(&self.from);
    }
}

/// A complete snapshot.
pub struct Whole {
    pub message: Message,
    pub dir: SnapshotDir,
    /// Of all its files.
    pub size_bytes: u64,
}

impl Arrivals {
    pub fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            senders: Mutex::default(),
        }
    }

    /// Installs a snapshot; completes when it is in use.
    pub async fn take(
        self: Arc<Self>,
        from: MemberId,
        parts: Streaming<SnapshotPart>,
        inbound: Arc<dyn Inbound>,
    ) -> Result<(), Status> {
        if !self.senders.lock().insert(from) {
            let text = "etched: a snapshot of this member is coming in already";
            return Err(Status::resource_exhausted(text));
        }
        let arrival = Arc::new(Arrival {
            arrivals: self.clone(),
            from,
        });
        let counted = Counted::begin(self.context.clone(), from);
        let received = self.receive(arrival.clone(), parts).await;
        let whole = match received {
            Ok(whole) => whole,
            Err(unfit) => {
                let reason = unfit.to_string();
                tracing::warn!(peer = %from, reason, "could not take a snapshot");
                return Err(status(&unfit));
            }
        };
        // Continues here if the connection breaks from now on.
        let installed = tokio::spawn(async move {
            let size_bytes = whole.size_bytes;
            tracing::info!(peer = %from, size_bytes, "received a snapshot");
            let installed = inbound.snapshot_received(whole.message, whole.dir).await;
            match installed {
                Ok(()) => counted.succeed(),
                Err(error) => {
                    tracing::warn!(peer = %from, %error, "a snapshot was not put to use");
                }
            }
            drop(arrival);
            installed
        });
        match installed.await {
            Ok(installed) => installed.map_err(Status::from),
            Err(_) => Err(Status::from(Error::Stopped)),
        }
    }

    async fn receive(
        &self,
        arrival: Arc<Arrival>,
        mut parts: Streaming<SnapshotPart>,
    ) -> Result<Whole, Unfit> {
        let clock = &self.context.outside.clock;
        let begun = clock.now();
        let (to_disk, mut from_network) = mpsc::channel(PARTS_AHEAD);
        let incoming = self.context.options.incoming_snapshots.clone();
        let number = self.context.outside.rng.next_u64();
        // Ends when `to_disk` is dropped, with this future at the latest.
        let written = tokio::task::spawn_blocking(move || {
            let parts = std::iter::from_fn(|| from_network.blocking_recv());
            let written = write(&incoming, number, parts);
            drop(arrival);
            written
        });
        let broken = loop {
            match timeout(self.context.options.snapshot_silence, parts.message()).await {
                Ok(Ok(Some(part))) => {
                    if to_disk.send(part).await.is_err() {
                        // The writer returns the cause.
                        break None;
                    }
                }
                Ok(Ok(None)) => break None,
                Ok(Err(status)) => break Some(why(&status)),
                Err(_) => break Some("no byte came for a while".to_owned()),
            }
        };
        drop(to_disk);
        match (written.await, broken) {
            (Ok(Err(Unfit::Cut)), Some(reason)) => Err(Unfit::Message(reason)),
            (Ok(written), _) => {
                let whole = written?;
                let (to, from) = (whole.message.to, whole.message.from);
                let local = self.context.local.member.0;
                if to != local {
                    let text = format!("its message is from {from:x} to {to:x}");
                    return Err(Unfit::Message(text));
                }
                let took = clock.now().saturating_sub(begun);
                self.context.outside.metrics.snap_db_save.observe(took);
                Ok(whole)
            }
            (Err(error), _) => Err(Unfit::Message(error.to_string())),
        }
    }
}

/// Writes parts as they arrive. `number` makes the name of a directory below `incoming` unique,
/// which is removed on failure.
///
/// # Errors
/// The snapshot is incomplete, or cannot be written.
pub fn write(
    incoming: &Path,
    number: u64,
    parts: impl Iterator<Item = SnapshotPart>,
) -> Result<Whole, Unfit> {
    let mut intake = Intake::begin(incoming, number)?;
    for part in parts {
        if let Some(message) = intake.take(part)? {
            return Ok(Whole {
                message,
                dir: intake.dir,
                size_bytes: intake.size_bytes,
            });
        }
    }
    Err(Unfit::Cut)
}

fn status(unfit: &Unfit) -> Status {
    let text = format!("etched: the snapshot was not taken: {unfit}");
    match unfit {
        Unfit::Disk { .. } => Status::resource_exhausted(text),
        _ => Status::invalid_argument(text),
    }
}

/// Counts a snapshot as failed unless it is marked as successful.
struct Counted {
    context: Arc<Context>,
    from: MemberId,
    begun: std::time::Duration,
    succeeded: bool,
}

impl Counted {
    fn begin(context: Arc<Context>, from: MemberId) -> Self {
        let cells = context.outside.metrics.peer(from);
        cells.snapshots_received.in_flight.add(1);
        Self {
            begun: context.outside.clock.now(),
            context,
            from,
            succeeded: false,
        }
    }

    fn succeed(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let cells = self.context.outside.metrics.peer(self.from);
        let transfers = &cells.snapshots_received;
        transfers.in_flight.add(-1);
        if self.succeeded {
            let now = self.context.outside.clock.now();
            transfers.successes.increment();
            transfers.took.observe(now.saturating_sub(self.begun));
        } else {
            transfers.failures.increment();
        }
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
    fn only_a_whole_snapshot_is_taken() {
        let whole = vec![file("a", 3), data("x"), data("yz"), end("xyz"), message()];
        assert_eq!(taken(whole), Ok(1));
        let empty = [file("b", 0), end(""), message()];
        let two = vec![file("a", 1), data("x"), end("x")];
        assert_eq!(taken(two.into_iter().chain(empty).collect()), Ok(2));
        let order = "its parts are out of order";
        let cut = "the stream ended before the snapshot did";
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
            let expected = format!("{name:?} is no name for a file of a snapshot");
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
