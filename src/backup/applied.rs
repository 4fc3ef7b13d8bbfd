//! How far the state in a bbolt file of etcd is, and whose it is: the entry that was applied last,
//! the members, and raft's configuration. What clients wrote is `import`'s.

use bytes::Buf;
use serde::Deserialize;

use super::bbolt::read::File;
use super::etcd::{bucket, key};
use super::import::Error;
use crate::proto::membershippb::{Attributes, Member, RaftAttributes};
use crate::types::MemberId;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// 0 where nothing was applied yet.
    pub index: u64,
    /// Of that entry, where the file says it: etcd 3.4 did not.
    pub term: Option<u64>,
    pub members: Vec<Member>,
    pub removed: Vec<MemberId>,
    /// Voters and learners as raft has them; etcd 3.4 did not write them here.
    pub raft: Option<(Vec<MemberId>, Vec<MemberId>)>,
    pub cluster_version: Option<String>,
}

impl Applied {
    /// Reads what a file says.
    pub fn read(file: &File) -> Result<Self, Error> {
        let mut applied = Self::default();
        each(file, bucket::META, &mut |at, mut value| {
            match at {
                key::CONSISTENT_INDEX if value.len() == 8 => applied.index = value.get_u64(),
                key::TERM if value.len() == 8 => applied.term = Some(value.get_u64()),
                key::CONF_STATE => applied.raft = Some(conf_state(value)?),
                key::CONSISTENT_INDEX | key::TERM => return None,
                _ => {}
            }
            Some(())
        })?;
        each(file, bucket::MEMBERS, &mut |at, value| {
            let member = member(value)?;
            (id(at)? == MemberId(member.id)).then(|| applied.members.push(member))
        })?;
        each(file, bucket::MEMBERS_REMOVED, &mut |at, _| {
            applied.removed.push(id(at)?);
            Some(())
        })?;
        each(file, bucket::CLUSTER, &mut |at, value| {
            if at == key::CLUSTER_VERSION {
                applied.cluster_version = Some(String::from_utf8(value.to_vec()).ok()?);
            }
            Some(())
        })?;
        Ok(applied)
    }
}

type Take<'a> = dyn FnMut(&[u8], &[u8]) -> Option<()> + 'a;

fn each(file: &File, name: &'static [u8], take: &mut Take<'_>) -> Result<(), Error> {
    file.each::<Error>(name, &mut |at, value| {
        take(at, value).ok_or_else(|| super::import::damaged(name, at))
    })?;
    Ok(())
}

fn id(text: &[u8]) -> Option<MemberId> {
    let text = std::str::from_utf8(text).ok()?;
    u64::from_str_radix(text, 16).ok().map(MemberId)
}

#[derive(Deserialize)]
struct ConfState {
    voters: Option<Vec<u64>>,
    learners: Option<Vec<u64>>,
}

fn conf_state(value: &[u8]) -> Option<(Vec<MemberId>, Vec<MemberId>)> {
    let stored: ConfState = serde_json::from_slice(value).ok()?;
    let ids = |ids: Option<Vec<u64>>| ids.unwrap_or_default().into_iter().map(MemberId).collect();
    Some((ids(stored.voters), ids(stored.learners)))
}

/// A member as etcd writes it in JSON, here and in its log.
#[derive(Deserialize)]
struct StoredMember {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    #[serde(rename = "isLearner", default)]
    is_learner: bool,
    #[serde(default)]
    name: String,
    #[serde(rename = "clientURLs")]
    client_urls: Option<Vec<String>>,
}

/// Reads a member in JSON; fields that it does not know are left out.
pub fn member(json: &[u8]) -> Option<Member> {
    let stored: StoredMember = serde_json::from_slice(json).ok()?;
    Some(Member {
        id: stored.id,
        raft_attributes: Some(RaftAttributes {
            peer_urls: stored.peer_urls.unwrap_or_default(),
            is_learner: stored.is_learner,
        }),
        member_attributes: Some(Attributes {
            name: stored.name,
            client_urls: stored.client_urls.unwrap_or_default(),
        }),
    })
}
