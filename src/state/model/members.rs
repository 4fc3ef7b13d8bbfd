//! Who the members are: a second, simple implementation of changes of membership.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Error;
use crate::proto::etchedpeer::{MemberChange, member_change::Change};

/// A member, as far as changes ask for it.
#[derive(Clone, Debug, Default)]
struct Known {
    is_learner: bool,
    peer_urls: Vec<String>,
}

/// All members, and the ids that may never come back.
#[derive(Clone, Debug, Default)]
pub struct Members {
    known: BTreeMap<u64, Known>,
    removed: BTreeSet<u64>,
}

impl Members {
    /// The members that found a cluster, all of them voters; what their peer URLs are is of no
    /// interest.
    pub fn founders(ids: impl Iterator<Item = u64>) -> Self {
        Self {
            known: ids.map(|id| (id, Known::default())).collect(),
            removed: BTreeSet::new(),
        }
    }

    pub fn ids(&self) -> Vec<u64> {
        self.known.keys().copied().collect()
    }

    /// Makes a change, or says why it must not be made.
    pub fn apply(&mut self, change: &MemberChange) -> Result<(), Error> {
        let id = change.member_id;
        if self.removed.contains(&id) {
            return Err(Error::MemberNotFound);
        }
        let known = self.known.get(&id).cloned();
        match &change.change {
            Some(Change::Add(raft)) => {
                if known.is_some() {
                    return Err(Error::MemberExists);
                }
                self.check_urls(id, &raft.peer_urls)?;
                let learners = self.known.values().filter(|known| known.is_learner);
                if raft.is_learner && learners.count() >= change.max_learners as usize {
                    return Err(Error::TooManyLearners);
                }
                let added = Known {
                    is_learner: raft.is_learner,
                    peer_urls: raft.peer_urls.clone(),
                };
                self.known.insert(id, added);
            }
            Some(Change::Update(raft)) => {
                let mut updated = known.ok_or(Error::MemberNotFound)?;
                self.check_urls(id, &raft.peer_urls)?;
                updated.peer_urls = raft.peer_urls.clone();
                self.known.insert(id, updated);
            }
            Some(Change::Promote(_)) => {
                let mut promoted = known.ok_or(Error::MemberNotFound)?;
                if !promoted.is_learner {
                    return Err(Error::MemberNotLearner);
                }
                promoted.is_learner = false;
                self.known.insert(id, promoted);
            }
            Some(Change::Remove(_)) => {
                let leaving = known.ok_or(Error::MemberNotFound)?;
                let voters = self.known.values().filter(|known| !known.is_learner);
                if !leaving.is_learner && voters.count() == 1 {
                    return Err(Error::NotEnoughStartedMembers);
                }
                self.known.remove(&id);
                self.removed.insert(id);
            }
            None => return Err(Error::UnknownMethod),
        }
        Ok(())
    }

    fn check_urls(&self, id: u64, urls: &[String]) -> Result<(), Error> {
        let mut others = self.known.iter().filter(|(other, _)| **other != id);
        match others.any(|(_, known)| known.peer_urls.iter().any(|url| urls.contains(url))) {
            true => Err(Error::PeerUrlExists),
            false => Ok(()),
        }
    }
}
