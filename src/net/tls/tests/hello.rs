//! First messages, byte for byte.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A hello of a version, with what clients of TLS 1.1 have in it.
fn hello(version: u8) -> Vec<u8> {
    let mut body = vec![3, version];
    body.extend([7; 32]);
    // No session; two cipher suites, no compression, and the curves.
    body.extend([0, 0, 4, 0xc0, 0x13, 0x00, 0x2f, 1, 0]);
    body.extend([0, 8, 0, 10, 0, 4, 0, 2, 0, 23]);
    let mut message = vec![22, 3, 1, 0, body.len() as u8 + 4];
    message.extend([1, 0, 0, body.len() as u8]);
    message.extend(body);
    message
}

/// The answer to some bytes, and why they were refused.
async fn answer(server: &TlsServer, bytes: &[u8]) -> (Vec<u8>, String) {
    let (ours, mut theirs) = tokio::io::duplex(64 << 10);
    let here = IpAddr::from([127, 0, 0, 1]);
    let talk = async {
        theirs.write_all(bytes).await.expect("sends");
        theirs.shutdown().await.expect("ends");
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).await.expect("reads");
        answer
    };
    let both = async { tokio::join!(server.accept(ours, Some(here), Versions::Both), talk) };
    let (accepted, answer) = tokio::time::timeout(LIMIT, both).await.expect("in time");
    let refused = accepted.map(|_| ()).expect_err("is refused");
    (answer, refused.reason)
}

#[tokio::test]
async fn old_versions_and_other_bytes_are_answered() {
    let (server, _) = open_server();
    let too_old = "tls: client offered only unsupported versions: ";
    let alert = |description| vec![21, 3, 1, 0, 2, 2, description];
    // Named in an extension, in an order of their own.
    let mut named = hello(2);
    let extension = [0, 43, 0, 5, 4, 3, 1, 3, 2];
    named.extend(extension);
    // The record, the message and the extensions are longer by it.
    for at in [4, 8, 53] {
        named[at] += extension.len() as u8;
    }
    // In two records.
    let mut split = hello(2);
    let rest = split.split_off(25);
    split[4] = 20;
    split.extend([22, 3, 1, 0, rest.len() as u8]);
    split.extend(rest);
    for (hello, versions) in [
        (hello(1), "[301]"),
        (hello(2), "[302 301]"),
        (named, "[301 302]"),
        (split, "[302 301]"),
    ] {
        let (sent, reason) = answer(&server, &hello).await;
        assert_eq!(sent, alert(70));
        assert_eq!(reason, format!("{too_old}{versions}"));
    }
    // Part of a message, and none.
    for length in [1, 5, 40] {
        let (sent, reason) = answer(&server, &hello(2)[..length]).await;
        assert_eq!((sent, reason.as_str()), (Vec::new(), "EOF"));
    }
    // Another kind of message in its place, a length that is none, and a record that is too long.
    let mut other = hello(2);
    other[5] = 2;
    let mut longer = hello(2);
    longer[8] += 1;
    for bytes in [&other[..], &longer, &[22, 3, 1, 0xff, 0xff, 1, 2, 3]] {
        let (sent, reason) = answer(&server, bytes).await;
        let is_alert = sent.first() == Some(&21) && sent.len() == 7;
        assert!(is_alert || reason == "EOF", "{sent:?} {reason}");
    }
}

#[tokio::test]
async fn a_hello_may_come_in_pieces() {
    let (server, client) = open_server();
    // So small that no message fits.
    let (ours, theirs) = tokio::io::duplex(7);
    let name = ServerName::try_from("server.test").expect("a name");
    let here = IpAddr::from([127, 0, 0, 1]);
    let both = async {
        tokio::join!(
            server.accept(ours, Some(here), Versions::Both),
            TlsConnector::from(client).connect(name, theirs)
        )
    };
    let (accepted, connected) = tokio::time::timeout(LIMIT, both).await.expect("in time");
    assert!(accepted.is_ok() && connected.is_ok());
}

#[tokio::test]
async fn silent_clients_of_one_address_do_not_keep_out_others() {
    let (server, client) = open_server();
    let name = ServerName::try_from("server.test").expect("a name");
    let mut hello = Vec::new();
    let opened = rustls::ClientConnection::new(client.clone(), name.clone());
    let written = opened.expect("a client").write_tls(&mut hello);
    assert_eq!(written.expect("writes"), hello.len());
    let mut silent = tokio::task::JoinSet::new();
    let mut held = Vec::new();
    for _ in 0..super::super::server::MAX_HANDSHAKES {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        theirs.write_all(&hello).await.expect("sends");
        held.push(theirs);
        let server = server.clone();
        let there = IpAddr::from([10, 0, 0, 1]);
        silent.spawn(async move { server.accept(ours, Some(there), Versions::Both).await });
    }
    // All have begun.
    for theirs in &mut held {
        theirs.read_u8().await.expect("an answer");
    }
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let both = async {
        tokio::join!(
            server.accept(ours, Some(IpAddr::from([10, 0, 0, 2])), Versions::Both),
            TlsConnector::from(client).connect(name, theirs)
        )
    };
    // Less than the silent ones have.
    let limit = Duration::from_secs(5);
    let (accepted, connected) = tokio::time::timeout(limit, both).await.expect("in time");
    assert!(accepted.is_ok() && connected.is_ok());
    let refused = silent.join_next().await.expect("one ended").expect("ran");
    let reason = refused.map(|_| ()).expect_err("is refused").reason;
    let expected = "tls: given up for handshakes of other addresses";
    assert!(reason.starts_with(expected), "{reason}");
    assert_eq!(silent.len(), held.len() - 1);
}
