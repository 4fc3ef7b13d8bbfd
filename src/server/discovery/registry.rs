//! What founders leave in a discovery service: etcd's keys, so that members of either kind find
//! each other and either can be the service.
//!
//! ```text
//! /_etcd/registry/<token>/_config/size    how many found the cluster; the operator sets it
//! /_etcd/registry/<token>/members/<id>    NAME=URL,NAME=URL of one of them
//! ```
//!
//! The first members by create revision of their key are the founders; later ones are refused
//! because the cluster is full.

use crate::config::InitialCluster;
use crate::proto::KeyValue;
use crate::types::MemberId;

/// The keys of one new cluster.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    pub fn of(token: &str) -> Self {
        // As Go joins paths.
        let mut parts = vec!["_etcd", "registry"];
        for part in token.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        Self {
            prefix: format!("/{}", parts.join("/")),
        }
    }

    pub fn size(&self) -> String {
        format!("{}/_config/size", self.prefix)
    }

    /// What every member's key begins with.
    pub fn members(&self) -> String {
        format!("{}/members", self.prefix)
    }

    pub fn member(&self, member: MemberId) -> String {
        format!("{}/{member}", self.members())
    }
}

/// Reads the configured size.
pub fn size(value: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(value).ok()?;
    let size: i64 = text.strip_prefix('+').unwrap_or(text).parse().ok()?;
    usize::try_from(size).ok().filter(|size| *size > 0)
}

/// Members in the order of registration.
#[derive(Debug, Default)]
pub struct Gathered {
    members: Vec<Registered>,
}

#[derive(Debug)]
struct Registered {
    key: String,
    /// `NAME=URL,…`.
    urls: String,
    create_revision: i64,
}

impl Gathered {
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Reads a member's key.
    ///
    /// # Errors
    /// etcd's text for an invalid key.
    pub fn add(&mut self, pair: &KeyValue) -> Result<(), &'static str> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (key, urls) = (text(&pair.key), text(&pair.value));
        if !urls.contains('=') {
            return Err("invalid peer info returned from discovery service");
        }
        if self.members.iter().any(|member| member.key == key) {
            return Err("found duplicate peer from discovery service");
        }
        let create_revision = pair.create_revision;
        let place = self
            .members
            .partition_point(|member| member.create_revision <= create_revision);
        let member = Registered {
            key,
            urls,
            create_revision,
        };
        self.members.insert(place, member);
        Ok(())
    }

    /// True where a member with this key is, or can still become, one of the first `size`.
    pub fn has_room_for(&self, key: &str, size: usize) -> bool {
        let own = self.members.iter().position(|member| member.key == key);
        own.unwrap_or(self.members.len()) < size
    }

    /// The first `size` members, as `--initial-cluster` would have them.
    ///
    /// # Errors
    /// etcd's text where one's URLs are none.
    pub fn founders(&self, size: usize) -> Result<String, &'static str> {
        let first = self.members.iter().take(size);
        let pairs: Vec<&str> = first.map(|member| member.urls.as_str()).collect();
        let text = pairs.join(",");
        match InitialCluster::parse(&text, "") {
            Ok(_) => Ok(text),
            Err(_) => Err("discovery: invalid peer URL"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_etcds() {
        let keys = Keys::of("tok");
        assert_eq!(keys.size(), "/_etcd/registry/tok/_config/size");
        assert_eq!(keys.members(), "/_etcd/registry/tok/members");
        let member = keys.member(MemberId(0xabc));
        assert_eq!(member, "/_etcd/registry/tok/members/abc");
        assert_eq!(Keys::of("a//./b/").members(), "/_etcd/registry/a/b/members");
        assert_eq!(Keys::of("../x").members(), "/_etcd/x/members");
    }

    #[test]
    fn sizes_are_positive_numbers() {
        for (text, expected) in [
            ("3", Some(3)),
            ("+3", Some(3)),
            ("0", None),
            ("-1", None),
            ("", None),
            ("3 ", None),
            ("x", None),
        ] {
            assert_eq!(size(text.as_bytes()), expected, "{text:?}");
        }
    }

    fn pair(key: &str, value: &str, create_revision: i64) -> KeyValue {
        KeyValue {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            create_revision,
            ..Default::default()
        }
    }

    #[test]
    fn the_first_to_come_found_the_cluster() {
        let mut gathered = Gathered::default();
        assert!(gathered.has_room_for("k2", 1));
        assert_eq!(gathered.add(&pair("k3", "c=http://c:3", 9)), Ok(()));
        assert_eq!(gathered.add(&pair("k1", " a=http://a:1\n", 5)), Ok(()));
        assert_eq!(
            gathered.add(&pair("k1", "a=http://a:1", 5)),
            Err("found duplicate peer from discovery service")
        );
        assert_eq!(
            gathered.add(&pair("k2", "", 0)),
            Err("invalid peer info returned from discovery service")
        );
        assert!(gathered.has_room_for("k2", 3));
        assert!(!gathered.has_room_for("k2", 2));
        assert!(!gathered.has_room_for("k3", 1));
        assert!(gathered.has_room_for("k1", 1));
        assert_eq!(
            gathered.add(&pair("k2", "b=http://b:2,b=http://b:4", 7)),
            Ok(())
        );
        assert_eq!(gathered.len(), 3);
        let two = "a=http://a:1,b=http://b:2,b=http://b:4";
        assert_eq!(gathered.founders(2).as_deref(), Ok(two));
        assert_eq!(gathered.add(&pair("k0", "x=y", 1)), Ok(()));
        assert_eq!(gathered.founders(2), Err("discovery: invalid peer URL"));
    }
}
