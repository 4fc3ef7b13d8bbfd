//! Tests of the whole of `watch` on the engine in memory.

mod bench;
mod logged;
mod memory;
mod random;
mod scripts;
mod threads;
mod world;
