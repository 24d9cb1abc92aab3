//! The content of regular files, and of whatever else is kept in blocks.

use super::Volume;
use super::extents::Run;
use super::inode::{Inode, flags};
use crate::error::{Error, Result};
use crate::fs::runs::Runs;
use crate::read_at::{Extent, ReadAt, check_range};
use std::sync::Arc;

/// A file whose content lies in blocks.
pub(super) struct File {
    volume: Arc<Volume>,
    ino: u32,
    size: u64,
    runs: Vec<Run>,
}

impl Volume {
    /// The content of the regular file `ino`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it is encrypted, [`Error::Corrupt`] if it is damaged or no regular file.
    pub(super) fn open(self: &Arc<Self>, ino: u32) -> Result<Arc<dyn ReadAt>> {
        let inode = self.linked_inode(ino)?;
        if !inode.is_file() {
            return Err(inode.corrupt("is not a regular file"));
        }
        self.content(&inode)
    }

    /// The content of `inode`, of any type but device.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn content(self: &Arc<Self>, inode: &Inode) -> Result<Arc<dyn ReadAt>> {
        if inode.has(flags::ENCRYPT) {
            return Err(Error::unsupported(format!(
                "inode {} is encrypted (fscrypt)",
                inode.ino
            )));
        }
        if inode.has(flags::INLINE_DATA) {
            return Ok(Arc::new(Inline {
                size: inode.size,
                bytes: self.inline(inode)?,
            }));
        }
        Ok(Arc::new(File {
            volume: Arc::clone(self),
            ino: inode.ino,
            size: inode.size,
            runs: self.runs(inode)?,
        }))
    }

    /// The first `len` bytes of `inode`'s content, which must be in blocks; holes are zeros.
    ///
    /// # Errors
    /// As reading.
    pub(super) fn read_start(&self, inode: &Inode, len: usize) -> Result<Vec<u8>> {
        let runs = self.runs(inode)?;
        let mut buf = vec![0; len];
        self.read_runs(&runs, 0, &mut buf)?;
        Ok(buf)
    }

    /// Fills `buf` from byte `offset` of the file that `runs` make up: one read of the volume for each run.
    pub(super) fn read_runs(&self, runs: &[Run], offset: u64, buf: &mut [u8]) -> Result<()> {
        self.laid_out(runs).read(&*self.disk, offset, buf)
    }

    fn laid_out<'a>(&self, runs: &'a [Run]) -> Runs<'a, Run> {
        Runs {
            runs,
            block_size: u64::from(self.sb.block_size),
        }
    }
}

impl ReadAt for File {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(&format!("inode {}", self.ino), self.size, offset, buf.len())?;
        self.volume.read_runs(&self.runs, offset, buf)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(self.volume.laid_out(&self.runs).extent_at(self.size, offset))
    }
}

/// A file whose content lies in its inode; what `i_size` says beyond that is zeros.
struct Inline {
    size: u64,
    bytes: Vec<u8>,
}

impl ReadAt for Inline {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("an inline file", self.size, offset, buf.len())?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.bytes.get(from.min(self.bytes.len())..).unwrap_or_default();
        for (to, from) in buf
            .iter_mut()
            .zip(bytes.iter().copied().chain(std::iter::repeat(0)))
        {
            *to = from;
        }
        Ok(())
    }
}
