//! The texts of `--help`, `--version` and of a mistake on the command line.

use clap::{Arg, Command};

use super::flags::{self, FlagSupport};
use super::gates::Gates;
use super::machine::go_arch;
use super::value::Kind;
use crate::types::{ETCD_VERSION, GIT_SHA, RUST_VERSION, VERSION};

/// Printed to stderr, after the line about a mistake or before the list of flags.
pub const USAGE: &str = "\
Usage:

  etched [flags]
    Start a member.

  etched --version | version
    Print the versions and exit.

  etched -h | --help
    List the flags and exit.

  etched help
    List the commands and exit.

  etched --config-file FILE
    Read the configuration from FILE (YAML or JSON); other flags and the
    environment are ignored then. Durations in it are whole nanoseconds.

Each flag can be set by the environment too: ETCD_ and its name in capitals,
with _ for -.
";

/// Features of etcd with flags or commands that etched lacks.
pub const NOT_THERE: &str = "\
Not in etched: the flag --experimental-leasing-prefix of the command grpc-proxy.";

/// The flags, for stdout.
pub fn listing() -> String {
    let mut command = Command::new("etched")
        .help_template("{all-args}")
        .disable_help_flag(true)
        .next_line_help(true);
    for section in flags::SECTIONS.iter().filter(|s| !s.title.is_empty()) {
        for flag in section.flags {
            let mut usage = flag.usage.to_owned();
            match flag.state {
                FlagSupport::Built => {}
                FlagSupport::NoEffect(why) => usage.push_str(&format!(" [no effect: {why}]")),
            }
            if flag.kind == Kind::Gates {
                usage = format!("{usage}\n{}", Gates::help());
            }
            let mut arg = Arg::new(flag.name)
                .long(flag.name)
                .value_name(placeholder(flag.kind))
                .help(usage)
                .help_heading(section.title);
            if !flag.default.is_empty() {
                arg = arg.default_value(flag.default);
            }
            command = command.arg(arg);
        }
    }
    let flags = command.render_help().to_string();
    format!("{}\n\n{NOT_THERE}\n", flags.trim_end())
}

/// What stands for a value in a text about its flag.
pub fn placeholder(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "BOOL",
        Kind::Uint | Kind::Uint64 | Kind::Uint32 | Kind::Int | Kind::Int64 => "NUMBER",
        Kind::Duration => "DURATION",
        Kind::Urls | Kind::Origins => "URLS",
        Kind::Hosts | Kind::Set | Kind::List => "LIST",
        Kind::OneOf(_) | Kind::AnyOf(_) => "WORD",
        Kind::Gates => "GATES",
        Kind::Text | Kind::Ignored => "TEXT",
    }
}

/// The versions: etcd's lines first, for scripts, then etched's own. The line of etcd's Go version
/// shows etched's compiler.
pub fn version() -> String {
    let (os, arch) = (std::env::consts::OS, go_arch());
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: {GIT_SHA}\nGo Version: none (rustc {RUST_VERSION})\nGo OS/Arch: {os}/{arch}\netched Version: {VERSION}\n"
    )
}
