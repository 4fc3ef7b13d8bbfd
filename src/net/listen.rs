//! Listening sockets.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Connections that the kernel holds before they are accepted.
const BACKLOG: u32 = 4096;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen tcp {address}: bind: {reason}")]
pub struct Error {
    pub address: SocketAddr,
    pub reason: String,
}

/// Options of a listening socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketOptions {
    pub reuse_port: bool,
}

/// An address that is bound and refuses connections.
pub struct Held {
    socket: TcpSocket,
    address: SocketAddr,
}

impl Held {
    /// Takes connections from now on.
    pub fn listen(self) -> Result<TcpListener, Error> {
        self.socket
            .listen(BACKLOG)
            .map_err(|error| failed(self.address, &error))
    }
}

fn failed(address: SocketAddr, error: &std::io::Error) -> Error {
    Error {
        address,
        reason: reason(error),
    }
}

/// Binds an address. Done before anything else of a start, so that a port that is taken costs
/// nothing.
pub fn bind(address: SocketAddr, options: SocketOptions) -> Result<TcpListener, Error> {
    hold(address, options)?.listen()
}

/// Binds an address whose connections nobody takes yet.
pub fn hold(address: SocketAddr, options: SocketOptions) -> Result<Held, Error> {
    let failed = |error: std::io::Error| failed(address, &error);
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(failed)?;
    // Without it a restart would have to wait for connections of the last run to time out; Go
    // sets it as well.
    socket.set_reuseaddr(true).map_err(failed)?;
    if options.reuse_port {
        socket.set_reuseport(true).map_err(failed)?;
    }
    socket.bind(address).map_err(failed)?;
    Ok(Held { socket, address })
}

/// The error in the words that operators grep for.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "address already in use".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
        _ => error.to_string(),
    }
}
