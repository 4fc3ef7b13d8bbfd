//! Requests as text, for the log alone: etcd's form, so that what reads etcd's log reads this one.
//!
//! Values are never shown, only how long they are: they may be secret. etcd prints messages that
//! hide a value in an older form of protobuf's text (a blank behind each field, bytes in octal)
//! than the rest; between two fields of the rest it writes one blank or two, by chance of its
//! build, where here is one.

mod auth;
mod fields;

use self::fields::Fields;
pub use self::fields::quoted;
use super::etcdserverpb::{
    AlarmRequest, Compare, DeleteRangeRequest, InternalRaftRequest, PutRequest, RangeRequest,
    RequestHeader, RequestOp, TxnRequest, compare::TargetUnion, request_op::Request,
};
use super::membershippb::ClusterMemberAttrSetRequest;

/// A put without its value.
pub fn put(request: &PutRequest) -> String {
    Fields::older()
        .bytes("key", &request.key)
        .number("value_size", request.value.len())
        .number("lease", request.lease)
        .flag("prev_kv", request.prev_kv)
        .flag("ignore_value", request.ignore_value)
        .flag("ignore_lease", request.ignore_lease)
        .text
}

pub fn range(request: &RangeRequest) -> String {
    Fields::newer()
        .bytes("key", &request.key)
        .bytes("range_end", &request.range_end)
        .number("limit", request.limit)
        .number("revision", request.revision)
        .word("sort_order", request.sort_order, || {
            request.sort_order().as_str_name()
        })
        .word("sort_target", request.sort_target, || {
            request.sort_target().as_str_name()
        })
        .flag("serializable", request.serializable)
        .flag("keys_only", request.keys_only)
        .flag("count_only", request.count_only)
        .number("min_mod_revision", request.min_mod_revision)
        .number("max_mod_revision", request.max_mod_revision)
        .number("min_create_revision", request.min_create_revision)
        .number("max_create_revision", request.max_create_revision)
        .text
}

pub fn delete_range(request: &DeleteRangeRequest) -> String {
    Fields::newer()
        .bytes("key", &request.key)
        .bytes("range_end", &request.range_end)
        .flag("prev_kv", request.prev_kv)
        .text
}

/// A transaction without its values.
pub fn txn(request: &TxnRequest) -> String {
    let join = |parts: Vec<String>| parts.join(" ");
    let ops = |ops: &[RequestOp]| join(ops.iter().map(operation).collect());
    format!(
        "compare:<{}> success:<{}> failure:<{}>",
        join(request.compare.iter().map(compare).collect()),
        ops(&request.success),
        ops(&request.failure)
    )
}

/// What an entry of the log asks.
pub fn entry(request: &InternalRaftRequest) -> String {
    let who = request.header.as_ref().map(header).unwrap_or_default();
    if let Some(grant) = &request.lease_grant {
        let (ttl, id) = (grant.ttl, grant.id);
        return format!("header:<{who}> lease_grant:<ttl:{ttl}-second id:{id:016x}>");
    }
    if let Some(revoke) = &request.lease_revoke {
        return format!("header:<{who}> lease_revoke:<id:{:016x}>", revoke.id);
    }
    if let Some(request) = &request.put {
        return format!("header:<{who}> put:<{}>", put(request));
    }
    if let Some(request) = &request.txn {
        return format!("header:<{who}> txn:<{}>", txn(request));
    }
    if let Some(asked) = auth::hiding(request) {
        return format!("header:<{who}> {asked}");
    }
    let asked = |name, text: Option<String>| text.map(|text| format!(" {name}:{{{text}}}"));
    let rest = asked("range", request.range.as_ref().map(range))
        .or_else(|| {
            asked(
                "delete_range",
                request.delete_range.as_ref().map(delete_range),
            )
        })
        .or_else(|| asked("alarm", request.alarm.as_ref().map(alarm)))
        .or_else(|| {
            let compaction = request.compaction.as_ref()?;
            let text = Fields::newer()
                .number("revision", compaction.revision)
                .flag("physical", compaction.physical);
            asked("compaction", Some(text.text))
        })
        .or_else(|| {
            let checkpoints = &request.lease_checkpoint.as_ref()?.checkpoints;
            let text = checkpoints
                .iter()
                .fold(Fields::newer(), |text, checkpoint| {
                    let one = Fields::newer()
                        .number("ID", checkpoint.id)
                        .number("remaining_TTL", checkpoint.remaining_ttl);
                    text.message("checkpoints", &one.text)
                });
            asked("lease_checkpoint", Some(text.text))
        })
        .or_else(|| {
            let set = request.cluster_version_set.as_ref()?;
            let text = Fields::newer().bytes("ver", set.ver.as_bytes());
            asked("cluster_version_set", Some(text.text))
        })
        .or_else(|| {
            let set = request.cluster_member_attr_set.as_ref();
            asked("cluster_member_attr_set", set.map(attributes))
        })
        .or_else(|| {
            let set = request.downgrade_info_set.as_ref()?;
            let text = Fields::newer()
                .flag("enabled", set.enabled)
                .bytes("ver", set.ver.as_bytes());
            asked("downgrade_info_set", Some(text.text))
        })
        .or_else(|| {
            let test = request.downgrade_version_test.as_ref()?;
            let text = Fields::newer().bytes("ver", test.ver.as_bytes());
            asked("downgrade_version_test", Some(text.text))
        })
        .or_else(|| {
            let (name, text) = auth::plain(request)?;
            asked(name, Some(text))
        });
    format!("header:{{{who}}}{}", rest.unwrap_or_default())
}

fn header(header: &RequestHeader) -> String {
    // Without a name the revision is a mark of members.
    let of_user = match header.username.as_str() {
        "" => 0,
        _ => header.auth_revision,
    };
    Fields::newer()
        .number("ID", header.id)
        .bytes("username", header.username.as_bytes())
        .number("auth_revision", of_user)
        .text
}

fn alarm(request: &AlarmRequest) -> String {
    Fields::newer()
        .word("action", request.action, || request.action().as_str_name())
        .number("memberID", request.member_id)
        .word("alarm", request.alarm, || request.alarm().as_str_name())
        .text
}

fn attributes(request: &ClusterMemberAttrSetRequest) -> String {
    let attributes = request.member_attributes.as_ref().map(|attributes| {
        let name = Fields::newer().bytes("name", attributes.name.as_bytes());
        let urls = attributes.client_urls.iter();
        urls.fold(name, |text, url| text.bytes("client_urls", url.as_bytes()))
    });
    let id = Fields::newer().number("member_ID", request.member_id);
    match attributes {
        Some(attributes) => id.message("member_attributes", &attributes.text).text,
        None => id.text,
    }
}

fn operation(op: &RequestOp) -> String {
    match &op.request {
        Some(Request::RequestPut(request)) => format!("request_put:<{}>", put(request)),
        Some(Request::RequestTxn(request)) => format!("request_txn:<{}>", txn(request)),
        Some(Request::RequestRange(request)) => format!("request_range:{{{}}}", range(request)),
        Some(Request::RequestDeleteRange(request)) => {
            format!("request_delete_range:{{{}}}", delete_range(request))
        }
        None => String::new(),
    }
}

fn compare(compare: &Compare) -> String {
    let hides = matches!(compare.target_union, Some(TargetUnion::Value(_)));
    let fields = match hides {
        true => Fields::older(),
        false => Fields::newer(),
    };
    let fields = fields
        .word("result", compare.result, || compare.result().as_str_name())
        .word("target", compare.target, || compare.target().as_str_name())
        .bytes("key", &compare.key);
    let fields = match &compare.target_union {
        Some(TargetUnion::Value(value)) => fields.number("value_size", value.len()),
        // One that was chosen is shown, be it 0.
        Some(TargetUnion::Version(version)) => fields.field("version", version),
        Some(TargetUnion::CreateRevision(revision)) => fields.field("create_revision", revision),
        Some(TargetUnion::ModRevision(revision)) => fields.field("mod_revision", revision),
        Some(TargetUnion::Lease(lease)) => fields.field("lease", lease),
        None => fields,
    };
    fields.bytes("range_end", &compare.range_end).text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::{
        CompactionRequest, LeaseGrantRequest, LeaseRevokeRequest,
        compare::{CompareResult, CompareTarget},
        range_request::SortOrder,
    };
    use crate::proto::membershippb::Attributes;

    /// Of a client's request number 7.
    fn entry_of(fill: impl FnOnce(&mut InternalRaftRequest)) -> String {
        let mut request = InternalRaftRequest {
            header: Some(RequestHeader {
                id: 7,
                ..Default::default()
            }),
            ..Default::default()
        };
        fill(&mut request);
        entry(&request)
    }

    fn a_range() -> RangeRequest {
        RangeRequest {
            key: "a".into(),
            range_end: "b".into(),
            limit: 3,
            revision: 2,
            sort_order: SortOrder::Descend as i32,
            count_only: true,
            ..Default::default()
        }
    }

    #[test]
    fn messages_are_written_as_etcd_logs_them() {
        let put_a = PutRequest {
            key: "a".into(),
            value: "bcd".into(),
            ..Default::default()
        };
        let delete = DeleteRangeRequest {
            key: "a".into(),
            range_end: "b".into(),
            prev_kv: true,
        };
        let compared = |target: CompareTarget, union| Compare {
            result: CompareResult::Greater as i32,
            target: target as i32,
            key: "k".into(),
            target_union: Some(union),
            ..Default::default()
        };
        let op = |request| RequestOp {
            request: Some(request),
        };
        let a_txn = TxnRequest {
            compare: vec![
                compared(CompareTarget::Value, TargetUnion::Value("x".into())),
                compared(CompareTarget::Version, TargetUnion::Version(0)),
            ],
            success: vec![
                op(Request::RequestPut(put_a.clone())),
                op(Request::RequestDeleteRange(delete.clone())),
            ],
            failure: vec![op(Request::RequestRange(a_range()))],
        };
        let in_txn = "compare:<result:GREATER target:VALUE key:\"k\" value_size:1  \
            result:GREATER key:\"k\" version:0> \
            success:<request_put:<key:\"a\" value_size:3 > \
            request_delete_range:{key:\"a\" range_end:\"b\" prev_kv:true}> \
            failure:<request_range:{key:\"a\" range_end:\"b\" limit:3 revision:2 sort_order:DESCEND count_only:true}>";
        for (found, expected) in [
            (put(&put_a), "key:\"a\" value_size:3 ".to_owned()),
            (txn(&a_txn), in_txn.to_owned()),
            (
                entry_of(|request| request.put = Some(put_a.clone())),
                "header:<ID:7> put:<key:\"a\" value_size:3 >".to_owned(),
            ),
            (
                entry_of(|request| request.txn = Some(a_txn.clone())),
                format!("header:<ID:7> txn:<{in_txn}>"),
            ),
            (
                entry_of(|request| request.delete_range = Some(delete.clone())),
                "header:{ID:7} delete_range:{key:\"a\" range_end:\"b\" prev_kv:true}".to_owned(),
            ),
            (
                entry_of(|request| {
                    request.lease_grant = Some(LeaseGrantRequest { ttl: 100, id: 0x1f });
                }),
                "header:<ID:7> lease_grant:<ttl:100-second id:000000000000001f>".to_owned(),
            ),
            (
                entry_of(|request| request.lease_revoke = Some(LeaseRevokeRequest { id: 0x1f })),
                "header:<ID:7> lease_revoke:<id:000000000000001f>".to_owned(),
            ),
            (
                entry_of(|request| {
                    request.compaction = Some(CompactionRequest {
                        revision: 3,
                        physical: false,
                    });
                }),
                "header:{ID:7} compaction:{revision:3}".to_owned(),
            ),
            (
                entry_of(|request| {
                    request.cluster_member_attr_set = Some(ClusterMemberAttrSetRequest {
                        member_id: 5,
                        member_attributes: Some(Attributes {
                            name: "default".to_owned(),
                            client_urls: vec!["http://127.0.0.1:2379".to_owned()],
                        }),
                    });
                }),
                "header:{ID:7} cluster_member_attr_set:{member_ID:5 member_attributes:{name:\"default\" client_urls:\"http://127.0.0.1:2379\"}}"
                    .to_owned(),
            ),
        ] {
            assert_eq!(found, expected);
        }
    }

    /// Whatever an entry may ask, its line says what that is.
    #[test]
    fn every_kind_of_entry_is_named_and_shows_no_secret() {
        use prost::Message;
        use prost_reflect::{DescriptorPool, DynamicMessage, Kind, Value};
        let compiled = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
        let pool = DescriptorPool::decode(&compiled[..]).expect("what the build wrote");
        let entry = pool.get_message_by_name("etcdserverpb.InternalRaftRequest");
        let entry = entry.expect("etcd's");
        let mut kinds = 0;
        for field in entry.fields().filter(|field| field.name() != "header") {
            let Kind::Message(asked) = field.kind() else {
                continue;
            };
            let mut message = DynamicMessage::new(asked.clone());
            for text in asked.fields().filter(|text| text.kind() == Kind::String) {
                let value = match text.name() {
                    "password" | "hashedPassword" | "simple_token" => "secret",
                    _ => "plain",
                };
                if !text.is_list() {
                    message.set_field(&text, Value::String(value.to_owned()));
                }
            }
            let mut request = DynamicMessage::new(entry.clone());
            request.set_field(&field, Value::Message(message));
            let request = InternalRaftRequest::decode(&request.encode_to_vec()[..]);
            let line = super::entry(&request.expect("one of the kind"));
            let name = format!("}} {}:{{", field.name());
            let hiding = format!("> {}:<", field.name());
            assert!(line.contains(&name) || line.contains(&hiding), "{line}");
            assert!(!line.contains("secret"), "{line}");
            kinds += 1;
        }
        assert!(kinds > 25, "{kinds}");
    }
}
