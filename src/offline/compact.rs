//! Frees the space of what was deleted and compacted: what a running member does in the background,
//! at once and for all of its state.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::check::verified;
use super::dir;
use super::error::{Error, Result};
use super::table::size;
use crate::config::Offline;
use crate::server::data_dir::DataDir;
use crate::server::member_dir::MemberDir;

pub fn compact(command: &Offline, out: &mut dyn Write) -> Result<()> {
    let stopped = dir::open(command)?;
    let (_, recovered) = stopped.log()?;
    let (name, machine) = stopped.machine(recovered.compacted.index)?;
    let mut problems = 0;
    verified(&machine, &mut |_| problems += 1)?;
    if problems > 0 {
        return Err(Error::Refused(format!(
            "{} is damaged, and nothing was changed; `etched check {0}` says what is wrong",
            command.path.display()
        )));
    }
    drop(machine);
    // Between this and the lock of one that writes a member may start, which is refused then.
    drop(stopped);
    let dir = DataDir::open(&command.path, command.wal_dir.as_deref(), dir::LIMITS)?;
    let path = dir.path(&name);
    let before = table_bytes(&path)?;
    let engine = dir.open_engine(&name)?;
    engine.compact()?;
    engine.flush()?;
    drop(engine);
    let after = table_bytes(&path)?;
    writeln!(
        out,
        "compacted {}: {} before, {} now",
        path.display(),
        size(before),
        size(after)
    )?;
    Ok(())
}

/// What the tables of a state take.
fn table_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|kind| kind == "sst") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}
