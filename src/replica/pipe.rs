//! The queue of a thread that may block on the disk. The raft thread adds to it without blocking,
//! and sees how much is outstanding and how long the present work has taken.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::rests::Rests;
use crate::env::Clock;

struct PipeState<T> {
    items: Vec<T>,
    /// Of the queued items and those in progress.
    bytes: usize,
    working_bytes: usize,
    working_since: Option<Duration>,
    closed: bool,
}

impl<T> PipeState<T> {
    fn finish(&mut self) {
        self.bytes -= std::mem::take(&mut self.working_bytes);
        self.working_since = None;
    }

    fn begin(&mut self, clock: &dyn Clock) -> Vec<T> {
        self.working_bytes = self.bytes;
        self.working_since = Some(clock.now());
        std::mem::take(&mut self.items)
    }
}

/// See the module. The producer keeps it bounded: see `outstanding_bytes`.
pub struct Pipe<T> {
    state: Mutex<PipeState<T>>,
    wake: Condvar,
}

impl<T> Default for Pipe<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(PipeState {
                items: Vec::new(),
                bytes: 0,
                working_bytes: 0,
                working_since: None,
                closed: false,
            }),
            wake: Condvar::new(),
        }
    }
}

impl<T> Pipe<T> {
    pub fn push(&self, item: T, bytes: usize) {
        let mut state = self.state.lock();
        state.items.push(item);
        state.bytes += bytes;
        let sleeping = state.working_since.is_none();
        drop(state);
        if sleeping {
            self.wake.notify_one();
        }
    }

    /// Marks the work taken last as done, waits for more, and takes all of it; `None` once the pipe
    /// is closed and empty. The thread rests while it waits.
    pub fn take(&self, clock: &dyn Clock, rests: &mut Rests) -> Option<Vec<T>> {
        let mut state = self.state.lock();
        state.finish();
        while state.items.is_empty() {
            if state.closed {
                return None;
            }
            let Some(due) = rests.due() else {
                self.wake.wait(&mut state);
                continue;
            };
            let now = clock.now();
            if due > now {
                self.wake.wait_for(&mut state, due - now);
                continue;
            }
            // Who adds to the pipe never waits for this.
            drop(state);
            rests.rest(now);
            state = self.state.lock();
        }
        let items = state.begin(clock);
        drop(state);
        rests.worked(clock.now());
        Some(items)
    }

    /// The same without waiting; empty if nothing is queued.
    #[cfg(any(test, feature = "simulation"))]
    pub fn try_take(&self, clock: &dyn Clock) -> Vec<T> {
        let mut state = self.state.lock();
        state.finish();
        match state.items.is_empty() {
            true => Vec::new(),
            false => state.begin(clock),
        }
    }

    /// True if nothing is queued or in progress.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.items.is_empty() && state.working_since.is_none()
    }

    /// Bytes queued or in progress.
    pub fn outstanding_bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// How long the present work has taken.
    pub fn working_for(&self, now: Duration) -> Duration {
        let since = self.state.lock().working_since;
        since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    /// The present work is long, but does not stand still: `working_for` counts from now on.
    pub fn note_progress(&self, clock: &dyn Clock) {
        let mut state = self.state.lock();
        if state.working_since.is_some() {
            state.working_since = Some(clock.now());
        }
    }

    /// Queued items are still processed.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::env::{ManualClock, SystemClock};

    #[test]
    fn work_is_taken_whole_and_its_time_is_known() {
        let (pipe, clock) = (Pipe::default(), ManualClock::default());
        let mut rests = Rests::new(|| {});
        pipe.push('a', 3);
        pipe.push('b', 4);
        assert!(!pipe.is_idle());
        assert_eq!(pipe.working_for(clock.now()), Duration::ZERO);
        assert_eq!(pipe.take(&clock, &mut rests), Some(vec!['a', 'b']));
        pipe.push('c', 5);
        clock.advance(Duration::from_secs(2));
        assert_eq!(pipe.working_for(clock.now()), Duration::from_secs(2));
        assert_eq!(pipe.outstanding_bytes(), 12);
        pipe.note_progress(&clock);
        assert_eq!(pipe.working_for(clock.now()), Duration::ZERO);
        assert_eq!(pipe.take(&clock, &mut rests), Some(vec!['c']));
        assert_eq!(pipe.outstanding_bytes(), 5);
        pipe.close();
        assert_eq!(pipe.take(&clock, &mut rests), None);
        assert!(pipe.is_idle());
        assert_eq!(pipe.outstanding_bytes(), 0);
    }

    #[test]
    fn a_thread_that_waits_rests() {
        static RESTS: AtomicUsize = AtomicUsize::new(0);
        let (pipe, clock) = (Arc::new(Pipe::default()), Arc::new(SystemClock::new()));
        pipe.push('a', 1);
        let thread = {
            let (pipe, clock) = (pipe.clone(), clock.clone());
            std::thread::spawn(move || {
                let rest = || {
                    RESTS.fetch_add(1, Ordering::SeqCst);
                };
                let mut rests = Rests::new(rest);
                let mut taken = Vec::new();
                while let Some(items) = pipe.take(clock.as_ref(), &mut rests) {
                    taken.extend(items);
                }
                taken
            })
        };
        while RESTS.load(Ordering::SeqCst) == 0 {
            assert!(clock.now() < Duration::from_secs(20), "no rest");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(clock.now() >= Duration::from_secs(1));
        pipe.push('b', 1);
        pipe.close();
        assert_eq!(thread.join().expect("no panic"), ['a', 'b']);
    }
}
