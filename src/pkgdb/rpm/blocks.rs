//! A file that is read in pages, in any order.

use crate::disk::cache::Cache;
use crate::error::{Error, Result};
use crate::read_at::{ReadAt, check_range};
use std::sync::Arc;

/// Bytes that are read and kept at once.
const BLOCK: u64 = 64 << 10;
/// Bytes of blocks that are kept.
const BUDGET: usize = 16 << 20;
/// The longest database that is read. 5,000 packages with 500,000 files have about 200 MB.
const LIMIT: u64 = 2 << 30;

/// A file with a bounded cache.
pub(super) struct Blocks {
    file: Arc<dyn ReadAt>,
    cache: Cache,
}

impl Blocks {
    /// # Errors
    /// [`Error::Unsupported`] if the file is longer than 2 GiB.
    pub(super) fn new(file: Arc<dyn ReadAt>) -> Result<Self> {
        if file.len() > LIMIT {
            return Err(Error::unsupported(format!(
                "an rpm database of {} bytes, where at most {LIMIT} are read",
                file.len()
            )));
        }
        Ok(Self {
            file,
            cache: Cache::new(BUDGET),
        })
    }

    pub(super) fn len(&self) -> u64 {
        self.file.len()
    }

    /// `len` bytes from `at`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the file does not have them, else as reading it.
    pub(super) fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        check_range("the database", self.len(), at, len)?;
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let from = at + bytes.len() as u64;
            let start = from - from % BLOCK;
            let block = self.cache.get(start, || {
                let len = usize::try_from(BLOCK.min(self.len() - start)).unwrap_or(0);
                let mut block = vec![0; len];
                self.file.read_at(start, &mut block)?;
                Ok::<_, Error>(block)
            })?;
            let skip = usize::try_from(from - start).unwrap_or(0);
            let part = block.get(skip..).unwrap_or_default();
            let part = part.get(..len - bytes.len()).unwrap_or(part);
            if part.is_empty() {
                return Err(Error::corrupt("a file that became shorter", from));
            }
            bytes.extend_from_slice(part);
        }
        Ok(bytes)
    }
}

/// Which pages were visited: each counts once, so that no chain goes round and no page is read for two values.
pub(super) struct Visited(Vec<u64>);

impl Visited {
    /// For pages `0..pages`.
    pub(super) fn new(pages: u64) -> Self {
        Self(vec![0; usize::try_from(pages.div_ceil(64)).unwrap_or(0)])
    }

    /// True if `page` exists and was not visited before.
    pub(super) fn first(&mut self, page: u32) -> bool {
        let bit = 1 << (page % 64);
        match usize::try_from(page / 64).ok().and_then(|i| self.0.get_mut(i)) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }
}
