//! Answers as text.

use std::fmt::Write;

use super::auth_language;
use crate::error::Error;
use crate::mvcc::Change;
use crate::mvcc::tests::golden::{show_event, show_kv};
use crate::proto::etcdserverpb::{
    AlarmType, DeleteRangeResponse, PutResponse, RangeResponse, ResponseHeader, TxnResponse,
    response_op::Response as OpResponse,
};
use crate::state::Response;
use crate::state::auth::AuthEvent;
use crate::state::lease::LeaseEvent;

fn head(header: &Option<ResponseHeader>) -> String {
    let header = header.as_ref().expect("a header");
    let only_revision = ResponseHeader {
        revision: header.revision,
        ..Default::default()
    };
    assert_eq!(*header, only_revision);
    format!("revision {}", header.revision)
}

fn put(response: &PutResponse) -> String {
    let mut text = head(&response.header);
    if let Some(prev_kv) = &response.prev_kv {
        let prev_kv = prev_kv.decoded().expect("decodes");
        write!(text, " was {}", show_kv(&prev_kv)).expect("writes");
    }
    text + "\n"
}

fn delete_range(response: &DeleteRangeResponse) -> String {
    let mut text = format!("{} deleted {}\n", head(&response.header), response.deleted);
    for prev_kv in &response.prev_kvs {
        let prev_kv = prev_kv.decoded().expect("decodes");
        writeln!(text, "was {}", show_kv(&prev_kv)).expect("writes");
    }
    text
}

pub fn range(response: &RangeResponse) -> String {
    let mut text = format!("{} count {}", head(&response.header), response.count);
    if response.more {
        text.push_str(" more");
    }
    text.push('\n');
    let pairs = response.kvs.decoded().expect("decodes");
    assert_eq!(pairs.len(), response.kvs.len());
    for kv in pairs {
        writeln!(text, "{}", show_kv(&kv)).expect("writes");
    }
    text
}

pub fn txn(response: &TxnResponse) -> String {
    let branch = if response.succeeded { "then" } else { "else" };
    let mut text = format!("{} {branch}\n", head(&response.header));
    for op in &response.responses {
        let answer = match &op.response {
            Some(OpResponse::ResponsePut(response)) => format!("put {}", put(response)),
            Some(OpResponse::ResponseDeleteRange(response)) => {
                format!("del {}", delete_range(response))
            }
            Some(OpResponse::ResponseRange(response)) => format!("get {}", range(response)),
            Some(OpResponse::ResponseTxn(response)) => format!("txn {}", txn(response)),
            None => "nothing\n".to_owned(),
        };
        for line in answer.lines() {
            writeln!(text, "  {line}").expect("writes");
        }
    }
    text
}

/// An answer, as lines.
pub fn result(result: &Result<Response, Error>) -> String {
    let response = match result {
        Ok(response) => response,
        Err(error) => return format!("{error}\n"),
    };
    if let Some((header, text)) = auth_language::answer(response) {
        return format!("{}{text}\n", head(&header));
    }
    match response {
        Response::Put(response) => put(response),
        Response::DeleteRange(response) => delete_range(response),
        Response::Txn(response) => txn(response),
        Response::Compaction(response) => head(&response.header) + "\n",
        Response::LeaseGrant(response) => {
            let head = head(&response.header);
            format!("{head} lease {} ttl {}\n", response.id, response.ttl)
        }
        Response::LeaseRevoke(response) => head(&response.header) + "\n",
        Response::LeaseCheckpoint(response) => head(&response.header) + "\n",
        Response::Alarm(response) => {
            let mut text = head(&response.header) + "\n";
            for alarm in &response.alarms {
                let kind = AlarmType::try_from(alarm.alarm).expect("a known alarm");
                writeln!(text, "{} {}", kind.as_str_name(), alarm.member_id).expect("writes");
            }
            text
        }
        Response::Members(members) => {
            let mut text = String::new();
            for member in members {
                writeln!(text, "{member:?}").expect("writes");
            }
            text
        }
        Response::Done => "done\n".to_owned(),
        _ => unreachable!("answered above"),
    }
}

pub fn change(change: &Change) -> String {
    let event = change.to_event(true).decoded().expect("decodes");
    format!("{} {}\n", change.revision, show_event(&event))
}

pub fn lease_event(event: &LeaseEvent) -> String {
    match event {
        LeaseEvent::Granted(id, lease) => format!("granted {} ttl {}\n", id.0, lease.ttl_s),
        LeaseEvent::Revoked(id) => format!("revoked {}\n", id.0),
        LeaseEvent::Checkpointed(id, lease) => {
            format!(
                "checkpointed {} restarts with {}\n",
                id.0,
                lease.restart_ttl_s()
            )
        }
    }
}

pub fn auth_event(event: &AuthEvent) -> String {
    match event {
        AuthEvent::TokenIssued { token, user } => format!("token {token} of {user}\n"),
        AuthEvent::UserTokensRevoked { user } => format!("no tokens of {user}\n"),
        AuthEvent::AllTokensRevoked => "no tokens\n".to_owned(),
    }
}
