//! The whole tree of a view: one scan of each subvolume in key order, and the names put together afterwards.

use super::checksum::name_hash;
use super::file;
use super::items::{FileExtent, Inode, Key, dir_items, ids, inode_refs, types};
use super::tree::{Damage, Root};
use super::{Btrfs, Place};
use crate::bytes::until_nul;
use crate::error::{Error, Result};
use crate::fs::Listing;
use crate::path::GuestPath;
use crate::tree::{FileId, Kind, Node, Problem, Time, Tree, Xattrs};
use std::collections::{HashMap, HashSet};

/// Bytes of memory that one name or inode costs besides its text.
const ENTRY_COST: u64 = 256;
/// Damaged parts of one subvolume that are named one by one.
const MAX_DAMAGE: usize = 4096;
/// The highest number of nested subvolumes on one path.
const MAX_NESTED: usize = 64;

/// One name in a directory.
struct Name {
    location: Key,
    name: Vec<u8>,
}

/// All that one scan finds of an inode.
#[derive(Default)]
struct Found {
    ino: u64,
    inode: Option<Inode>,
    xattrs: Xattrs,
    target: Vec<u8>,
    names: Vec<Name>,
    /// Its own name in its first parent, for messages.
    named: Option<(u64, Vec<u8>)>,
    problems: Vec<String>,
}

struct Walk<'a> {
    fs: &'a Btrfs,
    /// Bytes of memory that may still be used.
    memory: u64,
    entries: Vec<(GuestPath, Node)>,
    problems: Vec<Problem>,
    met: HashSet<u64>,
}

/// A subvolume that is yet to be listed.
struct Todo {
    id: u64,
    at: GuestPath,
    /// Only its root directory.
    empty: bool,
    depth: usize,
}

/// Lists the view.
///
/// # Errors
/// If nothing of its subvolume can be read.
pub(super) fn list(fs: &Btrfs) -> Result<Listing> {
    let devices = &fs.trees.volume.chunks.devices;
    let size = devices.iter().fold(0u64, |n, d| n.saturating_add(d.volume.len()));
    let mut walk = Walk {
        fs,
        memory: (64u64 << 20).saturating_add(size / 2),
        entries: Vec::new(),
        problems: Vec::new(),
        met: HashSet::from([fs.root]),
    };
    let mut todo = vec![Todo {
        id: fs.root,
        at: GuestPath::root(),
        empty: false,
        depth: 0,
    }];
    while let Some(next) = todo.pop() {
        walk.subvolume(&next, &mut todo)?;
    }
    Ok(Listing {
        tree: Tree::new(walk.entries),
        problems: walk.problems,
    })
}

/// What is at `path` of the view, no symbolic link followed.
///
/// # Errors
/// As a look-up.
pub(super) fn find(fs: &Btrfs, path: &GuestPath) -> Result<Option<Node>> {
    let subvolumes = &fs.trees.subvolumes;
    let root_dir = |id| subvolumes.get(id).map(|e| e.item.root_dir);
    let mut place = Place {
        subvolume: fs.root,
        ino: root_dir(fs.root).unwrap_or(ids::FIRST_FREE),
    };
    for name in path.parts() {
        let Some(entry) = subvolumes.get(place.subvolume) else {
            return Ok(None);
        };
        let key = Key::new(place.ino, types::DIR_ITEM, name_hash(name));
        let Some(item) = fs.trees.volume.get(&entry.root, key)? else {
            return Ok(None);
        };
        let found = dir_items(&item)
            .map_while(Result::ok)
            .find(|e| e.name == name)
            .map(|e| e.location);
        place = match found {
            Some(key) if key.kind == types::INODE_ITEM => Place {
                ino: key.object,
                ..place
            },
            Some(key) if subvolumes.is_named(place.subvolume, key.object, place.ino, name) => Place {
                subvolume: key.object,
                ino: root_dir(key.object).unwrap_or(ids::FIRST_FREE),
            },
            _ => return Ok(None),
        };
    }
    let mut walk = Walk {
        fs,
        memory: u64::MAX,
        entries: Vec::new(),
        problems: Vec::new(),
        met: HashSet::new(),
    };
    let range = (
        Key::new(place.ino, 0, 0),
        Key::new(place.ino, types::XATTR_ITEM, u64::MAX),
    );
    let Some(entry) = subvolumes.get(place.subvolume) else {
        return Ok(None);
    };
    let mut damage = Vec::new();
    let found = walk.collect(&entry.root, range, &mut damage)?;
    if let Some(first) = damage.pop() {
        return Err(first.error);
    }
    match found.into_iter().next() {
        Some(mut found) => walk.node(place, &mut found).map(Some),
        None => Ok(None),
    }
}

impl Walk<'_> {
    fn take(&mut self, bytes: u64) -> Result<()> {
        self.memory = self.memory.checked_sub(bytes).ok_or_else(|| {
            Error::unsupported(
                "a tree with more names or damage than fit into memory (64 MiB and half the volume)",
            )
        })?;
        Ok(())
    }

    fn problem(&mut self, path: &GuestPath, what: String) -> Result<()> {
        self.take(ENTRY_COST.saturating_add((path.as_bytes().len() + what.len()) as u64))?;
        self.problems.push(Problem {
            path: path.clone(),
            what,
        });
        Ok(())
    }

    /// The inodes of a subvolume, in the order of their numbers.
    fn collect(&mut self, root: &Root, range: (Key, Key), damage: &mut Vec<Damage>) -> Result<Vec<Found>> {
        let mut all: Vec<Found> = Vec::new();
        let mut collector = Collector {
            found: Found::default(),
            by_hash: Vec::new(),
            covered: 0,
            holes: self.fs.trees.volume.sb.no_holes(),
            fs: self.fs,
        };
        let fs = self.fs;
        let mut cost = 0u64;
        let mut left = self.memory;
        fs.trees
            .volume
            .scan_past(root, range.0, range.1, Some(damage), &mut |key, item| {
                if key.object != collector.found.ino {
                    all.extend(collector.finish());
                    collector.found.ino = key.object;
                }
                if !(ids::FIRST_FREE..=ids::LAST_FREE).contains(&key.object) {
                    return Ok(());
                }
                let kept = collector.item(key, item);
                cost = cost.saturating_add(kept);
                left = left.checked_sub(kept).ok_or_else(|| {
                    Error::unsupported(
                        "a tree with more names or damage than fit into memory (64 MiB and half the volume)",
                    )
                })?;
                Ok(())
            })?;
        all.extend(collector.finish());
        self.take(cost)?;
        Ok(all)
    }

    fn subvolume(&mut self, todo: &Todo, nested: &mut Vec<Todo>) -> Result<()> {
        let Some(entry) = self.fs.trees.subvolumes.get(todo.id) else {
            return Ok(());
        };
        let root_dir = entry.item.root_dir;
        let range = if todo.empty {
            (
                Key::new(root_dir, 0, 0),
                Key::new(root_dir, types::XATTR_ITEM, u64::MAX),
            )
        } else {
            (Key::MIN, Key::MAX)
        };
        let mut damage = Vec::new();
        let all = self.collect(&entry.root, range, &mut damage)?;
        if all.is_empty() && todo.at.is_root() {
            return Err(damage
                .into_iter()
                .next()
                .map_or_else(|| Error::corrupt("the subvolume is empty", 0), |d| d.error));
        }
        for damaged in damage.iter().take(MAX_DAMAGE) {
            let what = format!(
                "{}: of inodes {} to {} something is missing",
                damaged.error, damaged.from.object, damaged.to.object
            );
            self.problem(&todo.at, what)?;
        }
        if damage.len() > MAX_DAMAGE {
            self.problem(&todo.at, format!("{} more such parts", damage.len() - MAX_DAMAGE))?;
        }
        let places: HashMap<u64, usize> = all.iter().enumerate().map(|(n, f)| (f.ino, n)).collect();
        let mut all: Vec<Option<Found>> = all.into_iter().map(Some).collect();
        let mut reached: HashSet<u64> = HashSet::new();
        // Where each inode that was met stands among the entries.
        let mut met: HashMap<u64, usize> = HashMap::new();
        let mut level = vec![(todo.at.clone(), root_dir)];
        let mut first = true;
        while let Some((path, ino)) = level.pop() {
            let place = Place {
                subvolume: todo.id,
                ino,
            };
            reached.insert(ino);
            self.take(ENTRY_COST.saturating_add(path.as_bytes().len() as u64))?;
            // A file with several names is met as often.
            if let Some((_, node)) = met.get(&ino).and_then(|n| self.entries.get(*n)) {
                if node.is_dir() {
                    let what = format!("inode {ino}: the directory is also elsewhere in the tree");
                    self.problem(&path, what)?;
                } else {
                    let node = node.clone();
                    self.entries.push((path, node));
                }
                continue;
            }
            let found = places
                .get(&ino)
                .and_then(|n| all.get_mut(*n))
                .and_then(Option::take);
            let Some(mut found) = found.filter(|f| f.inode.is_some() || first) else {
                self.problem(&path, format!("inode {ino} does not exist or is damaged"))?;
                continue;
            };
            for n in damage.iter().take(MAX_DAMAGE) {
                if !first && n.from.object <= ino && ino <= n.to.object {
                    found.problems.push(n.error.to_string());
                    break;
                }
            }
            for what in std::mem::take(&mut found.problems) {
                self.problem(&path, what)?;
            }
            let node = match self.node(place, &mut found) {
                Ok(node) => node,
                Err(e) if first => {
                    self.problem(&path, e.to_string())?;
                    Node::plain_dir()
                }
                Err(e) => {
                    self.problem(&path, e.to_string())?;
                    continue;
                }
            };
            for what in std::mem::take(&mut found.problems) {
                self.problem(&path, what)?;
            }
            if node.is_dir() {
                if !todo.empty {
                    self.names(&path, place, &node, &found.names, &mut level, nested, todo.depth)?;
                }
            } else if !found.names.is_empty() {
                self.problem(&path, format!("inode {ino}: names in what is no directory"))?;
            }
            met.insert(ino, self.entries.len());
            self.entries.push((path, node));
            first = false;
        }
        if !todo.empty {
            self.unreached(todo, all, &reached)?;
        }
        Ok(())
    }

    /// Puts the names of directory `path` into `level`, and subvolumes below it into `nested`.
    #[expect(clippy::too_many_arguments, reason = "one place calls it")]
    fn names(
        &mut self,
        path: &GuestPath,
        dir: Place,
        node: &Node,
        names: &[Name],
        level: &mut Vec<(GuestPath, u64)>,
        nested: &mut Vec<Todo>,
        depth: usize,
    ) -> Result<()> {
        for name in names {
            let at = match path.join(&name.name) {
                Ok(at) => at,
                Err(e) => {
                    self.problem(path, e.to_string())?;
                    continue;
                }
            };
            let child = name.location.object;
            match name.location.kind {
                types::INODE_ITEM => level.push((at, child)),
                types::ROOT_ITEM => {
                    let subvolumes = &self.fs.trees.subvolumes;
                    if !subvolumes.is_named(dir.subvolume, child, dir.ino, &name.name) {
                        // What a snapshot has where its original has a subvolume; the time is of no disk.
                        self.take(ENTRY_COST)?;
                        let empty = Node {
                            id: FileId {
                                fs: 0,
                                ino: ids::EMPTY_SUBVOLUME_DIR,
                            },
                            uid: node.uid,
                            gid: node.gid,
                            mtime: node.mtime,
                            ctime: node.ctime,
                            nlink: 1,
                            ..Node::plain_dir()
                        };
                        self.entries.push((at, empty));
                    } else if depth >= MAX_NESTED || !self.met.insert(child) {
                        self.problem(&at, format!("subvolume {child} is also elsewhere in the tree"))?;
                    } else {
                        nested.push(Todo {
                            id: child,
                            at,
                            empty: self.fs.is_left_out(child),
                            depth: depth + 1,
                        });
                    }
                }
                kind => self.problem(&at, format!("a name that leads to an item of type {kind}"))?,
            }
        }
        Ok(())
    }

    /// Names the inodes that should be somewhere but were not met.
    fn unreached(&mut self, todo: &Todo, all: Vec<Option<Found>>, reached: &HashSet<u64>) -> Result<()> {
        for found in all.into_iter().flatten() {
            let linked = found.inode.as_ref().is_none_or(|i| i.nlink > 0);
            let Some((parent, name)) = found.named.filter(|_| linked && !reached.contains(&found.ino)) else {
                continue;
            };
            let what = format!(
                "inode {} (\"{}\" in directory {parent}) is in no directory that can be read",
                found.ino,
                crate::error::Escaped(&name)
            );
            self.problem(&todo.at, what)?;
        }
        Ok(())
    }

    fn node(&mut self, place: Place, found: &mut Found) -> Result<Node> {
        let corrupt = |what: &str| Error::corrupt(format!("inode {}: {what}", place.ino), 0);
        let inode = found
            .inode
            .as_ref()
            .ok_or_else(|| corrupt("it does not exist or is damaged"))?;
        let mut kind = inode
            .kind()
            .ok_or_else(|| corrupt(&format!("impossible mode {:o}", inode.mode)))?;
        match &mut kind {
            Kind::Symlink { target } => {
                let len = usize::try_from(inode.size).unwrap_or(usize::MAX);
                let bytes = found.target.get(..len).unwrap_or(&found.target);
                *target = until_nul(bytes).to_vec();
                if target.is_empty() {
                    return Err(corrupt("a symbolic link without a target"));
                }
            }
            Kind::File { size } if i64::try_from(*size).is_err() => {
                return Err(corrupt("impossible size"));
            }
            _ => {}
        }
        let time = |time: Time| Time {
            nsec: time.nsec % 1_000_000_000,
            ..time
        };
        if inode.mtime.nsec >= 1_000_000_000 || inode.ctime.nsec >= 1_000_000_000 {
            found
                .problems
                .push(format!("inode {}: impossible time", place.ino));
        }
        let mut xattrs = std::mem::take(&mut found.xattrs);
        xattrs.sort();
        let count = xattrs.len();
        xattrs.dedup_by(|a, b| a.0 == b.0);
        if xattrs.len() < count {
            found
                .problems
                .push(format!("inode {}: an attribute is there twice", place.ino));
        }
        Ok(Node {
            kind,
            mode: (inode.mode & 0o7777) as u16,
            uid: inode.uid,
            gid: inode.gid,
            mtime: time(inode.mtime),
            ctime: time(inode.ctime),
            xattrs,
            id: FileId {
                fs: 0,
                ino: self.fs.id(place)?,
            },
            nlink: inode.nlink,
        })
    }
}

/// Gathers the items of one inode after the other.
struct Collector<'a> {
    fs: &'a Btrfs,
    found: Found,
    /// Names by hash (`DIR_ITEM`), which must be those by index.
    by_hash: Vec<(Vec<u8>, Key)>,
    /// Up to where extents cover the file without a gap.
    covered: u64,
    /// True if holes need no extents.
    holes: bool,
}

impl Collector<'_> {
    /// Takes one item in and says how much memory it costs.
    fn item(&mut self, key: Key, item: &[u8]) -> u64 {
        let found = &mut self.found;
        match key.kind {
            types::INODE_ITEM => {
                found.inode = Inode::read(item);
                return 2 * ENTRY_COST;
            }
            types::INODE_REF | types::INODE_EXTREF => {
                for name in inode_refs(key, item) {
                    match name {
                        Ok(name) if found.named.is_none() => {
                            found.named = Some((name.parent, name.name.to_vec()));
                        }
                        Ok(_) => {}
                        Err(e) => found.problems.push(e.to_string()),
                    }
                }
            }
            types::XATTR_ITEM => {
                for entry in dir_items(item) {
                    match entry {
                        Ok(e) => found.xattrs.push((e.name.to_vec(), e.data.to_vec())),
                        Err(e) => found.problems.push(format!("an attribute: {e}")),
                    }
                }
                return item.len() as u64;
            }
            types::DIR_ITEM | types::DIR_INDEX => {
                let mut cost = 0;
                for entry in dir_items(item) {
                    match entry {
                        Ok(e) => {
                            cost += ENTRY_COST / 2 + e.name.len() as u64;
                            if key.kind == types::DIR_INDEX {
                                found.names.push(Name {
                                    location: e.location,
                                    name: e.name.to_vec(),
                                });
                            } else {
                                self.by_hash.push((e.name.to_vec(), e.location));
                            }
                        }
                        Err(e) => found.problems.push(e.to_string()),
                    }
                }
                return cost;
            }
            types::EXTENT_DATA => self.extent(key, item),
            _ => {}
        }
        0
    }

    fn extent(&mut self, key: Key, item: &[u8]) {
        let found = &mut self.found;
        let Some(inode) = &found.inode else { return };
        if inode.is_symlink() {
            if key.offset == 0 {
                match file::inline(&self.fs.trees, item) {
                    Ok(target) => found.target = target,
                    Err(e) => found.problems.push(e.to_string()),
                }
            }
            return;
        }
        if self.holes || !inode.is_file() || key.offset >= inode.size {
            return;
        }
        if key.offset > self.covered {
            found.problems.push(format!(
                "inode {}: bytes {} to {} have no extent",
                found.ino, self.covered, key.offset
            ));
        }
        let sector = u64::from(self.fs.trees.volume.sb.sector_size);
        let len = FileExtent::read(item).map_or(0, |e| e.covers(sector));
        self.covered = self.covered.max(key.offset.saturating_add(len));
    }

    /// The inode that is complete now.
    fn finish(&mut self) -> Option<Found> {
        let mut found = std::mem::take(&mut self.found);
        let mut by_hash = std::mem::take(&mut self.by_hash);
        let covered = std::mem::take(&mut self.covered);
        if found.ino == 0 {
            return None;
        }
        let file = found.inode.as_ref().filter(|i| i.is_file());
        if let Some(inode) = file
            && !self.holes
            && covered < inode.size
        {
            found.problems.push(format!(
                "inode {}: bytes {covered} to {} have no extent",
                found.ino, inode.size
            ));
        }
        by_hash.sort();
        let mut names: HashSet<&[u8]> = HashSet::with_capacity(found.names.len());
        let mut twice = Vec::new();
        for (n, name) in found.names.iter().enumerate() {
            let text = || crate::error::Escaped(&name.name);
            if !names.insert(&name.name) {
                found
                    .problems
                    .push(format!("\"{}\" is there twice, the first is read", text()));
                twice.push(n);
            } else if !by_hash
                .binary_search_by(|(b, _)| b.as_slice().cmp(&name.name))
                .is_ok_and(|at| by_hash.get(at).is_some_and(|(_, key)| *key == name.location))
            {
                let what = format!("\"{}\": its two entries do not agree", text());
                found.problems.push(what);
            }
        }
        for (name, _) in &by_hash {
            if !names.contains(name.as_slice()) {
                let text = crate::error::Escaped(name);
                found
                    .problems
                    .push(format!("\"{text}\" has no entry by index and is left out"));
            }
        }
        for n in twice.into_iter().rev() {
            found.names.remove(n);
        }
        Some(found)
    }
}
