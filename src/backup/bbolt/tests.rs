//! Files that are written are read again; damaged ones are refused.

use super::page::PAGE_BYTES;
use super::{read, write};

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn fill(file: &mut write::File, buckets: &[(&str, Pairs)], mut parts: Option<&mut Vec<u8>>) {
    for (name, pairs) in buckets {
        for (key, value) in pairs {
            file.pair(key, value.len(), |out| out.extend_from_slice(value));
            if let Some(parts) = &mut parts {
                parts.extend(file.take());
            }
        }
        file.bucket(name.as_bytes());
    }
}

fn file_of(buckets: &[(&str, Pairs)]) -> Vec<u8> {
    let mut counting = write::File::counting();
    fill(&mut counting, buckets, None);
    let (shape, none) = counting.finish();
    assert!(none.is_empty());
    let mut bytes = Vec::new();
    let mut writing = write::File::writing(shape);
    fill(&mut writing, buckets, Some(&mut bytes));
    let (same, rest) = writing.finish();
    bytes.extend(rest);
    assert_eq!(same, shape);
    assert_eq!(bytes.len() as u64, shape.bytes());
    bytes
}

fn read_all(bytes: &[u8], names: &[&str]) -> Result<Vec<Option<Pairs>>, read::Error> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    std::fs::write(&path, bytes).expect("writes");
    let file = read::File::open(&path)?;
    let one = |name: &&str| {
        let mut pairs = Vec::new();
        let found = file.each::<read::Error>(name.as_bytes(), &mut |key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            Ok(())
        })?;
        Ok(found.then_some(pairs))
    };
    names.iter().map(one).collect()
}

/// `count` pairs with keys and values of these lengths at least.
fn pairs(count: u32, key_len: usize, value_len: usize) -> Pairs {
    let pair = |number: u32| {
        let mut key = number.to_be_bytes().to_vec();
        key.resize(4 + key_len, 7);
        (key, vec![number as u8; value_len + (number % 3) as usize])
    };
    (0..count).map(pair).collect()
}

#[test]
fn what_is_written_is_read_again() {
    // Counts around what a leaf and a branch hold, keys and values larger than a page.
    let shapes: &[(u32, usize, usize)] = &[
        (0, 0, 0),
        (1, 0, 0),
        (203, 0, 0),
        (204, 0, 0),
        (50_000, 13, 20),
        (300, 3_000, 10),
        (700, 10, 1_400),
        (300, 10, 4_096),
        (7, 9_000, 9_000),
        (40, 10, 70_000),
    ];
    for (count, key_len, value_len) in shapes {
        let buckets = [
            ("b", pairs(*count, *key_len, *value_len)),
            ("a", pairs(5, 1, 1)),
            ("empty", Vec::new()),
        ];
        let bytes = file_of(&buckets);
        let back = read_all(&bytes, &["b", "a", "empty", "none"]).expect("reads");
        let [b, a, empty] = buckets.map(|(_, pairs)| Some(pairs));
        assert_eq!(
            back,
            [b, a, empty, None],
            "{count} of {key_len} and {value_len}"
        );
    }
}

/// Every number of children from one to more than two levels hold: no branch with a single child.
#[test]
fn branches_have_two_children_or_more() {
    for count in (1..400).chain([5_000, 5_001, 5_002, 5_003]) {
        let bytes = file_of(&[("b", pairs(count, 500, 1_000))]);
        let mut at = 0;
        while at < bytes.len() {
            let head = super::page::Head::parse(&bytes[at..]).expect("a head");
            at += (1 + head.overflow as usize) * PAGE_BYTES;
            if head.flags == super::page::BRANCH && head.id > 2 {
                assert!(
                    head.count >= 2,
                    "{count}: page {} has {}",
                    head.id,
                    head.count
                );
            }
        }
    }
}

/// A leaf of pairs a little longer than a half of a page or a whole one is no half empty pages.
#[test]
fn little_of_the_pages_is_empty() {
    for value_len in [300, 700, 1_400, 2_100, 4_096, 5_000, 9_000, 70_000] {
        let pairs = pairs(1_000, 13, value_len);
        let content: usize = pairs
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        let bytes = file_of(&[("b", pairs)]).len();
        assert!(
            bytes < content + content / 5 + 10_000,
            "{value_len}: {bytes} for {content}"
        );
    }
}

#[test]
fn damaged_files_are_refused() {
    let bytes = file_of(&[("b", pairs(2_000, 4, 30))]);
    assert!(matches!(
        read_all(b"nothing", &["b"]),
        Err(read::Error::Foreign)
    ));
    assert!(matches!(
        read_all(&[0; 9_000], &["b"]),
        Err(read::Error::Foreign)
    ));
    let short = &bytes[..bytes.len() - 1];
    assert!(matches!(
        read_all(short, &["b"]),
        Err(read::Error::Truncated { .. })
    ));
    // With the first meta damaged the second serves.
    let mut one_meta = bytes.clone();
    one_meta[20] ^= 1;
    assert_eq!(
        read_all(&one_meta, &["b"]).expect("reads"),
        read_all(&bytes, &["b"]).expect("reads")
    );
    // A changed byte may change a pair, which a checksum of the whole file finds, but does not
    // end in anything other than pairs or an error.
    let mut refused = 0;
    for at in (3 * PAGE_BYTES..bytes.len()).step_by(397) {
        let mut changed = bytes.clone();
        changed[at] ^= 0xff;
        refused += u32::from(read_all(&changed, &["b"]).is_err());
    }
    assert!(refused > 10, "only {refused} refused");
}

#[test]
fn a_file_that_is_open_to_be_written_is_not_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    std::fs::write(&path, file_of(&[("key", pairs(3, 8, 8))])).expect("writes");
    let writer = std::fs::File::open(&path).expect("opens");
    let lock = |operation| rustix::fs::flock(&writer, operation).expect("locks or unlocks");
    lock(rustix::fs::FlockOperation::LockExclusive);
    let refused = read::File::open(&path).err();
    assert!(matches!(refused, Some(read::Error::InUse)), "{refused:?}");
    assert!(read::File::open_held(&path).is_ok());
    lock(rustix::fs::FlockOperation::Unlock);
    // Nobody begins to write to what is read; others may read.
    let reading = read::File::open(&path).expect("opens");
    assert!(read::File::open(&path).is_ok());
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    assert!(rustix::fs::flock(&writer, exclusive).is_err());
    drop(reading);
    assert!(rustix::fs::flock(&writer, exclusive).is_ok());
}
