//! What the walk over the whole tree asks of inodes.

use super::Volume;
use super::file::realtime;
use super::inode::Inode;
use crate::error::Result;
use crate::fs::Listing;
use crate::fs::walk::{self, Inodes, Names};
use crate::tree::{FileId, Kind, Node, Xattrs};

/// Lists the filesystem.
///
/// # Errors
/// If the root directory cannot be read.
pub(super) fn list(volume: &Volume) -> Result<Listing> {
    let len = volume.disk.len();
    // Bytes of directories and attributes: all together are no more than the filesystem. A directory that ends with the
    // volume is read in whole blocks.
    walk::list(volume, len, len.saturating_add(1 << 20))
}

impl Inodes for Volume {
    type Inode = Inode;

    fn root(&self) -> Result<(u64, Inode)> {
        let ino = self.sb.root_ino;
        let root = self.linked_inode(ino)?;
        match root.is_dir() {
            true => Ok((ino, root)),
            false => Err(root.corrupt("the root is not a directory")),
        }
    }

    fn inode(&self, ino: u64) -> Result<Inode> {
        self.linked_inode(ino)
    }

    fn is_dir(inode: &Inode) -> bool {
        inode.is_dir()
    }

    fn directory(&self, inode: &Inode, left: &mut u64) -> Result<Names> {
        let directory = Volume::directory(self, inode, left)?;
        let names = directory.entries.into_iter().map(|e| (e.ino, e.name));
        let problems = directory.problems.into_iter();
        let problems = problems.map(|what| format!("inode {}: {what}", inode.ino));
        Ok((names.collect(), problems.collect()))
    }

    fn kind(&self, inode: &Inode) -> Result<(Kind, Option<String>)> {
        let mut kind = inode.kind()?;
        let problem = (inode.realtime && inode.size > 0).then(|| realtime(inode.ino).to_string());
        match &mut kind {
            Kind::Symlink { target } => *target = self.target(inode)?,
            // Its extents are of another device.
            Kind::File { .. } if inode.realtime => {}
            Kind::File { .. } | Kind::Directory => self.check_content(inode)?,
            _ => {}
        }
        Ok((kind, problem))
    }

    fn has_xattrs(inode: &Inode) -> bool {
        inode.attr.is_some()
    }

    fn xattrs(&self, inode: &Inode, left: &mut u64) -> (Xattrs, Vec<String>) {
        Volume::xattrs(self, inode, left)
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
                ino: inode.ino,
            },
            nlink: inode.nlink,
        }
    }
}
