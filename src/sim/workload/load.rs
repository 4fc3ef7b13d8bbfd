//! How much a world's clients ask for.

/// How busy a world's clients are.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The longest wait between two requests of a client, in milliseconds.
    pub think_ms: u64,
    /// Bytes that some values have beside what makes them unique.
    pub value_bytes: u64,
}
