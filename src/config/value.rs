//! The types that a flag's value can have, and how each is read from the command line or the
//! environment: Go's number, boolean and duration syntax with Go's error texts, because scripts
//! and operators know exactly these.

use std::collections::BTreeSet;

use super::duration;
use super::gates::Gates;
use super::go_syntax::{NumberError, parse_bool, parse_int, parse_uint, quote};
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
