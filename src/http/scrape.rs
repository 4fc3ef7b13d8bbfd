//! Figures of a scrape that are not counted but read: from the node, and from `process`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::budget::Ledger;
use crate::metrics::Scrape;
use crate::proto::etcdserverpb::AlarmType;
use crate::service::handle::Handle;
use crate::types::MemberId;

use super::process;

/// Reads the node and the operating system; takes well under a millisecond, on files of /proc.
pub fn scrape(handle: &Handle, memory: Option<&Ledger>) -> Scrape {
    let shared = handle.shared();
    let raft = &shared.raft;
    let status = shared.status();
    let view = shared.view();
    shared.refresh_size();
    let watches = shared.hub.counters();
    let quota = handle.settings().limits.quota_bytes;
    let flag = |on: bool| Some(f64::from(u8::from(on)));
    let number = |value: i64| Some(value as f64);
    let (committed, applied) = raft.indexes();
    let mut scrape = Scrape {
        has_leader: flag(raft.leader() != 0),
        is_leader: flag(raft.is_leader()),
        is_learner: flag(status.is_learner(shared.member)),
        proposals_committed: Some(committed as f64),
        proposals_applied: Some(applied as f64),
        quota_bytes: number(quota.unwrap_or(-1)),
        db_size_bytes: number(shared.size_bytes.load(Ordering::Acquire)),
        db_size_in_use_bytes: number(shared.size_in_use_bytes.load(Ordering::Acquire)),
        // Not this holder, but the one that waits for readers.
        open_reads: Some((Arc::strong_count(&view) - 1) as f64),
        keys: number(view.keys),
        current_revision: number(view.head),
        compact_revision: number(view.compacted),
        watch_streams: number(watches.streams.load(Ordering::Relaxed)),
        watchers: number(watches.watches.load(Ordering::Relaxed)),
        slow_watchers: number(watches.slow_watches.load(Ordering::Relaxed)),
        pending_events: number(watches.pending_events.load(Ordering::Relaxed)),
        events: Some(watches.events.load(Ordering::Relaxed) as f64),
        auth_revision: Some(view.auth.revision() as f64),
        scrapes_in_flight: Some(1.0),
        cluster_version: status.cluster_version.clone(),
        members: status
            .members
            .iter()
            .map(|member| MemberId(member.id))
            .collect(),
        removed: status.removed.clone(),
        ..Default::default()
    };
    scrape
        .alarms
        .extend(status.alarms.iter().filter_map(|alarm| {
            let kind = AlarmType::try_from(alarm.alarm).ok()?;
            Some((MemberId(alarm.member_id), kind.as_str_name()))
        }));
    scrape.memory = memory.map_or(Vec::new(), Ledger::read);
    process::read(&mut scrape);
    scrape
}
