//! The whole tree: level by level, the inodes of each level in the order of their tables.

use super::Volume;
use super::inode::{Inode, ROOT, flags};
use crate::bytes::until_nul;
use crate::error::{Error, Result};
use crate::fs::Listing;
use crate::path::GuestPath;
use crate::tree::{FileId, Kind, Node, Problem, Tree, Xattrs};
use std::collections::HashSet;

/// Bytes of memory that one path costs besides its name.
const ENTRY_COST: u64 = 256;

const TOO_MANY_ATTRIBUTES: &str = "the extended attributes of all files together do not fit into memory";

/// What a listing may still use. A valid filesystem never meets these bounds; a made one must.
struct Budget {
    /// Directory blocks: all directories together have no more than the filesystem.
    blocks: u64,
    /// False once attributes did not fit: then no more are read.
    attributes: bool,
    /// Bytes of paths, nodes and attributes in memory.
    memory: u64,
}

impl Budget {
    fn take(&mut self, bytes: u64) -> bool {
        match self.memory.checked_sub(bytes) {
            Some(left) => {
                self.memory = left;
                true
            }
            None => false,
        }
    }
}

struct Walk<'a> {
    volume: &'a Volume,
    budget: Budget,
    entries: Vec<(GuestPath, Node)>,
    problems: Vec<Problem>,
    /// Directories met, so that each is read once.
    met: HashSet<u32>,
}

/// Lists the filesystem.
///
/// # Errors
/// If the root directory cannot be read.
pub(super) fn list(volume: &Volume) -> Result<Listing> {
    let blocks = volume
        .sb
        .blocks_count
        .min(volume.disk.len() / u64::from(volume.sb.block_size));
    let mut walk = Walk {
        volume,
        budget: Budget {
            // Blocks that fast commits added are few, and a filesystem may be cut short.
            blocks: blocks.saturating_add(16),
            attributes: true,
            memory: (64u64 << 20).saturating_add(volume.disk.len() / 8),
        },
        entries: Vec::new(),
        problems: Vec::new(),
        met: HashSet::new(),
    };
    walk.run()?;
    Ok(Listing {
        tree: Tree::new(walk.entries),
        problems: walk.problems,
    })
}

impl Walk<'_> {
    fn problem(&mut self, path: &GuestPath, what: String) {
        let cost = ENTRY_COST.saturating_add((path.as_bytes().len() + what.len()) as u64);
        if self.budget.take(cost) {
            self.problems.push(Problem {
                path: path.clone(),
                what,
            });
        } else {
            // The listing ends with an error at the next name.
            self.budget.memory = 0;
        }
    }

    fn run(&mut self) -> Result<()> {
        let root = self.volume.linked_inode(ROOT)?;
        if !root.is_dir() {
            return Err(root.corrupt("the root is not a directory"));
        }
        self.met.insert(ROOT);
        let path = GuestPath::root();
        self.add(&path, &root);
        let mut level = vec![(path, root)];
        while !level.is_empty() {
            level = self.descend(&level)?;
        }
        Ok(())
    }

    /// Reads the directories of one level and gives those of the next.
    fn descend(&mut self, level: &[(GuestPath, Inode)]) -> Result<Vec<(GuestPath, Inode)>> {
        let mut named: Vec<(u32, &GuestPath, u32, Vec<u8>)> = Vec::new();
        for (path, inode) in level {
            match self.volume.directory(inode, &mut self.budget.blocks) {
                Ok(directory) => {
                    for what in directory.problems {
                        self.problem(path, what);
                    }
                    for entry in directory.entries {
                        if !self.budget.take(ENTRY_COST) {
                            return Err(too_large());
                        }
                        named.push((entry.ino, path, inode.ino, entry.name));
                    }
                }
                Err(e) if path.is_root() => return Err(e),
                Err(e) => self.problem(path, e.to_string()),
            }
        }
        named.sort_by_key(|entry| entry.0);
        let mut next = Vec::new();
        for (ino, dir, parent, name) in named {
            let path = match dir.join(&name) {
                Ok(path) => path,
                Err(e) => {
                    self.problem(dir, e.to_string());
                    continue;
                }
            };
            if !self
                .budget
                .take(ENTRY_COST.saturating_add(path.as_bytes().len() as u64))
            {
                return Err(too_large());
            }
            if ino == parent {
                self.problem(&path, format!("inode {ino}: the directory contains itself"));
                continue;
            }
            let inode = match self.volume.linked_inode(ino) {
                Ok(inode) => inode,
                Err(e) => {
                    self.problem(&path, e.to_string());
                    continue;
                }
            };
            if inode.is_dir() && !self.met.insert(ino) {
                self.problem(
                    &path,
                    format!("inode {ino}: the directory is also elsewhere in the tree"),
                );
                continue;
            }
            if self.add(&path, &inode) && inode.is_dir() {
                next.push((path, inode));
            }
        }
        next.sort_by_key(|(_, inode)| inode.ino);
        Ok(next)
    }

    /// Adds `inode` as `path` and says whether it could be. What is wrong with it becomes a problem.
    fn add(&mut self, path: &GuestPath, inode: &Inode) -> bool {
        let kind = match self.kind(path, inode) {
            Ok(kind) => kind,
            Err(e) => {
                self.problem(path, e.to_string());
                return false;
            }
        };
        let (mut xattrs, problems) = if self.budget.attributes || !inode.has_xattrs() {
            self.volume.xattrs(inode)
        } else {
            (Vec::new(), vec![TOO_MANY_ATTRIBUTES.to_owned()])
        };
        for what in problems {
            self.problem(path, what);
        }
        let bytes = |xattrs: &Xattrs| xattrs.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() as u64;
        if !self.budget.take(bytes(&xattrs)) {
            self.budget.attributes = false;
            self.problem(path, TOO_MANY_ATTRIBUTES.to_owned());
            xattrs.clear();
        }
        let node = Node {
            kind,
            mode: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            ctime: inode.ctime,
            xattrs,
            id: FileId {
                fs: 0,
                ino: u64::from(inode.ino),
            },
            nlink: inode.nlink,
        };
        self.entries.push((path.clone(), node));
        true
    }

    fn kind(&mut self, path: &GuestPath, inode: &Inode) -> Result<Kind> {
        let mut kind = inode.kind()?;
        if let Kind::Symlink { target } = &mut kind {
            *target = self.target(inode)?;
            return Ok(kind);
        }
        if inode.has(flags::INLINE_DATA) && (inode.is_file() || inode.is_dir()) {
            self.volume.inline(inode)?;
        } else if inode.is_file() || inode.is_dir() {
            self.volume.check_root(inode)?;
        }
        if inode.has(flags::ENCRYPT) && inode.is_file() {
            self.problem(
                path,
                format!("inode {} is encrypted (fscrypt): unsupported", inode.ino),
            );
        }
        Ok(kind)
    }

    /// The target of a symlink: up to its first NUL, as readlink(2) gives it.
    fn target(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.has(flags::ENCRYPT) {
            return Err(Error::unsupported(format!(
                "inode {}: an encrypted symbolic link (fscrypt)",
                inode.ino
            )));
        }
        let block_size = u64::from(self.volume.sb.block_size);
        let len = usize::try_from(inode.size).unwrap_or(usize::MAX);
        let bytes = if inode.is_fast_symlink(&self.volume.sb) {
            let target = inode.block.get(..len).unwrap_or_default();
            if target.is_empty() || len >= inode.block.len() || target.contains(&0) {
                return Err(inode.corrupt("a symbolic link of an impossible length"));
            }
            target.to_vec()
        } else if inode.has(flags::INLINE_DATA) {
            let mut bytes = self.volume.inline(inode)?;
            bytes.truncate(len);
            bytes
        } else {
            // Only the first block counts, whatever the size says.
            let inode = Inode {
                size: inode.size.min(block_size.saturating_sub(1)),
                ..inode.clone()
            };
            let runs = self.volume.runs(&inode)?;
            if runs.first().is_none_or(|run| run.logical != 0) {
                return Err(inode.corrupt("a symbolic link without a block"));
            }
            let mut bytes = vec![0; usize::try_from(inode.size).unwrap_or(0)];
            self.volume.read_runs(&runs, 0, &mut bytes)?;
            bytes
        };
        let target = until_nul(&bytes);
        if target.is_empty() {
            return Err(inode.corrupt("an empty symbolic link"));
        }
        Ok(target.to_vec())
    }
}

fn too_large() -> Error {
    Error::unsupported(
        "a tree with more names or damage than fit into memory (64 MiB and an eighth of the volume)",
    )
}
