//! What is in etcd's snapshot file or in the directory of a stopped member.

use std::io::Write;
use std::path::Path;

use super::dir::{self, Stopped};
use super::error::{Error, Result, SnapshotError};
use super::table::{self, Cell, size};
use crate::backup::bbolt::read::File;
use crate::backup::status::{self, Status};
use crate::config::{Format, Offline};
use crate::mvcc::read::PinnedView;
use crate::server::from_snapshot;
use crate::types::version;

pub fn status(command: &Offline, format: Format, out: &mut dyn Write) -> Result<()> {
    let cells = match command.path.is_file() {
        true => of_snapshot(&command.path).map_err(|error| {
            Error::Refused(format!("snapshot {}: {error}", command.path.display()))
        })?,
        false => of_member(&dir::open(command)?)?,
    };
    Ok(table::print(&cells, format, out)?)
}

fn of_snapshot(path: &Path) -> Result<Vec<Cell>, SnapshotError> {
    from_snapshot::check_hash(path, &mut |_, _| true)?;
    let Status {
        hash,
        revision,
        total_keys,
        total_bytes,
        version,
    } = status::status(&File::open(path)?)?;
    Ok(vec![
        Cell::new("hash", "hash", hash).shown(format!("{hash:x}")),
        Cell::new("revision", "revision", revision),
        Cell::new("total keys", "totalKey", total_keys),
        Cell::new("total size", "totalSize", total_bytes).shown(size(total_bytes)),
        Cell::new("version", "version", version),
    ])
}

/// What a member has applied and flushed. A start applies the rest of its log, as far as that is
/// committed.
fn of_member(stopped: &Stopped) -> Result<Vec<Cell>> {
    let (_, recovered) = stopped.log()?;
    let (_, machine) = stopped.machine(recovered.compacted.index)?;
    let bytes = machine.engine().size().total_bytes;
    let pinned = PinnedView {
        read: machine.engine().latest(),
        head: machine.head(),
        compacted: machine.compacted(),
        counts: None,
    };
    // The directory may be one that cannot be written to.
    let hash = pinned.hash(0, &std::env::temp_dir())?;
    let applied = machine.applied_index();
    if recovered.last_index > applied {
        let entries = recovered.last_index - applied;
        eprintln!(
            "the last {entries} entries of the raft log are not in the state yet; the next start applies those that are committed"
        );
    }
    let version = version::of_storage(machine.versions().cluster());
    Ok(vec![
        Cell::new("hash kv", "hashKV", hash.hash),
        Cell::new("revision", "revision", machine.head()),
        Cell::new("total keys", "totalKey", machine.keys()),
        Cell::new("total size", "totalSize", bytes).shown(size(bytes)),
        Cell::new("version", "version", version),
        Cell::new("compact revision", "compactRevision", machine.compacted()),
        Cell::new("applied index", "appliedIndex", applied),
        Cell::new("last index", "lastIndex", recovered.last_index),
        Cell::new("member", "member", stopped.identity.member.to_string()),
        Cell::new("cluster", "cluster", stopped.identity.cluster.to_string()),
    ])
}
