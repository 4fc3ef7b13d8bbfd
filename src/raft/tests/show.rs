//! How scripts write what raft says. `3@2` is entry 3 of term 2.

use std::fmt::Write;

use raft_proto::eraftpb::{
    ConfChange, ConfChangeType, ConfState, Entry, EntryType, HardState, Message, MessageType,
};

use crate::raft::log::from_disk;
use crate::raft::replica::Status;
use crate::raft::{Persist, doubt};

/// How a request in an entry is written.
pub type ShowRequest = fn(&[u8]) -> String;

/// Where a member stands.
pub fn role(status: &Status) -> String {
    let term = status.term;
    match status.leader {
        _ if status.is_leader => format!("leads in term {term}"),
        0 => format!("knows no leader in term {term}"),
        leader => format!("follows {leader} in term {term}"),
    }
}

pub fn entry_id(index: u64, term: u64) -> String {
    format!("{index}@{term}")
}

/// `add voter 4`
pub fn conf_change(change: &ConfChange) -> String {
    let kind = match change.get_change_type() {
        ConfChangeType::AddNode => "add voter",
        ConfChangeType::AddLearnerNode => "add learner",
        ConfChangeType::RemoveNode => "remove",
    };
    format!("{kind} {}", change.node_id)
}

pub fn conf_state(conf: &ConfState) -> String {
    let ids = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.iter().map(|id| format!(" {id}")).collect::<String>()
    };
    let mut text = format!("voters{}", ids(&conf.voters));
    if !conf.learners.is_empty() {
        write!(text, ", learners{}", ids(&conf.learners)).expect("writes");
    }
    text
}

pub fn entry(entry: &Entry, show: ShowRequest) -> String {
    let id = entry_id(entry.index, entry.term);
    match EntryType::from_i32(entry.entry_type) {
        Some(EntryType::EntryNormal) if entry.data.is_empty() => format!("{id} empty"),
        Some(EntryType::EntryNormal) => format!("{id} {}", show(&entry.data)),
        _ => {
            let change = prost_11::Message::decode(entry.data.as_slice()).expect("a change");
            format!("{id} {}", conf_change(&change))
        }
    }
}

fn entries(entries: &[Entry], show: ShowRequest) -> String {
    let entries: Vec<_> = entries.iter().map(|one| entry(one, show)).collect();
    entries.join(", ")
}

/// `1->2 term 2: append 3@2 a after 2@2, commit 2`
pub fn message(message: &Message, show: ShowRequest) -> String {
    let Message { from, to, term, .. } = message;
    format!("{from}->{to} term {term}: {}\n", content(message, show))
}

fn content(message: &Message, show: ShowRequest) -> String {
    use MessageType::*;
    let base = entry_id(message.index, message.log_term);
    let commit = message.commit;
    let in_doubt = doubt::is_doubtful(message);
    let granted = match message.reject {
        _ if in_doubt => "granted in doubt",
        true => "refused",
        false => "granted",
    };
    match message.get_msg_type() {
        MsgRequestPreVote => format!("asks whether it would get a vote, last entry {base}"),
        MsgRequestPreVoteResponse => format!("would be {granted}"),
        MsgRequestVote => format!("asks for a vote, last entry {base}"),
        MsgRequestVoteResponse => format!("vote {granted}"),
        MsgAppend if message.entries.is_empty() => {
            format!("append nothing after {base}, commit {commit}")
        }
        MsgAppend => format!(
            "append {} after {base}, commit {commit}",
            entries(&message.entries, show)
        ),
        MsgAppendResponse if message.reject => format!(
            "rejects an append after {}, may match at {}",
            message.index,
            entry_id(message.reject_hint, message.log_term)
        ),
        MsgAppendResponse => format!("appended up to {}", message.index),
        MsgHeartbeat => format!("heartbeat, commit {commit}{}", asked(&message.context)),
        MsgHeartbeatResponse if in_doubt => {
            format!("heartbeat answered in doubt{}", asked(&message.context))
        }
        MsgHeartbeatResponse => format!("heartbeat answered{}", asked(&message.context)),
        MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            let id = entry_id(metadata.index, metadata.term);
            let conf = conf_state(metadata.get_conf_state());
            format!("snapshot as of {id}, {conf}")
        }
        MsgReadIndex => format!("asks for a read index{}", asked(read_context(message))),
        MsgReadIndexResp => format!(
            "read index {}{}",
            message.index,
            asked(read_context(message))
        ),
        MsgTimeoutNow => "campaign now".to_owned(),
        MsgTransferLeader => "asks to lead".to_owned(),
        other => format!("{other:?}"),
    }
}

fn read_context(message: &Message) -> &[u8] {
    message.entries.first().map_or(&[], |entry| &entry.data)
}

/// Read index requests are numbered per member, `request 1 of 2`, or have names.
fn asked(context: &[u8]) -> String {
    match context.split_first_chunk::<8>() {
        _ if context.is_empty() => String::new(),
        Some((member, number)) if number.len() == 8 => {
            let number = number
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            let member = u64::from_be_bytes(*member);
            format!(", request {number} of {member}")
        }
        _ => format!(", read {}", String::from_utf8_lossy(context)),
    }
}

/// Raft's own order among receivers means nothing.
pub fn by_receiver(mut messages: Vec<Message>) -> Vec<Message> {
    messages.sort_by_key(|message| message.to);
    messages
}

/// What is to be made durable, and below it what waits for that.
pub fn persist(member: u64, persist: &Persist, show: ShowRequest) -> String {
    let mut parts = Vec::new();
    if let Some(reset) = persist.reset {
        parts.push(format!("snapshot {}", entry_id(reset.index, reset.term)));
    }
    for logged in &persist.entries {
        let found = from_disk(logged).expect("an entry");
        parts.push(entry(&found, show));
    }
    if let Some(bytes) = &persist.hard_state {
        let state: HardState = prost_11::Message::decode(bytes.as_slice()).expect("a hard state");
        let mut text = format!("term {}", state.term);
        if state.vote != 0 {
            write!(text, " vote {}", state.vote).expect("writes");
        }
        write!(text, " commit {}", state.commit).expect("writes");
        parts.push(text);
    }
    if parts.is_empty() {
        parts.push("nothing".to_owned());
    }
    let mut text = format!("{member} to disk: {}\n", parts.join(", "));
    for waits in by_receiver(persist.messages.clone()) {
        write!(text, "  then {}", message(&waits, show)).expect("writes");
    }
    text
}
