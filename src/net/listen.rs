//! Listening sockets, of the network and in files.
//!
//! A file outlives a process that was killed, so one at which nobody listens is replaced; one at
//! which somebody does is an address in use. (etcd takes it from the process that has it.) Nothing
//! but a socket is ever removed. The file is removed with its listener; its mode is the umask's.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket};

use super::stream::Stream;
use crate::types::{Address, Remote};

/// Connections that the kernel holds before they are accepted.
const BACKLOG: u32 = 4096;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen {} {address}: bind: {reason}", self.network())]
pub struct Error {
    pub address: Address,
    pub reason: String,
}

impl Error {
    fn new(address: &Address, error: &io::Error) -> Self {
        Self {
            address: address.clone(),
            reason: reason(error),
        }
    }

    /// Go's word for the kind of network.
    fn network(&self) -> &'static str {
        match self.address {
            Address::Tcp(_) => "tcp",
            Address::File(_) => "unix",
        }
    }
}

/// Options of a listening socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketOptions {
    pub reuse_port: bool,
}

/// An address that is bound and refuses connections.
pub struct Held {
    socket: Socket,
    address: Address,
}

enum Socket {
    Tcp(TcpSocket),
    Unix(UnixSocket, SocketFile),
}

/// Accepts connections.
pub enum Listener {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

/// The file of a listener, which is removed with it.
pub struct SocketFile {
    path: PathBuf,
    /// Which file it is: another may have its name by then.
    device_and_inode: (u64, u64),
}

impl Held {
    /// Takes connections from now on.
    pub fn listen(self) -> Result<Listener, Error> {
        let listening = match self.socket {
            Socket::Tcp(socket) => socket.listen(BACKLOG).map(Listener::Tcp),
            Socket::Unix(socket, file) => {
                let unix = |listener| Listener::Unix {
                    listener,
                    _file: file,
                };
                socket.listen(BACKLOG).map(unix)
            }
        };
        listening.map_err(|error| Error::new(&self.address, &error))
    }
}

impl Listener {
    pub async fn accept(&self) -> io::Result<(Stream, Remote)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Remote::Tcp(remote)))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), Remote::Local))
            }
        }
    }

    #[cfg(test)]
    pub fn address(&self) -> Address {
        match self {
            Self::Tcp(listener) => Address::Tcp(listener.local_addr().expect("is bound")),
            Self::Unix { _file, .. } => Address::File(_file.path.clone()),
        }
    }
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let found = std::fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device_and_inode: (found.dev(), found.ino()),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = std::fs::symlink_metadata(&self.path);
        let is_it = found.is_ok_and(|found| (found.dev(), found.ino()) == self.device_and_inode);
        if is_it && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the file of a socket");
        }
    }
}

/// Binds an address. Done before anything else of a start, so that one that is taken costs
/// nothing.
pub fn bind(address: &Address, options: SocketOptions) -> Result<Listener, Error> {
    hold(address, options)?.listen()
}

/// Binds an address whose connections nobody takes yet.
pub fn hold(address: &Address, options: SocketOptions) -> Result<Held, Error> {
    let socket = match address {
        Address::Tcp(address) => hold_port(*address, options).map(Socket::Tcp),
        Address::File(path) => hold_file(path),
    };
    let socket = socket.map_err(|error| Error::new(address, &error))?;
    Ok(Held {
        socket,
        address: address.clone(),
    })
}

fn hold_port(address: SocketAddr, options: SocketOptions) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // Without it a restart would have to wait for connections of the last run to time out; Go
    // sets it as well.
    socket.set_reuseaddr(true)?;
    if options.reuse_port {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    Ok(socket)
}

fn hold_file(path: &Path) -> io::Result<Socket> {
    let bind = || -> io::Result<UnixSocket> {
        let socket = UnixSocket::new_stream()?;
        socket.bind(path)?;
        Ok(socket)
    };
    let socket = match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path)? => {
            std::fs::remove_file(path)?;
            bind()?
        }
        bound => bound?,
    };
    Ok(Socket::Unix(socket, SocketFile::of(path)?))
}

/// Whether a file is a socket at which nobody listens.
fn is_abandoned(path: &Path) -> io::Result<bool> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    // One whose queue is full must not be waited for.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let connected = rustix::net::connect(&socket, &SocketAddrUnix::new(path)?);
    Ok(connected == Err(Errno::CONNREFUSED))
}

/// The error in the words that operators grep for.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "address already in use".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        _ => error.to_string(),
    }
}
