//! A state from etcd's bbolt file.
//!
//! etcd's records are in the order of revisions, a state's versions in the order of keys: so
//! records are sorted by key first, and the versions of each key written one after the other. The
//! state is that of the file's last revision, without members, a cluster or an applied entry: those
//! come with the member that is made of it.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use prost::Message;

use super::bbolt::read::{self, File};
use super::etcd::{self, Record, bucket, key};
use crate::mvcc::bulk::Bulk;
use crate::proto::etcdserverpb::AlarmMember;
use crate::proto::membershippb::DowngradeInfoSetRequest;
use crate::proto::{KeyValue, authpb};
use crate::storage::schema::{self, Version, meta};
use crate::storage::sort::Sorter;
use crate::storage::{self, Batch, Engine, Family};
use crate::types::{FIRST_REVISION, LeaseId};

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] read::Error),
    #[error("it is a bbolt database, but not etcd's: it has no bucket {0:?}")]
    NoBucket(String),
    #[error("bucket {bucket:?} has a record that cannot be read, at key {key:02x?}")]
    Record { bucket: String, key: Vec<u8> },
    #[error("cannot sort the records in the data directory: {0}")]
    Sort(#[from] io::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error("--bump-revision={by} leads beyond the largest revision, from revision {head}")]
    Bump { head: i64, by: i64 },
    #[error("interrupted")]
    Interrupted,
}

/// How a state differs from its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Revisions that are skipped, so that none is given out again that clients may have seen.
    pub bump_revision: i64,
    /// Everything up to the newest revision counts as compacted: watches of before end.
    pub mark_compacted: bool,
}

/// What a state was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    pub revision: i64,
    pub keys: u64,
    /// Versions and deletions.
    pub records: u64,
}

/// How far an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many records were read.
    Read(u64),
    /// Of so many records, these were written.
    Written { records: u64, of: u64 },
}

/// Is called for every record; its error ends the import.
pub type OnProgress<'a> = dyn FnMut(Progress) -> Result<(), Error> + 'a;

/// A batch is written when it has as many bytes.
const BATCH_BYTES: usize = 4 << 20;

/// Fills an empty engine from a file; sorts in files in `dir`.
pub fn import(
    file: &File,
    engine: &dyn Engine,
    dir: &Path,
    changes: Changes,
    progress: &mut OnProgress<'_>,
) -> Result<Imported, Error> {
    let mut import = Import {
        file,
        engine,
        batch: Batch::default(),
        leases: BTreeSet::new(),
    };
    import.small_buckets()?;
    let (head, keys, records) = import.keyspace(dir, progress)?;
    let by = changes.bump_revision;
    let head = head.checked_add(by).ok_or(Error::Bump { head, by })?;
    if changes.mark_compacted {
        import.put_number(meta::COMPACTED, head);
    }
    let counted = schema::encode_numbers(&[head as u64, keys]);
    import.batch.put(Family::Meta, meta::HEAD, &counted);
    engine.write(&import.batch)?;
    Ok(Imported {
        revision: head,
        keys,
        records,
    })
}

struct Import<'a> {
    file: &'a File,
    engine: &'a dyn Engine,
    batch: Batch,
    leases: BTreeSet<LeaseId>,
}

impl Import<'_> {
    /// Writes the versions of all keys. Returns the newest revision, and the numbers of keys and
    /// of records.
    fn keyspace(
        &mut self,
        dir: &Path,
        progress: &mut OnProgress<'_>,
    ) -> Result<(i64, u64, u64), Error> {
        let mut sorter = Sorter::new(dir);
        let (mut head, mut of) = (FIRST_REVISION, 0);
        let found = self.file.each::<Error>(bucket::KEY, &mut |at, value| {
            let record = Record::parse(at).ok_or_else(|| damaged(bucket::KEY, at))?;
            head = head.max(record.revision.main);
            of += 1;
            progress(Progress::Read(of))?;
            let pair = KeyValue::decode(value).map_err(|_| damaged(bucket::KEY, at))?;
            if pair.key.is_empty() {
                // It stands for revisions that were skipped.
                return Ok(());
            }
            let sort_key = schema::undo_key(&pair.key, record.revision);
            let kind = [u8::from(record.tombstone)];
            Ok(sorter.push(&sort_key, &[&kind, value])?)
        })?;
        if !found {
            return Err(Error::NoBucket(text(bucket::KEY)));
        }
        let (engine, batch, leases) = (self.engine, &mut self.batch, &self.leases);
        let has_lease = |lease: LeaseId| leases.contains(&lease);
        let (mut bulk, mut records) = (Bulk::default(), 0);
        sorter.done()?.each::<Error>(&mut |sort_key, _, stored| {
            let (key, revision) = schema::decode_undo_key(sort_key)?;
            let version = match stored.split_first() {
                Some((0, pair)) => {
                    let pair = KeyValue::decode(pair).map_err(|_| damaged(bucket::KEY, &key))?;
                    let lease = LeaseId(pair.lease);
                    let created = pair.create_revision;
                    let number = pair.version;
                    Some(Version::encode(
                        created,
                        revision,
                        number,
                        lease,
                        &pair.value,
                    ))
                }
                _ => None,
            };
            bulk.change(&key, revision, version, &has_lease, batch);
            records += 1;
            progress(Progress::Written { records, of })?;
            write_if_full(engine, batch)
        })?;
        let keys = bulk.finish(&has_lease, batch);
        Ok((head.max(self.compactions()?), keys, records))
    }

    /// How far the history was compacted, and is to be. Returns the farther of both: what a part of
    /// a compaction took may be all that was written up to there.
    fn compactions(&mut self) -> Result<i64, Error> {
        let (mut requested, mut finished) = (-1, -1);
        self.each(bucket::META, &mut |_, at, value| {
            let of = match at {
                key::SCHEDULED_COMPACTION => &mut requested,
                key::FINISHED_COMPACTION => &mut finished,
                _ => return Some(()),
            };
            *of = Record::parse(value)?.revision.main;
            Some(())
        })?;
        requested = requested.max(finished);
        if requested >= 0 {
            self.put_number(meta::COMPACTED, requested);
        }
        if finished >= 0 {
            self.put_number(meta::COMPACTION_FINISHED, finished);
        }
        Ok(requested)
    }

    fn small_buckets(&mut self) -> Result<(), Error> {
        let mut leases = BTreeSet::new();
        self.each(bucket::LEASE, &mut |batch, _, value| {
            let (id, lease) = etcd::parse_lease(value)?;
            leases.insert(id);
            let at = schema::meta_key(meta::LEASES, &[id.0 as u64]);
            let numbers = [lease.ttl_s as u64, lease.remaining_ttl_s as u64];
            batch.put(Family::Meta, &at, &schema::encode_numbers(&numbers));
            Some(())
        })?;
        self.leases = leases;
        self.each(bucket::ALARM, &mut |batch, at, _| {
            let alarm = AlarmMember::decode(at).ok()?;
            let at = schema::meta_key(meta::ALARMS, &[alarm.alarm as u64, alarm.member_id]);
            batch.put(Family::Meta, &at, &[]);
            Some(())
        })?;
        self.each(bucket::AUTH, &mut |batch, at, value| {
            match (at, value) {
                (key::AUTH_ENABLED, [1]) => batch.put(Family::Meta, meta::AUTH_ENABLED, &[]),
                (key::AUTH_REVISION, value) if value.len() == 8 => {
                    batch.put(Family::Meta, meta::AUTH_REVISION, value);
                }
                (key::AUTH_REVISION, _) => return None,
                _ => {}
            }
            Some(())
        })?;
        self.each(bucket::AUTH_USERS, &mut |batch, name, value| {
            let user = authpb::User::decode(value).ok()?;
            named(batch, meta::USERS, name, user.name.as_ref(), value)
        })?;
        self.each(bucket::AUTH_ROLES, &mut |batch, name, value| {
            let role = authpb::Role::decode(value).ok()?;
            named(batch, meta::ROLES, name, role.name.as_ref(), value)
        })?;
        self.each(bucket::CLUSTER, &mut |batch, at, value| {
            match at {
                key::CLUSTER_VERSION => batch.put(Family::Meta, meta::CLUSTER_VERSION, value),
                key::DOWNGRADE => {
                    if let Some(ver) = etcd::parse_downgrade(value)? {
                        let begun = DowngradeInfoSetRequest { enabled: true, ver };
                        batch.put(Family::Meta, meta::DOWNGRADE, &begun.encode_to_vec());
                    }
                }
                _ => {}
            }
            Some(())
        })
    }

    /// Visits a bucket, which need not be there; `take` answers `None` for what it cannot read.
    fn each(&mut self, name: &'static [u8], take: &mut Take<'_>) -> Result<(), Error> {
        let (engine, batch) = (self.engine, &mut self.batch);
        self.file.each::<Error>(name, &mut |at, value| {
            take(batch, at, value).ok_or_else(|| damaged(name, at))?;
            write_if_full(engine, batch)
        })?;
        Ok(())
    }

    fn put_number(&mut self, at: &[u8], number: i64) {
        let value = schema::encode_numbers(&[number as u64]);
        self.batch.put(Family::Meta, at, &value);
    }
}

type Take<'a> = dyn FnMut(&mut Batch, &[u8], &[u8]) -> Option<()> + 'a;

/// Copies a user or a role, whose name stands in it as well.
fn named(batch: &mut Batch, prefix: &[u8], name: &[u8], inside: &[u8], value: &[u8]) -> Option<()> {
    let name = std::str::from_utf8(name).ok()?;
    batch.put(Family::Meta, &schema::meta_name(prefix, name), value);
    (inside == name.as_bytes()).then_some(())
}

fn write_if_full(engine: &dyn Engine, batch: &mut Batch) -> Result<(), Error> {
    if batch.size_bytes() >= BATCH_BYTES {
        engine.write(batch)?;
        batch.clear();
    }
    Ok(())
}

pub(super) fn damaged(bucket: &[u8], key: &[u8]) -> Error {
    Error::Record {
        bucket: text(bucket),
        key: key.to_vec(),
    }
}

pub(super) fn text(bucket: &[u8]) -> String {
    String::from_utf8_lossy(bucket).into_owned()
}
