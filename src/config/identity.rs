//! Who founds a new cluster: the members' ids and the cluster's, computed as etcd computes them,
//! so that a backup, a client's cache or a monitoring rule that knows the numbers goes on working.
//!
//! Only a start without data asks: from then on the numbers come from the data.

use std::collections::BTreeMap;

use sha1::{Digest, Sha1};

use super::urls::{self, Url};
use super::value::{quote, quote_all};
use super::{ClusterState, Config, Refusal, not_built};
use crate::types::{ClusterId, MemberId};

/// A member that founds a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    pub id: MemberId,
    pub name: String,
    /// As the cluster will list them, sorted.
    pub peer_urls: Vec<String>,
}

/// What a new cluster starts from; the same on all its founders.
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

impl Config {
    /// Checks `--initial-cluster` against this member and computes the identities.
    ///
    /// `resolve` is asked only if the two URL lists differ in their texts.
    ///
    /// # Errors
    /// etcd's texts for a cluster that this member is no part of, and what is not built yet.
    pub fn bootstrap(&self, resolve: Resolve<'_>) -> Result<Bootstrap, Refusal> {
        let members = members_of(&self.initial_cluster)
            .map_err(|e| Refusal::Start(format!("error setting up initial cluster: {e}")))?;
        let Some(own) = members.get(self.name.as_str()) else {
            return Err(Refusal::Start(format!(
                "couldn't find local name {} in the initial cluster configuration",
                quote(&self.name)
            )));
        };
        if self.initial_cluster_state == ClusterState::Existing {
            return Err(not_built("--initial-cluster-state=existing"));
        }
        self.match_advertised(own, resolve)?;
        let mut all: Vec<&str> = members.values().flatten().map(Url::as_str).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        if all.len() != count {
            return Err(Refusal::Start(format!(
                "initial cluster {} has duplicate url",
                cluster_text(&members)
            )));
        }
        let token = &self.initial_cluster_token;
        let mut founders: Vec<Founder> = members
            .iter()
            .map(|(name, urls)| Founder {
                id: member_id(urls, token),
                name: (*name).to_owned(),
                peer_urls: urls::texts(urls),
            })
            .collect();
        founders.sort_by_key(|founder| founder.id);
        let ids: Vec<MemberId> = founders.iter().map(|founder| founder.id).collect();
        Ok(Bootstrap {
            member_id: member_id(own, token),
            cluster_id: cluster_id(&ids),
            founders,
        })
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

/// Whether two sorted lists mean the same addresses; else why not.
fn same_urls(a: &[Url], b: &[Url], resolve: Resolve<'_>) -> Result<(), String> {
    if a.len() != b.len() {
        return Err(format!(
            "len({}) != len({})",
            quote_all(&urls::texts(a)),
            quote_all(&urls::texts(b))
        ));
    }
    if a == b {
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

/// Reads `NAME=URL,NAME=URL,…`; a name may come more than once.
fn members_of(text: &str) -> Result<BTreeMap<&str, Vec<Url>>, String> {
    let mut members: BTreeMap<&str, Vec<Url>> = BTreeMap::new();
    for item in text.split(',').filter(|item| !item.is_empty()) {
        let (name, url) = item.split_once('=').unwrap_or((item, ""));
        members.entry(name).or_default().push(Url::parse(url)?);
    }
    for urls in members.values_mut() {
        urls.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    }
    Ok(members)
}

fn cluster_text(members: &BTreeMap<&str, Vec<Url>>) -> String {
    let mut pairs: Vec<String> = members
        .iter()
        .flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")))
        .collect();
    pairs.sort();
    pairs.join(",")
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
