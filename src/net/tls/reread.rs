//! Something made from files, made again when one of them changes.
//!
//! Whether they changed is checked where it is needed, so a file takes effect with the next
//! connection. What cannot be made from them as they are now stays as it was, and the log says why
//! once a minute: files are often replaced one after the other, and a certificate without its key
//! must not end what works.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Error;

/// Between two lines about the same files.
const QUIET: Duration = Duration::from_secs(60);

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
    what: &'static str,
    paths: Vec<PathBuf>,
    make: Make<T>,
    state: Mutex<RereadState<T>>,
}

struct RereadState<T> {
    made: Arc<T>,
    /// Of the files when they were read last, whatever came of it.
    stamps: Vec<Option<Stamp>>,
    broken: Option<Broken>,
}

struct Broken {
    error: Error,
    reported: Instant,
}

impl<T> Reread<T> {
    /// `what` is for the log.
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
            what,
            paths,
            make: Box::new(make),
            state: Mutex::new(RereadState {
                made,
                stamps,
                broken: None,
            }),
        })
    }

    /// From the files as they are, or as they were when they were sound.
    pub fn current(&self) -> Arc<T> {
        let stamps = stamps(&self.paths);
        let mut state = self.state.lock();
        if stamps != state.stamps {
            state.stamps = stamps;
            match (self.make)() {
                Ok(made) => {
                    state.made = Arc::new(made);
                    state.broken = None;
                    tracing::info!(of = self.what, files = ?self.paths, "read changed TLS files");
                }
                Err(error) => {
                    self.report(&error);
                    let reported = Instant::now();
                    state.broken = Some(Broken { error, reported });
                }
            }
        } else if let Some(broken) = &mut state.broken
            && broken.reported.elapsed() >= QUIET
        {
            self.report(&broken.error);
            broken.reported = Instant::now();
        }
        state.made.clone()
    }

    fn report(&self, error: &Error) {
        tracing::warn!(
            of = self.what,
            files = ?self.paths,
            %error,
            "cannot use the changed TLS files; what they held before stays in use"
        );
    }
}

/// None for a file that is not there, or not to be read.
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
