//! The commands for what a stopped member left, and for etcd's snapshot files.
//!
//! - `dir` opens a data directory to read it;
//! - `status` says what is in a directory or a snapshot file, `table` prints it as etcdutl would;
//! - `check` reads all of a directory and says what is wrong in it;
//! - `compact` frees the space of what is no longer there;
//! - `log` prints the entries of the raft log.
//!
//! None of them works on a directory that a member uses. All but `compact` change nothing in it,
//! whatever they find, and `compact` begins only where `check` finds a state that is whole.

mod check;
mod compact;
mod dir;
mod error;
mod log;
mod status;
mod table;

use std::io::{self, Write};
use std::process::ExitCode;

use self::error::Error;
use crate::config::{Offline, Task};

/// Carries out a command. What was asked for is written to stdout, an error to stderr.
pub fn run(command: &Offline) -> ExitCode {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let done = match command.task {
        Task::Status(format) => status::status(command, format, &mut out),
        Task::Check => check::check(command, &mut out),
        Task::Compact => compact::compact(command, &mut out),
        Task::Log { from, to } => log::print(command, from..=to, &mut out),
    };
    let done = done.and_then(|()| Ok(out.flush()?));
    let name = match command.task {
        Task::Status(_) => "status",
        Task::Check => "check",
        Task::Compact => "compact",
        Task::Log { .. } => "log",
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The reader, such as `head`, has seen enough.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // What was found comes before what it amounts to; that it cannot be written is less
            // than what is said now.
            let _ = out.flush();
            eprintln!("etched {name}: {error}");
            ExitCode::from(1)
        }
    }
}
