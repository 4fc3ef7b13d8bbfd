//! Something made from files, made again when one of them changes.
//!
//! Whether they changed is checked where it is needed, so a file takes effect with the next
//! connection. What cannot be made from them as they are now stays as it was, and the log says why
//! once a minute: files are often replaced one after the other, and a certificate without its key
//! must not end what works.
//!
//! The file system is asked on the runtime's threads for what blocks, never on those that serve: one
//! that does not answer (a mount whose server is away) is as good as a broken file. At most one such
//! thread works for a set of files, however many connections come: one check counts for all that
//! asked for one before it began. They are the runtime's and not those of `env`, which a member's
//! state needs.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::Error;

/// Between two lines about the same files.
const QUIET: Duration = Duration::from_secs(60);
/// So long a connection waits for a check.
const CHECK_LIMIT: Duration = Duration::from_secs(2);
/// And not at all where one is under way for so long.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// What tells a file from another or a newer one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    modified: Option<SystemTime>,
    /// Of its inode, in nanoseconds: a tool may keep the other one.
    changed: (i64, i64),
}

type Make<T> = Box<dyn Fn() -> Result<T, Error> + Send + Sync>;

/// See the module.
pub struct Reread<T> {
    shared: Arc<Shared<T>>,
    /// Who has it checks the files, and keeps it until that is done.
    turn: Arc<Turn<Checked>>,
    /// How many checks were asked for.
    asked: AtomicU64,
}

struct Shared<T> {
    what: &'static str,
    paths: Vec<PathBuf>,
    make: Make<T>,
    used: Mutex<Used<T>>,
}

/// What connections see.
struct Used<T> {
    made: Arc<T>,
    /// When the check that is under way began.
    checking_since: Option<Instant>,
    /// When the log said last that one takes long.
    slow_reported: Option<Instant>,
}

/// What came of the checks so far.
struct Checked {
    /// All that were asked for up to this one are done.
    through: u64,
    /// Of the files when they were read last, whatever came of it.
    stamps: Vec<Option<Stamp>>,
    broken: Option<Broken>,
}

struct Broken {
    error: Error,
    reported: Instant,
}

impl<T: Send + Sync + 'static> Reread<T> {
    /// Reads the files on the calling thread. `what` is for the log.
    ///
    /// # Errors
    /// Those of `make`, with the files as they are.
    pub fn new(
        what: &'static str,
        paths: Vec<PathBuf>,
        make: impl Fn() -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        // Before they are read: what changes meanwhile is read again.
        let stamps = stamps(&paths);
        let made = Arc::new(make()?);
        Ok(Self {
            shared: Arc::new(Shared {
                what,
                paths,
                make: Box::new(make),
                used: Mutex::new(Used {
                    made,
                    checking_since: None,
                    slow_reported: None,
                }),
            }),
            turn: Arc::new(Turn::new(Checked {
                through: 0,
                stamps,
                broken: None,
            })),
            asked: AtomicU64::new(0),
        })
    }

    /// From the files as they are, or as they were when they were sound and could be read.
    pub async fn current(&self) -> Arc<T> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let is_late = match self.shared.is_stuck() {
            true => true,
            false => {
                let checked = tokio::time::timeout(CHECK_LIMIT, self.check(number));
                checked.await.is_err()
            }
        };
        if is_late {
            self.shared.report_slow();
        }
        self.shared.used.lock().made.clone()
    }

    /// Returns after a check that began after this was called.
    async fn check(&self, number: u64) {
        let mut checked = self.turn.clone().lock_owned().await;
        if checked.through >= number {
            return;
        }
        checked.through = self.asked.load(Ordering::SeqCst);
        let under_way = UnderWay::begin(&self.shared);
        // Nobody may wait any more when it ends; the turn goes with it. One that panicked changed
        // nothing.
        let _ = spawn_blocking(move || under_way.check(checked)).await;
    }
}

/// A check, until it is dropped.
struct UnderWay<T>(Arc<Shared<T>>);

impl<T> UnderWay<T> {
    fn begin(shared: &Arc<Shared<T>>) -> Self {
        shared.used.lock().checking_since = Some(Instant::now());
        Self(shared.clone())
    }

    /// May block.
    fn check(self, mut checked: OwnedMutexGuard<Checked>) {
        self.0.check(&mut checked);
        // Before the turn is another's.
        drop(self);
    }
}

impl<T> Drop for UnderWay<T> {
    fn drop(&mut self) {
        self.0.used.lock().checking_since = None;
    }
}

impl<T> Shared<T> {
    fn check(&self, checked: &mut Checked) {
        let stamps = stamps(&self.paths);
        if stamps != checked.stamps {
            checked.stamps = stamps;
            match (self.make)() {
                Ok(made) => {
                    self.used.lock().made = Arc::new(made);
                    checked.broken = None;
                    tracing::info!(of = self.what, files = ?self.paths, "read changed TLS files");
                }
                Err(error) => {
                    self.report(&error);
                    let reported = Instant::now();
                    checked.broken = Some(Broken { error, reported });
                }
            }
        } else if let Some(broken) = &mut checked.broken
            && broken.reported.elapsed() >= QUIET
        {
            self.report(&broken.error);
            broken.reported = Instant::now();
        }
    }

    /// Whether a check is under way that is not waited for.
    fn is_stuck(&self) -> bool {
        let since = self.used.lock().checking_since;
        since.is_some_and(|since| since.elapsed() >= STUCK_AFTER)
    }

    fn report(&self, error: &Error) {
        tracing::warn!(
            of = self.what,
            files = ?self.paths,
            %error,
            "cannot use the changed TLS files; what they held before stays in use"
        );
    }

    fn report_slow(&self) {
        let now = Instant::now();
        {
            let reported = &mut self.used.lock().slow_reported;
            if reported.is_some_and(|last| now - last < QUIET) {
                return;
            }
            *reported = Some(now);
        }
        tracing::warn!(
            of = self.what,
            files = ?self.paths,
            limit = ?CHECK_LIMIT,
            "cannot tell in time whether the TLS files have changed; what they held before stays in use"
        );
    }
}

/// None for a file that is not there, or not to be read. May block.
fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    use std::os::unix::fs::MetadataExt as _;
    let stamp = |path: &PathBuf| {
        let found = fs::metadata(path).ok()?;
        Some(Stamp {
            file: (found.dev(), found.ino()),
            length: found.len(),
            modified: found.modified().ok(),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    };
    paths.iter().map(stamp).collect()
}
