//! Users: one who changes users, roles and permissions, and some who have only what they are
//! permitted.

use bytes::Bytes;

use super::super::client::Client;
use super::super::history::{Answer, ClientRequest, Outcome};
use super::super::random::Random;
use super::load::Load;
use super::requests::*;
use crate::proto::authpb::Permission;
use crate::proto::etcdserverpb::*;

/// Who is not `root`.
pub const USERS: [&str; 3] = ["alice", "bob", "carol"];
const ROLES: [&str; 3] = ["reader", "writer", "both"];
/// What roles are permitted: keys, prefixes, what touches and what overlaps, and open ends.
const RANGES: [(&str, &str); 9] = [
    ("a", ""),
    ("a", "b"),
    ("b", "b/2"),
    ("b/2", "c"),
    ("b/", "b0"),
    ("c", "\0"),
    ("d", ""),
    ("l", "m"),
    ("\0", "\0"),
];

fn user_add(name: &str) -> InternalRaftRequest {
    InternalRaftRequest {
        auth_user_add: Some(AuthUserAddRequest {
            name: name.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn role_add(name: &str) -> InternalRaftRequest {
    InternalRaftRequest {
        auth_role_add: Some(AuthRoleAddRequest {
            name: name.to_owned(),
        }),
        ..Default::default()
    }
}

fn role_grant(user: &str, role: &str) -> InternalRaftRequest {
    InternalRaftRequest {
        auth_user_grant_role: Some(AuthUserGrantRoleRequest {
            user: user.to_owned(),
            role: role.to_owned(),
        }),
        ..Default::default()
    }
}

fn permit(
    role: &str,
    kind: i32,
    (key, range_end): (&'static str, &'static str),
) -> InternalRaftRequest {
    InternalRaftRequest {
        auth_role_grant_permission: Some(AuthRoleGrantPermissionRequest {
            name: role.to_owned(),
            perm: Some(Permission {
                perm_type: kind,
                key: Bytes::from_static(key.as_bytes()),
                range_end: Bytes::from_static(range_end.as_bytes()),
            }),
        }),
        ..Default::default()
    }
}

fn enable() -> InternalRaftRequest {
    InternalRaftRequest {
        auth_enable: Some(AuthEnableRequest {}),
        ..Default::default()
    }
}

/// What has to be there before authentication is enabled, and some roles.
fn setup() -> Vec<InternalRaftRequest> {
    let mut requests = vec![user_add("root"), role_grant("root", "root")];
    requests.extend(USERS.map(user_add));
    requests.extend(ROLES.map(role_add));
    requests.extend([
        permit("reader", 0, ("a", "c")),
        permit("writer", 1, ("a", "b/2")),
        permit("writer", 1, ("b/2", "d")),
        permit("both", 2, ("b/", "b0")),
        permit("both", 2, ("l", "m")),
        role_grant("alice", "reader"),
        role_grant("bob", "writer"),
        role_grant("bob", "both"),
        enable(),
    ]);
    requests
}

fn random_change(random: &mut Random) -> InternalRaftRequest {
    let user = *random.pick(&USERS);
    let role = *random.pick(&ROLES);
    let range = *random.pick(&RANGES);
    let mut request = InternalRaftRequest::default();
    match random.below(24) {
        0..6 => return role_grant(user, role),
        6..10 => {
            request.auth_user_revoke_role = Some(AuthUserRevokeRoleRequest {
                name: user.to_owned(),
                role: role.to_owned(),
            });
        }
        10..14 => return permit(role, random.below(3) as i32, range),
        14..18 => {
            request.auth_role_revoke_permission = Some(AuthRoleRevokePermissionRequest {
                role: role.to_owned(),
                key: Bytes::from_static(range.0.as_bytes()),
                range_end: Bytes::from_static(range.1.as_bytes()),
            });
        }
        18 => {
            request.auth_user_delete = Some(AuthUserDeleteRequest {
                name: user.to_owned(),
            });
        }
        19 => return user_add(user),
        20 => {
            request.auth_role_delete = Some(AuthRoleDeleteRequest {
                role: role.to_owned(),
            });
        }
        21 => return role_add(role),
        22 => {
            request.auth_user_get = Some(AuthUserGetRequest {
                name: user.to_owned(),
            });
        }
        _ => request.auth_disable = Some(AuthDisableRequest {}),
    }
    request
}

/// Has a request executed, until it is known to be.
async fn insist(client: &mut Client, request: InternalRaftRequest) {
    while !client.clients.stopping() {
        let asked = ClientRequest::Auth(Box::new(request.clone()));
        let outcome = client.call(asked).await;
        let too_old = crate::error::Error::AuthOldRevision.text();
        match outcome {
            Some(Outcome::Answered(_)) => return,
            // It may have been executed before.
            Some(Outcome::Refused(text)) if text != too_old => return,
            _ => client.pause(10_000, 200_000).await,
        }
    }
}

/// Enables authentication, and changes who may do what.
pub async fn administrator(mut client: Client) {
    for request in setup() {
        insist(&mut client, request).await;
    }
    while !client.clients.stopping() {
        client.pause(20_000, 1_500_000).await;
        let change = random_change(&mut client.random);
        let disables = change.auth_disable.is_some();
        client.call(ClientRequest::Auth(Box::new(change))).await;
        if disables {
            client.pause(1_000, 500_000).await;
            insist(&mut client, enable()).await;
        }
    }
}

/// Reads and writes what it may and what it may not.
pub async fn user(mut client: Client, load: Load) {
    let mut head = 1;
    while !client.clients.stopping() {
        think(&mut client, load).await;
        let key = *client.random.pick(&KEYS);
        let asked = match client.random.below(20) {
            0..5 => ClientRequest::Put(random_put(&mut client, load, key)),
            5 | 6 => ClientRequest::DeleteRange(random_delete(&mut client.random)),
            7..10 => {
                let first = client.random.below(KEYS.len() as u64 - 4) as usize;
                let count = client.random.between(1, 3) as usize;
                let keys = &KEYS[first..first + count];
                ClientRequest::Txn(random_txn(&mut client, load, keys, 1, head))
            }
            10 => match some_lease(&mut client) {
                0 => continue,
                id => ClientRequest::LeaseRevoke { id },
            },
            11 => match some_lease(&mut client) {
                0 => continue,
                id => ClientRequest::LeaseTimeToLive { id, keys: true },
            },
            14 => match some_lease(&mut client) {
                0 => continue,
                id => ClientRequest::LeaseKeepAlive { id },
            },
            15 => ClientRequest::LeaseLeases,
            12 => ClientRequest::RangeStream(plain_read(&mut client.random, head)),
            13 => ClientRequest::Auth(Box::new(random_change(&mut client.random))),
            _ => ClientRequest::Range(random_read(&mut client.random, head)),
        };
        let is_change = matches!(asked, ClientRequest::Auth(_));
        let outcome = client.call(asked).await;
        head = head_of(outcome.as_ref(), head);
        // While it is disabled, anybody may.
        let done = matches!(outcome, Some(Outcome::Answered(Answer::Auth(_))));
        if is_change && done {
            insist(&mut client, enable()).await;
        }
    }
}
