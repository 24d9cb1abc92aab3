//! `Tree`: every path of a machine or image, in byte order, with all metadata and no content.

use crate::error::{Error, Result};
use crate::path::GuestPath;
use std::collections::{HashMap, HashSet};

/// A point in time as filesystems keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds since 1970-01-01T00:00:00Z, negative before.
    pub sec: i64,
    /// Nanoseconds after `sec`, below 1,000,000,000.
    pub nsec: u32,
}

/// Extended attributes: name with its namespace (`user.x`, `security.capability`) and value, sorted by name, no name
/// twice. POSIX ACLs are here as `system.posix_acl_access` and `system.posix_acl_default` in the form that getxattr(2)
/// returns (version 2), file capabilities as `security.capability`.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Which file of which filesystem: two paths with one `FileId` are hard links of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileId {
    /// The filesystem's number within its source.
    pub fs: u32,
    /// The inode number.
    pub ino: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file of `size` bytes.
    File {
        /// Length in bytes, holes included.
        size: u64,
    },
    /// A symbolic link; its target as it stands, any bytes.
    Symlink {
        /// The target.
        target: Vec<u8>,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    /// The letter that `ls --json` uses: f d l b c p s.
    pub fn letter(&self) -> char {
        match self {
            Self::Directory => 'd',
            Self::File { .. } => 'f',
            Self::Symlink { .. } => 'l',
            Self::Block { .. } => 'b',
            Self::Char { .. } => 'c',
            Self::Fifo => 'p',
            Self::Socket => 's',
        }
    }
}

/// One inode as one path shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: 07777 at most.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Time of the last change of the inode; zero where the source has none (an image).
    pub ctime: Time,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Which file this is. Paths with one id are hard links (never directories).
    pub id: FileId,
    /// The link count that the filesystem states.
    pub nlink: u32,
}

impl Node {
    /// The size of a regular file, else 0.
    pub fn size(&self) -> u64 {
        match self.kind {
            Kind::File { size } => size,
            _ => 0,
        }
    }
    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }
    /// True for a regular file.
    pub fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File { .. })
    }
    /// A directory that nobody described: root's, 0755, of 1970.
    pub fn plain_dir() -> Self {
        Self {
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            ctime: Time::default(),
            xattrs: Vec::new(),
            id: FileId::default(),
            nlink: 2,
        }
    }
}

/// Something that could not be read, or read wholly: named, never silently missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The path, or the nearest one known.
    pub path: GuestPath,
    /// What is wrong, in words that name the structure.
    pub what: String,
}

/// Every path in byte order, the root first. Each path but the root has its parent in the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    entries: Vec<(GuestPath, Node)>,
}

/// How many symlinks are followed before a path counts as a loop, as Linux does (MAXSYMLINKS).
const MAX_HOPS: u32 = 40;

impl Tree {
    /// Sorts `entries`. Of two entries for one path the later wins; entries whose parent is missing or is not a
    /// directory get a [`Node::plain_dir`] for a missing parent and are dropped below something that is no directory.
    pub fn new(mut entries: Vec<(GuestPath, Node)>) -> Self {
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries.reverse();
        entries.dedup_by(|a, b| a.0 == b.0);
        entries.reverse();
        let missing = Self::missing(&entries);
        if !missing.is_empty() {
            entries.extend(missing.into_iter().map(|path| (path, Node::plain_dir())));
            entries.sort_by(|a, b| a.0.cmp(&b.0));
        }
        // A directory stands before what is in it: its parent was decided on when a path's turn comes.
        let mut dirs: HashSet<GuestPath> = HashSet::new();
        entries.retain(|(path, node)| {
            let stays = path.parent_bytes().is_none_or(|parent| dirs.contains(parent));
            if stays && node.is_dir() {
                dirs.insert(path.clone());
            }
            stays
        });
        Self { entries }
    }

    /// The parents of `entries` that are not among them, and theirs.
    fn missing(entries: &[(GuestPath, Node)]) -> HashSet<GuestPath> {
        let present: HashSet<&[u8]> = entries.iter().map(|(path, _)| path.as_bytes()).collect();
        let mut missing: HashSet<GuestPath> = HashSet::new();
        if !present.contains(GuestPath::root().as_bytes()) {
            missing.insert(GuestPath::root());
        }
        for (path, _) in entries {
            let mut at = path.parent_bytes();
            while let Some(parent) = at.filter(|p| !present.contains(p) && !missing.contains(*p)) {
                let Ok(path) = GuestPath::new(parent) else { break };
                missing.insert(path);
                let up = parent.iter().rposition(|b| *b == b'/').unwrap_or(0);
                at = parent.get(..up.max(1)).filter(|_| parent.len() > 1);
            }
        }
        missing
    }

    /// The number of paths, the root included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there is not even a root.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All paths in byte order, the root first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&GuestPath, &Node)> + ExactSizeIterator {
        self.entries.iter().map(|(p, n)| (p, n))
    }

    fn position(&self, path: &[u8]) -> std::result::Result<usize, usize> {
        self.entries.binary_search_by(|(p, _)| p.as_bytes().cmp(path))
    }

    /// The entry at exactly `path`; no symlink is followed.
    pub fn get(&self, path: &GuestPath) -> Option<&Node> {
        self.entries
            .get(self.position(path.as_bytes()).ok()?)
            .map(|(_, n)| n)
    }

    /// The tree's own copy of `path`, and its entry.
    pub fn get_key(&self, path: &GuestPath) -> Option<(&GuestPath, &Node)> {
        self.entries
            .get(self.position(path.as_bytes()).ok()?)
            .map(|(p, n)| (p, n))
    }

    /// Lets `f` change every entry's node in place; kinds must stay what they are.
    pub fn for_each_mut(&mut self, mut f: impl FnMut(&GuestPath, &mut Node)) {
        for (path, node) in &mut self.entries {
            f(path, node);
        }
    }

    /// The entries below `dir`, at any depth, in byte order; `dir` itself is not among them.
    pub fn below<'a>(&'a self, dir: &GuestPath) -> impl Iterator<Item = (&'a GuestPath, &'a Node)> + use<'a> {
        let mut prefix = dir.as_bytes().to_vec();
        if !dir.is_root() {
            prefix.push(b'/');
        }
        let start = match self.position(&prefix) {
            Ok(at) => at + 1,
            Err(at) => at,
        };
        let rest = self.entries.get(start..).unwrap_or_default();
        rest.iter()
            .take_while(move |(p, _)| p.as_bytes().starts_with(&prefix))
            .map(|(p, n)| (p, n))
    }

    /// The entries directly in `dir`, in byte order.
    pub fn children<'a>(
        &'a self,
        dir: &GuestPath,
    ) -> impl Iterator<Item = (&'a GuestPath, &'a Node)> + use<'a> {
        let depth = dir.parts().count() + 1;
        self.below(dir).filter(move |(p, _)| p.parts().count() == depth)
    }

    /// Follows symlinks inside the tree, as the machine itself would with this tree as its root, and gives the path of
    /// what is found in the end. `follow_last` says whether a symlink in the last place is followed too.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if nothing is there or more than 40 symlinks were met.
    pub fn resolve(&self, path: &GuestPath, follow_last: bool) -> Result<GuestPath> {
        let missing = || Error::corrupt(format!("{path}: no such file in the machine"), 0);
        let mut todo: Vec<Vec<u8>> = path.parts().map(<[u8]>::to_vec).collect();
        todo.reverse();
        let mut at = GuestPath::root();
        let mut hops = 0;
        while let Some(part) = todo.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = at.parent().unwrap_or(at);
                    continue;
                }
                _ => {}
            }
            let next = at.join(&part)?;
            match &self.get(&next).ok_or_else(missing)?.kind {
                Kind::Symlink { target } if follow_last || !todo.is_empty() => {
                    hops += 1;
                    if hops > MAX_HOPS {
                        return Err(Error::corrupt(
                            format!("{path}: more than {MAX_HOPS} symbolic links"),
                            0,
                        ));
                    }
                    if target.starts_with(b"/") {
                        at = GuestPath::root();
                    }
                    todo.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                }
                _ => at = next,
            }
        }
        self.get(&at).ok_or_else(missing)?;
        Ok(at)
    }

    /// The entry that `path` leads to, symlinks followed; `None` if there is none.
    pub fn find(&self, path: &str) -> Option<(GuestPath, &Node)> {
        let found = self
            .resolve(&GuestPath::lenient(path.as_bytes()).ok()?, true)
            .ok()?;
        let node = self.get(&found)?;
        Some((found, node))
    }

    /// This tree with every file id of filesystem number `fs`.
    #[must_use]
    pub fn in_fs(mut self, fs: u32) -> Self {
        for (_, node) in &mut self.entries {
            node.id.fs = fs;
        }
        self
    }

    /// Puts `other` at `at`, hiding what was there and below, as mounting does. The file ids of `other` must already be
    /// of another filesystem number.
    #[must_use]
    pub fn mount(self, at: &GuestPath, other: Self) -> Self {
        let mut entries: Vec<(GuestPath, Node)> =
            self.entries.into_iter().filter(|(p, _)| !p.is_in(at)).collect();
        entries.extend(other.entries.into_iter().map(|(p, n)| (at.graft(&p), n)));
        Self::new(entries)
    }

    /// Keeps the entries that `keep` accepts; those below a directory that is not kept go with it.
    pub fn retain(&mut self, mut keep: impl FnMut(&GuestPath, &Node) -> bool) {
        let mut gone: Option<GuestPath> = None;
        let mut dropped: HashSet<GuestPath> = HashSet::new();
        self.entries.retain(|(p, n)| {
            if gone.as_ref().is_some_and(|g| p.is_in(g))
                || p.parent_bytes().is_some_and(|d| dropped.contains(d))
            {
                if n.is_dir() {
                    dropped.insert(p.clone());
                }
                return false;
            }
            let kept = keep(p, n);
            if !kept && n.is_dir() {
                dropped.insert(p.clone());
                gone = Some(p.clone());
            }
            kept
        });
    }

    /// The paths of each file that has more than one, in byte order, keyed by its id.
    pub fn hard_links(&self) -> HashMap<FileId, Vec<&GuestPath>> {
        let mut groups: HashMap<FileId, Vec<&GuestPath>> = HashMap::new();
        for (path, node) in &self.entries {
            if !node.is_dir() && node.nlink > 1 {
                groups.entry(node.id).or_default().push(path);
            }
        }
        groups.retain(|_, paths| paths.len() > 1);
        groups
    }
}

impl FromIterator<(GuestPath, Node)> for Tree {
    fn from_iter<I: IntoIterator<Item = (GuestPath, Node)>>(iter: I) -> Self {
        Self::new(iter.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> GuestPath {
        GuestPath::new(s.as_bytes()).unwrap()
    }
    fn dir() -> Node {
        Node::plain_dir()
    }
    fn file(ino: u64) -> Node {
        Node {
            kind: Kind::File { size: 1 },
            id: FileId { fs: 0, ino },
            nlink: 1,
            ..dir()
        }
    }
    fn link(to: &str) -> Node {
        Node {
            kind: Kind::Symlink { target: to.into() },
            ..file(9)
        }
    }
    fn paths(t: &Tree) -> Vec<String> {
        t.iter().map(|(p, _)| p.to_string()).collect()
    }

    #[test]
    fn order_is_of_bytes_and_parents_exist() {
        let t = Tree::new(vec![
            (p("/a/b"), file(1)),
            (p("/a-b"), file(2)),
            (p("/c"), file(3)),
            (p("/c/x"), file(4)),
        ]);
        assert_eq!(paths(&t), ["/", "/a", "/a-b", "/a/b", "/c"]);
        assert_eq!(
            t.children(&p("/a"))
                .map(|(p, _)| p.to_string())
                .collect::<Vec<_>>(),
            ["/a/b"]
        );
        assert_eq!(t.children(&GuestPath::root()).count(), 3);
        assert_eq!(t.below(&GuestPath::root()).count(), 4);
        assert!(Tree::new(Vec::new()).get(&GuestPath::root()).is_some());
    }

    #[test]
    fn the_later_entry_wins() {
        let t = Tree::new(vec![(p("/a"), file(1)), (p("/a"), file(2))]);
        assert_eq!(t.get(&p("/a")).unwrap().id.ino, 2);
    }

    #[test]
    fn symlinks_stay_inside() {
        let t = Tree::new(vec![
            (p("/usr/lib/os-release"), file(1)),
            (p("/etc/os-release"), link("../../../../usr/lib/os-release")),
            (p("/lib"), link("usr/lib")),
            (p("/abs"), link("/lib")),
            (p("/loop"), link("loop")),
            (p("/bad"), link("/nothing")),
        ]);
        assert_eq!(t.find("/etc/os-release").unwrap().0, p("/usr/lib/os-release"));
        assert_eq!(t.find("/abs/os-release").unwrap().0, p("/usr/lib/os-release"));
        assert_eq!(t.resolve(&p("/abs"), false).unwrap(), p("/abs"));
        assert!(t.find("/loop").is_none());
        assert!(t.find("/bad").is_none());
        assert!(t.find("/etc/nothing").is_none());
    }

    #[test]
    fn mount_hides_and_retain_drops_below() {
        let t = Tree::new(vec![(p("/var/old"), file(1)), (p("/var-x"), file(2))]);
        let other = Tree::new(vec![(p("/new/deep"), file(3))]);
        let mut t = t.mount(&p("/var"), other);
        assert_eq!(paths(&t), ["/", "/var", "/var-x", "/var/new", "/var/new/deep"]);
        t.retain(|p, _| p.as_bytes() != b"/var");
        assert_eq!(paths(&t), ["/", "/var-x"]);
    }
}
