//! The queue of formatted lines, and the thread that writes them.
//!
//! The queue is bounded in lines and bytes. When it is full, a line that may be dropped is dropped;
//! one that must be kept (warnings and above) replaces one that may be dropped, or waits a second
//! for room. Dropped lines are counted, and the count is logged once there is room again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

const MOST_LINES: usize = 4096;
const MOST_BYTES: usize = 8 << 20;
const ROOM_LIMIT: Duration = Duration::from_secs(1);

/// Formats the line with the number of dropped lines.
pub type Report = Box<dyn Fn(u64) -> Vec<u8> + Send>;

pub struct LogQueue {
    waiting: Mutex<Backlog>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct Backlog {
    lines: VecDeque<QueuedLine>,
    bytes: usize,
    dropped: u64,
    /// Whether lines are out of the queue and not yet written.
    writing: bool,
    /// Whether a thread has waited for room in vain since the last write: others need not.
    stalled: bool,
}

struct QueuedLine {
    bytes: Vec<u8>,
    keep: bool,
}

impl Backlog {
    fn has_room(&self, size: usize) -> bool {
        let fits = self.bytes.saturating_add(size) <= MOST_BYTES || self.lines.is_empty();
        self.lines.len() < MOST_LINES && fits
    }

    /// Drops the oldest line that may be dropped; false if there is none.
    fn evict(&mut self) -> bool {
        let Some(at) = self.lines.iter().position(|entry| !entry.keep) else {
            return false;
        };
        if let Some(entry) = self.lines.remove(at) {
            self.bytes -= entry.bytes.len();
            self.dropped += 1;
        }
        true
    }
}

impl LogQueue {
    /// Starts the thread; it lives as long as the process.
    ///
    /// # Errors
    /// The operating system cannot create a thread.
    pub fn start(outputs: Vec<Box<dyn Write + Send>>, report: Report) -> io::Result<Arc<LogQueue>> {
        let queue = Arc::new(LogQueue {
            waiting: Mutex::new(Backlog::default()),
            filled: Condvar::new(),
            written: Condvar::new(),
        });
        let own = Arc::clone(&queue);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || own.write_forever(outputs, &report))?;
        Ok(queue)
    }

    /// Adds a line. One to `keep` is lost only if the queue is full of such lines and nothing could
    /// be written for a second.
    pub fn push(&self, bytes: Vec<u8>, keep: bool) {
        let mut waiting = self.waiting.lock();
        while !waiting.has_room(bytes.len()) {
            if keep && waiting.evict() {
                continue;
            }
            if !keep || waiting.stalled {
                waiting.dropped += 1;
                return;
            }
            let waited = self.written.wait_for(&mut waiting, ROOM_LIMIT);
            waiting.stalled = waited.timed_out();
        }
        waiting.bytes += bytes.len();
        waiting.lines.push_back(QueuedLine { bytes, keep });
        self.filled.notify_one();
    }

    /// Waits until all lines added so far are written, or for `limit`.
    pub fn flush(&self, limit: Duration) {
        let mut waiting = self.waiting.lock();
        let unwritten = |waiting: &mut Backlog| waiting.writing || !waiting.lines.is_empty();
        self.written.wait_while_for(&mut waiting, unwritten, limit);
    }

    fn write_forever(&self, mut outputs: Vec<Box<dyn Write + Send>>, report: &Report) {
        let mut failed = false;
        loop {
            let (mut text, dropped) = self.take();
            if dropped > 0 {
                text.extend_from_slice(&report(dropped));
            }
            for output in &mut outputs {
                let result = output.write_all(&text).and_then(|()| output.flush());
                // Reported once: a full disk would repeat it for every line. If stderr itself
                // failed, it cannot be reported.
                if let Err(error) = &result
                    && !failed
                {
                    let _ = writeln!(io::stderr(), "cannot write the log: {error}");
                }
                failed = result.is_err();
            }
            let mut waiting = self.waiting.lock();
            waiting.writing = false;
            waiting.stalled = false;
            drop(waiting);
            self.written.notify_all();
        }
    }

    /// All queued lines as one text, and the number of dropped ones.
    fn take(&self) -> (Vec<u8>, u64) {
        let mut waiting = self.waiting.lock();
        while waiting.lines.is_empty() {
            // No limit: an idle log has nothing to do, and the thread ends with the process.
            self.filled.wait(&mut waiting);
        }
        let lines = std::mem::take(&mut waiting.lines);
        let mut text = Vec::with_capacity(waiting.bytes);
        waiting.bytes = 0;
        waiting.writing = true;
        let dropped = std::mem::take(&mut waiting.dropped);
        drop(waiting);
        for entry in lines {
            text.extend_from_slice(&entry.bytes);
        }
        (text, dropped)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// An output that writes one text for each permit it is given.
    struct BlockedWriter {
        permits: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for BlockedWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.permits.recv().map_err(io::Error::other)?;
            self.written.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (Arc<LogQueue>, SyncSender<()>, Arc<Mutex<Vec<u8>>>) {
        let (permit, permits) = sync_channel(16);
        let written = Arc::new(Mutex::new(Vec::new()));
        let gate = BlockedWriter {
            permits,
            written: Arc::clone(&written),
        };
        let report = Box::new(|dropped| format!("dropped {dropped}\n").into_bytes());
        let queue = LogQueue::start(vec![Box::new(gate)], report).unwrap();
        // The first line leaves the queue at once and stands at the gate.
        queue.push(b"first\n".to_vec(), false);
        while !queue.waiting.lock().writing {
            std::thread::yield_now();
        }
        (queue, permit, written)
    }

    fn text(written: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(written.lock().clone()).unwrap()
    }

    #[test]
    fn an_error_takes_the_place_of_what_may_go() {
        let (queue, permit, written) = gated();
        for at in 0..MOST_LINES + 5 {
            queue.push(format!("info {at}\n").into_bytes(), false);
        }
        queue.push(b"error\n".to_vec(), true);
        permit.send(()).unwrap();
        permit.send(()).unwrap();
        queue.flush(Duration::from_secs(10));
        let text = text(&written);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["first", "info 1"]);
        assert_eq!(lines[lines.len() - 2..], ["error", "dropped 6"]);
        assert_eq!(lines.len(), 1 + MOST_LINES + 1);
    }

    #[test]
    fn a_queue_full_of_errors_waits_and_counts() {
        let (queue, permit, written) = gated();
        queue.push(vec![b'x'; MOST_BYTES - 1], true);
        queue.push(b"\n".to_vec(), true);
        // The first of these waits; the others see that it was in vain.
        for _ in 0..1000 {
            queue.push(b"too much\n".to_vec(), true);
        }
        permit.send(()).unwrap();
        permit.send(()).unwrap();
        queue.flush(Duration::from_secs(10));
        assert!(text(&written).ends_with("x\ndropped 1000\n"));
    }

    #[test]
    fn flush_gives_up() {
        let (queue, _permit, written) = gated();
        queue.flush(Duration::from_millis(20));
        assert_eq!(text(&written), "");
    }
}
