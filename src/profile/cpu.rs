//! Where the processors' time goes: the stack of who is running, a hundred times in each second of
//! it, RocksDB's threads included.
//!
//! The crate interrupts threads by SIGPROF and collects into a table of fixed size. That takes about
//! 70 MB, from the first profile on: nobody pays who never asks for one.

use std::time::Duration;

use super::format::{Builder, Quantity};
use super::symbols::{self, Reading};

/// Go's.
const SAMPLES_PER_S: i32 = 100;
const PERIOD_NS: i64 = 1_000_000_000 / SAMPLES_PER_S as i64;

const TYPES: [Quantity; 2] = [("samples", "count"), TIME];
const TIME: Quantity = ("cpu", "nanoseconds");

/// The stack of who is interrupted there is not read: the unwinder, which in a static program has no
/// file of its own and is entered a second time, and the kernel's page, which has no tables for one.
const LEFT_OUT: [&str; 2] = ["libgcc", "vdso"];

/// The crate's function that the signal calls, and below which a stack is nobody's business. The
/// next call outwards is the system's own.
const HANDLER: &str = "perf_signal_handler";

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cpu profiling already in use")]
    InUse,
    #[error("{0}")]
    Failed(String),
}

/// A profile that is being made; there is one at once.
pub struct Recording(pprof::ProfilerGuard<'static>, Reading);

/// Starts; reads the program's symbols, so it takes a moment.
pub fn start() -> Result<Recording, Error> {
    let profiler = pprof::ProfilerGuardBuilder::default()
        .frequency(SAMPLES_PER_S)
        .blocklist(&LEFT_OUT);
    match profiler.build() {
        Ok(guard) => Ok(Recording(guard, Reading)),
        Err(pprof::Error::Running) => Err(Error::InUse),
        Err(error) => Err(Error::Failed(error.to_string())),
    }
}

impl Recording {
    /// Ends and writes the profile, which lasted until this time since the Unix epoch.
    pub fn finish(self, until: Duration) -> Result<Vec<u8>, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Failed(error.to_string());
        let report = self.0.report().build_unresolved();
        let report = report.map_err(|error| failed(&error))?;
        let Self(guard, _reading) = self;
        drop(guard);
        let lasted = report.timing.duration;
        let began = until.saturating_sub(lasted);
        let mut builder = Builder::new(&TYPES, TIME, PERIOD_NS, began);
        builder.lasted(lasted);
        for (stack, count) in &report.data {
            let addresses = stack.frames.iter().map(|frame| frame.ip() as usize);
            let addresses: Vec<usize> = addresses.collect();
            let thread = &stack.thread_name[..stack.thread_name_length];
            let thread = String::from_utf8_lossy(thread);
            let count = *count as i64;
            let values = vec![count, count * PERIOD_NS];
            builder.sample(interrupted(&addresses), values, Some(&thread));
        }
        builder.finish().map_err(|error| failed(&error))
    }
}

/// The part of a stack that was there before the signal.
fn interrupted(stack: &[usize]) -> &[usize] {
    let handler = stack.iter().position(|address| {
        let mut found = false;
        symbols::calls_at(*address, |call| found |= call.function.ends_with(HANDLER));
        found
    });
    match handler {
        Some(at) => stack.get(at + 2..).unwrap_or_default(),
        None => stack,
    }
}
