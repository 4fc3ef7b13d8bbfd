//! Reads all of a stopped member's directory: checksums of log and state, entries that can be
//! applied, the families of the state against each other, and both against the other.

use std::io::Write;

use super::dir::{self, Stopped};
use super::error::{Error, Result};
use crate::config::Offline;
use crate::mvcc::read::PinnedView;
use crate::mvcc::verify::{self, Verified};
use crate::raft::replica::decode_hard_state;
use crate::server::restore::{check_origin, check_owner, check_together};
use crate::state::{Machine, machine};
use crate::storage::raft_log::{EntryId, Reader, Recovered};
use crate::{raft, server};

/// Entries are read in portions of about so many bytes.
pub const PORTION_BYTES: u64 = 1 << 20;
/// More lines than this help nobody.
const MOST_LINES: usize = 50;

/// What was found, line by line.
struct Report<'a> {
    out: &'a mut dyn Write,
    problems: usize,
    written: std::io::Result<()>,
}

impl<'a> Report<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        Self {
            out,
            problems: 0,
            written: Ok(()),
        }
    }

    fn say(&mut self, line: &str) {
        if self.written.is_ok() {
            self.written = writeln!(self.out, "{line}");
        }
    }

    fn problem(&mut self, of: &str, problem: &dyn std::fmt::Display) {
        self.problems += 1;
        if self.problems <= MOST_LINES {
            self.say(&format!("{of}: {problem}"));
        }
    }

    fn finish(mut self) -> Result<()> {
        if let Some(more) = self.problems.checked_sub(MOST_LINES + 1) {
            self.say(&format!("and {} more", more + 1));
        }
        self.written?;
        match self.problems {
            0 => Ok(()),
            problems => Err(Error::Problems(problems)),
        }
    }
}

pub fn check(command: &Offline, out: &mut dyn Write) -> Result<()> {
    let stopped = dir::open(command)?;
    let mut report = Report::new(out);
    let identity = stopped.identity;
    report.say(&format!(
        "member {} of cluster {}",
        identity.member, identity.cluster
    ));
    if let Err(error) = stopped.dir().first_peers() {
        report.problem("directory", &error);
    }
    let log = match stopped.log() {
        Ok((reader, recovered)) => {
            entries(&reader, &recovered, &mut report);
            Some((reader, recovered))
        }
        Err(error) => {
            report.problem("raft log", &error);
            None
        }
    };
    if let Err(error) = state(&stopped, log.as_ref(), &mut report) {
        report.problem("state", &error);
    }
    report.finish()
}

/// Reads every entry, and decodes it as a start would.
fn entries(reader: &Reader, recovered: &Recovered, report: &mut Report<'_>) {
    let before = report.problems;
    let (first, last) = (reader.first_index(), reader.last_index());
    let mut next = first;
    while next <= last {
        let entries = match reader.read(next, last + 1, PORTION_BYTES) {
            Ok(entries) if entries.is_empty() => break,
            Ok(entries) => entries,
            Err(error) => return report.problem("raft log", &error),
        };
        for entry in entries {
            next = entry.index + 1;
            let readable = match raft::output::committed(&entry).map(|entry| entry.kind) {
                Some(raft::CommittedKind::Request(bytes)) => machine::decode_request(bytes).is_ok(),
                Some(_) => true,
                None => false,
            };
            if !readable {
                let problem = format!(
                    "entry {} of term {} cannot be decoded",
                    entry.index, entry.term
                );
                report.problem("raft log", &problem);
            }
        }
    }
    let hard_state = recovered.hard_state.as_deref();
    if hard_state.is_some_and(|bytes| decode_hard_state(bytes).is_none()) {
        report.problem("raft log", &"its hard state cannot be decoded");
    }
    if let Some(torn) = &recovered.torn_tail {
        report.say(&format!(
            "raft log: a write that a crash interrupted is at byte {} of {}; it was not acknowledged, and the next start cuts it off",
            torn.offset, torn.segment
        ));
    }
    if report.problems > before {
        return;
    }
    report.say(&match last < first {
        true => format!("raft log: no entries after {last}, whole"),
        false => format!("raft log: entries {first} to {last}, whole"),
    });
}

fn state(
    stopped: &Stopped,
    log: Option<&(Reader, Recovered)>,
    report: &mut Report<'_>,
) -> Result<()> {
    let begins_behind = log.map_or(0, |(_, recovered)| recovered.compacted.index);
    let (name, engine) = stopped.state(begins_behind)?;
    let before = report.problems;
    let owners = (stopped.dir().owner_of(&name)?, stopped.dir().owner()?);
    if let Err(mismatch) = check_owner(owners) {
        report.problem(&name, &mismatch);
    }
    if !Machine::is_between_entries(engine.latest())? {
        let (applied, _) = Machine::applied(engine.latest())?;
        let ends = log.map(|(_, log)| (log.compacted.index, log.last_index));
        let fits = ends.map(|(behind, last)| check_together(applied, behind, last));
        if let Some(Err(mismatch)) = fits {
            report.problem("raft log and state", &mismatch);
        }
        report.say(&format!(
            "{name}: was left within a write of many keys, which the next start ends; check again behind that"
        ));
        return Ok(());
    }
    let machine = Machine::open(engine)?;
    if let Some((reader, recovered)) = log {
        together(stopped, &machine, reader, recovered, report)?;
    }
    let verified = keyspace(&machine, report)?;
    if report.problems > before {
        return Ok(());
    }
    report.say(&format!(
        "{name}: revision {}, {} keys, {} older versions, {} changes, entry {} applied, whole",
        machine.head(),
        verified.keys,
        verified.superseded,
        verified.changes,
        machine.applied_index()
    ));
    let last = log.map_or(0, |(_, recovered)| recovered.last_index);
    match last.saturating_sub(machine.applied_index()) {
        0 => {}
        left => report.say(&format!(
            "{left} entries of the raft log are not in the state; the next start applies those that are committed"
        )),
    }
    Ok(())
}

fn together(
    stopped: &Stopped,
    machine: &Machine,
    reader: &Reader,
    recovered: &Recovered,
    report: &mut Report<'_>,
) -> Result<()> {
    let applied = EntryId {
        index: machine.applied_index(),
        term: machine.applied_term(),
    };
    let begins_behind = recovered.compacted.index;
    let clusters = (machine.cluster()?, stopped.identity.cluster);
    let fits = check_together(applied.index, begins_behind, recovered.last_index)
        .and_then(|()| check_origin(clusters, applied, reader.term(applied.index)));
    if let Err(mismatch) = fits {
        report.problem("raft log and state", &mismatch);
    }
    Ok(())
}

/// Reads the whole keyspace of a state.
fn keyspace(machine: &Machine, report: &mut Report<'_>) -> Result<Verified> {
    Ok(verified(machine, &mut |problem| {
        report.problem("state", &problem);
    })?)
}

/// The same, for any use of what is found.
pub fn verified(
    machine: &Machine,
    found: &mut dyn FnMut(verify::Problem),
) -> Result<Verified, server::Error> {
    let pinned = PinnedView {
        read: machine.engine().latest(),
        head: machine.head(),
        compacted: machine.compacted(),
        counts: None,
    };
    let is_lease = |lease| machine.leases().contains(lease);
    Ok(verify::verify(&pinned, machine.keys(), &is_lease, found)?)
}
