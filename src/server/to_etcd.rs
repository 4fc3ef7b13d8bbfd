//! `etched export`: an etcd's data directory of a stopped member, the way back.
//!
//! ```text
//! member/snap/db                     the state, as etcd's snapshot file (a backup) has it
//! member/snap/<term>-<index>.snap    the snap file: its members, as etcd writes them
//! member/wal/<sequence>-<index>.wal  who the member is, its term and vote, and the entries behind
//!                                    the state
//! ```
//!
//! The member stays what it is to the others: entries that are not known to be committed go along,
//! so that all members of a cluster can be exported, each from its own directory, and continue as
//! etcds. What is known to be committed is in the state, since the last entries of ours may be in
//! no other place than the log. The directory that is exported stays the member's.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::Error;
use super::bootstrap::{self, force};
use super::data_dir::{DataDir, beside_etcd, make_dir, member_of_etcd};
use super::from_etcd::translate;
use super::from_snapshot::{beside, is_unused, put_in_place, remove};
use super::member_dir::{MemberDir, MemberIdentity};
use super::restore;
use crate::backup::export::Export;
use crate::backup::wal::message::{
    ConfState, HardState, Metadata, Snapshot, SnapshotMetadata, SnapshotRecord,
};
use crate::backup::wal::write::Encoder;
use crate::backup::wal::{segment_name, snap};
use crate::config::Config;
use crate::proto::membershippb::Member;
use crate::raft::replica::{decode_hard_state, decode_vote};
use crate::state::Machine;
use crate::storage::raft_log::RaftLog;
use crate::types::MemberId;

/// The copy of the state that the rest of the log is applied to; a start that finds it removes it.
const ASIDE: &str = "receiving-export";
/// Tables of a state that may be open.
const OPEN_TABLES: usize = 64;
/// Bytes of entries that are read at a time.
const GROUP_BYTES: u64 = 8 << 20;

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    pub member: MemberId,
    pub revision: i64,
    pub applied_index: u64,
    pub last_index: u64,
}

/// Makes an etcd's directory `to` of the member that `config` names.
///
/// # Errors
/// An interruption, which `interrupted` says, is one as others: nothing is left.
pub fn export(
    config: &Config,
    to: &Path,
    interrupted: &dyn Fn() -> bool,
) -> Result<Exported, Error> {
    if !is_unused(to) {
        let to = to.display();
        return Err(Error::Refused(format!(
            "{to} holds something or cannot be read; choose another --to"
        )));
    }
    let data_dir = &config.data_dir;
    let is_member = |dir: &Path| dir.join("IDENTITY").exists();
    if !is_member(&beside_etcd(data_dir)) && !is_member(&member_of_etcd(data_dir)) {
        let dir = data_dir.display();
        return Err(Error::Refused(format!("{dir} is no etched's directory")));
    }
    let limits = bootstrap::store_limits(config, OPEN_TABLES);
    let dir = DataDir::open(data_dir, config.wal_dir.as_deref(), limits)?;
    let staging = beside(to)?;
    remove(&staging)?;
    let exported = fill(config, &dir, &staging, interrupted);
    let cleared = (&dir as &dyn MemberDir).remove(ASIDE);
    match exported.and_then(|exported| Ok((exported, cleared?))) {
        Ok((exported, ())) => {
            put_in_place(&staging, to)?;
            Ok(exported)
        }
        Err(error) => {
            // The error is what matters; the next attempt removes what cannot be removed now.
            let _ = remove(&staging);
            Err(error)
        }
    }
}

fn fill(
    config: &Config,
    dir: &dyn MemberDir,
    staging: &Path,
    interrupted: &dyn Fn() -> bool,
) -> Result<Exported, Error> {
    let identity = dir
        .identity()?
        .ok_or_else(|| Error::Refused("the member was not made wholly".to_owned()))?;
    let (log, recovered) = restore::open_log(dir, identity, &bootstrap::options(config))?;
    let hard_state = recovered.hard_state.clone().unwrap_or_default();
    let (Some((term, commit)), Some(vote)) =
        (decode_hard_state(&hard_state), decode_vote(&hard_state))
    else {
        let text = "the raft log's hard state cannot be read";
        return Err(Error::Refused(text.to_owned()));
    };
    let machine = restore::open_state(dir, identity, &log, &recovered)?;
    dir.remove(ASIDE)?;
    machine.engine().checkpoint(&dir.path(ASIDE))?;
    drop(machine);
    let mut machine = Machine::open(dir.open_engine(ASIDE)?)?;
    apply_committed(&mut machine, &log, identity.member, commit)?;
    if machine.applied_index() == 0 {
        let text = "the member has not received the cluster's data yet";
        return Err(Error::Refused(text.to_owned()));
    }
    let (snap_dir, wal_dir) = (staging.join("member/snap"), staging.join("member/wal"));
    make_dir(&snap_dir)?;
    make_dir(&wal_dir)?;
    write_state(&machine, &snap_dir, interrupted)?;
    let applied = machine.applied_index();
    let hard_state = HardState {
        term: Some(term.max(machine.applied_term())),
        vote: Some(vote),
        commit: Some(commit.max(applied)),
    };
    write_log(&machine, &log, identity, &hard_state, &wal_dir)?;
    check(interrupted)?;
    for path in [&snap_dir, &wal_dir, &staging.join("member")] {
        File::open(path)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)?;
    }
    Ok(Exported {
        member: identity.member,
        revision: machine.head(),
        applied_index: applied,
        last_index: log.last_index(),
    })
}

fn check(interrupted: &dyn Fn() -> bool) -> Result<(), Error> {
    match interrupted() {
        true => Err(Error::Refused("interrupted".to_owned())),
        false => Ok(()),
    }
}

fn failed(error: std::io::Error) -> Error {
    let what = "write the exported directory";
    Error::Os { what, error }
}

/// Applies what is committed: what the log says so of, and all of a log that no other member has to
/// agree to.
fn apply_committed(
    machine: &mut Machine,
    log: &RaftLog,
    own: MemberId,
    commit: u64,
) -> Result<(), Error> {
    let last = log.last_index();
    let commit = commit.min(last);
    force::apply_log(machine, log, commit, commit)?;
    while machine.applied_index() < last && machine.members().voters().eq([own]) {
        let next = machine.applied_index() + 1;
        force::apply_log(machine, log, next, next)?;
    }
    Ok(())
}

fn conf_state(machine: &Machine) -> ConfState {
    ConfState {
        voters: machine.members().voters().map(|id| id.0).collect(),
        learners: machine.members().learners().map(|id| id.0).collect(),
        auto_leave: Some(false),
        ..Default::default()
    }
}

/// Writes the state and its members.
fn write_state(
    machine: &Machine,
    snap_dir: &Path,
    interrupted: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let stopped = |error: crate::backup::Error| {
        check(interrupted)
            .err()
            .unwrap_or_else(|| Error::Refused(error.to_string()))
    };
    let mut file = File::create(snap_dir.join("db")).map_err(failed)?;
    let continues = || !interrupted();
    let export = Export::new(machine.engine().latest(), snap_dir, &continues).map_err(stopped)?;
    let mut wrote = Ok(());
    let written = export.write(&mut |part| {
        if interrupted() {
            return Err(crate::backup::Error::Unread);
        }
        file.write_all(&part).map_err(|error| {
            wrote = Err(error);
            crate::backup::Error::Unread
        })
    });
    wrote.map_err(failed)?;
    written.map_err(stopped)?;
    file.sync_all().map_err(failed)?;
    let members: Vec<Member> = machine.members().iter().cloned().collect();
    let removed: Vec<u64> = machine.members().removed().map(|id| id.0).collect();
    let store = snap::store(&members, &removed, machine.versions().cluster());
    let (index, term) = (machine.applied_index(), machine.applied_term());
    let snapshot = snap::encode(&Snapshot {
        data: Some(store.map_err(|error| failed(error.into()))?.into()),
        metadata: Some(SnapshotMetadata {
            conf_state: Some(conf_state(machine)),
            index: Some(index),
            term: Some(term),
        }),
    });
    write(&snap_dir.join(snap::file_name(term, index)), &snapshot)
}

/// Writes the log behind the state.
fn write_log(
    machine: &Machine,
    log: &RaftLog,
    identity: MemberIdentity,
    hard_state: &HardState,
    wal_dir: &Path,
) -> Result<(), Error> {
    let mut encoder = Encoder::new(&Metadata {
        node_id: Some(identity.member.0),
        cluster_id: Some(identity.cluster.0),
    });
    let (index, term) = (machine.applied_index(), machine.applied_term());
    encoder.snapshot(&SnapshotRecord {
        index: Some(index),
        term: Some(term),
        conf_state: Some(conf_state(machine)),
    });
    let mut file = File::create(wal_dir.join(segment_name(0, 0))).map_err(failed)?;
    let known = |id| machine.members().get(MemberId(id)).cloned();
    let mut next = index + 1;
    while next <= log.last_index() {
        for logged in log.read(next, log.last_index() + 1, GROUP_BYTES)? {
            let entry = translate::entry_of_etcd(&logged, &known);
            let entry = entry.ok_or_else(|| {
                let index = logged.index;
                Error::Refused(format!("entry {index} of the raft log cannot be read"))
            })?;
            encoder.entry(&entry);
            next = logged.index + 1;
        }
        file.write_all(&encoder.take()).map_err(failed)?;
    }
    encoder.state(hard_state);
    file.write_all(&encoder.take()).map_err(failed)?;
    file.sync_all().map_err(failed)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = File::create(path).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_all().map_err(failed)
}
