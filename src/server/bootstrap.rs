//! Takes up the member that the data directory holds, or makes a new one in an empty directory.
//!
//! A new member is there once its identity file is: everything before can be done again.

use std::sync::Arc;

use super::Error;
use super::data_dir::{DataDir, Identity};
use super::states::received_name;
use crate::config::Config;
use crate::proto::membershippb::{Attributes, Member, RaftAttributes};
use crate::raft::Replica;
use crate::raft::replica::{self, conf_state_of, encode_hard_state};
use crate::state::Machine;
use crate::storage::Engine;
use crate::storage::raft_log::{self, Files, Mark, RaftLog, Recovered, ZeroFiller};
use crate::storage::rocks::{Budget, RocksEngine};

/// A member, restored and not yet running.
pub struct Restored {
    pub identity: Identity,
    pub engine: Arc<dyn Engine>,
    pub machine: Machine,
    pub log: RaftLog,
    pub replica: Replica,
    /// False for a member that was made just now.
    pub existed: bool,
}

/// A cluster's first state is that after this entry of this term, which no log holds: a member
/// that joins later gets it as a snapshot, whatever the log still has.
const FOUNDING_MARK: Mark = Mark { index: 1, term: 1 };

/// The part of the memory budget that memtables may take; the block cache takes the rest.
pub fn budget(config: &Config) -> Budget {
    let total = config.memory_budget_bytes as usize;
    let memtable_bytes = total / 2;
    Budget {
        memtable_bytes,
        block_cache_bytes: total - memtable_bytes,
    }
}

pub fn restore(config: &Config, dir: &DataDir) -> Result<Restored, Error> {
    let identity = match dir.identity()? {
        Some(identity) => identity,
        None => return make(config, dir),
    };
    let (log, recovered) = open_log(config, dir, identity)?;
    let engine = open_state(config, dir, &recovered)?;
    dir.remove_leftovers()?;
    let machine = Machine::open(engine.clone())?;
    check(&machine, &recovered)?;
    let replica = restore_replica(config, identity, &log, recovered, &machine)?;
    Ok(Restored {
        identity,
        engine,
        machine,
        log,
        replica,
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
    if applied >= reset_to || !path.exists() {
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

fn make(config: &Config, dir: &DataDir) -> Result<Restored, Error> {
    let new = config
        .bootstrap(&resolve)
        .map_err(|refusal| Error::Refused(refusal.to_string()))?;
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
    let (log, recovered) = new_log(config, dir, identity, Some(FOUNDING_MARK))?;
    let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(&dir.state()?, budget(config))?);
    let mut machine = Machine::open(engine.clone())?;
    machine.bootstrap(members.collect(), FOUNDING_MARK.index, FOUNDING_MARK.term)?;
    engine.flush()?;
    let replica = restore_replica(config, identity, &log, recovered, &machine)?;
    dir.set_identity(identity)?;
    Ok(Restored {
        identity,
        engine,
        machine,
        log,
        replica,
        existed: false,
    })
}

/// Makes the raft log of a new member, or goes on with one that a start which was cut off made.
fn new_log(
    config: &Config,
    dir: &DataDir,
    identity: Identity,
    mark: Option<Mark>,
) -> Result<(RaftLog, Recovered), Error> {
    let mut log = match open_log(config, dir, identity) {
        Ok((log, recovered)) if recovered.last_index <= FOUNDING_MARK.index => log,
        Ok(_) => {
            return Err(Error::Refused(format!(
                "the raft log in {} has entries, but the member's IDENTITY file is missing; restore it from a backup, or remove the data directory to start anew",
                dir.wal().display()
            )));
        }
        Err(Error::RaftLog(raft_log::Error::Absent { .. })) => {
            let log = RaftLog::create(files(dir)?, log_options(config, identity))?;
            with_filler(config, dir, log)?
        }
        Err(error) => return Err(error),
    };
    let hard_state = mark.map(|mark| encode_hard_state(mark.term, mark.index));
    if let Some(mark) = mark {
        log.reset(mark, hard_state.as_deref())?;
    }
    let recovered = Recovered {
        hard_state,
        compacted: log.compacted(),
        last_index: log.last_index(),
        torn_tail: None,
    };
    Ok((log, recovered))
}

fn resolve(host_port: &str) -> std::io::Result<String> {
    use std::net::ToSocketAddrs;
    host_port
        .to_socket_addrs()?
        .next()
        .map(|address| address.to_string())
        .ok_or_else(|| std::io::Error::other("the name has no address"))
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
    let applied = machine.applied_index();
    if applied > recovered.last_index {
        return Err(Error::Refused(format!(
            "the raft log ends at entry {}, but entry {applied} was applied: a part of the log is missing; restore this member from a backup or from the other members",
            recovered.last_index
        )));
    }
    if applied < recovered.compacted.index {
        return Err(Error::Refused(format!(
            "the raft log begins behind entry {}, but only entry {applied} was applied: a part of the state is missing; restore this member from a backup or from the other members",
            recovered.compacted.index
        )));
    }
    Ok(())
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
