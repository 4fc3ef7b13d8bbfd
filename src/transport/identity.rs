//! Who calls, of which cluster, and whom: the metadata of every call between members, and the
//! refusals that its receiver answers with.

use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::types::{ClusterId, MemberId};

const CLUSTER: &str = "etched-cluster-id";
const FROM: &str = "etched-from";
const TO: &str = "etched-to";
const VERSION: &str = "etched-version";
/// Where the caller listens; separated by commas.
const URLS: &str = "etched-peer-urls";
pub const LANE: &str = "etched-lane";

const CLUSTER_TEXT: &str = "etched: cluster ID mismatch";
const ADDRESSEE_TEXT: &str = "etched: member ID mismatch";
const REMOVED_TEXT: &str = "etched: the member has been permanently removed from the cluster";
const NAMELESS_TEXT: &str = "etched: the call does not say who calls whom";

/// This member, as it tells the others.
#[derive(Clone, Debug)]
pub struct Local {
    pub member: MemberId,
    pub cluster: ClusterId,
    /// The version that this program speaks, such as 3.7.3.
    pub server_version: String,
    /// Where it listens for the others, as long as its state does not say so.
    pub peer_urls: Vec<String>,
}

/// Why a call was turned away before it was looked at.
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
    #[error("{NAMELESS_TEXT}")]
    Nameless,
}

impl From<&CallRefusal> for Status {
    fn from(refusal: &CallRefusal) -> Self {
        let code = match refusal {
            CallRefusal::Removed(_) => Code::PermissionDenied,
            _ => Code::FailedPrecondition,
        };
        Status::new(code, refusal.to_string())
    }
}

/// A refusal as its caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The caller itself is no longer of the cluster.
    Removed,
    /// Another cluster, or another member than the one that was to be called.
    Mismatch,
}

/// Tells refusals from other failures.
pub fn recognise(status: &Status) -> Option<RefusalKind> {
    let text = status.message();
    match status.code() {
        Code::PermissionDenied if text == REMOVED_TEXT => Some(RefusalKind::Removed),
        Code::FailedPrecondition => [CLUSTER_TEXT, ADDRESSEE_TEXT, NAMELESS_TEXT]
            .iter()
            .any(|known| text.starts_with(known))
            .then_some(RefusalKind::Mismatch),
        _ => None,
    }
}

/// Says on a call who calls whom.
pub fn stamp(metadata: &mut MetadataMap, local: &Local, to: MemberId) {
    let values = [
        (CLUSTER, local.cluster.to_string()),
        (FROM, local.member.to_string()),
        (TO, to.to_string()),
        (VERSION, local.server_version.clone()),
    ];
    for (key, value) in values {
        // A version that is no ASCII text would be left out; the ids always go.
        if let Ok(value) = value.parse() {
            metadata.insert(key, value);
        }
    }
}

/// Says on a call where the caller listens.
pub fn stamp_urls(metadata: &mut MetadataMap, urls: &[String]) {
    // URLs that are no ASCII text cannot be told.
    if let Ok(value) = urls.join(",").parse() {
        metadata.insert(URLS, value);
    }
}

/// Where the caller says that it listens.
pub fn urls(metadata: &MetadataMap) -> Vec<String> {
    let text = metadata.get(URLS).and_then(|value| value.to_str().ok());
    let urls = text.unwrap_or_default().split(',');
    let urls = urls.filter(|url| {
        let uri = url.parse::<http::Uri>();
        uri.is_ok_and(|uri| uri.scheme().is_some() && uri.host().is_some())
    });
    urls.map(str::to_owned).collect()
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
            server_version: "3.7.3".to_owned(),
            peer_urls: Vec::new(),
        }
    }

    /// How a call of member `from` in `cluster` to member `to` fares at member 2 of cluster 7,
    /// where member 9 was removed.
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
        let told = ["http://a:1", "nonsense", "https://[::1]:2"].map(str::to_owned);
        stamp_urls(&mut metadata, &told);
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
            (Err(CallRefusal::Nameless), RefusalKind::Mismatch),
        ] {
            let status = Status::from(&refusal.expect_err("refused"));
            assert_eq!(recognise(&status), Some(seen));
        }
        let other = Status::from(crate::error::Error::NotLeader);
        assert_eq!(recognise(&other), None);
    }
}
