//! The command line, in Go's syntax: `-x` is `--x`, a value follows after `=` or as the next word,
//! a boolean takes one only after `=`, `--` ends the flags, and so does the first other word.

use super::flags;
use super::go_syntax::quote;
use super::values::Values;

/// The contents of a command line.
#[derive(Debug)]
pub enum CommandLine {
    /// `-h` or `--help` came up before any mistake.
    Help,
    Flags {
        values: Values,
        /// The first word that is not a flag.
        stray: Option<String>,
    },
}

/// Reads the words after the program's name. The last occurrence of a flag wins.
///
/// # Errors
/// The line that Go's flag package prints before the usage text.
pub fn command_line(words: &[String]) -> Result<CommandLine, String> {
    let mut values = Values::defaults();
    let mut words = words.iter();
    let mut stray = None;
    while let Some(word) = words.next() {
        if word == "--" {
            stray = words.next().cloned();
            break;
        }
        let Some(body) = word.strip_prefix('-').filter(|body| !body.is_empty()) else {
            stray = Some(word.clone());
            break;
        };
        let body = body.strip_prefix('-').unwrap_or(body);
        if body.is_empty() || body.starts_with(['-', '=']) {
            return Err(format!("bad flag syntax: {word}"));
        }
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        let Some(flag) = flags::find(name) else {
            if name == "help" || name == "h" {
                return Ok(CommandLine::Help);
            }
            return Err(format!("flag provided but not defined: -{name}"));
        };
        if flag.kind.is_switch() {
            let value = value.unwrap_or("true");
            values.set(flag, value).map_err(|reason| {
                format!(
                    "invalid boolean value {} for -{name}: {reason}",
                    quote(value)
                )
            })?;
            continue;
        }
        let Some(value) = value.or_else(|| words.next().map(String::as_str)) else {
            return Err(format!("flag needs an argument: -{name}"));
        };
        values.set(flag, value).map_err(|reason| {
            format!("invalid value {} for flag -{name}: {reason}", quote(value))
        })?;
    }
    Ok(CommandLine::Flags { values, stray })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[&str]) -> Result<CommandLine, String> {
        let words: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        command_line(&words)
    }

    #[test]
    fn reads_go_syntax() {
        let Ok(CommandLine::Flags { values, stray }) = read(&[
            "-name",
            "a",
            "--name=b=c",
            "-pre-vote=f",
            "--v",
            "-wal-dir",
            "--x",
            "--",
            "-name",
        ]) else {
            panic!("refused");
        };
        assert_eq!(values.text("name"), "b=c");
        assert_eq!(values.text("wal-dir"), "--x");
        assert!(!values.bool("pre-vote"));
        assert_eq!(stray.as_deref(), Some("-name"));
        assert!(values.is_given("name") && !values.is_given("data-dir"));
    }

    #[test]
    fn help_counts_until_a_mistake() {
        assert!(matches!(read(&["-h", "--bogus"]), Ok(CommandLine::Help)));
        assert!(matches!(read(&["--help=no"]), Ok(CommandLine::Help)));
        assert!(read(&["--bogus", "-h"]).is_err());
    }
}
