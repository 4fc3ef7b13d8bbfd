//! The `etched` program: carries out a command, or reads the configuration and runs a member. It
//! is what the crate shows; the rest is its own, so that the compiler finds what nothing uses.

use std::cell::Cell;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::{
    self, Command, Exit, Export, Level, Loaded, LogConfig, Note, Proxy, Restore, Surroundings,
};
use crate::env::SystemClock;
use crate::offline;
use crate::profile;
use crate::proxy;
use crate::server::signals::{self, Interruption};
use crate::server::traces::Traces;
use crate::server::{self, from_snapshot, logging, run::Stopped, threads, to_etcd};

/// What the program's allocator reports to.
pub mod heap {
    pub use crate::profile::heap::{Stack, allocated, freed, is_sampled};
}

/// Runs seeds of the simulator and says what came of them.
#[cfg(any(test, feature = "simulation"))]
pub use crate::sim::command::start as simulate;

/// Between two times that threads give back what they have freed.
const GIVE_BACK_INTERVAL: Duration = Duration::from_secs(1);

/// Has the allocator give back to the system what the calling thread has freed.
pub type GiveBack = fn();

/// Runs the program with the process's arguments and environment.
pub fn run(give_back: GiveBack) -> ExitCode {
    let small_pages = rustix::thread::disable_transparent_huge_pages(true);
    let around = Surroundings {
        env: std::env::vars_os().collect(),
        read_file: &|path| std::fs::read_to_string(path),
        default_host: &config::default_host,
        memory_bytes: &config::memory_bytes,
    };
    let args: Vec<OsString> = std::env::args_os().collect();
    match config::command(&args) {
        Some(Ok(Command::Version)) => {
            return logging::exit(&Exit::printed(config::version(), ""));
        }
        Some(Ok(Command::Restore(command))) => return with_threads(|| restore(command)),
        Some(Ok(Command::Offline(command))) => return with_threads(|| offline::run(&command)),
        Some(Ok(Command::Export(command))) => return with_threads(|| export(command)),
        Some(Ok(Command::Proxy(command))) => return proxy(*command, args, give_back),
        Some(Err(exit)) => return logging::exit(&exit),
        None => {}
    }
    let loaded = match config::load(args, &around) {
        Ok(loaded) => loaded,
        Err(exit) => return logging::exit(&exit),
    };
    if loaded.config.serves_profiles() {
        profile::heap::start();
    }
    // What it cannot do is said once there is a log.
    let runtime = start_runtime(give_back, threads::of_member());
    let traces = match (&loaded.config.tracing, &runtime) {
        (Some(tracing), Ok(runtime)) => Traces::start(tracing, runtime.handle()).map(Some),
        _ => Ok(None),
    };
    let heard = traces.as_ref().ok().and_then(Option::as_ref);
    let logged = logging::init(&loaded.config.log, heard);
    logging::notes(&loaded.notes);
    if let Err(error) = small_pages {
        // The allocator's region is sparse: with pages of 2 MiB twice its memory is resident.
        tracing::warn!(%error, "cannot turn off huge pages; more memory will be resident");
    }
    // Without threads there may be no log either: their reason is said first.
    let runtime = runtime.and_then(|runtime| match logged {
        Ok(()) => Ok(runtime),
        Err(error) => Err(error.to_string()),
    });
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(reason) => {
            logging::fatal("discovery failed", &reason);
            return ExitCode::from(1);
        }
    };
    #[cfg(feature = "failpoints")]
    if let Err(error) = server::failpoints::start() {
        logging::fatal("failpoints cannot be set up", &error.to_string());
        return ExitCode::from(1);
    }
    let member = async { server::run::run(loaded.config, traces?, give_back).await };
    end(runtime.block_on(member))
}

/// Carries out a command that works on a state, whose library would end the process where it can have
/// no threads.
fn with_threads(command: impl FnOnce() -> ExitCode) -> ExitCode {
    match threads::check(threads::of_command()) {
        Ok(()) => command(),
        Err(error) => {
            eprintln!("etched: {error}");
            ExitCode::from(1)
        }
    }
}

/// Ends the process as its member ended.
fn end(ended: Result<Stopped, server::Error>) -> ! {
    match ended {
        Ok(Stopped::Signal(signal)) => {
            logging::flush();
            signals::end_by(signal)
        }
        Ok(Stopped::Removed) => {
            logging::flush();
            std::process::exit(0);
        }
        Err(server::Error::Discovery {
            token,
            endpoints,
            reason,
        }) => {
            logging::notes(&server::discovery::refusal(&token, &endpoints, &reason));
            logging::flush();
            std::process::exit(1);
        }
        Err(server::Error::Failed(reason)) => {
            logging::fatal("stopped: the member cannot continue", &reason);
            std::process::exit(1);
        }
        Err(error @ server::Error::ClientTls(_)) => {
            logging::fatal("listener failed", &error.to_string());
            std::process::exit(1);
        }
        Err(error) => {
            logging::fatal("discovery failed", &error.to_string());
            std::process::exit(1);
        }
    }
}

/// The configuration of the member that a command is about.
fn load_member(flags: Vec<OsString>) -> Result<Loaded, Box<Exit>> {
    let around = Surroundings {
        // The flags of this command are all that counts.
        env: Vec::new(),
        read_file: &|path| std::fs::read_to_string(path),
        default_host: &config::default_host,
        memory_bytes: &config::memory_bytes,
    };
    let args: Vec<OsString> = std::iter::once("etched".into()).chain(flags).collect();
    config::load(args, &around)
}

/// What a command says, which may be that it was interrupted, and how it ends.
fn failed(name: &str, error: &server::Error, interruption: &Interruption) -> ExitCode {
    match interruption.came() {
        Some(signal) => {
            eprintln!("etched {name}: interrupted");
            signals::end_by(signal)
        }
        None => {
            eprintln!("etched {name}: {error}");
            ExitCode::from(1)
        }
    }
}

fn listen_for_interruption(name: &str) -> Result<Interruption, ExitCode> {
    Interruption::listen().map_err(|error| {
        eprintln!("etched {name}: cannot wait for signals: {error}");
        ExitCode::from(1)
    })
}

/// Makes an etcd's directory; the outcome is written to stderr.
fn export(command: Export) -> ExitCode {
    let loaded = match load_member(command.member) {
        Ok(loaded) => loaded,
        Err(exit) => return logging::exit(&exit),
    };
    let interruption = match listen_for_interruption("export") {
        Ok(interruption) => interruption,
        Err(code) => return code,
    };
    let interrupted = || interruption.came().is_some();
    match to_etcd::export(&loaded.config, &command.to, &interrupted) {
        Ok(exported) => {
            eprintln!(
                "exported member {} at revision {} (entry {}, and {} entries behind it) into {}",
                exported.member,
                exported.revision,
                exported.applied_index,
                exported.last_index - exported.applied_index,
                command.to.display()
            );
            ExitCode::SUCCESS
        }
        Err(error) => failed("export", &error, &interruption),
    }
}

/// Makes a new member from etcd's snapshot file; progress and the outcome go to stderr.
fn restore(command: Restore) -> ExitCode {
    let loaded = match load_member(command.member) {
        Ok(loaded) => loaded,
        Err(exit) => return logging::exit(&exit),
    };
    let interruption = match listen_for_interruption("restore") {
        Ok(interruption) => interruption,
        Err(code) => return code,
    };
    let order = from_snapshot::Order {
        snapshot: &command.snapshot,
        config: &loaded.config,
        changes: from_snapshot::Changes {
            bump_revision: command.bump_revision,
            mark_compacted: command.mark_compacted,
        },
        skip_hash_check: command.skip_hash_check,
        clock: &SystemClock::new(),
        interrupted: &|| interruption.came().is_some(),
    };
    match from_snapshot::restore(&order, &mut |line| eprintln!("{line}")) {
        Ok(imported) => {
            eprintln!(
                "restored {} keys, {} records, revision {}, into {}",
                imported.keys,
                imported.records,
                imported.revision,
                loaded.config.data_dir.display()
            );
            if command.bump_revision == 0 {
                eprintln!(
                    "no revisions were skipped; if the old cluster kept running after the file was saved, make all members again with --bump-revision 1000000000 --mark-compacted before they start"
                );
            }
            ExitCode::SUCCESS
        }
        Err(error) => failed("restore", &error, &interruption),
    }
}

/// Stands before a cluster until a signal comes.
fn proxy(command: Proxy, args: Vec<OsString>, give_back: GiveBack) -> ExitCode {
    let log = LogConfig {
        level: match &command {
            Proxy::Grpc(start) if start.debug => Level::Debug,
            _ => Level::Info,
        },
        ..LogConfig::default()
    };
    let failed = |reason: &dyn std::fmt::Display| {
        logging::flush();
        eprintln!("{reason}");
        ExitCode::from(1)
    };
    if let Err(error) = logging::init(&log, None) {
        return failed(&error);
    }
    let args: Vec<String> = args
        .iter()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    logging::notes(&[Note::info("Running: ").with("args", args)]);
    let runtime = match start_runtime(give_back, threads::of_proxy()) {
        Ok(runtime) => runtime,
        Err(reason) => return failed(&reason),
    };
    match runtime.block_on(proxy::run(command)) {
        Ok(signal) => {
            logging::flush();
            signals::end_by(signal)
        }
        Err(error) => failed(&error),
    }
}

/// The runtime, whose threads give back what they freed, where the process may have `needed` threads.
fn start_runtime(give_back: GiveBack, needed: usize) -> Result<tokio::runtime::Runtime, String> {
    threads::check(needed).map_err(|error| error.to_string())?;
    let rounds = Arc::<AtomicU64>::default();
    let parking = rounds.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("etched")
        .on_thread_park(move || give_back_once(&parking, give_back))
        .build()
        .map_err(|error| format!("cannot start threads: {error}"))?;
    runtime.spawn_blocking(give_back);
    runtime.spawn(async move {
        loop {
            tokio::time::sleep(GIVE_BACK_INTERVAL).await;
            rounds.fetch_add(1, Ordering::Relaxed);
            // A thread for what blocks ends when it has had nothing to do for a while. One of them
            // stays by this: without any, what is to be looked up would panic where the system has no
            // thread to give.
            tokio::task::spawn_blocking(give_back);
        }
    });
    Ok(runtime)
}

/// An allocator looks for pages that hold nothing when it is asked for memory, so what a flood of
/// requests took would stay until the next. A thread that has nothing to do has the time to look,
/// once in every round.
fn give_back_once(rounds: &AtomicU64, give_back: GiveBack) {
    thread_local! {
        static LAST: Cell<u64> = const { Cell::new(0) };
    }
    let round = rounds.load(Ordering::Relaxed);
    if LAST.replace(round) != round {
        give_back();
    }
}
