//! What applied entries mean for the tokens that a member keeps, which are no part of the state.

use std::fmt;

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub enum AuthEvent {
    /// A user proved its password, and got this token.
    TokenIssued { token: String, user: String },
    /// A user was deleted or its password changed.
    UserTokensRevoked { user: String },
    /// Authentication was disabled.
    AllTokensRevoked,
}

impl fmt::Debug for AuthEvent {
    /// Without the token: a reader of a log could use it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TokenIssued { user, .. } => write!(f, "TokenIssued to {user:?}"),
            Self::UserTokensRevoked { user } => write!(f, "UserTokensRevoked of {user:?}"),
            Self::AllTokensRevoked => f.write_str("AllTokensRevoked"),
        }
    }
}
