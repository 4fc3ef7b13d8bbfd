//! The entries of a raft log, one line of JSON each.

use std::fmt::Debug;
use std::io::{self, Write};
use std::ops::RangeInclusive;

use serde::Serialize;

use super::check::PORTION_BYTES;
use super::dir;
use super::error::Result;
use crate::config::Offline;
use crate::proto::etcdserverpb::InternalRaftRequest;
use crate::proto::text;
use crate::raft::{CommittedKind, ConfChange, ConfChangeType, output};
use crate::server;
use crate::state::machine;
use crate::storage::raft_log::{LogEntry, Stretch};

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    term: u64,
    index: u64,
    /// `empty`, `request`, the change of a member, or `damaged`.
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    request: String,
}

pub fn print(command: &Offline, indexes: RangeInclusive<u64>, out: &mut dyn Write) -> Result<()> {
    let stopped = dir::open(command)?;
    // Damage is said before anything is printed.
    let (log, _) = stopped.log()?;
    for Stretch {
        reader,
        indexes: held,
    } in stopped.log_history()?
    {
        let mut next = held.start.max(*indexes.start());
        let end = held.end.min(log.last_index() + 1);
        let end = end.min(indexes.end().saturating_add(1));
        while next < end {
            let entries = reader
                .read(next, end, PORTION_BYTES)
                .map_err(server::Error::from)?;
            let Some(last) = entries.last() else {
                break;
            };
            next = last.index + 1;
            for entry in &entries {
                line(entry, out)?;
            }
        }
    }
    Ok(())
}

fn line(entry: &LogEntry, out: &mut dyn Write) -> io::Result<()> {
    let (kind, request) = match output::committed(entry).map(|committed| committed.kind) {
        Some(CommittedKind::Empty) => ("empty", String::new()),
        Some(CommittedKind::Request(bytes)) => match machine::decode_request(bytes) {
            Ok(request) => ("request", shown(&request)),
            Err(_) => ("damaged", String::new()),
        },
        Some(CommittedKind::ConfChange(change)) => (kind_of(&change), member(&change)),
        None => ("damaged", String::new()),
    };
    let line = Line {
        term: entry.term,
        index: entry.index,
        kind,
        request,
    };
    serde_json::to_writer(&mut *out, &line)?;
    writeln!(out)
}

/// etcd's text; of what concerns users and roles, which that leaves out, the message without its
/// secrets.
fn shown(request: &InternalRaftRequest) -> String {
    let about_users: [Option<&dyn Debug>; 12] = [
        debug(&request.auth_enable),
        debug(&request.auth_disable),
        debug(&request.authenticate),
        debug(&request.auth_user_add),
        debug(&request.auth_user_delete),
        debug(&request.auth_user_change_password),
        debug(&request.auth_user_grant_role),
        debug(&request.auth_user_revoke_role),
        debug(&request.auth_role_add),
        debug(&request.auth_role_delete),
        debug(&request.auth_role_grant_permission),
        debug(&request.auth_role_revoke_permission),
    ];
    let text = text::entry(request);
    match about_users.into_iter().flatten().next() {
        Some(message) => format!("{text} {message:?}"),
        None => text,
    }
}

fn debug<T: Debug>(message: &Option<T>) -> Option<&dyn Debug> {
    message.as_ref().map(|message| message as &dyn Debug)
}

/// raft's name.
fn kind_of(change: &ConfChange) -> &'static str {
    match ConfChangeType::from_i32(change.change_type) {
        Some(ConfChangeType::AddNode) => "ConfChangeAddNode",
        Some(ConfChangeType::RemoveNode) => "ConfChangeRemoveNode",
        Some(ConfChangeType::AddLearnerNode) => "ConfChangeAddLearnerNode",
        None => "damaged",
    }
}

fn member(change: &ConfChange) -> String {
    format!("member:{:x}", change.node_id)
}
