//! The disk as the raft log sees it, and the real one. The log asks for no more than this, so that
//! a simulated disk can stand in for it and fail at any of these calls.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Behind the name of a segment that is kept although the log does not need it.
pub(super) const RETIRED_SUFFIX: &str = ".kept";
/// Where Linux says which start of the machine this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One directory of files.
pub trait Files: Send + Sync {
    /// The names in the directory, in no particular order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes an empty file. Fails if the name is taken. The name is durable only after
    /// [`Files::sync_directory`].
    fn create(&self, name: &str) -> io::Result<Arc<dyn OpenFile>>;

    /// Opens a file to read and write.
    fn open(&self, name: &str) -> io::Result<Arc<dyn OpenFile>>;

    /// Takes a name away; handles that are open stay good. Durable only after
    /// [`Files::sync_directory`].
    fn unlink(&self, name: &str) -> io::Result<()>;

    /// Takes away the name of a segment that the log no longer needs, or gives it another one by which
    /// the log does not know it. Durable only after [`Files::sync_directory`].
    fn retire(&self, name: &str) -> io::Result<()> {
        self.unlink(name)
    }

    /// Makes the names durable.
    fn sync_directory(&self) -> io::Result<()>;

    /// The file as a person would name it, for errors and the log. An empty name stands for the
    /// directory.
    fn describe(&self, name: &str) -> String;

    /// Another number whenever the machine was started anew: what was written before, and not
    /// synced, can be read as long as this is the same. 0 where that is not known.
    fn boot(&self) -> u32 {
        0
    }
}

/// An open file.
pub trait OpenFile: Send + Sync {
    /// The file's length in bytes.
    fn bytes(&self) -> io::Result<u64>;

    /// Reads until `buffer` is full or the file ends; answers how many bytes were read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes`; writing beyond the end makes the file longer.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable, and the length with it.
    fn sync_data(&self) -> io::Result<()>;
}

/// A real directory: itself of mode 0700, its files of mode 0600, whatever the umask.
#[derive(Debug, Clone)]
pub struct RealFiles {
    directory: PathBuf,
    writable: bool,
    retained: Retained,
}

/// How many retired segments stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Retained {
    #[default]
    None,
    Newest(u64),
    All,
}

impl RealFiles {
    /// Uses `directory`, which is made, durably, if it is not there. One that is there keeps its
    /// mode.
    ///
    /// # Errors
    /// Those of the disk; above all when the parent is missing or may not be written to.
    pub fn new(directory: impl Into<PathBuf>) -> io::Result<Self> {
        let directory = directory.into();
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => {
                fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
                let parent = match directory.parent() {
                    Some(parent) if parent != Path::new("") => parent,
                    _ => Path::new("."),
                };
                File::open(parent)?.sync_all()?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            directory,
            writable: true,
            retained: Retained::None,
        })
    }

    /// Keeps as many of the segments that the log retires.
    #[must_use]
    pub fn retaining(self, retained: Retained) -> Self {
        Self { retained, ..self }
    }

    /// Uses `directory` as it is: files are opened to be read, and everything else fails.
    #[must_use]
    pub fn read_only(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            writable: false,
            retained: Retained::None,
        }
    }

    fn check_writable(&self) -> io::Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }
}

impl Files for RealFiles {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            // A name that is not UTF-8 is not one of ours; the lossy form is enough to report it.
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn OpenFile>> {
        self.check_writable()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.directory.join(name))?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn OpenFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(self.writable)
            .open(self.directory.join(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.check_writable()?;
        fs::remove_file(self.directory.join(name))
    }

    fn retire(&self, name: &str) -> io::Result<()> {
        let most = match self.retained {
            Retained::None => return self.unlink(name),
            Retained::Newest(most) => usize::try_from(most).unwrap_or(usize::MAX),
            Retained::All => usize::MAX,
        };
        self.check_writable()?;
        let to = format!("{name}{RETIRED_SUFFIX}");
        fs::rename(self.directory.join(name), self.directory.join(&to))?;
        let kind = |name: &str| name.split_once('.').map(|(_, kind)| kind.to_owned());
        let mut all = self.list()?;
        all.retain(|name| kind(name) == kind(&to));
        all.sort_unstable();
        let surplus = all.len().saturating_sub(most);
        all[..surplus].iter().try_for_each(|name| self.unlink(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn describe(&self, name: &str) -> String {
        let path = if name.is_empty() {
            self.directory.clone()
        } else {
            self.directory.join(name)
        };
        path.display().to_string()
    }

    fn boot(&self) -> u32 {
        // Where the system does not tell, each start counts as one of the machine.
        let id = fs::read(BOOT_ID).unwrap_or_default();
        match id.is_empty() {
            true => 0,
            false => crc32fast::hash(&id).max(1),
        }
    }
}

struct RealFile(File);

impl OpenFile for RealFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self
                .0
                .read_at(&mut buffer[filled..], offset + filled as u64)
            {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
