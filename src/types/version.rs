//! Versions as etcd compares them: what the cluster should run at, and what it may be taken
//! down to; and the page that shows them. Decides only; `jobs::version` asks and proposes.

use std::fmt;

use serde::Serialize;

/// A release without its patch level, which decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: i64,
    pub minor: i64,
}

/// What a cluster runs at while not all its members can be asked.
pub const LEAST: Version = Version::new(3, 0);

/// The newest version that this program can run a cluster at.
pub const NEWEST: Version = Version::new(3, 7);

/// `NEWEST` as it is stored: what nearly every cluster runs at, and the newest form of etcd's storage.
pub const NEWEST_TEXT: &str = "3.7.0";

impl Version {
    pub const fn new(major: i64, minor: i64) -> Self {
        Self { major, minor }
    }

    /// Reads `MAJOR.MINOR.PATCH`, with or without `-pre` and `+build`; what go-semver takes.
    pub fn parse(text: &str) -> Option<Self> {
        let (text, build) = text.split_once('+').unwrap_or((text, ""));
        let (text, pre) = text.split_once('-').unwrap_or((text, ""));
        if !is_identifier(build) || !is_identifier(pre) {
            return None;
        }
        let mut numbers = text.splitn(3, '.').map(|number| number.parse::<i64>().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        let _patch = numbers.next()??;
        Some(Self { major, minor })
    }

    /// Reads what a client asks to go down to: the patch level may be left out.
    pub fn parse_target(text: &str) -> Option<Self> {
        Self::parse(text).or_else(|| Self::parse(&format!("{text}.0")))
    }

    /// The one version that a cluster may be taken down to.
    pub fn one_below(self) -> Self {
        Self {
            minor: self.minor.saturating_sub(1),
            ..self
        }
    }
}

/// `MAJOR.MINOR.0`, as it is stored and shown.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.0", self.major, self.minor)
    }
}

/// The storage version of a cluster at this version; as in etcd it follows the cluster version.
pub fn of_storage(cluster: Option<&str>) -> &str {
    let least = LEAST.to_string();
    cluster
        .filter(|version| *version != least)
        .unwrap_or(NEWEST_TEXT)
}

/// `MAJOR.MINOR` of a version as it is stored.
pub fn short(version: &str) -> String {
    match Version::parse(version) {
        Some(Version { major, minor }) => format!("{major}.{minor}"),
        None => version.to_owned(),
    }
}

/// The page `/version` of the ports for clients and for members, in etcd's names and order.
#[derive(Serialize)]
struct VersionPage<'a> {
    etcdserver: &'a str,
    etcdcluster: &'a str,
    storage: &'a str,
}

/// That page: the server's release, the cluster's version if there is one, the storage's version.
pub fn page(server: &str, cluster: Option<&str>, storage: &str) -> String {
    let page = VersionPage {
        etcdserver: server,
        etcdcluster: cluster.unwrap_or("not_decided"),
        storage,
    };
    // Three strings can always be written.
    serde_json::to_string(&page).unwrap_or_default()
}

fn is_identifier(text: &str) -> bool {
    let is_part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !part.is_empty() && part.chars().all(allowed)
    };
    text.is_empty() || text.split('.').all(is_part)
}

/// A downgrade that was begun leads to a version that cannot be gone to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidTarget;

/// What the cluster should run at from now on; `None` where that is what it runs at. `lowest` is
/// the lowest version of all members, none where one of them did not say.
pub fn decide(
    cluster: Option<Version>,
    lowest: Option<Version>,
    downgrade_target: Option<Version>,
) -> Result<Option<Version>, InvalidTarget> {
    let Some(cluster) = cluster else {
        return Ok(Some(lowest.unwrap_or(LEAST)));
    };
    let Some(lowest) = lowest else {
        return Ok(None);
    };
    match downgrade_target {
        Some(target) if target == cluster => Ok(None),
        Some(target) if target != cluster.one_below() || target != lowest.one_below() => {
            Err(InvalidTarget)
        }
        Some(target) => Ok(Some(target)),
        None => {
            let higher = cluster < lowest && cluster.major == lowest.major;
            Ok(higher.then_some(lowest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Option<Version> {
        Version::parse_target(text)
    }

    #[test]
    fn targets_are_read_as_etcd_reads_them() {
        for (text, expected) in [
            ("3.6", Some((3, 6))),
            ("3.6.0", Some((3, 6))),
            ("3.6.9-rc.1+build", Some((3, 6))),
            ("+3.6", None),
            ("03.6", Some((3, 6))),
            ("3", None),
            ("", None),
            ("v3.6", None),
            ("3.6.", None),
            ("3.6.0.1", None),
            ("3.6.0-", Some((3, 6))),
            ("3.6.0-a..b", None),
            ("-3.6.0", None),
            (" 3.6", None),
            ("3.x", None),
            ("99999999999999999999.6", None),
        ] {
            let expected = expected.map(|(major, minor)| Version::new(major, minor));
            assert_eq!(v(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_versions_of_this_program_are_one() {
        assert_eq!(Version::parse(NEWEST_TEXT), Some(NEWEST));
        assert_eq!(NEWEST.to_string(), NEWEST_TEXT);
        assert_eq!(Version::parse(crate::types::ETCD_VERSION), Some(NEWEST));
    }

    #[test]
    fn the_cluster_s_version_follows_its_members() {
        for (cluster, lowest, target, expected) in [
            // At first: the lowest, or the least of all where somebody does not answer.
            ("", "3.7", "", Ok(v("3.7"))),
            ("", "", "", Ok(v("3.0"))),
            // Raised when all know a higher one, and never lowered.
            ("3.0", "3.7", "", Ok(v("3.7"))),
            ("3.0", "", "", Ok(None)),
            ("3.7", "3.7", "", Ok(None)),
            ("3.7", "3.6", "", Ok(None)),
            ("3.7", "4.0", "", Ok(None)),
            // A downgrade: one step, then it stays.
            ("3.7", "3.7", "3.6", Ok(v("3.6"))),
            ("3.6", "3.7", "3.6", Ok(None)),
            ("3.7", "", "3.6", Ok(None)),
            ("3.7", "3.7", "3.5", Err(InvalidTarget)),
            ("3.7", "3.8", "3.6", Err(InvalidTarget)),
            // And back when it was called off.
            ("3.6", "3.7", "", Ok(v("3.7"))),
        ] {
            assert_eq!(
                decide(v(cluster), v(lowest), v(target)),
                expected,
                "{cluster} {lowest} {target}"
            );
        }
    }
}
