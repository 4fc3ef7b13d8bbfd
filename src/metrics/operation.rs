//! The operation of a request, as etcd's metrics label it.

use crate::proto::etcdserverpb::InternalRaftRequest;

/// Builds the enum from the fields of a request, in the order in which they are read.
macro_rules! operations {
    ($($name:ident <- $field:ident;)*) => {
        /// A label's value.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Operation {
            $($name,)*
            /// A read-only transaction, which is not in the log.
            ReadonlyTxn,
            Unknown,
        }

        impl Operation {
            /// Every operation, at the place of its number.
            pub const ALL: &[Operation] = &[
                $(Operation::$name,)*
                Operation::ReadonlyTxn,
                Operation::Unknown,
            ];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Operation::$name => stringify!($name),)*
                    Operation::ReadonlyTxn => "ReadonlyTxn",
                    Operation::Unknown => "Unknown",
                }
            }

            /// The operation of a request to the state machine.
            pub fn of(request: &InternalRaftRequest) -> Self {
                $(if request.$field.is_some() {
                    return Operation::$name;
                })*
                Operation::Unknown
            }
        }
    };
}

operations! {
    Range <- range;
    Put <- put;
    DeleteRange <- delete_range;
    Txn <- txn;
    Compaction <- compaction;
    LeaseGrant <- lease_grant;
    LeaseRevoke <- lease_revoke;
    LeaseCheckpoint <- lease_checkpoint;
    Alarm <- alarm;
    Authenticate <- authenticate;
    AuthEnable <- auth_enable;
    AuthDisable <- auth_disable;
    AuthStatus <- auth_status;
    AuthUserAdd <- auth_user_add;
    AuthUserDelete <- auth_user_delete;
    AuthUserChangePassword <- auth_user_change_password;
    AuthUserGrantRole <- auth_user_grant_role;
    AuthUserGet <- auth_user_get;
    AuthUserRevokeRole <- auth_user_revoke_role;
    AuthRoleAdd <- auth_role_add;
    AuthRoleGrantPermission <- auth_role_grant_permission;
    AuthRoleGet <- auth_role_get;
    AuthRoleRevokePermission <- auth_role_revoke_permission;
    AuthRoleDelete <- auth_role_delete;
    AuthUserList <- auth_user_list;
    AuthRoleList <- auth_role_list;
    ClusterVersionSet <- cluster_version_set;
    ClusterMemberAttrSet <- cluster_member_attr_set;
    DowngradeInfoSet <- downgrade_info_set;
    DowngradeVersionTest <- downgrade_version_test;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::{PutRequest, TxnRequest};

    #[test]
    fn an_operation_is_found_by_its_number_and_by_its_request() {
        for (number, operation) in Operation::ALL.iter().enumerate() {
            assert_eq!(*operation as usize, number);
        }
        let mut request = InternalRaftRequest::default();
        assert_eq!(Operation::of(&request).name(), "Unknown");
        request.txn = Some(TxnRequest::default());
        assert_eq!(Operation::of(&request), Operation::Txn);
        request.put = Some(PutRequest::default());
        assert_eq!(Operation::of(&request).name(), "Put");
    }
}
