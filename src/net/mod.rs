//! Sockets, once for clients and for members: bind, listen, accept, encrypt, serve HTTP, drain.
//!
//! A server passes to [`serve()`] a listener, [`ServeOptions`] with every limit, and a service of
//! requests; what a request means is none of this room's business.
//!
//! - `listen` binds addresses, of the network or in files; a connection of either is a `stream`.
//! - `accept` takes connections, serves each, and gives those under way their last answers when
//!   the process stops. Where a listener has TLS, its handshake comes before the first byte of HTTP.
//! - `takeover` lets a connection of HTTP/1 continue as another protocol.
//! - `tls` makes the handshakes; those of outgoing connections are asked for in `transport/dial.rs`.
//! - `http2` decides every limit of the HTTP/2 library by name.
//! - `join` makes one frame of many small ones.
//! - `sending` gives that library of an answer what there is room for.
//! - `guard` stands between a client's socket and that library and sees each frame: `pings` sends
//!   clients away that ping too often, `inbound` finds header blocks, and `authority` mends in them
//!   what the library would refuse and etcd takes. `turns` has one connection at a time hand that
//!   library large ones.

mod accept;
mod allowance;
mod authority;
mod frames;
mod guard;
mod http2;
mod huffman;
mod inbound;
mod join;
pub mod listen;
mod pings;
mod sending;
mod stream;
mod takeover;
#[cfg(test)]
mod tests;
pub mod tls;
mod turns;
mod versions;

pub use accept::{Client, Security, ServeOptions, serve, take};
pub use allowance::Allowance;
pub use guard::Guard;
pub use http2::{Http2, KeepAlive, Windows};
#[cfg(any(test, feature = "fuzzing"))]
pub use inbound::mended;
pub use stream::Stream;
pub use takeover::Takeover;
pub use turns::BlockTurns;
pub use versions::Versions;
