//! Whether the families of a keyspace agree with each other: what writes keep true of every batch,
//! checked record by record.
//!
//! Every record is read, and with it every block of the engine's files, whose checksums the engine
//! compares. A record of one family is looked up in the others, so this takes a lookup for each
//! record of the history: it is for a state that nobody uses meanwhile.

use std::fmt;

use bytes::Bytes;

use super::compaction;
use super::counts;
use super::history::decode_revision;
use super::read::PinnedView;
use crate::storage::schema::{self, ChangeKind, RevisionRecord, Version};
use crate::storage::{self, Family, Read};
use crate::types::{LeaseId, Revision};

/// A record that contradicts another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub family: Family,
    /// The record's key in its family.
    pub at: Vec<u8>,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, at, what } = self;
        write!(f, "family {:?}, record {at:02x?}: {what}", family.name())
    }
}

/// What is in a keyspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub keys: u64,
    /// Versions that were superseded and can still be read.
    pub superseded: u64,
    /// Puts and deletions of the history.
    pub changes: u64,
    /// Keys attached to leases.
    pub attached: u64,
}

/// Reads a whole keyspace, and hands out what is wrong with it. `keys` is how many there should
/// be, `is_lease` says which leases there are.
///
/// # Errors
/// A family that cannot be read to its end: the engine's checksums fail, or its files are gone.
/// `found` was called with that before, for each such family; what could be read of it is judged.
pub fn verify(
    pinned: &PinnedView<'_>,
    keys: i64,
    is_lease: &dyn Fn(LeaseId) -> bool,
    found: &mut dyn FnMut(Problem),
) -> storage::Result<Verified> {
    let mut verifier = Verifier {
        pinned,
        requested: compaction::requested(pinned.read)?,
        is_lease,
        found,
    };
    let verified = Verified {
        keys: verifier.each(Family::Current, Verifier::current),
        superseded: verifier.each(Family::Undo, Verifier::undo),
        changes: verifier.each(Family::Revisions, Verifier::revision),
        attached: verifier.each(Family::LeaseKeys, Verifier::lease_key),
    };
    if verified.keys as i64 != keys {
        let what = format!("there are {} keys, and {keys} were counted", verified.keys);
        verifier.report(Family::Meta, schema::meta::HEAD, what);
    }
    verifier.counts();
    Ok(verified)
}

/// What was found.
#[derive(Debug)]
pub enum Problem {
    /// Records contradict each other.
    Contradiction(Finding),
    /// A record, or a file of the engine, cannot be read.
    Unreadable(storage::Error),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contradiction(finding) => finding.fmt(f),
            Self::Unreadable(error) => error.fmt(f),
        }
    }
}

struct Verifier<'a> {
    pinned: &'a PinnedView<'a>,
    /// Changes at or below it may lack what they superseded.
    requested: i64,
    is_lease: &'a dyn Fn(LeaseId) -> bool,
    found: &'a mut dyn FnMut(Problem),
}

impl Verifier<'_> {
    fn report(&mut self, family: Family, at: &[u8], what: impl Into<String>) {
        (self.found)(Problem::Contradiction(Finding {
            family,
            at: at.to_vec(),
            what: what.into(),
        }));
    }

    /// Checks each record of a family. Returns how many could be reached.
    fn each(
        &mut self,
        family: Family,
        check: fn(&mut Self, &[u8], &[u8]) -> storage::Result<()>,
    ) -> u64 {
        let mut records = 0;
        let read = self.pinned.read;
        let walked = read.scan(family, &[], None);
        let walked = walked.and_then(|mut cursor| {
            while cursor.next()? {
                records += 1;
                if let Err(error) = check(self, cursor.key(), cursor.value()) {
                    (self.found)(Problem::Unreadable(error));
                }
            }
            Ok(())
        });
        if let Err(error) = walked {
            (self.found)(Problem::Unreadable(error));
        }
        records
    }

    /// What was counted between keys, where it is as new as the history goes back.
    fn counts(&mut self) {
        match counts::verify(self.pinned) {
            Ok(wrong) => {
                for counts::Miscounted {
                    from,
                    counted,
                    there,
                } in wrong
                {
                    let what = format!(
                        "there are {there} keys from here to the next record's, and {counted} were counted"
                    );
                    self.report(Family::Counts, &from, what);
                }
            }
            Err(error) => (self.found)(Problem::Unreadable(error)),
        }
    }

    fn read(&self) -> &dyn Read {
        self.pinned.read
    }

    /// Whether the history says that `revision` put this key.
    fn was_put(&self, revision: Revision, key: &[u8]) -> storage::Result<bool> {
        let at = schema::revision_key(revision);
        let Some(value) = self.read().get(Family::Revisions, &at)? else {
            return Ok(false);
        };
        let record = RevisionRecord::decode(&at, &value)?;
        Ok(record.kind == ChangeKind::Put && record.key == key)
    }

    fn version(
        &mut self,
        (family, at): (Family, &[u8]),
        key: &[u8],
        value: &[u8],
    ) -> storage::Result<Version> {
        let version = Version::decode(Bytes::copy_from_slice(value), family, at)?;
        let revision = version.mod_revision;
        if version.create_revision > revision.main || version.version < 1 {
            self.report(family, at, "its revisions are not those of a version");
        }
        if !self.was_put(revision, key)? {
            let what = format!("the history has no put of this key at revision {revision}");
            self.report(family, at, what);
        }
        Ok(version)
    }

    fn current(&mut self, key: &[u8], value: &[u8]) -> storage::Result<()> {
        let version = self.version((Family::Current, key), key, value)?;
        let lease = version.lease;
        if lease != LeaseId::NONE && (self.is_lease)(lease) {
            let attached = schema::lease_key(lease, key);
            if self.read().get(Family::LeaseKeys, &attached)?.is_none() {
                let what = format!("its lease {:x} does not have it", lease.0);
                self.report(Family::Current, key, what);
            }
        }
        Ok(())
    }

    fn undo(&mut self, at: &[u8], value: &[u8]) -> storage::Result<()> {
        let (key, superseding) = schema::decode_undo_key(at)?;
        let version = self.version((Family::Undo, at), &key, value)?;
        let change = schema::revision_key(superseding);
        let superseded = match self.read().get(Family::Revisions, &change)? {
            Some(value) => {
                let record = RevisionRecord::decode(&change, &value)?;
                record.superseded.filter(|_| record.key == key)
            }
            None => None,
        };
        if superseded != Some(version.mod_revision) {
            let what = format!("the history does not say that {superseding} superseded it");
            self.report(Family::Undo, at, what);
        }
        Ok(())
    }

    fn revision(&mut self, at: &[u8], value: &[u8]) -> storage::Result<()> {
        let revision = decode_revision(at)?;
        let record = RevisionRecord::decode(at, value)?;
        if revision.main > self.pinned.head {
            let what = format!("it is above the newest revision, {}", self.pinned.head);
            self.report(Family::Revisions, at, what);
        }
        if record.kind == ChangeKind::Put
            && self.pinned.find_version(record.key, revision)?.is_none()
        {
            self.report(Family::Revisions, at, "the version that it wrote is gone");
        }
        let Some(superseded) = record.superseded else {
            return Ok(());
        };
        let undo = schema::undo_key(record.key, revision);
        if superseded >= revision {
            self.report(Family::Revisions, at, "it superseded a later version");
        } else if revision.main > self.requested && self.read().get(Family::Undo, &undo)?.is_none()
        {
            self.report(
                Family::Revisions,
                at,
                "the version that it superseded is gone",
            );
        }
        Ok(())
    }

    fn lease_key(&mut self, at: &[u8], _: &[u8]) -> storage::Result<()> {
        let lease = at.first_chunk().map(|id| LeaseId(i64::from_be_bytes(*id)));
        let Some(lease) = lease.filter(|lease| (self.is_lease)(*lease)) else {
            self.report(Family::LeaseKeys, at, "there is no such lease");
            return Ok(());
        };
        let key = schema::decode_lease_key(at);
        let version = self.read().get(Family::Current, key)?;
        let version = version.map(|value| Version::decode(value, Family::Current, key));
        if version.transpose()?.map(|version| version.lease) != Some(lease) {
            self.report(
                Family::LeaseKeys,
                at,
                "its key is not attached to the lease",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::bulk::Bulk;
    use crate::storage::memory::MemoryEngine;
    use crate::storage::{Batch, Engine};

    const LEASE: LeaseId = LeaseId(7);

    fn revision(main: i64) -> Revision {
        Revision::new(main, 0)
    }

    fn version(created: i64, main: i64, number: i64, lease: LeaseId) -> Option<Version> {
        let value = b"value";
        Some(Version::encode(
            created,
            revision(main),
            number,
            lease,
            value,
        ))
    }

    /// Two keys with a history, one of them attached, and one that was deleted.
    fn filled() -> MemoryEngine {
        let engine = MemoryEngine::new();
        let (mut bulk, mut batch) = (Bulk::default(), Batch::default());
        let has_lease = |lease| lease == LEASE;
        for (key, main, version) in [
            (b"a", 2, version(2, 2, 1, LeaseId::NONE)),
            (b"a", 3, version(2, 3, 2, LEASE)),
            (b"b", 4, version(4, 4, 1, LeaseId::NONE)),
            (b"b", 5, None),
            (b"c", 6, version(6, 6, 1, LeaseId::NONE)),
        ] {
            bulk.change(key, revision(main), version, &has_lease, &mut batch);
        }
        assert_eq!(bulk.finish(&has_lease, &mut batch), 2);
        engine.write(&batch).expect("writes");
        engine
    }

    fn problems(engine: &MemoryEngine, keys: i64) -> (Verified, Vec<String>) {
        let pinned = PinnedView {
            read: engine.latest(),
            head: 6,
            compacted: -1,
            counts: None,
        };
        let mut problems = Vec::new();
        let verified = verify(&pinned, keys, &|lease| lease == LEASE, &mut |problem| {
            problems.push(problem.to_string());
        });
        (verified.expect("reads"), problems)
    }

    #[test]
    fn a_whole_keyspace_has_no_problems() {
        let whole = Verified {
            keys: 2,
            superseded: 2,
            changes: 5,
            attached: 1,
        };
        assert_eq!(problems(&filled(), 2), (whole, Vec::new()));
    }

    #[test]
    fn whatever_is_taken_away_is_missed() {
        let undo = schema::undo_key(b"a", revision(3));
        let attached = schema::lease_key(LEASE, b"a");
        let mut removals: Vec<(Family, Vec<u8>, &str)> = vec![
            (
                Family::Current,
                b"c".to_vec(),
                "version that it wrote is gone",
            ),
            (Family::Current, b"a".to_vec(), "not attached to the lease"),
            (Family::Undo, undo, "version that it superseded is gone"),
            (Family::LeaseKeys, attached, "its lease 7 does not have it"),
        ];
        for main in [2, 3, 4, 6] {
            let at = schema::revision_key(revision(main)).to_vec();
            removals.push((Family::Revisions, at, "no put of this key"));
        }
        let at = schema::revision_key(revision(5)).to_vec();
        removals.push((Family::Revisions, at, "superseded it"));
        for (family, at, says) in removals {
            let engine = filled();
            let mut batch = Batch::default();
            batch.delete(family, &at);
            engine.write(&batch).expect("writes");
            let (_, problems) = problems(&engine, 2);
            let named = problems.iter().any(|problem| problem.contains(says));
            assert!(named, "{family:?} {at:02x?}: {problems:#?}");
        }
        let (_, problems) = problems(&filled(), 3);
        assert!(problems[0].contains("2 keys, and 3 were counted"));
    }

    #[test]
    fn what_was_changed_is_named() {
        for (family, key, value, says) in [
            (Family::Current, &b"a"[..], &b"\xff"[..], "damaged record"),
            (Family::Undo, b"nothing", b"", "it is not an undo key"),
            (Family::Revisions, b"short", b"", "it is not a revision"),
            (
                Family::LeaseKeys,
                b"\0\0\0\0\0\0\0\x08a",
                b"",
                "no such lease",
            ),
        ] {
            let engine = filled();
            let mut batch = Batch::default();
            batch.put(family, key, value);
            engine.write(&batch).expect("writes");
            let (_, problems) = problems(&engine, 2);
            let named = problems.iter().any(|problem| problem.contains(says));
            assert!(named, "{family:?} {key:02x?}: {problems:#?}");
        }
    }
}
