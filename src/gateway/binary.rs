//! Base64 as gRPC's headers have it, padded or not, and where it stops being any: Go's library names
//! the place, and clients see it.

/// The bytes of a text.
///
/// # Errors
/// The first byte of it that cannot be, or its length where too few follow.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, usize> {
    let is_padded = text.len().is_multiple_of(4);
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let mut bits = 0;
    for (at, letter) in text.iter().enumerate() {
        let Some(six) = value(*letter) else {
            let is_padding = is_padded && *letter == b'=';
            end(&text[at..], at, is_padding)?;
            break;
        };
        bits = bits << 6 | u32::from(six);
        // The last byte that these six bits complete.
        match at % 4 {
            1 => bytes.push((bits >> 4) as u8),
            2 => bytes.push((bits >> 2) as u8),
            3 => bytes.push(bits as u8),
            _ if at + 1 == text.len() => return Err(at),
            _ => {}
        }
    }
    Ok(bytes)
}

/// Whether what begins at `at` is the padding that has to be there.
fn end(rest: &[u8], at: usize, is_padding: bool) -> Result<(), usize> {
    match (is_padding, at % 4) {
        (true, 2) => match rest {
            [_, b'='] => Ok(()),
            [_, b'=', ..] => Err(at + 2),
            _ => Err(at),
        },
        (true, 3) if rest.len() == 1 => Ok(()),
        (true, 3) => Err(at + 1),
        _ => Err(at),
    }
}

fn value(letter: u8) -> Option<u8> {
    match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_base64_is_what_go_says() {
        for (text, expected) in [
            ("", Ok(&[][..])),
            ("AAEC/w==", Ok(&[0, 1, 2, 255])),
            ("AAEC/w", Ok(&[0, 1, 2, 255])),
            // Bits that belong to no byte are not looked at.
            ("AAEC/x", Ok(&[0, 1, 2, 255])),
            ("YWJj", Ok(b"abc")),
            ("YWI=", Ok(b"ab")),
            ("YWI", Ok(b"ab")),
            ("A", Err(0)),
            ("AAAAA", Err(4)),
            ("!", Err(0)),
            ("AAAAAAAA-_==", Err(8)),
            // A padding that is not asked for is none.
            ("AB=", Err(2)),
            ("AAA=AAA", Err(3)),
            ("AB=C", Err(2)),
            ("AB==AAAA", Err(4)),
            ("ABC=AAAA", Err(4)),
            ("====", Err(0)),
            ("A===", Err(1)),
        ] {
            assert_eq!(
                decode(text.as_bytes()),
                expected.map(<[u8]>::to_vec),
                "{text}"
            );
        }
    }
}
