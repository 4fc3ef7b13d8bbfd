//! Outgoing transfers of a state, which are a checkpoint's files and the raft snapshot message: files
//! read in order, in turns of the blocking pool so that a slow peer holds no thread, and sent over a
//! connection of their own.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::SnapshotDir;
use super::context::Context;
use super::dial::{self, Channel, Dialler};
use super::identity::{self, RefusalKind, why};
use super::peer_rpc;
use crate::env::{Executor, blocking};
use crate::net::KeepAlive;
use crate::proto::etchedpeer::peer_client::PeerClient;
use crate::proto::etchedpeer::snapshot_part::Part;
use crate::proto::etchedpeer::{SnapshotFile, SnapshotPart};
use crate::raft::Message;
use crate::types::MemberId;

pub const CHUNK_BYTES: usize = 256 << 10;
/// Chunks between the files and the connection.
const CHUNKS_AHEAD: usize = 8;
/// What is read in one turn of the blocking pool.
const TURN_BYTES: u64 = 1 << 20;
const MAX_TURN_PARTS: usize = 64;
/// Between two tries to send to a peer that has to take it later, and how long it is tried: a new
/// leader's first heartbeat, by which it is known, may still be on its way.
const LATER_PAUSE: Duration = Duration::from_secs(1);
const LATER_LIMIT: Duration = Duration::from_secs(30);
/// How long a transfer waits for others in progress.
const TURN_LIMIT: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_secs(1);
/// Detects a dead peer while it installs the state, too.
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

    /// Sends a state, and reports the result.
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
            tracing::warn!(peer = %to, "a state is being sent to this peer already");
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
            Ok(_turn) => transfer_when_taken(&context, &urls, &message, &files).await,
            Err(_) => Err("other states are still being sent".to_owned()),
        };
        transfers.in_flight.add(-1);
        let took = context.outside.clock.now().saturating_sub(begun);
        match sent {
            Ok(bytes) => {
                transfers.successes.increment();
                transfers.took.observe(took);
                let took_s = took.as_secs_f64();
                tracing::info!(peer = %to, bytes, took_s, "sent a state");
                report.taken = true;
            }
            Err(reason) => {
                transfers.failures.increment();
                tracing::warn!(peer = %to, reason, "could not send a state");
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

/// Why a state was not sent.
enum Failure {
    /// The peer may take it in a while.
    Later(String),
    Other(String),
}

/// Tries until the peer takes it, or has not for a while.
async fn transfer_when_taken(
    context: &Context,
    urls: &[String],
    message: &Message,
    files: &Arc<SnapshotDir>,
) -> Result<u64, String> {
    let clock = &context.outside.clock;
    let begun = clock.now();
    loop {
        match transfer(context, urls, message.clone(), files.clone()).await {
            Ok(bytes) => return Ok(bytes),
            Err(Failure::Later(_)) if clock.now().saturating_sub(begun) < LATER_LIMIT => {
                tokio::time::sleep(LATER_PAUSE).await;
            }
            Err(Failure::Later(reason) | Failure::Other(reason)) => return Err(reason),
        }
    }
}

/// Returns the bytes of the files.
async fn transfer(
    context: &Context,
    urls: &[String],
    message: Message,
    files: Arc<SnapshotDir>,
) -> Result<u64, Failure> {
    let to = MemberId(message.to);
    let dialled = dial_any(&context.options.dialler, urls).await;
    let channel = dialled.map_err(Failure::Other)?;
    let known = peer_rpc::check_format(context, &channel).await;
    known.map_err(Failure::Other)?;
    let (parts, stream) = mpsc::channel(CHUNKS_AHEAD);
    let is_read = Arc::new(AtomicBool::new(false));
    let (done, executor) = (is_read.clone(), context.outside.executor.clone());
    // Ends when the call does, whose stream it fills.
    let read = tokio::spawn(async move {
        let result = read_out(executor.as_ref(), files, message, parts).await;
        done.store(result.is_ok(), Ordering::Relaxed);
        result
    });
    let mut client = PeerClient::with_origin(channel.clone(), channel.origin());
    let mut request = Request::new(ReceiverStream::new(stream));
    identity::stamp(request.metadata_mut(), &context.local, to);
    let answer = tokio::select! {
        answer = client.snapshot(request) => answer.map(drop),
        reason = stalled(context, &channel, &is_read) => return Err(Failure::Other(reason)),
    };
    drop(client);
    match (answer, read.await) {
        (Ok(()), Ok(Ok(bytes))) => Ok(bytes),
        // A failure to read files is the cause of the peer's error, not its effect.
        (_, Ok(Err(ReadError::File(path, error)))) => {
            Err(Failure::Other(format!("{}: {error}", path.display())))
        }
        (Err(status), _) => match identity::recognise(&status) {
            Some(RefusalKind::Later) => Err(Failure::Later(why(&status))),
            seen => {
                if seen == Some(RefusalKind::Removed)
                    && let Some(inbound) = context.inbound()
                {
                    inbound.removed(to);
                }
                Err(Failure::Other(why(&status)))
            }
        },
        (Ok(()), _) => {
            let text = "the peer answered before it had everything";
            Err(Failure::Other(text.to_owned()))
        }
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
async fn stalled(context: &Context, channel: &Channel, is_read: &AtomicBool) -> String {
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
        if now != moved && !is_read.load(Ordering::Relaxed) {
            silence = Duration::ZERO;
        }
        moved = now;
        // What is still in the socket's buffers after the last read counts as being installed.
        let (limit, reason) = if is_read.load(Ordering::Relaxed) {
            (
                options.snapshot_install_limit,
                "the peer does not take the state over",
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
    /// The receiver is gone, or the member stops.
    GivenUp,
}

fn at(path: &Path) -> impl Fn(io::Error) -> ReadError + use<> {
    let path = path.to_owned();
    move |error| ReadError::File(path.clone(), error)
}

/// Hands out all parts of a transfer; returns the bytes of the files.
async fn read_out(
    executor: &dyn Executor,
    files: Arc<SnapshotDir>,
    message: Message,
    parts: mpsc::Sender<SnapshotPart>,
) -> Result<u64, ReadError> {
    let begun = blocking(executor, move || Reading::begin(files)).await;
    let mut reading = begun.map_err(|_| ReadError::GivenUp)??;
    loop {
        let read = blocking(executor, move || {
            let read = reading.next();
            (reading, read)
        });
        let (back, read) = read.await.map_err(|_| ReadError::GivenUp)?;
        reading = back;
        let read = read?;
        let is_end = read.is_empty();
        for part in read {
            let sent = parts.send(SnapshotPart { part: Some(part) }).await;
            sent.map_err(|_| ReadError::GivenUp)?;
        }
        if is_end {
            break;
        }
    }
    let message = prost_11::Message::encode_to_vec(&message);
    let part = Some(Part::Message(message.into()));
    let sent = parts.send(SnapshotPart { part }).await;
    sent.map_err(|_| ReadError::GivenUp)?;
    Ok(reading.total_bytes)
}

/// Files that are read in turns of the blocking pool, by name.
struct Reading {
    files: Arc<SnapshotDir>,
    names: VecDeque<OsString>,
    open: Option<OpenFile>,
    total_bytes: u64,
    /// Its memory is used again for chunks when those before have been sent.
    buffer: BytesMut,
}

struct OpenFile {
    file: File,
    path: PathBuf,
    left_bytes: u64,
    crc: u32,
}

impl Reading {
    fn begin(files: Arc<SnapshotDir>) -> Result<Self, ReadError> {
        let dir = files.path();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(at(dir))? {
            names.push(entry.map_err(at(dir))?.file_name());
        }
        names.sort();
        Ok(Self {
            files,
            names: names.into(),
            open: None,
            total_bytes: 0,
            buffer: BytesMut::new(),
        })
    }

    /// The next parts, of about so many bytes as are read in a turn; none at the end.
    fn next(&mut self) -> Result<Vec<Part>, ReadError> {
        let (mut parts, begun) = (Vec::new(), self.total_bytes);
        while self.total_bytes - begun < TURN_BYTES && parts.len() < MAX_TURN_PARTS {
            if self.open.is_some() {
                parts.push(self.read()?);
            } else if let Some(name) = self.names.pop_front() {
                parts.push(self.open(name)?);
            } else {
                break;
            }
        }
        Ok(parts)
    }

    fn open(&mut self, name: OsString) -> Result<Part, ReadError> {
        let path = self.files.path().join(&name);
        let failed = at(&path);
        let name = name
            .into_string()
            .map_err(|_| failed(io::Error::other("a file name that is no text")))?;
        let file = File::open(&path).map_err(&failed)?;
        let metadata = file.metadata().map_err(&failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("not a file")));
        }
        let size_bytes = metadata.len();
        self.open = Some(OpenFile {
            file,
            path,
            left_bytes: size_bytes,
            crc: 0,
        });
        Ok(Part::File(SnapshotFile { name, size_bytes }))
    }

    /// The next chunk of the open file, or its end.
    fn read(&mut self) -> Result<Part, ReadError> {
        let Some(open) = &mut self.open else {
            return Err(ReadError::GivenUp);
        };
        if open.left_bytes == 0 {
            let crc = open.crc;
            self.open = None;
            return Ok(Part::FileEnd(crc));
        }
        let len = open.left_bytes.min(CHUNK_BYTES as u64);
        self.buffer.resize(len as usize, 0);
        let read = open.file.read_exact(&mut self.buffer);
        read.map_err(at(&open.path))?;
        open.crc = crc32c::crc32c_append(open.crc, &self.buffer);
        open.left_bytes -= len;
        self.total_bytes += len;
        Ok(Part::Data(self.buffer.split().freeze()))
    }
}
