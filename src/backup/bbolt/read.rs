//! A bbolt file that nobody writes to, bucket by bucket, in the order of keys.
//!
//! Nothing of the file is believed: whatever it says is checked against its length, pages against
//! their numbers, keys against their order, so that a damaged file ends in an error that names the
//! page. Memory is one page a level of the tree.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::page::{
    BRANCH, BUCKET, BUCKET_BYTES, ELEMENT_BYTES, HEAD_BYTES, Head, LEAF, Meta, u32_at, u64_at,
};

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is not a bbolt database")]
    Foreign,
    #[error("it belongs to an etcd that runs: save a snapshot of that, or stop it first")]
    InUse,
    #[error("it ends after {has_bytes} of {wants_bytes} bytes")]
    Truncated { has_bytes: u64, wants_bytes: u64 },
    #[error("page {page} is damaged: {reason}")]
    Damaged { page: u64, reason: &'static str },
}

/// Levels of a tree; bbolt's own files have a handful.
const MAX_DEPTH: usize = 32;
const PAGE_SIZES: [u64; 7] = [
    1 << 10,
    1 << 11,
    1 << 12,
    1 << 13,
    1 << 14,
    1 << 15,
    1 << 16,
];

/// An open file.
pub struct File {
    file: std::fs::File,
    meta: Meta,
}

/// What is done with a pair. An error ends the walk.
pub type Visit<'a, E> = dyn FnMut(&[u8], &[u8]) -> Result<(), E> + 'a;

type VisitElement<'a, E> = dyn FnMut(u32, &[u8], &[u8]) -> Result<(), E> + 'a;

impl File {
    /// Opens a file that nobody has open to write to it, and keeps it so: an etcd would write to
    /// pages that are read here.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = std::fs::File::open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => Err(Error::InUse),
            // bbolt does not write without a lock, so nobody does where there are none.
            _ => Self::of(file),
        }
    }

    /// The same of a file whose lock is held already, for as long as this is used.
    pub fn open_held(path: &Path) -> Result<Self, Error> {
        Self::of(std::fs::File::open(path)?)
    }

    /// What stands behind the last page is not read.
    fn of(file: std::fs::File) -> Result<Self, Error> {
        let len = file.metadata()?.len();
        let meta = newest_meta(&file)?.ok_or(Error::Foreign)?;
        if !PAGE_SIZES.contains(&u64::from(meta.page_bytes)) {
            return Err(Error::Foreign);
        }
        let wants_bytes = meta.pages.saturating_mul(u64::from(meta.page_bytes));
        if len < wants_bytes {
            return Err(Error::Truncated {
                has_bytes: len,
                wants_bytes,
            });
        }
        Ok(Self { file, meta })
    }

    /// How long the file is, without what stands behind its last page.
    pub fn bytes(&self) -> u64 {
        self.meta.pages * u64::from(self.meta.page_bytes)
    }

    /// The names of the buckets at the top.
    pub fn buckets(&self) -> Result<Vec<Vec<u8>>, Error> {
        let mut names = Vec::new();
        self.walk::<Error>(Root::Page(self.meta.root), &mut |flags, key, _| {
            if flags & BUCKET != 0 {
                names.push(key.to_vec());
            }
            Ok(())
        })?;
        Ok(names)
    }

    /// Visits the pairs of a bucket at the top; false where there is no such bucket.
    pub fn each<E: From<Error>>(&self, bucket: &[u8], visit: &mut Visit<'_, E>) -> Result<bool, E> {
        let mut found = None;
        self.walk::<Error>(Root::Page(self.meta.root), &mut |flags, key, value| {
            if key == bucket && flags & BUCKET != 0 {
                found = Some(value.to_vec());
            }
            Ok(())
        })?;
        let Some(header) = found else {
            return Ok(false);
        };
        let root = self.root_of(&header)?;
        self.walk(root, &mut |_, key, value| visit(key, value))?;
        Ok(true)
    }

    fn root_of<'a>(&self, header: &'a [u8]) -> Result<Root<'a>, Error> {
        let page = u64_at(header, 0).ok_or(self.damaged(self.meta.root, "a bucket has no root"))?;
        match (page, header.get(BUCKET_BYTES..)) {
            (0, Some(inline)) => Ok(Root::Inline(inline)),
            (0, None) => Err(self.damaged(self.meta.root, "a bucket has no root")),
            (page, _) => Ok(Root::Page(page)),
        }
    }

    fn damaged(&self, page: u64, reason: &'static str) -> Error {
        Error::Damaged { page, reason }
    }

    /// Visits the elements of a tree in order: flags, key, value.
    fn walk<E: From<Error>>(
        &self,
        root: Root<'_>,
        visit: &mut VisitElement<'_, E>,
    ) -> Result<(), E> {
        let mut last = LastKey::default();
        let root = match root {
            Root::Inline(bytes) => {
                let page = Page::parse(0, bytes.to_vec())?;
                return page.each(&mut last, visit);
            }
            Root::Page(page) => page,
        };
        // The branches on the way down, and which child of each is next.
        let mut path: Vec<(Page, usize)> = Vec::new();
        let mut next = Some(root);
        while let Some(id) = next {
            let page = self.page(id)?;
            match page.head.flags {
                LEAF => page.each(&mut last, visit)?,
                _ if path.len() == MAX_DEPTH => {
                    return Err(self.damaged(id, "its tree is too deep").into());
                }
                _ => path.push((page, 0)),
            }
            next = None;
            while let Some((branch, at)) = path.last_mut() {
                if *at < branch.count() {
                    next = Some(branch.child(*at)?);
                    *at += 1;
                    break;
                }
                path.pop();
            }
        }
        Ok(())
    }

    /// Reads a page with all that it extends over.
    fn page(&self, id: u64) -> Result<Page, Error> {
        let page_bytes = u64::from(self.meta.page_bytes);
        let outside = || self.damaged(id, "it lies outside of the file");
        if id < 2 || id >= self.meta.pages {
            return Err(outside());
        }
        let mut bytes = vec![0; page_bytes as usize];
        self.file.read_exact_at(&mut bytes, id * page_bytes)?;
        let head = Head::parse(&bytes).ok_or_else(outside)?;
        if head.id != id {
            return Err(self.damaged(id, "it says that it is another one"));
        }
        let more = u64::from(head.overflow);
        if id + more >= self.meta.pages {
            return Err(outside());
        }
        if more > 0 {
            let first = bytes.len();
            bytes.resize(first + (more * page_bytes) as usize, 0);
            self.file
                .read_exact_at(&mut bytes[first..], (id + 1) * page_bytes)?;
        }
        Page::parse(id, bytes)
    }
}

enum Root<'a> {
    Page(u64),
    /// A leaf within a bucket's element.
    Inline(&'a [u8]),
}

/// The whole meta page of the later transaction. The second one's place depends on the size of
/// pages, which only a whole one says.
fn newest_meta(file: &std::fs::File) -> Result<Option<Meta>, Error> {
    let mut newest: Option<Meta> = None;
    for at in std::iter::once(0).chain(PAGE_SIZES) {
        let mut bytes = [0; 128];
        match file.read_exact_at(&mut bytes, at) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error.into()),
        }
        let meta = Meta::parse(&bytes).filter(|meta| at == 0 || u64::from(meta.page_bytes) == at);
        let later = |meta: &Meta| newest.is_none_or(|newest| newest.transaction < meta.transaction);
        newest = meta.filter(later).or(newest);
    }
    Ok(newest)
}

/// Keys of a tree come in order.
#[derive(Default)]
struct LastKey(Option<Vec<u8>>);

impl LastKey {
    fn is_before(&mut self, key: &[u8]) -> bool {
        let in_order = self.0.as_deref().is_none_or(|last| last < key);
        let last = self.0.get_or_insert_default();
        last.clear();
        last.extend_from_slice(key);
        in_order
    }
}

struct Page {
    head: Head,
    bytes: Vec<u8>,
}

impl Page {
    fn parse(id: u64, bytes: Vec<u8>) -> Result<Self, Error> {
        let damaged = |reason| Error::Damaged { page: id, reason };
        let head = Head::parse(&bytes).ok_or(damaged("it has no head"))?;
        let elements = HEAD_BYTES + usize::from(head.count) * ELEMENT_BYTES;
        match head.flags {
            LEAF | BRANCH if elements <= bytes.len() => Ok(Self { head, bytes }),
            LEAF | BRANCH => Err(damaged("its elements do not fit it")),
            _ => Err(damaged("it is neither a leaf nor a branch")),
        }
    }

    fn count(&self) -> usize {
        usize::from(self.head.count)
    }

    fn damaged(&self) -> Error {
        Error::Damaged {
            page: self.head.id,
            reason: "an element of it cannot be read",
        }
    }

    /// The page of a branch's child.
    fn child(&self, at: usize) -> Result<u64, Error> {
        let element = HEAD_BYTES + at * ELEMENT_BYTES;
        u64_at(&self.bytes, element + 8).ok_or_else(|| self.damaged())
    }

    /// Visits a leaf's elements.
    fn each<E: From<Error>>(
        &self,
        last: &mut LastKey,
        visit: &mut VisitElement<'_, E>,
    ) -> Result<(), E> {
        for at in 0..self.count() {
            let (flags, key, value) = self.element(at).ok_or_else(|| self.damaged())?;
            if !last.is_before(key) {
                return Err(Error::Damaged {
                    page: self.head.id,
                    reason: "its keys are not in order",
                }
                .into());
            }
            visit(flags, key, value)?;
        }
        Ok(())
    }

    fn element(&self, at: usize) -> Option<(u32, &[u8], &[u8])> {
        let element = HEAD_BYTES + at * ELEMENT_BYTES;
        let number = |field: usize| u32_at(&self.bytes, element + field * 4);
        let data = self
            .bytes
            .get(element.checked_add(number(1)? as usize)?..)?;
        let (key, rest) = data.split_at_checked(number(2)? as usize)?;
        Some((number(0)?, key, rest.get(..number(3)? as usize)?))
    }
}
