//! What writes have forgotten, and what bounds the cache.

use super::*;

const NOW: Duration = Duration::from_secs(1000);

fn request(key: &str, end: &str) -> RangeRequest {
    RangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
        ..Default::default()
    }
}

fn by(token: &str, request: &RangeRequest) -> Lookup {
    let token = Some(token).filter(|token| !token.is_empty());
    let token = token.map(|token| token.as_bytes().to_vec());
    Lookup::new([token, None, None], request)
}

fn changed(key: &str, end: &str) -> KeyRange {
    let RangeRequest { key, range_end, .. } = request(key, end);
    KeyRange::from_wire(&key, &range_end)
}

fn answer(text: &str) -> CachedAnswer {
    CachedAnswer {
        framed: Bytes::copy_from_slice(text.as_bytes()),
        revision: 5,
    }
}

impl RangeCache {
    fn keep(&mut self, request: &RangeRequest, text: &str) {
        let read = self.begin(request);
        self.add(read, by("", request), request, answer(text), NOW);
        self.check();
    }

    fn finds(&mut self, request: &RangeRequest) -> Option<String> {
        let found = self.get(&by("", request), 0, NOW)?;
        Some(String::from_utf8_lossy(&found.framed).into_owned())
    }

    /// Its parts agree.
    fn check(&self) {
        let all = self.entries.len();
        assert_eq!(self.by_lookup.len(), all);
        assert_eq!(self.by_use.len(), all);
        let points = self.points.values().map(BTreeSet::len).sum::<usize>();
        let past = self.entries.values().filter(|one| one.range.is_none());
        assert_eq!(points + self.spans.len() + past.count(), all);
        assert!(self.points.values().all(|ids| !ids.is_empty()));
        let bytes = self.entries.values().map(CachedRange::bytes);
        assert_eq!(bytes.sum::<usize>(), self.bytes);
        assert!(all <= MAX_ENTRIES && self.bytes <= MAX_BYTES);
    }
}

#[test]
fn a_write_has_what_it_changes_forgotten() {
    let kept = [("b", ""), ("b", "d"), ("a", "\0"), ("x", ""), ("d", "f")];
    for (key, end, expected) in [
        ("b", "", &["x", "d"][..]),
        ("c", "", &["b", "x", "d"]),
        ("d", "", &["b", "b", "x"]),
        ("a", "c", &["x", "d"]),
        ("0", "1", &["b", "b", "a", "x", "d"]),
        ("e", "\0", &["b", "b"]),
        ("0", "\0", &[]),
        // No key lies there.
        ("d", "b", &["b", "b", "a", "x", "d"]),
    ] {
        let mut cache = RangeCache::default();
        for (key, end) in kept {
            cache.keep(&request(key, end), key);
        }
        cache.forget(&[changed(key, end)]);
        cache.check();
        let left = kept
            .iter()
            .filter_map(|(key, end)| cache.finds(&request(key, end)));
        assert_eq!(left.collect::<Vec<_>>(), expected, "{key}..{end}");
    }
}

#[test]
fn what_is_changed_while_it_is_read_is_not_kept() {
    let mut cache = RangeCache::default();
    let asked = request("a", "c");
    let other = request("c", "");
    let reads = [cache.begin(&asked), cache.begin(&other)];
    cache.forget(&[changed("b", "")]);
    cache.add(reads[0], by("", &asked), &asked, answer("old"), NOW);
    cache.add(reads[1], by("", &other), &other, answer("kept"), NOW);
    assert_eq!(cache.finds(&asked), None);
    assert_eq!(cache.finds(&other).as_deref(), Some("kept"));
    let read = cache.begin(&asked);
    cache.clear();
    cache.add(read, by("", &asked), &asked, answer("old"), NOW);
    assert_eq!(cache.finds(&asked), None);
    assert!(cache.unchanged.is_empty());
}

#[test]
fn what_is_older_than_what_passed_is_not_kept() {
    let mut cache = RangeCache::default();
    // A member that is behind the write answers.
    let asked = request("a", "");
    cache.wrote(6);
    cache.keep(&asked, "behind");
    assert_eq!(cache.finds(&asked), None);
    cache.wrote(5);
    cache.keep(&asked, "behind");
    assert_eq!(cache.finds(&asked), None);
    // The reader that asked first may have its answer last.
    let mut cache = RangeCache::default();
    let reads = [cache.begin(&asked), cache.begin(&asked)];
    let later = NOW + Duration::from_secs(1);
    cache.add(reads[1], by("", &asked), &asked, answer("new"), later);
    cache.add(reads[0], by("", &asked), &asked, answer("old"), NOW);
    cache.check();
    assert_eq!(cache.finds(&asked).as_deref(), Some("new"));
    // Below zero is the newest revision.
    let newest = RangeRequest {
        revision: -1,
        ..asked.clone()
    };
    cache.keep(&newest, "1");
    cache.forget(&[changed("a", "")]);
    assert_eq!(cache.finds(&newest), None);
}

#[test]
fn an_entry_holds_nothing_of_its_message() {
    let message = Bytes::from(vec![b'k'; 100]);
    let asked = RangeRequest {
        key: message.slice(..1),
        ..Default::default()
    };
    let mut cache = RangeCache::default();
    cache.keep(&asked, "1");
    drop(asked);
    assert!(message.is_unique());
}

#[test]
fn an_answer_is_for_its_request_and_its_token() {
    let mut cache = RangeCache::default();
    let asked = request("a", "");
    cache.keep(&asked, "1");
    let serializable = RangeRequest {
        serializable: true,
        ..asked.clone()
    };
    assert!(cache.finds(&serializable).is_some());
    let limited = RangeRequest {
        limit: 1,
        ..asked.clone()
    };
    assert_eq!(cache.finds(&limited), None);
    assert!(cache.get(&by("t", &asked), 0, NOW).is_none());
    let counts = CacheCounts {
        hits: 1,
        misses: 2,
        keys: 1,
    };
    assert_eq!(cache.counts(), counts);
}

#[test]
fn an_answer_ends_by_age_and_by_revision() {
    let asked = request("a", "");
    let mut cache = RangeCache::default();
    cache.keep(&asked, "1");
    let at = |cache: &mut RangeCache, at_least, now| {
        let found = cache.get(&by("", &asked), at_least, now).is_some();
        cache.check();
        found
    };
    assert!(at(&mut cache, 5, NOW + MAX_AGE - Duration::from_nanos(1)));
    assert!(!at(&mut cache, 5, NOW + MAX_AGE));
    assert_eq!(cache.counts().keys, 0);
    cache.keep(&asked, "1");
    assert!(!at(&mut cache, 6, NOW));
}

#[test]
fn past_revisions_are_kept_until_they_are_compacted() {
    let mut cache = RangeCache::default();
    let at = |revision| RangeRequest {
        revision,
        ..request("a", "c")
    };
    for revision in [3, 4, 5] {
        cache.keep(&at(revision), "old");
    }
    cache.forget(&[changed("b", "")]);
    assert!(cache.finds(&at(3)).is_some());
    cache.compact(5);
    cache.check();
    cache.compact(4);
    cache.keep(&at(4), "old");
    let found = [3, 4, 5].map(|revision| cache.finds(&at(revision)).is_some());
    assert_eq!(found, [false, false, true]);
}

#[test]
fn the_cache_is_bounded() {
    let mut cache = RangeCache::default();
    let first = request("first", "");
    cache.keep(&first, "1");
    for i in 0..MAX_ENTRIES {
        // In use, so that another one makes room.
        assert!(cache.finds(&first).is_some());
        cache.keep(&request(&format!("k{i}"), ""), "2");
    }
    assert_eq!(cache.counts().keys, MAX_ENTRIES);
    assert_eq!(cache.finds(&request("k0", "")), None);
    assert!(cache.finds(&request("k1", "")).is_some());
    let large = "x".repeat(MAX_ANSWER_BYTES);
    for i in 0..100 {
        cache.keep(&request(&format!("large{i}"), ""), &large);
    }
    assert!(cache.counts().keys < MAX_BYTES / MAX_ANSWER_BYTES);
    cache.keep(&first, &(large + "x"));
    assert_eq!(cache.finds(&first), None);
}
