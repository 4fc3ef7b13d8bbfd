//! The messages and services of `proto/`, as the build compiled them.

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

const COMPILED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// All of them; read when first asked for.
pub fn descriptors() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> =
        LazyLock::new(|| DescriptorPool::decode(COMPILED).expect("what the build wrote"));
    &POOL
}
