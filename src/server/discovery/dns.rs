//! Queries the machine's name servers for SRV records.
//!
//! Names are completed with the domains of resolv.conf as a resolver does; if a name server fails
//! or does not answer, the next one is used.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::env::{Rng, SystemRng};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// What an answer over UDP may have where nothing else was agreed upon, and a lot more.
const MAX_DATAGRAM_BYTES: usize = 4096;

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub priority: u16,
    pub weight: u16,
    /// Without a dot at its end.
    pub host: String,
    pub port: u16,
}

/// Name servers and how to ask them.
#[derive(Clone, Debug)]
pub struct Servers {
    pub addresses: Vec<SocketAddr>,
    pub timeout: Duration,
    pub attempts: u32,
    /// Domains that a short name may be in.
    pub search: Vec<String>,
    /// With fewer dots a name is tried in `search` first.
    pub least_dots: usize,
}

/// Why a name has no records for us.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    NoSuchHost,
    /// Another server may have a better answer.
    Other(String),
}

impl Servers {
    /// Those of this machine; what resolv.conf leaves out, or all where there is none, is as
    /// usual.
    pub fn of_machine() -> Self {
        let text = std::fs::read(RESOLV_CONF).unwrap_or_default();
        let (conf, errors) = resolv_conf::Config::parse_with_errors(&text);
        for error in errors {
            tracing::warn!(%error, "a line of resolv.conf was not understood");
        }
        let address = |server: &resolv_conf::ScopedIp| SocketAddr::new(IpAddr::from(server), PORT);
        let mut addresses: Vec<SocketAddr> = conf.nameservers.iter().map(address).collect();
        if addresses.is_empty() {
            addresses.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT));
        }
        Self {
            addresses,
            timeout: Duration::from_secs(u64::from(conf.timeout.clamp(1, 30))),
            attempts: conf.attempts.clamp(1, 5),
            search: conf.get_last_search_or_domain().cloned().collect(),
            least_dots: conf.ndots as usize,
        }
    }

    /// The SRV records of a name, those to be preferred first.
    ///
    /// # Errors
    /// Go's text for a name that cannot be looked up.
    pub async fn srv(&self, name: &str) -> Result<Vec<Target>, String> {
        // A server in trouble says more than a guess at the name that does not exist.
        let mut failure: Option<(Option<SocketAddr>, Failure)> = None;
        for full in self.candidates(name) {
            match self.ask_all(&full).await {
                Ok(mut targets) => {
                    targets.sort_by(|a, b| {
                        let preferred = (a.priority, b.weight).cmp(&(b.priority, a.weight));
                        preferred.then_with(|| a.cmp(b))
                    });
                    return Ok(targets);
                }
                Err(found) => {
                    let in_trouble = |(_, failure): &(_, Failure)| *failure != Failure::NoSuchHost;
                    failure = failure.filter(in_trouble).or(Some(found));
                }
            }
        }
        let (server, failure) = failure.unwrap_or((None, Failure::NoSuchHost));
        let on = server.map_or_else(String::new, |server| format!(" on {server}"));
        let reason = match failure {
            Failure::NoSuchHost => "no such host".to_owned(),
            Failure::Other(reason) => reason,
        };
        Err(format!("lookup {name}{on}: {reason}"))
    }

    /// The names that a name may stand for, in the order in which they are tried.
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(whole) = name.strip_suffix('.') {
            return vec![whole.to_owned()];
        }
        let dots = name.matches('.').count();
        let searched = self
            .search
            .iter()
            .map(|domain| format!("{name}.{}", domain.trim_matches('.')));
        let mut names: Vec<String> = searched.collect();
        match dots >= self.least_dots {
            true => names.insert(0, name.to_owned()),
            false => names.push(name.to_owned()),
        }
        names
    }

    async fn ask_all(&self, name: &str) -> Result<Vec<Target>, (Option<SocketAddr>, Failure)> {
        let mut last = (None, Failure::NoSuchHost);
        for _ in 0..self.attempts {
            for server in &self.addresses {
                let asked = tokio::time::timeout(self.timeout, ask(*server, name));
                let failure = match asked.await {
                    Ok(Ok(targets)) => return Ok(targets),
                    Ok(Err(failure)) => failure,
                    Err(_) => Failure::Other("i/o timeout".to_owned()),
                };
                let definite = failure == Failure::NoSuchHost;
                last = (Some(*server), failure);
                if definite {
                    return Err(last);
                }
            }
        }
        Err(last)
    }
}

async fn ask(server: SocketAddr, name: &str) -> Result<Vec<Target>, Failure> {
    let id = SystemRng.next_u64() as u16;
    let query = query(id, name)?;
    let failed = |error: io::Error| Failure::Other(crate::config::os_reason(&error));
    let answer = over_udp(server, id, &query).await.map_err(failed)?;
    match read(&answer, id, name)? {
        Some(targets) => Ok(targets),
        None => {
            let answer = over_tcp(server, &query).await.map_err(failed)?;
            let cut = || Failure::Other("server misbehaving".to_owned());
            read(&answer, id, name)?.ok_or_else(cut)
        }
    }
}

fn query(id: u16, name: &str) -> Result<Vec<u8>, Failure> {
    let bad = |_| Failure::NoSuchHost;
    let mut query = Packet::new_query(id);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    let (kind, class) = (QTYPE::TYPE(TYPE::SRV), QCLASS::CLASS(CLASS::IN));
    let name = Name::new(name).map_err(bad)?;
    query
        .questions
        .push(Question::new(name, kind, class, false));
    query.build_bytes_vec().map_err(bad)
}

/// The first datagram that answers the query; others are ignored.
async fn over_udp(server: SocketAddr, id: u16, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let datagram = buffer.get(..length).unwrap_or_default();
        if datagram.get(..2) == Some(id.to_be_bytes().as_slice()) {
            return Ok(datagram.to_vec());
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_u16(length).await?;
    stream.write_all(query).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// The records in an answer; `None` if it was truncated.
fn read(answer: &[u8], id: u16, name: &str) -> Result<Option<Vec<Target>>, Failure> {
    let misbehaving = || Failure::Other("server misbehaving".to_owned());
    let packet = Packet::parse(answer).map_err(|_| misbehaving())?;
    let asked = packet.questions.first().map(|one| one.qname.to_string());
    let ours = asked.is_some_and(|asked| asked.eq_ignore_ascii_case(name));
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) || !ours {
        return Err(misbehaving());
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Err(Failure::NoSuchHost),
        _ => return Err(misbehaving()),
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Ok(None);
    }
    let targets: Vec<Target> = packet
        .answers
        .iter()
        .filter_map(|record| match &record.rdata {
            RData::SRV(srv) => Some(Target {
                priority: srv.priority,
                weight: srv.weight,
                host: srv.target.to_string(),
                port: srv.port,
            }),
            _ => None,
        })
        .collect();
    match targets.is_empty() {
        true => Err(Failure::NoSuchHost),
        false => Ok(Some(targets)),
    }
}
