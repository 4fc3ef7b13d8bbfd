//! From a directory to a restored member that does not run yet: an existing one, a founder, or one
//! that joins. Servers and the simulator share this code; they differ in the directory alone.
//!
//! A new member exists once its identity file does, which is written last: the next start repeats
//! earlier steps.

use std::sync::Arc;

use super::Error;
use super::member_dir::{MemberDir, MemberIdentity, Owner};
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
use crate::types::{ClusterId, MemberId};

/// The initial state of a cluster is that after this entry, which no log contains: a member that
/// joins later gets a checkpoint of it, whatever the log still has.
pub const FOUNDING_ENTRY: EntryId = EntryId { index: 1, term: 1 };

/// Parameters of the raft log and of raft.
#[derive(Clone, Copy, Debug)]
pub struct RestoreOptions {
    pub segment_bytes: u64,
    /// False if a power failure may lose data (`--unsafe-no-fsync`).
    pub sync: bool,
    /// Ticks, of which a heartbeat is one.
    pub election_ticks: usize,
    pub pre_vote: bool,
    /// See `replica::ReplicaOptions`.
    pub election_seed: u64,
    /// For a directory that has no incarnation yet.
    pub new_incarnation: u64,
    pub recent_entries: usize,
}

impl RestoreOptions {
    pub fn log(&self, identity: MemberIdentity) -> raft_log::LogOptions {
        raft_log::LogOptions {
            segment_bytes: self.segment_bytes,
            cluster_id: identity.cluster.0,
            member_id: identity.member.0,
            sync: self.sync,
        }
    }
}

/// A restored member that does not run yet.
pub struct Restored {
    pub identity: MemberIdentity,
    /// What tells its directory from any other of this member.
    pub incarnation: u64,
    pub machine: Machine,
    pub log: RaftLog,
    pub replica: Replica,
    /// The other members known here, to be dialled first. A joining member learns of changes only
    /// once it is reached.
    pub peers: Vec<Peer>,
    /// False for a member that was created now.
    pub existed: bool,
}

/// All founders of a cluster, and which of them this member is.
pub struct Founding {
    pub identity: MemberIdentity,
    pub members: Vec<Member>,
}

/// The identity of a joining member, and the peers that it can reach.
#[derive(Debug, PartialEq, Eq)]
pub struct Joining {
    pub identity: MemberIdentity,
    pub peers: Vec<Peer>,
}

/// Restores the member in the directory.
pub fn restart(
    dir: &dyn MemberDir,
    identity: MemberIdentity,
    options: &RestoreOptions,
) -> Result<Restored, Error> {
    let (log, recovered) = open_log(dir, identity, options)?;
    resume(dir, identity, options, log, recovered)
}

/// The same with a log that is already open.
pub fn resume(
    dir: &dyn MemberDir,
    identity: MemberIdentity,
    options: &RestoreOptions,
    log: RaftLog,
    recovered: Recovered,
) -> Result<Restored, Error> {
    let machine = open_state(dir, identity, &log, &recovered)?;
    let peers = match machine.members().iter().next() {
        Some(_) => peers_in(machine.members().iter(), identity.member),
        // It has joined, and has received nothing yet.
        None => dir.first_peers()?,
    };
    Ok(Restored {
        replica: replica(identity, options, &log, recovered, &machine)?,
        incarnation: mark(dir, identity, options)?,
        identity,
        machine,
        log,
        peers,
        existed: true,
    })
}

/// Creates a founder: its state is that after the founding entry, equal on all of them.
pub fn found(
    dir: &dyn MemberDir,
    new: Founding,
    options: &RestoreOptions,
) -> Result<Restored, Error> {
    found_with(dir, new, options, |_| Ok(()))
}

/// The same with a keyspace, leases and users that `fill` writes first, equal on all founders.
pub fn found_with(
    dir: &dyn MemberDir,
    new: Founding,
    options: &RestoreOptions,
    fill: impl FnOnce(&dyn Engine) -> Result<(), Error>,
) -> Result<Restored, Error> {
    let Founding { identity, members } = new;
    let (log, recovered) = new_log(dir, identity, options, Some(FOUNDING_ENTRY))?;
    let engine = new_state(dir, FOUNDING_ENTRY.index)?;
    fill(engine.as_ref())?;
    let mut machine = Machine::open(engine)?;
    machine.bootstrap(
        identity.cluster,
        members,
        FOUNDING_ENTRY.index,
        FOUNDING_ENTRY.term,
    )?;
    machine.engine().flush()?;
    let replica = replica(identity, options, &log, recovered, &machine)?;
    let incarnation = mark(dir, identity, options)?;
    dir.set_identity(identity)?;
    Ok(Restored {
        identity,
        incarnation,
        peers: peers_in(machine.members().iter(), identity.member),
        machine,
        log,
        replica,
        existed: false,
    })
}

/// Creates an empty member without entries, members or a vote. The leader sends it the state.
pub fn join(
    dir: &dyn MemberDir,
    joining: Joining,
    options: &RestoreOptions,
) -> Result<Restored, Error> {
    let Joining { identity, peers } = joining;
    let (log, recovered) = new_log(dir, identity, options, None)?;
    let machine = Machine::open(new_state(dir, 0)?)?;
    machine.engine().flush()?;
    let replica = replica(identity, options, &log, recovered, &machine)?;
    dir.set_first_peers(&peers)?;
    let incarnation = mark(dir, identity, options)?;
    dir.set_identity(identity)?;
    tracing::info!(
        "local-member-id" = %identity.member,
        "cluster-id" = %identity.cluster,
        peers = peers.len(),
        "joining a cluster"
    );
    Ok(Restored {
        identity,
        incarnation,
        machine,
        log,
        replica,
        peers,
        existed: false,
    })
}

/// Marks the directory, and the state in use, as this member's, unless they are; the directory's
/// incarnation.
fn mark(
    dir: &dyn MemberDir,
    identity: MemberIdentity,
    options: &RestoreOptions,
) -> Result<u64, Error> {
    let incarnation = dir.incarnation(options.new_incarnation)?;
    let owner = Owner {
        identity,
        incarnation: Some(incarnation),
    };
    dir.mark(&dir.current_state()?, owner)?;
    Ok(incarnation)
}

/// Opens the raft log of a member.
pub fn open_log(
    dir: &dyn MemberDir,
    identity: MemberIdentity,
    options: &RestoreOptions,
) -> Result<(RaftLog, Recovered), Error> {
    let (log, recovered) = RaftLog::open(dir.log_files()?, options.log(identity))?;
    if let Some(torn) = &recovered.torn_tail {
        tracing::warn!(
            segment = %torn.segment,
            offset = torn.offset,
            bytes_cut = torn.bytes_cut,
            last_index = recovered.last_index,
            "cut off the end of the raft log: a write that a crash interrupted; if the disk had confirmed it, acknowledged writes of the last second are missing behind this entry"
        );
    }
    Ok((with_filler(dir, log)?, recovered))
}

/// Prepares segments in advance, if the directory supports it.
fn with_filler(dir: &dyn MemberDir, log: RaftLog) -> Result<RaftLog, Error> {
    Ok(match dir.log_filler()? {
        Some(filler) => log.with_prepare(filler),
        None => log,
    })
}

/// Opens the state that belongs to a log.
pub fn open_state(
    dir: &dyn MemberDir,
    identity: MemberIdentity,
    log: &RaftLog,
    recovered: &Recovered,
) -> Result<Machine, Error> {
    let begins_behind = recovered.compacted.index;
    let machine = Machine::open(states::open(dir, begins_behind)?)?;
    let owners = (dir.owner_of(&dir.current_state()?)?, dir.owner()?);
    check_owner(owners).map_err(|mismatch| Error::Refused(mismatch.to_string()))?;
    check_together(machine.applied_index(), begins_behind, recovered.last_index)
        .map_err(|mismatch| Error::Refused(mismatch.to_string()))?;
    let applied = EntryId {
        index: machine.applied_index(),
        term: machine.applied_term(),
    };
    check_origin(
        (machine.cluster()?, identity.cluster),
        applied,
        log.reader().term(applied.index),
    )
    .map_err(|mismatch| Error::Refused(mismatch.to_string()))?;
    // It may have been written by a program that did not mark it, or come into use by a crash.
    dir.require_format(machine.format())?;
    states::remove_unused(dir)?;
    Ok(machine)
}

/// Creates the raft log of a new member, or continues with that of an interrupted start.
fn new_log(
    dir: &dyn MemberDir,
    identity: MemberIdentity,
    options: &RestoreOptions,
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
    // It has acknowledged nothing yet.
    log.settle_doubt()?;
    let hard_state = entry_id.map(|entry_id| encode_hard_state(entry_id.term, entry_id.index));
    if let Some(entry_id) = entry_id {
        log.reset(entry_id, hard_state.as_deref())?;
    }
    let recovered = Recovered {
        hard_state,
        compacted: log.compacted(),
        last_index: log.last_index(),
        torn_tail: None,
        end_in_doubt: false,
    };
    Ok((log, recovered))
}

/// Opens the state of a new member; refuses one that contains more than an interrupted start leaves
/// behind.
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
    identity: MemberIdentity,
    options: &RestoreOptions,
    log: &RaftLog,
    recovered: Recovered,
    machine: &Machine,
) -> Result<Replica, Error> {
    let members = machine.members();
    let in_doubt = recovered.end_in_doubt;
    let restored = replica::InitialState {
        reader: log.reader(),
        hard_state: recovered.hard_state.map(Into::into),
        conf_state: conf_state_of(members.voters(), members.learners()),
        applied_index: machine.applied_index(),
    };
    let options = replica::ReplicaOptions {
        member: identity.member,
        election_ticks: options.election_ticks,
        heartbeat_ticks: 1,
        pre_vote: options.pre_vote,
        election_seed: options.election_seed,
        recent_entries: options.recent_entries,
    };
    let mut replica = Replica::new(options, restored)?;
    if in_doubt {
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
    #[error(
        "the state is of cluster {of_state}, but this is a member of cluster {own}; put this member's own state back, or remove the member from its cluster and add it again with an empty data directory"
    )]
    Cluster { of_state: ClusterId, own: ClusterId },
    #[error(
        "the state is of member {of_state}, but this is member {own}; put this member's own state back, or remove the member from its cluster and add it again with an empty data directory"
    )]
    Member { of_state: MemberId, own: MemberId },
    #[error(
        "the state is of another data directory of this member; put this directory's own state back, or remove the member from its cluster and add it again with an empty data directory"
    )]
    Directory,
    #[error(
        "the state ends with entry {index} of term {term}, which the raft log has of term {term_in_log}: they are not of one member; put this member's own state back, or remove the member from its cluster and add it again with an empty data directory"
    )]
    Entry {
        index: u64,
        term: u64,
        term_in_log: u64,
    },
}

/// Refuses a state that is marked as that of another member than the one whose directory it is in,
/// or of another directory of the same.
pub fn check_owner((of_state, own): (Option<Owner>, Option<Owner>)) -> Result<(), Mismatch> {
    let (Some(of_state), Some(own)) = (of_state, own) else {
        // Written before states were marked, or by a start that was cut short.
        return Ok(());
    };
    let (found, expected) = (of_state.identity, own.identity);
    if found.cluster != expected.cluster {
        return Err(Mismatch::Cluster {
            of_state: found.cluster,
            own: expected.cluster,
        });
    }
    if found.member != expected.member {
        return Err(Mismatch::Member {
            of_state: found.member,
            own: expected.member,
        });
    }
    match (of_state.incarnation, own.incarnation) {
        (Some(found), Some(expected)) if found != expected => Err(Mismatch::Directory),
        _ => Ok(()),
    }
}

/// Refuses a state that other entries made than those of this log: another cluster's, or one of
/// this cluster that was not put there by etched. It may have no mark that says so.
pub fn check_origin(
    (of_state, own): (Option<ClusterId>, ClusterId),
    applied: EntryId,
    term_in_log: Option<u64>,
) -> Result<(), Mismatch> {
    if let Some(of_state) = of_state.filter(|of_state| *of_state != own) {
        return Err(Mismatch::Cluster { of_state, own });
    }
    match term_in_log {
        Some(term) if term != applied.term => Err(Mismatch::Entry {
            index: applied.index,
            term: applied.term,
            term_in_log: term,
        }),
        _ => Ok(()),
    }
}

/// Refuses a state after which the log has a gap.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_of_another_member_is_refused() {
        let (own, other) = (ClusterId(1), ClusterId(2));
        let applied = EntryId { index: 7, term: 3 };
        for (of_state, term_in_log, refused) in [
            (Some(own), Some(3), None),
            // Written before states said it; and an entry that the log gave up.
            (None, Some(3), None),
            (Some(own), None, None),
            (Some(other), Some(3), Some("is of cluster")),
            (Some(own), Some(2), Some("not of one member")),
        ] {
            let found = check_origin((of_state, own), applied, term_in_log).err();
            let text = found.map(|mismatch| mismatch.to_string());
            assert_eq!(text.is_some(), refused.is_some(), "{text:?}");
            let says = refused.unwrap_or_default();
            assert!(text.unwrap_or_default().contains(says), "{says}");
        }
    }

    #[test]
    fn a_state_with_the_mark_of_another_is_refused() {
        let owner = |cluster, member, incarnation| Owner {
            identity: MemberIdentity {
                cluster: ClusterId(cluster),
                member: MemberId(member),
            },
            incarnation,
        };
        let own = owner(1, 2, Some(3));
        for (of_state, refused) in [
            (None, None),
            (Some(own), None),
            (Some(owner(1, 2, None)), None),
            (
                Some(owner(9, 2, Some(3))),
                Some("the state is of cluster 9"),
            ),
            (Some(owner(1, 9, Some(3))), Some("the state is of member 9")),
            (
                Some(owner(1, 2, Some(9))),
                Some("of another data directory"),
            ),
        ] {
            let found = check_owner((of_state, Some(own))).err();
            let text = found.map(|mismatch| mismatch.to_string());
            assert_eq!(text.is_some(), refused.is_some(), "{text:?}");
            let says = refused.unwrap_or_default();
            assert!(text.unwrap_or_default().contains(says), "{says}");
        }
        // One that is made now has no owner yet.
        assert_eq!(check_owner((Some(own), None)), Ok(()));
    }
}
