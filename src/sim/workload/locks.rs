//! Who locks, who campaigns and who asks for the leader: with leases that are renewed, that end
//! while a lock is held or waited for, and that several calls share.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio_stream::StreamExt;

use super::super::call::{Ask, LockAnswer, key_of};
use super::super::client::{Client, Clients};
use super::super::history::{Answer, ClientRequest, Observed, Outcome};
use super::super::random::Random;
use crate::env::{self, Executor};
use crate::proto::etcdserverpb::LeaseGrantRequest;
use crate::proto::v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest};
use crate::proto::v3lockpb::{LockRequest, UnlockRequest};

const LOCKS: [&str; 2] = ["lock/a", "lock/b"];
const ELECTION: &str = "elect/a";
/// Who locks with a lease of the member's making has no rival: a lost answer keeps the lock.
const OWN_LEASE: &str = "lock/own/";
/// How long a client waits for its turn that does not give up early.
const PATIENCE: Duration = Duration::from_secs(12);
/// A stream that says nothing for so long is checked: the world may have stopped.
const WAIT: Duration = Duration::from_secs(2);

/// The lease of two clients who lock beside each other.
type SharedLease = Arc<AtomicI64>;

/// Starts all who lock or campaign in a world.
pub fn start(clients: &Arc<Clients>, random: &mut Random) {
    let make = |number: u32, random: &mut Random| {
        Client::new(number, clients.clone(), random.fork(u64::from(number)))
    };
    let spawn = |work: env::Boxed<()>| clients.tasks.spawn(work);
    for pair in 0..3 {
        let lease = SharedLease::default();
        for number in [600 + 2 * pair, 601 + 2 * pair] {
            let grants = number % 2 == 0;
            let client = make(number, random);
            spawn(Box::pin(locks(client, lease.clone(), grants)));
        }
    }
    spawn(Box::pin(own_leases(make(610, random))));
    for number in 620..623 {
        spawn(Box::pin(campaigns(make(number, random))));
    }
    spawn(Box::pin(asks_who_leads(make(630, random))));
    for number in [631, 632] {
        spawn(Box::pin(observes(make(number, random))));
    }
}

async fn ask(client: &mut Client, ask: Ask) -> Option<LockAnswer> {
    match client.call(ClientRequest::Concurrency(ask)).await {
        Some(Outcome::Answered(Answer::Concurrency(answer))) => Some(answer),
        _ => None,
    }
}

/// The same, for a call that waits for its turn.
async fn wait(client: &mut Client, asked: Ask) -> Option<LockAnswer> {
    client.patience = match client.random.chance(250) {
        true => Duration::from_millis(client.random.between(20, 2_000)),
        false => PATIENCE,
    };
    let answer = ask(client, asked).await;
    client.patience = Client::PATIENCE;
    answer
}

/// A new lease, with the number of those before.
async fn grant(client: &mut Client, granted: &mut i64) -> Option<i64> {
    *granted += 1;
    let id = (i64::from(client.number) + 1) << 20 | *granted;
    let ttl = client.random.between(2, 4) as i64;
    let grant = ClientRequest::LeaseGrant(LeaseGrantRequest { ttl, id });
    let outcome = client.call(grant).await;
    matches!(outcome, Some(Outcome::Answered(_))).then_some(id)
}

async fn unlock(client: &mut Client, key: Bytes) {
    ask(client, Ask::Unlock(UnlockRequest { key })).await;
}

/// Locks, holds for a while and unlocks, or lets its lease end.
async fn locks(mut client: Client, shared: SharedLease, grants: bool) {
    let mut granted = 0;
    while !client.clients.stopping() {
        client.pause(1_000, 300_000).await;
        let mut lease = shared.load(Ordering::SeqCst);
        if grants && (lease == 0 || client.random.chance(300)) {
            let Some(id) = grant(&mut client, &mut granted).await else {
                continue;
            };
            shared.store(id, Ordering::SeqCst);
            lease = id;
        }
        if lease == 0 {
            continue;
        }
        let name = *client.random.pick(&LOCKS);
        if client.random.chance(80) {
            // As an operator would, of a key that somebody waits or works with.
            unlock(&mut client, key_of(name.as_bytes(), lease)).await;
            continue;
        }
        let asked = Ask::Lock(LockRequest {
            name: name.into(),
            lease,
        });
        let Some(LockAnswer::Locked(locked)) = wait(&mut client, asked).await else {
            continue;
        };
        if client.random.chance(300) {
            client
                .call(ClientRequest::LeaseKeepAlive { id: lease })
                .await;
        }
        client.pause(1_000, 400_000).await;
        match client.random.below(10) {
            0 => {
                client.call(ClientRequest::LeaseRevoke { id: lease }).await;
            }
            // The lease ends.
            1 => client.pause(2_000_000, 5_000_000).await,
            _ => unlock(&mut client, locked.key).await,
        }
    }
}

/// Locks with a lease that the member makes.
async fn own_leases(mut client: Client) {
    while !client.clients.stopping() {
        client.pause(1_000_000, 5_000_000).await;
        let name = format!("{OWN_LEASE}{}", client.random.next());
        let asked = Ask::Lock(LockRequest {
            name: name.into(),
            lease: 0,
        });
        if let Some(LockAnswer::Locked(locked)) = wait(&mut client, asked).await {
            unlock(&mut client, locked.key).await;
        }
    }
}

/// Campaigns, leads for a while and resigns, or lets its lease end.
async fn campaigns(mut client: Client) {
    let (mut granted, mut lease) = (0, 0);
    while !client.clients.stopping() {
        client.pause(1_000, 500_000).await;
        if lease == 0 || client.random.chance(500) {
            let Some(id) = grant(&mut client, &mut granted).await else {
                continue;
            };
            lease = id;
        }
        let asked = Ask::Campaign(CampaignRequest {
            name: ELECTION.into(),
            lease,
            value: client.unique_value(),
        });
        let Some(LockAnswer::Elected(elected)) = wait(&mut client, asked).await else {
            continue;
        };
        let leader = elected.leader;
        for _ in 0..client.random.below(4) {
            client.pause(1_000, 400_000).await;
            let value = client.unique_value();
            let leader = leader.clone();
            ask(
                &mut client,
                Ask::Proclaim(ProclaimRequest { leader, value }),
            )
            .await;
            client
                .call(ClientRequest::LeaseKeepAlive { id: lease })
                .await;
        }
        match client.random.below(4) {
            0 => client.pause(2_000_000, 5_000_000).await,
            1 => {
                client.call(ClientRequest::LeaseRevoke { id: lease }).await;
            }
            _ => {
                ask(&mut client, Ask::Resign(ResignRequest { leader })).await;
            }
        }
    }
}

async fn asks_who_leads(mut client: Client) {
    while !client.clients.stopping() {
        client.pause(1_000, 500_000).await;
        let name = ELECTION.into();
        ask(&mut client, Ask::Leader(LeaderRequest { name })).await;
    }
}

/// Follows who leads, at one member after the other.
async fn observes(mut client: Client) {
    while !client.clients.stopping() {
        client.pause(1_000, 300_000).await;
        let Some(endpoint) = client.find().await else {
            continue;
        };
        let caller = client.lasting_caller(&endpoint);
        let Some(services) = &endpoint.services.concurrency else {
            return;
        };
        let Ok(mut news) = services.observe(ELECTION, &caller).await else {
            continue;
        };
        let mut observed = Observed {
            client: client.number,
            member: client.member,
            name: ELECTION,
            seen: Vec::new(),
        };
        let most = client.random.between(1, 40) as usize;
        while !client.clients.stopping() && observed.seen.len() < most {
            if client.random.chance(50) {
                client.pause(100_000, 2_000_000).await;
            }
            match env::timeout(&client.clients.clock, WAIT, news.next()).await {
                Some(Some(Ok(answer))) => {
                    let at = client.clients.time.now_ns();
                    client.clients.trace.note(format_args!(
                        "client {} observes at {}: {answer:?}",
                        client.number, client.member
                    ));
                    observed.seen.push((at, answer));
                }
                Some(Some(Err(_)) | None) => break,
                None => {}
            }
        }
        client.clients.observed.lock().push(observed);
    }
}
