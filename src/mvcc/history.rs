//! The history in revision order: what watches catch up with.

use bytes::Bytes;

use super::Change;
use super::read::PinnedView;
use crate::probe::{self, Defect};
use crate::storage::schema::{self, ChangeKind, RevisionRecord, Version};
use crate::storage::{self, Family};
use crate::types::Revision;

/// How much one page may hold; a first revision of up to `whole_bytes` fits whole.
#[derive(Clone, Copy, Debug)]
pub struct PageLimit {
    /// Revisions that hold at least one wanted change.
    pub revisions: usize,
    /// Revision records read, wanted or not: bounds the time that a page takes.
    pub records: usize,
    pub bytes: usize,
    /// Of several changes of one revision, even where `bytes` is less.
    pub whole_bytes: usize,
}

/// How much of a revision is read at once.
#[derive(Clone, Copy, Debug)]
pub struct PartLimit {
    /// Records, wanted or not.
    pub records: usize,
    /// One change always fits.
    pub bytes: usize,
}

/// A run of history.
#[derive(Debug, Default, PartialEq)]
pub struct HistoryPage {
    /// The wanted changes in order; a revision is in it whole or not at all.
    pub changes: Vec<Change>,
    /// The first revision that the page does not cover.
    pub next: i64,
    /// The page covers no wanted change, since that revision is too large; `changes` has the first
    /// one of it.
    pub too_large: bool,
}

/// Says of a key, what was done to it and the revision whether the change is wanted.
pub type Wanted<'a> = dyn FnMut(&[u8], ChangeKind, i64) -> Option<WithPrevious> + 'a;

impl PinnedView<'_> {
    /// The changes from revision `from` on that `wanted` asks for, up to the view's head.
    /// `from` must not be compacted. `wanted` says of a key and a kind whether the change is
    /// wanted, and whether with the version before it.
    pub fn changes(
        &self,
        from: i64,
        limit: PageLimit,
        wanted: &mut Wanted<'_>,
    ) -> storage::Result<HistoryPage> {
        let lower = schema::revision_key(Revision::new(from, 0));
        let mut log = self.read.cursor(Family::Revisions, &lower, None)?;
        let mut page = HistoryPage {
            changes: Vec::new(),
            next: self.head + 1,
            too_large: false,
        };
        let most_bytes = limit.bytes.max(limit.whole_bytes);
        let (mut revisions, mut records, mut bytes) = (0, 0, 0);
        let mut last_wanted = 0;
        let mut last = 0;
        while log.next()? {
            let revision = decode_revision(log.key())?;
            let full = records >= limit.records
                || bytes >= limit.bytes
                || (revisions >= limit.revisions && revision.main != last_wanted);
            let torn = probe::injected(Defect::PageTorn);
            if full && last != 0 && (revision.main != last || torn) {
                page.next = revision.main + i64::from(revision.main == last);
                break;
            }
            records += 1;
            last = revision.main;
            let record = RevisionRecord::decode(log.key(), log.value())?;
            let Some(previous) = wanted(record.key, record.kind, revision.main) else {
                continue;
            };
            if revision.main != last_wanted {
                revisions += 1;
                last_wanted = revision.main;
            }
            let change = self.change(revision, &record, previous)?;
            bytes += change.size_bytes();
            page.changes.push(change);
            let is_earlier = |change: &Change| change.revision.main < revision.main;
            let before = page.changes.partition_point(is_earlier);
            if bytes > most_bytes && page.changes.len() > before + 1 {
                // Of this revision the rest is not read.
                page.next = revision.main;
                page.too_large = before == 0;
                page.changes.truncate(before.max(1));
                break;
            }
        }
        Ok(page)
    }

    /// The wanted changes of a part of a single revision, `from` on; and where the next call
    /// continues, none at the end of the revision.
    pub fn changes_of(
        &self,
        from: Revision,
        limit: PartLimit,
        wanted: &mut Wanted<'_>,
    ) -> storage::Result<(Vec<Change>, Option<Revision>)> {
        let lower = schema::revision_key(from);
        let upper = schema::revision_key(Revision::new(from.main + 1, 0));
        let mut log = self.read.cursor(Family::Revisions, &lower, Some(&upper))?;
        let (mut changes, mut bytes) = (Vec::new(), 0);
        for _ in 0..limit.records {
            if bytes >= limit.bytes {
                break;
            }
            if !log.next()? {
                return Ok((changes, None));
            }
            let revision = decode_revision(log.key())?;
            let record = RevisionRecord::decode(log.key(), log.value())?;
            if let Some(previous) = wanted(record.key, record.kind, revision.main) {
                let change = self.change(revision, &record, previous)?;
                bytes += change.size_bytes();
                changes.push(change);
            }
        }
        let next = match log.next()? {
            true => Some(decode_revision(log.key())?),
            false => None,
        };
        Ok((changes, next))
    }

    fn change(
        &self,
        revision: Revision,
        record: &RevisionRecord<'_>,
        previous: WithPrevious,
    ) -> storage::Result<Change> {
        let version = match record.kind {
            ChangeKind::Put => Some(self.version_at(record.key, revision)?),
            ChangeKind::Delete => None,
        };
        let before = revision.main - 1 - i64::from(probe::injected(Defect::PreviousTooOld));
        // What is compacted away cannot be shown; etcd leaves it out as well.
        let previous = match (previous, record.superseded) {
            (WithPrevious(true), Some(superseded)) if before >= self.compacted => {
                // What the same revision wrote before was not there before the revision.
                match before == revision.main - 1 && superseded.main <= before {
                    true => self.superseded_by(record.key, revision)?,
                    false => self.get(record.key, before)?,
                }
            }
            _ => None,
        };
        Ok(Change {
            key: Bytes::copy_from_slice(record.key),
            revision,
            kind: record.kind,
            version,
            previous,
        })
    }

    /// The version that the change at `revision` superseded: a point, where `get` has to look for the
    /// first one behind a revision.
    fn superseded_by(&self, key: &[u8], revision: Revision) -> storage::Result<Option<Version>> {
        let undo = schema::undo_key(key, revision);
        let Some(record) = self.read.get(Family::Undo, &undo)? else {
            return Err(storage::Error::Damaged {
                family: Family::Undo,
                key: undo,
                reason: "the version that a change superseded is gone",
            });
        };
        Version::decode(record, Family::Undo, &undo).map(Some)
    }

    /// The version that `revision` wrote: current, or kept by what superseded it.
    pub fn version_at(&self, key: &[u8], revision: Revision) -> storage::Result<Version> {
        self.find_version(key, revision)?
            .map(|(version, _)| version)
            .ok_or_else(|| storage::Error::Damaged {
                family: Family::Revisions,
                key: schema::revision_key(revision).to_vec(),
                reason: "the version that it wrote is gone",
            })
    }

    /// As `version_at`, with the revision that superseded it; `None` where compaction took it.
    pub fn find_version(
        &self,
        key: &[u8],
        revision: Revision,
    ) -> storage::Result<Option<(Version, Option<Revision>)>> {
        if let Some(record) = self.read.get(Family::Current, key)? {
            let version = Version::decode(record, Family::Current, key)?;
            if version.mod_revision == revision {
                return Ok(Some((version, None)));
            }
        }
        let behind = Revision::new(revision.main, revision.sub + 1);
        let lower = schema::undo_key(key, behind);
        let upper = schema::undo_key(key, Revision::new(i64::MAX, i64::MAX));
        let mut undo = self.read.cursor(Family::Undo, &lower, Some(&upper))?;
        if !undo.next()? {
            return Ok(None);
        }
        let (_, superseding) = schema::decode_undo_key(undo.key())?;
        let record = Bytes::copy_from_slice(undo.value());
        let version = Version::decode(record, Family::Undo, undo.key())?;
        Ok((version.mod_revision == revision).then_some((version, Some(superseding))))
    }
}

/// Whether the version before a change is wanted too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WithPrevious(pub bool);

pub fn decode_revision(key: &[u8]) -> storage::Result<Revision> {
    schema::decode_revision_key(key).ok_or_else(|| storage::Error::Damaged {
        family: Family::Revisions,
        key: key.to_vec(),
        reason: "it is not a revision",
    })
}
