//! The command behind `scripts/simulate`: runs many seeds on several threads, sums up their
//! reports, and prints the command that replays a failure. A run starts with the seeds in
//! `seeds.txt`, which found bugs before.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::faults::plan::Kind;
use super::history::Finding;
use super::network::Counts;
use super::run::{Report, RunOptions, run};
use crate::env::{Clock, SystemClock};
use crate::probe::{self, CoveragePoint, Defect};

const USAGE: &str =
    "usage: scripts/simulate [--seeds N] [--from S] [--minutes M] [--seconds V] [--threads T]
                        [--seed S [--trace]] [--defect NAME] [--defects]

  --seeds N      run N seeds (200)
  --from S       begin with seed S (1)
  --minutes M    begin no seed after M minutes
  --seconds V    inject faults for V virtual seconds (40)
  --threads T    worlds side by side (as many as there are processors)
  --seed S       run one seed
  --trace        print what happens in it, line by line
  --defect NAME  put a deliberate defect into the server
  --defects      try every deliberate defect until a seed finds it
  --count        with --defects: run all seeds, and say in how many each is found
  --any-paths    do not ask for every rare path to have been taken";

/// One in this many seeds is run twice and has to give the same trace.
const SEEDS_PER_REPETITION: u64 = 10;
/// Numbers at the beginning of lines.
const KNOWN_SEEDS: &str = include_str!("seeds.txt");
/// Seeds per deliberate defect: until it is found, and for the table.
const SEEDS_UNTIL_FOUND: u64 = 1_600;
const SEEDS_COUNTED: u64 = 100;

#[derive(Clone, Debug)]
struct Arguments {
    seeds: Option<u64>,
    from: u64,
    minutes: Option<u64>,
    seconds: u64,
    threads: usize,
    trace: bool,
    one: bool,
    defect: Option<Defect>,
    defects: bool,
    count: bool,
    any_paths: bool,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments {
        seeds: None,
        from: 1,
        minutes: None,
        seconds: 40,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        trace: false,
        one: false,
        defect: None,
        defects: false,
        count: false,
        any_paths: false,
    };
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().unwrap_or_default();
            value
                .parse::<u64>()
                .map_err(|_| format!("{word} needs a number, not '{value}'"))
        };
        match word.as_str() {
            "--seeds" => arguments.seeds = Some(number()?),
            "--from" => arguments.from = number()?,
            "--minutes" => arguments.minutes = Some(number()?),
            "--seconds" => arguments.seconds = number()?,
            "--threads" => arguments.threads = number()?.max(1) as usize,
            "--seed" => {
                arguments.from = number()?;
                arguments.seeds = Some(1);
                arguments.one = true;
            }
            "--trace" => arguments.trace = true,
            "--defects" => arguments.defects = true,
            "--count" => arguments.count = true,
            "--any-paths" => arguments.any_paths = true,
            "--defect" => {
                let name = words.next().unwrap_or_default();
                let found = Defect::ALL.iter().find(|defect| defect.name() == name);
                let names: Vec<_> = Defect::ALL.iter().map(|defect| defect.name()).collect();
                arguments.defect = Some(*found.ok_or_else(|| {
                    format!(
                        "there is no defect '{name}'; there are {}",
                        names.join(", ")
                    )
                })?);
            }
            _ => return Err(format!("there is no option '{word}'\n{USAGE}")),
        }
    }
    Ok(arguments)
}

/// All seeds together.
#[derive(Default)]
struct Sum {
    seeds: u64,
    virtual_ns: u64,
    steps: u64,
    operations: u64,
    unknown: u64,
    watch_events: u64,
    entries: u64,
    faults: BTreeMap<Kind, u64>,
    network: Counts,
    paths: BTreeMap<CoveragePoint, u64>,
    failed: Vec<(u64, Vec<String>)>,
}

impl Sum {
    fn add(&mut self, seed: u64, report: Report) {
        self.seeds += 1;
        self.virtual_ns += report.virtual_ns;
        self.steps += report.steps;
        self.operations += report.operations;
        self.unknown += report.unknown;
        self.watch_events += report.watch_events;
        self.entries += report.entries;
        for (kind, count) in report.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        self.network.add(&report.network);
        for (path, count) in report.paths {
            *self.paths.entry(path).or_default() += count;
        }
        if !report.findings.is_empty() {
            let findings = report.findings.iter();
            let findings = findings.map(|finding| format!("{}: {}", finding.what, finding.details));
            self.failed.push((seed, findings.collect()));
        }
    }
}

/// Runs the seeds; calls `ended` after each, on the thread that ran it, with a lock held.
fn run_seeds(arguments: &Arguments, ended: impl Fn(u64, &Report) + Sync) -> Sum {
    let seeds = arguments.seeds.unwrap_or(match arguments.minutes {
        Some(_) => u64::MAX - arguments.from,
        None => 200,
    });
    let known = known_seeds(arguments, seeds);
    let next = AtomicUsize::new(0);
    let clock = SystemClock::new();
    let limit = arguments
        .minutes
        .map(|minutes| Duration::from_secs(60 * minutes));
    let sum = Mutex::new(Sum::default());
    let options = RunOptions {
        seconds: arguments.seconds,
        print: arguments.trace,
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments
            .threads
            .min(known.len().saturating_add(seeds as usize))
        {
            scope.spawn(|| {
                probe::inject(arguments.defect);
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let further = place.checked_sub(known.len()).map(|place| place as u64);
                    let seed = match further {
                        None => known[place],
                        Some(further) => arguments.from + further,
                    };
                    let over = further.is_some_and(|further| further >= seeds);
                    let enough = arguments.defects
                        && !arguments.count
                        && sum.lock().is_ok_and(|sum| !sum.failed.is_empty());
                    if over || enough || limit.is_some_and(|limit| clock.now() > limit) {
                        return;
                    }
                    let mut report = run(seed, options);
                    if seed.is_multiple_of(SEEDS_PER_REPETITION) && !arguments.one {
                        compare(&mut report, &run(seed, options));
                    }
                    if let Ok(mut sum) = sum.lock() {
                        ended(seed, &report);
                        sum.add(seed, report);
                    }
                }
            });
        }
    });
    let mut sum = sum.into_inner().unwrap_or_default();
    sum.failed.sort();
    sum
}

/// Seeds of the list that the run would not include anyway; none if a single seed or a defect was
/// requested.
fn known_seeds(arguments: &Arguments, seeds: u64) -> Vec<u64> {
    if arguments.one || arguments.defects || arguments.defect.is_some() {
        return Vec::new();
    }
    let first_word = |line: &str| line.split_whitespace().next()?.parse::<u64>().ok();
    let known = KNOWN_SEEDS.lines().filter_map(first_word);
    known
        .filter(|seed| {
            seed.checked_sub(arguments.from)
                .is_none_or(|place| place >= seeds)
        })
        .collect()
}

/// Checks that the same seed gives the same trace.
fn compare(report: &mut Report, again: &Report) {
    if report.trace != again.trace {
        let parted = report.last_lines.iter().zip(&again.last_lines);
        let parted = parted.into_iter().find(|(one, other)| one != other);
        report.findings.push(Finding {
            what: "a seed does not give the same trace",
            details: format!(
                "{:?} and {:?}, at last {parted:?}",
                report.trace, again.trace
            ),
        });
    }
}

/// The exit status.
const SUCCESS: i32 = 0;
const FAILURE: i32 = 1;
const MISUSED: i32 = 2;

/// Runs what the arguments say and exits.
pub fn start(words: impl Iterator<Item = String>) -> ! {
    std::process::exit(main(words))
}

/// Runs what the arguments say; see `USAGE`.
fn main(words: impl Iterator<Item = String>) -> i32 {
    let arguments = match parse(words) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return MISUSED;
        }
    };
    if arguments.defects {
        return try_defects(&arguments);
    }
    let clock = SystemClock::new();
    let sum = run_seeds(&arguments, |seed, report| {
        print_report(&arguments, seed, report)
    });
    print_sum(&sum, clock.now());
    let missed: Vec<&str> = CoveragePoint::ALL
        .iter()
        .filter(|path| !sum.paths.contains_key(path))
        .map(|path| path.name())
        .collect();
    let standard = !arguments.any_paths && !arguments.one && arguments.defect.is_none();
    if standard && !missed.is_empty() {
        println!("paths that no seed took: {}", missed.join(", "));
    }
    match sum.failed.is_empty() && (missed.is_empty() || !standard) {
        true => SUCCESS,
        false => FAILURE,
    }
}

fn print_report(arguments: &Arguments, seed: u64, report: &Report) {
    if report.findings.is_empty() {
        if arguments.one {
            println!(
                "seed {seed}: {} lines, hash {:016x}",
                report.trace.0, report.trace.1
            );
        }
        return;
    }
    println!("seed {seed} failed; its last events:");
    for line in report.last_lines.iter().rev().take(25).rev() {
        let short: String = line.chars().take(300).collect();
        println!("    {short}");
    }
    for finding in &report.findings {
        println!("  {}: {}", finding.what, finding.details);
    }
    let defect = arguments
        .defect
        .map(|defect| format!(" --defect {}", defect.name()));
    println!(
        "run it again: scripts/simulate --seed {seed} --seconds {}{} --trace",
        arguments.seconds,
        defect.unwrap_or_default()
    );
}

fn print_sum(sum: &Sum, took: Duration) {
    let hours = sum.virtual_ns as f64 / 3.6e12;
    println!(
        "{} seeds in {:.0} s: {hours:.2} virtual hours, {} steps, {} entries, {} requests ({} of unknown outcome), {} watch events",
        sum.seeds,
        took.as_secs_f64(),
        sum.steps,
        sum.entries,
        sum.operations,
        sum.unknown,
        sum.watch_events
    );
    println!("faults:");
    for kind in Kind::ALL {
        let count = sum.faults.get(&kind).copied().unwrap_or_default();
        println!("  {count:9} {}", kind.name());
    }
    println!("network: {:?}", sum.network);
    println!("rare paths:");
    for path in CoveragePoint::ALL {
        let count = sum.paths.get(path).copied().unwrap_or_default();
        println!("  {count:9} {}", path.name());
    }
    let seeds: Vec<String> = sum
        .failed
        .iter()
        .map(|(seed, _)| seed.to_string())
        .collect();
    match seeds.is_empty() {
        true => println!("every seed passed"),
        false => println!("{} seeds failed: {}", seeds.len(), seeds.join(" ")),
    }
}

/// Prints a table of the deliberate defects and in how many seeds each is found.
fn try_defects(arguments: &Arguments) -> i32 {
    let clock = SystemClock::new();
    let seeds = arguments.seeds.unwrap_or(match arguments.count {
        true => SEEDS_COUNTED,
        false => SEEDS_UNTIL_FOUND,
    });
    // A panic is one way of finding a defect; its message would only clutter the output.
    std::panic::set_hook(Box::new(|_| {}));
    println!("| defect | found in | of seeds | first | as |");
    println!("|---|---|---|---|---|");
    let mut survived = Vec::new();
    for defect in Defect::ALL {
        let arguments = Arguments {
            seeds: Some(seeds),
            defect: Some(*defect),
            ..arguments.clone()
        };
        let sum = run_seeds(&arguments, |_, _| {});
        let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
        for (_, findings) in &sum.failed {
            if let Some((what, _)) = findings.first().and_then(|one| one.split_once(": ")) {
                *kinds.entry(what).or_default() += 1;
            }
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let kinds: Vec<_> = kinds
            .iter()
            .map(|(what, count)| format!("{what} ({count})"))
            .collect();
        let first = sum.failed.first().map_or(0, |(seed, _)| *seed);
        println!(
            "| {} | {} | {} | {first} | {} |",
            defect.name(),
            sum.failed.len(),
            sum.seeds,
            kinds.join("; ")
        );
        if sum.failed.is_empty() {
            survived.push(defect.name());
        }
    }
    println!(
        "{} defects in {:.0} s",
        Defect::ALL.len(),
        clock.now().as_secs_f64()
    );
    match survived.is_empty() {
        true => SUCCESS,
        false => {
            println!("not found: {}", survived.join(", "));
            FAILURE
        }
    }
}
