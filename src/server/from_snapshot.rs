//! `etched restore`: a new member from etcd's snapshot file, which is the only snapshot here; etcd
//! or etched has written it.
//!
//! Every member of the new cluster is made from the same file; they begin with equal states, as
//! founders do. The directory is made beside its place and renamed when it is whole, so that an
//! error or a crash leaves nothing in it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;

use super::data_dir::{DataDir, beside_etcd};
use super::{Error, bootstrap, restore};
use crate::backup::bbolt;
use crate::backup::import::{self, Imported, Progress};
use crate::config::Config;
use crate::env::Clock;

pub use crate::backup::import::Changes;

/// What is restored, and how.
pub struct Order<'a> {
    pub snapshot: &'a Path,
    /// Of the new member: its name, cluster and data directory.
    pub config: &'a Config,
    pub changes: Changes,
    /// For a file that was copied from a data directory, behind which no hash stands.
    pub skip_hash_check: bool,
    pub clock: &'a dyn Clock,
    /// True from the time on that a signal asks for the end.
    pub interrupted: &'a dyn Fn() -> bool,
}

const HASH_BYTES: u64 = 32;
/// etcd writes its files in units of this; a hash makes a file longer.
const UNIT_BYTES: u64 = 512;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Tables of the new state that may be open; it is written once and closed.
const OPEN_TABLES: usize = 64;

/// Makes the member; `say` gets a line of progress a second. An interruption is an error like others:
/// nothing is left.
pub fn restore(order: &Order<'_>, say: &mut dyn FnMut(&str)) -> Result<Imported, Error> {
    let target = &order.config.data_dir;
    check_unused(target)?;
    let of_snapshot = |error: &dyn std::fmt::Display| {
        Error::Refused(format!("snapshot {}: {error}", order.snapshot.display()))
    };
    if !order.skip_hash_check {
        let mut reporter = Reporter::new(order.clock, PROGRESS_INTERVAL, say);
        let stated = check_hash(order.snapshot, &mut |done, of| {
            reporter.report(|| format!("checked {} of {} MiB", done >> 20, of >> 20));
            !(order.interrupted)()
        });
        match stated.map_err(|error| of_snapshot(&error))? {
            Stated::Same => {}
            Stated::Nothing => return Err(of_snapshot(&HashError::Missing)),
        }
    }
    let file = bbolt::read::File::open(order.snapshot).map_err(|error| of_snapshot(&error))?;
    let cluster = order.config.listed_cluster();
    let new = cluster.and_then(|cluster| {
        let unresolved = |_: &str| Err(io::ErrorKind::Unsupported.into());
        order.config.found(&cluster, &unresolved)
    });
    let new = new.map_err(|refusal| Error::Refused(refusal.to_string()))?;
    let staging = beside(target)?;
    remove(&staging)?;
    let dir = DataDir::open(
        &staging,
        None,
        bootstrap::store_limits(order.config, OPEN_TABLES),
    )?;
    let mut imported = None;
    let options = bootstrap::options(order.config);
    let made = restore::found_with(&dir, bootstrap::found::founding(new), &options, |engine| {
        let mut reporter = Reporter::new(order.clock, PROGRESS_INTERVAL, say);
        let done = import::import(&file, engine, &staging, order.changes, &mut |progress| {
            reporter.imported(progress);
            match (order.interrupted)() {
                true => Err(import::Error::Interrupted),
                false => Ok(()),
            }
        });
        imported = Some(done.map_err(|error| of_snapshot(&error))?);
        Ok(())
    });
    drop(dir);
    let made = match made.map(drop) {
        Ok(()) if (order.interrupted)() => Err(of_snapshot(&import::Error::Interrupted)),
        made => made,
    };
    if let Err(error) = made {
        // The error is what matters; what cannot be removed now is removed by the next attempt.
        let _ = remove(&staging);
        return Err(error);
    }
    put_in_place(&staging, target)?;
    imported.ok_or_else(|| Error::Refused("the state was not filled".to_owned()))
}

/// True for a directory that holds nothing, or is not there.
pub(super) fn is_unused(target: &Path) -> bool {
    match fs::read_dir(target) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Of etched or of an etcd, or one of etched beside that.
fn is_member(target: &Path) -> bool {
    target.join("member").is_dir() || beside_etcd(target).is_dir()
}

/// Refuses a directory that holds anything.
fn check_unused(target: &Path) -> Result<(), Error> {
    match is_unused(target) {
        true => Ok(()),
        false => Err(Error::Refused(format!(
            "data-dir {:?} not empty or could not be read; move it away, or choose another --data-dir{}",
            target.display().to_string(),
            match is_member(target) {
                true => SKIP_IF_IT_CONTINUED,
                false => "",
            }
        ))),
    }
}

/// Of a cluster that was restored over: its clients have seen revisions of after the snapshot.
const SKIP_IF_IT_CONTINUED: &str = "; clients that saw what this member wrote after the snapshot must not meet its revisions again: add --bump-revision 1000000000 --mark-compacted";

/// Where the directory is made: on the same file system, so that it can be renamed.
pub(super) fn beside(target: &Path) -> Result<PathBuf, Error> {
    let name = target
        .file_name()
        .ok_or_else(|| Error::Refused(format!("{} cannot be a --data-dir", target.display())))?;
    let mut name = name.to_owned();
    name.push(".restoring");
    Ok(target.with_file_name(name))
}

pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Os {
            what: "remove what an earlier attempt left",
            error,
        }),
        _ => Ok(()),
    }
}

pub(super) fn put_in_place(staging: &Path, target: &Path) -> Result<(), Error> {
    let failed = |error| Error::Os {
        what: "rename the new data directory into its place",
        error,
    };
    // An empty directory may be there already.
    match fs::remove_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    fs::rename(staging, target).map_err(failed)?;
    let parent = target
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = File::open(parent.unwrap_or(Path::new("."))).map_err(failed)?;
    parent.sync_all().map_err(failed)
}

/// Why a snapshot file is not what was saved.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(
        "no SHA-256 stands behind its data: it is cut short, or was copied from a data directory, which --skip-hash-check allows"
    )]
    Missing,
    #[error("its SHA-256 is {found}, and {expected} was saved with it: it was changed or damaged")]
    Different { found: String, expected: String },
    #[error("interrupted")]
    Interrupted,
}

/// What the hash behind a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stated {
    Same,
    /// There is none.
    Nothing,
}

/// Compares the file with the hash that stands behind it. `continues` gets the bytes that were read,
/// and how many there are; false ends it.
pub fn check_hash(
    snapshot: &Path,
    continues: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Stated, HashError> {
    let mut file = File::open(snapshot)?;
    let len = file.metadata()?.len();
    if len % UNIT_BYTES != HASH_BYTES {
        return Ok(Stated::Nothing);
    }
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut left = len - HASH_BYTES;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let most = left.min(buffer.len() as u64) as usize;
        file.read_exact(&mut buffer[..most])?;
        hash.update(&buffer[..most]);
        left -= most as u64;
        if !continues(len - left, len) {
            return Err(HashError::Interrupted);
        }
    }
    let mut saved = [0; HASH_BYTES as usize];
    file.read_exact(&mut saved)?;
    let found = hash.finish();
    match found.as_ref() == saved {
        true => Ok(Stated::Same),
        false => Err(HashError::Different {
            found: hex(found.as_ref()),
            expected: hex(&saved),
        }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Says from time to time how far something is.
pub(super) struct Reporter<'a> {
    clock: &'a dyn Clock,
    interval: Duration,
    last: Duration,
    say: &'a mut dyn FnMut(&str),
}

impl<'a> Reporter<'a> {
    pub fn new(clock: &'a dyn Clock, interval: Duration, say: &'a mut dyn FnMut(&str)) -> Self {
        Self {
            clock,
            interval,
            last: clock.now(),
            say,
        }
    }

    /// Says the line where it is time for one.
    pub fn report(&mut self, line: impl FnOnce() -> String) {
        let now = self.clock.now();
        if now.saturating_sub(self.last) >= self.interval {
            self.last = now;
            (self.say)(&line());
        }
    }

    /// Of an import.
    pub fn imported(&mut self, progress: Progress) {
        let (Progress::Read(count) | Progress::Written { records: count, .. }) = progress;
        // The clock is asked now and then.
        if count % 1024 != 0 {
            return;
        }
        self.report(|| match progress {
            Progress::Read(records) => format!("read {records} records"),
            Progress::Written { records, of } => format!("wrote {records} of {of} records"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::ManualClock;

    #[test]
    fn a_line_an_interval_says_how_far_it_is() {
        let (clock, mut lines) = (ManualClock::default(), Vec::new());
        let mut say = |line: &str| lines.push(line.to_owned());
        let mut reporter = Reporter::new(&clock, Duration::from_secs(1), &mut say);
        let mut at = |seconds: u64, progress| {
            clock.advance(Duration::from_secs(seconds));
            reporter.imported(progress);
        };
        at(0, Progress::Read(1024));
        at(1, Progress::Read(1025));
        at(0, Progress::Read(2048));
        at(0, Progress::Read(3072));
        let written = |records| Progress::Written { records, of: 9000 };
        at(3, written(4096));
        at(0, written(5120));
        assert_eq!(lines, ["read 2048 records", "wrote 4096 of 9000 records"]);
    }
}
