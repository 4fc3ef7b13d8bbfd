//! Sockets, once for clients and for members: bind, listen, accept, serve HTTP, drain.
//!
//! A server passes to [`serve()`] a listener, [`Options`] with every limit, and a service of
//! requests; what a request means is none of this room's business.
//!
//! - `listen` binds addresses.
//! - `accept` takes connections, serves each, and gives those under way their last answers when
//!   the process stops. **A TLS handshake will stand in `accept::connection`**, before the first
//!   byte of HTTP; the one of outgoing connections in `transport/dial.rs`, in `wrap`.
//! - `http2` decides every limit of the HTTP/2 library by name.
//! - `guard` stands between a client's socket and that library and sees each frame: `pings` sends
//!   clients away that ping too often, `inbound` finds header blocks, and `authority` mends in them
//!   what the library would refuse and etcd takes.

mod accept;
mod allowance;
mod authority;
mod frames;
mod guard;
mod http2;
mod huffman;
mod inbound;
pub mod listen;
mod pings;
#[cfg(test)]
mod tests;

pub use accept::{Client, Options, Versions, serve, tune};
pub use allowance::Allowance;
pub use guard::Guard;
pub use http2::{Http2, KeepAlive};
#[cfg(any(test, feature = "fuzzing"))]
pub use inbound::mended;
