//! The power fails during every single change that a random workload makes to the disk, and again
//! during recovery. Afterwards the log holds what was acknowledged, and of the step under way all
//! or nothing.

use super::super::{Damage, Files};
use super::*;

const STEPS: u64 = 40;
const SEEDS: u64 = 16;

enum Step {
    Append(Vec<LogEntry>, Option<Vec<u8>>),
    Compact(u64),
    Reset(EntryId, Option<Vec<u8>>),
    NoteSynced,
    Reopen,
}

fn random_entry(random: &mut Random, index: u64, term: u64) -> LogEntry {
    let bytes = match random.below(20) {
        0 => 0,
        1 => 6000,
        2..5 => 700 + random.below(1500) as usize,
        _ => random.below(300) as usize,
    };
    let mut made = entry(index, term, bytes);
    if random.below(6) == 0 {
        made.data = vec![0; bytes].into();
    }
    made
}

fn random_hard_state(random: &mut Random) -> Option<Vec<u8>> {
    let bytes = random.below(9) as usize;
    (random.below(3) == 0).then(|| random.next().to_le_bytes()[..bytes.min(8)].to_vec())
}

/// A step for a log that holds `model`, and what it is to hold then.
fn choose(random: &mut Random, model: &Model) -> (Step, Model) {
    let mut after = model.clone();
    let live = model.last - model.entry_id.index;
    let newest = model
        .entries
        .last_key_value()
        .map_or(model.entry_id.term, |(_, (term, _))| *term);
    let step = match random.below(40) {
        0 | 1 => Step::Reopen,
        2..5 => {
            let to = model.entry_id.index + random.below(live + 1);
            after.compact(to);
            Step::Compact(to)
        }
        5 => {
            let index = model.entry_id.index + random.below(live + 20);
            let entry_id = EntryId {
                index,
                term: newest + 1,
            };
            let state = random_hard_state(random);
            after.reset(entry_id, state.as_deref());
            Step::Reset(entry_id, state)
        }
        6 | 7 => Step::NoteSynced,
        kind => {
            let back = if kind < 12 {
                random.below(live.min(12) + 1)
            } else {
                0
            };
            let first = model.last + 1 - back;
            let term = newest.max(1) + u64::from(back > 0 || random.below(8) == 0);
            let count = random.below(4);
            let batch: Vec<_> = (first..first + count)
                .map(|index| random_entry(random, index, term))
                .collect();
            let state = random_hard_state(random);
            after.append(&batch, state.as_deref());
            Step::Append(batch, state)
        }
    };
    (step, after)
}

/// A log, its disk and what it holds.
struct Run {
    disk: MemoryDisk,
    eager: bool,
    random: Random,
    model: Model,
}

impl Run {
    fn attach(&self, log: RaftLog) -> RaftLog {
        if !self.eager {
            return log;
        }
        log.with_prepare(Box::new(Eager::new(&self.disk)))
    }

    /// Makes steps until one fails; then answers what the log would hold had it succeeded.
    fn steps(&mut self, mut log: RaftLog, count: u64) -> Option<Model> {
        log = self.attach(log);
        for _ in 0..count {
            let (step, after) = choose(&mut self.random, &self.model);
            let done = match step {
                Step::Append(entries, hard_state) => log.append(Batch {
                    entries: &entries,
                    hard_state: hard_state.as_deref(),
                }),
                Step::Compact(to) => log.compact(to),
                Step::Reset(entry_id, hard_state) => log.reset(entry_id, hard_state.as_deref()),
                Step::NoteSynced => log.synced_mark().write(),
                Step::Reopen => {
                    drop(log);
                    match open(&self.disk) {
                        Ok((reopened, recovered)) => {
                            assert_eq!(recovered.torn_tail, None, "nothing was torn");
                            log = self.attach(reopened);
                            Ok(())
                        }
                        Err(error) => {
                            assert!(matches!(error, Error::Io { .. }), "{error}");
                            return Some(after);
                        }
                    }
                }
            };
            if let Err(error) = done {
                assert!(matches!(error, Error::Io { .. }), "{error}");
                return Some(after);
            }
            self.model = after;
            // The power may be gone though the step was done: it made the next segment ahead.
            if self.random.below(8) == 0 && self.disk.list().is_ok() {
                assert_eq!(Model::seen_by(&log.reader()).entries, self.model.entries);
            }
        }
        None
    }
}

/// Recovers, with the power failing a few more times on the way.
fn recover(disk: &MemoryDisk, random: &mut Random) -> Result<(RaftLog, Recovered), Error> {
    for _ in 0..random.below(4) {
        disk.stop_at(disk.operations() + 1 + random.below(6));
        if let Err(error) = open(disk) {
            assert!(
                matches!(error, Error::Io { .. } | Error::Absent { .. }),
                "{error}"
            );
        }
        disk.crash(random.next());
    }
    open(disk)
}

/// Runs the workload of `seed`, the power failing at change `stop_at`. Answers the number of
/// changes made, and the counts of crashes that left the step undone, done, torn, and torn with a
/// bit flipped.
fn crash_once(seed: u64, stop_at: u64) -> (u64, [u64; 4]) {
    let disk = MemoryDisk::new();
    disk.stop_at(stop_at);
    let mut run = Run {
        disk: disk.clone(),
        eager: seed.is_multiple_of(2),
        random: Random(seed),
        model: Model::default(),
    };
    let created = RaftLog::create(Arc::new(disk.clone()), OPTIONS);
    let absent_allowed = created.is_err();
    let under_way = match created {
        Ok(log) => run.steps(log, STEPS),
        Err(_) => None,
    };
    let changes = disk.operations();
    let mut random = Random(seed ^ stop_at << 32);
    // Half the time it is only the process that dies. Then what recovery saw must survive the
    // machine.
    let killed = random.below(2) == 0;
    if killed {
        disk.kill();
    } else {
        disk.crash(random.next());
    }
    let flipped = disk.flips() > 0;
    let (log, recovered) = match recover(&disk, &mut random) {
        Err(Error::Absent { .. }) if absent_allowed => {
            let log = create(&disk);
            drop(log);
            open(&disk).expect("a log just created")
        }
        opened => opened.unwrap_or_else(|error| panic!("seed {seed}, change {stop_at}: {error}")),
    };
    let found = Model::of(&log, &recovered);
    let done = under_way.as_ref() == Some(&found) && found != run.model;
    assert!(
        done || found == run.model,
        "seed {seed}, change {stop_at}: lost or half visible"
    );
    let counts = [
        u64::from(under_way.is_some() && !done),
        u64::from(done),
        u64::from(recovered.torn_tail.is_some()),
        u64::from(recovered.torn_tail.is_some() && flipped),
    ];

    run.model = found;
    let more = random.below(8);
    assert!(run.steps(log, more).is_none(), "the disk is good again");
    disk.crash(random.next());
    let (log, recovered) = open(&disk).expect("a log that was recovered");
    assert_eq!(recovered.torn_tail, None);
    assert_eq!(
        Model::of(&log, &recovered),
        run.model,
        "seed {seed}, change {stop_at}: seen after the first recovery, then lost"
    );
    (changes, counts)
}

#[test]
fn nothing_acknowledged_is_lost_wherever_the_power_fails() {
    let mut totals = [0; 4];
    for seed in 0..SEEDS {
        let (changes, _) = crash_once(seed, u64::MAX);
        assert!(changes > STEPS);
        for stop_at in 1..=changes {
            let (_, counts) = crash_once(seed, stop_at);
            for (total, count) in totals.iter_mut().zip(counts) {
                *total += count;
            }
        }
    }
    // The test means something only if all of these happen.
    assert!(
        totals
            .iter()
            .zip([20, 20, 20, 5])
            .all(|(total, least)| *total > least),
        "undone, done, torn, flipped: {totals:?}"
    );
}

/// After each change to the disk that is acknowledged: with no damage does the log pass for a
/// shorter one, but for an end that was written behind the mark; and then it says so.
#[test]
fn no_damage_passes_for_a_torn_write_after_any_step() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..SEEDS {
        let disk = MemoryDisk::new();
        let mut run = Run {
            disk: disk.clone(),
            eager: false,
            random: Random(seed),
            model: Model::default(),
        };
        drop(create(&disk));
        let mut states = vec![run.model.clone()];
        for step in 0..STEPS {
            let (log, _) = open(&disk).expect("a sound log");
            assert!(run.steps(log, 1).is_none(), "the disk is good");
            states.push(run.model.clone());
            for damage in Damage::REFUSED {
                let harmed = disk.copy();
                let what = harmed.damage(damage, OPTIONS, seed ^ step << 32);
                if open(&harmed).is_ok() {
                    panic!("seed {seed}, step {step}: {what:?} passes");
                }
            }
            let harmed = disk.copy();
            if harmed
                .damage(Damage::EndLost, OPTIONS, seed ^ step << 32)
                .is_none()
            {
                kept += 1;
                continue;
            }
            let (log, recovered) = match open(&harmed) {
                Ok(opened) => opened,
                // Segments were deleted that only a lost frame makes superfluous.
                Err(Error::Gap { .. }) => continue,
                Err(error) => panic!("seed {seed}, step {step}: {error}"),
            };
            lost += 1;
            assert!(recovered.end_in_doubt, "seed {seed}, step {step}");
            let found = Model::of(&log, &recovered);
            assert!(states.contains(&found), "seed {seed}, step {step}: half");
        }
    }
    assert!(lost > 50 && kept > 50, "{lost} lost, {kept} kept");
}
