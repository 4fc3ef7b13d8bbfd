//! The first message of a client.
//!
//! A client that knows TLS 1.1 at most has to hear that its version is too old, and looks for that
//! alert; the library misses an extension of later versions in its message and says so instead.

use std::fmt;
use std::io;

use rustls::PeerIncompatible;
use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What the library reads at a time.
const READ_BYTES: usize = 4096;
/// The kind of a record.
const HANDSHAKE: u8 = 22;
/// A fatal alert in a record of TLS 1.0: `protocol_version`.
const TOO_OLD: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];

/// Versions that Go knows, newest first.
const VERSIONS: [u16; 4] = [0x304, 0x303, 0x302, 0x301];
/// The extension that names versions.
const SUPPORTED_VERSIONS: [u8; 2] = [0, 43];

/// The versions that a client offers, as it says them.
#[derive(Clone, Debug, Default)]
pub struct Offered(Vec<u16>);

impl fmt::Display for Offered {
    /// As Go shows them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let versions: Vec<_> = self.0.iter().map(|one| format!("{one:x}")).collect();
        write!(f, "[{}]", versions.join(" "))
    }
}

impl Offered {
    /// What the first message offers, as far as it can be read.
    fn by(records: &[u8]) -> Self {
        let message = message(records);
        let mut rest = &message[..];
        Self(versions(&mut rest).unwrap_or_default())
    }
}

/// Without the headers of the records that it came in.
fn message(mut records: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let Some(header) = take(&mut records, 3) {
        match take_sized(&mut records, 2) {
            Some(fragment) if header[0] == HANDSHAKE => message.extend_from_slice(fragment),
            _ => break,
        }
    }
    message
}

fn versions(hello: &mut &[u8]) -> Option<Vec<u16>> {
    // The kind of the message, and its length.
    take(hello, 4)?;
    let newest = take(hello, 2).map(version)?;
    let until = || VERSIONS.into_iter().filter(|one| *one <= newest).collect();
    // A random number; then session, cipher suites and compression.
    take(hello, 32)?;
    for length_bytes in [1, 2, 1] {
        take_sized(hello, length_bytes)?;
    }
    let Some(mut extensions) = take_sized(hello, 2) else {
        return Some(until());
    };
    while let Some(kind) = take(&mut extensions, 2) {
        let mut extension = take_sized(&mut extensions, 2)?;
        if kind == SUPPORTED_VERSIONS {
            let named = take_sized(&mut extension, 1)?;
            return Some(named.chunks_exact(2).map(version).collect());
        }
    }
    Some(until())
}

fn version(bytes: &[u8]) -> u16 {
    bytes
        .iter()
        .fold(0, |sum, byte| sum << 8 | u16::from(*byte))
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

/// What a length stands before.
fn take_sized<'a>(bytes: &mut &'a [u8], length_bytes: usize) -> Option<&'a [u8]> {
    let length = take(bytes, length_bytes)?;
    let length = length
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    take(bytes, length)
}

/// Reads it, and what came with it. `offered` is what it says of versions.
///
/// # Errors
/// What is wrong with it, of which the client has been sent as much as TLS has words for.
pub async fn read<S>(stream: &mut S, offered: &mut Offered) -> io::Result<Accepted>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    // No more than the library takes for a message.
    let mut all = Vec::new();
    loop {
        // Not in the future, which lives as long as the connection.
        let mut bytes = vec![0; READ_BYTES];
        let count = stream.read(&mut bytes).await?;
        let mut read = &bytes[..count];
        all.extend_from_slice(read);
        if read.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !read.is_empty() {
            if acceptor.read_tls(&mut read)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let (error, mut alert) = match acceptor.accept() {
            Ok(Some(accepted)) => {
                *offered = Offered::by(&all);
                return Ok(accepted);
            }
            Ok(None) => continue,
            Err(refused) => refused,
        };
        *offered = Offered::by(&all);
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
