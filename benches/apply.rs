//! Puts a second through the state machine on RocksDB, without raft and the network: new keys,
//! then overwrites, in groups of 64. Arguments: directory, puts a row.

use std::sync::Arc;
use std::time::Instant;

use etched::bench::{
    EngineLimits, Entry, InternalRaftRequest, Machine, Payload, PutRequest, RocksEngine,
};

const GROUP: u64 = 64;
const BUDGET: EngineLimits = EngineLimits {
    open_files: 256,
    block_cache_bytes: 128 << 20,
    memtable_bytes: 128 << 20,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let dir = args.next().unwrap_or_else(|| "target/bench-apply".into());
    let puts: u64 = args.next().map_or(Ok(200_000), |text| text.parse())?;
    std::fs::create_dir_all(&dir)?;
    std::fs::remove_dir_all(&dir)?;
    let engine = Arc::new(RocksEngine::open(std::path::Path::new(&dir), BUDGET)?);
    let mut machine = Machine::open(engine)?;
    for what in ["new keys", "overwrites"] {
        let start = Instant::now();
        for first in (0..puts).step_by(GROUP as usize) {
            let entries =
                (first..first + GROUP).map(|n| put(machine.applied_index() + 1 + n - first, n));
            let entries = entries.collect();
            machine.apply(entries)?;
        }
        let rate = puts as f64 / start.elapsed().as_secs_f64();
        println!("{what}: {rate:.0} puts/s");
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn put(index: u64, key: u64) -> Entry {
    let request = InternalRaftRequest {
        put: Some(PutRequest {
            key: format!("{:032}", key.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into(),
            value: vec![b'v'; 256].into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    Entry {
        index,
        term: 1,
        payload: Payload::Decoded(Arc::new(request)),
    }
}
