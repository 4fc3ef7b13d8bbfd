//! The engine on RocksDB.
//!
//! RocksDB's own write-ahead log is off: what a crash loses comes back from the raft log. Atomic
//! flush keeps all families at the same entry. Every manual flush names every family, and this
//! wrapper is the only owner of the handle.
#![allow(unsafe_code)] // The code that self_cell generates; nothing written here is unsafe.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB,
    DBCompressionType, DBRawIterator, FlushOptions, LogLevel, LruCacheOptions, Options,
    ReadOptions, ReadTier, Snapshot, WriteBatch, WriteBufferManager, WriteOptions,
};

use super::{Batch, Cursor, Engine, Error, Family, Op, Read, Result, Size};

/// How much memory the engine may take, and how many of its tables it keeps open.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    pub open_files: usize,
    pub block_cache_bytes: usize,
    /// Of all memtables together.
    pub memtable_bytes: usize,
}

impl EngineLimits {
    /// The limits for a state that is opened for a short time, beside the one in use.
    pub fn for_inspection(self) -> Self {
        Self {
            open_files: self.open_files.min(INSPECTION_OPEN_FILES),
            block_cache_bytes: self.block_cache_bytes.min(INSPECTION_BYTES),
            memtable_bytes: self.memtable_bytes.min(INSPECTION_BYTES),
        }
    }
}

/// The least that RocksDB takes.
pub const INSPECTION_OPEN_FILES: usize = 20;
const INSPECTION_BYTES: usize = 1 << 20;

/// Removes a directory that is not used any more.
struct Directory {
    path: PathBuf,
    retired: AtomicBool,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.retired.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a state that was replaced");
        }
    }
}

/// An open database; closed before its directory may go.
struct Opened {
    db: DB,
    directory: Directory,
}

impl std::ops::Deref for Opened {
    type Target = DB;

    fn deref(&self) -> &DB {
        &self.db
    }
}

/// The engine on a directory of its own.
pub struct RocksEngine {
    db: Arc<Opened>,
    write_options: WriteOptions,
    unflushed_bytes: AtomicU64,
}

impl RocksEngine {
    /// Opens or creates the engine in `dir`.
    pub fn open(dir: &Path, budget: EngineLimits) -> Result<Self> {
        let db = DB::open_cf_descriptors(&db_options(budget), dir, families(budget))
            .map_err(|error| open_error(dir, &error))?;
        Ok(Self::over(db, dir))
    }

    /// Opens files that nobody writes to, such as a checkpoint's, to read them.
    pub fn open_read_only(dir: &Path, budget: EngineLimits) -> Result<Self> {
        // RocksDB would make the directory of a database that is not there.
        if !dir.join("CURRENT").is_file() {
            return Err(Error::Open(format!(
                "there is no state in {}: it has no file CURRENT; restore this member from a backup or from the other members",
                dir.display()
            )));
        }
        let options = db_options(budget);
        let db = DB::open_cf_descriptors_read_only(&options, dir, families(budget), false)
            .map_err(|error| open_error(dir, &error))?;
        Ok(Self::over(db, dir))
    }

    fn over(db: DB, dir: &Path) -> Self {
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        let directory = Directory {
            path: dir.to_owned(),
            retired: AtomicBool::new(false),
        };
        Self {
            db: Arc::new(Opened { db, directory }),
            write_options,
            unflushed_bytes: AtomicU64::new(0),
        }
    }

    fn sum_property(&self, name: &str) -> u64 {
        Family::ALL
            .iter()
            .map(|family| self.property(*family, name))
            .sum()
    }

    fn property(&self, family: Family, name: &str) -> u64 {
        let handle = self.db.cf_handle(family.name());
        let value = handle.and_then(|handle| self.db.property_int_value_cf(handle, name).ok()?);
        value.unwrap_or_default()
    }
}

/// A block larger than a shard is read again by each who needs it. RocksDB would have 64 shards of the
/// usual cache, of less than a large value each.
fn block_cache(bytes: usize) -> Cache {
    const SHARD_BYTES: usize = 8 << 20;
    const MAX_SHARD_BITS: u32 = 6;
    let shard_bits = (bytes / SHARD_BYTES).checked_ilog2().unwrap_or_default();
    let mut options = LruCacheOptions::default();
    options.set_capacity(bytes);
    options.set_num_shard_bits(shard_bits.min(MAX_SHARD_BITS) as i32);
    Cache::new_lru_cache_opts(&options)
}

fn families(budget: EngineLimits) -> impl Iterator<Item = ColumnFamilyDescriptor> {
    let cache = block_cache(budget.block_cache_bytes);
    let families = Family::ALL.map(|family| {
        ColumnFamilyDescriptor::new(family.name(), family_options(family, &cache, budget))
    });
    families.into_iter()
}

/// Each shard of the tables that are open holds one at least, so that of RocksDB's usual 64 shards more
/// would be open than few may be.
fn table_shard_bits(open_files: usize) -> i32 {
    const SHARD_TABLES: usize = 16;
    const MAX_SHARD_BITS: u32 = 6;
    let shard_bits = (open_files / SHARD_TABLES).checked_ilog2();
    shard_bits.unwrap_or_default().min(MAX_SHARD_BITS) as i32
}

fn db_options(budget: EngineLimits) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    options.set_max_background_jobs(2);
    options.set_max_open_files(i32::try_from(budget.open_files).unwrap_or(i32::MAX));
    options.set_table_cache_num_shard_bits(table_shard_bits(budget.open_files));
    // RocksDB would begin sixteen for the few tables that it opens ahead, and ends the process where
    // there is no thread to be had.
    options.set_max_file_opening_threads(1);
    options.set_skip_stats_update_on_db_open(true);
    options.set_avoid_unnecessary_blocking_io(true);
    options.set_bytes_per_sync(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(4 << 20);
    let manager = WriteBufferManager::new_write_buffer_manager(budget.memtable_bytes, false);
    options.set_write_buffer_manager(&manager);
    options
}

fn family_options(family: Family, cache: &Cache, budget: EngineLimits) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(8 << 10);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // In pieces: a filter of a million small keys is larger than a megabyte, of which a read needs a
    // few kilobytes, and those of a large state do not fit into the cache.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_format_version(5);
    if family == Family::Current {
        // A put looks for the version before it, and new keys have none.
        table.set_bloom_filter(10.0, false);
    }
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(budget.memtable_bytes / 2);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_compression_per_level(&[
        DBCompressionType::None,
        DBCompressionType::None,
        DBCompressionType::None,
        DBCompressionType::Lz4,
        DBCompressionType::Lz4,
        DBCompressionType::Lz4,
        DBCompressionType::Lz4,
    ]);
    options
}

fn open_error(dir: &Path, error: &rocksdb::Error) -> Error {
    let text = error.to_string();
    let dir = dir.display();
    Error::Open(match error.kind() {
        rocksdb::ErrorKind::Corruption => format!(
            "the state in {dir} is damaged ({text}); restore this member from a backup or from the other members"
        ),
        _ if text.contains("No space left on device") || text.contains("Disk quota exceeded") => {
            format!(
                "cannot open the state in {dir}: {text}; free space or inodes on this file system, and start again"
            )
        }
        // Also a lock file that could not be made is an error about a lock.
        _ if text.contains("lock") && text.contains("Resource temporarily unavailable") => {
            format!("the state in {dir} is in use by another process ({text})")
        }
        _ => format!("cannot open the state in {dir}: {text}"),
    })
}

fn engine_error(error: rocksdb::Error) -> Error {
    let text = error.to_string();
    Error::Engine(match error.kind() {
        rocksdb::ErrorKind::Corruption => format!(
            "the state on disk is damaged ({text}); restore this member from a backup or from the other members"
        ),
        _ => text,
    })
}

fn handle(db: &DB, family: Family) -> Result<&ColumnFamily> {
    db.cf_handle(family.name())
        .ok_or_else(|| Error::Engine(format!("family {} is missing", family.name())))
}

/// What a scan reads of a file at a time. RocksDB itself asks the system to read ahead, but still
/// takes each block with a call of its own.
const SCAN_READ_BYTES: usize = 256 << 10;

/// Whether what is read stays in the block cache.
#[derive(Clone, Copy)]
enum Caching {
    Kept,
    PassedBy,
}

fn get(
    db: &DB,
    snapshot: Option<&Snapshot<'_>>,
    caching: Caching,
    family: Family,
    key: &[u8],
) -> Result<Option<Bytes>> {
    let mut options = ReadOptions::default();
    options.fill_cache(matches!(caching, Caching::Kept));
    if let Some(snapshot) = snapshot {
        options.set_snapshot(snapshot);
    }
    let pinned = db
        .get_pinned_cf_opt(handle(db, family)?, key, &options)
        .map_err(engine_error)?;
    Ok(pinned.map(|value| Bytes::copy_from_slice(&value)))
}

fn iterate<'a>(
    db: &'a DB,
    snapshot: Option<&Snapshot<'_>>,
    caching: Caching,
    family: Family,
    (lower, upper): (&[u8], Option<&[u8]>),
) -> Result<Box<dyn Cursor + 'a>> {
    if upper.is_some_and(|upper| upper <= lower) {
        return Ok(Box::new(Nothing));
    }
    let mut options = ReadOptions::default();
    if let Caching::PassedBy = caching {
        options.fill_cache(false);
        options.set_readahead_size(SCAN_READ_BYTES);
    }
    if let Some(snapshot) = snapshot {
        options.set_snapshot(snapshot);
    }
    if let Some(upper) = upper {
        options.set_iterate_upper_bound(upper);
    }
    let iterator = db.raw_iterator_cf_opt(handle(db, family)?, options);
    Ok(Box::new(RocksCursor {
        iterator,
        start: Some(lower.to_vec()),
    }))
}

impl Read for RocksEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        get(&self.db, None, Caching::Kept, family, key)
    }

    fn get_once(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        get(&self.db, None, Caching::PassedBy, family, key)
    }

    fn cursor<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        iterate(&self.db, None, Caching::Kept, family, (lower, upper))
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        iterate(&self.db, None, Caching::PassedBy, family, (lower, upper))
    }
}

self_cell::self_cell!(
    /// RocksDB's snapshot (a view of one sequence number), which keeps its database open.
    struct OwnedSnapshot {
        owner: Arc<Opened>,
        #[covariant]
        dependent: Snapshot,
    }
);

struct RocksView {
    snapshot: OwnedSnapshot,
}

impl RocksView {
    fn iterate<'a>(
        &'a self,
        caching: Caching,
        family: Family,
        range: (&[u8], Option<&[u8]>),
    ) -> Result<Box<dyn Cursor + 'a>> {
        let snapshot = self.snapshot.borrow_dependent();
        let db = self.snapshot.borrow_owner();
        iterate(db, Some(snapshot), caching, family, range)
    }
}

impl Read for RocksView {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        let snapshot = self.snapshot.borrow_dependent();
        let db = self.snapshot.borrow_owner();
        get(db, Some(snapshot), Caching::Kept, family, key)
    }

    fn get_once(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        let snapshot = self.snapshot.borrow_dependent();
        let db = self.snapshot.borrow_owner();
        get(db, Some(snapshot), Caching::PassedBy, family, key)
    }

    fn cursor<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        self.iterate(Caching::Kept, family, (lower, upper))
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> Result<Box<dyn Cursor + 'a>> {
        self.iterate(Caching::PassedBy, family, (lower, upper))
    }
}

struct RocksCursor<'a> {
    iterator: DBRawIterator<'a>,
    /// Where to begin; taken by the first move.
    start: Option<Vec<u8>>,
}

impl RocksCursor<'_> {
    fn valid(&self) -> Result<bool> {
        if self.iterator.valid() {
            return Ok(true);
        }
        self.iterator.status().map_err(engine_error)?;
        Ok(false)
    }
}

impl Cursor for RocksCursor<'_> {
    fn next(&mut self) -> Result<bool> {
        match self.start.take() {
            Some(start) => self.iterator.seek(start),
            None if self.iterator.valid() => self.iterator.next(),
            None => return self.valid(),
        }
        self.valid()
    }

    fn seek(&mut self, key: &[u8]) -> Result<bool> {
        self.start = None;
        self.iterator.seek(key);
        self.valid()
    }

    fn key(&self) -> &[u8] {
        self.iterator.key().unwrap_or_default()
    }

    fn value(&self) -> &[u8] {
        self.iterator.value().unwrap_or_default()
    }
}

/// A cursor over an empty range.
struct Nothing;

impl Cursor for Nothing {
    fn next(&mut self) -> Result<bool> {
        Ok(false)
    }

    fn seek(&mut self, _key: &[u8]) -> Result<bool> {
        Ok(false)
    }

    fn key(&self) -> &[u8] {
        &[]
    }

    fn value(&self) -> &[u8] {
        &[]
    }
}

impl Engine for RocksEngine {
    fn latest(&self) -> &dyn Read {
        self
    }

    fn view(&self) -> Box<dyn Read> {
        Box::new(RocksView {
            snapshot: OwnedSnapshot::new(self.db.clone(), |db| db.snapshot()),
        })
    }

    fn write(&self, batch: &Batch) -> Result<()> {
        let mut handles = [None; Family::ALL.len()];
        for family in Family::ALL {
            handles[family as usize] = Some(handle(&self.db, family)?);
        }
        let mut rocks_batch = WriteBatch::with_capacity_bytes(batch.size_bytes() + 256);
        for op in batch.iter() {
            let (Op::Put(family, ..) | Op::Delete(family, _)) = op;
            let Some(handle) = handles[family as usize] else {
                continue;
            };
            match op {
                Op::Put(_, key, value) => rocks_batch.put_cf(handle, key, value),
                Op::Delete(_, key) => rocks_batch.delete_cf(handle, key),
            }
        }
        self.db
            .write_opt(rocks_batch, &self.write_options)
            .map_err(engine_error)?;
        // Counted once it can be flushed: too much makes a flush early, too little makes none.
        self.unflushed_bytes
            .fetch_add(batch.size_bytes() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let before = self.unflushed_bytes.load(Ordering::Relaxed);
        let mut handles = Vec::with_capacity(Family::ALL.len());
        for family in Family::ALL {
            handles.push(handle(&self.db, family)?);
        }
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db
            .flush_cfs_opt(&handles, &options)
            .map_err(engine_error)?;
        // Two flushes at once count the same bytes.
        let _ = self
            .unflushed_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| {
                Some(bytes.saturating_sub(before))
            });
        Ok(())
    }

    fn persisted(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        let pinned = self
            .db
            .get_pinned_cf_opt(handle(&self.db, Family::Meta)?, key, &options)
            .map_err(engine_error)?;
        Ok(pinned.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn size(&self) -> Size {
        let memtables = self.sum_property("rocksdb.cur-size-all-mem-tables");
        Size {
            total_bytes: self.sum_property("rocksdb.total-sst-files-size") + memtables,
            in_use_bytes: self.sum_property("rocksdb.estimate-live-data-size") + memtables,
            memtable_bytes: memtables,
            block_cache_bytes: self.property(Family::Current, "rocksdb.block-cache-usage"),
        }
    }

    fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes.load(Ordering::Relaxed)
    }

    fn compact(&self) -> Result<()> {
        for family in Family::ALL {
            let handle = handle(&self.db, family)?;
            self.db
                .compact_range_cf(handle, None::<&[u8]>, None::<&[u8]>);
        }
        Ok(())
    }

    fn checkpoint(&self, dir: &Path) -> Result<()> {
        Checkpoint::new(&self.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint(dir))
            .map_err(engine_error)
    }

    fn retire(&self) {
        self.db.directory.retired.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The open tables below a directory.
    fn open_tables(dir: &Path) -> usize {
        let open = std::fs::read_dir("/proc/self/fd").expect("a list");
        let targets = open.flatten().map(|entry| std::fs::read_link(entry.path()));
        let is_table = |path: &PathBuf| {
            path.starts_with(dir) && path.extension().is_some_and(|of| of == "sst")
        };
        targets.flatten().filter(is_table).count()
    }

    /// A checkpoint has as many tables as the state; its inspection takes few descriptors.
    #[test]
    fn an_inspection_opens_few_tables_of_a_state() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().canonicalize().expect("is there");
        let limits = EngineLimits {
            open_files: 256,
            block_cache_bytes: 1 << 20,
            memtable_bytes: 1 << 20,
        };
        // Fewer of a family than are merged.
        const ROUNDS: usize = 3;
        let engine = RocksEngine::open(&dir, limits).expect("opens");
        for round in 0..ROUNDS {
            let mut batch = Batch::default();
            for family in Family::ALL {
                batch.put(family, &[round as u8], b"value");
            }
            engine.write(&batch).expect("writes");
            engine.flush().expect("flushes");
        }
        drop(engine);
        let whole = RocksEngine::open_read_only(&dir, limits).expect("opens");
        let tables = ROUNDS * Family::ALL.len();
        // So many are opened ahead.
        assert_eq!(open_tables(&dir), tables.min(16));
        drop(whole);
        let inspected = RocksEngine::open_read_only(&dir, limits.for_inspection()).expect("opens");
        for family in Family::ALL {
            let found = inspected.get(family, &[1]).expect("reads");
            assert_eq!(found.as_deref(), Some(&b"value"[..]));
        }
        // RocksDB keeps ten for its other files.
        let open = open_tables(&dir);
        assert!(open <= INSPECTION_OPEN_FILES - 10, "{open} of {tables}");
    }

    /// As programs open a directory that do not know what lies in the family `default`.
    fn open_as_before(dir: &Path) -> DB {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_atomic_flush(true);
        let names = Family::ALL.map(Family::name);
        let families = names.map(|name| ColumnFamilyDescriptor::new(name, Options::default()));
        DB::open_cf_descriptors(&options, dir, families).expect("opens")
    }

    #[test]
    fn older_programs_leave_counts_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let limits = EngineLimits {
            open_files: 64,
            block_cache_bytes: 1 << 20,
            memtable_bytes: 1 << 20,
        };
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        let write_as_before = |value: &[u8]| {
            let db = open_as_before(dir.path());
            let current = db.cf_handle("current").expect("is there");
            db.put_cf_opt(current, b"key", value, &write_options)
                .expect("writes");
            db.flush_cfs_opt(&[current], &FlushOptions::default())
                .expect("flushes");
        };
        write_as_before(b"1");
        let engine = RocksEngine::open_read_only(dir.path(), limits).expect("opens");
        assert_eq!(engine.get(Family::Counts, b"h").expect("reads"), None);
        drop(engine);
        let engine = RocksEngine::open(dir.path(), limits).expect("opens");
        let found = engine.get(Family::Current, b"key").expect("reads");
        assert_eq!(found.as_deref(), Some(&b"1"[..]));
        let mut batch = Batch::default();
        batch.put(Family::Counts, b"h", b"counts");
        engine.write(&batch).expect("writes");
        engine.flush().expect("flushes");
        drop(engine);
        write_as_before(b"2");
        let engine = RocksEngine::open(dir.path(), limits).expect("opens");
        for (family, key, value) in [
            (Family::Counts, &b"h"[..], &b"counts"[..]),
            (Family::Current, b"key", b"2"),
        ] {
            let found = engine.get(family, key).expect("reads");
            assert_eq!(found.as_deref(), Some(value));
        }
    }
}
