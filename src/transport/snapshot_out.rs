//! Outgoing checkpoints with their raft snapshot message: files read in order by a blocking thread,
//! sent over a connection of their own.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::SnapshotDir;
use super::context::Context;
use super::dial::{self, Channel, Dialler};
use super::identity::{self, RefusalKind, why};
use super::peer_rpc;
use crate::net::KeepAlive;
use crate::proto::etchedpeer::peer_client::PeerClient;
use crate::proto::etchedpeer::snapshot_part::Part;
use crate::proto::etchedpeer::{SnapshotFile, SnapshotPart};
use crate::raft::Message;
use crate::types::MemberId;

pub const CHUNK_BYTES: usize = 256 << 10;
/// Chunks between the reading thread and the connection.
const CHUNKS_AHEAD: usize = 8;
/// How long a snapshot waits for others in progress.
const TURN_LIMIT: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_secs(1);
/// Detects a dead peer while it installs the snapshot, too.
const KEEP_ALIVE: KeepAlive = KeepAlive {
    interval: Duration::from_secs(5),
    timeout: Duration::from_secs(20),
};

/// See the module.
pub struct Snapshots {
    under_way: Mutex<HashSet<MemberId>>,
    turns: Semaphore,
}

impl Snapshots {
    pub fn new(at_once: usize) -> Self {
        Self {
            under_way: Mutex::default(),
            turns: Semaphore::new(at_once),
        }
    }

    /// Sends a snapshot, and reports the result.
    pub async fn send(
        self: Arc<Self>,
        context: Arc<Context>,
        urls: Vec<String>,
        message: Message,
        files: Arc<SnapshotDir>,
    ) {
        let to = MemberId(message.to);
        let mut report = Report {
            context: context.clone(),
            to,
            taken: false,
        };
        if !self.under_way.lock().insert(to) {
            tracing::warn!(peer = %to, "a snapshot to this peer is under way already");
            return;
        }
        let _under_way = UnderWay {
            snapshots: self.clone(),
            to,
        };
        let transfers = &context.outside.metrics.peer(to).snapshots_sent;
        transfers.in_flight.add(1);
        let begun = context.outside.clock.now();
        let sent = match timeout(TURN_LIMIT, self.turns.acquire()).await {
            Ok(_turn) => transfer(&context, &urls, message, files).await,
            Err(_) => Err("other snapshots are still under way".to_owned()),
        };
        transfers.in_flight.add(-1);
        let took = context.outside.clock.now().saturating_sub(begun);
        match sent {
            Ok(bytes) => {
                transfers.successes.increment();
                transfers.took.observe(took);
                let took_s = took.as_secs_f64();
                tracing::info!(peer = %to, bytes, took_s, "sent a snapshot");
                report.taken = true;
            }
            Err(reason) => {
                transfers.failures.increment();
                tracing::warn!(peer = %to, reason, "could not send a snapshot");
            }
        }
    }
}

/// Reports the result to raft, exactly once.
struct Report {
    context: Arc<Context>,
    to: MemberId,
    taken: bool,
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(inbound) = self.context.inbound() {
            inbound.snapshot_sent(self.to, self.taken);
        }
    }
}

struct UnderWay {
    snapshots: Arc<Snapshots>,
    to: MemberId,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.snapshots.under_way.lock().remove(&self.to);
    }
}

/// Returns the bytes of the files.
async fn transfer(
    context: &Context,
    urls: &[String],
    message: Message,
    files: Arc<SnapshotDir>,
) -> Result<u64, String> {
    let to = MemberId(message.to);
    let channel = dial_any(&context.options.dialler, urls).await?;
    peer_rpc::check_format(context, &channel).await?;
    let (parts, stream) = mpsc::channel(CHUNKS_AHEAD);
    let read_out = Arc::new(AtomicBool::new(false));
    let (outcome, read) = oneshot::channel();
    let done = read_out.clone();
    tokio::task::spawn_blocking(move || {
        let result = read_files(files.path(), &message, &parts);
        done.store(result.is_ok(), Ordering::Relaxed);
        drop((parts, files));
        // The transfer may have been aborted.
        let _ = outcome.send(result);
    });
    let mut client = PeerClient::with_origin(channel.clone(), channel.origin());
    let mut request = Request::new(ReceiverStream::new(stream));
    identity::stamp(request.metadata_mut(), &context.local, to);
    let answer = tokio::select! {
        answer = client.snapshot(request) => answer.map(drop),
        reason = stalled(context, &channel, &read_out) => return Err(reason),
    };
    drop(client);
    match (answer, read.await) {
        (Ok(()), Ok(Ok(bytes))) => Ok(bytes),
        // A failure to read files is the cause of the peer's error, not its effect.
        (_, Ok(Err(ReadError::File(path, error)))) => Err(format!("{}: {error}", path.display())),
        (Err(status), _) => {
            if identity::recognise(&status) == Some(RefusalKind::Removed)
                && let Some(inbound) = context.inbound()
            {
                inbound.removed(to);
            }
            Err(why(&status))
        }
        (Ok(()), _) => Err("the peer answered before it had everything".to_owned()),
    }
}

async fn dial_any(dialler: &Dialler, urls: &[String]) -> Result<Channel, String> {
    let mut reason = "the peer is not known, or has no URL".to_owned();
    for url in urls {
        match dial::dial(dialler, url, Some(KEEP_ALIVE)).await {
            Ok(channel) => return Ok(channel),
            Err(error) => reason = error,
        }
    }
    Err(reason)
}

/// Completes when the transfer has made no progress for too long. Counted in ticks during which the
/// process ran, so that a process that was suspended does not blame its peer.
async fn stalled(context: &Context, channel: &Channel, read_out: &AtomicBool) -> String {
    let options = &context.options;
    let mut ticks = interval(TICK.min(options.snapshot_silence));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let period = ticks.period();
    let mut moved = 0;
    let mut silence = Duration::ZERO;
    loop {
        ticks.tick().await;
        let now = channel.moved().bytes();
        silence += period;
        if now != moved && !read_out.load(Ordering::Relaxed) {
            silence = Duration::ZERO;
        }
        moved = now;
        // What is still in the socket's buffers after the last read counts as being installed.
        let (limit, reason) = if read_out.load(Ordering::Relaxed) {
            (
                options.snapshot_install_limit,
                "the peer does not take the snapshot over",
            )
        } else {
            (options.snapshot_silence, "no byte moved for a while")
        };
        if silence >= limit {
            return reason.to_owned();
        }
    }
}

enum ReadError {
    File(PathBuf, io::Error),
    /// The receiver is gone.
    GivenUp,
}

/// Sends all files below a directory, by name, then the raft message; returns the bytes of the
/// files.
fn read_files(
    dir: &Path,
    message: &Message,
    parts: &mpsc::Sender<SnapshotPart>,
) -> Result<u64, ReadError> {
    let send = |part| {
        parts
            .blocking_send(SnapshotPart { part: Some(part) })
            .map_err(|_| ReadError::GivenUp)
    };
    let at = |path: &Path| {
        let path = path.to_owned();
        |error| ReadError::File(path, error)
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at(dir))? {
        names.push(entry.map_err(at(dir))?.file_name());
    }
    names.sort();
    let mut total_bytes = 0;
    let mut buffer = BytesMut::new();
    for name in names {
        let path = dir.join(&name);
        let name = name
            .into_string()
            .map_err(|_| at(&path)(io::Error::other("a file name that is no text")))?;
        let mut file = File::open(&path).map_err(at(&path))?;
        let metadata = file.metadata().map_err(at(&path))?;
        if !metadata.is_file() {
            return Err(at(&path)(io::Error::other("not a file")));
        }
        let size_bytes = metadata.len();
        send(Part::File(SnapshotFile { name, size_bytes }))?;
        let mut crc = 0;
        let mut left = size_bytes;
        while left > 0 {
            let len = left.min(CHUNK_BYTES as u64) as usize;
            // Reuses the memory of chunks that have been sent.
            buffer.resize(len, 0);
            file.read_exact(&mut buffer).map_err(at(&path))?;
            crc = crc32c::crc32c_append(crc, &buffer);
            left -= len as u64;
            send(Part::Data(buffer.split().freeze()))?;
        }
        send(Part::FileEnd(crc))?;
        total_bytes += size_bytes;
    }
    let message = prost_11::Message::encode_to_vec(message);
    send(Part::Message(message.into()))?;
    Ok(total_bytes)
}
