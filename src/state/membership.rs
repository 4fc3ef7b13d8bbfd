//! Who the members are and where they can be reached.

use std::collections::BTreeMap;

use prost::Message;

use crate::error::Error;
use crate::proto::membershippb::{Attributes, Member, RaftAttributes};
use crate::storage::schema::{self, meta};
use crate::storage::{self, Batch, Family, Read};
use crate::types::MemberId;

/// All members, learners included.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct Membership {
    members: BTreeMap<MemberId, Member>,
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
        Ok(Self { members })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
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

    /// Takes over what a member says of itself; an unknown one is ignored, as in etcd.
    pub fn set_attributes(&mut self, id: MemberId, attributes: Attributes, batch: &mut Batch) {
        if let Some(member) = self.members.get_mut(&id) {
            member.member_attributes = Some(attributes);
            store(id, member, batch);
        }
    }

    /// Whether a member's peer URLs may become `urls`.
    pub fn check_update(&self, id: MemberId, urls: &[String]) -> Result<(), Error> {
        if !self.members.contains_key(&id) {
            return Err(Error::MemberNotFound);
        }
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
}

fn store(id: MemberId, member: &Member, batch: &mut Batch) {
    let key = schema::meta_key(meta::MEMBERS, &[id.0]);
    batch.put(Family::Meta, &key, &member.encode_to_vec());
}
