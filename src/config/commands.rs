//! The subcommands. `etched` alone or with flags is a member, as `etcd` is, and its flags have
//! Go's syntax (see `parse`); a first word that names a command is read by clap, help and errors
//! included.
//!
//! A command is added by a line in `program` and a [`Command`], which `main` carries out.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches};

use super::exit::Exit;
use super::help;
use super::log::LogFormat;
use super::offline::{self, Offline};
use super::proxies::{self, Proxy};
use super::refusal::Refusal;

/// What a command line asks for instead of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print the versions.
    Version,
    Restore(Restore),
    /// Look at, or work on, what a stopped member left.
    Offline(Offline),
    Export(Export),
    /// Stand before a cluster.
    Proxy(Box<Proxy>),
}

/// Make a new member from etcd's snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    pub snapshot: PathBuf,
    /// The new member's flags, as a member takes them.
    pub member: Vec<OsString>,
    pub bump_revision: i64,
    pub mark_compacted: bool,
    pub skip_hash_check: bool,
}

/// Make an etcd's directory of a stopped member's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The member's flags, as a member takes them.
    pub member: Vec<OsString>,
    pub to: PathBuf,
}

/// The flags of `restore` that are those of the member that it makes.
const MEMBER_FLAGS: [(&str, &str); 5] = [
    (
        "data-dir",
        "Directory of the new member, which must not hold anything [default: NAME.etcd]",
    ),
    ("name", "Name of the new member [default: default]"),
    (
        "initial-cluster",
        "Members of the new cluster, NAME=URL and so on [default: default=http://localhost:2380]",
    ),
    (
        "initial-cluster-token",
        "Token of the new cluster [default: etcd-cluster]",
    ),
    (
        "initial-advertise-peer-urls",
        "Peer URLs of the new member [default: http://localhost:2380]",
    ),
];

fn restore_command() -> clap::Command {
    let member = MEMBER_FLAGS.map(|(name, help)| Arg::new(name).long(name).help(help));
    clap::Command::new("restore")
        .about("Make the data directory of a new member from etcd's snapshot file, of etcd or etched")
        .after_help(
            "Each member of a new cluster is made from the same snapshot, with its own --name. Clients \
             that watched the old cluster must not meet its revisions again: skip more than were \
             written since the snapshot with --bump-revision, and end their watches with \
             --mark-compacted.",
        )
        .arg(
            Arg::new("snapshot")
                .required(true)
                .value_name("SNAPSHOT")
                .value_parser(clap::value_parser!(PathBuf))
                .help("What `etcdctl snapshot save` wrote, or member/snap/db of a stopped etcd"),
        )
        .args(member)
        .arg(
            Arg::new("bump-revision")
                .long("bump-revision")
                .value_parser(clap::value_parser!(i64).range(0..))
                .default_value("0")
                .help("How many revisions to skip"),
        )
        .arg(flag("mark-compacted", "Compact to the newest revision, the skipped ones included"))
        .arg(flag("skip-hash-check", "Take a file without a hash, or with another one"))
}

fn export_command() -> clap::Command {
    let path = |name, place, help| {
        let parser = clap::value_parser!(PathBuf);
        Arg::new(name)
            .value_name(place)
            .value_parser(parser)
            .help(help)
    };
    clap::Command::new("export")
        .about("Make an etcd's data directory of a stopped member, with which an etcd continues")
        .arg(
            path(
                "dir",
                "DIR",
                "The member's --data-dir, which stays the member's",
            )
            .required(true),
        )
        .arg(
            path(
                "to",
                "DIR",
                "The new directory, which must not hold anything",
            )
            .long("to")
            .required(true),
        )
        .arg(path("wal-dir", "DIR", "The member's --wal-dir, if it has one").long("wal-dir"))
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .action(ArgAction::SetTrue)
}

impl Restore {
    fn of(matches: &ArgMatches) -> Self {
        let text = |name: &str| matches.get_one::<String>(name);
        let member = MEMBER_FLAGS.iter().filter_map(|(name, _)| {
            let value = text(name)?;
            Some(OsString::from(format!("--{name}={value}")))
        });
        Self {
            snapshot: matches
                .get_one::<PathBuf>("snapshot")
                .cloned()
                .unwrap_or_default(),
            member: member.collect(),
            bump_revision: matches
                .get_one::<i64>("bump-revision")
                .copied()
                .unwrap_or_default(),
            mark_compacted: matches.get_flag("mark-compacted"),
            skip_hash_check: matches.get_flag("skip-hash-check"),
        }
    }
}

impl Export {
    fn of(matches: &ArgMatches) -> Self {
        let path = |name: &str| matches.get_one::<PathBuf>(name);
        let flag = |flag: &str, path: &PathBuf| {
            let mut word = OsString::from(format!("--{flag}="));
            word.push(path);
            word
        };
        let data_dir = path("dir").map(|path| flag("data-dir", path));
        let wal_dir = path("wal-dir").map(|path| flag("wal-dir", path));
        Self {
            member: data_dir.into_iter().chain(wal_dir).collect(),
            to: path("to").cloned().unwrap_or_default(),
        }
    }
}

fn program() -> clap::Command {
    let program = clap::Command::new("etched")
        .about("A server that speaks the etcd v3 API.")
        .override_usage("etched [FLAGS]\n       etched <COMMAND>")
        .after_help(format!(
            "Without a command etched starts a member; `etched --help` lists its flags.\n\n{}",
            help::NOT_THERE
        ))
        .subcommand_required(true)
        .subcommand(restore_command())
        .subcommand(export_command());
    proxies::add(offline::add(program))
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
        Ok(matches) => match matches.subcommand() {
            Some(("restore", matches)) => Ok(Command::Restore(Restore::of(matches))),
            Some(("export", matches)) => Ok(Command::Export(Export::of(matches))),
            Some((name, matches)) => match Proxy::of(name, matches) {
                Some(Ok(proxy)) => Ok(Command::Proxy(Box::new(proxy))),
                Some(Err(line)) => Err(Exit::refused(
                    &Refusal::Plain(line),
                    Vec::new(),
                    LogFormat::Json,
                )),
                None => Ok(match Offline::of(name, matches) {
                    Some(offline) => Command::Offline(offline),
                    // clap let nothing else pass.
                    None => Command::Version,
                }),
            },
            None => Ok(Command::Version),
        },
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
