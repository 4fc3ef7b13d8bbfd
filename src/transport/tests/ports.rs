//! The pages of the peer port.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::proto::membershippb::{Attributes, Member, RaftAttributes};

pub fn members() -> Vec<Member> {
    vec![
        Member {
            id: u64::MAX,
            raft_attributes: Some(RaftAttributes {
                peer_urls: vec!["http://h:2".to_owned()],
                is_learner: true,
            }),
            member_attributes: None,
        },
        Member {
            id: 11,
            raft_attributes: Some(RaftAttributes {
                peer_urls: vec!["http://h:1".to_owned()],
                is_learner: false,
            }),
            member_attributes: Some(Attributes {
                name: "b".to_owned(),
                client_urls: vec!["http://h:3".to_owned()],
            }),
        },
    ]
}

async fn get(site: &Site, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(&site.address).await.expect("connects");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(LONG, read)
        .await
        .expect("in time")
        .expect("reads");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_versions_are_shown() {
    let b = Site::start(B).await;
    let members = concat!(
        r#"[{"id":11,"peerURLs":["http://h:1"],"name":"b","clientURLs":["http://h:3"]},"#,
        r#"{"id":18446744073709551615,"peerURLs":["http://h:2"],"isLearner":true}]"#,
        "\n"
    );
    let versions = r#"{"etcdserver":"3.7.3","etcdcluster":"None","storage":"3.7.0"}"#;
    for (method, path, status, body) in [
        ("GET", "/members", "200 OK", members),
        ("GET", "/version", "200 OK", versions),
        (
            "POST",
            "/version",
            "405 Method Not Allowed",
            "Method Not Allowed\n",
        ),
        ("GET", "/members/", "404 Not Found", "404 page not found\n"),
        ("GET", "/", "404 Not Found", "404 page not found\n"),
    ] {
        let answer = get(&b, method, path).await;
        let (head, found) = answer.split_once("\r\n\r\n").expect("a body");
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{head}"
        );
        assert_eq!(found, body);
        if path == "/members" {
            assert!(head.contains("x-etcd-cluster-id: c1\r\n"), "{head}");
            assert!(
                head.contains("content-type: application/json\r\n"),
                "{head}"
            );
        }
    }
    b.network.stop();
    let answer = get(&b, "GET", "/members").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}
