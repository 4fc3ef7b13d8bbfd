//! The commands for the directories of stopped members, and for etcd's snapshot files.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};

/// What is done, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offline {
    /// A data directory; for `Status` it may be etcd's snapshot file.
    pub path: PathBuf,
    pub wal_dir: Option<PathBuf>,
    pub task: Task,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Say what is in it.
    Status(Format),
    /// Read all of it and say what is wrong.
    Check,
    /// Give back the room of what is no longer there.
    Compact,
    /// Print the entries of the raft log from one index to another, both included.
    Log { from: u64, to: u64 },
}

/// How a status is printed: etcdutl's formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Simple,
    Table,
    Json,
    Fields,
}

const FORMATS: [(&str, Format); 4] = [
    ("simple", Format::Simple),
    ("table", Format::Table),
    ("json", Format::Json),
    ("fields", Format::Fields),
];

/// Adds the commands to the program's.
pub fn add(program: Command) -> Command {
    let wal_dir = || {
        Arg::new("wal-dir")
            .long("wal-dir")
            .value_name("DIR")
            .value_parser(value_parser!(PathBuf))
            .help("The member's --wal-dir, if it had one")
    };
    let on = |name: &'static str, path: &'static str, about: &'static str| {
        let path = Arg::new("path")
            .required(true)
            .value_name(path)
            .value_parser(value_parser!(PathBuf));
        Command::new(name).about(about).arg(path).arg(wal_dir())
    };
    let index = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("INDEX")
            .value_parser(value_parser!(u64))
            .help(help)
    };
    program
        .subcommand(
            on(
                "status",
                "DIR|SNAPSHOT",
                "Print revision, keys, size and hash of a stopped member's data directory or of etcd's snapshot file",
            )
            .after_help(
                "The hash of a snapshot file is that of `etcdutl snapshot status`, that of a directory is the \
                 one of `etcdctl endpoint hashkv`. Nothing is changed.",
            )
            .arg(
                Arg::new("write-out")
                    .short('w')
                    .long("write-out")
                    .value_parser(FORMATS.map(|(name, _)| name))
                    .default_value("simple")
                    .help("Output format"),
            ),
        )
        .subcommand(
            on(
                "check",
                "DIR",
                "Read all of a stopped member's data directory, and say what is wrong in it",
            )
            .after_help("Nothing is changed. The exit status is 1 where something is wrong."),
        )
        .subcommand(on(
            "compact",
            "DIR",
            "Free the space of what was deleted and compacted in a stopped member's data directory",
        ))
        .subcommand(
            on(
                "log",
                "DIR",
                "Print the raft log's entries of a stopped member as lines of JSON",
            )
            .after_help("Entries that are not needed any more are shown as long as their file is there. Values \
                 and passwords are not shown. Nothing is changed.")
            .arg(index("from", "The first entry to print"))
            .arg(index("to", "The last entry to print")),
        )
}

impl Offline {
    /// Reads one of these commands; none for another.
    pub fn of(name: &str, matches: &ArgMatches) -> Option<Self> {
        let index = |name: &str| matches.get_one::<u64>(name).copied();
        let task = match name {
            "status" => Task::Status(format(matches.get_one::<String>("write-out")?)?),
            "check" => Task::Check,
            "compact" => Task::Compact,
            "log" => Task::Log {
                from: index("from").unwrap_or_default(),
                to: index("to").unwrap_or(u64::MAX),
            },
            _ => return None,
        };
        Some(Self {
            path: matches.get_one::<PathBuf>("path")?.clone(),
            wal_dir: matches.get_one::<PathBuf>("wal-dir").cloned(),
            task,
        })
    }
}

fn format(word: &str) -> Option<Format> {
    let found = FORMATS.iter().find(|(name, _)| *name == word);
    found.map(|(_, format)| *format)
}

#[cfg(test)]
mod tests {
    use super::super::{Command, command};
    use super::*;

    fn read(line: &str) -> Option<Offline> {
        let args: Vec<_> = line.split(' ').map(Into::into).collect();
        match command(&args) {
            Some(Ok(Command::Offline(offline))) => Some(offline),
            _ => None,
        }
    }

    #[test]
    fn the_commands_are_read() {
        for (line, task) in [
            ("etched status dir", Some(Task::Status(Format::Simple))),
            (
                "etched status -w json dir",
                Some(Task::Status(Format::Json)),
            ),
            (
                "etched status dir --write-out=table",
                Some(Task::Status(Format::Table)),
            ),
            ("etched status -w xml dir", None),
            ("etched check dir", Some(Task::Check)),
            ("etched check", None),
            ("etched compact dir", Some(Task::Compact)),
            (
                "etched log dir",
                Some(Task::Log {
                    from: 0,
                    to: u64::MAX,
                }),
            ),
            (
                "etched log dir --from 3 --to 9",
                Some(Task::Log { from: 3, to: 9 }),
            ),
            ("etched log dir --from x", None),
        ] {
            let expected = task.map(|task| Offline {
                path: "dir".into(),
                wal_dir: None,
                task,
            });
            assert_eq!(read(line), expected, "{line}");
        }
        let elsewhere = read("etched check dir --wal-dir other").expect("reads");
        assert_eq!(elsewhere.wal_dir, Some("other".into()));
    }
}
