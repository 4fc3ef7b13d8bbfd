//! The values of all flags, as far as command line, environment or file set them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::flags::{self, Flag};
use super::gates::Gates;
use super::urls::Url;
use super::value::Value;

/// The source of values: a file does not show which flags were set, only which differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    CommandLine,
    File,
}

/// The values of all flags, and which of them were set.
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

    // Names and types of flags are fixed in the table; a mismatch is a bug that every start would
    // show, so it is no error to return.

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

    /// A duration above zero, else none.
    pub fn positive(&self, name: &str) -> Option<Duration> {
        let ns = u64::try_from(self.duration_ns(name)).ok()?;
        (ns > 0).then(|| Duration::from_nanos(ns))
    }

    /// A duration; one below zero counts as none at all.
    pub fn time(&self, name: &str) -> Duration {
        self.positive(name).unwrap_or_default()
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
