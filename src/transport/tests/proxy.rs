//! A link between two members that a test can break in every way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How a link behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Open,
    /// What is sent on a new connection passes when this is over.
    Late(Duration),
    /// Nothing passes, without an error; connections can still be made.
    Frozen,
    /// Each connection carries so many bytes to the member, and stands still then.
    StopAfter(u64),
    /// Connections end once they carried so many bytes to the member.
    CutAfter(u64),
}

/// See the module. Its connections end with it.
pub struct Proxy {
    pub url: String,
    pub mode: watch::Sender<Mode>,
    pub connections: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// To a member that listens at this address.
    pub async fn to(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let mode = watch::Sender::new(Mode::Open);
        let connections = Arc::new(AtomicU64::new(0));
        let (modes, counted) = (mode.clone(), connections.clone());
        let address = address.to_owned();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut links = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let Ok(far) = TcpStream::connect(&address).await else {
                    continue;
                };
                links.spawn(link(near, far, modes.subscribe()));
            }
        });
        Self {
            url,
            mode,
            connections,
            _tasks: tasks,
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn link(near: TcpStream, far: TcpStream, modes: watch::Receiver<Mode>) {
    let mode = *modes.borrow();
    if let Mode::Late(by) = mode {
        tokio::time::sleep(by).await;
    }
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    // Either way's end is the end of both.
    tokio::select! {
        () = carry(near_read, far_write, modes.clone(), true) => {}
        () = carry(far_read, near_write, modes, false) => {}
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
    counts: bool,
) {
    let mut buffer = vec![0; 64 << 10];
    let mut carried = 0;
    loop {
        let mode = *modes.borrow_and_update();
        let stands = match mode {
            Mode::Open | Mode::Late(_) => false,
            Mode::Frozen => true,
            Mode::StopAfter(bytes) => counts && carried >= bytes,
            Mode::CutAfter(bytes) if counts && carried >= bytes => return,
            Mode::CutAfter(_) => false,
        };
        let read = tokio::select! {
            changed = modes.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            read = from.read(&mut buffer), if !stands => read,
        };
        let Ok(bytes @ 1..) = read else {
            return;
        };
        carried += bytes as u64;
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}
