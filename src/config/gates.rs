//! Feature gates, read as etcd reads them. Some defaults differ: etched keeps the remaining time
//! of leases over restarts and leader changes, so `LeaseCheckpoint` is on, and
//! `LeaseCheckpointPersist` follows it unless it is named. It compares the members' data where
//! that costs little, so `InitialCorruptCheck` and `CompactHashCheck` are on; the first looks at
//! large stores only where it is named.

use std::collections::BTreeMap;

use super::go_syntax::{parse_bool, quote};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Alpha,
    Beta,
}

/// Name, stage, default in etched.
const KNOWN: &[(&str, Stage, bool)] = &[
    ("AllAlpha", Stage::Alpha, false),
    ("AllBeta", Stage::Beta, false),
    ("CompactHashCheck", Stage::Alpha, true),
    ("FastLeaseKeepAlive", Stage::Beta, true),
    ("InitialCorruptCheck", Stage::Alpha, true),
    ("LeaseCheckpoint", Stage::Alpha, true),
    ("LeaseCheckpointPersist", Stage::Alpha, true),
    ("PriorityRequest", Stage::Alpha, false),
    ("SetMemberLocalAddr", Stage::Alpha, false),
    ("StopGRPCServiceOnDefrag", Stage::Alpha, false),
    ("TxnModeWriteWithSharedBuffer", Stage::Beta, true),
];

/// The gates that somebody set; the others have their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    named: BTreeMap<&'static str, bool>,
}

impl Gates {
    /// Adds `Name=bool,…` to what was set before.
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
            let Some((known, ..)) = KNOWN.iter().find(|(known, ..)| known == name) else {
                return Err(format!("unrecognized feature gate: {name}"));
            };
            named.insert(known, *on);
        }
        // What is named by itself outranks its stage, whatever the order.
        for (group, stage) in [("AllAlpha", Stage::Alpha), ("AllBeta", Stage::Beta)] {
            if let Some(on) = wanted.get(group) {
                for (name, _, _) in KNOWN.iter().filter(|(_, of, _)| *of == stage) {
                    named.entry(name).or_insert(*on);
                }
            }
        }
        self.named = named;
        Ok(())
    }

    /// Whether a gate is on. A name that is no gate is off.
    pub fn enabled(&self, name: &str) -> bool {
        if let Some(on) = self.named.get(name) {
            return *on;
        }
        if name == "LeaseCheckpointPersist" {
            return self.enabled("LeaseCheckpoint");
        }
        KNOWN
            .iter()
            .any(|(known, _, default)| *known == name && *default)
    }

    /// Whether somebody set a gate, by itself or with its stage.
    pub fn is_named(&self, name: &str) -> bool {
        self.named.contains_key(name)
    }

    /// Every gate: its name, `ALPHA` or `BETA`, and whether it is on.
    pub fn all(&self) -> Vec<(&'static str, &'static str, bool)> {
        KNOWN
            .iter()
            .map(|(name, stage, _)| {
                let stage = match stage {
                    Stage::Alpha => "ALPHA",
                    Stage::Beta => "BETA",
                };
                (*name, stage, self.enabled(name))
            })
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

    /// Each gate's line for the help text.
    pub fn help() -> String {
        let lines: Vec<String> = KNOWN
            .iter()
            .map(|(name, stage, default)| {
                let stage = match stage {
                    Stage::Alpha => "ALPHA",
                    Stage::Beta => "BETA",
                };
                format!("{name}=true|false ({stage} - default={default})")
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
