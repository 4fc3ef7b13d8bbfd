//! Restores the member in the data directory, or creates one in an empty directory.
//!
//! `found` determines the founders of a new cluster, `join` the identity in an existing one; both
//! query `network`. `force` turns a member into a cluster of its own. `server::restore` does the
//! rest.

pub mod force;
pub mod found;
mod join;
pub mod network;
#[cfg(test)]
mod tests;

use super::Error;
use super::member_dir::{MemberDir, MemberIdentity};
use super::restore::{self, RestoreOptions, Restored};
use crate::budget::{Budget, Part};
use crate::config::{ClusterState, Config};
use crate::env::{Rng, SystemRng};
use crate::storage::raft_log::{self, Retained};
use crate::storage::rocks::EngineLimits;

use network::BootstrapNetwork;

/// What a member may hold in memory.
pub fn budget(config: &Config) -> Budget {
    Budget {
        total_bytes: config.memory_budget_bytes,
    }
}

/// What of the memory budget is the store's.
pub fn store_limits(config: &Config, open_files: usize) -> EngineLimits {
    let budget = budget(config);
    EngineLimits {
        open_files,
        memtable_bytes: budget.bytes(Part::Memtables),
        block_cache_bytes: budget.bytes(Part::BlockCache),
    }
}

/// Restores the member in a directory, or creates one. Only the latter uses the network.
pub async fn restore(
    config: &Config,
    dir: &dyn MemberDir,
    network: &dyn BootstrapNetwork,
) -> Result<Restored, Error> {
    let options = options(config);
    if let Some(identity) = dir.identity()? {
        return match config.force_new_cluster {
            true => restart_forced(config, dir, identity, &options),
            false => restore::restart(dir, identity, &options),
        };
    }
    match config.initial_cluster_state {
        ClusterState::New => {
            let new = found::founders(config, network).await?;
            restore::found(dir, new, &options)
        }
        ClusterState::Existing => {
            let joining = join::ask(config, network).await?;
            restore::join(dir, joining, &options)
        }
    }
}

fn restart_forced(
    config: &Config,
    dir: &dyn MemberDir,
    identity: MemberIdentity,
    options: &RestoreOptions,
) -> Result<Restored, Error> {
    let (mut log, recovered) = restore::open_log(dir, identity, options)?;
    let recovered = force::force(config, dir, identity, &mut log, recovered)?;
    restore::resume(dir, identity, options, log, recovered)
}

/// What stays of the raft log's segments when they are not needed any more: in etcd by default five,
/// which are of no use to a member.
pub fn retained(config: &Config) -> Retained {
    match config.max_wals {
        _ if !config.max_wals_given => Retained::None,
        0 => Retained::All,
        most => Retained::Newest(most),
    }
}

pub fn options(config: &Config) -> RestoreOptions {
    RestoreOptions {
        segment_bytes: raft_log::DEFAULT_SEGMENT_BYTES,
        sync: !config.unsafe_no_fsync,
        election_ticks: config.election_ticks(),
        pre_vote: config.pre_vote,
        election_seed: SystemRng.next_u64(),
        new_incarnation: SystemRng.next_u64(),
        recent_entries: crate::raft::log::RECENT_ENTRIES,
    }
}
