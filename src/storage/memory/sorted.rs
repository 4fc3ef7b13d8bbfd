//! A sorted map that is cheap to copy and to change while copies of it live: a list of leaves, of
//! which a copy shares all and a change makes one anew.

use std::sync::Arc;

use bytes::Bytes;

/// A leaf that grows beyond this is split.
const LEAF_ENTRIES: usize = 64;

type Leaf = Vec<(Bytes, Bytes)>;

/// See the module. No leaf is empty.
#[derive(Clone, Default)]
pub struct Sorted {
    leaves: Arc<Vec<Arc<Leaf>>>,
}

/// Where an entry of a map lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryPosition {
    leaf: usize,
    entry: usize,
}

impl Sorted {
    /// Where `key` is, or the first entry above it.
    fn find(&self, key: &[u8]) -> (EntryPosition, bool) {
        let after = self.leaves.partition_point(|leaf| leaf[0].0 <= key);
        let Some(leaf) = after.checked_sub(1) else {
            return (EntryPosition::default(), false);
        };
        match self.leaves[leaf].binary_search_by(|(found, _)| found.as_ref().cmp(key)) {
            Ok(entry) => (EntryPosition { leaf, entry }, true),
            Err(entry) => (EntryPosition { leaf, entry }, false),
        }
    }

    pub fn get(&self, key: &[u8]) -> Option<&Bytes> {
        let (place, found) = self.find(key);
        found.then(|| &self.leaves[place.leaf][place.entry].1)
    }

    /// The place of the first entry at or above `key`.
    pub fn lower_bound(&self, key: &[u8]) -> EntryPosition {
        self.find(key).0
    }

    /// The entry at a place, or the next one where the place is a leaf's end.
    pub fn at(&self, mut place: EntryPosition) -> Option<(EntryPosition, &Bytes, &Bytes)> {
        if place.entry == self.leaves.get(place.leaf)?.len() {
            place = EntryPosition {
                leaf: place.leaf + 1,
                entry: 0,
            };
        }
        let (key, value) = self.leaves.get(place.leaf)?.get(place.entry)?;
        Some((place, key, value))
    }

    /// The place behind one that holds an entry.
    pub fn after(place: EntryPosition) -> EntryPosition {
        EntryPosition {
            entry: place.entry + 1,
            ..place
        }
    }

    /// Returns the value that was there before.
    pub fn insert(&mut self, key: Bytes, value: Bytes) -> Option<Bytes> {
        let (place, found) = self.find(&key);
        let leaves = Arc::make_mut(&mut self.leaves);
        let Some(leaf) = leaves.get_mut(place.leaf) else {
            leaves.push(Arc::new(vec![(key, value)]));
            return None;
        };
        let leaf = Arc::make_mut(leaf);
        if found {
            return Some(std::mem::replace(&mut leaf[place.entry].1, value));
        }
        leaf.insert(place.entry, (key, value));
        if leaf.len() > LEAF_ENTRIES {
            // What only grows at its end leaves full leaves behind.
            let at_end = place.entry + 1 == leaf.len();
            let kept = if at_end { LEAF_ENTRIES } else { leaf.len() / 2 };
            let split = leaf.split_off(kept);
            leaves.insert(place.leaf + 1, Arc::new(split));
        }
        None
    }

    /// Returns the value that was there.
    pub fn remove(&mut self, key: &[u8]) -> Option<Bytes> {
        let (place, found) = self.find(key);
        if !found {
            return None;
        }
        let leaves = Arc::make_mut(&mut self.leaves);
        let leaf = Arc::make_mut(&mut leaves[place.leaf]);
        let (_, value) = leaf.remove(place.entry);
        if leaf.is_empty() {
            leaves.remove(place.leaf);
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn all(map: &Sorted) -> Vec<(Bytes, Bytes)> {
        let mut found = Vec::new();
        let mut place = EntryPosition::default();
        while let Some((at, key, value)) = map.at(place) {
            found.push((key.clone(), value.clone()));
            place = Sorted::after(at);
        }
        found
    }

    /// A number that looks like chance.
    fn scatter(number: u64) -> u64 {
        let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^= mixed >> 29;
        mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
    }

    #[test]
    fn it_is_a_map_and_copies_stay_as_they_were() {
        let (mut map, mut model) = (Sorted::default(), BTreeMap::new());
        let mut copies = Vec::new();
        for step in 0..4_000_u64 {
            let key = Bytes::from(format!("{:03}", scatter(step) % 700));
            let value = Bytes::from(step.to_string());
            if scatter(step ^ 0x5555) % 5 < 3 {
                let before = map.insert(key.clone(), value.clone());
                assert_eq!(before, model.insert(key.clone(), value));
            } else {
                assert_eq!(map.remove(&key), model.remove(&key));
            }
            assert_eq!(map.get(&key), model.get(&key));
            let above = map.at(map.lower_bound(&key)).map(|(_, key, _)| key.clone());
            assert_eq!(above, model.range(key..).next().map(|(key, _)| key.clone()));
            if step % 500 == 0 {
                copies.push((map.clone(), model.clone()));
            }
        }
        copies.push((map.clone(), model));
        for (copy, model) in copies {
            assert!(copy.leaves.iter().all(|leaf| !leaf.is_empty()));
            assert_eq!(all(&copy), model.into_iter().collect::<Vec<_>>());
        }
        let keys: Vec<_> = all(&map).into_iter().map(|(key, _)| key).collect();
        for key in keys {
            assert!(map.remove(&key).is_some());
        }
        assert_eq!((all(&map), map.leaves.len()), (Vec::new(), 0));
    }

    #[test]
    fn what_grows_at_its_end_fills_its_leaves() {
        let mut map = Sorted::default();
        for number in 0..1_000_u64 {
            let key = Bytes::copy_from_slice(&number.to_be_bytes());
            map.insert(key, Bytes::new());
        }
        assert_eq!(map.leaves.len(), 1_000_usize.div_ceil(LEAF_ENTRIES));
    }
}
