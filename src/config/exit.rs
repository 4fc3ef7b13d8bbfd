//! Ends of the program before a member starts.

use super::help;
use super::log::{Level, LogFormat};
use super::note::Note;
use super::refusal::Refusal;

/// The end of the program before it started: write the texts, log the notes, exit.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    pub code: u8,
    pub stdout: String,
    pub stderr: String,
    /// After `stderr`, on stderr too.
    pub notes: Vec<Note>,
    pub format: LogFormat,
}

impl Exit {
    /// With status 0, for what was asked for and is printed.
    pub fn printed(stdout: String, stderr: &str) -> Box<Exit> {
        Box::new(Exit {
            code: 0,
            stdout,
            stderr: stderr.to_owned(),
            notes: Vec::new(),
            format: LogFormat::Json,
        })
    }

    /// The exit for a refusal. What was noted before it counts if it warns.
    pub fn refused(refusal: &Refusal, notes: Vec<Note>, format: LogFormat) -> Box<Exit> {
        let stderr = match refusal {
            Refusal::Usage(line) => format!("{line}\n{}", help::USAGE),
            Refusal::Plain(line) => format!("{line}\n"),
            _ => String::new(),
        };
        let mut notes: Vec<Note> = notes
            .into_iter()
            .filter(|note| note.level >= Level::Warn)
            .collect();
        notes.extend(refusal.notes());
        Box::new(Exit {
            code: refusal.exit_code(),
            stdout: String::new(),
            stderr,
            notes,
            format,
        })
    }
}
