//! Whether the member serves: /health for people and old probes, /livez and /readyz for new ones.
//!
//! /livez asks whether a restart would help: can this member read at all. /readyz asks whether
//! clients should be sent here: is the data sound, does the cluster answer, is this no learner.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode, Uri};
use serde::Serialize;
use tonic::body::Body;

use super::page;
use super::query::Query;
use crate::error::Error;
use crate::metrics::{HEALTH_CHECKS, Operation};
use crate::proto::etcdserverpb::AlarmType;
use crate::replica::view::ReadView;
use crate::service::caller::Caller;
use crate::service::handle::Handle;
use crate::service::permission::Asks;

/// How often a check that waits for a leader looks for one.
const LEADER_POLL: Duration = Duration::from_millis(50);

#[derive(Serialize)]
struct Health<'a> {
    health: &'a str,
    reason: &'a str,
}

/// Answers /health.
pub async fn health(handle: &Handle, method: &Method, uri: &Uri) -> Response<Body> {
    if method != Method::GET {
        tracing::warn!("status-code" = 405, "/health error");
        return page::only_get();
    }
    let query = Query::of(uri);
    let serializable = query.first("serializable") == Some("true");
    let reason = match alarm_reason(handle, &query.all("exclude")) {
        Some(reason) => Some(reason),
        None => trouble(handle, serializable).await,
    };
    let Some(reason) = reason else {
        handle.shared().metrics.health_success.increment();
        return page::plain(encode("true", ""));
    };
    handle.shared().metrics.health_failures.increment();
    let body = encode("false", &reason);
    tracing::warn!(output = body, "status-code" = 503, "/health error");
    page::refusal(StatusCode::SERVICE_UNAVAILABLE, &body)
}

fn encode(health: &str, reason: &str) -> String {
    // Two strings can always be written.
    serde_json::to_string(&Health { health, reason }).unwrap_or_default()
}

/// The first alarm that the client does not overlook, whichever member raised it.
fn alarm_reason(handle: &Handle, overlooked: &[&str]) -> Option<String> {
    let status = handle.shared().status();
    let mut alarms: Vec<_> = status.alarms.iter().map(|alarm| alarm.alarm).collect();
    alarms.sort_unstable();
    let names = alarms
        .into_iter()
        .map(|alarm| AlarmType::try_from(alarm).map_or("UNKNOWN", |alarm| alarm.as_str_name()));
    let mut heeded = names.filter(|name| !overlooked.contains(name));
    heeded.next().map(|name| format!("ALARM {name}"))
}

async fn trouble(handle: &Handle, serializable: bool) -> Option<String> {
    if !serializable && handle.shared().raft.leader() == 0 {
        return Some("RAFT NO LEADER".to_owned());
    }
    let read = read(handle, serializable).await;
    read.err().map(|error| format!("RANGE ERROR:{error}"))
}

/// Reads one key as a client would, and counts it as a client's read.
async fn read(handle: &Handle, serializable: bool) -> Result<(), Error> {
    let shared = handle.shared();
    let metrics = &shared.metrics;
    let asked = shared.clock.now();
    let result = match view(handle, serializable).await {
        Ok(view) => {
            let start = shared.clock.now();
            let found = view.pinned().get(b"", view.head);
            metrics.ranges.increment();
            metrics.ranged(found.is_ok(), shared.clock.now() - start);
            found.map(drop).map_err(|error| shared.fail_storage(error))
        }
        Err(error) => Err(error),
    };
    metrics.requested(Operation::Range, result.is_ok(), shared.clock.now() - asked);
    result
}

async fn view(handle: &Handle, serializable: bool) -> Result<Arc<ReadView>, Error> {
    let clock = handle.shared().clock.clone();
    let limit = handle.settings().request_timeout();
    // A probe asks about the member and needs no right to its keys.
    let caller = Caller::of_peer(Some(clock.now().saturating_add(limit)));
    // Waits through the time without a leader: between two leaders a member is not broken.
    while !serializable && handle.shared().raft.leader() == 0 {
        if caller.is_late(clock.now()) {
            return Err(Error::Timeout);
        }
        clock.sleep(LEADER_POLL).await;
    }
    let asks = Asks::Read {
        key: b"",
        range_end: b"",
    };
    let view = handle.view_for(&caller, asks, serializable).await;
    view.map_err(|error| match error {
        Error::DeadlineExceeded => Error::Timeout,
        error => error,
    })
}

/// Answers the root of an endpoint, `livez` or `readyz`: all its checks but those that the
/// client leaves out.
pub async fn all_checks(
    handle: &Handle,
    endpoint: &str,
    method: &Method,
    uri: &Uri,
) -> Response<Body> {
    let query = Query::of(uri);
    let excluded = query.all("exclude");
    let of_endpoint = || places().filter(|(_, kind, _)| *kind == endpoint);
    let unknown: Vec<_> = excluded
        .iter()
        .filter(|name| !of_endpoint().any(|(_, _, known)| known == **name))
        .collect();
    if !unknown.is_empty() && method == Method::GET {
        tracing::warn!(
            "missing-health-checks" = ?unknown,
            "some health checks cannot be excluded"
        );
    }
    let wanted = of_endpoint().filter(|(_, _, name)| !excluded.contains(name));
    let wanted: Vec<_> = wanted.map(|(place, _, _)| place).collect();
    answer(handle, &wanted, method, uri).await
}

/// Answers `endpoint/check`; `None` where there is no such check.
pub async fn one_check(
    handle: &Handle,
    endpoint: &str,
    check: &str,
    method: &Method,
    uri: &Uri,
) -> Option<Response<Body>> {
    let (place, _, _) = places().find(|(_, kind, name)| *kind == endpoint && *name == check)?;
    Some(answer(handle, &[place], method, uri).await)
}

/// Place in the metrics' list, endpoint, check.
fn places() -> impl Iterator<Item = (usize, &'static str, &'static str)> {
    let listed = HEALTH_CHECKS.iter().enumerate();
    listed.map(|(place, (kind, name))| (place, *kind, *name))
}

async fn answer(handle: &Handle, checks: &[usize], method: &Method, uri: &Uri) -> Response<Body> {
    let path = uri.path();
    if method != Method::GET {
        tracing::warn!(path, "status-code" = 405, "Health request error");
        return page::only_get();
    }
    let mut lines = String::new();
    let mut failed = false;
    for place in checks {
        let (_, name) = HEALTH_CHECKS[*place];
        let result = check(handle, name).await;
        handle
            .shared()
            .metrics
            .health_checked(*place, result.is_ok());
        match result {
            Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
            Err(reason) => {
                failed = true;
                lines.push_str(&format!("[-]{name} failed: {reason}\n"));
            }
        }
    }
    if failed {
        tracing::error!(
            path,
            reason = lines,
            "status-code" = 503,
            "Health check error"
        );
        return page::refusal(StatusCode::SERVICE_UNAVAILABLE, &lines);
    }
    if !Query::of(uri).has("verbose") {
        lines.clear();
    }
    lines.push_str("ok\n");
    page::plain_nosniff(lines)
}

async fn check(handle: &Handle, name: &str) -> Result<(), String> {
    let shared = handle.shared();
    match name {
        "data_corruption" if shared.status().has_alarm(AlarmType::Corrupt) => {
            Err("alarm activated: CORRUPT".to_owned())
        }
        "serializable_read" => read(handle, true).await.map_err(|error| error.to_string()),
        "linearizable_read" => read(handle, false).await.map_err(|error| error.to_string()),
        "non_learner" if shared.status().is_learner(shared.member) => {
            Err("not supported for learner".to_owned())
        }
        _ => Ok(()),
    }
}
