//! Requests about users and roles as text. Passwords, their hashes and tokens are not shown.

use super::fields::Fields;
use crate::proto::authpb::Permission;
use crate::proto::etcdserverpb::InternalRaftRequest;

/// What one asks of which something is hidden; etcd shows the rest in the older form, without
/// quotes.
pub fn hiding(request: &InternalRaftRequest) -> Option<String> {
    if let Some(authenticate) = &request.authenticate {
        let (name, token) = (&authenticate.name, authenticate.simple_token.len());
        return Some(format!(
            "authenticate:<name:{name} simple_token_size:{token}>"
        ));
    }
    if let Some(add) = &request.auth_user_add {
        return Some(format!("auth_user_add:<name:{}>", add.name));
    }
    let change = request.auth_user_change_password.as_ref()?;
    Some(format!("auth_user_change_password:<name:{}>", change.name))
}

/// What another one asks: its name and its text.
pub fn plain(request: &InternalRaftRequest) -> Option<(&'static str, String)> {
    macro_rules! of {
        ($($field:ident: |$message:ident| $fields:expr;)*) => {
            $(if let Some($message) = &request.$field {
                return Some((stringify!($field), $fields.text));
            })*
        };
    }
    let none = Fields::newer;
    let name = |name: &str| Fields::newer().bytes("name", name.as_bytes());
    let role = |role: &str| Fields::newer().bytes("role", role.as_bytes());
    of! {
        auth_enable: |_asked| none();
        auth_disable: |_asked| none();
        auth_status: |_asked| none();
        auth_user_list: |_asked| none();
        auth_role_list: |_asked| none();
        auth_user_get: |asked| name(&asked.name);
        auth_user_delete: |asked| name(&asked.name);
        auth_user_grant_role: |asked| {
            let user = Fields::newer().bytes("user", asked.user.as_bytes());
            user.bytes("role", asked.role.as_bytes())
        };
        auth_user_revoke_role: |asked| {
            name(&asked.name).bytes("role", asked.role.as_bytes())
        };
        auth_role_add: |asked| name(&asked.name);
        auth_role_get: |asked| role(&asked.role);
        auth_role_delete: |asked| role(&asked.role);
        auth_role_grant_permission: |asked| match &asked.perm {
            None => name(&asked.name),
            Some(granted) => name(&asked.name).message("perm", &permission(granted)),
        };
        auth_role_revoke_permission: |asked| {
            let key = role(&asked.role).bytes("key", &asked.key);
            key.bytes("range_end", &asked.range_end)
        };
    }
    None
}

fn permission(permission: &Permission) -> String {
    Fields::newer()
        .word("permType", permission.perm_type, || {
            permission.perm_type().as_str_name()
        })
        .bytes("key", &permission.key)
        .bytes("range_end", &permission.range_end)
        .text
}
