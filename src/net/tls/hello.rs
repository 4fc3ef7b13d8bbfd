//! The first message of a client.
//!
//! A client that knows TLS 1.1 at most has to hear that its version is too old, and looks for that
//! alert; the library misses an extension of later versions in its message and says so instead.

use std::io;

use rustls::PeerIncompatible;
use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What the library reads at a time.
const READ_BYTES: usize = 4096;
/// A fatal alert in a record of TLS 1.0: `protocol_version`.
const TOO_OLD: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];

/// Reads it, and what came with it.
///
/// # Errors
/// What is wrong with it, of which the client has been sent as much as TLS has words for.
pub async fn read<S>(stream: &mut S) -> io::Result<Accepted>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    loop {
        // Not in the future, which lives as long as the connection.
        let mut bytes = vec![0; READ_BYTES];
        let count = stream.read(&mut bytes).await?;
        let mut read = &bytes[..count];
        if read.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !read.is_empty() {
            if acceptor.read_tls(&mut read)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let (error, mut alert) = match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => continue,
            Err(refused) => refused,
        };
        let mut answer = Vec::new();
        match is_too_old(&error) {
            true => answer.extend(TOO_OLD),
            false => alert.write_all(&mut answer)?,
        }
        // The client may be gone, and the first error says more.
        let _ = stream.write_all(&answer).await;
        let _ = stream.flush().await;
        return Err(io::Error::other(error));
    }
}

/// Whether a client knows no version that is served.
pub fn is_too_old(error: &rustls::Error) -> bool {
    let rustls::Error::PeerIncompatible(missing) = error else {
        return false;
    };
    matches!(
        missing,
        PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
    )
}
