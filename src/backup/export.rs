//! A state as etcd's bbolt file, front to back.
//!
//! etcd's file has records in the order of revisions, a state has versions in the order of keys:
//! so all of them are sorted first. Then the file is made twice, once to count its pages (from the
//! lengths alone) and once for its bytes.

use std::path::Path;

use super::Error;
use super::bbolt::write::{File, Shape};
use super::etcd::{self, PairParts, bucket, key};
use crate::mvcc::compaction;
use crate::mvcc::hash::RecordKey;
use crate::mvcc::history::decode_revision;
use crate::proto::etcdserverpb::AlarmType;
use crate::state::Machine;
use crate::state::alarm::Alarms;
use crate::state::lease::Leases;
use crate::state::membership::Membership;
use crate::state::version::Versions;
use crate::storage::schema::{self, ChangeKind, Head, RevisionRecord, meta};
use crate::storage::sort::{Sorted, Sorter};
use crate::storage::{self, Family, Read};
use crate::types::{FIRST_REVISION, Revision, version};

/// Bytes that are handed out at a time, about.
const PART_BYTES: usize = 512 << 10;

/// A file that is known, and not written yet.
pub struct Export<'a> {
    read: &'a dyn Read,
    records: Sorted,
    shape: Shape,
    storage_version: String,
}

impl<'a> Export<'a> {
    /// Sorts the records of a state, in files in `dir` if there are many, and counts the pages.
    /// `continues` says from time to time whether somebody waits for it.
    pub fn new(
        read: &'a dyn Read,
        dir: &Path,
        continues: &dyn Fn() -> bool,
    ) -> Result<Self, Error> {
        let records = sorted_records(read, dir, continues)?;
        let mut file = File::counting();
        each_bucket(read, &mut file, &mut |_| Ok(()))?;
        records.each_length::<Error>(&mut |key, value_len, _| {
            file.pair(key, value_len, |_| {});
            Ok(())
        })?;
        file.bucket(bucket::KEY);
        let (shape, _) = file.finish();
        let versions = Versions::load(read)?;
        Ok(Self {
            read,
            records,
            shape,
            storage_version: version::of_storage(versions.cluster()).to_owned(),
        })
    }

    /// How long the file is.
    pub fn bytes(&self) -> u64 {
        self.shape.bytes()
    }

    pub fn storage_version(&self) -> &str {
        &self.storage_version
    }

    /// Hands out the file, part by part.
    pub fn write(&self, out: &mut dyn FnMut(Vec<u8>) -> Result<(), Error>) -> Result<(), Error> {
        let mut file = File::writing(self.shape);
        let mut hand_out = |file: &mut File| match file.ready_bytes() >= PART_BYTES {
            true => out(file.take()),
            false => Ok(()),
        };
        each_bucket(self.read, &mut file, &mut hand_out)?;
        self.records.each::<Error>(&mut |key, value_len, value| {
            file.pair(key, value_len, |out| out.extend_from_slice(value));
            hand_out(&mut file)
        })?;
        file.bucket(bucket::KEY);
        let (shape, rest) = file.finish();
        debug_assert_eq!(shape, self.shape, "both runs make the same file");
        out(rest)
    }
}

/// The records of etcd's `key` bucket, in order.
fn sorted_records(
    read: &dyn Read,
    dir: &Path,
    continues: &dyn Fn() -> bool,
) -> Result<Sorted, Error> {
    let mut records = Sorter::new(dir);
    let mut newest = FIRST_REVISION.max(compaction::finished(read)?);
    let mut put = |key: &[u8], record: &[u8], family, at: &[u8]| -> Result<(), Error> {
        let head = Head::parse(record).ok_or_else(|| storage::Error::Damaged {
            family,
            key: at.to_vec(),
            reason: "its version record cannot be read",
        })?;
        let value = head.value(record);
        let parts = PairParts::new(key, &head, value.len());
        newest = newest.max(head.mod_revision.main);
        let at = RecordKey::new(head.mod_revision, false);
        records.push(
            at.bytes(),
            &[&parts.before_value, value, &parts.behind_value],
        )?;
        match continues() {
            true => Ok(()),
            false => Err(Error::Unread),
        }
    };
    let mut current = read.scan(Family::Current, &[], None)?;
    while current.next()? {
        put(
            current.key(),
            current.value(),
            Family::Current,
            current.key(),
        )?;
    }
    let mut undo = read.scan(Family::Undo, &[], None)?;
    while undo.next()? {
        let (key, _) = schema::decode_undo_key(undo.key())?;
        put(&key, undo.value(), Family::Undo, undo.key())?;
    }
    let mut log = read.scan(Family::Revisions, &[], None)?;
    while log.next()? {
        let record = RevisionRecord::decode(log.key(), log.value())?;
        if record.kind == ChangeKind::Delete {
            let revision = decode_revision(log.key())?;
            newest = newest.max(revision.main);
            let at = RecordKey::new(revision, true);
            records.push(at.bytes(), &[&etcd::tombstone(record.key)])?;
        }
    }
    let head = head(read)?;
    if head > newest {
        // Revisions that a restore skipped: etcd's own tool marks them so.
        let at = RecordKey::new(Revision::new(head, 0), false);
        records.push(at.bytes(), &[])?;
    }
    Ok(records.done()?)
}

fn head(read: &dyn Read) -> Result<i64, Error> {
    match read.get(Family::Meta, meta::HEAD)? {
        Some(value) => {
            let [head, _keys] = schema::decode_numbers(&value, meta::HEAD)?;
            Ok(head as i64)
        }
        None => Ok(FIRST_REVISION),
    }
}

/// Writes all buckets but that of the keyspace. `written` is called behind each pair of those that
/// may be large.
fn each_bucket(
    read: &dyn Read,
    file: &mut File,
    written: &mut dyn FnMut(&mut File) -> Result<(), Error>,
) -> Result<(), Error> {
    for (name, pairs) in small_buckets(read)? {
        for (key, value) in pairs {
            file.pair(&key, value.len(), |out| out.extend_from_slice(&value));
        }
        file.bucket(name);
    }
    for (name, prefix) in [
        (bucket::AUTH_ROLES, meta::ROLES),
        (bucket::AUTH_USERS, meta::USERS),
    ] {
        each_below(read, prefix, &mut |key, value| {
            file.pair(key, value.len(), |out| out.extend_from_slice(value));
            written(file)
        })?;
        file.bucket(name);
    }
    // In the order of their bytes, as bbolt has them: that of the ids begins with negative ones.
    each_below(read, meta::LEASES, &mut |key, value| {
        let (id, lease) = Leases::decode(key, value)?;
        let value = etcd::lease(id, &lease);
        file.pair(&etcd::lease_key(id), value.len(), |out| {
            out.extend_from_slice(&value)
        });
        written(file)
    })?;
    file.bucket(bucket::LEASE);
    Ok(())
}

type VisitPair<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), Error> + 'a;

/// Visits what `Meta` has below a prefix, without it.
fn each_below(read: &dyn Read, prefix: &[u8], visit: &mut VisitPair<'_>) -> Result<(), Error> {
    let upper = schema::prefix_end(prefix);
    let mut cursor = read.cursor(Family::Meta, prefix, upper.as_deref())?;
    while cursor.next()? {
        visit(
            cursor.key().strip_prefix(prefix).unwrap_or_default(),
            cursor.value(),
        )?;
    }
    Ok(())
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The buckets of a few pairs each.
fn small_buckets(read: &dyn Read) -> Result<Vec<(&'static [u8], Pairs)>, Error> {
    let alarms = Alarms::load(read)?.list(AlarmType::None as i32);
    let membership = Membership::load(read)?;
    let members = membership.iter();
    let removed = membership.removed();
    let mut buckets = vec![
        (
            bucket::ALARM,
            alarms
                .iter()
                .map(|alarm| (etcd::alarm(alarm), Vec::new()))
                .collect(),
        ),
        (bucket::AUTH, auth(read)?),
        (bucket::CLUSTER, cluster(read)?),
        (
            bucket::MEMBERS,
            members
                .map(|member| (etcd::member_key(member.id), etcd::member(member)))
                .collect(),
        ),
        (
            bucket::MEMBERS_REMOVED,
            removed
                .map(|id| (etcd::member_key(id.0), etcd::REMOVED.to_vec()))
                .collect(),
        ),
        (bucket::META, applied(read, &membership)?),
    ];
    for (_, pairs) in &mut buckets {
        pairs.sort();
    }
    Ok(buckets)
}

fn auth(read: &dyn Read) -> Result<Pairs, Error> {
    let revision = match read.get(Family::Meta, meta::AUTH_REVISION)? {
        Some(value) => value.to_vec(),
        None => schema::encode_numbers(&[1]),
    };
    let mut pairs = vec![(key::AUTH_REVISION.to_vec(), revision)];
    if read.get(Family::Meta, meta::AUTH_ENABLED)?.is_some() {
        pairs.push((key::AUTH_ENABLED.to_vec(), vec![1]));
    }
    Ok(pairs)
}

fn cluster(read: &dyn Read) -> Result<Pairs, Error> {
    let versions = Versions::load(read)?;
    let mut pairs = Vec::new();
    if let Some(version) = versions.cluster() {
        pairs.push((key::CLUSTER_VERSION.to_vec(), version.into()));
    }
    if let Some(target) = versions.downgrade_target() {
        pairs.push((key::DOWNGRADE.to_vec(), etcd::downgrade(target)));
    }
    Ok(pairs)
}

/// How far the state is: the last entry applied, raft's members, compactions, the format.
fn applied(read: &dyn Read, membership: &Membership) -> Result<Pairs, Error> {
    let (index, term) = Machine::applied(read)?;
    let voters = membership.voters().map(|id| id.0).collect();
    let learners = membership.learners().map(|id| id.0).collect();
    let versions = Versions::load(read)?;
    let mut pairs = vec![
        (
            key::CONSISTENT_INDEX.to_vec(),
            schema::encode_numbers(&[index]),
        ),
        (key::TERM.to_vec(), schema::encode_numbers(&[term])),
        (key::CONF_STATE.to_vec(), etcd::conf_state(voters, learners)),
        (
            key::STORAGE_VERSION.to_vec(),
            version::of_storage(versions.cluster()).into(),
        ),
    ];
    let compactions = [
        (key::SCHEDULED_COMPACTION, compaction::requested(read)?),
        (key::FINISHED_COMPACTION, compaction::finished(read)?),
    ];
    for (key, revision) in compactions {
        if revision >= 0 {
            pairs.push((key.to_vec(), etcd::compaction(revision)));
        }
    }
    Ok(pairs)
}
