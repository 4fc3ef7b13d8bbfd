//! The commands of scripts that are about users and roles, as requests, and their answers.
//!
//! | command | request |
//! |---|---|
//! | `auth enable`, `auth disable`, `auth status` | |
//! | `login NAME at=REVISION [LETTERS]` | its password was checked at the auth revision; without letters the proposer signs its tokens |
//! | `user add NAME [HASH] [no_password]`, `user password NAME [HASH]` | `HASH` is encoded, unless it begins with `!` |
//! | `user get NAME`, `user list`, `user delete NAME` | |
//! | `user grant NAME ROLE`, `user revoke NAME ROLE` | |
//! | `role add NAME`, `role get NAME`, `role list`, `role delete NAME` | |
//! | `role grant NAME [KIND RANGE]` | `KIND` is `read`, `write`, `readwrite` or a number |
//! | `role revoke NAME RANGE` | |

use std::fmt::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::language::wire_range;
use crate::mvcc::tests::golden::{bytes, number, show_bytes};
use crate::proto::authpb::permission::Type;
use crate::proto::authpb::{Permission, UserAddOptions};
use crate::proto::etcdserverpb::*;
use crate::state::Response;
use crate::state::auth::AuthView;

/// A name of a user or role; `""` for none.
fn name(word: &str) -> String {
    String::from_utf8(bytes(word).to_vec()).expect("text")
}

fn hash(words: &[&str]) -> String {
    match words.first() {
        None | Some(&"no_password") => String::new(),
        Some(word) => match word.strip_prefix('!') {
            Some(raw) => raw.to_owned(),
            None => BASE64.encode(word),
        },
    }
}

fn permission(words: &[&str]) -> Option<Permission> {
    let [kind, range] = words else {
        assert!(words.is_empty(), "not a permission: {words:?}");
        return None;
    };
    let (key, range_end) = wire_range(range);
    Some(Permission {
        perm_type: match *kind {
            "read" => Type::Read as i32,
            "write" => Type::Write as i32,
            "readwrite" => Type::Readwrite as i32,
            number => number.parse().expect("a kind"),
        },
        key,
        range_end,
    })
}

fn user_request(words: &[&str], request: &mut InternalRaftRequest) {
    match *words {
        ["add", user, ref rest @ ..] => {
            request.auth_user_add = Some(AuthUserAddRequest {
                name: name(user),
                options: rest
                    .contains(&"no_password")
                    .then_some(UserAddOptions { no_password: true }),
                hashed_password: hash(rest),
                ..Default::default()
            });
        }
        ["password", user, ref rest @ ..] => {
            request.auth_user_change_password = Some(AuthUserChangePasswordRequest {
                name: name(user),
                hashed_password: hash(rest),
                ..Default::default()
            });
        }
        ["get", user] => {
            request.auth_user_get = Some(AuthUserGetRequest { name: name(user) });
        }
        ["list"] => request.auth_user_list = Some(AuthUserListRequest {}),
        ["delete", user] => {
            request.auth_user_delete = Some(AuthUserDeleteRequest { name: name(user) });
        }
        ["grant", user, role] => {
            request.auth_user_grant_role = Some(AuthUserGrantRoleRequest {
                user: name(user),
                role: name(role),
            });
        }
        ["revoke", user, role] => {
            request.auth_user_revoke_role = Some(AuthUserRevokeRoleRequest {
                name: name(user),
                role: name(role),
            });
        }
        _ => panic!("not a command about users: {words:?}"),
    }
}

fn role_request(words: &[&str], request: &mut InternalRaftRequest) {
    match *words {
        ["add", role] => request.auth_role_add = Some(AuthRoleAddRequest { name: name(role) }),
        ["get", role] => request.auth_role_get = Some(AuthRoleGetRequest { role: name(role) }),
        ["list"] => request.auth_role_list = Some(AuthRoleListRequest {}),
        ["delete", role] => {
            request.auth_role_delete = Some(AuthRoleDeleteRequest { role: name(role) });
        }
        ["grant", role, ref rest @ ..] => {
            request.auth_role_grant_permission = Some(AuthRoleGrantPermissionRequest {
                name: name(role),
                perm: permission(rest),
            });
        }
        ["revoke", role, range] => {
            let (key, range_end) = wire_range(range);
            request.auth_role_revoke_permission = Some(AuthRoleRevokePermissionRequest {
                role: name(role),
                key,
                range_end,
            });
        }
        _ => panic!("not a command about roles: {words:?}"),
    }
}

/// The request of a command; false if it is not about users, roles and tokens.
pub fn request(words: &[&str], request: &mut InternalRaftRequest) -> bool {
    match *words {
        ["auth", "enable"] => request.auth_enable = Some(AuthEnableRequest {}),
        ["auth", "disable"] => request.auth_disable = Some(AuthDisableRequest {}),
        ["auth", "status"] => request.auth_status = Some(AuthStatusRequest {}),
        ["login", user, at, ref letters @ ..] => {
            let revision = number(&[at], "at").expect("a revision");
            request.header = Some(RequestHeader {
                username: name(user),
                auth_revision: revision as u64,
                ..Default::default()
            });
            request.authenticate = Some(InternalAuthenticateRequest {
                name: name(user),
                simple_token: letters.concat(),
                ..Default::default()
            });
        }
        ["user", ref rest @ ..] => user_request(rest, request),
        ["role", ref rest @ ..] => role_request(rest, request),
        _ => return false,
    }
    true
}

fn show_permission(permission: &Permission) -> String {
    let kind = match Type::try_from(permission.perm_type) {
        Ok(kind) => kind.as_str_name().to_lowercase(),
        Err(_) => permission.perm_type.to_string(),
    };
    let key = show_bytes(&permission.key);
    match permission.range_end.as_ref() {
        b"" => format!("{kind} {key}"),
        b"\0" => format!("{kind} {key}.."),
        end => format!("{kind} {key}..{}", show_bytes(end)),
    }
}

/// What an answer says beside its header, and the header; nothing for one about something else.
pub fn answer(response: &Response) -> Option<(Option<ResponseHeader>, String)> {
    let list = |names: &[String]| names.iter().map(|name| format!(" {name}")).collect();
    Some(match response {
        Response::AuthEnable(response) => (response.header, String::new()),
        Response::AuthDisable(response) => (response.header, String::new()),
        Response::AuthStatus(response) => {
            let text = format!(
                " enabled {} auth revision {}",
                response.enabled, response.auth_revision
            );
            (response.header, text)
        }
        Response::Authenticate(authenticated) => {
            let mut text = match authenticated.response.token.as_str() {
                "" => " no token".to_owned(),
                token => format!(" token {token}"),
            };
            write!(text, " at {}", authenticated.auth_revision).expect("writes");
            text += if authenticated.stale { " stale" } else { "" };
            (authenticated.response.header, text)
        }
        Response::AuthUserAdd(response) => (response.header, String::new()),
        Response::AuthUserGet(response) => (response.header, list(&response.roles)),
        Response::AuthUserList(response) => (response.header, list(&response.users)),
        Response::AuthUserDelete(response) => (response.header, String::new()),
        Response::AuthUserChangePassword(response) => (response.header, String::new()),
        Response::AuthUserGrantRole(response) => (response.header, String::new()),
        Response::AuthUserRevokeRole(response) => (response.header, String::new()),
        Response::AuthRoleAdd(response) => (response.header, String::new()),
        Response::AuthRoleGet(response) => {
            let permissions = response.perm.iter().map(show_permission);
            let text = permissions.map(|text| format!("\n  {text}")).collect();
            (response.header, text)
        }
        Response::AuthRoleList(response) => (response.header, list(&response.roles)),
        Response::AuthRoleDelete(response) => (response.header, String::new()),
        Response::AuthRoleGrantPermission(response) => (response.header, String::new()),
        Response::AuthRoleRevokePermission(response) => (response.header, String::new()),
        _ => return None,
    })
}

/// All that is known of users and roles.
pub fn show(view: &AuthView) -> String {
    let on = if view.is_enabled() { "on" } else { "off" };
    let mut text = format!("{on} at {}\n", view.revision());
    for user in view.users() {
        let hash = String::from_utf8_lossy(&user.password_hash);
        let password = match (user.no_password, hash.as_ref()) {
            (true, "") => " no password".to_owned(),
            (false, "") => " no hash".to_owned(),
            (_, hash) => format!(" hash {hash}"),
        };
        writeln!(
            text,
            "user {}{password} roles {:?}",
            show_bytes(user.name.as_bytes()),
            user.roles
        )
        .expect("writes");
    }
    for (name, role) in view.roles() {
        let permissions: Vec<String> = role.permissions.iter().map(show_permission).collect();
        writeln!(
            text,
            "role {}: {}",
            show_bytes(name.as_bytes()),
            permissions.join(", ")
        )
        .expect("writes");
    }
    text
}
