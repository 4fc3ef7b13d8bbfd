//! Reads of the keyspace at any revision that is not compacted.
//!
//! At the newest revision a read is a plain walk of `current`; at an older one `current` and
//! `undo` are merged by key. `range` makes an answer of a walk.

use bytes::Bytes;

use super::counts::ViewCounts;
use crate::error;
use crate::storage::once::ReadOnce;
use crate::storage::schema::{self, Head, Version};
use crate::storage::{self, Cursor, Family, Read, once};
use crate::types::{KeyRange, Revision};

/// What an answer is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortOrder {
    #[default]
    None,
    Ascend,
    Descend,
}

/// A request to read a range.
#[derive(Clone, Debug)]
pub struct RangeRead {
    pub range: KeyRange,
    /// 0 or below: the newest.
    pub revision: i64,
    /// How many pairs at most; 0 for all.
    pub limit: i64,
    pub sort_target: SortTarget,
    pub sort_order: SortOrder,
    pub keys_only: bool,
    pub count_only: bool,
    pub min_mod_revision: i64,
    pub max_mod_revision: i64,
    pub min_create_revision: i64,
    pub max_create_revision: i64,
}

impl RangeRead {
    /// Every pair of `range` at the newest revision.
    pub fn all(range: KeyRange) -> Self {
        Self {
            range,
            revision: 0,
            limit: 0,
            sort_target: SortTarget::Key,
            sort_order: SortOrder::None,
            keys_only: false,
            count_only: false,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
        }
    }

    /// True where the answer has the order of the walk.
    pub(super) fn is_in_key_order(&self) -> bool {
        self.count_only
            || (self.sort_target == SortTarget::Key && self.sort_order != SortOrder::Descend)
    }

    /// True where, as in etcd, the limit comes before a sort that was only implied by its target.
    pub(super) fn cuts_first(&self) -> bool {
        self.has_default_order() && !self.has_revision_filters()
    }

    fn has_default_order(&self) -> bool {
        self.sort_order == SortOrder::None
            || (self.sort_target == SortTarget::Key && self.sort_order == SortOrder::Ascend)
    }

    pub(super) fn has_revision_filters(&self) -> bool {
        self.min_mod_revision != 0
            || self.max_mod_revision != 0
            || self.min_create_revision != 0
            || self.max_create_revision != 0
    }

    pub(super) fn passes_filters(&self, head: &Head) -> bool {
        let mod_revision = head.mod_revision.main;
        let create_revision = head.create_revision;
        (self.max_mod_revision == 0 || mod_revision <= self.max_mod_revision)
            && (self.min_mod_revision == 0 || mod_revision >= self.min_mod_revision)
            && (self.max_create_revision == 0 || create_revision <= self.max_create_revision)
            && (self.min_create_revision == 0 || create_revision >= self.min_create_revision)
    }

    /// etcd answers keys from its index alone, which knows no leases.
    pub(super) fn hides_lease(&self) -> bool {
        self.keys_only && self.sort_target != SortTarget::Value
    }
}

/// The keyspace at one moment, to be read at any of its revisions: a borrowed view of the engine
/// with what bounds a read of it. No copy of anything.
#[derive(Clone, Copy)]
pub struct PinnedView<'a> {
    pub read: &'a dyn Read,
    /// The newest revision in it.
    pub head: i64,
    /// Reads below this are refused; -1 for none.
    pub compacted: i64,
    /// What saves a walk where keys are counted.
    pub counts: Option<&'a ViewCounts>,
}

impl<'a> PinnedView<'a> {
    /// The same for what is read of much, and once.
    pub fn once<T>(&self, read: impl FnOnce(&PinnedView<'_>) -> T) -> T {
        let once = ReadOnce(self.read);
        read(&PinnedView {
            read: &once,
            ..*self
        })
    }

    /// The revision that a request for `revision` reads at.
    pub fn check_revision(&self, revision: i64) -> Result<i64, error::Error> {
        if revision > self.head {
            return Err(error::Error::FutureRevision);
        }
        let revision = if revision <= 0 { self.head } else { revision };
        if revision < self.compacted {
            return Err(error::Error::Compacted);
        }
        Ok(revision)
    }

    /// The version of `key` at `revision`, which must not be compacted.
    pub fn get(&self, key: &[u8], revision: i64) -> storage::Result<Option<Version>> {
        let current = self
            .read
            .get(Family::Current, key)?
            .map(|record| Version::decode(record, Family::Current, key))
            .transpose()?;
        if revision >= self.head
            || current
                .as_ref()
                .is_some_and(|version| version.mod_revision.main <= revision)
        {
            return Ok(current);
        }
        let lower = schema::undo_key(key, Revision::new(revision + 1, 0));
        let upper = schema::undo_key(key, Revision::new(i64::MAX, i64::MAX));
        let mut undo = self.read.cursor(Family::Undo, &lower, Some(&upper))?;
        if !undo.next()? {
            return Ok(None);
        }
        let record = Bytes::copy_from_slice(undo.value());
        let version = Version::decode(record, Family::Undo, undo.key())?;
        Ok((version.mod_revision.main <= revision).then_some(version))
    }

    /// Walks the versions of a range at `revision`, which must not be compacted.
    pub fn walk(&self, range: &KeyRange, revision: i64) -> storage::Result<Walk<'a>> {
        let start = range.start();
        let end = match range {
            KeyRange::Span(_, end) => Some(end.to_vec()),
            KeyRange::From(_) => None,
            KeyRange::Point(key) => {
                let mut end = key.to_vec();
                end.push(0);
                Some(end)
            }
        };
        let current = once::walk(self.read, Family::Current, start, end.as_deref())?;
        if revision >= self.head {
            return Ok(Walk::Newest(current));
        }
        let lower = schema::undo_lower_bound(start);
        let upper = end.as_deref().map(schema::undo_lower_bound);
        let undo = once::walk(self.read, Family::Undo, &lower, upper.as_deref())?;
        Ok(Walk::Past(Box::new(PastWalk {
            current,
            current_at: false,
            undo,
            undo_key: None,
            revision,
            started: false,
            key: Vec::new(),
            record: Vec::new(),
        })))
    }

    /// The pairs of a range at `revision`, spelled out, in key order.
    #[cfg(test)]
    pub fn key_values(
        &self,
        range: &KeyRange,
        revision: i64,
    ) -> storage::Result<Vec<crate::proto::KeyValue>> {
        let mut walk = self.walk(range, revision)?;
        let mut pairs = Vec::new();
        while walk.advance()? {
            let record = Bytes::copy_from_slice(walk.record());
            let version = Version::decode(record, Family::Current, walk.key())?;
            pairs.push(version.to_key_value(walk.key()));
        }
        Ok(pairs)
    }
}

pub(super) fn parse_head(key: &[u8], record: &[u8]) -> storage::Result<Head> {
    Head::parse(record).ok_or_else(|| storage::Error::Damaged {
        family: Family::Current,
        key: key.to_vec(),
        reason: "its version record cannot be read",
    })
}

/// Versions in key order.
pub enum Walk<'a> {
    Newest(Box<dyn Cursor + 'a>),
    Past(Box<PastWalk<'a>>),
}

impl Walk<'_> {
    /// Moves to the next version; false at the end.
    pub fn advance(&mut self) -> storage::Result<bool> {
        match self {
            Walk::Newest(cursor) => cursor.next(),
            Walk::Past(past) => past.advance(),
        }
    }

    pub fn key(&self) -> &[u8] {
        match self {
            Walk::Newest(cursor) => cursor.key(),
            Walk::Past(past) => &past.key,
        }
    }

    pub fn record(&self) -> &[u8] {
        match self {
            Walk::Newest(cursor) => cursor.value(),
            Walk::Past(past) => &past.record,
        }
    }
}

/// The merge of `current` and `undo` at a revision before the newest.
pub struct PastWalk<'a> {
    current: Box<dyn Cursor + 'a>,
    current_at: bool,
    undo: Box<dyn Cursor + 'a>,
    /// The key that the undo cursor stands on.
    undo_key: Option<Vec<u8>>,
    revision: i64,
    started: bool,
    key: Vec<u8>,
    record: Vec<u8>,
}

impl PastWalk<'_> {
    fn advance(&mut self) -> storage::Result<bool> {
        if !self.started {
            self.started = true;
            self.current_at = self.current.next()?;
            let found = self.undo.next()?;
            self.note_undo(found)?;
        }
        loop {
            let on_current = match (&self.undo_key, self.current_at) {
                (None, false) => return Ok(false),
                (Some(_), false) => false,
                (None, true) => true,
                (Some(undo), true) => self.current.key() <= undo.as_slice(),
            };
            if on_current {
                self.key.clear();
                self.key.extend_from_slice(self.current.key());
            } else {
                self.key = self.undo_key.clone().unwrap_or_default();
            }
            if self.take_version(on_current)? {
                return Ok(true);
            }
        }
    }

    /// Finds the version of `self.key` and moves both cursors behind the key.
    fn take_version(&mut self, on_current: bool) -> storage::Result<bool> {
        let on_undo = self.undo_key.as_ref() == Some(&self.key);
        let mut found = false;
        if on_current {
            let head = parse_head(&self.key, self.current.value())?;
            if head.mod_revision.main <= self.revision {
                self.record.clear();
                self.record.extend_from_slice(self.current.value());
                found = true;
            }
            self.current_at = self.current.next()?;
        }
        if on_undo {
            if !found {
                found = self.seek_undo()?;
            }
            let mut behind = schema::undo_prefix(&self.key);
            // The prefix ends in 00 00; 00 01 lies behind all of this key's entries.
            if let Some(last) = behind.last_mut() {
                *last = 1;
            }
            let more = self.undo.seek(&behind)?;
            self.note_undo(more)?;
        }
        Ok(found)
    }

    /// Takes the first version superseded above the revision, if it was there at it.
    fn seek_undo(&mut self) -> storage::Result<bool> {
        let target = schema::undo_key(&self.key, Revision::new(self.revision + 1, 0));
        if !self.undo.seek(&target)?
            || !self.undo.key().starts_with(&schema::undo_prefix(&self.key))
        {
            return Ok(false);
        }
        let head = parse_head(&self.key, self.undo.value())?;
        if head.mod_revision.main > self.revision {
            return Ok(false);
        }
        self.record.clear();
        self.record.extend_from_slice(self.undo.value());
        Ok(true)
    }

    fn note_undo(&mut self, found: bool) -> storage::Result<()> {
        self.undo_key = if found {
            Some(schema::decode_undo_key(self.undo.key())?.0)
        } else {
            None
        };
        Ok(())
    }
}
