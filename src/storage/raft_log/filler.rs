//! Makes the next segment while the current one is in use, on a thread of its own: an append then
//! never waits for blocks to be allocated. Without it the log makes each segment when it needs it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::files::{Files, OpenFile};
use super::segment::{Pace, make_zeroed};

/// Makes files of zeros ahead of their use, one at a time.
pub trait Prepare: Send {
    /// Begins to make the file, durable with its name; returns at once.
    fn begin(&mut self, name: &str, bytes: u64);

    /// The file begun last, if that is its name and it could be made. Else the caller makes it.
    fn take(&mut self, name: &str) -> Option<Arc<dyn OpenFile>>;
}

type Made = (String, io::Result<Arc<dyn OpenFile>>);

/// The thread that does so.
pub struct ZeroFiller {
    orders: Option<SyncSender<(String, u64)>>,
    made: Receiver<Made>,
    ordered: bool,
    hurry: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ZeroFiller {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(files: Arc<dyn Files>) -> io::Result<Self> {
        // One order is under way at most, so neither side ever waits to send.
        let (orders, incoming) = sync_channel::<(String, u64)>(1);
        let (outgoing, made) = sync_channel::<Made>(1);
        let hurry = Arc::new(AtomicBool::new(false));
        let stop = Arc::new(AtomicBool::new(false));
        let (hurried, stopped) = (Arc::clone(&hurry), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("log-filler".to_owned())
            .spawn(move || {
                let pace = || {
                    if stopped.load(Ordering::Relaxed) {
                        Pace::Stopped
                    } else if hurried.load(Ordering::Relaxed) {
                        Pace::Hurried
                    } else {
                        Pace::Gentle
                    }
                };
                for (name, bytes) in incoming {
                    let file = make_zeroed(&*files, &name, bytes, &pace);
                    if outgoing.send((name, file)).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            orders: Some(orders),
            made,
            ordered: false,
            hurry,
            stop,
            thread: Some(thread),
        })
    }
}

impl Prepare for ZeroFiller {
    fn begin(&mut self, name: &str, bytes: u64) {
        if self.ordered {
            return;
        }
        let order = (name.to_owned(), bytes);
        self.ordered = self
            .orders
            .as_ref()
            .is_some_and(|orders| orders.try_send(order).is_ok());
    }

    fn take(&mut self, name: &str) -> Option<Arc<dyn OpenFile>> {
        if !std::mem::take(&mut self.ordered) {
            return None;
        }
        // A file half made is waited for: starting over would take longer. The wait ends when the
        // disk is done, or with the thread.
        self.hurry.store(true, Ordering::Relaxed);
        let answer = self.made.recv();
        self.hurry.store(false, Ordering::Relaxed);
        let (made, file) = answer.ok()?;
        match file {
            Ok(file) if made == name => Some(file),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(segment = made, %error, "could not make a raft log segment ahead");
                None
            }
        }
    }
}

impl Drop for ZeroFiller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that makes the raft log's segments ahead panicked");
        }
    }
}
