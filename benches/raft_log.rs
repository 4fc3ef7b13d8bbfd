//! Appends a second to the raft log, for batches of 1, 16 and 128 entries of 300 bytes, each
//! batch synced, on a real disk. Arguments: directory, seconds a row.

use std::sync::Arc;
use std::time::{Duration, Instant};

use etched::bench::{
    Batch, DEFAULT_SEGMENT_BYTES, Error, Files, LogEntry, LogOptions, RaftLog, RealFiles,
    ZeroFiller,
};

const OPTIONS: LogOptions = LogOptions {
    segment_bytes: DEFAULT_SEGMENT_BYTES,
    cluster_id: 1,
    member_id: 2,
    sync: true,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let base = args.next().unwrap_or_else(|| "target/bench-log".into());
    let seconds: u64 = args.next().map_or(Ok(5), |text| text.parse())?;
    println!(
        "{:>6} {:>10} {:>8} {:>8} {:>9}",
        "batch", "batches/s", "p50 us", "p99 us", "max us"
    );
    for size in [1, 16, 128] {
        let dir = format!("{base}-{size}");
        std::fs::create_dir_all(&dir)?;
        std::fs::remove_dir_all(&dir)?;
        let mut took = appends(&dir, size, Duration::from_secs(seconds))?;
        took.sort();
        let quantile = |q: f64| took[((took.len() - 1) as f64 * q) as usize].as_micros();
        let rate = took.len() as f64 / took.iter().sum::<Duration>().as_secs_f64();
        let (p50, p99, max) = (quantile(0.5), quantile(0.99), quantile(1.0));
        println!("{size:>6} {rate:>10.0} {p50:>8} {p99:>8} {max:>9}");
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

/// How long each append took.
fn appends(
    dir: &str,
    size: u64,
    limit: Duration,
) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let files: Arc<dyn Files> = Arc::new(RealFiles::new(dir)?);
    let filler = ZeroFiller::start(files.clone())?;
    let mut log = RaftLog::create(files, OPTIONS)?.with_prepare(Box::new(filler));
    let data = bytes::Bytes::from(vec![7; 300]);
    let mut took = Vec::new();
    let start = Instant::now();
    while start.elapsed() < limit {
        append(&mut log, size, &data, &mut took)?;
    }
    Ok(took)
}

fn append(
    log: &mut RaftLog,
    size: u64,
    data: &bytes::Bytes,
    took: &mut Vec<Duration>,
) -> Result<(), Error> {
    let first = log.last_index() + 1;
    let entries: Vec<LogEntry> = (first..first + size)
        .map(|index| LogEntry {
            index,
            term: 1,
            data: data.clone(),
        })
        .collect();
    let at = Instant::now();
    log.append(Batch {
        entries: &entries,
        hard_state: None,
    })?;
    took.push(at.elapsed());
    if took.len().is_multiple_of(2000) && first > 10_000 {
        log.compact(first - 5_000)?;
    }
    Ok(())
}
