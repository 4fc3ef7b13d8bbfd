//! A bbolt file from sorted pairs, front to back.
//!
//! A file's first pages name its root, which is written last. So a file is made twice: `File`
//! first only counts pages (it needs the sizes of values, not the values), and then, knowing the
//! root's page, hands out bytes. Both runs are the same code and must be given the same pairs.
//!
//! A tree is written bottom-up, each page when it is full and a branch behind its children, so
//! that memory holds one page a level, whatever the tree's size.
//!
//! Invariants:
//! - a branch has at least two children: bbolt panics when it merges a page without a sibling;
//! - a leaf of small pairs is one page; one of larger pairs takes as many pages as it needs to lose
//!   little of the last, since a file of values of 4 kB would else be twice as long as they are.

use super::page::{
    BRANCH, BUCKET, BUCKET_BYTES, ELEMENT_BYTES, FREE_LIST, HEAD_BYTES, Head, LEAF, Meta,
    PAGE_BYTES,
};

/// The pages in front of the first bucket: two metas and an empty free list.
const FIRST_PAGE: u64 = 3;
const FREE_LIST_PAGE: u64 = 2;

/// Where the last pages of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    root: u64,
    pages: u64,
}

impl Shape {
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }
}

/// The pages of a file: how many there are, and the bytes of those that are done.
struct Pages {
    next: u64,
    /// `None` while pages are only counted.
    out: Option<Vec<u8>>,
}

impl Pages {
    /// Adds a page (as many as `bytes` take) and returns its number.
    fn add(
        &mut self,
        flags: u16,
        count: usize,
        bytes: usize,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> u64 {
        let id = self.next;
        let pages = bytes.div_ceil(PAGE_BYTES).max(1);
        self.next += pages as u64;
        if let Some(out) = &mut self.out {
            let end = out.len() + pages * PAGE_BYTES;
            let head = Head {
                id,
                flags,
                count: count as u16,
                overflow: pages as u32 - 1,
            };
            head.append(out);
            body(out);
            out.resize(end, 0);
        }
        id
    }
}

/// A file in the making.
pub struct File {
    pages: Pages,
    /// The buckets that are done: name and root page.
    buckets: Vec<(Vec<u8>, u64)>,
    tree: Tree,
}

impl File {
    /// A run that counts pages.
    pub fn counting() -> Self {
        Self {
            pages: Pages {
                next: FIRST_PAGE,
                out: None,
            },
            buckets: Vec::new(),
            tree: Tree::default(),
        }
    }

    /// A run that makes the bytes of what was counted before.
    pub fn writing(shape: Shape) -> Self {
        let meta = |transaction| Meta {
            page_bytes: PAGE_BYTES as u32,
            root: shape.root,
            free_list: FREE_LIST_PAGE,
            pages: shape.pages,
            transaction,
        };
        let mut out = Vec::with_capacity(FIRST_PAGE as usize * PAGE_BYTES);
        // Of two whole metas readers take that of the later transaction.
        meta(0).append(0, &mut out);
        meta(1).append(1, &mut out);
        let free_list = Head {
            id: FREE_LIST_PAGE,
            flags: FREE_LIST,
            count: 0,
            overflow: 0,
        };
        free_list.append(&mut out);
        out.resize(FIRST_PAGE as usize * PAGE_BYTES, 0);
        let mut file = Self::counting();
        file.pages.out = Some(out);
        file
    }

    /// Appends a pair to the bucket that is being written; keys come in order. `value` appends
    /// `value_len` bytes; it is not called while pages are only counted.
    pub fn pair(&mut self, key: &[u8], value_len: usize, value: impl FnOnce(&mut Vec<u8>)) {
        self.tree.pair(0, key, value_len, value, &mut self.pages);
    }

    /// Ends a bucket; the pairs since the one before are its pairs.
    pub fn bucket(&mut self, name: &[u8]) {
        let root = std::mem::take(&mut self.tree).finish(&mut self.pages);
        self.buckets.push((name.to_vec(), root));
    }

    /// Ends the file with the bucket of buckets, and returns its shape and what was not taken.
    pub fn finish(mut self) -> (Shape, Vec<u8>) {
        self.buckets.sort();
        for (name, page) in &self.buckets {
            let value = |out: &mut Vec<u8>| {
                out.extend_from_slice(&page.to_le_bytes());
                out.extend_from_slice(&0u64.to_le_bytes());
            };
            self.tree
                .pair(BUCKET, name, BUCKET_BYTES, value, &mut self.pages);
        }
        let root = self.tree.finish(&mut self.pages);
        let shape = Shape {
            root,
            pages: self.pages.next,
        };
        (shape, self.pages.out.unwrap_or_default())
    }

    /// How many bytes are done and not taken.
    pub fn ready_bytes(&self) -> usize {
        self.pages.out.as_ref().map_or(0, Vec::len)
    }

    /// Takes the bytes that are done; the next ones have about as many.
    pub fn take(&mut self) -> Vec<u8> {
        let out = self.pages.out.as_mut();
        out.map(|out| {
            let next = Vec::with_capacity(out.len().next_multiple_of(PAGE_BYTES));
            std::mem::replace(out, next)
        })
        .unwrap_or_default()
    }
}

/// A tree in the making: the leaf that is being filled, and above it one branch a level.
#[derive(Default)]
struct Tree {
    leaf: Leaf,
    branches: Vec<Branch>,
}

impl Tree {
    fn pair(
        &mut self,
        flags: u32,
        key: &[u8],
        value_len: usize,
        value: impl FnOnce(&mut Vec<u8>),
        pages: &mut Pages,
    ) {
        let more = ELEMENT_BYTES + key.len() + value_len;
        if self.leaf.is_full(more) {
            self.end_leaf(pages);
        }
        if self.leaf.elements.is_empty() {
            self.leaf.first_key = key.to_vec();
        }
        self.leaf.elements.push((flags, key.len(), value_len));
        self.leaf.data_len += key.len() + value_len;
        if pages.out.is_some() {
            self.leaf.data.extend_from_slice(key);
            value(&mut self.leaf.data);
            debug_assert_eq!(
                self.leaf.data.len(),
                self.leaf.data_len,
                "a value of its length"
            );
        }
    }

    fn end_leaf(&mut self, pages: &mut Pages) {
        let (key, page) = self.leaf.end(pages);
        self.child(0, key, page, pages);
    }

    /// Adds a page that is done to the branch of `level`.
    fn child(&mut self, level: usize, key: Vec<u8>, page: u64, pages: &mut Pages) {
        if self.branches.len() == level {
            self.branches.push(Branch::default());
        }
        self.branches[level].children.push((key, page));
        let full = self.branches[level].full();
        if full > 0 {
            self.end_branch(level, full, pages);
        }
    }

    fn end_branch(&mut self, level: usize, count: usize, pages: &mut Pages) {
        let (key, page) = self.branches[level].end(count, pages);
        self.child(level + 1, key, page, pages);
    }

    /// Ends all pages and returns the root.
    fn finish(mut self, pages: &mut Pages) -> u64 {
        if self.branches.is_empty() {
            return self.leaf.end(pages).1;
        }
        self.end_leaf(pages);
        let mut level = 0;
        loop {
            let last = self.branches[level].last_pages();
            if let ([only], true) = (last.as_slice(), level + 1 == self.branches.len()) {
                return self.branches[level].end(*only, pages).1;
            }
            for count in last {
                self.end_branch(level, count, pages);
            }
            level += 1;
        }
    }
}

#[derive(Default)]
struct Leaf {
    first_key: Vec<u8>,
    /// Flags, length of the key, length of the value.
    elements: Vec<(u32, usize, usize)>,
    data_len: usize,
    /// Keys and values; empty while pages are only counted.
    data: Vec<u8>,
}

/// What a leaf may leave empty: one part of so many of its pages.
const LOST_PART: usize = 32;

impl Leaf {
    /// Whether a pair of `more` bytes belongs to the next leaf.
    fn is_full(&self, more: usize) -> bool {
        let bytes = self.page_bytes().next_multiple_of(PAGE_BYTES);
        let lost = bytes - self.page_bytes();
        !self.elements.is_empty() && more > lost && lost <= bytes / LOST_PART
    }

    fn page_bytes(&self) -> usize {
        HEAD_BYTES + self.elements.len() * ELEMENT_BYTES + self.data_len
    }

    /// Makes the page, and returns its first key and its number.
    fn end(&mut self, pages: &mut Pages) -> (Vec<u8>, u64) {
        let count = self.elements.len();
        let page = pages.add(LEAF, count, self.page_bytes(), |out| {
            let mut data = count * ELEMENT_BYTES;
            for (at, (flags, key_len, value_len)) in self.elements.iter().enumerate() {
                let position = data - at * ELEMENT_BYTES;
                for number in [*flags, position as u32, *key_len as u32, *value_len as u32] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                data += key_len + value_len;
            }
            out.extend_from_slice(&self.data);
        });
        self.elements.clear();
        self.data.clear();
        self.data_len = 0;
        (std::mem::take(&mut self.first_key), page)
    }
}

#[derive(Default)]
struct Branch {
    children: Vec<(Vec<u8>, u64)>,
}

/// bbolt's own least.
const MIN_CHILDREN: usize = 2;

impl Branch {
    /// How many of the first children fit a page.
    fn fitting(&self) -> usize {
        let mut bytes = HEAD_BYTES;
        let fitting = self.children.iter().take_while(|(key, _)| {
            bytes += ELEMENT_BYTES + key.len();
            bytes <= PAGE_BYTES
        });
        fitting.count().max(MIN_CHILDREN)
    }

    /// How many children make a page now, with enough behind them for another one; 0 for none.
    fn full(&self) -> usize {
        let fitting = self.fitting();
        match self.children.len() >= fitting + MIN_CHILDREN {
            true => fitting,
            false => 0,
        }
    }

    /// How the last children are shared out between pages.
    fn last_pages(&self) -> Vec<usize> {
        let (count, fitting) = (self.children.len(), self.fitting());
        match count > fitting && count >= 2 * MIN_CHILDREN {
            true => vec![count - MIN_CHILDREN, MIN_CHILDREN],
            false => vec![count],
        }
    }

    /// Makes a page of the first `count` children, and returns its first key and its number.
    fn end(&mut self, count: usize, pages: &mut Pages) -> (Vec<u8>, u64) {
        let rest = self.children.split_off(count);
        let mut children = std::mem::replace(&mut self.children, rest);
        let keys: usize = children.iter().map(|(key, _)| key.len()).sum();
        let bytes = HEAD_BYTES + count * ELEMENT_BYTES + keys;
        let page = pages.add(BRANCH, count, bytes, |out| {
            let mut data = count * ELEMENT_BYTES;
            for (at, (key, page)) in children.iter().enumerate() {
                let position = data - at * ELEMENT_BYTES;
                out.extend_from_slice(&(position as u32).to_le_bytes());
                out.extend_from_slice(&(key.len() as u32).to_le_bytes());
                out.extend_from_slice(&page.to_le_bytes());
                data += key.len();
            }
            for (key, _) in &children {
                out.extend_from_slice(key);
            }
        });
        (children.swap_remove(0).0, page)
    }
}
