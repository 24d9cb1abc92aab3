//! `Packages`, a Berkeley DB of the access methods hash and btree, in the byte order of the machine that made it.
//!
//! Source: Berkeley DB's on-disk structures as its releases 3 to 6 write them (`dbinc/db_page.h`). A page has a header of
//! 26 bytes (32 with checksums): LSN, number, previous and next page, entries, where data begins, level, type.

mod btree;
mod hash;

use super::Each;
use super::blocks::{Blocks, Visited};
use crate::bytes::{array, slice, u8_at};
use crate::error::{Error, Result};
use crate::read_at::ReadAt;
use std::ops::ControlFlow;
use std::sync::Arc;

const HASH_MAGIC: u32 = 0x0006_1561;
const BTREE_MAGIC: u32 = 0x0005_3162;
/// Versions of both access methods: of the releases 3.0 to 6.
const VERSIONS: std::ops::RangeInclusive<u32> = 6..=10;

/// Types of pages.
mod page {
    pub(super) const HASH_UNSORTED: u8 = 2;
    pub(super) const BTREE_INTERNAL: u8 = 3;
    pub(super) const BTREE_LEAF: u8 = 5;
    pub(super) const OVERFLOW: u8 = 7;
    pub(super) const HASH_META: u8 = 8;
    pub(super) const BTREE_META: u8 = 9;
    pub(super) const HASH: u8 = 13;
}

/// A database whose first page was checked.
struct Db {
    blocks: Blocks,
    /// The first page: its description.
    meta: Vec<u8>,
    big_endian: bool,
    page_size: usize,
    /// Bytes of the header of a page.
    overhead: usize,
    visited: Visited,
}

/// A page and its header.
struct Page {
    number: u32,
    bytes: Vec<u8>,
    kind: u8,
    entries: usize,
    next: u32,
}

/// The value of an item that lies on pages of its own.
struct Overflow {
    first: u32,
    len: u32,
}

/// Gives each header to `each`: the number of its package, and its bytes or why they cannot be read.
///
/// # Errors
/// [`Error::Corrupt`] where this is no Berkeley DB, [`Error::Unsupported`] for an access method or a feature of it that
/// rpm never used.
pub fn read(file: Arc<dyn ReadAt>, each: &mut Each<'_>) -> Result<()> {
    let mut db = Db::open(Blocks::new(file)?)?;
    let kind = u8_at(&db.meta, 25).unwrap_or_default();
    match (db.word(&db.meta, 12), kind) {
        (Some(HASH_MAGIC), page::HASH_META) => hash::read(&mut db, each),
        (Some(BTREE_MAGIC), page::BTREE_META) => btree::read(&mut db, each),
        _ => Err(Error::corrupt(
            format!("the first page of a Berkeley DB is of type {kind}"),
            25,
        )),
    }
}

impl Db {
    fn open(blocks: Blocks) -> Result<Self> {
        let meta = blocks.read(0, 512)?;
        let magic = array::<4>(&meta, 12).unwrap_or_default();
        let known = |n: u32| n == HASH_MAGIC || n == BTREE_MAGIC;
        let big_endian = match (u32::from_le_bytes(magic), u32::from_be_bytes(magic)) {
            (n, _) if known(n) => false,
            (_, n) if known(n) => true,
            (n, m) => {
                // Queue and heap.
                if [0x42253, 0x74582].iter().any(|k| *k == n || *k == m) {
                    return Err(Error::unsupported("a Berkeley DB that is neither hash nor btree"));
                }
                return Err(Error::corrupt(
                    "Packages is no Berkeley DB of the kinds hash or btree",
                    12,
                ));
            }
        };
        let mut db = Self {
            blocks,
            meta,
            big_endian,
            page_size: 0,
            overhead: 26,
            visited: Visited::new(0),
        };
        let word = |at| db.word(&db.meta, at).unwrap_or_default();
        let (version, page_size, partitions) = (word(16), word(20), word(36));
        if !VERSIONS.contains(&version) {
            return Err(Error::unsupported(format!(
                "version {version} of Berkeley DB's format"
            )));
        }
        if !page_size.is_power_of_two() || !(512..=65536).contains(&page_size) {
            return Err(Error::corrupt(
                format!("a Berkeley DB with pages of {page_size} bytes"),
                20,
            ));
        }
        if u8_at(&db.meta, 24) != Some(0) {
            return Err(Error::unsupported("an encrypted Berkeley DB"));
        }
        let flags = u8_at(&db.meta, 26).unwrap_or_default();
        if partitions != 0 && version >= 9 || flags & 4 != 0 {
            return Err(Error::unsupported("a Berkeley DB in several partitions"));
        }
        if flags & 1 != 0 {
            db.overhead = 32;
        }
        db.page_size = usize::try_from(page_size).unwrap_or_default();
        db.visited = Visited::new(db.blocks.len() / u64::from(page_size));
        // The description itself is no page of data.
        db.visited.first(0);
        Ok(db)
    }

    fn word(&self, bytes: &[u8], at: usize) -> Option<u32> {
        let word = array(bytes, at)?;
        Some(if self.big_endian {
            u32::from_be_bytes(word)
        } else {
            u32::from_le_bytes(word)
        })
    }

    fn half(&self, bytes: &[u8], at: usize) -> Option<usize> {
        let half = array(bytes, at)?;
        Some(usize::from(if self.big_endian {
            u16::from_be_bytes(half)
        } else {
            u16::from_le_bytes(half)
        }))
    }

    fn offset(&self, page: u32) -> u64 {
        u64::from(page) * self.page_size as u64
    }

    /// Page `number`, which nothing led to before.
    fn page(&mut self, number: u32) -> Result<Page> {
        let at = self.offset(number);
        if !self.visited.first(number) {
            return Err(Error::corrupt(
                format!("page {number} of a Berkeley DB is not in the file, or is used twice"),
                at,
            ));
        }
        let bytes = self.blocks.read(at, self.page_size)?;
        let cut = || Error::corrupt("a page without a header", at);
        if self.word(&bytes, 8) != Some(number) {
            return Err(Error::corrupt(
                format!(
                    "page {number} of a Berkeley DB calls itself page {}",
                    self.word(&bytes, 8).unwrap_or_default()
                ),
                at + 8,
            ));
        }
        Ok(Page {
            number,
            kind: u8_at(&bytes, 25).ok_or_else(cut)?,
            entries: self.half(&bytes, 20).ok_or_else(cut)?,
            next: self.word(&bytes, 16).ok_or_else(cut)?,
            bytes,
        })
    }

    /// True if page `number` was never written: the table of a hash grows by whole ranges of pages.
    fn is_blank(&self, number: u32) -> bool {
        let bytes = self.blocks.read(self.offset(number), self.page_size);
        bytes.is_ok_and(|bytes| bytes.iter().all(|b| *b == 0))
    }

    /// Offset in the page of its item `n`.
    fn item(&self, page: &Page, n: usize) -> Result<usize> {
        let at = self.overhead.saturating_add(n.saturating_mul(2));
        let offset = self.half(&page.bytes, at);
        offset
            .filter(|o| n < page.entries && *o > at && *o < self.page_size)
            .ok_or_else(|| {
                Error::corrupt(
                    format!("item {n} of page {} does not lie in the page", page.number),
                    self.offset(page.number),
                )
            })
    }

    /// The bytes of a value on overflow pages.
    fn overflow(&mut self, value: &Overflow) -> Result<Vec<u8>> {
        let len = usize::try_from(value.len).unwrap_or(usize::MAX);
        if u64::from(value.len) > super::MAX_HEADER.min(self.blocks.len()) {
            return Err(Error::corrupt(
                format!("a value of {len} bytes, too long for a header"),
                self.offset(value.first),
            ));
        }
        let mut bytes = Vec::new();
        let mut next = value.first;
        while bytes.len() < len {
            let page = self.page(next)?;
            let at = self.offset(next);
            if page.kind != page::OVERFLOW {
                return Err(Error::corrupt(
                    format!("page {next} is of type {}, where a value goes on", page.kind),
                    at,
                ));
            }
            let used = self.half(&page.bytes, 22).unwrap_or_default();
            let part = slice(&page.bytes, self.overhead, used).filter(|p| !p.is_empty());
            let part = part
                .filter(|p| p.len() <= len - bytes.len())
                .ok_or_else(|| Error::corrupt(format!("overflow page {next} states {used} bytes"), at))?;
            bytes.extend_from_slice(part);
            next = page.next;
        }
        if next != 0 {
            return Err(Error::corrupt(
                format!("overflow pages go on after the {len} bytes of their value"),
                self.offset(next),
            ));
        }
        Ok(bytes)
    }

    /// The number of a package from its key: four bytes in the byte order of the database. `None` for the record of the
    /// number that was given last.
    fn package(&self, key: &[u8]) -> Result<Option<u32>> {
        match self.word(key, 0) {
            Some(0) if key.len() == 4 => Ok(None),
            Some(number) if key.len() == 4 => Ok(Some(number)),
            _ => Err(Error::corrupt(format!("a key of {} bytes, not 4", key.len()), 0)),
        }
    }

    /// Gives the value of a key to `each`.
    fn give(
        &mut self,
        key: &[u8],
        value: Result<std::result::Result<&[u8], Overflow>>,
        each: &mut Each<'_>,
    ) -> ControlFlow<()> {
        let package = match self.package(key) {
            Ok(None) => return ControlFlow::Continue(()),
            Ok(Some(package)) => package,
            Err(e) => return each(0, Err(e)),
        };
        match value {
            Ok(Ok(bytes)) => each(package, Ok(bytes)),
            Ok(Err(overflow)) => match self.overflow(&overflow) {
                Ok(bytes) => each(package, Ok(&bytes)),
                Err(e) => each(package, Err(e)),
            },
            Err(e) => each(package, Err(e)),
        }
    }
}
