//! HPACK's Huffman code, one way: what a string says (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: among codes of one length the symbols ascend, and each length begins
//! where the one before it ended. So the lengths are the whole table.

/// Bits of the code of each byte. The end of a string, which must not be in one, has 30.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
const LONGEST: usize = 30;

/// Bytes in the order of their codes, and for each length how many codes have it.
const fn canonical() -> ([u8; 256], [u32; LONGEST + 1]) {
    let (mut ordered, mut counts) = ([0; 256], [0; LONGEST + 1]);
    let (mut length, mut place) = (1, 0);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                ordered[place] = symbol as u8;
                counts[length] += 1;
                place += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    (ordered, counts)
}

const CANONICAL: ([u8; 256], [u32; LONGEST + 1]) = canonical();

/// What `coded` says; `None` where it is no string of this code.
pub fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    let (ordered, counts) = (&CANONICAL.0, &CANONICAL.1);
    let mut decoded = Vec::with_capacity(coded.len() * 8 / 5);
    // The bits of a code so far, the first code of that length, and where its bytes begin.
    let (mut code, mut first, mut place, mut length) = (0u32, 0u32, 0usize, 0usize);
    let mut all_ones = true;
    for byte in coded {
        for bit in (0..8).rev() {
            let one = u32::from(*byte >> bit & 1);
            all_ones &= one == 1;
            code = code << 1 | one;
            first <<= 1;
            length += 1;
            let count = *counts.get(length)?;
            if code < first + count {
                decoded.push(*ordered.get(place + (code - first) as usize)?);
                (code, first, place, length, all_ones) = (0, 0, 0, 0, true);
            } else {
                first += count;
                place += count as usize;
            }
        }
    }
    // What is left fills the last byte with ones.
    (length < 8 && all_ones).then_some(decoded)
}

/// The other way.
#[cfg(test)]
pub fn encode(text: &[u8]) -> Vec<u8> {
    let mut codes = [0u32; 256];
    let (mut code, mut length) = (0, 0);
    for symbol in CANONICAL.0 {
        let own = LENGTHS[usize::from(symbol)];
        code <<= own - length;
        length = own;
        codes[usize::from(symbol)] = code;
        code += 1;
    }
    let mut bits: Vec<bool> = Vec::new();
    for byte in text {
        let (code, length) = (codes[usize::from(*byte)], LENGTHS[usize::from(*byte)]);
        bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
    }
    bits.resize(bits.len().next_multiple_of(8), true);
    let byte = |bits: &[bool]| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    bits.chunks(8).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examples of RFC 7541, appendix C, and strings that are none.
    #[test]
    fn the_examples_of_the_rfc_are_read() {
        let unhex = |text: &str| -> Vec<u8> {
            let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
            digits
                .chunks(2)
                .map(|pair| {
                    let pair = std::str::from_utf8(pair).expect("ASCII");
                    u8::from_str_radix(pair, 16).expect("hexadecimal")
                })
                .collect()
        };
        for (coded, expected) in [
            ("f1e3 c2e5 f23a 6ba0 ab90 f4ff", Some("www.example.com")),
            ("a8eb 1064 9cbf", Some("no-cache")),
            ("25a8 49e9 5ba9 7d7f", Some("custom-key")),
            ("6402", Some("302")),
            (
                "94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587
                 3160 65c0 03ed 4ee5 b106 3d50 07",
                Some("foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
            ),
            ("", Some("")),
            // Padding of eight ones, padding with a zero, the end of a string in one.
            ("1f ff", None),
            ("18", None),
            ("ff ff ff ff", None),
        ] {
            let decoded = decode(&unhex(coded));
            assert_eq!(decoded.as_deref(), expected.map(str::as_bytes), "{coded}");
            if let Some(text) = expected {
                assert_eq!(encode(text.as_bytes()), unhex(coded), "{text}");
            }
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
    }
}
