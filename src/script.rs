//! Scripts that tests play: a line that begins with `>` is a command, the lines below it are what it
//! prints. `UPDATE_GOLDEN=1` writes what was printed into the scripts, to be read before it is
//! committed.
//!
//! In a directory of scenarios a line that begins with `##` begins one, with members of its own, and
//! says in a sentence what it shows. Other lines that begin with `#` are comments.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use crate::probe::{self, Defect};

/// A sentence has at least so many words.
const SENTENCE_WORDS: usize = 4;

/// Plays every script of `dir`, a directory below `src/`, each with a new player, which `finish`
/// gets at the end.
pub fn play_all<P>(
    dir: &str,
    new: impl Fn() -> P,
    play: impl Fn(&mut P, &str) -> String,
    finish: impl Fn(P),
) {
    for path in scripts(dir) {
        let script = std::fs::read_to_string(&path).expect("a script");
        let mut player = new();
        let played = replay(&script, |number, line| match line.strip_prefix('>') {
            Some(command) => {
                announce(&path, number, command);
                play(&mut player, command.trim())
            }
            None => String::new(),
        });
        settle(&path, &script, &played);
        finish(player);
    }
}

/// Plays every scenario of `dir`, a directory below `src/`, each with a new player; returns how
/// many there are.
pub fn play_scenarios<P>(
    dir: &str,
    new: impl Fn() -> P,
    play: impl Fn(&mut P, &str) -> String,
) -> usize {
    let mut sentences = BTreeSet::new();
    for path in scripts(dir) {
        let script = std::fs::read_to_string(&path).expect("a script");
        check_sentences(&script, &mut sentences)
            .unwrap_or_else(|wrong| panic!("{}:{wrong}", path.display()));
        let played = replay_scenarios(&script, &new, |player, number, command| {
            announce(&path, number, command);
            play(player, command)
        });
        settle(&path, &script, &played);
    }
    sentences.len()
}

/// The first of a directory's scenarios that prints something else than its script, and where.
/// Writes nothing.
pub fn first_difference<P>(
    dir: &str,
    new: impl Fn() -> P,
    play: impl Fn(&mut P, &str) -> String,
) -> Option<String> {
    scripts(dir).into_iter().find_map(|path| {
        let script = std::fs::read_to_string(&path).expect("a script");
        let played = replay_scenarios(&script, &new, |player, _, command| play(player, command));
        let difference = difference(&script, &played)?;
        Some(format!("{}:{difference}", path.display()))
    })
}

/// Fails where scripts print with a defect what they print without.
pub fn assert_seen(defect: Defect, first_difference: impl Fn() -> Option<String>) {
    probe::inject(Some(defect));
    // What a defect makes panic is seen as well.
    let played = std::panic::catch_unwind(AssertUnwindSafe(first_difference));
    probe::inject(None);
    let seen = played.map_or(true, |difference| difference.is_some());
    assert!(seen, "no script sees {}", defect.name());
}

/// A word of a command that is a number.
pub fn number(word: &str) -> u64 {
    word.parse().expect("a number")
}

/// The number that a command may end with: how much of something, or all.
pub fn limit(rest: &[&str]) -> usize {
    rest.first()
        .map_or(usize::MAX, |word| number(word) as usize)
}

fn scripts(dir: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(dir);
    let mut paths: Vec<_> = std::fs::read_dir(&dir)
        .expect("a directory of scripts")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

/// Shown only where the test fails.
fn announce(path: &Path, number: usize, command: &str) {
    println!("{}:{number}: {command}", path.display());
}

/// Every scenario says what it shows, says it once, and shows something.
fn check_sentences(script: &str, sentences: &mut BTreeSet<String>) -> Result<(), String> {
    let mut empty = None;
    let mut begun = false;
    for (number, line) in (1..).zip(script.lines()) {
        if let Some(sentence) = line.strip_prefix("##") {
            let sentence = sentence.trim();
            let is_sentence = sentence.starts_with(|first: char| first.is_uppercase())
                && sentence.ends_with('.')
                && sentence.split_whitespace().count() >= SENTENCE_WORDS;
            if !is_sentence {
                return Err(format!("{number}: {sentence:?} is no sentence"));
            }
            if !sentences.insert(sentence.to_owned()) {
                return Err(format!("{number}: another scenario shows the same"));
            }
            if let Some(before) = empty.replace(number) {
                return Err(format!("{before}: a scenario without a command"));
            }
            begun = true;
        } else if line.starts_with('>') {
            if !begun {
                return Err(format!("{number}: no sentence says what this shows"));
            }
            empty = None;
        }
    }
    match empty {
        Some(number) => Err(format!("{number}: a scenario without a command")),
        None => Ok(()),
    }
}

fn replay_scenarios<P>(
    script: &str,
    new: impl Fn() -> P,
    mut play: impl FnMut(&mut P, usize, &str) -> String,
) -> String {
    let mut player = new();
    replay(script, |number, line| {
        if line.starts_with("##") {
            player = new();
        }
        match line.strip_prefix('>') {
            Some(command) => play(&mut player, number, command.trim()),
            None => String::new(),
        }
    })
}

/// The script with what its commands print now.
fn replay(script: &str, mut print: impl FnMut(usize, &str) -> String) -> String {
    let mut played = String::new();
    for (number, line) in (1..).zip(script.lines()) {
        if line.is_empty() || line.starts_with(['>', '#']) {
            let printed = print(number, line);
            write!(played, "{line}\n{printed}").expect("writes");
        }
    }
    played
}

fn settle(path: &Path, script: &str, played: &str) {
    let Some(difference) = difference(script, played) else {
        return;
    };
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, played).expect("writes the script");
        return;
    }
    panic!("{}:{difference}", path.display());
}

/// Where what was printed first differs from the script.
fn difference(script: &str, played: &str) -> Option<String> {
    if script == played {
        return None;
    }
    let pairs = script.lines().zip(played.lines());
    let same = pairs.take_while(|(old, new)| old == new).count();
    Some(format!(
        "{}: expected {:?}, printed {:?}",
        same + 1,
        script.lines().nth(same),
        played.lines().nth(same)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "\
## Every command adds its number to the sum.
> 2
sum 2
> 3
sum 5

## A scenario begins with nothing of the one before.
# This is no command.
> 4
sum 4
";

    fn play(script: &str) -> Option<String> {
        let played = replay_scenarios(
            script,
            || 0,
            |sum, _, command| {
                *sum += command.parse::<u64>().expect("a number");
                format!("sum {sum}\n")
            },
        );
        difference(script, &played)
    }

    #[test]
    fn a_changed_expectation_fails() {
        assert_eq!(play(SCRIPT), None);
        let fails = |from: &str, to: &str, line: &str| {
            let difference = play(&SCRIPT.replace(from, to)).expect("a difference");
            assert!(difference.starts_with(line), "{difference}");
        };
        fails("sum 5", "sum 6", "5: expected Some(\"sum 6\")");
        fails("sum 5\n", "", "5: expected Some(\"\")");
        fails("sum 4\n", "sum 4\nsum 4\n", "11: expected Some(\"sum 4\")");
        fails("> 3\n", "", "4: expected Some(\"sum 5\")");
        fails("> 3\n", "> 1\n", "5: expected Some(\"sum 5\")");
    }

    #[test]
    fn a_scenario_says_in_a_sentence_what_it_shows() {
        let check = |script: &str| check_sentences(script, &mut BTreeSet::new());
        assert_eq!(check(SCRIPT), Ok(()));
        let refused = |script: &str, line: &str| {
            let refused = check(script).expect_err("refused");
            assert!(refused.starts_with(line), "{refused}");
        };
        refused("> 2\nsum 2\n", "1: no sentence");
        refused("## Sums\n> 2\nsum 2\n", "1: \"Sums\" is no sentence");
        refused("##\n> 2\n", "1: \"\" is no sentence");
        refused("## This one shows nothing.\n", "1: a scenario without");
        refused(
            "## This one shows nothing.\n## The next one does not.\n> 2\n",
            "1: a scenario without",
        );
        let twice = format!("{SCRIPT}{SCRIPT}");
        refused(&twice, "11: another scenario");
    }
}
