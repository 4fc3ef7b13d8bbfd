//! Messages with passwords, hashes of them and tokens print themselves without: whatever is logged
//! or shown by a failed assertion, they are not in it. (`build.rs` leaves their `Debug` out.)

use std::fmt::{Debug, Formatter, Result};

use super::etcdserverpb::{
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthenticateRequest, AuthenticateResponse,
    InternalAuthenticateRequest,
};

macro_rules! without_secrets {
    ($($message:ident shows $field:ident;)*) => {
        $(impl Debug for $message {
            fn fmt(&self, f: &mut Formatter<'_>) -> Result {
                f.debug_struct(stringify!($message))
                    .field(stringify!($field), &self.$field)
                    .finish_non_exhaustive()
            }
        })*
    };
}

without_secrets! {
    AuthUserAddRequest shows name;
    AuthUserChangePasswordRequest shows name;
    AuthenticateRequest shows name;
    AuthenticateResponse shows header;
    InternalAuthenticateRequest shows name;
}

#[cfg(test)]
mod tests {
    use crate::proto::etcdserverpb::*;
    use crate::proto::text;

    const SECRET: &str = "hunter2";

    #[test]
    fn no_message_shows_a_password_a_hash_or_a_token() {
        let secret = || SECRET.to_owned();
        let name = || "alice".to_owned();
        let login = AuthenticateRequest {
            name: name(),
            password: secret(),
        };
        let logged_in = AuthenticateResponse {
            header: None,
            token: secret(),
        };
        let entry = InternalRaftRequest {
            auth_user_add: Some(AuthUserAddRequest {
                name: name(),
                password: secret(),
                options: None,
                hashed_password: secret(),
            }),
            auth_user_change_password: Some(AuthUserChangePasswordRequest {
                name: name(),
                password: secret(),
                hashed_password: secret(),
            }),
            authenticate: Some(InternalAuthenticateRequest {
                name: name(),
                password: secret(),
                simple_token: secret(),
            }),
            ..Default::default()
        };
        let shown = [
            format!("{login:?}"),
            format!("{logged_in:?}"),
            format!("{entry:#?}"),
            text::entry(&entry),
        ];
        for text in &shown {
            assert!(!text.contains(SECRET), "{text}");
        }
        assert!(shown[0].contains("alice") && shown[2].contains("alice"));
    }
}
