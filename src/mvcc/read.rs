//! Reads of the keyspace at any revision that is not compacted.
//!
//! At the newest revision a read is a plain walk of `current`; at an older one `current` and
//! `undo` are merged by key. Pairs are framed for the answer straight from the stored bytes.

use bytes::Bytes;

use super::Result;
use crate::error;
use crate::proto::{EncodedKvs, RANGE_KVS_TAG};
use crate::storage::schema::{self, Head, Version};
use crate::storage::{self, Cursor, Family, Read};
use crate::types::{KeyRange, LeaseId, Revision};

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
    /// Counts every key of the range, not only those up to the limit.
    pub total_count: bool,
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
            total_count: true,
        }
    }

    fn has_default_order(&self) -> bool {
        self.sort_order == SortOrder::None
            || (self.sort_target == SortTarget::Key && self.sort_order == SortOrder::Ascend)
    }

    fn has_revision_filters(&self) -> bool {
        self.min_mod_revision != 0
            || self.max_mod_revision != 0
            || self.min_create_revision != 0
            || self.max_create_revision != 0
    }

    fn passes_filters(&self, head: &Head) -> bool {
        let mod_revision = head.mod_revision.main;
        let create_revision = head.create_revision;
        (self.max_mod_revision == 0 || mod_revision <= self.max_mod_revision)
            && (self.min_mod_revision == 0 || mod_revision >= self.min_mod_revision)
            && (self.max_create_revision == 0 || create_revision <= self.max_create_revision)
            && (self.min_create_revision == 0 || create_revision >= self.min_create_revision)
    }

    /// etcd answers keys from its index alone, which knows no leases.
    fn hides_lease(&self) -> bool {
        self.keys_only && self.sort_target != SortTarget::Value
    }
}

/// The answer to a `RangeRead`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranged {
    pub kvs: EncodedKvs,
    pub count: i64,
    /// True where the limit cut the answer.
    pub more: bool,
    /// The last key of the answer, where it was cut.
    pub last_key: Option<Bytes>,
}

/// The keyspace at one moment, to be read at any of its revisions.
#[derive(Clone, Copy)]
pub struct Snapshot<'a> {
    pub read: &'a dyn Read,
    /// The newest revision in it.
    pub head: i64,
    /// Reads below this are refused; -1 for none.
    pub compacted: i64,
}

impl<'a> Snapshot<'a> {
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
        let current = self.read.cursor(Family::Current, start, end.as_deref())?;
        if revision >= self.head {
            return Ok(Walk::Newest(current));
        }
        let lower = schema::undo_lower_bound(start);
        let upper = end.as_deref().map(schema::undo_lower_bound);
        let undo = self.read.cursor(Family::Undo, &lower, upper.as_deref())?;
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

    /// Answers a range request.
    pub fn range(&self, request: &RangeRead) -> Result<Ranged> {
        let revision = self.check_revision(request.revision)?;
        if request.range.is_empty() {
            return Ok(Ranged::default());
        }
        if let KeyRange::Point(key) = &request.range {
            return self.point(request, key, revision);
        }
        if request.has_default_order() && !request.has_revision_filters() {
            let explicit = request.sort_order == SortOrder::Ascend;
            if explicit || request.sort_target == SortTarget::Key || request.count_only {
                return self.scan(request, revision);
            }
        }
        self.sorted(request, revision)
    }

    fn point(&self, request: &RangeRead, key: &Bytes, revision: i64) -> Result<Ranged> {
        let Some(version) = self.get(key, revision)? else {
            return Ok(Ranged::default());
        };
        let record = version.record();
        let head = Head::parse(record).ok_or_else(|| storage::Error::Damaged {
            family: Family::Current,
            key: key.to_vec(),
            reason: "its version record cannot be read",
        })?;
        let mut frames = Frames::new(request, record.len() + key.len() + 16);
        if !request.count_only && request.passes_filters(&head) {
            frames.push(key, record)?;
        }
        Ok(Ranged {
            kvs: frames.finish(),
            count: 1,
            more: false,
            last_key: None,
        })
    }

    /// Answers in key order, counting on behind the limit.
    fn scan(&self, request: &RangeRead, revision: i64) -> Result<Ranged> {
        let limit = match request.limit {
            limit if limit > 0 => limit,
            _ => i64::MAX,
        };
        let mut walk = self.walk(&request.range, revision)?;
        let mut frames = Frames::new(request, 4096);
        let mut count = 0;
        let mut last_key = None;
        while walk.advance()? {
            count += 1;
            if request.count_only {
                continue;
            }
            if count <= limit {
                frames.push(walk.key(), walk.record())?;
                if count == limit {
                    last_key = Some(Bytes::copy_from_slice(walk.key()));
                }
            } else if !request.total_count {
                break;
            }
        }
        let more = !request.count_only && count > limit;
        Ok(Ranged {
            kvs: frames.finish(),
            count,
            more,
            last_key: last_key.filter(|_| more),
        })
    }

    /// Reads, filters and sorts everything, then cuts. As in etcd the limit comes before a sort
    /// that was only implied by its target.
    fn sorted(&self, request: &RangeRead, revision: i64) -> Result<Ranged> {
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let cut_first = request.has_default_order() && !request.has_revision_filters();
        let mut walk = self.walk(&request.range, revision)?;
        let mut rows = Vec::new();
        let mut count = 0;
        while walk.advance()? {
            count += 1;
            if cut_first && limit > 0 && rows.len() > limit {
                continue;
            }
            if request.count_only {
                continue;
            }
            let row = Row::new(walk.key(), walk.record())?;
            if request.passes_filters(&row.head) {
                rows.push(row);
            }
        }
        sort_rows(&mut rows, request);
        let more = limit > 0 && rows.len() > limit;
        if more {
            rows.truncate(limit);
        }
        let mut frames = Frames::new(request, 4096);
        for row in &rows {
            frames.push(&row.key, &row.record)?;
        }
        let last_key = rows
            .last()
            .filter(|_| more)
            .map(|row| Bytes::copy_from_slice(&row.key));
        Ok(Ranged {
            kvs: frames.finish(),
            count,
            more,
            last_key,
        })
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

struct Row {
    key: Vec<u8>,
    record: Vec<u8>,
    head: Head,
}

impl Row {
    fn new(key: &[u8], record: &[u8]) -> storage::Result<Self> {
        Ok(Self {
            key: key.to_vec(),
            record: record.to_vec(),
            head: parse_head(key, record)?,
        })
    }
}

fn parse_head(key: &[u8], record: &[u8]) -> storage::Result<Head> {
    Head::parse(record).ok_or_else(|| storage::Error::Damaged {
        family: Family::Current,
        key: key.to_vec(),
        reason: "its version record cannot be read",
    })
}

/// Equal rows stay in key order; etcd's sort is not stable, so clients cannot rely on theirs.
fn sort_rows(rows: &mut [Row], request: &RangeRead) {
    let compare = |a: &Row, b: &Row| match request.sort_target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.head.version.cmp(&b.head.version),
        SortTarget::Create => a.head.create_revision.cmp(&b.head.create_revision),
        SortTarget::Mod => a.head.mod_revision.main.cmp(&b.head.mod_revision.main),
        SortTarget::Value => a.head.value(&a.record).cmp(b.head.value(&b.record)),
    };
    match (request.sort_order, request.sort_target) {
        (SortOrder::None, SortTarget::Key) => {}
        (SortOrder::None | SortOrder::Ascend, _) => rows.sort_by(compare),
        (SortOrder::Descend, _) => rows.sort_by(|a, b| compare(b, a)),
    }
}

/// Collects the pairs of an answer.
struct Frames {
    bytes: Vec<u8>,
    len: usize,
    keys_only: bool,
    hides_lease: bool,
}

impl Frames {
    fn new(request: &RangeRead, capacity: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(capacity),
            len: 0,
            keys_only: request.keys_only,
            hides_lease: request.hides_lease(),
        }
    }

    fn push(&mut self, key: &[u8], record: &[u8]) -> storage::Result<()> {
        self.len += 1;
        if !self.keys_only {
            schema::append_kv_frame(&mut self.bytes, RANGE_KVS_TAG, key, record);
            return Ok(());
        }
        let head = parse_head(key, record)?;
        let lease = if self.hides_lease {
            LeaseId::NONE
        } else {
            head.lease
        };
        schema::append_key_frame(&mut self.bytes, RANGE_KVS_TAG, key, &head, lease);
        Ok(())
    }

    fn finish(self) -> EncodedKvs {
        EncodedKvs::from_frames(self.bytes.into(), self.len)
    }
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
