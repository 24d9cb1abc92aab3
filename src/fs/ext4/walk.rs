//! What the walk over the whole tree asks of inodes.

use super::Volume;
use super::inode::{Inode, ROOT, flags};
use crate::bytes::until_nul;
use crate::error::{Error, Result};
use crate::fs::Listing;
use crate::fs::walk::{self, Inodes, Names};
use crate::tree::{FileId, Kind, Node, Xattrs};

/// Lists the filesystem.
///
/// # Errors
/// If the root directory cannot be read.
pub(super) fn list(volume: &Volume) -> Result<Listing> {
    let len = volume.disk.len();
    let blocks = volume.sb.blocks_count.min(len / u64::from(volume.sb.block_size));
    // All directories together have no more blocks than the filesystem. Blocks that fast commits added are few, and a
    // filesystem may be cut short.
    walk::list(volume, len, blocks.saturating_add(16))
}

impl Inodes for Volume {
    type Inode = Inode;

    fn root(&self) -> Result<(u64, Inode)> {
        let root = self.linked_inode(ROOT)?;
        match root.is_dir() {
            true => Ok((ROOT.into(), root)),
            false => Err(root.corrupt("the root is not a directory")),
        }
    }

    fn inode(&self, ino: u64) -> Result<Inode> {
        self.linked_inode(u32::try_from(ino).unwrap_or(u32::MAX))
    }

    fn is_dir(inode: &Inode) -> bool {
        inode.is_dir()
    }

    fn directory(&self, inode: &Inode, left: &mut u64) -> Result<Names> {
        let directory = Volume::directory(self, inode, left)?;
        let names = directory.entries.into_iter().map(|e| (e.ino.into(), e.name));
        Ok((names.collect(), directory.problems))
    }

    fn kind(&self, inode: &Inode) -> Result<(Kind, Option<String>)> {
        let mut kind = inode.kind()?;
        if let Kind::Symlink { target } = &mut kind {
            *target = self.target(inode)?;
            return Ok((kind, None));
        }
        if inode.has(flags::INLINE_DATA) && (inode.is_file() || inode.is_dir()) {
            self.inline(inode)?;
        } else if inode.is_file() || inode.is_dir() {
            self.check_root(inode)?;
        }
        let encrypted = inode.has(flags::ENCRYPT) && inode.is_file();
        let what = || format!("inode {} is encrypted (fscrypt): unsupported", inode.ino);
        Ok((kind, encrypted.then(what)))
    }

    fn has_xattrs(inode: &Inode) -> bool {
        inode.has_xattrs()
    }

    fn xattrs(&self, inode: &Inode, _: &mut u64) -> (Xattrs, Vec<String>) {
        Volume::xattrs(self, inode)
    }

    fn node(inode: &Inode, kind: Kind) -> Node {
        Node {
            kind,
            mode: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            ctime: inode.ctime,
            xattrs: Xattrs::new(),
            id: FileId {
                fs: 0,
                ino: u64::from(inode.ino),
            },
            nlink: inode.nlink,
        }
    }
}

impl Volume {
    /// The target of a symlink: up to its first NUL, as readlink(2) gives it.
    fn target(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.has(flags::ENCRYPT) {
            return Err(Error::unsupported(format!(
                "inode {}: an encrypted symbolic link (fscrypt)",
                inode.ino
            )));
        }
        let block_size = u64::from(self.sb.block_size);
        let len = usize::try_from(inode.size).unwrap_or(usize::MAX);
        let bytes = if inode.is_fast_symlink(&self.sb) {
            let target = inode.block.get(..len).unwrap_or_default();
            if target.is_empty() || len >= inode.block.len() || target.contains(&0) {
                return Err(inode.corrupt("a symbolic link of an impossible length"));
            }
            target.to_vec()
        } else if inode.has(flags::INLINE_DATA) {
            let mut bytes = self.inline(inode)?;
            bytes.truncate(len);
            bytes
        } else {
            // Only the first block counts, whatever the size says.
            let inode = Inode {
                size: inode.size.min(block_size.saturating_sub(1)),
                ..inode.clone()
            };
            let runs = self.runs(&inode)?;
            if runs.first().is_none_or(|run| run.logical != 0) {
                return Err(inode.corrupt("a symbolic link without a block"));
            }
            let mut bytes = vec![0; usize::try_from(inode.size).unwrap_or(0)];
            self.read_runs(&runs, 0, &mut bytes)?;
            bytes
        };
        let target = until_nul(&bytes);
        if target.is_empty() {
            return Err(inode.corrupt("an empty symbolic link"));
        }
        Ok(target.to_vec())
    }
}
