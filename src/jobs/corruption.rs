//! Compares the members' data by hash, so that a diverged member is detected and named, and writes
//! stop before more is affected.
//!
//! Three comparisons, each as in etcd: a restarted member with its peers before it serves; the
//! leader with its followers periodically; and the leader with its followers by the hashes that
//! each kept of the same compaction, which is cheap. The verdict is a pure function of the hashes,
//! here called `Judged`, separate from the RPCs and the alarm.
//!
//! Members with equal histories may report two different hashes, that of a compaction and a new
//! one: `HistoryHash::agrees_with` accepts both.
//!
//! A hash reads the whole history, so the first comparison is skipped for large stores unless a flag
//! requests it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;

use crate::error::Error;
use crate::mvcc::hash::HistoryHash;
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmType, HashKvRequest, HashKvResponse, InternalRaftRequest,
    alarm_request::AlarmAction,
};
use crate::proto::etchedpeer::{PeerRequest, peer_request, peer_response};
use crate::service::caller::Caller;
use crate::service::handle::Handle;
use crate::types::MemberId;

/// Stores with more keys than this are compared at a start only if a flag requests it.
const MAX_KEYS_AT_START: i64 = 200_000;

/// When a member compares itself with its peers before it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtStart {
    Never,
    /// If it is cheap.
    Cheaply,
    Always,
}

/// When the leader compares.
#[derive(Clone, Copy, Debug)]
pub struct CheckIntervals {
    /// Between comparisons of all data; none: never.
    pub all: Option<Duration>,
    /// Between comparisons of kept hashes; none: never.
    pub compacted: Option<Duration>,
}

/// A peer's hash, or why there is none.
type Answered = Vec<(MemberId, Result<HashKvResponse, Error>)>;

/// Compares a restarted member with its peers. A difference is an error: the member must not serve.
/// A peer without a response proves nothing.
pub async fn check_at_start(handle: &Handle, when: AtStart) -> Result<(), String> {
    let shared = handle.shared();
    let peers = shared.status().peers_of(shared.member);
    let large = handle.view().keys > MAX_KEYS_AT_START;
    if when == AtStart::Never || peers.is_empty() {
        return Ok(());
    }
    if when == AtStart::Cheaply && large {
        tracing::info!(
            keys = handle.view().keys,
            "skipped initial corruption check: the store is large; --feature-gates=InitialCorruptCheck=true asks for it"
        );
        return Ok(());
    }
    let own = shared.member;
    // A dead peer must not delay the start for a whole request timeout.
    let limit = match when {
        AtStart::Always => handle.settings().request_timeout(),
        AtStart::Never | AtStart::Cheaply => handle.settings().election_timeout,
    };
    tracing::info!("local-member-id" = %own, timeout = ?limit, "starting initial corruption check");
    let hashed = handle.hash_at(&Caller::member(), 0).await;
    let (hash, _) = hashed.map_err(|error| format!("{own} failed to fetch hash ({error})"))?;
    let answered = ask_peers(handle, hash.revision, limit).await;
    let differing = differing_at_start(&hash, &answered);
    for (peer, answer) in &answered {
        log_at_start(own, &hash, *peer, answer);
    }
    if differing.is_empty() {
        tracing::info!("local-member-id" = %own, "initial corruption checking passed; no corruption");
        return Ok(());
    }
    let peers: Vec<_> = differing.iter().map(MemberId::to_string).collect();
    Err(format!(
        "{own} found data inconsistency with peers {} at revision {}; remove this member from the cluster and add it anew with an empty data directory",
        peers.join(", "),
        hash.revision
    ))
}

/// The peers whose data differs. Only hashes with the same compacted revision are comparable.
fn differing_at_start(own: &HistoryHash, answered: &Answered) -> Vec<MemberId> {
    let differs = |answer: &HashKvResponse| {
        !own.agrees_with(answer.hash) && answer.compact_revision == own.compacted
    };
    let found = answered
        .iter()
        .filter(|(_, answer)| answer.as_ref().is_ok_and(differs));
    found.map(|(peer, _)| *peer).collect()
}

fn log_at_start(
    member: MemberId,
    own: &HistoryHash,
    peer: MemberId,
    answer: &Result<HashKvResponse, Error>,
) {
    let what = match answer {
        Ok(theirs) if own.agrees_with(theirs.hash) => return,
        Ok(theirs) if theirs.compact_revision == own.compacted => {
            "found different hash values from remote peer"
        }
        Ok(_) => "found different compact revision values from remote peer",
        Err(Error::FutureRevision) => "cannot fetch hash from slow remote peer",
        Err(Error::Compacted) => "cannot fetch hash from remote peer; local member is behind",
        Err(_) => "failed hash kv request",
    };
    let theirs = answer.as_ref().ok();
    let error = answer.as_ref().err().map(|error| error.text());
    tracing::warn!(
        "local-member-id" = %member,
        "local-member-revision" = own.revision,
        "local-member-compact-revision" = own.compacted,
        "local-member-hash" = own.hash,
        "remote-peer-id" = %peer,
        "remote-peer-compact-revision" = theirs.map(|theirs| theirs.compact_revision),
        "remote-peer-hash" = theirs.map(|theirs| theirs.hash),
        error,
        "{what}"
    );
}

/// Compares as leader; runs until the runtime stops.
pub async fn run(handle: Handle, pace: CheckIntervals) {
    tokio::join!(
        run_all(&handle, pace.all),
        run_compacted(&handle, pace.compacted)
    );
}

async fn run_all(handle: &Handle, every: Option<Duration>) {
    let Some(every) = every else {
        return;
    };
    let member = handle.shared().member;
    tracing::info!("local-member-id" = %member, interval = ?every, "enabled corruption checking");
    loop {
        handle.shared().clock.sleep(every).await;
        if handle.shared().raft.is_leader()
            && let Err(error) = compare_all(handle).await
        {
            tracing::warn!(%error, "failed to check hash KV");
        }
    }
}

async fn compare_all(handle: &Handle) -> Result<(), Error> {
    let shared = handle.shared();
    let term = shared.raft.term();
    let (before, _) = handle.hash_at(&Caller::member(), 0).await?;
    let limit = handle.settings().request_timeout();
    let answered = ask_peers(handle, before.revision, limit).await;
    catch_up(handle, &answered).await?;
    let (after, head) = handle.hash_at(&Caller::member(), 0).await?;
    let judged = judge_all(shared.member, &before, &after, head, &answered);
    let diverging = judged.first().map(|found| found.member);
    for CorruptMember { member, reason } in judged {
        tracing::warn!(
            "leader-id" = %shared.member,
            "member-id" = %member,
            revision = before.revision,
            "leader-hash" = before.hash,
            "{reason}"
        );
    }
    if let Some(member) = diverging {
        raise_alarm(handle, term, member).await?;
    }
    let checked = answered.iter().filter(|(_, answer)| answer.is_ok()).count();
    tracing::info!(
        "number-of-peers-checked" = checked,
        "finished peer corruption check"
    );
    Ok(())
}

/// Waits until this leader has applied what its followers have applied, as far as it can: they may
/// have been slightly ahead.
async fn catch_up(handle: &Handle, answered: &Answered) -> Result<(), Error> {
    handle.linearizable_view(&Caller::member()).await?;
    let clock = &handle.shared().clock;
    let deadline = clock.now() + handle.settings().election_timeout;
    let answers = || {
        answered
            .iter()
            .filter_map(|(_, answer)| answer.as_ref().ok())
    };
    let head = answers().filter_map(|answer| Some(answer.header.as_ref()?.revision));
    let (head, compacted) = (
        head.max(),
        answers().map(|answer| answer.compact_revision).max(),
    );
    loop {
        let view = handle.view();
        let caught_up = head <= Some(view.head) && compacted <= Some(view.compacted);
        if caught_up || clock.now() >= deadline {
            return Ok(());
        }
        clock.sleep(Duration::from_millis(10)).await;
    }
}

/// A member whose data cannot be right.
#[derive(Debug, PartialEq, Eq)]
struct CorruptMember {
    member: MemberId,
    reason: &'static str,
}

/// Compares with the leader's own hashes, taken before the peers answered and after, when it was at
/// `head`. As in etcd only the first finding raises an alarm.
fn judge_all(
    leader: MemberId,
    before: &HistoryHash,
    after: &HistoryHash,
    head: i64,
    answered: &Answered,
) -> Vec<CorruptMember> {
    let mut found = Vec::new();
    let mut note = |member, reason| found.push(CorruptMember { member, reason });
    let same_data = (after.revision, after.compacted) == (before.revision, before.compacted);
    if same_data && after.hash != before.hash {
        note(leader, "found hash mismatch");
    }
    for (peer, answer) in answered {
        let Ok(answer) = answer else {
            continue;
        };
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        if revision > head {
            note(
                *peer,
                "revision from follower must be less than or equal to leader's",
            );
        }
        if answer.compact_revision > after.compacted {
            note(
                *peer,
                "compact revision from follower must be less than or equal to leader's",
            );
        }
        if answer.compact_revision == before.compacted && !before.agrees_with(answer.hash) {
            note(*peer, "same compact revision then hashes must match");
        }
    }
    found
}

async fn run_compacted(handle: &Handle, every: Option<Duration>) {
    let Some(every) = every else {
        return;
    };
    // The newest revision at which all members agreed.
    // A compaction to 0 kept a hash of nothing.
    let mut agreed = 0;
    loop {
        handle.shared().clock.sleep(every).await;
        if !handle.shared().raft.is_leader() {
            continue;
        }
        match compare_compacted(handle, agreed).await {
            Ok(Some(revision)) => agreed = agreed.max(revision),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "failed to check compaction hashes"),
        }
    }
}

/// Compares the newest hash that all members kept; returns its revision if all agree.
async fn compare_compacted(handle: &Handle, agreed: i64) -> Result<Option<i64>, Error> {
    let shared = handle.shared();
    let term = shared.raft.term();
    let mut hashes = shared.compaction_hashes.lock().clone();
    hashes.retain(|hash| hash.revision > agreed);
    if hashes.is_empty() || shared.status().peers_of(shared.member).is_empty() {
        return Ok(None);
    }
    let limit = handle.settings().request_timeout();
    tracing::info!("local-member-id" = %shared.member, timeout = ?limit, "starting compact hash check");
    let mut result = None;
    let mut checked = 0;
    for hash in hashes.iter().rev() {
        let answered = ask_peers(handle, hash.revision, limit).await;
        checked += 1;
        match judge_compacted(shared.member, hash, &answered) {
            Judged::Unknown => continue,
            Judged::Agreed => {
                tracing::info!(
                    "number-of-peers-checked" = answered.len(),
                    revision = hash.revision,
                    "compactRevision" = hash.compacted,
                    "successfully checked hash on whole cluster"
                );
                result = Some(hash.revision);
            }
            Judged::Diverged(members) => {
                for member in members {
                    tracing::error!(
                        "leader-id" = %shared.member,
                        "leader-revision" = hash.revision,
                        "leader-compact-revision" = hash.compacted,
                        "leader-hash" = hash.hash,
                        "peer-id" = %member,
                        "Detected compaction hash mismatch"
                    );
                    raise_alarm(handle, term, member).await?;
                }
            }
        }
        break;
    }
    tracing::info!(
        "number-of-hashes-checked" = checked,
        "finished compaction hash check"
    );
    Ok(result)
}

/// The verdict on the members' hashes of one compaction.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// All members have the same.
    Agreed,
    /// All responses agree, and a member did not respond or compacted in other steps.
    Unknown,
    /// These differ from the majority; member 0 stands for all, if there is no majority.
    Diverged(Vec<MemberId>),
}

fn judge_compacted(leader: MemberId, own: &HistoryHash, answered: &Answered) -> Judged {
    let mut by_hash: BTreeMap<u32, Vec<MemberId>> = BTreeMap::from([(own.hash, vec![leader])]);
    let mut compared = 0;
    for (peer, answer) in answered {
        match answer {
            Ok(answer) if answer.compact_revision == own.compacted => {
                compared += 1;
                let hash = match own.agrees_with(answer.hash) {
                    true => own.hash,
                    false => answer.hash,
                };
                by_hash.entry(hash).or_default().push(*peer);
            }
            _ => {}
        }
    }
    if by_hash.len() == 1 {
        return match compared == answered.len() {
            true => Judged::Agreed,
            false => Judged::Unknown,
        };
    }
    let members = answered.len() + 1;
    let quorum = members / 2 + 1;
    if !by_hash.values().any(|members| members.len() >= quorum) {
        return Judged::Diverged(vec![MemberId(0)]);
    }
    let outnumbered = by_hash.into_values().filter(|of| of.len() < quorum);
    Judged::Diverged(outnumbered.flatten().collect())
}

/// Requests the hash at a revision from all peers, each with the timeout `limit`.
async fn ask_peers(handle: &Handle, revision: i64, limit: Duration) -> Answered {
    let shared = handle.shared();
    let asked = shared
        .status()
        .peers_of(shared.member)
        .into_iter()
        .map(|peer| {
            let request = PeerRequest {
                request: Some(peer_request::Request::HashKv(HashKvRequest { revision })),
            };
            let answer = handle.network().ask(peer.member, request, limit);
            async move {
                let hash = match answer.await {
                    Ok(answer) => match answer.response {
                        Some(peer_response::Response::HashKv(hash)) => Ok(hash),
                        _ => Err(Error::UnknownMethod),
                    },
                    Err(error) => Err(error),
                };
                (peer.member, hash)
            }
        });
    let mut answered = join_all(asked).await;
    answered.sort_by_key(|(member, _)| *member);
    answered
}

async fn raise_alarm(handle: &Handle, term: u64, member: MemberId) -> Result<(), Error> {
    let request = InternalRaftRequest {
        alarm: Some(AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id: member.0,
            alarm: AlarmType::Corrupt as i32,
        }),
        ..Default::default()
    };
    handle
        .propose_in_term(&Caller::member(), request, term)
        .await
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::proto::etcdserverpb::ResponseHeader;
    use crate::proto::etchedpeer::PeerResponse;
    use crate::raft::Message;
    use crate::replica::inbox::{Inbox, Input};
    use crate::replica::proposal::Proposed;
    use crate::service::fixture;
    use crate::transport::{self, Boxed, Network, PeerMessage, SnapshotDir};

    const LEADER: MemberId = MemberId(1);

    fn hash(hash: u32, compacted: i64, revision: i64) -> HistoryHash {
        HistoryHash {
            hash,
            compacted,
            revision,
            otherwise: hash + 100,
        }
    }

    /// Responses of the members 2, 3, ...: hash, compacted revision and newest revision, or none.
    fn answers(answers: &[Option<(u32, i64, i64)>]) -> Answered {
        let answer = |(hash, compact_revision, revision)| HashKvResponse {
            header: Some(ResponseHeader {
                revision,
                ..Default::default()
            }),
            hash,
            compact_revision,
            ..Default::default()
        };
        let members = (2..).map(MemberId);
        let answers = answers
            .iter()
            .map(|given| given.map(answer).ok_or(Error::FutureRevision));
        members.zip(answers).collect()
    }

    #[test]
    fn a_restarted_member_differs_only_from_what_it_can_be_compared_with() {
        let own = hash(7, 3, 9);
        for (given, expected) in [
            (&[Some((7, 3, 9)), Some((7, 3, 20))][..], vec![]),
            (&[Some((8, 3, 9)), Some((7, 3, 9))], vec![2]),
            (&[Some((8, 4, 9)), None], vec![]),
            (&[None, None], vec![]),
            (&[Some((8, 3, 9)), Some((8, 3, 9))], vec![2, 3]),
            // It has compacted to that very revision, and a deletion there removed everything.
            (&[Some((107, 3, 9))], vec![]),
        ] {
            let found = differing_at_start(&own, &answers(given));
            let expected: Vec<_> = expected.into_iter().map(MemberId).collect();
            assert_eq!(found, expected, "{given:?}");
        }
    }

    #[test]
    fn the_leader_names_a_follower_that_cannot_be_right() {
        let before = hash(7, 3, 9);
        let after = hash(17, 5, 12);
        for (given, after, expected) in [
            (&[Some((7, 3, 9)), Some((7, 3, 12))][..], after, vec![]),
            // It compacted further in the meantime, as the leader did.
            (&[Some((8, 5, 9))], after, vec![]),
            (&[Some((8, 3, 9)), Some((7, 3, 9))], after, vec![2]),
            (&[Some((7, 3, 13))], after, vec![2]),
            (&[Some((8, 6, 12)), Some((8, 3, 12))], after, vec![2, 3]),
            (&[None, Some((8, 3, 99))], after, vec![3, 3]),
            (&[Some((107, 3, 9))], after, vec![]),
            // The leader itself.
            (&[Some((7, 3, 9))], hash(8, 3, 9), vec![1]),
        ] {
            let found = judge_all(LEADER, &before, &after, 12, &answers(given));
            let found: Vec<_> = found.iter().map(|found| found.member.0).collect();
            assert_eq!(found, expected, "{given:?}");
        }
    }

    #[test]
    fn most_members_are_right_about_a_compaction() {
        let own = hash(7, 3, 9);
        let diverged =
            |members: &[u64]| Judged::Diverged(members.iter().copied().map(MemberId).collect());
        let (same, other) = (Some((7, 3, 9)), Some((8, 3, 9)));
        let (third, elsewhere) = (Some((9, 3, 9)), Some((8, 2, 9)));
        for (given, expected) in [
            (&[same, same][..], Judged::Agreed),
            (&[same, Some((107, 3, 9))], Judged::Agreed),
            (&[same, None], Judged::Unknown),
            (&[same, elsewhere], Judged::Unknown),
            (&[elsewhere, None], Judged::Unknown),
            (&[same, other], diverged(&[3])),
            // The leader itself differs.
            (&[other, other], diverged(&[1])),
            (&[other, None], diverged(&[0])),
            (&[other], diverged(&[0])),
            (&[other, third], diverged(&[0])),
            (&[same, other, same, third], diverged(&[3, 5])),
            (&[same, same, other, None], diverged(&[4])),
        ] {
            assert_eq!(
                judge_compacted(LEADER, &own, &answers(given)),
                expected,
                "{given:?}"
            );
        }
    }

    /// A network with one peer, which always gives the same response.
    struct Peer(Result<HashKvResponse, Error>);

    impl Network for Peer {
        fn attach(&self, _: Arc<dyn transport::Inbound>) {}

        fn send(&self, _: MemberId, _: Vec<PeerMessage>) {}

        fn send_snapshot(&self, _: Message, _: Arc<SnapshotDir>) {}

        fn set_peers(&self, _: Vec<transport::Peer>) {}

        fn ask(
            &self,
            _: MemberId,
            _: PeerRequest,
            _: Duration,
        ) -> Boxed<Result<PeerResponse, Error>> {
            let answer = self.0.map(|hash| PeerResponse {
                response: Some(peer_response::Response::HashKv(hash)),
            });
            Box::pin(std::future::ready(answer))
        }

        fn active_since(&self, _: MemberId) -> Option<Duration> {
            None
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
    }

    /// This member and one peer; the latter's hash differs by `difference` from the empty
    /// store's.
    fn pair(difference: Option<u32>) -> (Handle, Arc<Inbox>) {
        let own = runtime().block_on(fixture::single_member().hash_history(&Caller::member(), 0));
        let theirs = difference
            .zip(own.ok())
            .map(|(difference, own)| HashKvResponse {
                hash: own.hash.wrapping_add(difference),
                ..own
            });
        let peer = Peer(theirs.ok_or(Error::Timeout));
        let (handle, inbox) = fixture::with_network(Arc::new(peer));
        fixture::set_members(&handle, &[(fixture::ME, false), (MemberId(9), false)]);
        (handle, inbox)
    }

    #[test]
    fn a_member_that_diverged_does_not_start() {
        for (difference, when, starts) in [
            (Some(0), AtStart::Cheaply, true),
            (Some(1), AtStart::Cheaply, false),
            (Some(1), AtStart::Always, false),
            (Some(1), AtStart::Never, true),
            (None, AtStart::Always, true),
        ] {
            let (handle, _inbox) = pair(difference);
            let checked = runtime().block_on(check_at_start(&handle, when));
            assert_eq!(checked.is_ok(), starts, "{difference:?} {when:?}");
            let named = |reason: &String| {
                reason.starts_with("b71f found data inconsistency with peers 9 at revision 1")
            };
            assert!(checked.as_ref().err().is_none_or(named), "{checked:?}");
        }
    }

    #[test]
    fn divergence_raises_the_alarm() {
        for (difference, compacted, alarm) in [
            (Some(0), false, None),
            (Some(1), false, Some(9)),
            (None, false, None),
            (Some(0), true, None),
            // Two members have no majority.
            (Some(1), true, Some(0)),
        ] {
            let (handle, inbox) = pair(difference);
            fixture::set_leader(&handle, fixture::ME);
            runtime().block_on(async {
                let own = handle
                    .hash_at(&Caller::member(), 0)
                    .await
                    .expect("hashes")
                    .0;
                handle.shared().compaction_hashes.lock().push(own);
                let comparison = async {
                    match compacted {
                        true => compare_compacted(&handle, -1).await.map(drop),
                        false => compare_all(&handle).await,
                    }
                };
                // Nothing answers proposals here.
                let _ = tokio::time::timeout(Duration::from_millis(100), comparison).await;
            });
            let mut inputs = Vec::new();
            inbox.take(Duration::ZERO, &mut inputs);
            let raised = inputs.into_iter().find_map(|input| match input {
                Input::Propose(proposal) => match proposal.what {
                    Proposed::Request(request, _) => request.alarm,
                    Proposed::Member(_) => None,
                },
                _ => None,
            });
            let corrupt = |member_id| AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id,
                alarm: AlarmType::Corrupt as i32,
            };
            assert_eq!(raised, alarm.map(corrupt), "{difference:?} {compacted}");
        }
    }
}
