//! The engine's newest state with changes over it that are not written yet.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::storage::schema::Version;
use crate::storage::{self, Cursor, Family, Read, once};
use crate::types::KeyRange;

/// What is to be written of `current`: new versions, and nothing for keys that are deleted.
pub(super) type Overlay = BTreeMap<Bytes, Option<Version>>;

/// The engine's newest state with the pending changes of `current` laid over it.
pub struct Pending<'a> {
    pub(super) base: &'a dyn Read,
    pub(super) overlay: &'a Overlay,
}

impl<'a> Pending<'a> {
    pub(super) fn current(&'a self, range: &KeyRange) -> storage::Result<Box<dyn Cursor + 'a>> {
        match range {
            KeyRange::Span(start, end) => self.cursor(Family::Current, start, Some(end)),
            KeyRange::From(start) => self.cursor(Family::Current, start, None),
            KeyRange::Point(key) => {
                let mut end = key.to_vec();
                end.push(0);
                self.cursor(Family::Current, key, Some(&end))
            }
        }
    }
}

impl Read for Pending<'_> {
    fn get(&self, family: Family, key: &[u8]) -> storage::Result<Option<Bytes>> {
        if family == Family::Current
            && let Some(version) = self.overlay.get(key)
        {
            return Ok(version.as_ref().map(|version| version.record().clone()));
        }
        self.base.get(family, key)
    }

    fn cursor<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
    ) -> storage::Result<Box<dyn Cursor + 'a>> {
        let base = once::walk(self.base, family, lower, upper)?;
        if family != Family::Current || self.overlay.is_empty() {
            return Ok(base);
        }
        Ok(Box::new(PendingCursor {
            base,
            base_state: BaseState::Unread,
            overlay: self.overlay,
            overlay_from: Bound::Included(Bytes::copy_from_slice(lower)),
            upper: upper.map(Bytes::copy_from_slice),
            entry: None,
        }))
    }
}

#[derive(PartialEq)]
enum BaseState {
    Unread,
    At,
    End,
}

/// Merges the engine's cursor with the overlay, which wins.
struct PendingCursor<'a> {
    base: Box<dyn Cursor + 'a>,
    base_state: BaseState,
    overlay: &'a Overlay,
    overlay_from: Bound<Bytes>,
    upper: Option<Bytes>,
    /// The overlay's entry where that is what it stands on.
    entry: Option<(Bytes, Bytes)>,
}

impl PendingCursor<'_> {
    fn advance_base(&mut self) -> storage::Result<()> {
        self.base_state = if self.base.next()? {
            BaseState::At
        } else {
            BaseState::End
        };
        Ok(())
    }

    fn step(&mut self) -> storage::Result<bool> {
        loop {
            let upper = match &self.upper {
                Some(upper) => Bound::Excluded(upper.clone()),
                None => Bound::Unbounded,
            };
            // An inverted range would panic in the map; the cursors treat it as empty.
            let inverted = match (&self.overlay_from, &upper) {
                (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(upper)) => {
                    from >= upper
                }
                _ => false,
            };
            let pending = if inverted {
                None
            } else {
                self.overlay
                    .range((self.overlay_from.clone(), upper))
                    .next()
            };
            let Some((key, version)) = pending else {
                return Ok(self.base_state == BaseState::At);
            };
            if self.base_state == BaseState::At && self.base.key() < key.as_ref() {
                return Ok(true);
            }
            if self.base_state == BaseState::At && self.base.key() == key.as_ref() {
                self.advance_base()?;
            }
            self.overlay_from = Bound::Excluded(key.clone());
            if let Some(version) = version {
                self.entry = Some((key.clone(), version.record().clone()));
                return Ok(true);
            }
        }
    }
}

impl Cursor for PendingCursor<'_> {
    fn next(&mut self) -> storage::Result<bool> {
        let on_base = self.entry.take().is_none();
        if self.base_state == BaseState::Unread || (on_base && self.base_state == BaseState::At) {
            self.advance_base()?;
        }
        self.step()
    }

    fn seek(&mut self, key: &[u8]) -> storage::Result<bool> {
        self.entry = None;
        self.base_state = if self.base.seek(key)? {
            BaseState::At
        } else {
            BaseState::End
        };
        self.overlay_from = Bound::Included(Bytes::copy_from_slice(key));
        self.step()
    }

    fn key(&self) -> &[u8] {
        match &self.entry {
            Some((key, _)) => key,
            None => self.base.key(),
        }
    }

    fn value(&self) -> &[u8] {
        match &self.entry {
            Some((_, record)) => record,
            None => self.base.value(),
        }
    }
}
