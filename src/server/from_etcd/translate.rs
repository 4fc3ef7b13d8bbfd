//! Entries of etcd's raft log as entries of ours, and back.
//!
//! Requests are the same in both, `InternalRaftRequest`. Others are:
//! - changes of membership, which etcd describes in JSON, and numbers otherwise than raft-rs;
//! - what etcd up to 3.5 proposes in the form of its second API: a member's name and client URLs,
//!   and the cluster's version.

use bytes::Bytes;
use prost::Message;

use crate::backup::applied;
use crate::backup::etcd;
use crate::backup::wal::message::{self, change_kind, entry_kind};
use crate::proto::etcdserverpb::{DowngradeVersionTestRequest, InternalRaftRequest};
use crate::proto::etchedpeer::{MemberChange, Nothing, member_change::Change};
use crate::proto::membershippb::{
    Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest, Member, RaftAttributes,
};
use crate::raft::log::to_disk;
use crate::raft::{CommittedKind, Entry, EntryType, output};
use crate::replica::proposal::conf_change;
use crate::state::machine::decode_request;
use crate::storage::raft_log::LogEntry;

/// Why an entry cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untranslatable {
    #[error("it cannot be read")]
    Unreadable,
    #[error("it is a write of etcd's second API")]
    OldData,
}

/// An entry of etcd as one of ours. `max_learners` is the limit that etcd has from its flags, and
/// we from the entry.
pub fn entry(entry: &message::Entry, max_learners: u32) -> Result<LogEntry, Untranslatable> {
    let data = entry.data.clone().unwrap_or_default();
    let (kind, data) = match entry.kind.unwrap_or_default() {
        entry_kind::NORMAL if data.is_empty() => (EntryType::EntryNormal, Vec::new()),
        entry_kind::NORMAL => (EntryType::EntryNormal, request(data)?),
        entry_kind::CONF_CHANGE => {
            let change = message::ConfChange::decode(data)
                .ok()
                .and_then(|change| member_change(&change, max_learners))
                .ok_or(Untranslatable::Unreadable)?;
            let change = prost_11::Message::encode_to_vec(&conf_change(&change));
            (EntryType::EntryConfChange, change)
        }
        _ => return Err(Untranslatable::Unreadable),
    };
    Ok(to_disk(&Entry {
        entry_type: kind as i32,
        term: entry.term.unwrap_or_default(),
        index: entry.index.unwrap_or_default(),
        data,
        ..Default::default()
    }))
}

/// A change of membership; `None` for what no etcd proposes.
fn member_change(change: &message::ConfChange, max_learners: u32) -> Option<MemberChange> {
    /// What a change says beside the member.
    #[derive(serde::Deserialize)]
    struct Context {
        #[serde(rename = "isPromote", default)]
        is_promote: bool,
    }
    let id = change.node_id.unwrap_or_default();
    let context = change.context.as_deref().unwrap_or_default();
    let raft = || {
        let member = applied::member(context).filter(|member| member.id == id)?;
        member.raft_attributes
    };
    let is_promote = || {
        let context: Context = serde_json::from_slice(context).ok()?;
        Some(context.is_promote)
    };
    let what = match change.kind.unwrap_or_default() {
        change_kind::REMOVE_NODE => Change::Remove(Nothing {}),
        change_kind::UPDATE_NODE => Change::Update(raft()?),
        change_kind::ADD_NODE if is_promote()? => Change::Promote(Nothing {}),
        change_kind::ADD_NODE => Change::Add(RaftAttributes {
            is_learner: false,
            ..raft()?
        }),
        change_kind::ADD_LEARNER_NODE => Change::Add(RaftAttributes {
            is_learner: true,
            ..raft()?
        }),
        _ => return None,
    };
    Some(MemberChange {
        member_id: id,
        change: Some(what),
        max_learners,
        request_id: 0,
    })
}

/// The second field of an entry: that of a request within one of the third API, or a field of one
/// of the second.
#[derive(Clone, PartialEq, prost::Message)]
struct Form {
    #[prost(bytes = "bytes", optional, tag = "2")]
    second: Option<Bytes>,
}

/// `etcdserverpb.Request`, as far as it matters.
#[derive(Clone, PartialEq, prost::Message)]
struct OldRequest {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(string, tag = "3")]
    path: String,
    #[prost(string, tag = "4")]
    value: String,
}

impl OldRequest {
    fn parse(bytes: Bytes) -> Option<Self> {
        let request = Self::decode(bytes).ok()?;
        let methods = ["PUT", "POST", "DELETE", "QGET", "GET", "HEAD", "SYNC"];
        methods
            .contains(&request.method.as_str())
            .then_some(request)
    }
}

fn request(data: Bytes) -> Result<Vec<u8>, Untranslatable> {
    let form = Form::decode(data.clone()).map_err(|_| Untranslatable::Unreadable)?;
    match form.second {
        Some(second) => {
            let old = OldRequest::parse(data).or_else(|| OldRequest::parse(second));
            old_request(&old.ok_or(Untranslatable::Unreadable)?)
        }
        None => match decode_request(data.clone()) {
            Ok(_) => Ok(data.into()),
            Err(_) => Err(Untranslatable::Unreadable),
        },
    }
}

const MEMBERS_PATH: &str = "/0/members/";
const ATTRIBUTES: &str = "/attributes";
const VERSION_PATH: &str = "/0/version";

/// A request of the second API as one of the third.
fn old_request(old: &OldRequest) -> Result<Vec<u8>, Untranslatable> {
    let mut request = InternalRaftRequest {
        id: old.id,
        ..Default::default()
    };
    let member = || {
        old.path
            .strip_prefix(MEMBERS_PATH)?
            .strip_suffix(ATTRIBUTES)
    };
    match (old.method.as_str(), member()) {
        ("PUT", Some(id)) => {
            request.cluster_member_attr_set =
                Some(attributes(id, &old.value).ok_or(Untranslatable::Unreadable)?);
        }
        ("PUT", None) if old.path == VERSION_PATH => {
            let ver = old.value.clone();
            request.cluster_version_set = Some(ClusterVersionSetRequest { ver });
        }
        // It ages keys of the second API, and asks for some.
        ("SYNC" | "QGET" | "GET" | "HEAD", _) => {
            // The one without an effect: an entry without a byte would be a leader's first.
            request.downgrade_version_test = Some(DowngradeVersionTestRequest::default());
        }
        _ => return Err(Untranslatable::OldData),
    }
    Ok(request.encode_to_vec())
}

fn attributes(id: &str, json: &str) -> Option<ClusterMemberAttrSetRequest> {
    #[derive(serde::Deserialize)]
    struct Stored {
        #[serde(default)]
        name: String,
        #[serde(rename = "clientURLs")]
        client_urls: Option<Vec<String>>,
    }
    let stored: Stored = serde_json::from_str(json).ok()?;
    Some(ClusterMemberAttrSetRequest {
        member_id: u64::from_str_radix(id, 16).ok()?,
        member_attributes: Some(Attributes {
            name: stored.name,
            client_urls: stored.client_urls.unwrap_or_default(),
        }),
    })
}

/// An entry of ours as one of etcd. `known` finds a member that is promoted, which etcd's entry
/// describes whole; `None` for an entry that cannot be read.
pub fn entry_of_etcd(
    logged: &LogEntry,
    known: &dyn Fn(u64) -> Option<Member>,
) -> Option<message::Entry> {
    let committed = output::committed(logged)?;
    let (kind, data) = match committed.kind {
        CommittedKind::Empty => (entry_kind::NORMAL, None),
        CommittedKind::Request(bytes) => (entry_kind::NORMAL, Some(bytes)),
        CommittedKind::ConfChange(change) => {
            let change = MemberChange::decode(change.context.as_slice()).ok()?;
            let change = conf_change_of_etcd(change, known)?;
            (entry_kind::CONF_CHANGE, Some(change.encode_to_vec().into()))
        }
    };
    Some(message::Entry {
        kind: Some(kind),
        term: Some(committed.term),
        index: Some(committed.index),
        data,
    })
}

fn conf_change_of_etcd(
    change: MemberChange,
    known: &dyn Fn(u64) -> Option<Member>,
) -> Option<message::ConfChange> {
    let id = change.member_id;
    let json = |raft| {
        etcd::member(&Member {
            id,
            raft_attributes: Some(raft),
            member_attributes: None,
        })
    };
    let (kind, context) = match change.change? {
        Change::Remove(_) => (change_kind::REMOVE_NODE, None),
        Change::Update(raft) => (change_kind::UPDATE_NODE, Some(json(raft))),
        Change::Add(raft) if raft.is_learner => (change_kind::ADD_LEARNER_NODE, Some(json(raft))),
        Change::Add(raft) => (change_kind::ADD_NODE, Some(json(raft))),
        Change::Promote(_) => {
            let known = known(id).and_then(|member| member.raft_attributes);
            let mut promoted = json(RaftAttributes {
                is_learner: false,
                ..known.unwrap_or_default()
            });
            // Into the object, behind its last field.
            promoted.pop();
            promoted.extend_from_slice(br#","isPromote":true}"#);
            (change_kind::ADD_NODE, Some(promoted))
        }
    };
    Some(message::ConfChange {
        id: Some(change.request_id),
        kind: Some(kind),
        node_id: Some(id),
        context: context.map(Bytes::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::PutRequest;
    use crate::raft::output::committed;

    fn of_etcd(kind: i32, data: Vec<u8>) -> message::Entry {
        message::Entry {
            kind: Some(kind),
            term: Some(3),
            index: Some(9),
            data: (!data.is_empty()).then(|| data.into()),
        }
    }

    fn request_of(entry: &message::Entry) -> InternalRaftRequest {
        let ours = super::entry(entry, 1).expect("is taken");
        assert_eq!((ours.index, ours.term), (9, 3));
        match committed(&ours).expect("is read").kind {
            CommittedKind::Request(bytes) => decode_request(bytes).expect("is a request"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_are_taken_as_they_are() {
        let put = InternalRaftRequest {
            id: 7,
            put: Some(PutRequest {
                key: "k".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let entry = of_etcd(entry_kind::NORMAL, put.encode_to_vec());
        assert_eq!(request_of(&entry), put);
        let back = entry_of_etcd(&super::entry(&entry, 1).expect("is taken"), &|_| None);
        assert_eq!(back, Some(entry));
        let first = of_etcd(entry_kind::NORMAL, Vec::new());
        let ours = super::entry(&first, 1).expect("is taken");
        let kind = committed(&ours).expect("is read").kind;
        assert!(matches!(kind, CommittedKind::Empty));
        assert_eq!(entry_of_etcd(&ours, &|_| None), Some(first));
    }

    #[test]
    fn requests_of_the_second_api_are_those_of_the_third() {
        let old = |method: &str, path: &str, value: &str| {
            OldRequest {
                id: 5,
                method: method.to_owned(),
                path: path.to_owned(),
                value: value.to_owned(),
            }
            .encode_to_vec()
        };
        let named = old(
            "PUT",
            "/0/members/ab/attributes",
            r#"{"name":"n","clientURLs":["http://c:1"]}"#,
        );
        let within = Form {
            second: Some(named.clone().into()),
        };
        for data in [named, within.encode_to_vec()] {
            let request = request_of(&of_etcd(entry_kind::NORMAL, data));
            let set = request.cluster_member_attr_set.expect("is there");
            assert_eq!(set.member_id, 0xab);
            let attributes = set.member_attributes.expect("is there");
            assert_eq!(attributes.name, "n");
            assert_eq!(attributes.client_urls, ["http://c:1"]);
            assert_eq!(request.id, 5);
        }
        let version = old("PUT", VERSION_PATH, "3.5.0");
        let request = request_of(&of_etcd(entry_kind::NORMAL, version));
        assert_eq!(request.cluster_version_set.expect("is there").ver, "3.5.0");
        let request = request_of(&of_etcd(entry_kind::NORMAL, old("SYNC", "", "")));
        assert!(request.downgrade_version_test.is_some());
        for (data, expected) in [
            (old("PUT", "/1/key", "v"), Untranslatable::OldData),
            (old("DELETE", "/1/key", ""), Untranslatable::OldData),
            (old("NONE", "/1/key", ""), Untranslatable::Unreadable),
            (
                old("PUT", "/0/members/ab/attributes", "{"),
                Untranslatable::Unreadable,
            ),
            (vec![0xff; 9], Untranslatable::Unreadable),
        ] {
            let refused = super::entry(&of_etcd(entry_kind::NORMAL, data), 1);
            assert_eq!(refused.err(), Some(expected));
        }
    }

    /// As etcd 3.7 writes them.
    #[test]
    fn changes_of_membership_are_renumbered() {
        let raft = |learner| RaftAttributes {
            peer_urls: vec!["http://a:1".to_owned()],
            is_learner: learner,
        };
        let member = |learner| Member {
            id: 0xab,
            raft_attributes: Some(raft(learner)),
            member_attributes: None,
        };
        let plain = r#"{"id":171,"peerURLs":["http://a:1"]}"#;
        let learner = r#"{"id":171,"peerURLs":["http://a:1"],"isLearner":true}"#;
        let promoted = r#"{"id":171,"peerURLs":["http://a:1"],"isPromote":true}"#;
        // Kind, its number in raft-rs, whether the member is known.
        for (kind, context, ours, expected, known) in [
            (0, plain, 0, Change::Add(raft(false)), false),
            (3, learner, 2, Change::Add(raft(true)), false),
            (0, promoted, 0, Change::Promote(Nothing {}), true),
            (1, "", 1, Change::Remove(Nothing {}), true),
            (2, plain, 0, Change::Update(raft(false)), true),
        ] {
            let change = message::ConfChange {
                id: Some(0),
                kind: Some(kind),
                node_id: Some(0xab),
                context: (!context.is_empty()).then(|| context.into()),
            };
            let given = of_etcd(entry_kind::CONF_CHANGE, change.encode_to_vec());
            let logged = super::entry(&given, 4).expect("is taken");
            let CommittedKind::ConfChange(found) = committed(&logged).expect("reads").kind else {
                panic!("{context} is a change");
            };
            assert_eq!(found.change_type, ours, "{context}");
            assert_eq!(found.node_id, 0xab);
            let decoded = MemberChange::decode(found.context.as_slice()).expect("reads");
            assert_eq!(decoded.change, Some(expected), "{context}");
            assert_eq!(decoded.max_learners, 4);
            let back = entry_of_etcd(&logged, &|_| known.then(|| member(true)));
            assert_eq!(back, Some(given), "{context}");
        }
        for (kind, context) in [(4, plain), (0, "{}"), (0, ""), (2, r#"{"id":1}"#)] {
            let change = message::ConfChange {
                id: None,
                kind: Some(kind),
                node_id: Some(0xab),
                context: Some(context.into()),
            };
            let given = of_etcd(entry_kind::CONF_CHANGE, change.encode_to_vec());
            assert_eq!(super::entry(&given, 4), Err(Untranslatable::Unreadable));
        }
        let joint = of_etcd(2, Vec::new());
        assert_eq!(super::entry(&joint, 4), Err(Untranslatable::Unreadable));
    }
}
