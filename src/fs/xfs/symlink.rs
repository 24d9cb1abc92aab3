//! Symbolic links: "XFS Algorithms & Data Structures", chapter "Symbolic Links".

use super::Volume;
use super::checksum::crc_ok;
use super::inode::{Format, Inode};
use crate::bytes::{array, be32, be64, slice, until_nul};
use crate::error::Result;
use crate::read_at::read_vec;

/// `XFS_SYMLINK_MAXLEN`.
const MAX_LEN: u64 = 1024;
/// `XFS_SYMLINK_MAGIC`.
const MAGIC: &[u8] = b"XSLM";
/// Length of `struct xfs_dsymlink_hdr`.
const HEADER: usize = 56;

impl Volume {
    /// The target of a symbolic link: up to its first NUL, as readlink(2) gives it.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] if it is damaged or impossibly long.
    pub(super) fn target(&self, inode: &Inode) -> Result<Vec<u8>> {
        if !(1..=MAX_LEN).contains(&inode.size) {
            return Err(inode.corrupt("a symbolic link of an impossible length"));
        }
        let len = usize::try_from(inode.size).unwrap_or(0);
        let bytes = match inode.data.format {
            Format::Local => inode
                .data
                .bytes
                .get(..len)
                .ok_or_else(|| inode.corrupt("a symbolic link that is longer than its inode"))?
                .to_vec(),
            Format::Extents => self.remote_target(inode, len)?,
            _ => return Err(inode.corrupt("di_format does not fit its type")),
        };
        let target = until_nul(&bytes);
        if target.is_empty() {
            return Err(inode.corrupt("an empty symbolic link"));
        }
        Ok(target.to_vec())
    }

    /// A target in blocks of its own: with checksums each of them has a header.
    fn remote_target(&self, inode: &Inode, len: usize) -> Result<Vec<u8>> {
        let runs = self.runs(inode)?;
        let block_size = u64::from(self.sb.block_size);
        let mut target = Vec::with_capacity(len);
        for run in &runs {
            let rest = len.saturating_sub(target.len());
            if rest == 0 {
                break;
            }
            // The bytes of an extent have one header, whatever its number of blocks.
            let bytes = usize::try_from(run.len.saturating_mul(block_size)).unwrap_or(usize::MAX);
            let bytes = bytes.min(
                rest.saturating_add(HEADER)
                    .next_multiple_of(self.sb.block_size as usize),
            );
            let block = read_vec(&*self.disk, run.at, bytes)?;
            if !self.sb.has_crc() {
                target.extend_from_slice(block.get(..rest.min(block.len())).unwrap_or_default());
                continue;
            }
            let bad = |what: &str| inode.corrupt(format!("a block of the symbolic link: {what}"));
            if slice(&block, 0, 4) != Some(MAGIC) {
                return Err(bad("no magic number"));
            }
            if !crc_ok(&block, 12) {
                return Err(bad("the checksum is wrong"));
            }
            let stated = be32(&block, 8).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            let fits = be32(&block, 4).is_some_and(|at| at as usize == target.len())
                && array(&block, 16) == Some(self.sb.meta_uuid)
                && be64(&block, 32) == Some(inode.ino)
                && be64(&block, 40) == Some(run.at / 512);
            match slice(&block, HEADER, stated) {
                Some(part) if fits && stated > 0 && stated <= rest => target.extend_from_slice(part),
                _ => return Err(bad("it belongs elsewhere")),
            }
        }
        if target.len() < len {
            return Err(inode.corrupt("a symbolic link without all of its blocks"));
        }
        Ok(target)
    }
}
