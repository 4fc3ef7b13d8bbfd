//! The signals that stop a member, from the start of the process to its end.
//!
//! A member that serves stops in order. One that still starts, which may take as long as others
//! are not there, has nothing to put in order and ends at once. The kernel does that to all but
//! the first process of a container, where a signal that nobody listens for is lost: so somebody
//! listens from the beginning.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::{Error, logging};

/// The signals as they are listened for.
pub struct StopSignals {
    serving: Arc<AtomicBool>,
    came: oneshot::Receiver<i32>,
}

impl StopSignals {
    /// Begins to listen: until `while_serving` a signal ends the process.
    pub fn listen() -> Result<Self, Error> {
        let os = |error| Error::Os {
            what: "wait for signals",
            error,
        };
        let mut terminate = signal(SignalKind::terminate()).map_err(os)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(os)?;
        let (sender, came) = oneshot::channel();
        let serving = Arc::new(AtomicBool::new(false));
        let orderly = serving.clone();
        // A task, as a start may keep its own thread busy.
        tokio::spawn(async move {
            let (number, name) = first(&mut terminate, &mut interrupt).await;
            tracing::info!(signal = name, "received signal; shutting down");
            if !orderly.load(Ordering::SeqCst) {
                logging::flush();
                end_by(number);
            }
            // The receiver is gone: the process ends for another reason.
            let _ = sender.send(number);
        });
        Ok(Self { serving, came })
    }

    /// The signal that comes from now on, for an orderly stop.
    pub fn while_serving(self) -> impl Future<Output = i32> {
        self.serving.store(true, Ordering::SeqCst);
        async {
            match self.came.await {
                Ok(number) => number,
                // The runtime is going down.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

/// The same signals for a command that leaves nothing behind: it checks now and then whether one
/// has come. A second one ends the process at once.
pub struct Interruption {
    /// 0: none.
    signal: Arc<AtomicUsize>,
}

impl Interruption {
    /// Begins to listen.
    pub fn listen() -> io::Result<Self> {
        let signal = Arc::<AtomicUsize>::default();
        let again = Arc::<AtomicBool>::default();
        for number in [SIGTERM, SIGINT] {
            flag::register_conditional_default(number, again.clone())?;
            flag::register(number, again.clone())?;
            flag::register_usize(number, signal.clone(), number as usize)?;
        }
        Ok(Self { signal })
    }

    /// The signal that came.
    pub fn came(&self) -> Option<i32> {
        match self.signal.load(Ordering::SeqCst) {
            0 => None,
            number => Some(number as i32),
        }
    }
}

async fn first(terminate: &mut Signal, interrupt: &mut Signal) -> (i32, &'static str) {
    tokio::select! {
        _ = terminate.recv() => (SignalKind::terminate().as_raw_value(), "terminated"),
        _ = interrupt.recv() => (SignalKind::interrupt().as_raw_value(), "interrupt"),
    }
}

/// Ends the process by this signal, as the default handler would: systemd regards that as a clean
/// stop. The first process of a container, which signals cannot end, exits successfully.
pub fn end_by(signal: i32) -> ! {
    if std::process::id() != 1
        && let Err(error) = signal_hook::low_level::emulate_default_handler(signal)
    {
        tracing::warn!(signal, %error, "cannot end by the signal");
        std::process::exit(128 + signal);
    }
    std::process::exit(0)
}
