//! Connections to the members, one each, which calls take in turn. One that cannot be had is passed
//! over for a while; one that ended is made again by the next call that needs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tonic::Status;

use crate::env::{Clock, SystemClock};
use crate::net::KeepAlive;
use crate::transport::{Channel, Dialler, Windows, dial_within};

/// etcd's dial timeout.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// A member that could not be reached is left alone so long where there are others.
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
}

struct Member {
    url: String,
    connection: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    channel: Option<Channel>,
    /// When it last could not be had, and why.
    failed: Option<(Duration, String)>,
}

impl Upstream {
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
        }
    }

    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.url.as_str())
    }

    /// A connection to the next member that can be reached.
    ///
    /// # Errors
    /// UNAVAILABLE, where none can.
    pub async fn channel(&self) -> Result<Channel, Status> {
        let first = self.turns.fetch_add(1, Ordering::Relaxed);
        let all = self.members.len();
        let in_turn = || (0..all).map(|at| &self.members[first.wrapping_add(at) % all]);
        for member in in_turn() {
            if let Some(channel) = self.connect(member, true).await {
                return Ok(channel);
            }
        }
        for member in in_turn() {
            if let Some(channel) = self.connect(member, false).await {
                return Ok(channel);
            }
        }
        let mut reasons = Vec::new();
        for member in &self.members {
            let failed = &member.connection.lock().await.failed;
            reasons.extend(failed.as_ref().map(|(_, reason)| reason.clone()));
        }
        Err(Status::unavailable(reasons.join("; ")))
    }

    /// The connection to a member. `fresh`: not if the last try failed a moment ago.
    async fn connect(&self, member: &Member, fresh: bool) -> Option<Channel> {
        let mut connection = member.connection.lock().await;
        if let Some(channel) = connection.channel.as_ref().filter(|one| !one.is_closed()) {
            return Some(channel.clone());
        }
        connection.channel = None;
        let is_recent = |(at, _): &(Duration, String)| self.clock.now() < *at + PASSED_OVER;
        // Those who waited for the same try need not make another.
        if connection.failed.as_ref().is_some_and(is_recent) && (fresh || self.members.len() == 1) {
            return None;
        }
        let (url, keep_alive) = (&member.url, self.keep_alive);
        let dialled = dial_within(DIAL_LIMIT, &self.dialler, url, keep_alive, WINDOWS).await;
        match dialled {
            Ok(channel) => {
                connection.failed = None;
                connection.channel = Some(channel.clone());
                Some(channel)
            }
            Err(reason) => {
                tracing::warn!(
                    endpoint = member.url,
                    error = reason,
                    "cannot reach a member"
                );
                connection.failed = Some((self.clock.now(), reason));
                None
            }
        }
    }
}
