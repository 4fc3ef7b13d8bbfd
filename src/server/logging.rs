//! The log in etcd's format: one JSON object per line (`level`, `ts`, `logger`, `caller`, `msg`,
//! then the fields), or the same in columns (`console`). Scripts, tests and log pipelines depend on
//! it.
//!
//! A line is formatted by the thread that logs and written by a thread of its own, since a reader
//! of stderr may stop reading, and raft must not wait for that. When lines come faster than they
//! can be written, debug and info lines are dropped and counted; see `queue`. So the program has to
//! call [`flush`] before it exits.
//!
//! As in etcd, a place in the source that logs more than 100 lines within a second is thinned out
//! to every 100th, errors excepted.

mod journal;
mod level;
mod line;
mod queue;
mod rotate;

use std::fmt;
use std::fs::OpenOptions;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::num::NonZero;
use std::panic::Location;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter, Layer, SubscriberExt};

use crate::config::{
    Config, Exit, Level, LogConfig, LogFormat, LogOutput, Note, Rotation, os_reason,
};
use crate::env::{Clock, SystemClock};
use crate::server::traces::Traces;
use crate::trace::is_own;
use journal::Journal;
use level::CurrentLevel;
use line::Line;
use queue::LogQueue;
use rotate::RotatingFile;

/// How long the exit waits for the log to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

static LOG: OnceLock<Arc<Log>> = OnceLock::new();

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open sink \"{path}\": open {path}: {}", os_reason(.reason))]
    Open { path: String, reason: io::Error },
    #[error("can't find journal ({}); is systemd-journald running?", os_reason(.0))]
    Journal(io::Error),
    #[error("cannot start the log's thread: {0}")]
    Thread(io::Error),
    #[error("the log is set up already")]
    Twice,
}

/// What all loggers share.
struct Log {
    level: CurrentLevel,
    format: LogFormat,
    queue: Arc<LogQueue>,
    sampler: Sampler,
}

/// Opens the outputs and receives every `tracing` event and every panic from now on; `traces`
/// receive their spans beside it.
///
/// # Errors
/// See [`Error`].
pub fn init(config: &LogConfig, traces: Option<&Traces>) -> Result<(), Error> {
    let mut outputs: Vec<Box<dyn Write + Send>> = Vec::new();
    for output in &config.outputs {
        outputs.push(match output {
            LogOutput::Stderr => Box::new(io::stderr()),
            LogOutput::Stdout => Box::new(io::stdout()),
            LogOutput::Journal => Box::new(Journal::open().map_err(Error::Journal)?),
            LogOutput::File(path) => {
                open(path, config.rotation.as_ref()).map_err(|reason| Error::Open {
                    path: path.display().to_string(),
                    reason,
                })?
            }
        });
    }
    let log = Arc::new(Log::start(config, outputs).map_err(Error::Thread)?);
    let layer = EventLayer::new(Arc::clone(&log));
    LOG.set(log).map_err(|_| Error::Twice)?;
    let registry = tracing_subscriber::registry();
    let set = match traces {
        None => tracing::subscriber::set_global_default(registry.with(layer)),
        Some(traces) => tracing::subscriber::set_global_default(beside(layer, traces)),
    };
    set.map_err(|_| Error::Twice)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// A log whose level decides about its own lines and no longer about what traces receive.
fn beside(log: EventLayer, traces: &Traces) -> impl Subscriber + Send + Sync + use<> {
    let lines = OfLog(Arc::clone(&log.log));
    let registry = tracing_subscriber::registry().with(log.with_filter(lines));
    registry.with(traces.layer())
}

fn open(path: &Path, rotation: Option<&Rotation>) -> io::Result<Box<dyn Write + Send>> {
    Ok(match rotation {
        None => Box::new(OpenOptions::new().append(true).create(true).open(path)?),
        Some(rotation) => Box::new(RotatingFile::open(
            path,
            rotation,
            Arc::new(SystemClock::new()),
        )?),
    })
}

/// Logs what was noted before the log was set up.
#[track_caller]
pub fn notes(notes: &[Note]) {
    let place = Location::caller();
    let Some(log) = LOG.get() else {
        return;
    };
    for note in notes.iter().filter(|note| note.level >= log.level.get()) {
        log.push(&line_of(note, Some(place)));
    }
}

/// The level from which lines are logged, by its name.
pub fn level() -> &'static str {
    let level = LOG.get().map(|log| log.level.get());
    level.unwrap_or(LogConfig::default().level).name()
}

/// Logs from another level on, which a line says; None where there is no such level.
#[track_caller]
pub fn set_level(name: &str) -> Option<()> {
    let level = Level::parse(name)?;
    if let Some(log) = LOG.get() {
        log.change_level(level, Location::caller());
    }
    Some(())
}

/// Logs the settings at a start; `initialized`: the directory holds a member already.
#[track_caller]
pub fn started(config: &Config, member_dir: &Path, initialized: bool) {
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    notes(&[config.starting(member_dir, initialized, cpus)]);
}

/// Logs a fatal line and waits until it is written; the caller exits.
#[track_caller]
pub fn fatal(msg: &str, error: &str) {
    let note = Note::new(Level::Fatal, msg).with("error", error);
    let line = line_of(&note, Some(Location::caller()));
    match LOG.get() {
        Some(log) => {
            log.push(&line);
            log.queue.flush(FLUSH_LIMIT);
        }
        None => print_to(&mut io::stderr(), &line.bytes(LogFormat::Json)),
    }
}

/// Waits until the log is written, 2 seconds at most.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.queue.flush(FLUSH_LIMIT);
    }
}

/// Prints the error of a program that could not start.
pub fn exit(exit: &Exit) -> ExitCode {
    let mut stderr = io::stderr().lock();
    print_to(&mut stderr, exit.stderr.as_bytes());
    for note in &exit.notes {
        print_to(&mut stderr, &line_of(note, None).bytes(exit.format));
    }
    print_to(&mut io::stdout().lock(), exit.stdout.as_bytes());
    ExitCode::from(exit.code)
}

/// Writes to stderr or stdout, whose reader may be gone: then nothing can be reported.
fn print_to(out: &mut dyn Write, bytes: &[u8]) {
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

fn line_of<'a>(note: &'a Note, place: Option<&Location<'static>>) -> Line<'a> {
    Line {
        level: note.level,
        wall: wall(),
        logger: None,
        caller: place.map(|place| (place.file(), place.line())),
        msg: &note.msg,
        fields: note.fields.clone(),
    }
}

fn wall() -> Duration {
    SystemClock::new().wall()
}

fn log_panic(info: &std::panic::PanicHookInfo<'_>) {
    let payload = info.payload();
    let msg = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic".to_owned());
    let stack = std::backtrace::Backtrace::force_capture().to_string();
    let note = Note::new(Level::Panic, msg).with("stacktrace", stack);
    let mut line = line_of(&note, None);
    line.caller = info.location().map(|place| (place.file(), place.line()));
    if let Some(log) = LOG.get() {
        log.push(&line);
        log.queue.flush(FLUSH_LIMIT);
    }
}

impl Log {
    fn start(config: &LogConfig, outputs: Vec<Box<dyn Write + Send>>) -> io::Result<Log> {
        let format = config.format;
        let report = move |dropped: u64| {
            let note = Note::warn("the log was read too slowly; dropped lines of it")
                .with("dropped", dropped);
            line_of(&note, None).bytes(format)
        };
        Ok(Log {
            level: CurrentLevel::new(config.level),
            format,
            queue: LogQueue::start(outputs, Box::new(report))?,
            sampler: Sampler::new(),
        })
    }

    fn change_level(&self, level: Level, place: &Location<'static>) {
        let before = self.level.set(level);
        if before == level {
            return;
        }
        // Whatever the level is: who finds a log without lines can see why.
        let note = Note::info("the log's level was changed")
            .with("from", before.name())
            .with("to", level.name());
        self.push(&line_of(&note, Some(place)));
    }

    fn allows(&self, metadata: &Metadata<'_>) -> bool {
        let limit = if is_own(metadata) {
            self.level.own()
        } else {
            self.level.foreign()
        };
        // A call site may ask whether it would be heard before it makes an event.
        !metadata.is_span() && *metadata.level() <= limit
    }

    fn interest(&self, metadata: &Metadata<'_>) -> Interest {
        if self.allows(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn push(&self, line: &Line<'_>) {
        let keep = line.level >= Level::Warn;
        self.queue.push(line.bytes(self.format), keep);
    }
}

/// Passes `tracing` events to the log. What the level excludes is disabled at its call site, and
/// costs a load and a branch.
struct EventLayer {
    log: Arc<Log>,
}

impl EventLayer {
    fn new(log: Arc<Log>) -> EventLayer {
        EventLayer { log }
    }
}

impl<S: Subscriber> Layer<S> for EventLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        self.log.interest(metadata)
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.log.allows(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.log.level.own())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warn,
            tracing::Level::INFO => Level::Info,
            _ => Level::Debug,
        };
        let wall = wall();
        if level < Level::Error && !self.log.sampler.admits(metadata, wall) {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let named = Some(metadata.target()) != metadata.module_path();
        self.log.push(&Line {
            level,
            wall,
            logger: named.then_some(metadata.target()),
            caller: metadata.file().zip(metadata.line()),
            msg: &fields.msg,
            fields: fields.others,
        });
    }
}

/// The same for the log alone, where others receive what it does not.
struct OfLog(Arc<Log>);

impl<S> Filter<S> for OfLog {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.0.allows(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        self.0.interest(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0.level.own())
    }
}

/// Collects an event's fields; `message` is its text.
#[derive(Default)]
struct Fields {
    msg: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.msg = text,
            (name, value) => self.others.push((name, value)),
        }
    }
}

/// Fields that are lists of texts in etcd's log, given as `?Vec<String>`. `tracing` has no lists,
/// and Rust writes such a one as JSON does, but for rare characters.
const LISTS: [&str; 3] = ["ip-addresses", "dns-names", "cipher-suites"];

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        let list: Option<Vec<Value>> = match LISTS.contains(&field.name()) {
            true => serde_json::from_str(&text).ok(),
            false => None,
        };
        self.add(field, list.map_or(text.into(), Value::from));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, value.to_string().into());
    }
}

/// Counts lines by their place in the source and the second.
struct Sampler {
    /// The second in the upper bits, the count in the lower.
    slots: Box<[AtomicU64]>,
}

const SLOTS: usize = 1024;
const COUNT_BITS: u32 = 24;
const FIRST: u64 = 100;
const THEN_EVERY: u64 = 100;

impl Sampler {
    fn new() -> Sampler {
        Sampler {
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Two places that share a slot share its count, which rarely drops lines that are many anyway.
    fn admits(&self, metadata: &Metadata<'_>, wall: Duration) -> bool {
        let mut hasher = DefaultHasher::new();
        metadata.callsite().hash(&mut hasher);
        let slot = &self.slots[hasher.finish() as usize % SLOTS];
        let second = wall.as_secs() << COUNT_BITS;
        let most = (1 << COUNT_BITS) - 1;
        let count = |held: u64| match held & !most == second {
            true => (held & most).saturating_add(1).min(most),
            false => 1,
        };
        let held = slot
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                Some(second | count(held))
            })
            .unwrap_or_else(|held| held);
        let count = count(held);
        count <= FIRST || (count - FIRST).is_multiple_of(THEN_EVERY)
    }
}

#[cfg(test)]
mod tests;
