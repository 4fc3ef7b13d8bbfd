//! Connections to the members, one each, which calls take in turn. One that ended is made again when
//! it is next needed, by a task of its own: a caller that gives up ends no dial, and a member that is
//! dialled or could not be reached a moment ago is passed over while there is another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::Status;

use crate::env::{Clock, SystemClock};
use crate::net::KeepAlive;
use crate::transport::{Channel, Dialler, Windows, dial_within};

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
    members: Vec<Member>,
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
        let member = |url| Member {
            url,
            connection: Mutex::default(),
        };
        Self {
            members: urls.into_iter().map(member).collect(),
            turns: AtomicUsize::new(0),
            dialler,
            keep_alive,
            clock: Arc::new(SystemClock::new()),
            dialled: Notify::new(),
        }
    }

    pub fn first_url(&self) -> &str {
        self.members.first().map_or("", |member| &member.url)
    }

    /// A connection to the next member that can be reached.
    ///
    /// # Errors
    /// UNAVAILABLE, where none can.
    pub async fn channel(self: &Arc<Self>) -> Result<Channel, Status> {
        let first = self.turns.fetch_add(1, Ordering::Relaxed);
        let all = self.members.len();
        self.one_of((0..all).map(|at| first.wrapping_add(at) % all))
            .await
    }

    /// A connection to the first member.
    ///
    /// # Errors
    /// UNAVAILABLE, where it cannot be reached.
    pub async fn first_channel(self: &Arc<Self>) -> Result<Channel, Status> {
        self.one_of(0..self.members.len().min(1)).await
    }

    async fn one_of(
        self: &Arc<Self>,
        members: impl Iterator<Item = usize> + Clone,
    ) -> Result<Channel, Status> {
        let since = self.clock.now();
        loop {
            // Made before the members are checked: no end of a dial comes between.
            let dialled = self.dialled.notified();
            let mut waits = false;
            for at in members.clone() {
                match self.channel_or_dial(at, since) {
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
        let failed = |at: usize| self.members[at].connection.lock().failed.clone();
        let reasons = members.filter_map(failed).map(|(_, reason)| reason);
        Err(Status::unavailable(reasons.collect::<Vec<_>>().join("; ")))
    }

    /// The connection to a member for a caller that came at `since`. One that is not there is
    /// dialled, unless that failed a moment ago, or for this caller.
    fn channel_or_dial(self: &Arc<Self>, at: usize, since: Duration) -> Found {
        let mut connection = self.members[at].connection.lock();
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
        tokio::spawn(self.clone().dial(at));
        Found::Dial
    }

    async fn dial(self: Arc<Self>, at: usize) {
        let Member { url, connection } = &self.members[at];
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
        assert!(upstream.members[0].connection.lock().is_dialled);
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
