//! docs/FLAGS.md: the table of flags as a document. It is made of the table and compared with it,
//! so that it says what this program does and nothing else.

use std::fmt::Write;
use std::path::PathBuf;

use super::super::env::variable;
use super::super::flags::{Flag, FlagSupport, Key, SECTIONS};
use super::super::gates::Gates;
use super::super::help::placeholder;
use super::super::value::Kind;

const RENEW: &str = "cargo test --lib -- --ignored write_docs_flags";

const HEAD: &str = "\
# Flags

Every flag of etcd v3.7.3 and etched's own. This page is made of the table that the program reads
(`src/config/flags.rs`) and compared with it by a test; `etched --help` prints the same.

A flag is set in one of three ways:

- **on the command line**, as `--name=value`, `--name value`, or with one dash. A BOOL may stand
  without a value, and then means `true`; with one it is written `--name=false`;
- **by its variable in the environment**. An empty variable counts as absent. One whose flag is on
  the command line too is refused; one that begins with `ETCD_` and is none of these gets a warning;
- **in a file**, YAML or JSON, that `--config-file` names. Its keys are the names of the flags
  without dashes in front; where the key is another, it is given. With a file all other flags and
  the environment are ignored. A DURATION is a whole number of nanoseconds there; keys that are not
  known get a warning.

| value | |
|---|---|
| BOOL | `true` or `false`, or what else Go takes for them: `1`, `0`, `T`, `False` |
| NUMBER | decimal, or with `0x`, `0o` or `0b` before it |
| DURATION | `1h30m`, `250ms`: numbers with `h`, `m`, `s`, `ms`, `us` or `ns` |
| LIST, URLS | separated by commas; in the file an array where etcd has one |
| WORD | one of those given |

An unknown flag, or a value that is none of its kind, ends the program with status 2 and the usage;
any other invalid value with status 1 and one line that names it. Of the flags that have no effect
here each says why; one that is set is also named in the log at the start (`the flag has no effect in
etched`).
";

const FORGOTTEN: &str = "
## Flags of old

etcd still takes these of earlier releases, with or without a value, and does nothing with them, and
so does etched: ";

/// A text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn default(flag: &Flag) -> String {
    match flag.default {
        "" => "none".to_owned(),
        default => format!("`{}`", cell(default)),
    }
}

/// What a flag does, whose it is, and what becomes of it here.
fn description(flag: &Flag) -> String {
    let mut text = flag.usage.trim_end_matches(':').to_owned();
    if flag.kind == Kind::Gates {
        text.push_str("; see [Feature gates](#feature-gates).");
    }
    if let Kind::OneOf(words) | Kind::AnyOf(words) = flag.kind {
        write!(text, " One of `{}`.", words.join("`, `")).expect("a text grows");
    }
    match flag.key {
        Key::Name => {}
        Key::Path(path) => {
            write!(text, " In a file: `{path}`.").expect("a text grows");
        }
        Key::None => text.push_str(" Not in a file."),
    }
    let (mark, why) = match flag.state {
        FlagSupport::Built => ("", ""),
        FlagSupport::NoEffect(why) => ("Accepted without effect", why),
    };
    if !mark.is_empty() {
        write!(text, " **{mark}:** {why}.").expect("a text grows");
    }
    if flag.is_own {
        text.push_str(" **etched's own:** etcd has no such flag.");
    }
    cell(&text)
}

fn row(flag: &Flag) -> String {
    let variable = match flag.name {
        // etcd never takes it from there.
        "version" => "none".to_owned(),
        name => format!("`{}`", variable(name)),
    };
    format!(
        "| `--{}` {} | {variable} | {} | {} |\n",
        flag.name,
        placeholder(flag.kind),
        default(flag),
        description(flag)
    )
}

fn gates() -> String {
    let mut text = "
## Feature gates

`--feature-gates=Name=true,Name=false`. `AllAlpha` and `AllBeta` switch those of a stage that are not
named themselves. A gate that etcd does not know is refused.

| gate | stage | default | |
|---|---|---|---|
"
    .to_owned();
    for (name, stage, default, no_effect) in Gates::documented() {
        let remark = match no_effect {
            Some(why) => format!("**Without effect:** {}.", cell(why)),
            None => String::new(),
        };
        writeln!(text, "| `{name}` | {stage} | {default} | {remark} |").expect("a text grows");
    }
    text
}

/// The whole document.
fn document() -> String {
    let mut text = HEAD.to_owned();
    for section in SECTIONS {
        if section.title.is_empty() {
            let names: Vec<String> = section
                .flags
                .iter()
                .map(|flag| format!("`--{}`", flag.name))
                .collect();
            text.push_str(&gates());
            writeln!(text, "{FORGOTTEN}{}.", names.join(", ")).expect("a text grows");
            continue;
        }
        write!(
            text,
            "\n## {}\n\n| flag | variable | default | |\n|---|---|---|---|\n",
            section.title
        )
        .expect("a text grows");
        for flag in section.flags {
            text.push_str(&row(flag));
        }
    }
    text
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/FLAGS.md")
}

#[test]
fn docs_flags_is_the_table() {
    let written = std::fs::read_to_string(path()).unwrap_or_default();
    let made = document();
    let differs = made.lines().zip(written.lines()).find(|(a, b)| a != b);
    assert!(
        made == written,
        "docs/FLAGS.md is not the table of flags: {differs:?}; renew it by\n    {RENEW}"
    );
}

/// Every flag is there once, and what has no effect says so.
#[test]
fn every_flag_is_in_the_document() {
    let made = document();
    for flag in SECTIONS.iter().flat_map(|section| section.flags) {
        let named = made
            .matches(&format!("`--{}`", flag.name))
            .count()
            .saturating_sub(usize::from(flag.name == "config-file"));
        assert_eq!(named, 1, "{}", flag.name);
        if let FlagSupport::NoEffect(why) = flag.state {
            assert!(row(flag).contains(&format!(":** {why}.")), "{}", flag.name);
        }
    }
    let own: Vec<&str> = SECTIONS
        .iter()
        .flat_map(|section| section.flags)
        .filter(|flag| flag.is_own)
        .map(|flag| flag.name)
        .collect();
    assert_eq!(made.matches("**etched's own:**").count(), own.len());
}

#[test]
#[ignore = "writes docs/FLAGS.md"]
fn write_docs_flags() {
    std::fs::write(path(), document()).expect("docs/FLAGS.md is written");
}
