//! Users, roles and permissions: who may do what, and whether that is asked at all.
//!
//! `store` executes the requests of the log on them, `view` is what the rest of a member sees: an
//! immutable state that is published together with the keyspace of the same entry, so that nobody
//! reads data of one moment by the permissions of an earlier one. `permissions` holds the key
//! ranges of a user, computed once for each change; `verdict` decides with them.
//!
//! Passwords are here as bcrypt hashes only, and nothing here prints them.

pub mod event;
pub mod permissions;
pub mod store;
pub mod verdict;
pub mod view;

pub use event::AuthEvent;
pub use store::AuthStore;
pub use view::AuthView;

/// The role whose holders may do everything. It need not exist as an object to be granted.
pub const ROOT_ROLE: &str = "root";
/// The user that has to hold the role before authentication can be enabled. It is an ordinary one
/// otherwise: what bypasses all checks is the role.
pub const ROOT_USER: &str = "root";
