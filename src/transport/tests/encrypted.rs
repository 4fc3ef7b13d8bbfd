//! Members that are connected by TLS.

use raft_proto::eraftpb::MessageType::{MsgAppend, MsgHeartbeat};

use super::*;
use crate::net::tls::tests::members;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_talk_by_tls() {
    talk(["127.0.0.1:0"; 2]).await;
}

/// A file is called as it is named, where a URL has no other name for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_talk_by_tls_through_files() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let files = dirs.each_ref().map(|dir| dir.path().join("127.0.0.1"));
    talk(files.each_ref().map(|file| file.to_str().expect("text"))).await;
}

async fn talk(addresses: [&str; 2]) {
    let (_dir, server, client) = members();
    let named = |name| Dialler::from(Encryption::new(client.clone(), name));
    let (security, dialler) = (Security::Tls(server), named(None));
    let site = async |member, address| {
        let dialler = dialler.clone();
        let change = |options: &mut NetworkOptions| options.dialler = dialler;
        Site::start_secured(member, CLUSTER, address, security.clone(), change).await
    };
    let (a, b) = (site(A, addresses[0]).await, site(B, addresses[1]).await);
    a.knows(B, &b.url());
    b.knows(A, &a.url());
    a.network
        .send(B, vec![heartbeat(1), append(1, 5 << 20), append(2, 1)]);
    eventually("the heartbeat", || b.inbound.count(MsgHeartbeat) == 1).await;
    eventually("both appends", || b.inbound.count(MsgAppend) == 2).await;
    assert_eq!(b.inbound.indexes(MsgAppend), [1, 2]);
    let urls = [b.url()];
    describe(&dialler, &urls, LONG).await.expect("an answer");
    // One name for all, if there is one.
    let known = describe(&named(Some("localhost")), &urls, LONG).await;
    known.expect("an answer");
    let unknown = describe(&named(Some("other.test")), &urls, LONG).await;
    let error = unknown.expect_err("refused");
    assert!(error.contains("other.test"), "{error}");
    // Who has no certificate, or no TLS, gets nowhere.
    let error = describe(&Dialler::default(), &urls, LONG)
        .await
        .expect_err("refused");
    assert!(error.contains("--peer-trusted-ca-file"), "{error}");
    let plain = [b.url().replacen("s://", "://", 1)];
    let refused = describe(&dialler, &plain, LONG).await;
    refused.expect_err("refused");
}
