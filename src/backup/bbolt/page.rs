//! The bytes of bbolt's pages (version 2 of its format, little-endian): heads, elements, the two
//! meta pages.
//!
//! ```text
//! page     id u64 · flags u16 · count u16 · overflow u32 · then by its flags:
//! branch   count × (pos u32 · key size u32 · page u64), then keys
//! leaf     count × (flags u32 · pos u32 · key size u32 · value size u32), then keys and values
//! meta     magic u32 · version u32 · page size u32 · flags u32 · root page u64 · sequence u64 ·
//!          free list u64 · pages u64 · transaction u64 · FNV-1a of all that u64
//! ```
//!
//! `pos` counts from its own element. A page with `overflow` extends over that many pages more.
//! The value of a bucket's element is its root page and sequence; where that page is 0 the bucket
//! is *inline* and its only page, a leaf, follows in the value.

/// What etched writes; files of other sizes can be read.
pub const PAGE_BYTES: usize = 4096;
pub const MAGIC: u32 = 0xed0c_daed;
pub const VERSION: u32 = 2;

pub const BRANCH: u16 = 0x01;
pub const LEAF: u16 = 0x02;
pub const META: u16 = 0x04;
pub const FREE_LIST: u16 = 0x10;

pub const HEAD_BYTES: usize = 16;
pub const ELEMENT_BYTES: usize = 16;
/// The flag of a leaf's element whose value is a bucket.
pub const BUCKET: u32 = 1;
/// A bucket's root page and sequence.
pub const BUCKET_BYTES: usize = 16;
const META_BYTES: usize = 64;

/// A page's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub id: u64,
    pub flags: u16,
    pub count: u16,
    pub overflow: u32,
}

impl Head {
    pub fn append(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.overflow.to_le_bytes());
    }

    pub fn parse(page: &[u8]) -> Option<Self> {
        Some(Self {
            id: u64_at(page, 0)?,
            flags: u16::from_le_bytes(page.get(8..10)?.try_into().ok()?),
            count: u16::from_le_bytes(page.get(10..12)?.try_into().ok()?),
            overflow: u32_at(page, 12)?,
        })
    }
}

/// What both meta pages say of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub page_bytes: u32,
    /// The root page of the bucket of buckets.
    pub root: u64,
    pub free_list: u64,
    /// How many pages the file has.
    pub pages: u64,
    pub transaction: u64,
}

impl Meta {
    /// Appends a meta page.
    pub fn append(&self, id: u64, out: &mut Vec<u8>) {
        let begin = out.len();
        let head = Head {
            id,
            flags: META,
            count: 0,
            overflow: 0,
        };
        head.append(out);
        for number in [MAGIC, VERSION, self.page_bytes, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let sequence = 0;
        let numbers = [
            self.root,
            sequence,
            self.free_list,
            self.pages,
            self.transaction,
        ];
        for number in numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = fnv1a(&out[begin + HEAD_BYTES..]);
        out.extend_from_slice(&checksum.to_le_bytes());
        out.resize(begin + self.page_bytes as usize, 0);
    }

    /// Reads a meta page; `None` where it is none, or damaged.
    pub fn parse(page: &[u8]) -> Option<Self> {
        let meta = page.get(HEAD_BYTES..HEAD_BYTES + META_BYTES)?;
        let whole = u32_at(meta, 0)? == MAGIC
            && u32_at(meta, 4)? == VERSION
            && fnv1a(&meta[..META_BYTES - 8]) == u64_at(meta, META_BYTES - 8)?;
        whole.then_some(Self {
            page_bytes: u32_at(meta, 8)?,
            root: u64_at(meta, 16)?,
            free_list: u64_at(meta, 32)?,
            pages: u64_at(meta, 40)?,
            transaction: u64_at(meta, 48)?,
        })
    }
}

/// FNV-1a of 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
