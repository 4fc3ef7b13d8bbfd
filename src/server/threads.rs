//! Whether the process may have the threads that it needs.
//!
//! A member that cannot have a thread when it wants one has to stop, or to wait for ever, and a
//! library that cannot ends the process. So all threads that log, state, raft, peers and RocksDB need
//! are begun before there are clients, and stay; before any of them is, as many are begun and ended
//! to see that the system gives so many. What is begun later is for more work at once, and the work
//! waits where that cannot be.

use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::env;

/// The runtime's thread for what blocks, beside one for each processor.
const RUNTIME: usize = 1;
/// Raft, log, apply, the raft log's filler, and the writer of log lines.
const OWN: usize = 5;
/// RocksDB's: one for flushes, one for compactions, and a timer.
const ENGINE: usize = 3;
/// What sends the spans of traces.
const TRACES: usize = 2;
/// For a moment: the log's files that were put aside, a name that is looked up.
const PASSING: usize = 2;

/// How often it is checked whether the threads of the check are gone, and the time between.
const MAX_POLLS: usize = 100;
const POLL: Duration = Duration::from_millis(1);

type Body = Box<dyn FnOnce() + Send>;

/// Of a member.
pub fn of_member() -> usize {
    of_proxy() + env::steady_threads() + OWN - 1 + ENGINE + TRACES
}

/// Of a proxy: the runtime's and the writer of log lines.
pub fn of_proxy() -> usize {
    env::processors() + RUNTIME + 1 + PASSING
}

/// Of a command that reads or makes a state.
pub fn of_command() -> usize {
    ENGINE + PASSING
}

/// Fewer threads than are needed.
#[derive(Debug, thiserror::Error)]
#[error(
    "the process can have {found} more threads ({error}) and needs {needed}; raise the limit of threads (ulimit -u, LimitNPROC=, TasksMax=, pids.max)"
)]
pub struct TooFew {
    found: usize,
    needed: usize,
    error: io::Error,
}

/// Fails where the system does not give so many more threads.
///
/// # Errors
/// How many it gives.
pub fn check(needed: usize) -> Result<(), TooFew> {
    check_by(needed, Builder::spawn)
}

fn check_by(
    needed: usize,
    spawn: impl Fn(Builder, Body) -> io::Result<JoinHandle<()>>,
) -> Result<(), TooFew> {
    let before = count();
    // All of them are there at once: each waits until its sender is dropped.
    let mut held = Vec::with_capacity(needed);
    let mut begin = |found| {
        let (hold, until) = mpsc::channel::<()>();
        let wait: Body = Box::new(move || {
            // It ends with an error.
            let _ = until.recv();
        });
        match spawn(Builder::new().name("check".to_owned()), wait) {
            Ok(thread) => {
                held.push((hold, thread));
                None
            }
            Err(error) => Some(TooFew {
                found,
                needed,
                error,
            }),
        }
    };
    let refused = (0..needed).find_map(&mut begin);
    for (hold, thread) in held {
        drop(hold);
        // It cannot panic.
        let _ = thread.join();
    }
    // The system counts a thread for a moment longer than a join waits.
    for _ in 0..MAX_POLLS {
        if count() <= before {
            break;
        }
        std::thread::sleep(POLL);
    }
    refused.map_or(Ok(()), Err)
}

/// The process's threads now; 0 where the system does not tell.
fn count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn as_many_threads_as_are_needed_are_begun_at_once() {
        let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let spawn = |limit| {
            let (begun, ended) = (&begun, &ended);
            move |builder: Builder, body: Body| {
                if begun.load(Ordering::SeqCst) - ended.load(Ordering::SeqCst) == limit {
                    return Err(io::Error::from(io::ErrorKind::WouldBlock));
                }
                begun.fetch_add(1, Ordering::SeqCst);
                builder.spawn(body)
            }
        };
        assert!(check_by(5, spawn(5)).is_ok());
        ended.store(5, Ordering::SeqCst);
        let refused = check_by(5, spawn(4)).expect_err("too few").to_string();
        assert!(
            refused.starts_with("the process can have 4 more threads ("),
            "{refused}"
        );
        assert!(
            refused.contains("and needs 5; raise the limit of threads"),
            "{refused}"
        );
        assert!(of_member() > of_proxy());
    }
}
