//! Connections to the members, one each, which calls take in turn. One that ended is made again when
//! it is next needed, by a task of its own: a caller that gives up ends no dial, and a member that is
//! dialled or could not be reached a moment ago is passed over while there is another.
//!
//! Which members there are can change (`autosync`): the connection to one that stays is kept, and
//! calls that are under way at one that is gone end as they would have.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tonic::Status;

use crate::env::{Clock, SystemClock};
use crate::net::KeepAlive;
use crate::net::Windows;
use crate::transport::{Channel, Dialler, dial_within};

/// etcd's dial timeout.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// A member that could not be reached is left alone so long.
const PASSED_OVER: Duration = Duration::from_secs(1);
/// Calls of all clients share a connection, and each is read only as fast as its client reads. So a
/// call's window is small (grpc-go's), and the connection's has room for a thousand calls that
/// nobody reads.
const WINDOWS: Windows = Windows {
    call_bytes: 64 << 10,
    connection_bytes: 64 << 20,
};

pub struct Upstream {
    /// Never empty.
    members: RwLock<Vec<Arc<Member>>>,
    turns: AtomicUsize,
    dialler: Dialler,
    keep_alive: Option<KeepAlive>,
    clock: Arc<dyn Clock>,
    /// Notified of the end of every dial.
    dialled: Notify,
}

struct Member {
    url: String,
    connection: Mutex<Connection>,
}

impl Member {
    fn of(url: String) -> Arc<Self> {
        Arc::new(Self {
            url,
            connection: Mutex::default(),
        })
    }
}

#[derive(Default)]
struct Connection {
    channel: Option<Channel>,
    is_dialled: bool,
    /// When it last could not be had, and why.
    failed: Option<(Duration, String)>,
}

/// The result of a check of a member.
enum Found {
    Channel(Channel),
    /// There may be a connection soon.
    Dial,
    Failed,
}

impl Upstream {
    /// `urls` names one member at least.
    pub fn new(urls: Vec<String>, dialler: Dialler, keep_alive: Option<KeepAlive>) -> Self {
        Self {
            members: RwLock::new(urls.into_iter().map(Member::of).collect()),
            turns: AtomicUsize::new(0),
            dialler,
            keep_alive,
            clock: Arc::new(SystemClock::new()),
            dialled: Notify::new(),
        }
    }

    pub fn first_url(&self) -> String {
        let members = self.members.read();
        members
            .first()
            .map_or_else(String::new, |one| one.url.clone())
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.members.read().len()
    }

    /// Sends calls to these members from now on; without any it changes nothing.
    pub fn replace(&self, urls: Vec<String>) {
        if urls.is_empty() {
            return;
        }
        let mut members = self.members.write();
        let kept = |url: String| {
            let known = members.iter().find(|one| one.url == url);
            known.cloned().unwrap_or_else(|| Member::of(url))
        };
        *members = urls.into_iter().map(kept).collect();
    }

    /// A connection to the next member that can be reached.
    ///
    /// # Errors
    /// UNAVAILABLE, where none can.
    pub async fn channel(self: &Arc<Self>) -> Result<Channel, Status> {
        let first = self.turns.fetch_add(1, Ordering::Relaxed);
        let members = {
            let members = self.members.read();
            let first = first % members.len().max(1);
            let (behind, from) = members.split_at(first);
            [from, behind].concat()
        };
        self.one_of(&members).await
    }

    /// A connection to the first member.
    ///
    /// # Errors
    /// UNAVAILABLE, where it cannot be reached.
    pub async fn first_channel(self: &Arc<Self>) -> Result<Channel, Status> {
        let first = self.members.read().first().cloned();
        self.one_of(first.as_slice()).await
    }

    async fn one_of(self: &Arc<Self>, members: &[Arc<Member>]) -> Result<Channel, Status> {
        let since = self.clock.now();
        loop {
            // Made before the members are checked: no end of a dial comes between.
            let dialled = self.dialled.notified();
            let mut waits = false;
            for member in members {
                match self.channel_or_dial(member, since) {
                    Found::Channel(channel) => return Ok(channel),
                    Found::Dial => waits = true,
                    Found::Failed => {}
                }
            }
            if !waits {
                break;
            }
            dialled.await;
        }
        let failed = |one: &Arc<Member>| one.connection.lock().failed.clone();
        let reasons = members.iter().filter_map(failed).map(|(_, reason)| reason);
        Err(Status::unavailable(reasons.collect::<Vec<_>>().join("; ")))
    }

    /// The connection to a member for a caller that came at `since`. One that is not there is
    /// dialled, unless that failed a moment ago, or for this caller.
    fn channel_or_dial(self: &Arc<Self>, member: &Arc<Member>, since: Duration) -> Found {
        let mut connection = member.connection.lock();
        if let Some(channel) = connection.channel.as_ref().filter(|one| !one.is_closed()) {
            return Found::Channel(channel.clone());
        }
        connection.channel = None;
        if connection.is_dialled {
            return Found::Dial;
        }
        let now = self.clock.now();
        let is_recent = |(at, _): &(Duration, String)| *at >= since || now < *at + PASSED_OVER;
        if connection.failed.as_ref().is_some_and(is_recent) {
            return Found::Failed;
        }
        connection.is_dialled = true;
        tokio::spawn(self.clone().dial(member.clone()));
        Found::Dial
    }

    async fn dial(self: Arc<Self>, member: Arc<Member>) {
        let Member { url, connection } = member.as_ref();
        let dialled = dial_within(DIAL_LIMIT, &self.dialler, url, self.keep_alive, WINDOWS).await;
        {
            let mut connection = connection.lock();
            connection.is_dialled = false;
            match dialled {
                Ok(channel) => {
                    connection.failed = None;
                    connection.channel = Some(channel);
                }
                Err(reason) => {
                    tracing::warn!(endpoint = url, error = reason, "cannot reach a member");
                    connection.failed = Some((self.clock.now(), reason));
                }
            }
        }
        self.dialled.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::*;

    /// A member whose host drops what is sent to it: one that accepts nothing, with a full queue.
    async fn silent() -> (TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .bind("127.0.0.1:0".parse().expect("an address"))
            .expect("binds");
        let listener = socket.listen(1).expect("listens");
        let address = listener.local_addr().expect("is bound");
        let mut queued = Vec::new();
        let short = Duration::from_millis(200);
        while let Ok(Ok(stream)) = tokio::time::timeout(short, TcpStream::connect(address)).await {
            queued.push(stream);
        }
        (listener, queued)
    }

    fn url(listener: &TcpListener) -> String {
        let address = listener.local_addr().expect("is bound");
        format!("http://{address}")
    }

    #[tokio::test]
    async fn a_member_that_says_nothing_is_passed_over() {
        let (silent, _queued) = silent().await;
        let other = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let urls = vec![url(&silent), url(&other)];
        let upstream = Arc::new(Upstream::new(urls, Dialler::default(), None));
        for _ in 0..6 {
            let channel = tokio::time::timeout(DIAL_LIMIT / 2, upstream.channel()).await;
            let channel = channel.expect("waits for no other").expect("connects");
            let origin = channel.origin().to_string();
            assert_eq!(origin.trim_end_matches('/'), url(&other));
        }
        // Who asks for that member waits for it, and gives up without ending the dial.
        let first = upstream.first_channel();
        let waited = tokio::time::timeout(Duration::from_millis(50), first).await;
        assert!(waited.is_err());
        let dialled = upstream.members.read()[0].clone();
        assert!(dialled.connection.lock().is_dialled);
    }

    #[tokio::test]
    async fn members_are_replaced() {
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.expect("binds"));
        }
        let urls: Vec<String> = listeners.iter().map(url).collect();
        let upstream = Upstream::new(urls[..2].to_vec(), Dialler::default(), None);
        let upstream = Arc::new(upstream);
        let found = async |count: usize| {
            let mut found = std::collections::BTreeSet::new();
            for _ in 0..count {
                // Others dial meanwhile.
                tokio::time::sleep(Duration::from_millis(1)).await;
                let channel = upstream.channel().await.expect("connects");
                found.insert(
                    channel
                        .origin()
                        .to_string()
                        .trim_end_matches('/')
                        .to_owned(),
                );
            }
            found.into_iter().collect::<Vec<_>>()
        };
        let sorted = |urls: &[String]| {
            let mut urls = urls.to_vec();
            urls.sort();
            urls
        };
        // Both, as soon as both are connected.
        upstream.first_channel().await.expect("connects");
        while found(4).await != sorted(&urls[..2]) {}
        let kept = upstream.members.read()[1].clone();
        upstream.replace(urls[1..].to_vec());
        while found(4).await != sorted(&urls[1..]) {}
        assert!(Arc::ptr_eq(&kept, &upstream.members.read()[0]));
        upstream.replace(Vec::new());
        assert_eq!(found(4).await, sorted(&urls[1..]));
    }

    #[tokio::test]
    async fn a_dial_continues_without_its_caller() {
        let (silent, _queued) = silent().await;
        let upstream = Arc::new(Upstream::new(vec![url(&silent)], Dialler::default(), None));
        let given_up = tokio::time::timeout(Duration::from_millis(50), upstream.channel()).await;
        assert!(given_up.is_err());
        let failed = upstream.channel().await.err().expect("fails");
        assert!(
            failed.message().contains("no connection within"),
            "{failed}"
        );
        // Those who come a moment later hear the same at once.
        let soon = tokio::time::timeout(DIAL_LIMIT / 2, upstream.channel()).await;
        assert!(soon.expect("does not wait").is_err());
    }
}
