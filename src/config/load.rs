//! [`load`]: from a command line to a [`Config`], or to the end of the program.
//!
//! It is pure: what it needs of the machine is passed in as [`Surroundings`], and what it would
//! print or log is returned in [`Exit`] or as [`Note`]s, because there is no log yet.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use super::commands;
use super::exit::Exit;
use super::log::LogFormat;
use super::machine::Surroundings;
use super::note::Note;
use super::parse::{self, CommandLine};
use super::refusal::Refusal;
use super::settings::Config;
use super::values::{Source, Values};
use super::{env, file, help, validate};

/// A configuration, and the log lines about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub notes: Vec<Note>,
}

/// Reads the configuration. `args` begins with the program's own name.
///
/// # Errors
/// The exit of the program: a refusal, or after help and version.
pub fn load(
    args: impl IntoIterator<Item = OsString>,
    around: &Surroundings<'_>,
) -> Result<Loaded, Box<Exit>> {
    let mut notes = Vec::new();
    let mut format = LogFormat::Json;
    let refused = |refusal: &Refusal, notes, format| Exit::refused(refusal, notes, format);
    let args = match texts(args) {
        Ok(args) => args,
        Err(refusal) => return Err(refused(&refusal, notes, format)),
    };
    let words = args.get(1..).unwrap_or_default();
    let (values, stray) = match parse::command_line(words) {
        Ok(CommandLine::Flags { values, stray }) => (values, stray),
        Ok(CommandLine::Help) => return Err(Exit::printed(help::listing(), help::USAGE)),
        Err(line) => return Err(refused(&Refusal::Usage(line), notes, format)),
    };
    if let Some(word) = stray {
        // Only a first word can have been meant as a command.
        let commands = match words.first() == Some(&word) {
            true => commands::names(),
            false => Vec::new(),
        };
        let refusal = Refusal::Stray { word, commands };
        return Err(refused(&refusal, notes, format));
    }
    if values.bool("version") {
        return Err(Exit::printed(help::version(), ""));
    }
    let config = gather(values, around, &mut notes).and_then(|(values, from)| {
        notes.push(Note::info("Running: ").with("args", args.clone()));
        format = validate::log_format(&values).unwrap_or(format);
        validate::validate(&values, from, around, &mut notes)
    });
    match config {
        Ok(config) => Ok(Loaded { config, notes }),
        Err(refusal) => Err(refused(&refusal, notes, format)),
    }
}

/// Adds the environment to the command line, or replaces both by the file.
fn gather(
    mut values: Values,
    around: &Surroundings<'_>,
    notes: &mut Vec<Note>,
) -> Result<(Values, Source), Refusal> {
    let env = env_texts(&around.env)?;
    let mut path = values.text("config-file");
    if path.is_empty() {
        path = env::find(&env, &env::variable("config-file")).unwrap_or_default();
    }
    if path.is_empty() {
        env::overlay(&mut values, &env, notes)?;
        return Ok((values, Source::CommandLine));
    }
    let text = (around.read_file)(Path::new(path))
        .map_err(|error| Refusal::Verify(unreadable(path, &error)))?;
    let values = file::read(&text, notes)?;
    notes.push(
        Note::info("loaded server configuration, other configuration command line flags and environment variables will be ignored if provided")
            .with("path", path),
    );
    Ok((values, Source::File))
}

/// The error for an unreadable file, in Go's words.
fn unreadable(path: &str, error: &io::Error) -> String {
    let verb = match error.kind() {
        io::ErrorKind::IsADirectory => "read",
        _ => "open",
    };
    format!("{verb} {path}: {}", os_reason(error))
}

/// The operating system's error text in Go's form: lower case, without the number.
pub fn os_reason(error: &io::Error) -> String {
    let text = match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        _ => error.to_string(),
    };
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

fn texts(args: impl IntoIterator<Item = OsString>) -> Result<Vec<String>, Refusal> {
    args.into_iter()
        .enumerate()
        .map(|(at, arg)| {
            arg.into_string()
                .map_err(|arg| Refusal::Usage(format!("argument {at} is not valid UTF-8: {arg:?}")))
        })
        .collect()
}

/// The variables of etched; others are not read.
fn env_texts(env: &[(OsString, OsString)]) -> Result<Vec<(String, String)>, Refusal> {
    let mut found = Vec::new();
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with("ETCD_")) else {
            continue;
        };
        let Some(value) = value.to_str() else {
            return Err(Refusal::Verify(format!(
                "invalid value {value:?} for {name}: not valid UTF-8"
            )));
        };
        found.push((name.to_owned(), value.to_owned()));
    }
    Ok(found)
}
