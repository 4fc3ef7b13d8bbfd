//! The types that a flag's value can have, and how each is read from the command line or the
//! environment: Go's number, boolean and duration syntax with Go's error texts, because scripts
//! and operators know exactly these.

use std::collections::{BTreeMap, BTreeSet};

use super::duration;
use super::flags::{self, Flag};
use super::gates::Gates;
use super::urls::{self, Url};

/// A flag's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Bool,
    Uint,
    Uint64,
    Uint32,
    Int,
    Int64,
    /// Go's spelling on the command line, nanoseconds in the file.
    Duration,
    /// A comma list of URLs, kept sorted and unique. Setting it to nothing leaves it as it is.
    Urls,
    /// Origins with their port, or `*`.
    Origins,
    /// A comma list, kept sorted and unique; a comma list in the file too.
    Hosts,
    /// A comma list, kept sorted and unique; an array in the file.
    Set,
    /// A comma list in the order given; an array in the file.
    List,
    OneOf(&'static [&'static str]),
    AnyOf(&'static [&'static str]),
    Gates,
    /// A flag of old that etcd still accepts, with or without a value, and forgets.
    Ignored,
}

/// A flag's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Bool(bool),
    Uint(u64),
    Int(i64),
    /// Nanoseconds; may be negative.
    Duration(i64),
    Urls(Vec<Url>),
    Words(Vec<String>),
    Gates(Gates),
    Ignored,
}

impl Kind {
    /// Whether the flag may stand without a value.
    pub fn is_switch(self) -> bool {
        matches!(self, Kind::Bool | Kind::Ignored)
    }

    /// The value that the table's default text stands for.
    pub fn default_value(self, text: &str) -> Value {
        let mut value = match self {
            Kind::Urls => Value::Urls(Vec::new()),
            Kind::Origins | Kind::Hosts | Kind::Set | Kind::List | Kind::AnyOf(_) => {
                Value::Words(Vec::new())
            }
            Kind::Gates => Value::Gates(Gates::default()),
            Kind::Ignored => Value::Ignored,
            _ => Value::Text(text.to_owned()),
        };
        if matches!(value, Value::Text(_)) || !text.is_empty() {
            // The table's defaults are fixed, and a test reads every one of them.
            let read = self.set(&mut value, text);
            debug_assert_eq!(read, Ok(()), "default {text:?}");
        }
        value
    }

    /// Sets `value` from the text of a command line or of an environment variable.
    ///
    /// # Errors
    /// Go's text, without the value and the flag's name.
    pub fn set(self, value: &mut Value, text: &str) -> Result<(), String> {
        *value = match self {
            Kind::Text => Value::Text(text.to_owned()),
            Kind::Bool => Value::Bool(parse_bool(text).ok_or("parse error")?),
            Kind::Uint | Kind::Uint64 => Value::Uint(parse_uint(text).map_err(NumberError::flag)?),
            Kind::Uint32 => Value::Uint(
                parse_uint(text)
                    .and_then(|v| u32::try_from(v).map_err(|_| NumberError::Range))
                    .map_err(|e| format!("strconv.ParseUint: parsing {}: {}", quote(text), e.go()))?
                    .into(),
            ),
            Kind::Int | Kind::Int64 => Value::Int(parse_int(text).map_err(NumberError::flag)?),
            Kind::Duration => Value::Duration(duration::parse_ns(text).map_err(|_| "parse error")?),
            Kind::Urls if text.is_empty() => return Ok(()),
            Kind::Urls => Value::Urls(Url::parse_list(text)?),
            Kind::Origins => Value::Words(origins(value, text)?),
            Kind::Hosts | Kind::Set => Value::Words(unique(text)),
            Kind::List => Value::Words(text.split(',').map(str::to_owned).collect()),
            Kind::OneOf(choices) => {
                if !choices.contains(&text) {
                    return Err("invalid value".to_owned());
                }
                Value::Text(text.to_owned())
            }
            Kind::AnyOf(choices) => {
                if let Some(word) = text.split(',').find(|word| !choices.contains(word)) {
                    return Err(format!("invalid value {}", quote(word)));
                }
                Value::Words(unique(text))
            }
            Kind::Gates => {
                let Value::Gates(gates) = value else {
                    return Err("not a set of feature gates".to_owned());
                };
                return gates.set(text);
            }
            Kind::Ignored => Value::Ignored,
        };
        Ok(())
    }
}

/// `*` and nothing are kept beside what was there; a list replaces it.
fn origins(old: &Value, text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() || text == "*" {
        let mut words = match old {
            Value::Words(words) => words.clone(),
            _ => Vec::new(),
        };
        words.push(text.to_owned());
        words.sort();
        words.dedup();
        return Ok(words);
    }
    Ok(urls::texts(&Url::parse_list(text)?))
}

/// The words of a comma list, sorted, none twice.
pub fn unique(text: &str) -> Vec<String> {
    let words: BTreeSet<&str> = text.split(',').collect();
    words.into_iter().map(str::to_owned).collect()
}

/// Every flag's value, and which of them somebody gave.
#[derive(Clone, Debug)]
pub struct Values {
    values: BTreeMap<&'static str, Value>,
    given: BTreeSet<&'static str>,
}

impl Values {
    pub fn defaults() -> Values {
        let values = flags::all()
            .map(|flag| (flag.name, flag.kind.default_value(flag.default)))
            .collect();
        Values {
            values,
            given: BTreeSet::new(),
        }
    }

    /// Sets a flag from its text.
    ///
    /// # Errors
    /// Those of [`Kind::set`].
    pub fn set(&mut self, flag: &'static Flag, text: &str) -> Result<(), String> {
        let value = self.values.entry(flag.name).or_insert(Value::Ignored);
        flag.kind.set(value, text)?;
        self.given.insert(flag.name);
        Ok(())
    }

    /// Sets a flag to a value of its type.
    pub fn put(&mut self, flag: &'static Flag, value: Value) {
        self.values.insert(flag.name, value);
        self.given.insert(flag.name);
    }

    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains(name)
    }

    pub fn get(&self, name: &str) -> &Value {
        self.values.get(name).unwrap_or(&Value::Ignored)
    }

    // A flag's name and type stand in the table; asking for another type is a defect of this
    // module that every start would show, so these have no error to hand on.

    pub fn text(&self, name: &str) -> &str {
        match self.get(name) {
            Value::Text(text) => text,
            other => unreachable!("--{name} is {other:?}, not a text"),
        }
    }

    pub fn bool(&self, name: &str) -> bool {
        match self.get(name) {
            Value::Bool(value) => *value,
            other => unreachable!("--{name} is {other:?}, not a boolean"),
        }
    }

    pub fn uint(&self, name: &str) -> u64 {
        match self.get(name) {
            Value::Uint(value) => *value,
            other => unreachable!("--{name} is {other:?}, not unsigned"),
        }
    }

    pub fn int(&self, name: &str) -> i64 {
        match self.get(name) {
            Value::Int(value) => *value,
            other => unreachable!("--{name} is {other:?}, not an integer"),
        }
    }

    pub fn duration_ns(&self, name: &str) -> i64 {
        match self.get(name) {
            Value::Duration(value) => *value,
            other => unreachable!("--{name} is {other:?}, not a duration"),
        }
    }

    pub fn urls(&self, name: &str) -> &[Url] {
        match self.get(name) {
            Value::Urls(urls) => urls,
            other => unreachable!("--{name} is {other:?}, not URLs"),
        }
    }

    pub fn words(&self, name: &str) -> &[String] {
        match self.get(name) {
            Value::Words(words) => words,
            other => unreachable!("--{name} is {other:?}, not a list"),
        }
    }

    pub fn gates(&self) -> &Gates {
        match self.get("feature-gates") {
            Value::Gates(gates) => gates,
            other => unreachable!("--feature-gates is {other:?}"),
        }
    }
}

/// Why a number was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberError {
    Syntax,
    Range,
}

impl NumberError {
    fn flag(self) -> String {
        match self {
            NumberError::Syntax => "parse error".to_owned(),
            NumberError::Range => "value out of range".to_owned(),
        }
    }

    fn go(self) -> &'static str {
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
