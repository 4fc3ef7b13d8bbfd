//! Profiles of the process in pprof's format: where it spends its time, and what holds its memory.
//!
//! `go tool pprof` and what collects profiles of Go's programs read them. Both kinds are samples of
//! stacks, so both share `format`, which names the functions as well: the file needs no program
//! beside it to be read. `counting` is for tests.

#[cfg(any(test, feature = "fuzzing"))]
pub mod counting;
pub mod cpu;
mod format;
pub mod heap;
mod symbols;

pub use symbols::functions_at;
