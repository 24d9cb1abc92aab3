//! The whole tree of a filesystem whose inodes stand in tables: level by level, the inodes of each level in the order of
//! their numbers, which is that of the disk.

use super::Listing;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::tree::{Kind, Node, Problem, Tree, Xattrs};
use std::collections::{HashMap, HashSet};

/// Bytes of memory that one path costs besides its name.
const ENTRY_COST: u64 = 256;

const TOO_MANY_ATTRIBUTES: &str = "the extended attributes of all files together do not fit into memory";

/// A filesystem that is walked.
pub(super) trait Inodes {
    /// An inode that was read.
    type Inode;

    /// The root directory and its number.
    ///
    /// # Errors
    /// If it is damaged or no directory.
    fn root(&self) -> Result<(u64, Self::Inode)>;

    /// An inode that a directory names.
    ///
    /// # Errors
    /// If it is damaged or not in use.
    fn inode(&self, ino: u64) -> Result<Self::Inode>;

    /// True for a directory.
    fn is_dir(inode: &Self::Inode) -> bool;

    /// Inode numbers and names in a directory, and what could not be read of it. `left` is what all directories and
    /// attributes may yet take, in units of the filesystem.
    ///
    /// # Errors
    /// If nothing of it can be read.
    fn directory(&self, inode: &Self::Inode, left: &mut u64) -> Result<Names>;

    /// What kind of file it is, and what is wrong with it besides.
    ///
    /// # Errors
    /// If it cannot be in the tree.
    fn kind(&self, inode: &Self::Inode) -> Result<(Kind, Option<String>)>;

    /// False if it has no extended attributes.
    fn has_xattrs(inode: &Self::Inode) -> bool;

    /// The extended attributes, and what could not be read of them. `left` as in [`Self::directory`].
    fn xattrs(&self, inode: &Self::Inode, left: &mut u64) -> (Xattrs, Vec<String>);

    /// The inode with its kind and no attributes yet; its id has `fs` 0.
    fn node(inode: &Self::Inode, kind: Kind) -> Node;
}

/// What a directory holds: inode numbers and names, and what could not be read.
pub(super) type Names = (Vec<(u64, Vec<u8>)>, Vec<String>);

struct Walk<'a, T: Inodes> {
    volume: &'a T,
    /// What directories and attributes may yet take, see [`Inodes::directory`].
    left: u64,
    /// Bytes of paths, nodes and attributes in memory. A valid filesystem never meets this bound; a made one must.
    memory: u64,
    /// False once attributes did not fit: then no more are read.
    attributes: bool,
    entries: Vec<(GuestPath, Node)>,
    problems: Vec<Problem>,
    /// Directories met, so that each is read once.
    met: HashSet<u64>,
    /// Where the files with several names are in `entries`, so that their attributes are read once.
    linked: HashMap<u64, usize>,
}

/// Lists the filesystem on a volume of `len` bytes. `left` is what its directories and attributes may take
/// ([`Inodes::directory`]).
///
/// # Errors
/// If the root directory cannot be read.
pub(super) fn list<T: Inodes>(volume: &T, len: u64, left: u64) -> Result<Listing> {
    let mut walk = Walk {
        volume,
        left,
        memory: (64u64 << 20).saturating_add(len / 8),
        attributes: true,
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

impl<T: Inodes> Walk<'_, T> {
    fn take(&mut self, bytes: u64) -> bool {
        match self.memory.checked_sub(bytes) {
            Some(left) => {
                self.memory = left;
                true
            }
            None => false,
        }
    }

    fn problem(&mut self, path: &GuestPath, what: String) {
        let cost = ENTRY_COST.saturating_add((path.as_bytes().len() + what.len()) as u64);
        if self.take(cost) {
            self.problems.push(Problem {
                path: path.clone(),
                what,
            });
        } else {
            // The listing ends with an error at the next name.
            self.memory = 0;
        }
    }

    fn run(&mut self) -> Result<()> {
        let (ino, root) = self.volume.root()?;
        self.met.insert(ino);
        let path = GuestPath::root();
        self.add(&path, ino, &root);
        let mut level = vec![(path, ino, root)];
        while !level.is_empty() {
            level = self.descend(&level)?;
        }
        Ok(())
    }

    /// Reads the directories of one level and gives those of the next.
    fn descend(&mut self, level: &[(GuestPath, u64, T::Inode)]) -> Result<Vec<(GuestPath, u64, T::Inode)>> {
        let mut named: Vec<(u64, &GuestPath, u64, Vec<u8>)> = Vec::new();
        for (path, parent, inode) in level {
            match self.volume.directory(inode, &mut self.left) {
                Ok((names, problems)) => {
                    for what in problems {
                        self.problem(path, what);
                    }
                    for (ino, name) in names {
                        if !self.take(ENTRY_COST) {
                            return Err(too_large());
                        }
                        named.push((ino, path, *parent, name));
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
            if !self.take(ENTRY_COST.saturating_add(path.as_bytes().len() as u64)) {
                return Err(too_large());
            }
            if ino == parent {
                self.problem(&path, format!("inode {ino}: the directory contains itself"));
                continue;
            }
            let inode = match self.volume.inode(ino) {
                Ok(inode) => inode,
                Err(e) => {
                    self.problem(&path, e.to_string());
                    continue;
                }
            };
            let is_dir = T::is_dir(&inode);
            if is_dir && !self.met.insert(ino) {
                let what = format!("inode {ino}: the directory is also elsewhere in the tree");
                self.problem(&path, what);
                continue;
            }
            if self.add(&path, ino, &inode) && is_dir {
                next.push((path, ino, inode));
            }
        }
        next.sort_by_key(|(_, ino, _)| *ino);
        Ok(next)
    }

    /// Adds an inode as `path` and says whether it could be. What is wrong with it becomes a problem.
    fn add(&mut self, path: &GuestPath, ino: u64, inode: &T::Inode) -> bool {
        let bytes = |xattrs: &Xattrs| xattrs.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() as u64;
        let known = self.linked.get(&ino).and_then(|i| self.entries.get(*i));
        if let Some(node) = known.map(|(_, node)| node.clone())
            && self.take(bytes(&node.xattrs))
        {
            self.entries.push((path.clone(), node));
            return true;
        }
        let problems_before = self.problems.len();
        let kind = match self.volume.kind(inode) {
            Ok((kind, problem)) => {
                if let Some(what) = problem {
                    self.problem(path, what);
                }
                kind
            }
            Err(e) => {
                self.problem(path, e.to_string());
                return false;
            }
        };
        let (mut xattrs, problems) = if self.attributes || !T::has_xattrs(inode) {
            self.volume.xattrs(inode, &mut self.left)
        } else {
            (Vec::new(), vec![TOO_MANY_ATTRIBUTES.to_owned()])
        };
        for what in problems {
            self.problem(path, what);
        }
        if !self.take(bytes(&xattrs)) {
            self.attributes = false;
            self.problem(path, TOO_MANY_ATTRIBUTES.to_owned());
            xattrs.clear();
        }
        let node = Node {
            xattrs,
            ..T::node(inode, kind)
        };
        if node.nlink > 1 && !T::is_dir(inode) && self.problems.len() == problems_before {
            self.linked.insert(ino, self.entries.len());
        }
        self.entries.push((path.clone(), node));
        true
    }
}

fn too_large() -> Error {
    Error::unsupported(
        "a tree with more names or damage than fit into memory (64 MiB and an eighth of the volume)",
    )
}
