//! The identities of caller, cluster and receiver in the metadata of every call between members,
//! and the refusals of a receiver.

use http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::dial::Route;
use crate::types::{ClusterId, MemberId};

const CLUSTER: &str = "etched-cluster-id";
const FROM: &str = "etched-from";
const TO: &str = "etched-to";
const INCARNATION: &str = "etched-incarnation";
const VERSION: &str = "etched-version";
const FORMAT: &str = "etched-data-format";
/// The caller's peer URLs, separated by commas.
const URLS: &str = "etched-peer-urls";
pub const LANE: &str = "etched-lane";

const CLUSTER_TEXT: &str = "etched: cluster ID mismatch";
const ADDRESSEE_TEXT: &str = "etched: member ID mismatch";
const REMOVED_TEXT: &str = "etched: the member has been permanently removed from the cluster";
const INCARNATION_TEXT: &str = "etched: this member called with another data directory before; \
    without what it acknowledged it must not take part: put that directory back, or remove the \
    member from its cluster and add it again with an empty one";
const FORMAT_TEXT: &str = "etched: this cluster has users or roles, and this member's program does \
    not know them; start it with the program of the others";
const UNLISTED_TEXT: &str = "etched: this member knows the caller neither as a member nor as its leader; later, when it does";
const BUSY_TEXT: &str = "etched: this member receives other states now; later, when it has them";
const NAMELESS_TEXT: &str = "etched: the call does not say who calls whom";

/// This member, as it introduces itself to the others.
#[derive(Clone, Debug)]
pub struct Local {
    pub member: MemberId,
    pub cluster: ClusterId,
    /// Of its data directory: chosen at random when that was made.
    pub incarnation: u64,
    /// The version that this program speaks, such as 3.7.3.
    pub server_version: String,
    /// The newest format of data that this program knows.
    pub data_format: u64,
    /// Its peer URLs, until its state has them.
    pub peer_urls: Vec<String>,
}

/// Why a call was refused without reading its contents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallRefusal {
    #[error("{CLUSTER_TEXT}: here it is {local}, the caller's is {remote}")]
    Cluster { local: ClusterId, remote: ClusterId },
    #[error("{ADDRESSEE_TEXT}: here is {local}, the call is from {from} to {to}")]
    Addressee {
        local: MemberId,
        from: MemberId,
        to: MemberId,
    },
    #[error("{REMOVED_TEXT}")]
    Removed(MemberId),
    #[error("{INCARNATION_TEXT}")]
    Incarnation(MemberId),
    #[error("{FORMAT_TEXT}")]
    Format(MemberId),
    /// For a state.
    #[error("{UNLISTED_TEXT}")]
    Unlisted,
    /// For a state.
    #[error("{BUSY_TEXT}")]
    Busy,
    #[error("{NAMELESS_TEXT}")]
    Nameless,
}

impl CallRefusal {
    /// The same however often a caller changes what it says.
    pub fn topic(&self) -> &'static str {
        match self {
            CallRefusal::Cluster { .. } => CLUSTER_TEXT,
            CallRefusal::Addressee { .. } => ADDRESSEE_TEXT,
            CallRefusal::Removed(_) => REMOVED_TEXT,
            CallRefusal::Incarnation(_) => INCARNATION_TEXT,
            CallRefusal::Format(_) => FORMAT_TEXT,
            CallRefusal::Unlisted => UNLISTED_TEXT,
            CallRefusal::Busy => BUSY_TEXT,
            CallRefusal::Nameless => NAMELESS_TEXT,
        }
    }
}

impl From<&CallRefusal> for Status {
    fn from(refusal: &CallRefusal) -> Self {
        let code = match refusal {
            CallRefusal::Removed(_) => Code::PermissionDenied,
            CallRefusal::Unlisted | CallRefusal::Busy => Code::Unavailable,
            _ => Code::FailedPrecondition,
        };
        Status::new(code, refusal.to_string())
    }
}

/// The kind of a refusal, as the caller recognises it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The caller was removed from the cluster.
    Removed,
    /// Another cluster, or another member than the intended one.
    Mismatch,
    /// The same may be taken in a while.
    Later,
}

/// Recognises refusals among other errors.
pub fn recognise(status: &Status) -> Option<RefusalKind> {
    let text = status.message();
    match status.code() {
        Code::PermissionDenied if text == REMOVED_TEXT => Some(RefusalKind::Removed),
        Code::Unavailable if [UNLISTED_TEXT, BUSY_TEXT].contains(&text) => Some(RefusalKind::Later),
        Code::FailedPrecondition => [
            CLUSTER_TEXT,
            ADDRESSEE_TEXT,
            INCARNATION_TEXT,
            FORMAT_TEXT,
            NAMELESS_TEXT,
        ]
        .iter()
        .any(|known| text.starts_with(known))
        .then_some(RefusalKind::Mismatch),
        _ => None,
    }
}

/// The text of a status with its causes, each once.
pub fn why(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&more);
        }
        cause = error.source();
    }
    if text.is_empty() {
        text = status.code().to_string();
    }
    text
}

/// Adds the identities to a call.
pub fn stamp(metadata: &mut MetadataMap, local: &Local, to: MemberId) {
    let values = [
        (CLUSTER, local.cluster.to_string()),
        (FROM, local.member.to_string()),
        (TO, to.to_string()),
        (INCARNATION, format!("{:x}", local.incarnation)),
        (VERSION, local.server_version.clone()),
        (FORMAT, local.data_format.to_string()),
    ];
    for (key, value) in values {
        // A version that is not ASCII is left out; the ids are always sent.
        if let Ok(value) = value.parse() {
            metadata.insert(key, value);
        }
    }
}

/// Adds the caller's peer URLs to a call.
pub fn stamp_urls(metadata: &mut MetadataMap, urls: &[String]) {
    // URLs that are not ASCII cannot be sent.
    if let Ok(value) = urls.join(",").parse() {
        metadata.insert(URLS, value);
    }
}

/// The caller's peer URLs.
pub fn urls(metadata: &MetadataMap) -> Vec<String> {
    let text = metadata.get(URLS).and_then(|value| value.to_str().ok());
    let urls = text.unwrap_or_default().split(',');
    let urls = urls.filter(|url| Route::of(url).is_ok());
    urls.map(str::to_owned).collect()
}

/// The incarnation of the caller, if it says it.
pub fn incarnation(metadata: &MetadataMap) -> Option<u64> {
    let text = metadata.get(INCARNATION)?.to_str().ok()?;
    u64::from_str_radix(text, 16).ok()
}

/// The newest format of data that the caller knows; 0 from one that does not say it.
pub fn format(metadata: &MetadataMap) -> u64 {
    let text = metadata.get(FORMAT).and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Who the caller says it is.
pub fn caller(headers: &HeaderMap) -> Option<MemberId> {
    let text = headers.get(FROM)?.to_str().ok()?;
    u64::from_str_radix(text, 16).ok().map(MemberId)
}

/// The caller, if the call is for this member.
pub fn check(
    metadata: &MetadataMap,
    local: &Local,
    is_removed: impl Fn(MemberId) -> bool,
) -> Result<MemberId, CallRefusal> {
    let id = |key| {
        let text = metadata.get(key).and_then(|value| value.to_str().ok());
        text.and_then(|text| u64::from_str_radix(text, 16).ok())
            .ok_or(CallRefusal::Nameless)
    };
    let cluster = ClusterId(id(CLUSTER)?);
    let (from, to) = (MemberId(id(FROM)?), MemberId(id(TO)?));
    if cluster != local.cluster {
        return Err(CallRefusal::Cluster {
            local: local.cluster,
            remote: cluster,
        });
    }
    if is_removed(from) {
        return Err(CallRefusal::Removed(from));
    }
    if to != local.member || from == local.member {
        return Err(CallRefusal::Addressee {
            local: local.member,
            from,
            to,
        });
    }
    Ok(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(cluster: u64, member: u64) -> Local {
        Local {
            member: MemberId(member),
            cluster: ClusterId(cluster),
            incarnation: 5,
            server_version: "3.7.3".to_owned(),
            data_format: 2,
            peer_urls: Vec::new(),
        }
    }

    /// The result of a call from member `from` in `cluster` to member `to`, at member 2 of cluster
    /// 7, from which member 9 was removed.
    fn called(cluster: u64, from: u64, to: u64) -> Result<MemberId, CallRefusal> {
        let mut metadata = MetadataMap::new();
        stamp(&mut metadata, &local(cluster, from), MemberId(to));
        check(&metadata, &local(7, 2), |member| member == MemberId(9))
    }

    #[test]
    fn a_call_must_be_for_this_member_of_this_cluster() {
        let high = u64::MAX - 1;
        assert_eq!(called(7, high, 2), Ok(MemberId(high)));
        assert!(matches!(called(8, 1, 2), Err(CallRefusal::Cluster { .. })));
        assert!(matches!(called(8, 9, 2), Err(CallRefusal::Cluster { .. })));
        assert!(matches!(
            called(7, 1, 3),
            Err(CallRefusal::Addressee { .. })
        ));
        assert!(matches!(
            called(7, 2, 2),
            Err(CallRefusal::Addressee { .. })
        ));
        assert_eq!(called(7, 9, 2), Err(CallRefusal::Removed(MemberId(9))));
        let nobody = check(&MetadataMap::new(), &local(7, 2), |_| false);
        assert_eq!(nobody, Err(CallRefusal::Nameless));
    }

    #[test]
    fn a_caller_says_where_it_listens() {
        let mut metadata = MetadataMap::new();
        assert_eq!(urls(&metadata), Vec::<String>::new());
        let sent = ["http://a:1", "nonsense", "https://[::1]:2"].map(str::to_owned);
        stamp_urls(&mut metadata, &sent);
        assert_eq!(urls(&metadata), ["http://a:1", "https://[::1]:2"]);
        stamp_urls(&mut metadata, &[]);
        assert_eq!(urls(&metadata), Vec::<String>::new());
    }

    #[test]
    fn a_caller_recognises_refusals() {
        for (refusal, seen) in [
            (called(8, 1, 2), RefusalKind::Mismatch),
            (called(7, 1, 3), RefusalKind::Mismatch),
            (called(7, 9, 2), RefusalKind::Removed),
            (
                Err(CallRefusal::Incarnation(MemberId(1))),
                RefusalKind::Mismatch,
            ),
            (Err(CallRefusal::Format(MemberId(1))), RefusalKind::Mismatch),
            (Err(CallRefusal::Nameless), RefusalKind::Mismatch),
            (Err(CallRefusal::Unlisted), RefusalKind::Later),
            (Err(CallRefusal::Busy), RefusalKind::Later),
        ] {
            let status = Status::from(&refusal.expect_err("refused"));
            assert_eq!(recognise(&status), Some(seen));
        }
        let other = Status::from(crate::error::Error::NotLeader);
        assert_eq!(recognise(&other), None);
    }
}
