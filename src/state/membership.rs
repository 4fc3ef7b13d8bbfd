//! The members, their URLs, the voters, and the members that were removed for good.
//!
//! Raft's configuration is derived from it, with all members but learners as voters, and not stored
//! separately.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use crate::error::Error;
use crate::proto::etchedpeer::{MemberChange, member_change::Change};
use crate::proto::membershippb::{Attributes, Member, RaftAttributes};
use crate::storage::schema::{self, meta};
use crate::storage::{self, Batch, Family, Read};
use crate::types::MemberId;

/// All members, learners included, and the ids of removed ones, which must not be reused.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct Membership {
    members: BTreeMap<MemberId, Member>,
    removed: BTreeSet<MemberId>,
}

impl Membership {
    pub fn load(read: &dyn Read) -> storage::Result<Self> {
        let mut members = BTreeMap::new();
        let upper = schema::prefix_end(meta::MEMBERS);
        let mut cursor = read.cursor(Family::Meta, meta::MEMBERS, upper.as_deref())?;
        while cursor.next()? {
            let [id] = schema::meta_numbers(cursor.key(), meta::MEMBERS)?;
            let member = Member::decode(cursor.value()).map_err(|_| storage::Error::Damaged {
                family: Family::Meta,
                key: cursor.key().to_vec(),
                reason: "it is not a member",
            })?;
            members.insert(MemberId(id), member);
        }
        let mut removed = BTreeSet::new();
        let upper = schema::prefix_end(meta::REMOVED_MEMBERS);
        let mut cursor = read.cursor(Family::Meta, meta::REMOVED_MEMBERS, upper.as_deref())?;
        while cursor.next()? {
            let [id] = schema::meta_numbers(cursor.key(), meta::REMOVED_MEMBERS)?;
            removed.insert(MemberId(id));
        }
        Ok(Self { members, removed })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The ids of removed members.
    pub fn removed(&self) -> impl Iterator<Item = MemberId> {
        self.removed.iter().copied()
    }

    /// The voters.
    pub fn voters(&self) -> impl Iterator<Item = MemberId> {
        self.by_role(false)
    }

    /// The learners.
    pub fn learners(&self) -> impl Iterator<Item = MemberId> {
        self.by_role(true)
    }

    fn by_role(&self, learner: bool) -> impl Iterator<Item = MemberId> {
        self.members
            .iter()
            .filter(move |(_, member)| is_learner(member) == learner)
            .map(|(id, _)| *id)
    }

    /// Adds a member, or replaces its peer URLs and role.
    pub fn set(&mut self, id: MemberId, raft: RaftAttributes, batch: &mut Batch) {
        let member = self.members.entry(id).or_insert_with(|| Member {
            id: id.0,
            raft_attributes: None,
            member_attributes: None,
        });
        member.raft_attributes = Some(raft);
        store(id, member, batch);
    }

    /// Sets a member's attributes; as in etcd an unknown member is ignored.
    pub fn set_attributes(&mut self, id: MemberId, attributes: Attributes, batch: &mut Batch) {
        if let Some(member) = self.members.get_mut(&id) {
            member.member_attributes = Some(attributes);
            store(id, member, batch);
        }
    }

    /// Removes a member; its id must not be reused.
    pub fn remove(&mut self, id: MemberId, batch: &mut Batch) {
        if self.members.remove(&id).is_some() {
            batch.delete(Family::Meta, &schema::meta_key(meta::MEMBERS, &[id.0]));
        }
        self.removed.insert(id);
        let key = schema::meta_key(meta::REMOVED_MEMBERS, &[id.0]);
        batch.put(Family::Meta, &key, &[]);
    }

    /// Allows a removed id again, for a survivor that becomes a cluster of its own.
    pub fn readmit(&mut self, id: MemberId, batch: &mut Batch) {
        if self.removed.remove(&id) {
            let key = schema::meta_key(meta::REMOVED_MEMBERS, &[id.0]);
            batch.delete(Family::Meta, &key);
        }
    }

    /// Whether a change is allowed now; etcd's rules, in its order.
    pub fn check(&self, change: &MemberChange) -> Result<(), Error> {
        let id = MemberId(change.member_id);
        // raft reserves the id 0.
        if id.0 == 0 || self.removed.contains(&id) {
            return Err(Error::MemberNotFound);
        }
        let known = self.members.get(&id);
        match &change.change {
            Some(Change::Add(raft)) => {
                if known.is_some() {
                    return Err(Error::MemberExists);
                }
                self.check_urls(id, &raft.peer_urls)?;
                let learners = self.learners().count() as u64;
                if raft.is_learner && learners >= u64::from(change.max_learners) {
                    return Err(Error::TooManyLearners);
                }
                Ok(())
            }
            Some(Change::Update(raft)) => {
                known.ok_or(Error::MemberNotFound)?;
                self.check_urls(id, &raft.peer_urls)
            }
            Some(Change::Promote(_)) if is_learner(known.ok_or(Error::MemberNotFound)?) => Ok(()),
            Some(Change::Promote(_)) => Err(Error::MemberNotLearner),
            Some(Change::Remove(_)) => {
                let removed = known.ok_or(Error::MemberNotFound)?;
                if !is_learner(removed) && self.voters().count() == 1 {
                    // The cluster would have no voter. etcd does not check this at proposal and
                    // panics.
                    return Err(Error::NotEnoughStartedMembers);
                }
                Ok(())
            }
            // A newer leader's change: every member of this version refuses it equally.
            None => Err(Error::UnknownMethod),
        }
    }

    fn check_urls(&self, id: MemberId, urls: &[String]) -> Result<(), Error> {
        let taken = self
            .members
            .iter()
            .filter(|(other, _)| **other != id)
            .filter_map(|(_, member)| member.raft_attributes.as_ref())
            .flat_map(|raft| &raft.peer_urls)
            .any(|url| urls.contains(url));
        if taken {
            return Err(Error::PeerUrlExists);
        }
        Ok(())
    }

    /// Executes a change that `check` allows.
    pub fn apply(&mut self, change: MemberChange, batch: &mut Batch) {
        let id = MemberId(change.member_id);
        match change.change {
            Some(Change::Add(raft)) => self.set(id, raft, batch),
            Some(Change::Update(raft)) => self.change_raft(id, batch, |current| {
                current.peer_urls = raft.peer_urls;
            }),
            Some(Change::Promote(_)) => self.change_raft(id, batch, |current| {
                current.is_learner = false;
            }),
            Some(Change::Remove(_)) => self.remove(id, batch),
            None => {}
        }
    }

    fn change_raft(
        &mut self,
        id: MemberId,
        batch: &mut Batch,
        change: impl FnOnce(&mut RaftAttributes),
    ) {
        if let Some(member) = self.members.get_mut(&id) {
            change(member.raft_attributes.get_or_insert_default());
            store(id, member, batch);
        }
    }
}

/// True for a member that does not vote.
pub fn is_learner(member: &Member) -> bool {
    member
        .raft_attributes
        .as_ref()
        .is_some_and(|raft| raft.is_learner)
}

fn store(id: MemberId, member: &Member, batch: &mut Batch) {
    let key = schema::meta_key(meta::MEMBERS, &[id.0]);
    batch.put(Family::Meta, &key, &member.encode_to_vec());
}
