//! How the log is written.

use std::borrow::Cow;
use std::path::PathBuf;

use super::rotation::Rotation;

/// The name of systemd's journal among the outputs.
pub const JOURNAL: &str = "systemd/journal";

/// Where the log goes, in what form, from which level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    pub level: Level,
    pub format: LogFormat,
    /// Empty: nowhere.
    pub outputs: Vec<LogOutput>,
    /// Of the file among them, of which there is one then.
    pub rotation: Option<Rotation>,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            level: Level::Info,
            format: LogFormat::Json,
            outputs: vec![LogOutput::Stderr],
            rotation: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    Stderr,
    Stdout,
    /// Systemd's; alone.
    Journal,
    File(PathBuf),
}

impl LogOutput {
    /// As the flag has it.
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            LogOutput::Stderr => "stderr".into(),
            LogOutput::Stdout => "stdout".into(),
            LogOutput::Journal => JOURNAL.into(),
            LogOutput::File(path) => path.to_string_lossy(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Console,
}

impl LogFormat {
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Json => "json",
            LogFormat::Console => "console",
        }
    }
}

/// The levels of etcd's log, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
    Dpanic,
    Panic,
    Fatal,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
            Level::Dpanic => "dpanic",
            Level::Panic => "panic",
            Level::Fatal => "fatal",
        }
    }

    /// A level from its name in any case; nothing means info.
    pub fn parse(name: &str) -> Option<Level> {
        Some(match name.to_ascii_lowercase().as_str() {
            "debug" => Level::Debug,
            "info" | "" => Level::Info,
            "warn" | "warning" => Level::Warn,
            "error" => Level::Error,
            "dpanic" => Level::Dpanic,
            "panic" => Level::Panic,
            "fatal" => Level::Fatal,
            _ => return None,
        })
    }
}
