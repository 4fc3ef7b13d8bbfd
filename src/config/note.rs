//! Log lines from before the log is set up.

use serde_json::Value as Json;

use super::log::Level;

/// A log line to be written once the log is set up.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub level: Level,
    pub msg: String,
    pub fields: Vec<(&'static str, Json)>,
}

impl Note {
    pub fn new(level: Level, msg: impl Into<String>) -> Note {
        Note {
            level,
            msg: msg.into(),
            fields: Vec::new(),
        }
    }

    pub fn info(msg: impl Into<String>) -> Note {
        Note::new(Level::Info, msg)
    }

    pub fn warn(msg: impl Into<String>) -> Note {
        Note::new(Level::Warn, msg)
    }

    pub fn with(mut self, key: &'static str, value: impl Into<Json>) -> Note {
        self.fields.push((key, value.into()));
        self
    }
}
