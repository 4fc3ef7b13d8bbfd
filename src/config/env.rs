//! The environment: `ETCD_` and the flag's name in capitals, for every flag; without a
//! configuration file only. A variable beside its flag is refused, an unknown one is warned of,
//! an empty one counts as absent.

use super::flags;
use super::go_syntax::quote;
use super::note::Note;
use super::refusal::Refusal;
use super::values::Values;

const PREFIX: &str = "ETCD_";

/// The variable of a flag.
pub fn variable(flag: &str) -> String {
    format!("{PREFIX}{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// Sets the values that are in the environment and not on the command line.
///
/// # Errors
/// A variable whose flag is given too, else the last bad value in the order of the flags' names.
pub fn overlay(
    values: &mut Values,
    env: &[(String, String)],
    notes: &mut Vec<Note>,
) -> Result<(), Refusal> {
    let mut flags: Vec<_> = flags::all().collect();
    flags.sort_by_key(|flag| flag.name);
    let shadowed: Vec<String> = flags
        .iter()
        .filter(|flag| values.is_given(flag.name))
        .map(|flag| variable(flag.name))
        .collect();
    let mut used = Vec::new();
    let mut refusal = Ok(());
    // --version from the environment is etcd's own special case: it never prints a version.
    for flag in flags.iter().filter(|flag| flag.name != "version") {
        let name = variable(flag.name);
        let Some(value) = find(env, &name).filter(|v| !v.is_empty()) else {
            continue;
        };
        if shadowed.contains(&name) {
            continue;
        }
        match values.set(flag, value) {
            Ok(()) => notes.push(
                Note::info("recognized and used environment variable")
                    .with("variable-name", name.as_str())
                    .with("variable-value", value),
            ),
            Err(reason) => {
                refusal = Err(Refusal::Verify(format!(
                    "invalid value {} for {name}: {reason}",
                    quote(value)
                )));
            }
        }
        used.push(name);
    }
    for (name, value) in env.iter().filter(|(name, _)| !used.contains(name)) {
        if shadowed.contains(name) {
            return Err(Refusal::Shadowed(name.clone()));
        }
        if name == "ETCD_VERSION" && !value.is_empty() {
            notes.push(
                Note::warn("cannot set special environment variable")
                    .with("key", name.as_str())
                    .with("value", value.as_str()),
            );
        } else if name.starts_with(PREFIX) {
            notes.push(
                Note::warn("unrecognized environment variable")
                    .with("environment-variable", format!("{name}={value}")),
            );
        }
    }
    refusal
}

/// The value of a variable.
pub fn find<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter()
        .find(|(found, _)| found == name)
        .map(|(_, value)| value.as_str())
}
