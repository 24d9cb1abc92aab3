//! The content of regular files, and of whatever else is kept in blocks.

use super::Volume;
use super::extents::Run;
use super::inode::{Format, Inode};
use crate::error::{Error, Result};
use crate::fs::runs::Runs;
use crate::read_at::{Extent, ReadAt, check_range};
use std::sync::Arc;

/// A file whose content lies in blocks.
struct File {
    volume: Arc<Volume>,
    ino: u64,
    size: u64,
    runs: Vec<Run>,
}

/// What is wrong with a file in the realtime section, which is another device.
pub(super) fn realtime(ino: u64) -> Error {
    Error::unsupported(format!("inode {ino}: its content is in the realtime section"))
}

impl Volume {
    /// The content of the regular file `ino`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it is in the realtime section, [`Error::Corrupt`] if it is damaged or no regular file.
    pub(super) fn open(self: &Arc<Self>, ino: u64) -> Result<Arc<dyn ReadAt>> {
        let inode = self.linked_inode(ino)?;
        if !inode.is_file() {
            return Err(inode.corrupt("is not a regular file"));
        }
        if inode.realtime && inode.size > 0 {
            return Err(realtime(ino));
        }
        Ok(Arc::new(File {
            volume: Arc::clone(self),
            ino,
            size: inode.size,
            runs: self.runs(&inode)?,
        }))
    }

    /// True if the blocks of `inode` can be named at all: a file's content is never inside its inode.
    pub(super) fn check_content(&self, inode: &Inode) -> Result<()> {
        match inode.data.format {
            Format::Extents if inode.is_file() => self.runs(inode).map(|_| ()),
            Format::Btree | Format::Extents => Ok(()),
            Format::Local if inode.is_dir() => Ok(()),
            _ => Err(inode.corrupt("di_format does not fit its type")),
        }
    }

    /// Fills `buf` from byte `offset` of the fork that `runs` make up: one read of the volume for each run.
    ///
    /// # Errors
    /// As reading the volume.
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
