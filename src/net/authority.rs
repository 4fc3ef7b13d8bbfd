//! Values of `:authority` that are none, which etcd takes and the HTTP/2 library refuses.
//!
//! gRPC's clients put there the target that they dial: a list of addresses
//! (`ipv4:///127.0.0.1:1,127.0.0.1:2`), `#initially=[http://…]`, or nothing. Nobody here reads
//! it, so it is replaced, in the compressed header block (RFC 7541), before the library sees it.
//!
//! Both sides of a connection keep a table of the headers that were sent, and refer to it by
//! index, so what the library puts into its table has to stay in step with the client's:
//! - There is one entry for each of the client's, so indexes mean the same.
//! - No entry is larger than the client's. The library may keep entries for longer than the
//!   client, which then no longer refers to them; it never drops one sooner.
//!
//! With that a replaced value is parsed once: later calls refer to the entry.
//!
//! An empty value has no valid one that is no larger. Where it enters no table the header is left
//! out, which is valid. Where it does, an entry for `:scheme` enters in its place, whose name is
//! shorter, and the call's own `:scheme`, which enters no table as it is one of HTTP/2's static
//! entries, is left out. References to such an entry are left out as well.
//!
//! A name may be the index of an entry of the client's own, so it is known which entries are
//! authorities.

use std::borrow::Cow;
use std::ops::Range;

use http::uri::Authority;

use super::huffman;

const NAME: &[u8] = b":authority";
/// `NAME` in the static table, with an empty value.
const INDEX: usize = 1;
/// `:scheme` in the static table, with `http` and `https`.
const SCHEMES: [usize; 2] = [6, 7];
/// The newest entry of the client's.
const FIRST_ENTRY: usize = 62;
/// Stands for a value that is no authority, and is no longer than any.
const VALUE: &[u8] = b"x";
/// Enters a table in place of an empty authority: `:scheme: h`.
const ENTRY_FOR_EMPTY: &[u8] = &[0x46, 1, b'h'];
/// Authorities that can be in a table of 4,096 bytes at once, with some room.
const MAX_ENTRIES: usize = 128;

/// A string, as it is in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Text<'a> {
    huffman: bool,
    bytes: &'a [u8],
}

impl<'a> Text<'a> {
    /// None where it is no string of the code; the library will say so.
    fn decoded(self) -> Option<Cow<'a, [u8]>> {
        if self.huffman {
            huffman::decode(self.bytes).map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(self.bytes))
        }
    }

    /// Bytes that say the same in ASCII are of one length in either form.
    fn is_name(self) -> bool {
        let len = if self.huffman { 8 } else { NAME.len() };
        self.bytes.len() == len && self.decoded().is_some_and(|name| *name == *NAME)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name<'a> {
    Index(usize),
    Text(Text<'a>),
}

/// A representation of RFC 7541, section 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field<'a> {
    Indexed(usize),
    Literal {
        /// Enters the table.
        enters: bool,
        name: Name<'a>,
        value: Text<'a>,
        /// Where in the representation the value begins.
        value_at: usize,
    },
    TableSize,
}

/// Reads representations one after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        byte
    }

    /// An integer whose first byte, already read, has `bits` for it.
    fn integer(&mut self, first: u8, bits: u32) -> Option<usize> {
        let all = (1usize << bits) - 1;
        let mut value = usize::from(first) & all;
        if value < all {
            return Some(value);
        }
        // Four more bytes say more than any block has.
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn text(&mut self) -> Option<Text<'a>> {
        let first = self.byte()?;
        let len = self.integer(first, 7)?;
        let bytes = self.bytes.get(self.at..)?.get(..len)?;
        self.at += len;
        Some(Text {
            huffman: first & 0x80 != 0,
            bytes,
        })
    }

    /// The next representation; none at the end, and at what is cut off or is none.
    fn field(&mut self) -> Option<Field<'a>> {
        let start = self.at;
        let first = self.byte()?;
        if first & 0x80 != 0 {
            return self.integer(first, 7).map(Field::Indexed);
        }
        if first & 0xe0 == 0x20 {
            return self.integer(first, 5).map(|_| Field::TableSize);
        }
        let enters = first & 0x40 != 0;
        let name = match self.integer(first, if enters { 6 } else { 4 })? {
            0 => Name::Text(self.text()?),
            index => Name::Index(index),
        };
        let value_at = self.at - start;
        Some(Field::Literal {
            enters,
            name,
            value: self.text()?,
            value_at,
        })
    }
}

/// What is known of a connection's authorities.
#[derive(Debug, Default)]
pub struct Authorities {
    /// Entries that the client's table was given so far.
    entered: usize,
    /// Those of them that are authorities, oldest first.
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: usize,
    empty: bool,
}

/// Representations to replace, by their place in the block.
type Edits = Vec<(Range<usize>, Vec<u8>)>;

impl Authorities {
    /// The block as the library takes it; `None` where it is that already. `whole` says that
    /// nothing of the block is missing at its end.
    pub fn mend(&mut self, block: &[u8], whole: bool) -> Option<Vec<u8>> {
        let mut edits = Edits::new();
        let mut reader = Reader {
            bytes: block,
            at: 0,
        };
        let mut scheme = None;
        let mut takes_scheme = false;
        let mut end = 0;
        let mut has_empty = self.has_empty();
        loop {
            // What nearly all of nearly every block is: a byte that is no authority.
            if let Some(byte @ 0x82..=0xfe) = block.get(end).filter(|_| !has_empty) {
                if SCHEMES.contains(&usize::from(byte & 0x7f)) {
                    scheme = Some(end..end + 1);
                }
                end += 1;
                continue;
            }
            reader.at = end;
            let Some(field) = reader.field() else { break };
            let range = end..reader.at;
            end = reader.at;
            match field {
                Field::Indexed(index) if SCHEMES.contains(&index) => scheme = Some(range.clone()),
                Field::Literal {
                    enters: false,
                    name: Name::Index(index),
                    ..
                } if SCHEMES.contains(&index) => scheme = Some(range.clone()),
                _ => {}
            }
            let replacement = self.replacement(field, &block[range.clone()]);
            takes_scheme |= replacement.as_deref() == Some(ENTRY_FOR_EMPTY);
            edits.extend(replacement.map(|bytes| (range, bytes)));
            has_empty = self.has_empty();
        }
        if !whole || end < block.len() {
            // Entries of the rest go uncounted.
            self.entries.clear();
        }
        if edits.is_empty() {
            return None;
        }
        if takes_scheme && let Some(scheme) = scheme {
            edits.push((scheme, Vec::new()));
            edits.sort_by_key(|(range, _)| range.start);
        }
        let mut mended = Vec::with_capacity(block.len());
        let mut copied = 0;
        for (range, bytes) in edits {
            mended.extend_from_slice(&block[copied..range.start]);
            mended.extend(bytes);
            copied = range.end;
        }
        mended.extend_from_slice(&block[copied..]);
        Some(mended)
    }

    /// True where an index may mean an authority that is empty.
    fn has_empty(&self) -> bool {
        self.entries.iter().any(|entry| entry.empty)
    }

    /// What takes the place of a representation; counts what enters the table.
    fn replacement(&mut self, field: Field<'_>, bytes: &[u8]) -> Option<Vec<u8>> {
        let (enters, name, value, value_at) = match field {
            Field::TableSize => return None,
            Field::Indexed(index) => {
                let empty = index == INDEX || self.entry(index).is_some_and(|entry| entry.empty);
                return empty.then(Vec::new);
            }
            Field::Literal {
                enters,
                name,
                value,
                value_at,
            } => (enters, name, value, value_at),
        };
        let named_by = match name {
            Name::Index(index) => self.entry(index),
            Name::Text(_) => None,
        };
        let is_authority = match name {
            Name::Index(index) => named_by.is_some() || index == INDEX,
            Name::Text(text) => text.is_name(),
        };
        let number = self.entered;
        self.entered += usize::from(enters);
        if !is_authority {
            return None;
        }
        let value = value.decoded()?;
        let empty = value.is_empty();
        if enters {
            if self.entries.len() == MAX_ENTRIES {
                self.entries.remove(0);
            }
            self.entries.push(Entry { number, empty });
        }
        // The bits that say whether it enters, and a name by its index.
        let head = bytes[0] & if enters { 0xc0 } else { 0xf0 } | INDEX as u8;
        if empty {
            return Some(if enters {
                ENTRY_FOR_EMPTY.to_vec()
            } else {
                Vec::new()
            });
        }
        let valid =
            std::str::from_utf8(&value).is_ok_and(|value| Authority::try_from(value).is_ok());
        if !valid {
            return Some([&[head, VALUE.len() as u8], VALUE].concat());
        }
        // In the library's table another header has the place of an empty one.
        let renamed = named_by.is_some_and(|entry| entry.empty);
        renamed.then(|| [&[head], &bytes[value_at..]].concat())
    }

    /// The authority of the client's table that an index means.
    fn entry(&self, index: usize) -> Option<Entry> {
        let newest = self.entered.checked_sub(1)?;
        let number = newest.checked_sub(index.checked_sub(FIRST_ENTRY)?)?;
        self.entries
            .iter()
            .find(|entry| entry.number == number)
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = b"ipv4:///127.0.0.1:1,127.0.0.1:2";
    const POST: u8 = 0x83;
    const HTTP: u8 = 0x86;
    /// `:path: /a`, which enters the table.
    const PATH: &[u8] = b"\x44\x02/a";

    /// A string of a block, plain or in the code.
    fn text(value: &[u8], code: bool) -> Vec<u8> {
        let coded = if code {
            huffman::encode(value)
        } else {
            value.to_vec()
        };
        assert!(coded.len() < 127);
        let first = coded.len() as u8 | if code { 0x80 } else { 0 };
        [vec![first], coded].concat()
    }

    /// `:authority` in each form that it can have, whose head byte has these bits.
    fn forms(bits: u8, value: &[u8]) -> Vec<Vec<u8>> {
        let mut forms = Vec::new();
        for code in [false, true] {
            let value = text(value, code);
            forms.push([vec![bits | 1], value.clone()].concat());
            for code in [false, true] {
                forms.push([vec![bits], text(NAME, code), value.clone()].concat());
            }
        }
        forms
    }

    fn around(authority: &[u8]) -> Vec<u8> {
        [&[POST, HTTP], authority, PATH].concat()
    }

    #[test]
    fn what_is_an_authority_passes() {
        for value in ["localhost", "127.0.0.1:2379", "[::1]:2379", "a.b:1", "x"] {
            for bits in [0x40, 0, 0x10] {
                for form in forms(bits, value.as_bytes()) {
                    let mended = Authorities::default().mend(&around(&form), true);
                    assert_eq!(mended, None, "{value} as {form:x?}");
                }
            }
        }
        for block in [
            b"".as_slice(),
            // Sizes of the table, references, a header of another name.
            b"\x3f\xe1\x1f\x20\x83\xbe\xbf",
            b"\x40\x0a:authorits\x01#",
            b"\x5f\x01#\x0f\x10\x01#",
        ] {
            assert_eq!(Authorities::default().mend(block, true), None, "{block:x?}");
        }
    }

    #[test]
    fn what_is_none_is_replaced_by_what_is_no_longer() {
        for value in [
            LIST,
            b"#initially=[http://127.0.0.1:1]",
            b"a b",
            b"\xff",
            b"/",
        ] {
            for bits in [0x40, 0, 0x10] {
                for form in forms(bits, value) {
                    let mended = Authorities::default().mend(&around(&form), true);
                    let expected = around(&[bits | 1, 1, b'x']);
                    assert_eq!(mended, Some(expected), "{value:?} as {form:x?}");
                }
            }
        }
    }

    #[test]
    fn an_empty_one_that_enters_no_table_is_left_out() {
        let mut all = [forms(0, b""), forms(0x10, b"")].concat();
        all.push(vec![0x81]);
        for form in all {
            let mended = Authorities::default().mend(&around(&form), true);
            assert_eq!(mended, Some(around(&[])), "{form:x?}");
        }
    }

    /// Blocks of one connection, each with what becomes of it.
    #[test]
    fn an_empty_one_that_enters_the_table_keeps_its_place_in_it() {
        for empty in forms(0x40, b"") {
            let mut authorities = Authorities::default();
            let mut check = |block: &[u8], expected: Option<&[u8]>| {
                let mended = authorities.mend(block, true);
                assert_eq!(mended.as_deref(), expected, "{block:x?}");
            };
            let entry = [&[POST], ENTRY_FOR_EMPTY, PATH].concat();
            check(&around(&empty), Some(&entry));
            // The path is the newest entry now.
            check(&[POST, HTTP, 0xbf, 0xbe], Some(&[POST, HTTP, 0xbe]));
            check(&[POST, HTTP, 0xbe], None);
            // One more entry, before it is referred to.
            let entered = [b"\x44\x02/b".as_slice(), &[0xc0]].concat();
            check(&entered, Some(&entered[..4]));
            // Its name with another value, which enters as well; then by that one's name.
            check(b"\x7f\x01\x01a", Some(b"\x41\x01a"));
            check(b"\x7f\x02\x01#", Some(b"\x41\x01x"));
            check(b"\x0f\x33\x01#", Some(b"\x01\x01x"));
            check(&[0xc2], Some(&[]));
            check(&[0xc1], None);
        }
        // A name by an entry that is not empty, with a value that is none.
        let mut authorities = Authorities::default();
        assert_eq!(authorities.mend(b"\x41\x01a\x44\x01/", true), None);
        for (literal, expected) in [
            (b"\x0f\x30\x01#".as_slice(), Some(b"\x01\x01x".as_slice())),
            (b"\x1f\x30\x01#", Some(b"\x11\x01x")),
            (b"\x0f\x30\x01b", None),
            (b"\x0f\x30\x00", Some(b"")),
            (b"\x0f\x2f\x01#", None),
            (b"\x7f\x00\x01#", Some(b"\x41\x01x")),
            (b"\x7e\x00", Some(ENTRY_FOR_EMPTY)),
        ] {
            let mended = authorities.mend(literal, true);
            assert_eq!(mended.as_deref(), expected, "{literal:x?}");
        }
        // Behind a block that was not seen as a whole places are not known.
        let mut authorities = Authorities::default();
        assert!(authorities.mend(&[0x41, 0], true).is_some());
        assert_eq!(authorities.mend(&[0x44, 2, b'/'], true), None);
        assert_eq!(authorities.mend(&[0xbe], true), None);
    }

    /// As bytes of a client may be anything.
    #[test]
    fn any_bytes_are_survived() {
        let seeds: Vec<Vec<u8>> = [0x40, 0, 0x10]
            .into_iter()
            .flat_map(|bits| [forms(bits, LIST), forms(bits, b""), forms(bits, b"a")].concat())
            .map(|form| around(&form))
            .collect();
        let mut state = 1u64;
        let mut draw = |below: usize| {
            // An LCG's high bits: enough for mutations, and the same everywhere.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % below
        };
        let (mut mended, mut authorities) = (0, Authorities::default());
        for round in 0..200_000 {
            if round % 10 == 0 {
                authorities = Authorities::default();
            }
            let mut block = seeds[draw(seeds.len())].clone();
            for _ in 0..draw(4) {
                let at = draw(block.len());
                match draw(3) {
                    0 => block[at] = draw(256) as u8,
                    1 => block.truncate(at + 1),
                    _ => block.insert(at, draw(256) as u8),
                }
            }
            if let Some(other) = authorities.mend(&block, draw(8) > 0) {
                mended += 1;
                assert_ne!(other, block);
                assert!(
                    other.len() <= block.len() + ENTRY_FOR_EMPTY.len(),
                    "{block:x?}"
                );
            }
            assert!(authorities.entries.len() <= MAX_ENTRIES);
        }
        assert!((20_000..190_000).contains(&mended), "{mended}");
    }
}
