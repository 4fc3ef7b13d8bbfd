//! Plays scripts: a line that begins with `>` is a command, the lines below it are what it
//! prints. `UPDATE_GOLDEN=1` writes what was printed into the scripts.
//!
//! Bytes are written as text, with `\xNN` for what cannot be seen and `""` for none. A range is
//! `k` for a key, `a..c` for `[a, c)`, `a..` for everything from `a`.

use std::fmt::Write;
use std::path::Path;

use bytes::Bytes;

use crate::proto::{Event, KeyValue};
use crate::types::KeyRange;

/// Plays every script of `dir`, a directory below `src/`, each with a new player, which `finish`
/// gets at the end.
pub fn play_all<P>(
    dir: &str,
    new: impl Fn() -> P,
    play: impl Fn(&mut P, &str) -> String,
    finish: impl Fn(P),
) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(dir);
    let mut paths: Vec<_> = std::fs::read_dir(&dir)
        .expect("a directory of scripts")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let script = std::fs::read_to_string(&path).expect("a script");
        let mut player = new();
        let mut played = String::new();
        for (number, line) in script.lines().enumerate() {
            if let Some(command) = line.strip_prefix('>') {
                // Shown only where the test fails.
                println!("{}:{}: {command}", path.display(), number + 1);
                let output = play(&mut player, command.trim());
                write!(played, "{line}\n{output}").expect("writes");
            } else if line.is_empty() || line.starts_with('#') {
                writeln!(played, "{line}").expect("writes");
            }
        }
        settle(&path, &script, &played);
        finish(player);
    }
}

fn settle(path: &Path, script: &str, played: &str) {
    if script == played {
        return;
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, played).expect("writes the script");
        return;
    }
    let pairs = script.lines().zip(played.lines());
    let same = pairs.take_while(|(old, new)| old == new).count();
    panic!(
        "{}:{}: expected {:?}, printed {:?}",
        path.display(),
        same + 1,
        script.lines().nth(same),
        played.lines().nth(same)
    );
}

pub fn bytes(text: &str) -> Bytes {
    if text == "\"\"" {
        return Bytes::new();
    }
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        if let [b'\\', b'x', high, low, ..] = rest {
            let digits = [*high, *low];
            let digits = std::str::from_utf8(&digits).expect("hex digits");
            bytes.push(u8::from_str_radix(digits, 16).expect("hex digits"));
            rest = &rest[4..];
        } else {
            bytes.push(*byte);
            rest = tail;
        }
    }
    bytes.into()
}

pub fn show_bytes(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "\"\"".to_owned();
    }
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'!'..=b'~' if *byte != b'\\' => text.push(char::from(*byte)),
            _ => write!(text, "\\x{byte:02x}").expect("writes"),
        }
    }
    text
}

pub fn range(text: &str) -> KeyRange {
    match text.split_once("..") {
        None => KeyRange::Point(bytes(text)),
        Some((start, "")) => KeyRange::From(bytes(start)),
        Some((start, end)) => KeyRange::Span(bytes(start), bytes(end)),
    }
}

/// The number of `name=N` among `words`.
pub fn number(words: &[&str], name: &str) -> Option<i64> {
    let value = words
        .iter()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.parse().expect("a number"))
}

pub fn show_kv(kv: &KeyValue) -> String {
    let mut text = format!(
        "{}={} c{} m{} v{}",
        show_bytes(&kv.key),
        show_bytes(&kv.value),
        kv.create_revision,
        kv.mod_revision,
        kv.version
    );
    if kv.lease != 0 {
        write!(text, " l{}", kv.lease).expect("writes");
    }
    text
}

pub fn show_event(event: &Event) -> String {
    let kv = event.kv.clone().unwrap_or_default();
    let mut text = match event.r#type {
        0 => format!("put {}", show_kv(&kv)),
        _ => format!("del {} m{}", show_bytes(&kv.key), kv.mod_revision),
    };
    if let Some(prev_kv) = &event.prev_kv {
        write!(text, " was {}", show_kv(prev_kv)).expect("writes");
    }
    text
}
