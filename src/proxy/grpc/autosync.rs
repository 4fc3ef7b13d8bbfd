//! `--endpoints-auto-sync-interval`: the cluster is asked for its members again and again, and calls go
//! to those that it names.
//!
//! As in etcd these are the client URLs of voters that have started. One that leads to this very proxy
//! is left out, and a cluster that names no other changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

use super::upstream::Upstream;
use crate::proto::etcdserverpb::cluster_client::ClusterClient;
use crate::proto::etcdserverpb::{Member, MemberListRequest};
use crate::proxy::endpoints;

/// For a member's answer, and the addresses of those that it names.
const LIMIT: Duration = Duration::from_secs(5);

/// Asks for ever.
pub async fn run(upstream: &Arc<Upstream>, interval: Duration, listening: SocketAddr) {
    loop {
        tokio::time::sleep(interval).await;
        let urls = async { Ok(others(named(upstream).await?, listening).await) };
        match tokio::time::timeout(LIMIT, urls).await {
            Ok(Ok(urls)) => {
                tracing::debug!(endpoints = ?urls, "set etcd endpoints by autoSync");
                upstream.replace(urls);
            }
            Ok::<Result<_, Status>, _>(Err(status)) => {
                tracing::info!(error = status.message(), "Auto sync endpoints failed.");
            }
            Err(_) => {
                let error = "context deadline exceeded";
                tracing::info!(error, "Auto sync endpoints failed.");
            }
        }
    }
}

/// What the cluster says.
async fn named(upstream: &Arc<Upstream>) -> Result<Vec<String>, Status> {
    let channel = upstream.channel().await?;
    let origin = channel.origin();
    let request = MemberListRequest { linearizable: true };
    let mut client = ClusterClient::with_origin(channel, origin);
    let answer = client.member_list(request).await?;
    Ok(urls(answer.into_inner().members))
}

fn urls(members: Vec<Member>) -> Vec<String> {
    let serving = |one: &Member| !one.name.is_empty() && !one.is_learner;
    let members = members.into_iter().filter(serving);
    members.flat_map(|one| one.client_ur_ls).collect()
}

/// Without the proxy's own.
async fn others(urls: Vec<String>, listening: SocketAddr) -> Vec<String> {
    let mut others = Vec::new();
    for url in urls {
        match endpoints::is_itself(&url, listening).await {
            true => tracing::warn!(
                endpoint = url,
                "a member's URL is this proxy's, and is not used"
            ),
            false => others.push(url),
        }
    }
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_serve_are_named() {
        let member = |name: &str, is_learner, urls: &[&str]| Member {
            name: name.to_owned(),
            is_learner,
            client_ur_ls: urls.iter().map(|url| (*url).to_owned()).collect(),
            ..Default::default()
        };
        let members = vec![
            member("a", false, &["http://a:1", "http://a:2"]),
            member("", false, &["http://unstarted:1"]),
            member("l", true, &["http://learner:1"]),
            member("b", false, &["https://b:1"]),
        ];
        assert_eq!(urls(members), ["http://a:1", "http://a:2", "https://b:1"]);
    }

    #[tokio::test]
    async fn the_proxy_itself_is_left_out() {
        let listening: SocketAddr = "127.0.0.1:7".parse().expect("an address");
        let named = [
            "http://127.0.0.1:7",
            "http://127.0.0.1:8",
            "unix:///a/socket",
        ];
        let named = named.map(str::to_owned).to_vec();
        assert_eq!(others(named.clone(), listening).await, named[1..]);
    }
}
