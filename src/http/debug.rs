//! /debug/vars: the command line and where raft stands, in the shape of Go's expvar.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::process;
use crate::service::handle::Handle;
use crate::types::MemberId;

/// raft's own view, with ids as text in lower-case hexadecimal.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RaftStatusJson {
    id: String,
    term: u64,
    vote: String,
    commit: u64,
    lead: String,
    raft_state: &'static str,
    applied: u64,
    progress: BTreeMap<String, ProgressJson>,
    leadtransferee: String,
}

#[derive(Serialize)]
struct ProgressJson {
    #[serde(rename = "match")]
    matched: u64,
    next: u64,
    state: &'static str,
}

/// The page, one variable a line.
pub fn vars(handle: &Handle) -> String {
    let arguments: Vec<_> = std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    // etcd shows the Go runtime's memory here; of that there is only what the process takes.
    let memory = json!({ "Sys": process::resident_bytes().map(|bytes| bytes as u64) });
    let variables = [
        ("cmdline", json!(arguments).to_string()),
        ("file_descriptor_limit", process::file_limit().to_string()),
        ("memstats", memory.to_string()),
        // Not by way of a `Value`, which would sort the fields. Numbers and texts can always be
        // written.
        (
            "raft.status",
            serde_json::to_string(&raft_status(handle)).unwrap_or_default(),
        ),
    ];
    let lines: Vec<_> = variables
        .iter()
        .map(|(name, value)| format!("\"{name}\": {value}"))
        .collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

fn raft_status(handle: &Handle) -> RaftStatusJson {
    let shared = handle.shared();
    let raft = &shared.raft;
    let me = shared.member.to_string();
    let (commit, applied) = raft.indexes();
    let mut progress = BTreeMap::new();
    if raft.is_leader() {
        let own = ProgressJson {
            matched: commit,
            next: commit + 1,
            state: "StateReplicate",
        };
        progress.insert(me.clone(), own);
    }
    RaftStatusJson {
        term: raft.term(),
        // A leader has voted for itself; whom another voted for is not known up here.
        vote: if raft.is_leader() {
            me.clone()
        } else {
            "0".to_owned()
        },
        commit,
        lead: MemberId(raft.leader()).to_string(),
        raft_state: if raft.is_leader() {
            "StateLeader"
        } else {
            "StateFollower"
        },
        applied,
        progress,
        leadtransferee: "0".to_owned(),
        id: me,
    }
}
