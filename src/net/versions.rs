//! The versions of HTTP that a listener has.

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    Http1,
    Http2,
    Both,
}
