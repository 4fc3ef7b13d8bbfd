//! etcd's snap files, `<term>-<index>.snap`: raft's members after an entry, and the members as
//! the store of etcd's second version had them. That store holds nothing else, but where a cluster
//! was used through etcd's second API.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};

use super::Error;
use super::message::{SnapFile, Snapshot};
use crate::proto::membershippb::Member;

/// The name of the file for the state after an entry.
pub fn file_name(term: u64, index: u64) -> String {
    format!("{term:016x}-{index:016x}.snap")
}

/// The name of a state that came from another member, and waits to be put in its place.
pub fn received_name(index: u64) -> String {
    format!("{index:016x}.snap.db")
}

/// Reads a file.
pub fn parse(file: Bytes) -> Result<Snapshot, Error> {
    let unreadable = |what| Error::Unreadable { what };
    let file = SnapFile::decode(file).map_err(|_| unreadable("the snapshot"))?;
    let data = file.data.unwrap_or_default();
    if data.is_empty() || crc32c::crc32c(&data) != file.crc.unwrap_or_default() {
        return Err(unreadable("the snapshot, whose checksum does not fit,"));
    }
    Snapshot::decode(data).map_err(|_| unreadable("the snapshot"))
}

/// The bytes of a file.
pub fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let data = snapshot.encode_to_vec();
    SnapFile {
        crc: Some(crc32c::crc32c(&data)),
        data: Some(data.into()),
    }
    .encode_to_vec()
}

/// True where the store of a snap file holds what clients of etcd's second API wrote.
pub fn has_old_data(snapshot: &Snapshot) -> Result<bool, Error> {
    let data = snapshot.data.as_deref().unwrap_or_default();
    if data.is_empty() {
        return Ok(false);
    }
    let store: Store = serde_json::from_slice(data).map_err(|_| Error::Unreadable {
        what: "the members in the snapshot",
    })?;
    let holds = |(name, node): (&String, &Node)| match name.as_str() {
        MEMBERS => false,
        // Empty lists of users and roles stay where there were some.
        PERMISSIONS => node.each().any(|(_, child)| child.each().next().is_some()),
        _ => node.each().next().is_some(),
    };
    Ok(store.root.each().any(holds))
}

const MEMBERS: &str = "0";
const KEYS: &str = "1";
const PERMISSIONS: &str = "2";
/// The newest version of such a store.
const STORE_VERSION: u64 = 2;
/// As Go writes the absence of a time.
const NEVER: &str = "0001-01-01T00:00:00Z";

#[derive(Serialize, Deserialize)]
struct Store {
    #[serde(rename = "Root")]
    root: Node,
    #[serde(rename = "CurrentIndex", default)]
    current_index: u64,
    #[serde(rename = "CurrentVersion", default)]
    current_version: u64,
}

#[derive(Serialize, Deserialize, Default)]
struct Node {
    #[serde(rename = "Path", default)]
    path: String,
    #[serde(rename = "CreatedIndex", default)]
    created_index: u64,
    #[serde(rename = "ModifiedIndex", default)]
    modified_index: u64,
    #[serde(rename = "ExpireTime", default)]
    expire_time: String,
    #[serde(rename = "Value", default)]
    value: String,
    /// None for a file.
    #[serde(rename = "Children", default)]
    children: Option<BTreeMap<String, Node>>,
}

impl Node {
    fn each(&self) -> impl Iterator<Item = (&String, &Self)> {
        self.children.iter().flatten()
    }

    fn dir(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            expire_time: NEVER.to_owned(),
            children: Some(BTreeMap::new()),
            ..Self::default()
        }
    }

    /// Makes a file below this directory, with the directories above it.
    fn put(&mut self, names: &[&str], value: &str) {
        let Some((first, rest)) = names.split_first() else {
            value.clone_into(&mut self.value);
            return;
        };
        let path = format!("{}/{first}", self.path.trim_end_matches('/'));
        let children = self.children.get_or_insert_default();
        let child = children
            .entry((*first).to_owned())
            .or_insert_with(|| Self::dir(&path));
        if rest.is_empty() {
            child.children = None;
        }
        child.put(rest, value);
    }
}

#[derive(Serialize)]
struct RaftAttributes<'a> {
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
}

#[derive(Serialize)]
struct Attributes<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[String]>::is_empty")]
    client_urls: &'a [String],
}

/// The members as a snap file's data.
pub fn store(
    members: &[Member],
    removed: &[u64],
    version: Option<&str>,
) -> serde_json::Result<Vec<u8>> {
    let mut root = Node::dir("/");
    for name in [MEMBERS, KEYS] {
        let child = Node::dir(&format!("/{name}"));
        root.children
            .get_or_insert_default()
            .insert(name.to_owned(), child);
    }
    for member in members {
        let id = format!("{:x}", member.id);
        let raft = member.raft_attributes.clone().unwrap_or_default();
        let raft = serde_json::to_string(&RaftAttributes {
            peer_urls: &raft.peer_urls,
            is_learner: raft.is_learner,
        })?;
        root.put(&[MEMBERS, "members", &id, "raftAttributes"], &raft);
        let attributes = member.member_attributes.clone().unwrap_or_default();
        if !attributes.name.is_empty() {
            let attributes = serde_json::to_string(&Attributes {
                name: &attributes.name,
                client_urls: &attributes.client_urls,
            })?;
            root.put(&[MEMBERS, "members", &id, "attributes"], &attributes);
        }
    }
    for id in removed {
        root.put(&[MEMBERS, "removed_members", &format!("{id:x}")], "");
    }
    if let Some(version) = version {
        root.put(&[MEMBERS, "version"], version);
    }
    serde_json::to_vec(&Store {
        root,
        current_index: 0,
        current_version: STORE_VERSION,
    })
}
