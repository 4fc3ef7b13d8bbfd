//! The log in a file of a limited size: a full one is put aside under a name with the time, and of
//! those so many are kept, for so long, compressed where that was asked for. Names, modes and
//! limits are those of etcd, so that what collects its files finds ours.
//!
//! A line is in one file. If a file cannot be put aside, the log continues in it: lines matter more
//! than sizes. What happens to the files that were put aside is done by a thread of its own, since
//! compression takes seconds in which lines come. There is one at a time, which starts again where
//! more were put aside meanwhile.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use time::PrimitiveDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use crate::config::Rotation;
use crate::env::Clock;

const STAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]-[minute]-[second].[subsecond digits:3]");
const COMPRESSED: &str = ".gz";
const THREAD: &str = "log-files";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A file that is put aside when it is full.
pub struct RotatingFile {
    files: Arc<Files>,
    file: File,
    size: u64,
    /// The size from which it is tried to put it aside.
    full_at: u64,
}

/// The name of the file, and with it of those that were put aside.
struct Files {
    path: PathBuf,
    rotation: Rotation,
    clock: Arc<dyn Clock>,
    tending: Mutex<Tending>,
}

/// Whether a thread sees to the files that were put aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tending {
    #[default]
    Idle,
    Working,
    /// It does, and has to list them again.
    Behind,
}

impl RotatingFile {
    /// # Errors
    /// The file cannot be opened, or made with its directory.
    pub fn open(path: &Path, rotation: &Rotation, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let files = Arc::new(Files {
            path: path.to_owned(),
            rotation: rotation.clone(),
            clock,
            tending: Mutex::default(),
        });
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(dir)?;
        }
        let file = files.open(0o600)?;
        let size = file.metadata()?.len();
        files.tend();
        Ok(Self {
            full_at: rotation.max_bytes,
            files,
            file,
            size,
        })
    }

    fn put_aside(&mut self) -> io::Result<()> {
        let mode = self.file.metadata()?.permissions().mode() & 0o7777;
        fs::rename(&self.files.path, self.files.aside())?;
        self.file = self.files.open(mode)?;
        self.size = 0;
        self.full_at = self.files.rotation.max_bytes;
        self.files.tend();
        Ok(())
    }

    /// How much of the text, which is whole lines, fits into this file: at least the first line
    /// where the file is empty.
    fn fitting(&self, text: &[u8]) -> usize {
        let room = usize::try_from(self.full_at.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if text.len() <= room {
            return text.len();
        }
        let ends = |byte: &u8| *byte == b'\n';
        match text[..room].iter().rposition(ends) {
            Some(last) => last + 1,
            None if self.size > 0 => 0,
            None => text.iter().position(ends).map_or(text.len(), |at| at + 1),
        }
    }
}

impl Write for RotatingFile {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let mut len = self.fitting(text);
        if len == 0 && !text.is_empty() {
            if let Err(error) = self.put_aside() {
                let path = self.files.path.display();
                let _ = writeln!(io::stderr(), "cannot rotate the log {path}: {error}");
                // Not again for every line.
                self.full_at = self.size + self.files.rotation.max_bytes / 10 + text.len() as u64;
            }
            len = self.fitting(text);
        }
        self.file.write_all(&text[..len])?;
        self.size += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Files {
    fn open(&self, mode: u32) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options
            .append(true)
            .create(true)
            .mode(mode)
            .open(&self.path)
    }

    /// What stands before and after the time in the name of a file that was put aside.
    fn parts(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| {
            part.unwrap_or_default().to_string_lossy().into_owned()
        };
        let extension = match self.path.extension() {
            None => String::new(),
            some => format!(".{}", text(some)),
        };
        (format!("{}-", text(self.path.file_stem())), extension)
    }

    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::from(UNIX_EPOCH + self.clock.wall())
    }

    fn aside(&self) -> PathBuf {
        let (before, after) = self.parts();
        let mut now = self.now();
        loop {
            let shown = match self.rotation.local_time {
                true => now.to_offset(local_offset(now)),
                false => now,
            };
            let stamp = shown.format(STAMP).unwrap_or_default();
            let path = self.path.with_file_name(format!("{before}{stamp}{after}"));
            if !path.exists() {
                return path;
            }
            // Full within a millisecond, or by a clock that was set back.
            now += Duration::from_millis(1);
        }
    }

    /// Files that were put aside, the newest first, and when that was by their names.
    fn put_aside(&self) -> io::Result<Vec<(PrimitiveDateTime, PathBuf)>> {
        let (before, after) = self.parts();
        let dir = match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let stamp = name.to_str().and_then(|name| {
                let name = name.strip_suffix(COMPRESSED).unwrap_or(name);
                name.strip_prefix(&before)?.strip_suffix(&after)
            });
            let at = stamp.and_then(|stamp| PrimitiveDateTime::parse(stamp, STAMP).ok());
            if let Some(at) = at
                && entry.file_type()?.is_file()
            {
                found.push((at, entry.path()));
            }
        }
        found.sort_by(|one, other| other.cmp(one));
        Ok(found)
    }

    /// Has files that were put aside compressed and removed.
    fn tend(self: &Arc<Self>) {
        let rotation = &self.rotation;
        if rotation.max_backups == 0 && rotation.max_age_days == 0 && !rotation.compress {
            return;
        }
        let mut tending = self.tending.lock();
        if *tending != Tending::Idle {
            *tending = Tending::Behind;
            return;
        }
        let own = self.clone();
        let thread = std::thread::Builder::new().name(THREAD.to_owned());
        // Without a thread they are seen to after the next file.
        if thread.spawn(move || own.tend_until_done()).is_ok() {
            *tending = Tending::Working;
        }
    }

    fn tend_until_done(&self) {
        loop {
            if let Err(error) = self.tend_now() {
                let path = self.path.display();
                let _ = writeln!(
                    io::stderr(),
                    "cannot tend the files of the log {path}: {error}"
                );
            }
            let mut tending = self.tending.lock();
            if *tending == Tending::Working {
                *tending = Tending::Idle;
                return;
            }
            *tending = Tending::Working;
        }
    }

    fn tend_now(&self) -> io::Result<()> {
        let rotation = &self.rotation;
        let now = self.now();
        let now = match rotation.local_time {
            true => now.to_offset(local_offset(now)),
            false => now,
        };
        let now = PrimitiveDateTime::new(now.date(), now.time());
        let mut kept = Vec::new();
        for (at, path) in self.put_aside()? {
            if !kept.contains(&at) {
                kept.push(at);
            }
            let surplus = rotation.max_backups > 0 && kept.len() as u64 > rotation.max_backups;
            let old = rotation.max_age_days > 0
                && u32::try_from(rotation.max_age_days).is_ok_and(|days| now - at > DAY * days);
            if surplus || old {
                fs::remove_file(&path)?;
            } else if rotation.compress && !is_compressed(&path) {
                compress(&path)?;
            }
        }
        Ok(())
    }
}

fn is_compressed(path: &Path) -> bool {
    path.as_os_str().to_string_lossy().ends_with(COMPRESSED)
}

/// The file in a compressed one beside it, which then takes its place.
fn compress(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(COMPRESSED);
    let target = PathBuf::from(name);
    let mut plain = File::open(path)?;
    let packed = File::create(&target)?;
    let mode = plain.metadata()?.permissions().mode() & 0o7777;
    packed.set_permissions(Permissions::from_mode(mode))?;
    let mut packed = GzEncoder::new(packed, Compression::default());
    let result = io::copy(&mut plain, &mut packed).and_then(|_| packed.finish()?.sync_all());
    match result {
        Ok(()) => fs::remove_file(path),
        Err(error) => {
            // A part of it is worth nothing; the whole one is still there.
            let _ = fs::remove_file(&target);
            Err(error)
        }
    }
}

fn local_offset(at: OffsetDateTime) -> UtcOffset {
    let Ok(instant) = jiff::Timestamp::from_second(at.unix_timestamp()) else {
        return UtcOffset::UTC;
    };
    let seconds = jiff::tz::TimeZone::system().to_offset(instant).seconds();
    UtcOffset::from_whole_seconds(seconds).unwrap_or(UtcOffset::UTC)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::env::{Boxed, SystemClock};

    struct At(Duration);

    impl Clock for At {
        fn now(&self) -> Duration {
            Duration::ZERO
        }
        fn wall(&self) -> Duration {
            self.0
        }
        fn sleep(&self, _: Duration) -> Boxed<()> {
            Box::pin(std::future::pending())
        }
    }

    fn rotation(max_bytes: u64) -> Rotation {
        Rotation {
            max_bytes,
            max_age_days: 0,
            max_backups: 0,
            local_time: false,
            compress: false,
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("the directory");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<_> = entries
            .map(|entry| name(entry).to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn full_files_get_the_time_and_lines_stay_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new/etcd.log");
        // 2026-11-29 09:08:07.006 UTC
        let clock = Arc::new(At(Duration::from_millis(1_795_943_287_006)));
        let mut file = RotatingFile::open(&path, &rotation(10), clock).expect("opens");
        file.write_all(b"one\ntwo\n").expect("writes");
        file.write_all(b"three\nfour\na line longer than a file\nx\n")
            .expect("writes");
        let dir = path.parent().expect("a parent");
        let put_aside: Vec<_> = ["006", "007", "008", "009"]
            .map(|ms| format!("etcd-2026-11-29T09-08-07.{ms}.log"))
            .into();
        assert_eq!(
            names(dir),
            [&put_aside[..], &["etcd.log".to_owned()]].concat()
        );
        let read = |name: &str| fs::read_to_string(dir.join(name)).expect("a file");
        let texts: Vec<_> = names(dir).iter().map(|name| read(name)).collect();
        let lines = "one\ntwo\n|three\n|four\n|a line longer than a file\n|x\n";
        assert_eq!(texts, lines.split('|').collect::<Vec<_>>());
    }

    #[test]
    fn an_existing_file_is_appended_to_and_modes_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        fs::write(&path, "12345678\n").expect("writes");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("sets a mode");
        let mut file =
            RotatingFile::open(&path, &rotation(10), Arc::new(SystemClock::new())).expect("opens");
        file.write_all(b"x\n").expect("writes");
        assert_eq!(fs::read(&path).expect("reads"), b"x\n");
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_takes_the_lines_all_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut file =
            RotatingFile::open(&path, &rotation(10), Arc::new(SystemClock::new())).expect("opens");
        file.write_all(b"12345678\n").expect("writes");
        // The file's name is gone, so that it cannot be renamed.
        fs::rename(&path, dir.path().join("moved")).expect("renames");
        file.write_all(b"more\n").expect("writes");
        let text = fs::read(dir.path().join("moved")).expect("reads");
        assert_eq!(text, b"12345678\nmore\n");
    }

    /// A clock that the thread for files has to wait for.
    #[derive(Default)]
    struct Held {
        gate: Mutex<()>,
        reads: AtomicUsize,
    }

    impl Clock for Held {
        fn now(&self) -> Duration {
            Duration::ZERO
        }
        fn wall(&self) -> Duration {
            if std::thread::current().name() == Some(THREAD) {
                self.reads.fetch_add(1, Ordering::Relaxed);
                drop(self.gate.lock());
            }
            Duration::ZERO
        }
        fn sleep(&self, _: Duration) -> Boxed<()> {
            Box::pin(std::future::pending())
        }
    }

    #[test]
    fn files_that_come_while_others_are_compressed_wait_for_one_thread() {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = Arc::new(Held::default());
        let compressing = Rotation {
            compress: true,
            ..rotation(10)
        };
        let held = clock.gate.lock();
        let path = dir.path().join("log");
        let mut file = RotatingFile::open(&path, &compressing, clock.clone()).expect("opens");
        for _ in 0..50 {
            file.write_all(b"12345678\n").expect("writes");
        }
        drop(held);
        let patience = std::time::Instant::now() + Duration::from_secs(20);
        while *file.files.tending.lock() != Tending::Idle {
            assert!(std::time::Instant::now() < patience, "it does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(clock.reads.load(Ordering::Relaxed), 2);
        let (packed, plain): (Vec<_>, Vec<_>) = names(dir.path())
            .into_iter()
            .partition(|name| name.ends_with(COMPRESSED));
        assert_eq!((packed.len(), plain), (49, vec!["log".to_owned()]));
    }

    #[test]
    fn so_many_are_kept_for_so_long_compressed() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in [
            "log-2026-11-29T09-08-07.006.txt",
            "log-2026-11-28T09-08-07.006.txt",
            "log-2026-11-28T09-08-07.006.txt.gz",
            "log-2026-11-27T10-08-07.006.txt.gz",
            "log-2026-11-20T09-08-07.006.txt",
            "log-of-something-else.txt",
            "other-2026-11-20T09-08-07.006.txt",
        ] {
            fs::write(dir.path().join(name), name).expect("writes");
        }
        let files = |max_backups, max_age_days, compress| Files {
            path: dir.path().join("log.txt"),
            rotation: Rotation {
                max_backups,
                max_age_days,
                compress,
                ..rotation(10)
            },
            clock: Arc::new(At(Duration::from_millis(1_795_943_287_006))),
            tending: Mutex::default(),
        };
        files(0, 2, false).tend_now().expect("tends");
        let left = names(dir.path());
        assert_eq!(left.len(), 6, "{left:?}");
        files(2, 0, true).tend_now().expect("tends");
        assert_eq!(
            names(dir.path()),
            [
                "log-2026-11-28T09-08-07.006.txt.gz",
                "log-2026-11-29T09-08-07.006.txt.gz",
                "log-of-something-else.txt",
                "other-2026-11-20T09-08-07.006.txt",
            ]
        );
        let packed =
            File::open(dir.path().join("log-2026-11-29T09-08-07.006.txt.gz")).expect("opens");
        let text = io::read_to_string(flate2::read::GzDecoder::new(packed)).expect("unpacks");
        assert_eq!(text, "log-2026-11-29T09-08-07.006.txt");
    }
}
