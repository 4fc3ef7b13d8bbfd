//! The directory of a stopped etcd becomes a member's: the same member of the same cluster, with
//! the same term and vote, the state as etcd applied it, and the rest of its log as entries.
//!
//! ```text
//! <data-dir>/member/       etcd's, which stays as it is, and is not read again
//! <data-dir>/etched/       ours: see `member_dir`
//! <data-dir>/etched.new/   ours while it is made
//! <wal-dir>/               etcd's log, where it has a directory of its own
//! <wal-dir>/etched/        ours
//! ```
//!
//! The new directory is renamed into its place when it is whole and on the disk: a crash before
//! that leaves etcd's files, from which the next start begins anew, and so does a signal, which ends
//! the process at once. While they are read, the lock that an etcd would need is held, and systemd is
//! asked for more time as long as there is progress.
//!
//! The log is taken from its newest snapshot (see `survey`) on, and not from the entry that was
//! applied last: the members of a cluster stop at different entries, and one that lacks a few gets
//! them from the others as it would from etcd.

pub mod survey;
#[cfg(test)]
mod tests;
pub mod translate;

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use self::survey::{Mismatch, Survey};
use super::Error;
use super::bootstrap;
use super::data_dir::{DataDir, beside_etcd, is_etcds, member_of_etcd};
use super::from_snapshot::{Reporter, put_in_place, remove};
use super::member_dir::{MemberDir, MemberIdentity};
use super::notify;
use crate::backup::applied::Applied;
use crate::backup::bbolt;
use crate::backup::import::{self, Changes};
use crate::backup::wal::message::Snapshot;
use crate::backup::wal::read::{Record, Wal};
use crate::backup::wal::{self, snap};
use crate::config::Config;
use crate::env::Clock;
use crate::proto::membershippb::Member;
use crate::raft::replica::encode_vote;
use crate::state::Machine;
use crate::storage::raft_log::{Batch, EntryId, LogEntry, RaftLog};
use crate::storage::rocks::EngineLimits;
use crate::types::{ClusterId, MemberId};

/// Entries are written when they have as many bytes.
const BATCH_BYTES: usize = 1 << 20;
/// Or when there are as many.
const BATCH_ENTRIES: usize = 4096;
/// Between lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// How long systemd waits after each of them. The longest step without one brings gigabytes of records
/// into the order of their keys.
const START_EXTENSION: Duration = Duration::from_secs(300);

/// Why a directory was not taken over.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("an etcd runs on it; stop that first")]
    InUse,
    #[error(
        "etched was started on it before etcd was; move member/snap away to continue with etched's data"
    )]
    Both,
    #[error("{0}")]
    Lacking(&'static str),
    #[error("its member/snap/db: {0}")]
    State(#[from] import::Error),
    #[error("its raft log: {0}")]
    Log(#[from] wal::Error),
    #[error("its {name}: {error}")]
    Snapshot { name: String, error: wal::Error },
    #[error("entry {index} of its raft log: {error}")]
    Entry {
        index: u64,
        error: translate::Untranslatable,
    },
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error("it is of etcd {0}, and those from 3.5 on can be taken over")]
    Old(String),
    #[error("it holds keys of etcd's second API, which etched does not have")]
    OldData,
    #[error(transparent)]
    Server(#[from] Error),
}

impl Refusal {
    /// One line, with the way that is left.
    fn of(self, data_dir: &Path) -> Error {
        let way = match self {
            Self::Server(error) => return error,
            Self::InUse | Self::Both => "On the same directory",
            _ => "By a snapshot",
        };
        Error::Refused(format!(
            "the etcd's directory {} cannot be taken over: {self} (docs/MIGRATE.md, \"{way}\")",
            data_dir.display()
        ))
    }
}

impl From<bbolt::read::Error> for Refusal {
    fn from(error: bbolt::read::Error) -> Self {
        Self::State(error.into())
    }
}

/// Makes a member of an etcd's directory, unless that was done before. Says in the log what it did.
pub fn take_over(config: &Config, limits: EngineLimits, clock: &dyn Clock) -> Result<(), Error> {
    let data_dir = &config.data_dir;
    let wal_dir = config.wal_dir.as_deref();
    if beside_etcd(data_dir).is_dir() {
        return check_left(data_dir).map_err(|refusal| refusal.of(data_dir));
    }
    if !is_etcds(data_dir, wal_dir) {
        return Ok(());
    }
    tracing::info!(
        "etcd-files" = %member_of_etcd(data_dir).display(),
        "taking over the data of an etcd"
    );
    notify::extend_start(START_EXTENSION);
    let say = &mut |line: &str| {
        notify::extend_start(START_EXTENSION);
        tracing::info!("taking over the data of an etcd: {line}");
    };
    let reporter = &mut Reporter::new(clock, PROGRESS_INTERVAL, say);
    let taken = convert(config, limits, reporter).map_err(|refusal| refusal.of(data_dir))?;
    tracing::info!(
        "cluster-id" = %taken.identity.cluster,
        "local-member-id" = %taken.identity.member,
        revision = taken.revision,
        "applied-index" = taken.applied.index,
        "last-index" = taken.last_index,
        "etcd-files" = %member_of_etcd(data_dir).display(),
        "own-files" = %beside_etcd(data_dir).display(),
        "took over the data of an etcd, whose files stay as they are and are not read again; to go back without what is written from now on, stop all members, remove own-files and start etcd; with it, see `etched export`"
    );
    Ok(())
}

/// A member that was taken over continues alone: not while an etcd runs on what it left, and what
/// an etcd wrote since is not here.
fn check_left(data_dir: &Path) -> Result<(), Refusal> {
    let db = member_of_etcd(data_dir).join("snap").join("db");
    if !db.exists() {
        return Ok(());
    }
    drop(lock(&db)?);
    let changed = |path: &Path| fs::metadata(path).and_then(|found| found.modified());
    let own = beside_etcd(data_dir);
    if let (Ok(theirs), Ok(ours)) = (changed(&db), changed(&own.join("INCARNATION")))
        && theirs > ours
    {
        tracing::warn!(
            "etcd-files" = %member_of_etcd(data_dir).display(),
            "own-files" = %own.display(),
            "etcd's files were changed after they were taken over; what an etcd wrote since is not here: to take it over, stop all members and remove own-files on each"
        );
    }
    Ok(())
}

/// What was taken over.
struct Taken {
    identity: MemberIdentity,
    applied: EntryId,
    last_index: u64,
    revision: i64,
}

/// What an etcd's directory holds.
struct Found {
    identity: MemberIdentity,
    wal: Wal,
    file: bbolt::read::File,
    survey: Survey,
    members: Vec<Member>,
    removed: Vec<MemberId>,
    /// The entry behind which the log is taken.
    begin: EntryId,
    applied: EntryId,
    _lock: File,
}

fn convert(
    config: &Config,
    limits: EngineLimits,
    reporter: &mut Reporter<'_>,
) -> Result<Taken, Refusal> {
    let data_dir = &config.data_dir;
    let found = find(config, reporter)?;
    let target = beside_etcd(data_dir);
    let staging = target.with_extension("new");
    let wal_dir = config.wal_dir.as_deref().map(beside_etcd);
    // Without the directory in its place, neither is anybody's.
    for left in std::iter::once(&staging).chain(&wal_dir) {
        remove(left)?;
    }
    let wal_dir = wal_dir.as_deref();
    let taken = fill(config, &found, &staging, wal_dir, limits, reporter);
    if taken.is_err() {
        for left in std::iter::once(staging.as_path()).chain(wal_dir) {
            // The error is what matters; the next attempt removes what cannot be removed now.
            let _ = remove(left);
        }
    }
    let taken = taken?;
    put_in_place(&staging, &target)?;
    Ok(taken)
}

/// Reads what is there, and checks that it belongs together.
fn find(config: &Config, reporter: &mut Reporter<'_>) -> Result<Found, Refusal> {
    let member = member_of_etcd(&config.data_dir);
    let wal_dir = config.wal_dir.clone();
    let snap_dir = member.join("snap");
    let db = snap_dir.join("db");
    if member.join("IDENTITY").exists() {
        return Err(Refusal::Both);
    }
    let lock = lock(&db)?;
    let wal = Wal::find(&wal_dir.unwrap_or_else(|| member.join("wal")))?;
    let wal = wal.ok_or(Refusal::Lacking(
        "its raft log is missing; give the --wal-dir that etcd had, if it had one",
    ))?;
    let mut survey = Survey::default();
    let mut read = 0_u64;
    wal.each::<wal::Error>(0, &mut |record| {
        read += 1;
        reporter.report(|| format!("read {read} records of its raft log"));
        survey.add(record)
    })?;
    let metadata = survey.metadata.ok_or(Mismatch::Nameless)?;
    let identity = MemberIdentity {
        cluster: ClusterId(metadata.cluster_id.unwrap_or_default()),
        member: MemberId(metadata.node_id.unwrap_or_default()),
    };
    if identity.cluster.0 == 0 || identity.member.0 == 0 {
        return Err(Mismatch::Nameless.into());
    }
    let (file, applied) = state(&db, &snap_dir, &survey)?;
    check_version(&applied)?;
    let (begin, applied_id) = survey.check(&applied)?;
    let saved = snapshot_file(&snap_dir, begin)?;
    if saved.as_ref().map(has_old_data).transpose()? == Some(true) {
        return Err(Refusal::OldData);
    }
    let conf = saved.and_then(|saved| saved.metadata?.conf_state);
    let members = survey.members(&applied, begin, conf.as_ref())?;
    if members != applied.members {
        tracing::warn!(
            listed = ?applied.members,
            taken = ?members,
            "etcd's list of members is not that of raft, which was taken"
        );
    }
    Ok(Found {
        identity,
        wal,
        file,
        survey,
        members,
        removed: applied.removed,
        begin,
        applied: applied_id,
        _lock: lock,
    })
}

/// Takes the lock of an etcd that runs.
fn lock(db: &Path) -> Result<File, Refusal> {
    let failed = |error| {
        Refusal::Server(Error::Os {
            what: "open etcd's member/snap/db",
            error,
        })
    };
    let file = match File::open(db) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Refusal::Lacking("its state, member/snap/db, is missing"));
        }
        Err(error) => return Err(failed(error)),
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refusal::InUse),
        Err(error) => Err(failed(error.into())),
    }
}

/// The state that matches the log, with the lock held: one that came from another member may not be
/// in its place yet.
fn state(
    db: &Path,
    snap_dir: &Path,
    survey: &Survey,
) -> Result<(bbolt::read::File, Applied), Refusal> {
    let open = |path: &Path| -> Result<_, Refusal> {
        let file = bbolt::read::File::open_held(path)?;
        let applied = Applied::read(&file)?;
        Ok((file, applied))
    };
    let (file, applied) = open(db)?;
    let newest = survey.newest_snapshot(applied.index);
    let newest = newest.map(|snapshot| snapshot.index()).unwrap_or_default();
    let received = snap_dir.join(snap::received_name(newest));
    if newest > applied.index && received.exists() {
        return open(&received);
    }
    Ok((file, applied))
}

/// The first version whose directories are taken over.
const FIRST_VERSION: (u64, u64) = (3, 5);

fn check_version(applied: &Applied) -> Result<(), Refusal> {
    // Not decided yet in a new cluster.
    let Some(version) = &applied.cluster_version else {
        return Ok(());
    };
    let mut numbers = version.split('.').map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= FIRST_VERSION => Ok(()),
        _ => Err(Refusal::Old(version.clone())),
    }
}

/// The snap file of a snapshot in the log, which need not be there.
fn snapshot_file(snap_dir: &Path, of: EntryId) -> Result<Option<Snapshot>, Refusal> {
    let name = snap::file_name(of.term, of.index);
    let refused = |error| Refusal::Snapshot {
        name: format!("member/snap/{name}"),
        error,
    };
    match fs::read(snap_dir.join(&name)) {
        Ok(bytes) => snap::parse(Bytes::from(bytes)).map(Some).map_err(refused),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refused(wal::Error::Io {
            file: name.clone(),
            error,
        })),
    }
}

fn has_old_data(snapshot: &Snapshot) -> Result<bool, Refusal> {
    Ok(snap::has_old_data(snapshot)?)
}

/// Writes the new directory.
fn fill(
    config: &Config,
    found: &Found,
    staging: &Path,
    wal_dir: Option<&Path>,
    limits: EngineLimits,
    reporter: &mut Reporter<'_>,
) -> Result<Taken, Refusal> {
    let opened = DataDir::open_at(staging, wal_dir, limits).map_err(Error::from)?;
    let dir: &dyn MemberDir = &opened;
    let last_index = fill_log(config, found, dir, reporter)?;
    let name = dir.current_state().map_err(Error::from)?;
    let engine = dir.open_engine(&name).map_err(Error::from)?;
    let imported = import::import(
        &found.file,
        engine.as_ref(),
        staging,
        Changes::default(),
        &mut |progress| {
            reporter.imported(progress);
            Ok(())
        },
    )?;
    let fill_members = || {
        let mut machine = Machine::open(engine.clone())?;
        machine.exclude_removed(&found.removed);
        machine.bootstrap(
            found.identity.cluster,
            found.members.clone(),
            found.applied.index,
            found.applied.term,
        )?;
        engine.flush()
    };
    fill_members().map_err(Error::from)?;
    dir.set_identity(found.identity).map_err(Error::from)?;
    Ok(Taken {
        identity: found.identity,
        applied: found.applied,
        last_index,
        revision: imported.revision,
    })
}

/// Writes the log; returns the index of its last entry.
fn fill_log(
    config: &Config,
    found: &Found,
    dir: &dyn MemberDir,
    reporter: &mut Reporter<'_>,
) -> Result<u64, Refusal> {
    let of_log = |error| Refusal::Server(Error::RaftLog(error));
    let files = dir.log_files().map_err(Error::from)?;
    let options = bootstrap::options(config).log(found.identity);
    let mut log = RaftLog::create(files, options).map_err(of_log)?;
    let state = &found.survey.state;
    let hard_state = encode_vote(
        state.term.unwrap_or_default().max(found.applied.term),
        state.vote.unwrap_or_default(),
        found.survey.commit(found.applied.index),
    );
    log.reset(found.begin, Some(&hard_state)).map_err(of_log)?;
    let mut waiting = EntryBatch::default();
    let begin = found.begin.index;
    found.wal.each::<Refusal>(begin, &mut |record| {
        let Record::Entry(entry) = record else {
            return Ok(());
        };
        let index = entry.index.unwrap_or_default();
        if index <= begin {
            return Ok(());
        }
        let translated = translate::entry(&entry, config.max_learners);
        let translated = translated.map_err(|error| Refusal::Entry { index, error })?;
        if waiting.is_full() || !waiting.continues(index) {
            waiting.write(&mut log).map_err(of_log)?;
            reporter.report(|| format!("wrote its raft log up to entry {}", index - 1));
        }
        waiting.push(translated);
        Ok(())
    })?;
    waiting.write(&mut log).map_err(of_log)?;
    Ok(log.last_index())
}

/// Entries that are written together.
#[derive(Default)]
struct EntryBatch {
    entries: Vec<LogEntry>,
    bytes: usize,
}

impl EntryBatch {
    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES || self.entries.len() >= BATCH_ENTRIES
    }

    /// False for an entry that replaces others.
    fn continues(&self, index: u64) -> bool {
        let last = self.entries.last();
        last.is_none_or(|last| last.index + 1 == index)
    }

    fn push(&mut self, entry: LogEntry) {
        self.bytes += entry.data.len();
        self.entries.push(entry);
    }

    fn write(&mut self, log: &mut RaftLog) -> Result<(), crate::storage::raft_log::Error> {
        log.append(Batch {
            entries: &self.entries,
            hard_state: None,
        })?;
        self.entries.clear();
        self.bytes = 0;
        Ok(())
    }
}
