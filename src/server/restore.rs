//! From a directory to a member that is restored and not yet running: one that was there, a
//! founder, or one that joins. The server and the simulator do it by this code; they differ in
//! the directory alone.
//!
//! A new member is there once its identity file is, which is written last: every step before can
//! be done again by the next start.

use std::sync::Arc;

use super::Error;
use super::member_dir::{Identity, MemberDir};
use super::states;
use crate::proto::membershippb::Member;
use crate::raft::Replica;
use crate::raft::replica::{self, conf_state_of, encode_hard_state};
use crate::replica::cluster_status::peers_in;
use crate::replica::state_store::entry_id_of;
use crate::state::Machine;
use crate::storage::Engine;
use crate::storage::raft_log::{self, EntryId, RaftLog, Recovered};
use crate::transport::Peer;

/// A cluster's first state is that after this entry of this term, which no log holds: a member
/// that joins later gets it as a snapshot, whatever the log still has.
pub const FOUNDING_ENTRY: EntryId = EntryId { index: 1, term: 1 };

/// How the log is written and how raft counts.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub segment_bytes: u64,
    /// False where whoever starts the member takes the loss of a power failure upon himself.
    pub sync: bool,
    /// Ticks, of which a heartbeat is one.
    pub election_ticks: usize,
    pub pre_vote: bool,
    /// See `replica::Options`.
    pub election_seed: u64,
    pub recent_entries: usize,
}

impl Options {
    fn log(&self, identity: Identity) -> raft_log::Options {
        raft_log::Options {
            segment_bytes: self.segment_bytes,
            cluster_id: identity.cluster.0,
            member_id: identity.member.0,
            sync: self.sync,
        }
    }
}

/// A member, restored and not yet running.
pub struct Restored {
    pub identity: Identity,
    pub engine: Arc<dyn Engine>,
    pub machine: Machine,
    pub log: RaftLog,
    pub replica: Replica,
    /// The other members, as far as this one knows them: whom to dial at first. One that joins
    /// hears of changes only once it is reached.
    pub peers: Vec<Peer>,
    /// False for a member that was made just now.
    pub existed: bool,
}

/// Who founds a cluster: all its first members, and which of them this is.
pub struct Founding {
    pub identity: Identity,
    pub members: Vec<Member>,
}

/// Who this member is in a cluster that is there, and whom it can reach.
#[derive(Debug, PartialEq, Eq)]
pub struct Joining {
    pub identity: Identity,
    pub peers: Vec<Peer>,
}

/// Takes up the member that the directory holds.
pub fn restart(
    dir: &dyn MemberDir,
    identity: Identity,
    options: &Options,
) -> Result<Restored, Error> {
    let (log, recovered) = open_log(dir, identity, options)?;
    resume(dir, identity, options, log, recovered)
}

/// The same where the log is open already.
pub fn resume(
    dir: &dyn MemberDir,
    identity: Identity,
    options: &Options,
    log: RaftLog,
    recovered: Recovered,
) -> Result<Restored, Error> {
    let (engine, machine) = open_state(dir, &recovered)?;
    let peers = match machine.members().iter().next() {
        Some(_) => peers_in(machine.members().iter(), identity.member),
        // It joined, and nothing has come yet.
        None => dir.first_peers()?,
    };
    Ok(Restored {
        replica: replica(identity, options, &log, recovered, &machine)?,
        identity,
        engine,
        machine,
        log,
        peers,
        existed: true,
    })
}

/// Makes a founder: its state is that after the founding entry, the same on all of them.
pub fn found(dir: &dyn MemberDir, new: Founding, options: &Options) -> Result<Restored, Error> {
    let Founding { identity, members } = new;
    let (log, recovered) = new_log(dir, identity, options, Some(FOUNDING_ENTRY))?;
    let engine = new_state(dir, FOUNDING_ENTRY.index)?;
    let mut machine = Machine::open(engine.clone())?;
    machine.bootstrap(members, FOUNDING_ENTRY.index, FOUNDING_ENTRY.term)?;
    engine.flush()?;
    let replica = replica(identity, options, &log, recovered, &machine)?;
    dir.set_identity(identity)?;
    Ok(Restored {
        identity,
        engine,
        peers: peers_in(machine.members().iter(), identity.member),
        machine,
        log,
        replica,
        existed: false,
    })
}

/// Makes a member that has nothing: no entries, no members, no vote. The leader sends it all.
pub fn join(dir: &dyn MemberDir, joining: Joining, options: &Options) -> Result<Restored, Error> {
    let Joining { identity, peers } = joining;
    let (log, recovered) = new_log(dir, identity, options, None)?;
    let engine = new_state(dir, 0)?;
    let machine = Machine::open(engine.clone())?;
    engine.flush()?;
    let replica = replica(identity, options, &log, recovered, &machine)?;
    dir.set_first_peers(&peers)?;
    dir.set_identity(identity)?;
    tracing::info!(
        "local-member-id" = %identity.member,
        "cluster-id" = %identity.cluster,
        peers = peers.len(),
        "joining a cluster"
    );
    Ok(Restored {
        identity,
        engine,
        machine,
        log,
        replica,
        peers,
        existed: false,
    })
}

/// Opens the raft log of a member.
pub fn open_log(
    dir: &dyn MemberDir,
    identity: Identity,
    options: &Options,
) -> Result<(RaftLog, Recovered), Error> {
    let (log, recovered) = RaftLog::open(dir.log_files()?, options.log(identity))?;
    if let Some(torn) = &recovered.torn_tail {
        tracing::warn!(
            segment = %torn.segment,
            offset = torn.offset,
            bytes_cut = torn.bytes_cut,
            "cut off the end of the raft log: a write that a crash interrupted and nobody was told of"
        );
    }
    Ok((with_filler(dir, log)?, recovered))
}

/// Has segments made ahead, where the directory has something that does.
fn with_filler(dir: &dyn MemberDir, log: RaftLog) -> Result<RaftLog, Error> {
    Ok(match dir.log_filler()? {
        Some(filler) => log.with_prepare(filler),
        None => log,
    })
}

/// Opens the state that belongs to a log.
pub fn open_state(
    dir: &dyn MemberDir,
    recovered: &Recovered,
) -> Result<(Arc<dyn Engine>, Machine), Error> {
    let begins_behind = recovered.compacted.index;
    let engine = states::open(dir, begins_behind)?;
    let machine = Machine::open(engine.clone())?;
    check_together(machine.applied_index(), begins_behind, recovered.last_index)
        .map_err(|mismatch| Error::Refused(mismatch.to_string()))?;
    Ok((engine, machine))
}

/// Makes the raft log of a new member, or goes on with one that a start which was cut off made.
fn new_log(
    dir: &dyn MemberDir,
    identity: Identity,
    options: &Options,
    entry_id: Option<EntryId>,
) -> Result<(RaftLog, Recovered), Error> {
    let last = entry_id.unwrap_or_default().index;
    let mut log = match open_log(dir, identity, options) {
        Ok((log, recovered)) if recovered.last_index <= last => log,
        Ok(_) => return Err(nameless(&dir.log_files()?.describe(""))),
        Err(Error::RaftLog(raft_log::Error::Absent { .. })) => {
            let log = RaftLog::create(dir.log_files()?, options.log(identity))?;
            with_filler(dir, log)?
        }
        Err(error) => return Err(error),
    };
    let hard_state = entry_id.map(|entry_id| encode_hard_state(entry_id.term, entry_id.index));
    if let Some(entry_id) = entry_id {
        log.reset(entry_id, hard_state.as_deref())?;
    }
    let recovered = Recovered {
        hard_state,
        compacted: log.compacted(),
        last_index: log.last_index(),
        torn_tail: None,
    };
    Ok((log, recovered))
}

/// Opens the state of a new member; refuses one that holds more than a start which was cut off
/// left behind.
fn new_state(dir: &dyn MemberDir, most: u64) -> Result<Arc<dyn Engine>, Error> {
    let name = dir.current_state()?;
    let engine = dir.open_engine(&name)?;
    match entry_id_of(engine.latest())?.index <= most {
        true => Ok(engine),
        false => Err(nameless(&dir.path(&name).display().to_string())),
    }
}

fn nameless(path: &str) -> Error {
    Error::Refused(format!(
        "{path} holds data, but the member's IDENTITY file is missing; restore it from a backup, or remove the data directory to start anew"
    ))
}

fn replica(
    identity: Identity,
    options: &Options,
    log: &RaftLog,
    recovered: Recovered,
    machine: &Machine,
) -> Result<Replica, Error> {
    let members = machine.members();
    let is_cut = recovered.torn_tail.is_some();
    let restored = replica::Restored {
        reader: log.reader(),
        hard_state: recovered.hard_state.map(Into::into),
        conf_state: conf_state_of(members.voters(), members.learners()),
        applied_index: machine.applied_index(),
    };
    let options = replica::Options {
        member: identity.member,
        election_ticks: options.election_ticks,
        heartbeat_ticks: 1,
        pre_vote: options.pre_vote,
        election_seed: options.election_seed,
        recent_entries: options.recent_entries,
    };
    let mut replica = Replica::new(options, restored)?;
    if is_cut {
        replica.doubt_log();
    }
    Ok(replica)
}

/// A log and a state that do not belong together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error(
        "the raft log ends at entry {last}, but entry {applied} was applied: a part of the log is missing; restore this member from a backup or from the other members"
    )]
    Log { last: u64, applied: u64 },
    #[error(
        "the raft log begins behind entry {begins_behind}, but only entry {applied} was applied: a part of the state is missing; restore this member from a backup or from the other members"
    )]
    State { begins_behind: u64, applied: u64 },
}

/// Refuses a state to which the log has nothing to add, or not all that it lacks.
pub fn check_together(applied: u64, log_begins_behind: u64, log_last: u64) -> Result<(), Mismatch> {
    if applied > log_last {
        let last = log_last;
        return Err(Mismatch::Log { last, applied });
    }
    if applied < log_begins_behind {
        let begins_behind = log_begins_behind;
        return Err(Mismatch::State {
            begins_behind,
            applied,
        });
    }
    Ok(())
}
