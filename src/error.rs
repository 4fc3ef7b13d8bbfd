//! Every error that a client can see, with its gRPC code and etcd's exact text, in one table.
//!
//! clientv3 compares the texts and retries by the codes, so both are part of the interface.
//! What is not here (a broken disk, a failed invariant) is no answer to a client: it stops the
//! process.

use tonic::{Code, Status};

/// Builds the enum and its table in one place.
macro_rules! errors {
    ($($name:ident => $code:ident, $text:literal;)*) => {
        /// An answer that tells a client why its request was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Error {
            $($name,)*
        }

        impl Error {
            /// Every error, for tests that walk the table.
            pub const ALL: &[Error] = &[$(Error::$name,)*];

            pub fn code(self) -> Code {
                match self {
                    $(Error::$name => Code::$code,)*
                }
            }

            /// The text on the wire, etcd's own.
            pub fn text(self) -> &'static str {
                match self {
                    $(Error::$name => $text,)*
                }
            }
        }
    };
}

errors! {
    EmptyKey => InvalidArgument, "etcdserver: key is not provided";
    KeyNotFound => InvalidArgument, "etcdserver: key not found";
    ValueProvided => InvalidArgument, "etcdserver: value is provided";
    LeaseProvided => InvalidArgument, "etcdserver: lease is provided";
    TooManyOps => InvalidArgument, "etcdserver: too many operations in txn request";
    DuplicateKey => InvalidArgument, "etcdserver: duplicate key given in txn request";
    InvalidClientApiVersion => InvalidArgument, "etcdserver: invalid client api version";
    InvalidSortOption => InvalidArgument, "etcdserver: invalid sort option";
    MemberBadUrls => InvalidArgument, "etcdserver: given member URLs are invalid";
    RequestTooLarge => InvalidArgument, "etcdserver: request is too large";
    WrongDowngradeFormat => InvalidArgument, "etcdserver: wrong downgrade target version format";
    InvalidDowngradeTarget => InvalidArgument, "etcdserver: invalid downgrade target version";
    InvalidAlarmAction => InvalidArgument, "etcdserver: unknown alarm action";
    UserEmpty => InvalidArgument, "etcdserver: user name is empty";
    RoleEmpty => InvalidArgument, "etcdserver: role name is empty";
    AuthFailed => InvalidArgument, "etcdserver: authentication failed, invalid user ID or password";
    PermissionNotGiven => InvalidArgument, "etcdserver: permission not given";
    InvalidPermissionType => InvalidArgument, "etcdserver: unknown permission type";
    InvalidAuthManagement => InvalidArgument, "etcdserver: invalid auth management";
    AuthOldRevision => InvalidArgument, "etcdserver: revision of auth store is old";
    InvalidAuthToken => Unauthenticated, "etcdserver: invalid auth token";
    PermissionDenied => PermissionDenied, "etcdserver: permission denied";
    RootUserNotExist => FailedPrecondition, "etcdserver: root user does not exist";
    RootRoleNotExist => FailedPrecondition, "etcdserver: root user does not have root role";
    UserExists => FailedPrecondition, "etcdserver: user name already exists";
    UserNotFound => FailedPrecondition, "etcdserver: user name not found";
    RoleExists => FailedPrecondition, "etcdserver: role name already exists";
    RoleNotFound => FailedPrecondition, "etcdserver: role name not found";
    RoleNotGranted => FailedPrecondition, "etcdserver: role is not granted to the user";
    PermissionNotGranted => FailedPrecondition, "etcdserver: permission is not granted to the role";
    NoPasswordUser => Unknown, "auth: authentication failed, password was given for no password user";
    Compacted => OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FutureRevision => OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    LeaseTtlTooLarge => OutOfRange, "etcdserver: too large lease TTL";
    NoSpace => ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    AnswerTooLarge => ResourceExhausted, "etcdserver: the answer would be larger than the memory budget lets it be; nothing was changed";
    AnswerNotKept => ResourceExhausted, "etcdserver: the request was applied, but its answer is larger than the memory budget lets it be";
    LeaseNotFound => NotFound, "etcdserver: requested lease not found";
    MemberNotFound => NotFound, "etcdserver: member not found";
    LeaseExists => FailedPrecondition, "etcdserver: lease already exists";
    MemberExists => FailedPrecondition, "etcdserver: member ID already exist";
    MemberNotLearner => FailedPrecondition, "etcdserver: can only promote a learner member";
    LearnerNotReady => FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    TooManyLearners => FailedPrecondition, "etcdserver: too many learner members in cluster";
    NotSupportedForLearner => FailedPrecondition, "etcdserver: rpc not supported for learner";
    PeerUrlExists => FailedPrecondition, "etcdserver: Peer URLs already exists";
    NotLeader => FailedPrecondition, "etcdserver: not leader";
    NotCapable => FailedPrecondition, "etcdserver: not capable";
    BadLeaderTransferee => FailedPrecondition, "etcdserver: bad leader transferee";
    AuthNotEnabled => FailedPrecondition, "etcdserver: authentication is not enabled";
    ClusterVersionUnavailable => FailedPrecondition, "etcdserver: cluster version not found during downgrade";
    DowngradeInProgress => FailedPrecondition, "etcdserver: cluster has a downgrade job in progress";
    NoDowngrade => FailedPrecondition, "etcdserver: no inflight downgrade job";
    NoLeader => Unavailable, "etcdserver: no leader";
    LeaderChanged => Unavailable, "etcdserver: leader changed";
    Stopped => Unavailable, "etcdserver: server stopped";
    Timeout => Unavailable, "etcdserver: request timed out";
    DeadlineExceeded => DeadlineExceeded, "context deadline exceeded";
    TimeoutLeaderFailed => Unavailable, "etcdserver: request timed out, possibly due to previous leader failure";
    TimeoutConnectionLost => Unavailable, "etcdserver: request timed out, possibly due to connection lost";
    TimeoutLeaderTransfer => Unknown, "etcdserver: request timed out, leader transfer took too long";
    Unhealthy => Unavailable, "etcdserver: unhealthy cluster";
    NotEnoughStartedMembers => Unknown, "etcdserver: re-configuration failed due to not enough started members";
    Corrupt => DataLoss, "etcdserver: corrupt cluster";
    WatchCanceled => Cancelled, "etcdserver: watch canceled";
    TooManyRequests => Unknown, "etcdserver: too many requests";
    TooManyStreams => Unavailable, "etched: too many calls are open at once; try again later";
    Overloaded => ResourceExhausted, "etched: too many large requests at once; try again later";
    PasswordTooLong => Unknown, "bcrypt: password length exceeds 72 bytes";
    TokensNotSigned => Unknown, "auth: token signing attempted with verify-only key";
    UnknownMethod => Unknown, "etcdserver: unknown method";
    RangeStreamSort => Unimplemented, "RangeStream does not support custom sort orders";
    RangeStreamFilters => Unimplemented, "RangeStream does not support revision filters";
    BackupFailed => Internal, "etched: the backup could not be made; this member's log says why";
    HashFailed => Internal, "etched: the hash could not be made; this member's log says why";
    SessionExpired => Unknown, "mutex: session is expired";
    ElectionNotLeader => Unknown, "election: not leader";
    ElectionNoLeader => Unknown, "election: no leader";
    LeaderNotGiven => Unknown, "\"leader\" field must be provided";
}

impl Error {
    /// As etcd's Lock and Election answer it, which are clients of the other services and pass on
    /// the text alone; but for a deadline, which is their caller's.
    pub fn without_code(self) -> Status {
        match self {
            Error::DeadlineExceeded => self.into(),
            _ => Status::unknown(self.text()),
        }
    }

    /// The error with this text, as another member sends it.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|error| error.text() == text)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Error {}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), error.text())
    }
}

/// Reasons why a watch was not made or was ended; etcd sends them as text, without a code.
pub mod watch_reason {
    pub const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
    pub const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
    pub const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_unique_and_prefixed() {
        let mut texts: Vec<_> = Error::ALL.iter().map(|error| error.text()).collect();
        for (error, text) in Error::ALL.iter().zip(&texts) {
            let plain = matches!(error.code(), Code::Unimplemented | Code::DeadlineExceeded)
                || *error == Error::LeaderNotGiven;
            assert!(
                plain
                    || [
                        "etcdserver: ",
                        "etched: ",
                        "auth: ",
                        "bcrypt: ",
                        "mutex: ",
                        "election: "
                    ]
                    .iter()
                    .any(|prefix| text.starts_with(prefix)),
                "{text}"
            );
        }
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Error::ALL.len());
    }

    #[test]
    fn texts_lead_back_to_their_errors() {
        for error in Error::ALL {
            assert_eq!(Error::from_text(error.text()), Some(*error));
        }
        assert_eq!(Error::from_text("etcdserver: no lead"), None);
    }
}
