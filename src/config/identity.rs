//! The founders of a new cluster: member ids and cluster id, computed as in etcd, so that backups,
//! client caches or monitoring rules with these ids remain valid.
//!
//! Used only by a start without data: later the ids are read from the data.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use sha1::{Digest, Sha1};

use super::go_syntax::{quote, quote_all};
use super::refusal::Refusal;
use super::settings::Config;
use super::urls::{self, Url};
use crate::types::{ClusterId, MemberId};

/// A member that founds a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    pub id: MemberId,
    pub name: String,
    /// As the cluster lists them, sorted.
    pub peer_urls: Vec<String>,
}

/// The initial members of a cluster; the same for all founders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// This member.
    pub member_id: MemberId,
    pub cluster_id: ClusterId,
    /// In the order of their ids.
    pub founders: Vec<Founder>,
}

/// Turns `host:port` into `address:port`.
pub type Resolve<'a> = &'a dyn Fn(&str) -> std::io::Result<String>;

/// The founders from a flag, DNS or a discovery service, and the token for their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialCluster {
    /// Each with its URLs, sorted.
    members: BTreeMap<String, Vec<Url>>,
    token: String,
}

impl InitialCluster {
    /// Reads `NAME=URL,NAME=URL,…`; a name may come more than once.
    ///
    /// # Errors
    /// etcd's text for the first URL that is none.
    pub fn parse(text: &str, token: &str) -> Result<Self, String> {
        let mut members: BTreeMap<String, Vec<Url>> = BTreeMap::new();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (name, url) = item.split_once('=').unwrap_or((item, ""));
            let urls = members.entry(name.to_owned()).or_default();
            urls.push(Url::parse(url)?);
        }
        for urls in members.values_mut() {
            urls.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        }
        let token = token.to_owned();
        Ok(Self { members, token })
    }

    /// A single founder.
    pub fn of_one(name: &str, urls: &[Url], token: &str) -> Self {
        Self {
            members: [(name.to_owned(), urls.to_vec())].into(),
            token: token.to_owned(),
        }
    }

    /// The names and the texts of the URLs.
    pub fn members(&self) -> impl Iterator<Item = (&str, Vec<String>)> {
        let members = self.members.iter();
        members.map(|(name, urls)| (name.as_str(), urls::texts(urls)))
    }

    /// The URLs of all members but one, sorted.
    pub fn urls_beside(&self, name: &str) -> Vec<String> {
        let others = self.members().filter(|(other, _)| *other != name);
        let mut urls: Vec<String> = others.flat_map(|(_, urls)| urls).collect();
        urls.sort();
        urls
    }

    /// The cluster that these members found; `None` where `name` is none of them.
    pub fn founded_by(&self, name: &str) -> Option<Bootstrap> {
        let own = self.members.get(name)?;
        let mut founders: Vec<Founder> = self
            .members
            .iter()
            .map(|(name, urls)| Founder {
                id: member_id(urls, &self.token),
                name: name.clone(),
                peer_urls: urls::texts(urls),
            })
            .collect();
        founders.sort_by_key(|founder| founder.id);
        let ids: Vec<MemberId> = founders.iter().map(|founder| founder.id).collect();
        Some(Bootstrap {
            member_id: member_id(own, &self.token),
            cluster_id: cluster_id(&ids),
            founders,
        })
    }

    /// True where two members, or one twice, have the same URL.
    pub fn has_duplicate_url(&self) -> bool {
        let mut all: Vec<&str> = self.members.values().flatten().map(Url::as_str).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        all.len() != count
    }
}

/// As `--initial-cluster` would have it, sorted.
impl fmt::Display for InitialCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pairs: Vec<String> = self
            .members
            .iter()
            .flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")))
            .collect();
        pairs.sort();
        f.write_str(&pairs.join(","))
    }
}

impl Config {
    /// The members that `--initial-cluster` lists.
    ///
    /// # Errors
    /// A URL that is none.
    pub fn listed_cluster(&self) -> Result<InitialCluster, Refusal> {
        InitialCluster::parse(&self.initial_cluster, &self.initial_cluster_token)
            .map_err(|e| Refusal::Start(format!("error setting up initial cluster: {e}")))
    }

    /// The address that connections to other members come from, by the gate `SetMemberLocalAddr`: the
    /// first of those advertised to them that is a particular one of this machine. None: the system
    /// chooses.
    pub fn local_address(&self) -> Option<IpAddr> {
        let is_on = self.feature_gates.enabled("SetMemberLocalAddr");
        let advertised = self.initial_advertise_peer_urls.iter().filter(|_| is_on);
        let mut addresses = advertised.filter_map(|url| url.host.parse::<IpAddr>().ok());
        addresses.find(|address| !address.is_loopback() && !address.is_unspecified())
    }

    /// Checks that this member may found the cluster, and computes the identities.
    ///
    /// `resolve` is asked only if the two URL lists differ in their texts.
    ///
    /// # Errors
    /// etcd's texts for a cluster that this member is no part of.
    pub fn found(
        &self,
        cluster: &InitialCluster,
        resolve: Resolve<'_>,
    ) -> Result<Bootstrap, Refusal> {
        let Some(own) = cluster.members.get(&self.name) else {
            return Err(self.not_listed());
        };
        self.match_advertised(own, resolve)?;
        check_duplicates(cluster)?;
        cluster
            .founded_by(&self.name)
            .ok_or_else(|| self.not_listed())
    }

    /// Checks that this member may ask to join the cluster.
    ///
    /// # Errors
    /// etcd's texts for a cluster that this member is no part of.
    pub fn check_joining(&self, cluster: &InitialCluster) -> Result<(), Refusal> {
        if !cluster.members.contains_key(&self.name) {
            return Err(self.not_listed());
        }
        check_duplicates(cluster)
    }

    fn not_listed(&self) -> Refusal {
        Refusal::Start(format!(
            "couldn't find local name {} in the initial cluster configuration",
            quote(&self.name)
        ))
    }

    fn match_advertised(&self, own: &[Url], resolve: Resolve<'_>) -> Result<(), Refusal> {
        let advertised = &self.initial_advertise_peer_urls;
        let Err(reason) = same_urls(advertised, own, resolve) else {
            return Ok(());
        };
        let missing = |from: &[Url], of: &[Url]| -> Vec<String> {
            let absent = of.iter().filter(|url| !from.contains(url));
            absent.map(|url| url.as_str().to_owned()).collect()
        };
        let unadvertised: Vec<String> = missing(advertised, own)
            .iter()
            .map(|url| format!("{}={url}", self.name))
            .collect();
        let shown = urls::texts(advertised).join(",");
        if !unadvertised.is_empty() {
            return Err(Refusal::Start(format!(
                "--initial-cluster has {} but missing from --initial-advertise-peer-urls={shown} ({reason})",
                unadvertised.join(",")
            )));
        }
        let named: Vec<String> = advertised
            .iter()
            .map(|url| format!("{}={url}", self.name))
            .collect();
        Err(Refusal::Start(format!(
            "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
            missing(own, advertised).join(","),
            named.join(",")
        )))
    }
}

/// Whether two members' peer URLs mean the same addresses, in whatever order; else why not.
///
/// `resolve` is asked only if the lists differ in their texts.
///
/// # Errors
/// etcd's texts.
pub fn same_peer_urls(a: &[String], b: &[String], resolve: Resolve<'_>) -> Result<(), String> {
    let parsed = |list: &[String]| -> Result<Vec<Url>, String> {
        let mut urls = list
            .iter()
            .map(|text| Url::parse(text))
            .collect::<Result<Vec<_>, _>>()?;
        urls.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(urls)
    };
    same_urls(&parsed(a)?, &parsed(b)?, resolve)
}

/// Whether two sorted lists mean the same addresses; else why not.
fn same_urls(a: &[Url], b: &[Url], resolve: Resolve<'_>) -> Result<(), String> {
    if a.len() != b.len() {
        return Err(format!(
            "len({}) != len({})",
            quote_all(&urls::texts(a)),
            quote_all(&urls::texts(b))
        ));
    }
    if a.iter().zip(b).all(|(a, b)| same_address(a, b)) {
        return Ok(());
    }
    let resolved = |list: &[Url]| -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        for url in list {
            if url.scheme.is_socket_file() || url.host == "localhost" {
                found.push(url.as_str().to_owned());
                continue;
            }
            let address = resolve(&url.host_port())
                .map_err(|e| format!("failed to resolve {} ({e})", quote(url.as_str())))?;
            found.push(format!("{}://{address}", url.scheme.name()));
        }
        found.sort();
        Ok(found)
    };
    let (a, b) = (resolved(a)?, resolved(b)?);
    match a.iter().zip(&b).find(|(a, b)| a != b) {
        Some((a, b)) => Err(format!("resolved urls: {} != {}", quote(a), quote(b))),
        None => Ok(()),
    }
}

/// Whether two URLs are the same without asking what their names stand for.
fn same_address(a: &Url, b: &Url) -> bool {
    /// An address has several spellings, one IPv4 in IPv6 among them.
    fn address(host: &str) -> Option<IpAddr> {
        host.parse().ok().map(|ip: IpAddr| ip.to_canonical())
    }
    let same_host = match (address(&a.host), address(&b.host)) {
        (Some(a), Some(b)) => a == b,
        _ => a.host == b.host,
    };
    match a.scheme.is_socket_file() {
        true => a == b,
        false => a.scheme == b.scheme && same_host && a.port == b.port,
    }
}

fn check_duplicates(cluster: &InitialCluster) -> Result<(), Refusal> {
    match cluster.has_duplicate_url() {
        true => Err(Refusal::Start(format!(
            "initial cluster {cluster} has duplicate url"
        ))),
        false => Ok(()),
    }
}

/// A founding member's id: a hash over its sorted peer URLs and the cluster's token.
pub fn member_id(peer_urls: &[Url], token: &str) -> MemberId {
    let mut texts: Vec<&str> = peer_urls.iter().map(Url::as_str).collect();
    texts.sort_unstable();
    let mut hash = Sha1::new();
    for text in texts {
        hash.update(text);
    }
    hash.update(token);
    MemberId(head(hash))
}

/// A cluster's id: a hash over its founding members' ids.
pub fn cluster_id(members: &[MemberId]) -> ClusterId {
    let mut ids: Vec<u64> = members.iter().map(|member| member.0).collect();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    for id in ids {
        hash.update(id.to_be_bytes());
    }
    ClusterId(head(hash))
}

fn head(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    digest[..8]
        .iter()
        .fold(0, |id, byte| (id << 8) | u64::from(*byte))
}
