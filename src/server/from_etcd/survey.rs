//! What etcd's raft log says as a whole, and whether it matches a state: decided before anything of
//! it is taken, from its records alone.
//!
//! A snapshot is here what etcd means by it in its log: a record that the state after an entry was
//! saved, with a snap file of the voters beside the log.

use std::collections::BTreeSet;

use prost::Message;

use crate::backup::applied::Applied;
use crate::backup::wal::message::{
    ConfChange, ConfState, Entry, HardState, Metadata, SnapshotRecord, change_kind, entry_kind,
};
use crate::backup::wal::{self, read::Record};
use crate::proto::membershippb::Member;
use crate::storage::raft_log::EntryId;
use crate::types::MemberId;

/// What was read so far.
#[derive(Debug, Default)]
pub struct Survey {
    pub metadata: Option<Metadata>,
    pub state: HardState,
    snapshots: Vec<SnapshotRecord>,
    /// Of entries without a gap behind this one.
    behind: Option<u64>,
    last: u64,
    /// Terms, each with the first index that has it.
    terms: Vec<(u64, u64)>,
    changes: Vec<(u64, ConfChange)>,
}

/// Voters, and learners.
pub type Roles = (BTreeSet<MemberId>, BTreeSet<MemberId>);

/// Why log and state do not match.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("its raft log does not say whose it is")]
    Nameless,
    #[error("its raft log has no snapshot that its state holds")]
    NoSnapshot,
    #[error("its raft log ends at entry {last}, but its state is that after entry {applied}")]
    Short { last: u64, applied: u64 },
    #[error("its raft log ends at entry {last}, but entry {commit} is committed")]
    Uncommitted { last: u64, commit: u64 },
    #[error(
        "its raft log begins behind entry {behind}, but its newest snapshot is that after entry {snapshot}"
    )]
    Late { behind: u64, snapshot: u64 },
    #[error("entry {index} is of term {term} in its state, and not in its raft log")]
    Term { index: u64, term: u64 },
    #[error("its list of members is not that of raft")]
    Members,
}

impl Survey {
    pub fn add(&mut self, record: Record) -> Result<(), wal::Error> {
        match record {
            // Each segment begins with both.
            Record::Metadata(metadata) => match self.metadata.replace(metadata) {
                Some(before) if before != metadata => Err(wal::Error::Unreadable {
                    what: "the member, of which there are two,",
                }),
                _ => Ok(()),
            },
            Record::State(state) => {
                self.state = state;
                Ok(())
            }
            Record::Snapshot(snapshot) => {
                self.snapshots.push(snapshot);
                Ok(())
            }
            Record::Entry(entry) => self.entry(entry),
        }
    }

    fn entry(&mut self, entry: Entry) -> Result<(), wal::Error> {
        let index = entry.index.unwrap_or_default();
        let Some(before) = index.checked_sub(1) else {
            return Err(wal::Error::Unreadable {
                what: "an entry without an index",
            });
        };
        let continues = self.behind.is_some_and(|behind| before >= behind) && before <= self.last;
        if !continues {
            // The entries before were replaced by a received state; or this is the first entry
            // there is.
            let last = self.last;
            let skipped = self.snapshots.iter().any(|one| one.index() >= before);
            if self.behind.is_some() && !skipped {
                return Err(wal::Error::Gap { last, found: index });
            }
            self.behind = Some(before);
            self.terms.clear();
            self.changes.clear();
        }
        self.last = index;
        self.terms.retain(|(first, _)| *first < index);
        self.changes.retain(|(at, _)| *at < index);
        let term = entry.term.unwrap_or_default();
        if self.terms.last().is_none_or(|(_, last)| *last != term) {
            self.terms.push((index, term));
        }
        if entry.kind == Some(entry_kind::CONF_CHANGE) {
            let data = entry.data.unwrap_or_default();
            let change = ConfChange::decode(data).map_err(|_| wal::Error::Unreadable {
                what: "a change of membership",
            })?;
            self.changes.push((index, change));
        }
        Ok(())
    }

    /// The newest snapshot that counts: one that was written before its entry was committed does
    /// not.
    pub fn newest_snapshot(&self, applied: u64) -> Option<&SnapshotRecord> {
        let commit = self.state.commit.unwrap_or_default().max(applied);
        let counts = self.snapshots.iter().filter(|one| one.index() <= commit);
        counts.max_by_key(|one| one.index())
    }

    /// What is committed, with a state after the entry `applied`: etcd does not write every
    /// progress.
    pub fn commit(&self, applied: u64) -> u64 {
        self.state.commit.unwrap_or_default().max(applied)
    }

    /// The log's last entry, that of `begin` where none is behind it.
    pub fn last(&self, begin: EntryId) -> u64 {
        self.last.max(begin.index)
    }

    fn term(&self, begin: EntryId, index: u64) -> Option<u64> {
        if index == begin.index {
            return Some(begin.term);
        }
        let at = self.terms.iter().rfind(|(first, _)| *first <= index)?;
        (index <= self.last).then_some(at.1)
    }

    /// Behind which entry the log is taken, and the id of the last entry in the state.
    pub fn check(&self, applied: &Applied) -> Result<(EntryId, EntryId), Mismatch> {
        let snapshot = self.newest_snapshot(applied.index);
        let snapshot = snapshot.filter(|one| one.index() <= applied.index);
        let snapshot = snapshot.ok_or(Mismatch::NoSnapshot)?;
        let begin = EntryId {
            index: snapshot.index(),
            term: snapshot.term(),
        };
        let last = self.last(begin);
        if applied.index > last {
            let applied = applied.index;
            return Err(Mismatch::Short { last, applied });
        }
        let commit = self.commit(applied.index);
        if commit > last {
            return Err(Mismatch::Uncommitted { last, commit });
        }
        if let Some(behind) = self.behind.filter(|behind| *behind > begin.index) {
            let snapshot = begin.index;
            return Err(Mismatch::Late { behind, snapshot });
        }
        let index = applied.index;
        let term = self.term(begin, index);
        let said = applied.term.or(term).unwrap_or_default();
        if index > 0 && term != Some(said) {
            return Err(Mismatch::Term { index, term: said });
        }
        Ok((begin, EntryId { index, term: said }))
    }

    /// Who votes after an entry, by the snapshot before it and the changes since; `None` where the
    /// snapshot does not say it. `saved` is what its snap file says, for a log that does not.
    fn roles(&self, begin: EntryId, applied: u64, saved: Option<&ConfState>) -> Option<Roles> {
        let record = self.snapshots.iter().find(|one| one.index() == begin.index);
        let conf = record.and_then(|one| one.conf_state.as_ref()).or(saved);
        let (mut voters, mut learners) = match conf {
            Some(conf) => roles_of(conf),
            None if begin.index == 0 => Roles::default(),
            None => return None,
        };
        let since = |(at, _): &&(u64, ConfChange)| *at > begin.index && *at <= applied;
        for (_, change) in self.changes.iter().filter(since) {
            let id = MemberId(change.node_id.unwrap_or_default());
            match change.kind.unwrap_or_default() {
                change_kind::ADD_NODE => {
                    learners.remove(&id);
                    voters.insert(id);
                }
                change_kind::ADD_LEARNER_NODE if !voters.contains(&id) => {
                    learners.insert(id);
                }
                change_kind::REMOVE_NODE => {
                    voters.remove(&id);
                    learners.remove(&id);
                }
                _ => {}
            }
        }
        Some((voters, learners))
    }

    /// The members with the roles that raft gave them. etcd 3.5 kept two lists of members, and had
    /// versions in which that of the state missed a promotion or a removal; raft's is the one that
    /// counted.
    pub fn members(
        &self,
        applied: &Applied,
        begin: EntryId,
        saved: Option<&ConfState>,
    ) -> Result<Vec<Member>, Mismatch> {
        let listed = roles_in(&applied.members);
        let of_state = applied.raft.as_ref().map(|(voters, learners)| {
            let set = |ids: &[MemberId]| ids.iter().copied().collect();
            (set(voters), set(learners))
        });
        let of_log = self.roles(begin, applied.index, saved);
        let candidates = [of_log, of_state];
        let mut known = candidates.iter().flatten().peekable();
        if known.peek().is_none() || candidates.iter().flatten().any(|roles| *roles == listed) {
            return Ok(applied.members.clone());
        }
        let all: BTreeSet<_> = listed.0.union(&listed.1).copied().collect();
        let (voters, learners) = known
            .find(|(voters, learners)| voters.union(learners).all(|id| all.contains(id)))
            .ok_or(Mismatch::Members)?;
        let raft = applied.members.iter().filter_map(|member| {
            let id = MemberId(member.id);
            let mut member = member.clone();
            let raft = member.raft_attributes.get_or_insert_default();
            raft.is_learner = learners.contains(&id);
            (raft.is_learner || voters.contains(&id)).then_some(member)
        });
        Ok(raft.collect())
    }
}

fn roles_of(conf: &ConfState) -> Roles {
    let set = |ids: &[u64]| ids.iter().copied().map(MemberId).collect();
    (set(&conf.voters), set(&conf.learners))
}

fn roles_in(members: &[Member]) -> Roles {
    let mut roles = Roles::default();
    for member in members {
        let raft = member.raft_attributes.as_ref();
        match raft.is_some_and(|raft| raft.is_learner) {
            true => roles.1.insert(MemberId(member.id)),
            false => roles.0.insert(MemberId(member.id)),
        };
    }
    roles
}
