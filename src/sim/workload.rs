//! What clients do: compare-and-set registers, random operations on keys, nested transactions,
//! compactions, leases, and operator requests. Each is a loop that runs until the world stops its
//! clients.

mod load;
mod locks;
mod requests;
mod users;

use std::sync::Arc;
use std::time::Duration;

use super::client::{Client, Clients};
use super::history::{Answer, ClientRequest, Outcome};
use super::random::Random;
use super::watcher;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::downgrade_request::DowngradeAction;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DowngradeRequest, LeaseGrantRequest, PutRequest,
    TxnRequest,
};

pub use load::Load;
pub use locks::start as start_locks;
use requests::*;
pub use requests::{get, put};

/// The kinds of clients in a world that concentrates on leases.
pub const MANY_LEASES: [u32; 6] = [5, 7, 6, 7, 7, 0];

/// Starts a client; `kind` is taken modulo the number of kinds.
pub fn start(clients: &Arc<Clients>, number: u32, kind: u32, load: Load, random: Random) {
    let client = Client::new(number, clients.clone(), random);
    let work = async move {
        match kind % 11 {
            0 | 1 => registers(client, load).await,
            2..=4 => mixed(client, load).await,
            5 | 6 => leases(client, load).await,
            7 => sharers(client, load).await,
            8 => nested(client, load).await,
            9 => compactions(client).await,
            _ => operator(client).await,
        }
    };
    crate::env::Executor::spawn(clients.tasks.as_ref(), Box::pin(work));
}

/// Starts those who make a world's users, and are some of them.
pub fn start_users(clients: &Arc<Clients>, load: Load, random: &mut Random) {
    let spawn = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        crate::env::Executor::spawn(clients.tasks.as_ref(), work);
    };
    let administrator = Client::new(500, clients.clone(), random.fork(500));
    spawn(Box::pin(users::administrator(administrator)));
    let nobody = [None];
    let names = users::USERS.into_iter().map(Some).chain(nobody);
    for (number, name) in (501..).zip(names) {
        let mut client = Client::new(number, clients.clone(), random.fork(u64::from(number)));
        client.user = name;
        client.has_old_tokens = true;
        spawn(Box::pin(users::user(client, load)));
    }
    for (number, name) in (510..).zip(users::USERS) {
        let random = random.fork(u64::from(number));
        watcher::start(clients, number, Some(name), random);
    }
}

/// Reads a register and writes it if it was not modified in between.
async fn registers(mut client: Client, load: Load) {
    while !client.clients.stopping() {
        think(&mut client, load).await;
        let key = format!("r{}", client.random.below(REGISTERS));
        let Some(Outcome::Answered(Answer::Range(read))) =
            client.call(ClientRequest::Range(get(key.clone()))).await
        else {
            continue;
        };
        let found = read.kvs.decoded().unwrap_or_default();
        let mod_revision = found.first().map_or(0, |kv| kv.mod_revision);
        let value = client.unique_value();
        let txn = TxnRequest {
            compare: vec![compare(
                key.clone(),
                CompareResult::Equal,
                CompareTarget::Mod,
                TargetUnion::ModRevision(mod_revision),
            )],
            success: vec![op(Request::RequestPut(put(key.clone(), value)))],
            failure: vec![op(Request::RequestRange(get(key)))],
        };
        client.call(ClientRequest::Txn(txn)).await;
    }
}

/// Reads, puts and deletes; frees space once the quota is exhausted.
async fn mixed(mut client: Client, load: Load) {
    let mut head = 1;
    while !client.clients.stopping() {
        think(&mut client, load).await;
        let key = *client.random.pick(&KEYS);
        let asked = match client.random.below(10) {
            0..4 => ClientRequest::Put(random_put(&mut client, load, key)),
            4 => ClientRequest::DeleteRange(random_delete(&mut client.random)),
            5 if client.random.chance(300) => {
                ClientRequest::RangeStream(plain_read(&mut client.random, head))
            }
            _ => ClientRequest::Range(random_read(&mut client.random, head)),
        };
        let outcome = client.call(asked).await;
        head = head_of(outcome.as_ref(), head);
        let full = crate::error::Error::NoSpace.text();
        if matches!(outcome, Some(Outcome::Refused(text)) if text == full) {
            free_space(&mut client, head).await;
        }
    }
}

async fn free_space(client: &mut Client, head: i64) {
    client.call(ClientRequest::DeleteRange(everything())).await;
    client
        .call(ClientRequest::Compaction(CompactionRequest {
            revision: head,
            physical: true,
        }))
        .await;
    client
        .call(alarm(AlarmAction::Deactivate, AlarmType::Nospace, 0))
        .await;
}

fn alarm(action: AlarmAction, kind: AlarmType, member: u64) -> ClientRequest {
    ClientRequest::Alarm(AlarmRequest {
        action: action as i32,
        member_id: member,
        alarm: kind as i32,
    })
}

/// An operator: queries the cluster's status and issues maintenance requests.
async fn operator(mut client: Client) {
    while !client.clients.stopping() {
        client.pause(100_000, 2_000_000).await;
        let asked = match client.random.below(14) {
            0 => ClientRequest::HashKv { revision: 0 },
            1 => {
                let view = client
                    .find()
                    .await
                    .map(|endpoint| endpoint.services.handle.view());
                let head = view.map_or(1, |view| view.head);
                let back = client.random.below(30) as i64;
                ClientRequest::HashKv {
                    revision: (head - back).max(0),
                }
            }
            2 | 3 => ClientRequest::LeaseLeases,
            4 | 5 => ClientRequest::MemberList {
                linearizable: client.random.chance(500),
            },
            6 => ClientRequest::Status,
            7 => ClientRequest::Defragment,
            8 => {
                let open = client.clients.running_members();
                match open.is_empty() {
                    true => continue,
                    false => ClientRequest::MoveLeader {
                        to: *client.random.pick(&open),
                    },
                }
            }
            9 => {
                let action = *client.random.pick(&[
                    DowngradeAction::Validate,
                    DowngradeAction::Enable,
                    DowngradeAction::Cancel,
                ]);
                ClientRequest::Downgrade(DowngradeRequest {
                    action: action as i32,
                    version: "3.6.0".to_owned(),
                })
            }
            10 | 11 => alarm(AlarmAction::Get, AlarmType::None, 0),
            _ => {
                let kind = *client
                    .random
                    .pick(&[AlarmType::Nospace, AlarmType::Corrupt]);
                raise_for_a_while(&mut client, kind).await;
                continue;
            }
        };
        client.call(asked).await;
    }
}

/// Raises an alarm and disarms it again, whether or not raising it succeeded.
async fn raise_for_a_while(client: &mut Client, kind: AlarmType) {
    // No other client raises or disarms the alarm of this member.
    let member = 1_000_000 + u64::from(client.number);
    client
        .call(alarm(AlarmAction::Activate, kind, member))
        .await;
    client.pause(100_000, 3_000_000).await;
    loop {
        let disarm = alarm(AlarmAction::Deactivate, kind, member);
        let disarmed = client.call(disarm).await;
        if matches!(disarmed, Some(Outcome::Answered(_))) || client.clients.stopping() {
            return;
        }
        client.pause(10_000, 200_000).await;
    }
}

/// Nested transactions.
async fn nested(mut client: Client, load: Load) {
    let mut head = 1;
    while !client.clients.stopping() {
        think(&mut client, load).await;
        let first = client.random.below(KEYS.len() as u64 - 4) as usize;
        let count = client.random.between(1, 4) as usize;
        let keys = &KEYS[first..first + count];
        let txn = random_txn(&mut client, load, keys, 2, head);
        let outcome = client.call(ClientRequest::Txn(txn)).await;
        head = head_of(outcome.as_ref(), head);
    }
}

/// Compacts the history now and then, sometimes after all keys were deleted.
async fn compactions(mut client: Client) {
    while !client.clients.stopping() {
        client.pause(500_000, 4_000_000).await;
        if client.random.chance(100) {
            let emptied = client.call(ClientRequest::DeleteRange(everything())).await;
            let revision = head_of(emptied.as_ref(), 0);
            let physical = client.random.chance(300);
            // Lets other clients read the remaining history before it is compacted.
            client.pause(1_000, 400_000).await;
            if revision > 0 {
                let compaction = CompactionRequest { revision, physical };
                client.call(ClientRequest::Compaction(compaction)).await;
            }
            continue;
        }
        let Some(Outcome::Answered(Answer::Range(read))) =
            client.call(ClientRequest::Range(get("compactor"))).await
        else {
            continue;
        };
        let head = read.header.map_or(0, |header| header.revision);
        let kept = client.random.below(40) as i64;
        let revision = match client.random.below(12) {
            // Refused.
            0 => head + 1_000,
            _ => head - kept,
        };
        if revision > 0 {
            let physical = client.random.chance(300);
            client
                .call(ClientRequest::Compaction(CompactionRequest {
                    revision,
                    physical,
                }))
                .await;
        }
    }
}

/// Grants leases, attaches keys, renews for a while, and revokes or lets them end.
async fn leases(mut client: Client, load: Load) {
    let mut granted = 0i64;
    while !client.clients.stopping() {
        think(&mut client, load).await;
        granted += 1;
        let id = (i64::from(client.number) + 1) << 20 | granted;
        let most = *client.random.pick(&[2, 4, 10]);
        let ttl = client.random.between(2, most) as i64;
        if client.random.chance(80) {
            odd_lease(&mut client, granted).await;
            continue;
        }
        let grant = LeaseGrantRequest { ttl, id };
        let outcome = client.call(ClientRequest::LeaseGrant(grant)).await;
        if !matches!(outcome, Some(Outcome::Answered(_))) {
            continue;
        }
        client.clients.share_lease(id);
        if client.random.chance(300) {
            // Other clients may renew it.
            continue;
        }
        for _ in 0..client.random.below(3) {
            let key = format!("l{}/{}", client.number, client.random.below(4));
            let value = client.unique_value();
            let attached = PutRequest {
                lease: id,
                ..put(key, value)
            };
            client.call(ClientRequest::Put(attached)).await;
        }
        let renewals = client.random.below(6);
        for _ in 0..renewals {
            if client.clients.stopping() {
                return;
            }
            // Clients usually renew after a third of the TTL; some wait longer.
            let part = *client.random.pick(&[330, 330, 600, 850]);
            client.sleep(Duration::from_millis(ttl as u64 * part)).await;
            client.call(ClientRequest::LeaseKeepAlive { id }).await;
            if client.random.chance(250) {
                let keys = client.random.chance(500);
                client
                    .call(ClientRequest::LeaseTimeToLive { id, keys })
                    .await;
            }
        }
        if client.random.chance(400) {
            client.call(ClientRequest::LeaseRevoke { id }).await;
        }
    }
}

/// Requests a lease with an id that the server chooses, or one that has to be refused.
async fn odd_lease(client: &mut Client, number: i64) {
    let grant = match client.random.below(4) {
        0 => LeaseGrantRequest {
            id: some_lease(client),
            ttl: 5,
        },
        1 => LeaseGrantRequest {
            id: 7,
            ttl: i64::MAX,
        },
        _ => LeaseGrantRequest {
            id: 0,
            // The TTL identifies the request.
            ttl: 100_000 + (i64::from(client.number) << 20) + number,
        },
    };
    if grant.id == 0 && grant.ttl < 100_000 {
        return;
    }
    let granted = client.call(ClientRequest::LeaseGrant(grant)).await;
    if let Some(Outcome::Answered(Answer::LeaseGrant(granted))) = granted {
        client.clients.share_lease(granted.id);
        client.pause(100_000, 2_000_000).await;
        // No other client revokes it, and its TTL can be long.
        client
            .call(ClientRequest::LeaseRevoke { id: granted.id })
            .await;
    }
}

/// Renews and uses other clients' leases, and occasionally revokes one.
async fn sharers(mut client: Client, load: Load) {
    while !client.clients.stopping() {
        think(&mut client, load).await;
        let Some(id) = client.clients.clone().some_lease(&mut client.random) else {
            continue;
        };
        let asked = match client.random.below(12) {
            0 => ClientRequest::LeaseRevoke { id },
            1 | 2 => ClientRequest::LeaseTimeToLive { id, keys: true },
            3..=5 => {
                let key = format!("l{}/{}", client.number % 2, client.random.below(4));
                let value = client.unique_value();
                ClientRequest::Put(PutRequest {
                    lease: id,
                    ..put(key, value)
                })
            }
            _ => ClientRequest::LeaseKeepAlive { id },
        };
        client.call(asked).await;
    }
}
