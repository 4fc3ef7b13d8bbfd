//! Takes up the member that the data directory holds, or makes a new one in an empty directory.
//!
//! A new member is there once its identity file is: everything before can be done again.

use std::sync::Arc;

use super::Error;
use super::data_dir::{DataDir, Identity};
use crate::config::Config;
use crate::proto::membershippb::RaftAttributes;
use crate::raft::Replica;
use crate::raft::replica::{self, conf_state_of, decode_conf_state, encode_conf_state};
use crate::state::Machine;
use crate::storage::Engine;
use crate::storage::raft_log::{self, Files, RaftLog, Recovered, ZeroFiller};
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

/// The part of the memory budget that memtables may take; the block cache takes the rest.
fn budget(config: &Config) -> Budget {
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
    let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(&dir.state(), budget(config))?);
    let machine = Machine::open(engine.clone())?;
    check(&machine, &recovered)?;
    let replica = restore_replica(config, identity, &log, recovered, &machine, engine.as_ref())?;
    Ok(Restored {
        identity,
        engine,
        machine,
        log,
        replica,
        existed: true,
    })
}

fn make(config: &Config, dir: &DataDir) -> Result<Restored, Error> {
    let new = config
        .bootstrap(&resolve)
        .map_err(|refusal| Error::Refused(refusal.to_string()))?;
    let identity = Identity {
        cluster: new.cluster_id,
        member: new.member_id,
    };
    let (log, recovered) = match open_log(config, dir, identity) {
        // A start that was cut off before it made the identity.
        Ok((log, recovered)) if recovered.last_index == 0 => (log, recovered),
        Ok(_) => {
            return Err(Error::Refused(format!(
                "the raft log in {} has entries, but the member's IDENTITY file is missing; restore it from a backup, or remove the data directory to start anew",
                dir.wal().display()
            )));
        }
        Err(Error::RaftLog(raft_log::Error::Absent { .. })) => {
            let log = RaftLog::create(files(dir)?, log_options(config, identity))?;
            let log = with_filler(config, dir, log)?;
            let recovered = Recovered {
                hard_state: None,
                compacted: log.compacted(),
                last_index: 0,
                torn_tail: None,
            };
            (log, recovered)
        }
        Err(error) => return Err(error),
    };
    let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(&dir.state(), budget(config))?);
    let mut machine = Machine::open(engine.clone())?;
    let attributes = RaftAttributes {
        peer_urls: new.peer_urls,
        is_learner: false,
    };
    let conf_state = encode_conf_state(&conf_state_of(&[identity.member]));
    machine.bootstrap(vec![(identity.member, attributes)], &conf_state)?;
    engine.flush()?;
    let replica = restore_replica(config, identity, &log, recovered, &machine, engine.as_ref())?;
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
    engine: &dyn Engine,
) -> Result<Replica, Error> {
    let conf_state = Machine::conf_state(engine.latest())?
        .and_then(|bytes| decode_conf_state(&bytes))
        .ok_or_else(|| {
            Error::Refused(
                "the state says nothing of who votes; restore this member from a backup or from the other members"
                    .to_owned(),
            )
        })?;
    let options = replica::Options {
        member: identity.member,
        election_ticks: config.election_ticks(),
        heartbeat_ticks: 1,
        pre_vote: config.pre_vote,
    };
    let restored = replica::Restored {
        reader: log.reader(),
        hard_state: recovered.hard_state.map(Into::into),
        conf_state,
        applied_index: machine.applied_index(),
    };
    Ok(Replica::new(options, restored)?)
}
