//! `--force-new-cluster`: a member whose cluster lost its quorum for good continues as a single
//! member, with all its data and its ids.
//!
//! The forced state is prepared in a staging directory, like a received state: a copy of the
//! current state, to which the rest of the log is applied, and in which this is the only member. It
//! counts as the state after one entry more than the log has. It takes effect when the log is reset
//! to that entry. A crash before the reset leaves the member as it was; a crash after it leaves a
//! log that begins after the old state, and the next start, forced or not, switches to the state
//! that fits.
//!
//! Entries beyond the commit index are applied as well, which etcd drops. The commit index on disk
//! lags: acknowledged writes may follow it. Keeping them all is what this member would do if its
//! peers had elected it; a write that was not acknowledged may have either outcome. Changes of
//! membership among them are left out: they no longer matter.

use prost::Message;

use crate::config::{Config, urls};
use crate::proto::etchedpeer::MemberChange;
use crate::proto::membershippb::RaftAttributes;
use crate::raft::output::committed;
use crate::raft::replica::{decode_hard_state, encode_hard_state};
use crate::raft::{Committed, CommittedKind};
use crate::server::Error;
use crate::server::member_dir::{MemberDir, MemberIdentity};
use crate::server::restore::open_state;
use crate::server::states::received_name;
use crate::state::Machine;
use crate::state::machine::{Entry, Payload};
use crate::storage::raft_log::{EntryId, LogEntry, RaftLog, Recovered};

/// The staging directory; a start that finds it removes it.
const ASIDE: &str = "receiving-forced";
/// Bytes of entries that are applied in one batch.
const GROUP_BYTES: u64 = 8 << 20;

/// Makes the member a cluster of its own; returns what the log contains afterwards.
pub fn force(
    config: &Config,
    dir: &dyn MemberDir,
    identity: MemberIdentity,
    log: &mut RaftLog,
    recovered: Recovered,
) -> Result<Recovered, Error> {
    let entry_id = prepare(config, dir, identity, log, &recovered)?;
    let hard_state = encode_hard_state(entry_id.term, entry_id.index);
    log.reset(entry_id, Some(&hard_state))?;
    // What may be missing is missing for good: nobody else counts any more.
    log.settle_doubt()?;
    Ok(Recovered {
        hard_state: Some(hard_state),
        compacted: entry_id,
        last_index: entry_id.index,
        torn_tail: None,
        end_in_doubt: false,
    })
}

/// Creates the forced state durably under its final name; returns its entry.
pub(super) fn prepare(
    config: &Config,
    dir: &dyn MemberDir,
    identity: MemberIdentity,
    log: &RaftLog,
    recovered: &Recovered,
) -> Result<EntryId, Error> {
    // Removes what an earlier start left of a forced state.
    let machine = open_state(dir, identity, log, recovered)?;
    machine.engine().checkpoint(&dir.path(ASIDE))?;
    drop(machine);
    let engine = dir.open_engine(ASIDE)?;
    let mut machine = Machine::open(engine.clone())?;
    let (term, commit_index) = hard_state(recovered)?;
    let commit_index = commit_index.max(machine.applied_index());
    tracing::info!(
        "cluster-id" = %identity.cluster,
        "local-member-id" = %identity.member,
        "wal-commit-index" = commit_index,
        "commit-index" = recovered.last_index,
        "forcing restart member"
    );
    apply_log(&mut machine, log, recovered.last_index, commit_index)?;
    let entry_id = EntryId {
        index: recovered.last_index + 1,
        term: term.max(machine.applied_term()).max(1),
    };
    make_sole_voter(&mut machine, config, identity, entry_id)?;
    engine.flush()?;
    drop(machine);
    drop(engine);
    dir.rename(&dir.path(ASIDE), &received_name(entry_id.index))?;
    dir.sync()?;
    Ok(entry_id)
}

/// Term and commit index; zeros for a member that never had any.
fn hard_state(recovered: &Recovered) -> Result<(u64, u64), Error> {
    let Some(bytes) = &recovered.hard_state else {
        return Ok((0, 0));
    };
    decode_hard_state(bytes)
        .ok_or_else(|| Error::Refused("the raft log's hard state cannot be read".to_owned()))
}

/// Applies all that the log holds, but changes of membership only up to `commit_index`.
pub(in crate::server) fn apply_log(
    machine: &mut Machine,
    log: &RaftLog,
    last_index: u64,
    commit_index: u64,
) -> Result<(), Error> {
    let mut left_out = 0_u64;
    while machine.applied_index() < last_index {
        let next = machine.applied_index() + 1;
        let group = log.read(next, last_index + 1, GROUP_BYTES)?;
        let mut entries = Vec::with_capacity(group.len());
        for logged in &group {
            let (entry, dropped) = readable(logged, commit_index)?;
            left_out += u64::from(dropped);
            entries.push(entry);
        }
        machine.apply(entries)?;
    }
    let uncommitted = last_index.saturating_sub(commit_index);
    if uncommitted > 0 {
        tracing::warn!(
            entries = uncommitted,
            "kept entries of the raft log that were not known to be committed"
        );
    }
    if left_out > 0 {
        tracing::warn!(
            changes = left_out,
            "discarded changes of membership that were not known to be committed"
        );
    }
    Ok(())
}

/// The entry for the state machine, and whether a change was left out of it.
fn readable(logged: &LogEntry, commit_index: u64) -> Result<(Entry, bool), Error> {
    let index = logged.index;
    let Some(Committed { kind, term, .. }) = committed(logged) else {
        return Err(Error::Refused(format!(
            "entry {index} of the raft log cannot be read; restore this member from a backup"
        )));
    };
    let (payload, dropped) = match kind {
        CommittedKind::Empty => (Payload::Empty, false),
        CommittedKind::Request(bytes) => (Payload::Request(bytes), false),
        CommittedKind::ConfChange(_) if index > commit_index => (Payload::Empty, true),
        CommittedKind::ConfChange(change) => {
            let change = MemberChange::decode(change.context.as_slice());
            // A change that cannot be decoded is refused by every member.
            (Payload::Membership(change.unwrap_or_default()), false)
        }
    };
    let entry = Entry {
        index,
        term,
        payload,
    };
    Ok((entry, dropped))
}

/// Leaves this member as the only one, a voter, in the state after the entry `entry_id`.
fn make_sole_voter(
    machine: &mut Machine,
    config: &Config,
    identity: MemberIdentity,
    entry_id: EntryId,
) -> Result<(), Error> {
    machine.apply(vec![Entry {
        index: entry_id.index,
        term: entry_id.term,
        payload: Payload::Empty,
    }])?;
    for other in machine.members().iter() {
        if other.id != identity.member.0 {
            let raft = other.raft_attributes.clone().unwrap_or_default();
            tracing::warn!(
                "removed-member-id" = format!("{:x}", other.id),
                "removed-peer-urls" = raft.peer_urls.join(","),
                "removed a member from the forced cluster"
            );
        }
    }
    let known = machine.members().get(identity.member);
    let known = known.and_then(|member| member.raft_attributes.clone());
    let peer_urls = match known {
        Some(raft) => raft.peer_urls,
        // It was removed, or never heard that it was added.
        None => urls::texts(&config.initial_advertise_peer_urls),
    };
    let raft = RaftAttributes {
        peer_urls,
        is_learner: false,
    };
    Ok(machine.force_sole_member(identity.member, raft)?)
}
