//! SRV records, from a name server of a few lines on this machine.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use simple_dns::rdata::{RData, SRV};
use simple_dns::{CLASS, Name, Packet, PacketFlag, RCODE, ResourceRecord};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::dns::Servers;
use super::srv::members;
use crate::config::{self, Config, DnsDiscovery, Surroundings};
use crate::server::security::server_name;

/// A name server's records: priority, weight, port and host of each.
type Zone = BTreeMap<&'static str, Vec<(u16, u16, u16, &'static str)>>;

fn answer(query: &[u8], zone: &Zone, cut: bool) -> Vec<u8> {
    let query = Packet::parse(query).expect("a query");
    let name = query.questions[0].qname.to_string();
    let mut reply = Packet::new_reply(query.id());
    reply.questions = query.questions.clone();
    match zone.get(name.as_str()) {
        None => *reply.rcode_mut() = RCODE::NameError,
        Some(_) if name.contains("broken") => *reply.rcode_mut() = RCODE::ServerFailure,
        Some(_) if cut => reply.set_flags(PacketFlag::TRUNCATION),
        Some(records) => {
            for (priority, weight, port, target) in records {
                let srv = SRV {
                    priority: *priority,
                    weight: *weight,
                    port: *port,
                    target: Name::new(target).expect("a name"),
                };
                let name = query.questions[0].qname.clone();
                let record = ResourceRecord::new(name, CLASS::IN, 60, RData::SRV(srv));
                reply.answers.push(record);
            }
        }
    }
    reply.build_bytes_vec().expect("a reply")
}

/// Starts a name server; one that cuts answers gives them whole over TCP only.
async fn name_server(zone: Zone, cut: bool) -> SocketAddr {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("binds");
    let address = udp.local_addr().expect("has an address");
    let tcp = TcpListener::bind(address).await.expect("binds");
    let over_tcp = zone.clone();
    tokio::spawn(async move {
        loop {
            let mut buffer = [0; 512];
            let (length, from) = udp.recv_from(&mut buffer).await.expect("receives");
            // What nobody asked for must be passed over.
            udp.send_to(&[0, 0, 0], from).await.expect("sends");
            let reply = answer(&buffer[..length], &zone, cut);
            udp.send_to(&reply, from).await.expect("sends");
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.expect("accepts");
            let length = stream.read_u16().await.expect("reads");
            let mut query = vec![0; length.into()];
            stream.read_exact(&mut query).await.expect("reads");
            let reply = answer(&query, &over_tcp, false);
            stream.write_u16(reply.len() as u16).await.expect("writes");
            stream.write_all(&reply).await.expect("writes");
        }
    });
    address
}

fn servers(addresses: Vec<SocketAddr>) -> Servers {
    Servers {
        addresses,
        timeout: Duration::from_secs(2),
        attempts: 2,
        search: vec!["search.test".to_owned()],
        least_dots: 1,
    }
}

fn config(words: &str) -> Config {
    let around = Surroundings {
        env: Vec::new(),
        read_file: &|_| Err(io::ErrorKind::NotFound.into()),
        default_host: &|| None,
        memory_bytes: &|| Some(64 << 20),
    };
    let words = format!("etched --discovery-srv a.test {words}");
    let args = words.split_whitespace().map(Into::into);
    config::load(args, &around).expect("is accepted").config
}

fn address(host: &str, port: u16) -> io::Result<SocketAddr> {
    let last = match host {
        "one.a.test" | "10.0.0.1" => 1,
        "two.a.test" => 2,
        "three.a.test" => 3,
        _ => return Err(io::Error::other("No such host")),
    };
    Ok(SocketAddr::from(([10, 0, 0, last], port)))
}

const OWN: &str = "--name me --initial-advertise-peer-urls http://10.0.0.1:2380";

async fn found(words: &str, suffix: &str, servers: &Servers) -> String {
    let dns = DnsDiscovery {
        domain: "a.test".to_owned(),
        suffix: suffix.to_owned(),
    };
    match members(&config(words), &dns, servers, &address).await {
        Ok(cluster) => cluster.to_string(),
        Err(reason) => format!("refused: {reason}"),
    }
}

fn zone() -> Zone {
    let three = |port| {
        vec![
            (0, 0, port, "three.a.test"),
            (0, 5, port, "one.a.test"),
            (0, 0, port, "two.a.test"),
        ]
    };
    BTreeMap::from([
        ("_etcd-server._tcp.a.test", three(2380)),
        ("_etcd-server-x._tcp.a.test", three(2390)),
        (
            "_etcd-server-ssl-mixed._tcp.a.test",
            vec![(0, 0, 2, "two.a.test")],
        ),
        (
            "_etcd-server-mixed._tcp.a.test",
            vec![(0, 0, 2380, "one.a.test")],
        ),
        (
            "_etcd-server-ssl-scheme._tcp.a.test",
            vec![(0, 0, 2380, "one.a.test")],
        ),
        (
            "_etcd-server-lost._tcp.a.test",
            vec![(0, 0, 2380, "nowhere.a.test")],
        ),
        ("_etcd-server-broken._tcp.a.test", vec![]),
        ("_etcd-server-short._tcp.a.test.search.test", three(2380)),
    ])
}

#[tokio::test]
async fn members_are_found_by_their_records() {
    let server = name_server(zone(), false).await;
    let servers = servers(vec![server]);
    let three = |port| {
        format!(
            "0=http://three.a.test:{port},1=http://two.a.test:{port},me=http://one.a.test:{port}"
        )
    };
    assert_eq!(found(OWN, "", &servers).await, three(2380));
    let own = "--name me --initial-advertise-peer-urls http://one.a.test:2390";
    assert_eq!(found(own, "x", &servers).await, three(2390));
    assert_eq!(
        found(OWN, "mixed", &servers).await,
        "0=https://two.a.test:2,me=http://one.a.test:2380"
    );
    assert_eq!(found(OWN, "short", &servers).await, three(2380));
}

#[tokio::test]
async fn what_is_wrong_with_the_records_is_said() {
    let server = name_server(zone(), false).await;
    let servers = servers(vec![server]);
    let no_such = |service: &str| {
        format!(
            "error querying DNS SRV records for _{service} lookup _{service}._tcp.a.test on {server}: no such host"
        )
    };
    let refused = |ssl: String, plain: String| format!("refused: {ssl}\n{plain}");
    assert_eq!(
        found(OWN, "none", &servers).await,
        refused(no_such("etcd-server-ssl-none"), no_such("etcd-server-none"))
    );
    assert_eq!(
        found(OWN, "lost", &servers).await,
        refused(
            no_such("etcd-server-ssl-lost"),
            "error querying DNS SRV records for _etcd-server-lost lookup nowhere.a.test: no such host".to_owned()
        )
    );
    assert_eq!(
        found(OWN, "broken", &servers).await,
        refused(
            no_such("etcd-server-ssl-broken"),
            format!(
                "error querying DNS SRV records for _etcd-server-broken lookup _etcd-server-broken._tcp.a.test on {server}: server misbehaving"
            )
        )
    );
    assert_eq!(
        found(OWN, "scheme", &servers).await,
        refused(
            "error querying DNS SRV records for _etcd-server-ssl-scheme bootstrap at https://one.a.test:2380 from DNS \
             for etcd-server-ssl-scheme has scheme mismatch with expected peer http://10.0.0.1:2380"
                .to_owned(),
            no_such("etcd-server-scheme")
        )
    );
    let unlisted = "--name me --initial-advertise-peer-urls http://10.0.0.1:1";
    assert_eq!(
        found(unlisted, "", &servers).await,
        "refused: cannot find local etcd member \"me\" in SRV records"
    );
}

#[tokio::test]
async fn a_cut_answer_comes_over_tcp_and_a_dead_server_gives_way() {
    let server = name_server(zone(), true).await;
    let dead = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("binds");
    let dead = dead.local_addr().expect("has an address");
    let servers = servers(vec![dead, server]);
    let found = found(OWN, "", &servers).await;
    assert!(found.ends_with("me=http://one.a.test:2380"), "{found}");
}

#[test]
fn members_from_the_dns_are_known_by_its_domain() {
    let pair = "--peer-cert-file c --peer-key-file k";
    for (words, expected) in [
        (pair.to_owned(), Some("a.test")),
        (format!("{pair} --peer-trusted-ca-file ca"), None),
        (String::new(), None),
    ] {
        let config = config(&words);
        assert_eq!(server_name(&config), expected, "{words}");
    }
}
