//! The configuration file, YAML or JSON. It is used alone: with it, other flags and the environment
//! are ignored.
//!
//! As in etcd, keys are case-insensitive, the last of equal keys wins, null keeps a default, and
//! durations are nanoseconds. Unlike etcd, unknown keys are named in one warning: a misspelled key
//! is the most common mistake in such a file.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

use super::flags::{self, Flag, Key};
use super::go_syntax::{parse_int, parse_uint, quote};
use super::note::Note;
use super::refusal::Refusal;
use super::value::{Kind, Value, unique};
use super::values::Values;

/// A YAML document, in the order of the file, equal keys kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Reads a file's text over the defaults.
///
/// # Errors
/// etcd's text for invalid YAML, a value of another type, or an invalid URL.
pub fn read(text: &str, notes: &mut Vec<Note>) -> Result<Values, Refusal> {
    let mut values = Values::defaults();
    let entries = match document(text)? {
        Node::Null => Vec::new(),
        Node::Map(entries) => entries,
        other => {
            return Err(mismatch(other.go_type(), "value of type embed.configYAML"));
        }
    };
    let null_section =
        |(key, node): &(String, Node)| key == "peer-transport-security" && *node == Node::Null;
    if entries.iter().any(null_section) {
        return Err(Refusal::Verify(
            "invalid peer-transport-security".to_owned(),
        ));
    }
    let mut unknown = Vec::new();
    apply(&mut values, "", entries, &mut unknown)?;
    if !unknown.is_empty() {
        notes.push(
            Note::warn("the configuration file has keys that etched does not know; ignoring them")
                .with("keys", Json::from(unknown)),
        );
    }
    Ok(values)
}

/// The first document of the text.
fn document(text: &str) -> Result<Node, Refusal> {
    let Some(document) = serde_yaml_ng::Deserializer::from_str(text).next() else {
        return Ok(Node::Null);
    };
    let room = Room(Cell::new(FREE_BYTES + TIMES_LONGER * text.len()));
    room.deserialize(document).map_err(|error| {
        // etcd puts the position before the reason, the crate after it.
        let place = error
            .location()
            .map_or_else(String::new, |at| format!("line {}: ", at.line()));
        Refusal::Verify(format!(
            "error converting YAML to JSON: yaml: {place}{error}"
        ))
    })
}

fn apply(
    values: &mut Values,
    prefix: &str,
    entries: Vec<(String, Node)>,
    unknown: &mut Vec<String>,
) -> Result<(), Refusal> {
    for (key, node) in entries {
        let path = format!("{prefix}{}", key.to_ascii_lowercase());
        if let Some(flag) = flags::all().find(|flag| key_of(flag) == Some(path.as_str())) {
            if node != Node::Null
                && let Some(value) = convert(flag, &path, node, values.get(flag.name))?
            {
                values.put(flag, value);
            }
            continue;
        }
        let inside = format!("{path}.");
        let is_section = flags::all().any(|f| key_of(f).is_some_and(|k| k.starts_with(&inside)));
        match node {
            Node::Map(entries) if is_section => apply(values, &inside, entries, unknown)?,
            Node::Null if is_section => {}
            other if is_section => {
                return Err(mismatch(other.go_type(), section_type(&path)));
            }
            _ => unknown.push(format!("{prefix}{key}")),
        }
    }
    Ok(())
}

fn key_of(flag: &'static Flag) -> Option<&'static str> {
    match flag.key {
        Key::Name => Some(flag.name),
        Key::Path(path) => Some(path),
        Key::None => None,
    }
}

/// The value of a node; none to keep the default.
fn convert(
    flag: &'static Flag,
    path: &str,
    node: Node,
    old: &Value,
) -> Result<Option<Value>, Refusal> {
    let wrong = |node: &Node| {
        let what = format!(
            "struct field {}.{path} of type {}",
            owner(flag, path),
            go_type(flag)
        );
        Err(mismatch(&node.described(flag.kind), &what))
    };
    let value = match (flag.kind, node) {
        (Kind::Bool, node) => match node.as_bool() {
            Some(value) => Value::Bool(value),
            None => return wrong(&node),
        },
        (Kind::Uint | Kind::Uint64 | Kind::Uint32, node) => {
            let limit = if flag.kind == Kind::Uint32 {
                u32::MAX.into()
            } else {
                u64::MAX
            };
            match node.as_uint().filter(|value| *value <= limit) {
                Some(value) => Value::Uint(value),
                None => return wrong(&node),
            }
        }
        (Kind::Int | Kind::Int64, node) => match node.as_int() {
            Some(value) => Value::Int(value),
            None => return wrong(&node),
        },
        (Kind::Duration, node) => match node.as_int() {
            Some(value) => Value::Duration(value),
            None => return wrong(&node),
        },
        (Kind::Set | Kind::List, Node::List(items)) => {
            let mut words = Vec::new();
            for item in items {
                let Node::Text(word) = item else {
                    let what = format!("struct field {}.{path} of type string", owner(flag, path));
                    return Err(mismatch(&item.described(Kind::Text), &what));
                };
                words.push(word);
            }
            if flag.kind == Kind::Set {
                words.sort();
                words.dedup();
            }
            Value::Words(words)
        }
        (Kind::Set | Kind::List, node) => return wrong(&node),
        (_, Node::Text(text)) => return from_text(flag, &text, old),
        (_, node) => return wrong(&node),
    };
    Ok(Some(value))
}

/// Values that are strings in the file too.
fn from_text(flag: &'static Flag, text: &str, old: &Value) -> Result<Option<Value>, Refusal> {
    let mut value = old.clone();
    match flag.kind {
        Kind::Urls | Kind::Origins | Kind::Hosts | Kind::Gates if text.is_empty() => {
            return Ok(None);
        }
        Kind::OneOf(_) if text.is_empty() => return Ok(None),
        // An invalid choice is refused by the later checks, not as a syntax error.
        Kind::Text | Kind::OneOf(_) => value = Value::Text(text.to_owned()),
        Kind::AnyOf(_) => value = Value::Words(unique(text)),
        kind => kind.set(&mut value, text).map_err(|reason| match kind {
            Kind::Urls => Refusal::Plain(format!(
                "unexpected error setting up {}: {reason}",
                flag.name
            )),
            Kind::Gates => Refusal::Verify(reason),
            _ => Refusal::Verify(format!(
                "invalid value {} for {}: {reason}",
                quote(text),
                flag.name
            )),
        })?,
    }
    Ok(Some(value))
}

fn mismatch(found: &str, wanted: &str) -> Refusal {
    Refusal::Verify(format!(
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {found} into Go {wanted}"
    ))
}

/// etcd's message for something that is not a section.
fn section_type(path: &str) -> &'static str {
    match path {
        "socket-options" => {
            "struct field configYAML.Config.socket-options of type transport.SocketOpts"
        }
        "client-transport-security" => {
            "struct field configYAML.configJSON.client-transport-security of type embed.securityConfig"
        }
        "peer-transport-security" => {
            "struct field configYAML.configJSON.peer-transport-security of type embed.securityConfig"
        }
        _ => "struct field configYAML.Config.discovery-config of type v3discovery.DiscoveryConfig",
    }
}

/// The name of the Go struct that etcd's message puts before a key.
fn owner(flag: &Flag, path: &str) -> &'static str {
    let in_sections = [
        ("client-transport-security.", "securityConfig.configJSON"),
        ("peer-transport-security.", "securityConfig.configJSON"),
        ("socket-options.", "SocketOpts.Config"),
        ("discovery-config.client.secure.", "SecureConfig.Config"),
        ("discovery-config.client.auth.", "AuthConfig.Config"),
        ("discovery-config.client.", "ConfigSpec.Config"),
        ("discovery-config.", "DiscoveryConfig.Config"),
        ("listen-metrics-urls", "configYAML.Config"),
    ];
    let found = in_sections.iter().find(|(head, _)| path.starts_with(head));
    match (found, flag.kind) {
        (Some((_, owner)), _) => owner,
        (None, Kind::Urls | Kind::Origins | Kind::Hosts | Kind::Gates) => "configYAML.configJSON",
        (None, _) => "configYAML.Config",
    }
}

fn go_type(flag: &Flag) -> &'static str {
    match flag.kind {
        Kind::Bool => "bool",
        Kind::Uint => "uint",
        Kind::Uint64 => "uint64",
        Kind::Uint32 => "uint32",
        Kind::Int => "int",
        Kind::Int64 => "int64",
        Kind::Duration => "time.Duration",
        Kind::Set | Kind::List => "[]string",
        Kind::AnyOf(_) => "config.V2DeprecationEnum",
        _ => "string",
    }
}

impl Node {
    fn go_type(&self) -> &'static str {
        match self {
            Node::Null => "null",
            Node::Bool(_) => "bool",
            Node::Int(_) | Node::Uint(_) | Node::Float(_) => "number",
            Node::Text(_) => "string",
            Node::List(_) => "array",
            Node::Map(_) => "object",
        }
    }

    /// As Go names it: a number that does not fit a number is shown.
    fn described(&self, wanted: Kind) -> String {
        let numeric = matches!(
            wanted,
            Kind::Uint | Kind::Uint64 | Kind::Uint32 | Kind::Int | Kind::Int64 | Kind::Duration
        );
        match self {
            Node::Int(value) if numeric => format!("number {value}"),
            Node::Uint(value) if numeric => format!("number {value}"),
            Node::Float(value) if numeric => format!("number {}", Json::from(*value)),
            other => other.go_type().to_owned(),
        }
    }

    /// YAML 1.1's words count too, as they do in etcd.
    fn as_bool(&self) -> Option<bool> {
        match self {
            Node::Bool(value) => Some(*value),
            Node::Text(text) => match text.to_ascii_lowercase().as_str() {
                "y" | "yes" | "on" => Some(true),
                "n" | "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    fn as_uint(&self) -> Option<u64> {
        match self {
            Node::Uint(value) => Some(*value),
            Node::Int(value) => u64::try_from(*value).ok(),
            Node::Float(value) if value.fract() == 0.0 && (0.0..1.8e19).contains(value) => {
                Some(*value as u64)
            }
            Node::Text(text) if is_old_number(text) => parse_uint(text).ok(),
            _ => None,
        }
    }

    fn as_int(&self) -> Option<i64> {
        match self {
            Node::Int(value) => Some(*value),
            Node::Uint(value) => i64::try_from(*value).ok(),
            Node::Float(value) if value.fract() == 0.0 && value.abs() < 9.2e18 => {
                Some(*value as i64)
            }
            Node::Text(text) if is_old_number(text) => parse_int(text).ok(),
            _ => None,
        }
    }
}

/// YAML 1.1 knows `010` and `1_000` as numbers, the crate's YAML 1.2 as texts.
fn is_old_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && (text.starts_with('0') || text.contains('_'))
}

/// The memory that a document may use, per byte of it and in total: each node costs a byte and its
/// text. Without aliases no document comes near it; with them, a few hundred bytes can expand
/// beyond the memory.
const TIMES_LONGER: usize = 8;
const FREE_BYTES: usize = 16 << 10;

/// Expands nodes as long as there is room for them.
struct Room(Cell<usize>);

impl Room {
    fn take<E: Error>(&self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes);
        // As etcd's parser words it.
        let left = left.ok_or_else(|| E::custom("document contains excessive aliasing"))?;
        self.0.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &Room {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.take(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Room {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Uint(value))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Float(value as f64))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        Ok(Node::Float(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        self.take(value.len())?;
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = entries.next_entry_seed(self, self)? {
            let key = match key {
                Node::Text(key) => key,
                Node::Null => "null".to_owned(),
                Node::Bool(key) => key.to_string(),
                Node::Int(key) => key.to_string(),
                Node::Uint(key) => key.to_string(),
                Node::Float(key) => key.to_string(),
                Node::List(_) | Node::Map(_) => {
                    return Err(A::Error::custom("invalid map key"));
                }
            };
            map.push((key, value));
        }
        Ok(Node::Map(map))
    }
}
