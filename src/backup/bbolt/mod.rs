//! bbolt, the file format that etcd keeps its state in: written in one pass from sorted pairs, and
//! read from a file that nobody writes to.
//!
//! Nothing here knows what etcd puts into it; `super::etcd` does.

pub mod page;
pub mod read;
#[cfg(test)]
mod tests;
pub mod write;
