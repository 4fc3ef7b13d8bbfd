//! Notifies systemd, if requested, that the member serves, or that its start takes long (sd_notify).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Says that the member serves.
pub fn ready() {
    if let Err(error) = notify("READY=1") {
        tracing::warn!(%error, "failed to notify systemd for readiness");
    }
}

/// Asks for this long, from now on, until the member serves or asks again.
pub fn extend_start(timeout: Duration) {
    if let Err(error) = notify(&format!("EXTEND_TIMEOUT_USEC={}", timeout.as_micros())) {
        tracing::warn!(%error, "failed to ask systemd for more time to start");
    }
}

/// Sends it to the socket named in the environment, if there is one.
fn notify(message: &str) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) {
        Some(name) => send(&name, message.as_bytes()),
        None => Ok(()),
    }
}

fn send(name: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = address(name)?;
    let sent = UnixDatagram::unbound()?.send_to_addr(message, &address)?;
    if sent == message.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// A path, or after an `@` a name in Linux's abstract namespace.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = name.as_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt as _;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_both_kinds_hear_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("notify");
        let abstract_name = format!("@etched-test-{}", std::process::id());
        for name in [path.as_os_str(), OsStr::new(&abstract_name)] {
            let address = address(name).expect("an address");
            let socket = UnixDatagram::bind_addr(&address).expect("binds");
            let limit = std::time::Duration::from_secs(10);
            socket.set_read_timeout(Some(limit)).expect("a limit");
            send(name, b"READY=1").expect("sends");
            let mut heard = [0; 16];
            let len = socket.recv(&mut heard).expect("hears");
            assert_eq!(&heard[..len], b"READY=1");
        }
        send(OsStr::new("@"), b"READY=1").expect_err("nobody listens");
    }
}
