//! The subcommands. `etched` alone or with flags is a member, as `etcd` is, and its flags have
//! Go's syntax (see `parse`); a first word that names a command is read by clap, help and errors
//! included.
//!
//! A command is added by a line in `program` and a [`Command`], which `main` carries out.

use std::ffi::OsString;

use super::exit::Exit;
use super::help;
use super::log::LogFormat;

/// What a command line asks for instead of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print the versions.
    Version,
}

fn program() -> clap::Command {
    clap::Command::new("etched")
        .about("A server that speaks the etcd v3 API.")
        .override_usage("etched [FLAGS]\n       etched <COMMAND>")
        .after_help(format!(
            "Without a command etched starts a member; `etched --help` lists its flags.\n\n{}",
            help::NOT_THERE
        ))
        .subcommand_required(true)
        .subcommand(clap::Command::new("version").about("Print the versions and exit"))
}

/// The names of the commands.
pub fn names() -> Vec<String> {
    let program = program();
    let names = program.get_subcommands().map(clap::Command::get_name);
    names.chain(["help"]).map(str::to_owned).collect()
}

/// Reads a command line whose first word is a command's name; none for a member's. `args` begins
/// with the program's own name.
///
/// # Errors
/// The exit that the program should take: help that was asked for, or a mistake.
pub fn command(args: &[OsString]) -> Option<Result<Command, Box<Exit>>> {
    let first = args.get(1)?.to_str()?;
    if !names().iter().any(|name| name == first) {
        return None;
    }
    Some(match program().try_get_matches_from(args) {
        // It is the only one; clap let nothing else pass.
        Ok(_) => Ok(Command::Version),
        Err(error) => Err(exit(&error)),
    })
}

fn exit(error: &clap::Error) -> Box<Exit> {
    let text = error.render().to_string();
    let (stdout, stderr) = match error.use_stderr() {
        true => (String::new(), text),
        false => (text, String::new()),
    };
    Box::new(Exit {
        code: u8::try_from(error.exit_code()).unwrap_or(1),
        stdout,
        stderr,
        notes: Vec::new(),
        format: LogFormat::Json,
    })
}
