//! The commands of scripts as requests.
//!
//! | command | request |
//! |---|---|
//! | `put K V [lease=N] [prev] [ignore_value] [ignore_lease]` | |
//! | `del RANGE [prev]` | |
//! | `get RANGE [rev=N] [limit=N] [sort=TARGET] [asc] [desc] [keys_only] [count_only] [min_mod=N] [max_mod=N] [min_create=N] [max_create=N]` | |
//! | `txn COMPARE... then OP... else OP...` | each in parentheses: `txn (mod a > 3) then (put a 1) else (txn then (get a..) else)` |
//! | `compact N` | |
//! | `grant ID TTL`, `revoke ID`, `checkpoint ID SECONDS` | |
//! | `alarm ACTION KIND MEMBER` | |
//! | `downgrade TARGET`, `downgrade cancel`, `downgrade test` | the last does nothing |
//! | `version TEXT`, `attributes MEMBER NAME URL` | the cluster's version, what a member says of itself |
//! | `as PROPOSER COMMAND` | a request whose header says so; see `proposer` |
//!
//! `auth_language` has those that are about users and roles.

use super::auth_language;
use crate::mvcc::tests::golden::{bytes, number};
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, Compare, DeleteRangeRequest,
    DowngradeVersionTestRequest, InternalRaftRequest, LeaseCheckpoint, LeaseCheckpointRequest,
    LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestHeader, RequestOp,
    TxnRequest, request_op::Request,
};
use crate::proto::membershippb::{
    Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest, DowngradeInfoSetRequest,
};
use crate::state::auth::verdict::MEMBER_REVISION;
use bytes::Bytes;

/// A word, or what stands in parentheses.
enum Node<'a> {
    Word(&'a str),
    List(Vec<Node<'a>>),
}

fn parse<'a>(words: &mut impl Iterator<Item = &'a str>) -> Vec<Node<'a>> {
    let mut nodes = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "(" => nodes.push(Node::List(parse(words))),
            ")" => break,
            word => nodes.push(Node::Word(word)),
        }
    }
    nodes
}

fn words<'a>(nodes: &[Node<'a>]) -> Vec<&'a str> {
    let word = |node: &Node<'a>| match node {
        Node::Word(word) => *word,
        Node::List(_) => panic!("a list where a word should be"),
    };
    nodes.iter().map(word).collect()
}

fn int<T: std::str::FromStr>(word: &str) -> T {
    word.parse()
        .unwrap_or_else(|_| panic!("not a number: {word}"))
}

/// What a range is on the wire.
pub fn wire_range(text: &str) -> (Bytes, Bytes) {
    match text.split_once("..") {
        None => (bytes(text), Bytes::new()),
        Some((start, "")) => (bytes(start), Bytes::from_static(b"\0")),
        Some((start, end)) => (bytes(start), bytes(end)),
    }
}

fn put(words: &[&str]) -> PutRequest {
    PutRequest {
        key: bytes(words[0]),
        value: bytes(words[1]),
        lease: number(words, "lease").unwrap_or_default(),
        prev_kv: words.contains(&"prev"),
        ignore_value: words.contains(&"ignore_value"),
        ignore_lease: words.contains(&"ignore_lease"),
    }
}

fn delete_range(words: &[&str]) -> DeleteRangeRequest {
    let (key, range_end) = wire_range(words[0]);
    DeleteRangeRequest {
        key,
        range_end,
        prev_kv: words.contains(&"prev"),
    }
}

pub fn range(words: &[&str]) -> RangeRequest {
    let (key, range_end) = wire_range(words[0]);
    let option = |name| number(words, name).unwrap_or_default();
    let target = words.iter().find_map(|word| word.strip_prefix("sort="));
    let order = match (words.contains(&"asc"), words.contains(&"desc")) {
        (true, _) => SortOrder::Ascend,
        (_, true) => SortOrder::Descend,
        _ => SortOrder::None,
    };
    RangeRequest {
        key,
        range_end,
        limit: option("limit"),
        revision: option("rev"),
        sort_order: order as i32,
        sort_target: match target {
            None | Some("key") => SortTarget::Key as i32,
            Some("version") => SortTarget::Version as i32,
            Some("create") => SortTarget::Create as i32,
            Some("mod") => SortTarget::Mod as i32,
            Some("value") => SortTarget::Value as i32,
            Some(other) => int(other),
        },
        serializable: false,
        keys_only: words.contains(&"keys_only"),
        count_only: words.contains(&"count_only"),
        min_mod_revision: option("min_mod"),
        max_mod_revision: option("max_mod"),
        min_create_revision: option("min_create"),
        max_create_revision: option("max_create"),
    }
}

fn compare(words: &[&str]) -> Compare {
    let [target, keys, result, value] = words else {
        panic!("not a compare: {words:?}");
    };
    let (key, range_end) = wire_range(keys);
    let (target, union) = match *target {
        "version" => (CompareTarget::Version, TargetUnion::Version(int(value))),
        "create" => (
            CompareTarget::Create,
            TargetUnion::CreateRevision(int(value)),
        ),
        "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(int(value))),
        "value" => (CompareTarget::Value, TargetUnion::Value(bytes(value))),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(int(value))),
        other => panic!("not a target: {other}"),
    };
    Compare {
        result: match *result {
            "=" => CompareResult::Equal,
            "!=" => CompareResult::NotEqual,
            ">" => CompareResult::Greater,
            "<" => CompareResult::Less,
            other => panic!("not a comparison: {other}"),
        } as i32,
        target: target as i32,
        key,
        range_end,
        target_union: Some(union),
    }
}

fn txn(nodes: &[Node<'_>]) -> TxnRequest {
    let mut request = TxnRequest::default();
    let mut part = 0;
    for node in nodes {
        match (node, part) {
            (Node::Word("then"), 0) => part = 1,
            (Node::Word("else"), 1) => part = 2,
            (Node::List(list), 0) => request.compare.push(compare(&words(list))),
            (Node::List(list), 1) => request.success.push(op(list)),
            (Node::List(list), 2) => request.failure.push(op(list)),
            _ => panic!("not a transaction"),
        }
    }
    request
}

fn op(nodes: &[Node<'_>]) -> RequestOp {
    let request = match &nodes[0] {
        Node::Word("txn") => Request::RequestTxn(txn(&nodes[1..])),
        Node::Word("put") => Request::RequestPut(put(&words(&nodes[1..]))),
        Node::Word("del") => Request::RequestDeleteRange(delete_range(&words(&nodes[1..]))),
        Node::Word("get") => Request::RequestRange(range(&words(&nodes[1..]))),
        _ => panic!("not an operation"),
    };
    RequestOp {
        request: Some(request),
    }
}

fn alarm(words: &[&str]) -> AlarmRequest {
    AlarmRequest {
        action: match words[0] {
            "get" => AlarmAction::Get,
            "activate" => AlarmAction::Activate,
            "deactivate" => AlarmAction::Deactivate,
            other => panic!("not an action: {other}"),
        } as i32,
        member_id: int(words[2]),
        alarm: AlarmType::from_str_name(words[1]).expect("an alarm") as i32,
    }
}

/// The header of `member`, `nobody` or `NAME@REVISION`.
pub fn proposer(who: &str) -> Option<RequestHeader> {
    let (username, auth_revision) = match who.split_once('@') {
        Some((name, revision)) => (name.to_owned(), int(revision)),
        None if who == "member" => (String::new(), MEMBER_REVISION),
        None if who == "nobody" => return None,
        None => panic!("not a proposer: {who}"),
    };
    Some(RequestHeader {
        username,
        auth_revision,
        ..Default::default()
    })
}

/// The request of a command.
pub fn request(command: &str) -> InternalRaftRequest {
    if let Some(rest) = command.strip_prefix("as ") {
        let (identity, command) = rest.split_once(' ').expect("a command");
        return InternalRaftRequest {
            header: proposer(identity),
            ..request(command)
        };
    }
    let spaced = command.replace('(', " ( ").replace(')', " ) ");
    let nodes = parse(&mut spaced.split_whitespace());
    let mut request = InternalRaftRequest::default();
    let Some((Node::Word(verb), rest)) = nodes.split_first() else {
        panic!("not a command");
    };
    if *verb == "txn" {
        request.txn = Some(txn(rest));
        return request;
    }
    let rest = words(rest);
    if auth_language::request(&[&[*verb], rest.as_slice()].concat(), &mut request) {
        return request;
    }
    match *verb {
        "put" => request.put = Some(put(&rest)),
        "del" => request.delete_range = Some(delete_range(&rest)),
        "compact" => {
            request.compaction = Some(CompactionRequest {
                revision: int(rest[0]),
                physical: false,
            });
        }
        "grant" => {
            request.lease_grant = Some(LeaseGrantRequest {
                id: int(rest[0]),
                ttl: int(rest[1]),
            });
        }
        "revoke" => request.lease_revoke = Some(LeaseRevokeRequest { id: int(rest[0]) }),
        "checkpoint" => {
            let checkpoint = LeaseCheckpoint {
                id: int(rest[0]),
                remaining_ttl: int(rest[1]),
            };
            request.lease_checkpoint = Some(LeaseCheckpointRequest {
                checkpoints: vec![checkpoint],
            });
        }
        "alarm" => request.alarm = Some(alarm(&rest)),
        "version" => {
            request.cluster_version_set = Some(ClusterVersionSetRequest {
                ver: rest[0].to_owned(),
            });
        }
        "downgrade" if rest[0] == "test" => {
            request.downgrade_version_test = Some(DowngradeVersionTestRequest::default());
        }
        "downgrade" => {
            let enabled = rest[0] != "cancel";
            request.downgrade_info_set = Some(DowngradeInfoSetRequest {
                enabled,
                ver: rest[0].to_owned(),
            });
        }
        "attributes" => {
            request.cluster_member_attr_set = Some(ClusterMemberAttrSetRequest {
                member_id: int(rest[0]),
                member_attributes: Some(Attributes {
                    name: rest[1].to_owned(),
                    client_urls: vec![rest[2].to_owned()],
                }),
            });
        }
        _ => panic!("not a command"),
    }
    request
}
