//! Takes up the member that the data directory holds, or makes a new one in an empty directory.
//!
//! `found` says who founds a new cluster, `join` who this member is in one that is there; both
//! ask the world through `world`. `force` makes a member a cluster of its own. A new member is
//! there once its identity file is: everything before can be done again.

pub mod force;
mod found;
mod join;
#[cfg(test)]
mod tests;
pub mod world;

use std::sync::Arc;

use super::Error;
use super::data_dir::{DataDir, Identity};
use crate::config::{Bootstrap, ClusterState, Config};
use crate::env::{Rng, SystemRng};
use crate::proto::membershippb::{Attributes, Member, RaftAttributes};
use crate::raft::Replica;
use crate::raft::replica::{self, conf_state_of, encode_hard_state};
use crate::replica::cluster_status::peers_in;
use crate::replica::state_store::{check_together, received_name, takes_over};
use crate::server::assemble::FOUNDING_ENTRY;
use crate::state::Machine;
use crate::storage::Engine;
use crate::storage::raft_log::{self, EntryId, Files, RaftLog, Recovered, ZeroFiller};
use crate::storage::rocks::{Budget, RocksEngine};
use crate::transport::Peer;

use join::Joining;
use world::World;

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

/// The part of the memory budget that memtables may take; the block cache takes the rest.
pub fn budget(config: &Config) -> Budget {
    let total = config.memory_budget_bytes as usize;
    let memtable_bytes = total / 2;
    Budget {
        memtable_bytes,
        block_cache_bytes: total - memtable_bytes,
    }
}

/// Takes up the member of a directory, or makes one. Only the latter asks the world.
pub async fn restore(config: &Config, dir: &DataDir, world: &dyn World) -> Result<Restored, Error> {
    if let Some(identity) = dir.identity()? {
        return restart(config, dir, identity);
    }
    match config.initial_cluster_state {
        ClusterState::New => {
            let new = found::founders(config, world).await?;
            make_founder(config, dir, new)
        }
        ClusterState::Existing => {
            let joining = join::ask(config, world).await?;
            make_joiner(config, dir, joining)
        }
    }
}

fn restart(config: &Config, dir: &DataDir, identity: Identity) -> Result<Restored, Error> {
    let (mut log, mut recovered) = open_log(config, dir, identity)?;
    if config.force_new_cluster {
        recovered = force::force(config, dir, identity, &mut log, recovered)?;
    }
    let engine = open_state(config, dir, &recovered)?;
    dir.remove_leftovers()?;
    let machine = Machine::open(engine.clone())?;
    check(&machine, &recovered)?;
    let replica = restore_replica(config, identity, &log, recovered, &machine)?;
    let peers = match machine.members().iter().next() {
        Some(_) => peers_in(machine.members().iter(), identity.member),
        // It joined, and nothing has come yet.
        None => dir.first_peers()?,
    };
    Ok(Restored {
        identity,
        engine,
        machine,
        log,
        replica,
        peers,
        existed: true,
    })
}

/// Opens the state in use. Where the log was reset for a snapshot's state and a crash kept it
/// from coming into use, that one is it from now on.
fn open_state(
    config: &Config,
    dir: &DataDir,
    recovered: &Recovered,
) -> Result<Arc<dyn Engine>, Error> {
    let engine = RocksEngine::open(&dir.state()?, budget(config))?;
    let (applied, _) = Machine::applied(engine.latest())?;
    let reset_to = recovered.compacted.index;
    let name = received_name(reset_to);
    let path = dir.member().join(&name);
    if !takes_over(applied, reset_to, path.exists()) {
        return Ok(Arc::new(engine));
    }
    drop(engine);
    let engine = RocksEngine::open(&path, budget(config))?;
    dir.set_state(&name)?;
    tracing::info!(
        index = reset_to,
        "took over a snapshot that came before the last stop"
    );
    Ok(Arc::new(engine))
}

fn make_founder(config: &Config, dir: &DataDir, new: Bootstrap) -> Result<Restored, Error> {
    let identity = Identity {
        cluster: new.cluster_id,
        member: new.member_id,
    };
    let members = new.founders.into_iter().map(|founder| Member {
        id: founder.id.0,
        raft_attributes: Some(RaftAttributes {
            peer_urls: founder.peer_urls,
            is_learner: false,
        }),
        member_attributes: Some(Attributes {
            name: founder.name,
            client_urls: Vec::new(),
        }),
    });
    let (log, recovered) = new_log(config, dir, identity, Some(FOUNDING_ENTRY))?;
    let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(&dir.state()?, budget(config))?);
    check_unused(dir, engine.as_ref(), FOUNDING_ENTRY.index)?;
    let mut machine = Machine::open(engine.clone())?;
    machine.bootstrap(members.collect(), FOUNDING_ENTRY.index, FOUNDING_ENTRY.term)?;
    engine.flush()?;
    let replica = restore_replica(config, identity, &log, recovered, &machine)?;
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
fn make_joiner(config: &Config, dir: &DataDir, joining: Joining) -> Result<Restored, Error> {
    let Joining { identity, peers } = joining;
    let (log, recovered) = new_log(config, dir, identity, None)?;
    let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(&dir.state()?, budget(config))?);
    check_unused(dir, engine.as_ref(), 0)?;
    let machine = Machine::open(engine.clone())?;
    engine.flush()?;
    let replica = restore_replica(config, identity, &log, recovered, &machine)?;
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

/// Refuses a state that holds more than a start which was cut off left behind.
fn check_unused(dir: &DataDir, engine: &dyn Engine, most: u64) -> Result<(), Error> {
    let (applied, _) = Machine::applied(engine.latest())?;
    match applied <= most {
        true => Ok(()),
        false => Err(nameless(&dir.state()?)),
    }
}

fn nameless(path: &std::path::Path) -> Error {
    Error::Refused(format!(
        "{} holds data, but the member's IDENTITY file is missing; restore it from a backup, or remove the data directory to start anew",
        path.display()
    ))
}

/// Makes the raft log of a new member, or goes on with one that a start which was cut off made.
fn new_log(
    config: &Config,
    dir: &DataDir,
    identity: Identity,
    entry_id: Option<EntryId>,
) -> Result<(RaftLog, Recovered), Error> {
    let last = entry_id.unwrap_or_default().index;
    let mut log = match open_log(config, dir, identity) {
        Ok((log, recovered)) if recovered.last_index <= last => log,
        Ok(_) => return Err(nameless(dir.wal())),
        Err(Error::RaftLog(raft_log::Error::Absent { .. })) => {
            let log = RaftLog::create(files(dir)?, log_options(config, identity))?;
            with_filler(config, dir, log)?
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

fn files(dir: &DataDir) -> Result<Arc<dyn Files>, Error> {
    raft_log::RealFiles::new(dir.wal())
        .map(|files| Arc::new(files) as Arc<dyn Files>)
        .map_err(|error| Error::Os {
            what: "open the raft log's directory",
            error,
        })
}

fn log_options(config: &Config, identity: Identity) -> raft_log::Options {
    raft_log::Options {
        segment_bytes: raft_log::DEFAULT_SEGMENT_BYTES,
        cluster_id: identity.cluster.0,
        member_id: identity.member.0,
        sync: !config.unsafe_no_fsync,
    }
}

fn open_log(
    config: &Config,
    dir: &DataDir,
    identity: Identity,
) -> Result<(RaftLog, Recovered), Error> {
    let (log, recovered) = RaftLog::open(files(dir)?, log_options(config, identity))?;
    if let Some(torn) = &recovered.torn_tail {
        tracing::warn!(
            segment = %torn.segment,
            offset = torn.offset,
            bytes_cut = torn.bytes_cut,
            "cut off the end of the raft log: a write that a crash interrupted and nobody was told of"
        );
    }
    let log = with_filler(config, dir, log)?;
    Ok((log, recovered))
}

/// Has segments made ahead by a thread.
fn with_filler(_config: &Config, dir: &DataDir, log: RaftLog) -> Result<RaftLog, Error> {
    let filler = ZeroFiller::start(files(dir)?).map_err(|error| Error::Os {
        what: "start the thread that prepares segments of the raft log",
        error,
    })?;
    Ok(log.with_prepare(Box::new(filler)))
}

/// Refuses a log and a state that do not belong together.
fn check(machine: &Machine, recovered: &Recovered) -> Result<(), Error> {
    check_together(
        machine.applied_index(),
        recovered.compacted.index,
        recovered.last_index,
    )
    .map_err(|mismatch| Error::Refused(mismatch.to_string()))
}

fn restore_replica(
    config: &Config,
    identity: Identity,
    log: &RaftLog,
    recovered: Recovered,
    machine: &Machine,
) -> Result<Replica, Error> {
    let options = replica::Options {
        member: identity.member,
        election_ticks: config.election_ticks(),
        heartbeat_ticks: 1,
        pre_vote: config.pre_vote,
        election_seed: SystemRng.next_u64(),
        recent_entries: crate::raft::log::RECENT_ENTRIES,
    };
    let members = machine.members();
    let restored = replica::Restored {
        reader: log.reader(),
        hard_state: recovered.hard_state.map(Into::into),
        conf_state: conf_state_of(members.voters(), members.learners()),
        applied_index: machine.applied_index(),
    };
    Ok(Replica::new(options, restored)?)
}
