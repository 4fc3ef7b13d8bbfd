//! Feature gates, parsed as in etcd. Some defaults differ: etched keeps the remaining TTL of leases
//! over restarts and leader changes, so `LeaseCheckpoint` is on, and `LeaseCheckpointPersist`
//! follows it unless it is set. It compares the members' data where that is cheap, so
//! `InitialCorruptCheck` and `CompactHashCheck` are on; the first checks large stores only if it is
//! set. For most gates etched has one behaviour only; these are accepted, shown, and logged at the
//! start if they are set to something else.
//!
//! The gates of 3.7 are known and, to prepare an upgrade, those that 3.8 adds.

use std::collections::BTreeMap;

use super::go_syntax::{parse_bool, quote};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Alpha,
    Beta,
}

/// A gate known to etched.
struct Known {
    name: &'static str,
    stage: Stage,
    /// The default in etched.
    default: bool,
    /// Why it has no effect, if it has none.
    no_effect: Option<&'static str>,
}

const fn gate(name: &'static str, stage: Stage, default: bool) -> Known {
    Known {
        name,
        stage,
        default,
        no_effect: None,
    }
}

impl Known {
    const fn no_effect(self, why: &'static str) -> Known {
        Known {
            no_effect: Some(why),
            ..self
        }
    }

    fn stage_name(&self) -> &'static str {
        match self.stage {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
        }
    }
}

const LEASES_ARE_KEPT: &str = "checkpoints of what is left of a lease are always made and kept";

use Stage::{Alpha, Beta};

#[rustfmt::skip] // One gate a line, as in the table of flags.
const KNOWN: &[Known] = &[
    gate("AllAlpha", Alpha, false),
    gate("AllBeta", Beta, false),
    gate("CompactHashCheck", Alpha, true),
    gate("FastLeaseKeepAlive", Beta, true).no_effect("a renewal never waits for entries to be applied"),
    gate("InitialCorruptCheck", Alpha, true),
    gate("LeaseCheckpoint", Alpha, true).no_effect(LEASES_ARE_KEPT),
    gate("LeaseCheckpointPersist", Alpha, true).no_effect(LEASES_ARE_KEPT),
    gate("NonBlockingDefrag", Beta, true).no_effect("a defragmentation never blocks other requests"),
    gate("PriorityRequest", Alpha, false),
    gate("RaftAsyncStorageWrites", Alpha, false).no_effect("the raft log is written beside raft wherever there are other members"),
    gate("SetMemberLocalAddr", Alpha, false),
    gate("StopGRPCServiceOnDefrag", Alpha, false).no_effect("a defragmentation never blocks other requests"),
    gate("TxnModeWriteWithSharedBuffer", Beta, true).no_effect("reads in a transaction need no buffer of their own"),
];

/// The gates that were set; the others have their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    named: BTreeMap<&'static str, bool>,
}

impl Gates {
    /// Adds `Name=bool,…` to the gates set before.
    ///
    /// # Errors
    /// etcd's text for an unknown gate or a value that is no boolean; nothing is set then.
    pub fn set(&mut self, text: &str) -> Result<(), String> {
        let mut wanted = BTreeMap::new();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let Some((name, value)) = item.split_once('=') else {
                return Err(format!("missing bool value for {}", item.trim()));
            };
            let (name, value) = (name.trim(), value.trim());
            let Some(on) = parse_bool(value) else {
                return Err(format!(
                    "invalid value of {name}={value}, err: strconv.ParseBool: parsing {}: invalid syntax",
                    quote(value)
                ));
            };
            wanted.insert(name, on);
        }
        let mut named = self.named.clone();
        for (name, on) in &wanted {
            let Some(known) = KNOWN.iter().find(|known| known.name == *name) else {
                return Err(format!("unrecognized feature gate: {name}"));
            };
            named.insert(known.name, *on);
        }
        // A gate's own setting overrides that of its stage, whatever the order.
        for (group, stage) in [("AllAlpha", Stage::Alpha), ("AllBeta", Stage::Beta)] {
            if let Some(on) = wanted.get(group) {
                for known in KNOWN.iter().filter(|known| known.stage == stage) {
                    named.entry(known.name).or_insert(*on);
                }
            }
        }
        self.named = named;
        Ok(())
    }

    /// Whether a gate is on. An unknown name is off.
    pub fn enabled(&self, name: &str) -> bool {
        if let Some(on) = self.named.get(name) {
            return *on;
        }
        if name == "LeaseCheckpointPersist" {
            return self.enabled("LeaseCheckpoint");
        }
        KNOWN
            .iter()
            .any(|known| known.name == name && known.default)
    }

    /// Whether a gate was set, on its own or with its stage.
    pub fn is_named(&self, name: &str) -> bool {
        self.named.contains_key(name)
    }

    /// Every gate: its name, `ALPHA` or `BETA`, and whether what it stands for is done here, which
    /// those without an effect do not change.
    pub fn in_force(&self) -> Vec<(&'static str, &'static str, bool)> {
        let in_force = |known: &Known| match known.no_effect {
            Some(_) => known.default,
            None => self.enabled(known.name),
        };
        KNOWN
            .iter()
            .map(|known| (known.name, known.stage_name(), in_force(known)))
            .collect()
    }

    /// Gates that were set to a value without effect, and why.
    pub fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        KNOWN
            .iter()
            .filter(|known| self.named.get(known.name) == Some(&!known.default))
            .filter_map(|known| Some((known.name, known.no_effect?)))
            .collect()
    }

    /// What was set, as `A=true,B=false`.
    pub fn summary(&self) -> String {
        let set: Vec<String> = self
            .named
            .iter()
            .map(|(name, on)| format!("{name}={on}"))
            .collect();
        set.join(",")
    }

    /// Every gate as the documents show it: its name, its stage, its default, and why it has no
    /// effect, if it has none.
    #[cfg(test)]
    pub fn documented() -> Vec<(&'static str, &'static str, bool, Option<&'static str>)> {
        KNOWN
            .iter()
            .map(|known| {
                (
                    known.name,
                    known.stage_name(),
                    known.default,
                    known.no_effect,
                )
            })
            .collect()
    }

    /// Each gate's line for the help text.
    pub fn help() -> String {
        let lines: Vec<String> = KNOWN
            .iter()
            .map(|known| {
                let (name, stage, default) = (known.name, known.stage_name(), known.default);
                let mark = if known.no_effect.is_some() {
                    " [no effect]"
                } else {
                    ""
                };
                format!("{name}=true|false ({stage} - default={default}){mark}")
            })
            .collect();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(texts: &[&str]) -> Result<(bool, bool, bool), String> {
        let mut gates = Gates::default();
        for text in texts {
            gates.set(text)?;
        }
        Ok((
            gates.enabled("LeaseCheckpoint"),
            gates.enabled("LeaseCheckpointPersist"),
            gates.enabled("FastLeaseKeepAlive"),
        ))
    }

    #[test]
    fn names_outrank_stages() {
        for (texts, expected) in [
            (&[""][..], Ok((true, true, true))),
            (&["LeaseCheckpoint=false"], Ok((false, false, true))),
            (&["LeaseCheckpointPersist=0"], Ok((true, false, true))),
            (&["AllAlpha=false"], Ok((false, false, true))),
            (
                &["AllAlpha=false,LeaseCheckpoint=true"],
                Ok((true, false, true)),
            ),
            (
                &["LeaseCheckpoint=true", "AllAlpha=false"],
                Ok((true, false, true)),
            ),
            (&["AllBeta=f,"], Ok((true, true, false))),
            (&["Foo=true"], Err("unrecognized feature gate: Foo")),
            (
                &["LeaseCheckpoint"],
                Err("missing bool value for LeaseCheckpoint"),
            ),
            (
                &["LeaseCheckpoint=x"],
                Err(
                    "invalid value of LeaseCheckpoint=x, err: strconv.ParseBool: parsing \"x\": invalid syntax",
                ),
            ),
        ] {
            assert_eq!(state(texts), expected.map_err(str::to_owned), "{texts:?}");
        }
    }
}
