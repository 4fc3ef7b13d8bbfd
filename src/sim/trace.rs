//! The events of a world, line by line. A hash over all lines compares two runs; the last lines are
//! kept for the report of a failure.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::Mutex;

use super::clock::Time;
use super::history::Operation;

/// Lines kept.
const KEPT_LINES: usize = 400;

/// See the module.
pub struct Trace {
    time: Arc<Time>,
    state: Mutex<TraceState>,
}

struct TraceState {
    hash: u64,
    lines: u64,
    last: VecDeque<String>,
    /// Prints each line as it comes.
    print: bool,
}

impl Trace {
    pub fn new(time: Arc<Time>, print: bool) -> Arc<Self> {
        Arc::new(Self {
            time,
            state: Mutex::new(TraceState {
                hash: 0xcbf2_9ce4_8422_2325,
                lines: 0,
                last: VecDeque::new(),
                print,
            }),
        })
    }

    /// Adds a line.
    pub fn note(&self, what: std::fmt::Arguments<'_>) {
        let ns = self.time.now_ns();
        let mut line = format!("{:4}.{:09} ", ns / 1_000_000_000, ns % 1_000_000_000);
        // Writing to a string does not fail.
        let _ = line.write_fmt(what);
        let mut state = self.state.lock();
        for byte in line.bytes().chain([b'\n']) {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        state.lines += 1;
        if state.print {
            println!("{line}");
        }
        if state.last.len() == KEPT_LINES {
            state.last.pop_front();
        }
        state.last.push_back(line);
    }

    pub fn operation(&self, operation: &Operation) {
        self.note(format_args!(
            "client {} at {}: {:?} -> {:?} (called at {})",
            operation.client,
            operation.member,
            operation.request,
            operation.outcome,
            operation.called_at
        ));
    }

    /// How many lines there are, and a hash of all of them.
    pub fn digest(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.lines, state.hash)
    }

    /// The last lines.
    pub fn last(&self) -> Vec<String> {
        self.state.lock().last.iter().cloned().collect()
    }
}
