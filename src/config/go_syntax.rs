//! Texts, booleans and numbers as Go reads and prints them: flags, the environment, the file and
//! messages of refusals use them, and scripts and operators know exactly these.

/// Why a number was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberError {
    Syntax,
    Range,
}

impl NumberError {
    /// As Go's flag package words it.
    pub fn flag(self) -> String {
        match self {
            NumberError::Syntax => "parse error".to_owned(),
            NumberError::Range => "value out of range".to_owned(),
        }
    }

    /// As Go's strconv words it.
    pub fn go(self) -> &'static str {
        match self {
            NumberError::Syntax => "invalid syntax",
            NumberError::Range => "value out of range",
        }
    }
}

/// Go's boolean words.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's integer literals: decimal, `0x`, `0o`, `0b`, a leading 0 for octal, `_` between digits.
///
/// # Errors
/// See [`NumberError`].
pub fn parse_uint(text: &str) -> Result<u64, NumberError> {
    let lower = text.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', _, ..] => (16, &lower[2..]),
        [b'0', b'o', _, ..] => (8, &lower[2..]),
        [b'0', b'b', _, ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // After a prefix the first digit may itself be set apart: 0x_ff, 0_17.
    let body = match digits.strip_prefix('_') {
        Some(rest) if radix != 10 => rest,
        _ => digits,
    };
    let tidy = !body.is_empty() && body.split('_').all(|group| !group.is_empty());
    let plain = body.replace('_', "");
    if !tidy || !plain.chars().all(|c| c.is_digit(radix)) {
        return Err(NumberError::Syntax);
    }
    u64::from_str_radix(&plain, radix).map_err(|_| NumberError::Range)
}

/// As [`parse_uint`], with a sign.
///
/// # Errors
/// See [`NumberError`].
pub fn parse_int(text: &str) -> Result<i64, NumberError> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let size = i128::from(parse_uint(digits)?);
    let signed = if negative { -size } else { size };
    i64::try_from(signed).map_err(|_| NumberError::Range)
}

/// A text in quotes, as Go's `%q` prints it.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            c if c < ' ' || c == '\x7f' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() || is_unseen(c) => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)))
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Blanks and marks that would stand in a message without being seen.
fn is_unseen(c: char) -> bool {
    let marks = ['\u{ad}', '\u{feff}'].contains(&c)
        || ('\u{200b}'..='\u{200f}').contains(&c)
        || ('\u{202a}'..='\u{202e}').contains(&c)
        || ('\u{2060}'..='\u{206f}').contains(&c);
    marks || (c.is_whitespace() && c != ' ')
}

/// Texts in quotes within brackets, as Go's `%q` prints a slice.
pub fn quote_all(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| quote(text)).collect();
    format!("[{}]", quoted.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_go_integers() {
        use NumberError::{Range, Syntax};
        for (text, expected) in [
            ("0", Ok(0)),
            ("10", Ok(10)),
            ("0x10", Ok(16)),
            ("0X_1F", Ok(31)),
            ("010", Ok(8)),
            ("0_7", Ok(7)),
            ("0b101", Ok(5)),
            ("1_000", Ok(1000)),
            ("18446744073709551615", Ok(u64::MAX)),
            ("18446744073709551616", Err(Range)),
            ("", Err(Syntax)),
            ("_1", Err(Syntax)),
            ("1_", Err(Syntax)),
            ("1__0", Err(Syntax)),
            ("08", Err(Syntax)),
            ("0x", Err(Syntax)),
            ("-1", Err(Syntax)),
            ("+1", Err(Syntax)),
            ("1.5", Err(Syntax)),
            (" 1", Err(Syntax)),
        ] {
            assert_eq!(parse_uint(text), expected, "{text}");
        }
        assert_eq!(parse_int("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(parse_int("9223372036854775808"), Err(Range));
        assert_eq!(parse_int("+0x10"), Ok(16));
        assert_eq!(parse_int("--1"), Err(Syntax));
    }

    #[test]
    fn quotes_as_go_does() {
        assert_eq!(quote("a\"\\\x01é\n"), "\"a\\\"\\\\\\x01é\\n\"");
    }
}
