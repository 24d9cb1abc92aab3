//! The whole tree: level by level, the inodes of each level in the order of their numbers, which is that of the disk.

use super::Volume;
use super::file::realtime;
use super::inode::Inode;
use crate::error::{Error, Result};
use crate::fs::Listing;
use crate::path::GuestPath;
use crate::tree::{FileId, Kind, Node, Problem, Tree, Xattrs};
use std::collections::{HashMap, HashSet};

/// Bytes of memory that one path costs besides its name.
const ENTRY_COST: u64 = 256;

const TOO_MANY_ATTRIBUTES: &str = "the extended attributes of all files together do not fit into memory";

/// What a listing may still use. A valid filesystem never meets these bounds; a made one must.
struct Budget {
    /// Bytes of directories and attributes: all together are no more than the filesystem.
    metadata: u64,
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
    met: HashSet<u64>,
    /// Where the files with several names are in `entries`, so that their attributes are read once.
    linked: HashMap<u64, usize>,
}

/// Lists the filesystem.
///
/// # Errors
/// If the root directory cannot be read.
pub(super) fn list(volume: &Volume) -> Result<Listing> {
    let len = volume.disk.len();
    let mut walk = Walk {
        volume,
        budget: Budget {
            // A directory that ends with the volume is read in whole blocks.
            metadata: len.saturating_add(1 << 20),
            attributes: true,
            memory: (64u64 << 20).saturating_add(len / 8),
        },
        entries: Vec::new(),
        problems: Vec::new(),
        met: HashSet::new(),
        linked: HashMap::new(),
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
        let ino = self.volume.sb.root_ino;
        let root = self.volume.linked_inode(ino)?;
        if !root.is_dir() {
            return Err(root.corrupt("the root is not a directory"));
        }
        self.met.insert(ino);
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
        let mut named: Vec<(u64, &GuestPath, u64, Vec<u8>)> = Vec::new();
        for (path, inode) in level {
            match self.volume.directory(inode, &mut self.budget.metadata) {
                Ok(directory) => {
                    for what in directory.problems {
                        self.problem(path, format!("inode {}: {what}", inode.ino));
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
        let bytes = |xattrs: &Xattrs| xattrs.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() as u64;
        let known = self.linked.get(&inode.ino).and_then(|i| self.entries.get(*i));
        if let Some((_, node)) = known
            && self.budget.take(bytes(&node.xattrs))
        {
            let node = node.clone();
            self.entries.push((path.clone(), node));
            return true;
        }
        let problems_before = self.problems.len();
        let kind = match self.kind(path, inode) {
            Ok(kind) => kind,
            Err(e) => {
                self.problem(path, e.to_string());
                return false;
            }
        };
        let (mut xattrs, problems) = if self.budget.attributes || inode.attr.is_none() {
            self.volume.xattrs(inode, &mut self.budget.metadata)
        } else {
            (Vec::new(), vec![TOO_MANY_ATTRIBUTES.to_owned()])
        };
        for what in problems {
            self.problem(path, what);
        }
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
                ino: inode.ino,
            },
            nlink: inode.nlink,
        };
        if inode.nlink > 1 && !inode.is_dir() && self.problems.len() == problems_before {
            self.linked.insert(inode.ino, self.entries.len());
        }
        self.entries.push((path.clone(), node));
        true
    }

    fn kind(&mut self, path: &GuestPath, inode: &Inode) -> Result<Kind> {
        let mut kind = inode.kind()?;
        if inode.realtime && inode.size > 0 {
            self.problem(path, realtime(inode.ino).to_string());
        }
        match &mut kind {
            Kind::Symlink { target } => *target = self.volume.target(inode)?,
            // Its extents are of another device.
            Kind::File { .. } if inode.realtime => {}
            Kind::File { .. } | Kind::Directory => self.volume.check_content(inode)?,
            _ => {}
        }
        Ok(kind)
    }
}

fn too_large() -> Error {
    Error::unsupported(
        "a tree with more names or damage than fit into memory (64 MiB and an eighth of the volume)",
    )
}
