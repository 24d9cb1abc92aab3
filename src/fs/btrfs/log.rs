//! The log tree: what was synced after the last commit. It is replayed in memory, in the steps of the kernel: inodes with
//! the names and attributes that are gone, then new names of directories, then references, attributes and extents, at
//! last the link counts.

use super::checksum::{extref_hash, name_hash};
use super::items::{
    DirItem, Extent, FT_DIR, FileExtent, INODE_LEN, Inode, InodeRef, Key, RootItem, dir_items, ids, inode_at,
    inode_refs, types,
};
use super::tree::{Overlay, Root};
use super::{Trees, Volume};
use crate::bytes::{le32, le64};
use crate::error::{Error, Escaped, Result};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// The log of one subvolume is read into memory, up to so many bytes.
const MAX_LOG: usize = 256 << 20;
/// Files that a problem names.
const MAX_NAMED: usize = 20;

/// What came of it.
#[derive(Default)]
pub(super) struct Replay {
    pub(super) notes: Vec<String>,
    pub(super) problems: Vec<String>,
}

type Items = BTreeMap<Key, Vec<u8>>;

/// Replays all logs of the filesystem. A log that cannot be replayed leaves its subvolume as the last commit has it, and
/// is told with the files that may be old.
pub(super) fn replay(trees: &mut Trees) -> Replay {
    let mut done = Replay::default();
    let volume = Arc::clone(&trees.volume);
    let logs = match logs(&volume) {
        Ok(logs) => logs,
        Err(e) => {
            done.problems.push(format!(
                "the log tree cannot be read, files that were synced last may be old: {e}"
            ));
            return done;
        }
    };
    let mut files = 0;
    for (id, root) in logs {
        let Some(entry) = trees.subvolumes.get(id) else {
            done.notes
                .push(format!("there is a log of subvolume {id}, which does not exist"));
            continue;
        };
        let mut log = Items::new();
        let replayed = read(&volume, &root, &mut log).and_then(|()| {
            let mut replay = Subvolume {
                volume: &volume,
                root: entry.root.clone(),
                log: &log,
                fixups: BTreeSet::new(),
            };
            replay.run()?;
            Ok(replay.root.overlay)
        });
        let inodes: BTreeSet<u64> = log
            .keys()
            .filter(|k| k.kind == types::INODE_ITEM)
            .map(|k| k.object)
            .collect();
        match replayed {
            Ok(overlay) => {
                files += inodes.len();
                for (key, item) in &log {
                    if key.object == ids::EXTENT_CSUM && key.kind == types::EXTENT_CSUM {
                        trees.csums.log.insert(key.offset, item.as_slice().into());
                    }
                }
                if let Some(overlay) = overlay {
                    trees.subvolumes.lay_over(id, overlay);
                }
            }
            Err(e) => done.problems.push(format!(
                "the log of subvolume {id} cannot be replayed, {} may be old: {e}",
                named(&log, &inodes)
            )),
        }
    }
    if files > 0 {
        done.notes
            .push(format!("log tree replayed in memory ({files} inodes)"));
    }
    done
}

/// The files of a log, as its references name them.
fn named(log: &Items, inodes: &BTreeSet<u64>) -> String {
    if inodes.is_empty() {
        return "files that were synced last".to_owned();
    }
    let mut list: Vec<String> = inodes
        .iter()
        .take(MAX_NAMED)
        .map(|ino| {
            let name = log
                .range(Key::new(*ino, types::INODE_REF, 0)..=Key::new(*ino, types::INODE_EXTREF, u64::MAX))
                .find_map(|(key, item)| inode_refs(*key, item).next()?.ok());
            match name {
                Some(name) => format!("{} (inode {ino})", Escaped(name.name)),
                None => format!("inode {ino}"),
            }
        })
        .collect();
    if inodes.len() > MAX_NAMED {
        list.push(format!("{} more", inodes.len() - MAX_NAMED));
    }
    list.join(", ")
}

/// The log of each subvolume.
fn logs(volume: &Volume) -> Result<Vec<(u64, Root)>> {
    let root = Root {
        tree: ids::TREE_LOG,
        bytenr: volume.sb.log_root,
        level: volume.sb.log_root_level,
        // Logs are written by the transaction that was never committed.
        generation: volume.sb.generation.saturating_add(1),
        overlay: None,
    };
    let mut found = Vec::new();
    volume.scan(&root, Key::MIN, Key::MAX, &mut |key, item| {
        if key.object == ids::TREE_LOG && key.kind == types::ROOT_ITEM {
            let item = RootItem::read(item)
                .ok_or_else(|| Error::corrupt("the log tree: a root item is too short", 0))?;
            found.push((key.offset, Root::new(ids::TREE_LOG, &item)));
        }
        Ok(())
    })?;
    Ok(found)
}

fn read(volume: &Volume, root: &Root, log: &mut Items) -> Result<()> {
    let mut size = 0usize;
    volume.scan(root, Key::MIN, Key::MAX, &mut |key, item| {
        size = size.saturating_add(item.len()).saturating_add(64);
        if size > MAX_LOG {
            return Err(Error::unsupported("a log tree that is too large"));
        }
        log.insert(key, item.to_vec());
        Ok(())
    })
}

/// The replay of one subvolume's log.
struct Subvolume<'a> {
    volume: &'a Volume,
    /// The subvolume with what was replayed so far over it.
    root: Root,
    log: &'a Items,
    /// Inodes whose links must be counted again.
    fixups: BTreeSet<u64>,
}

impl Subvolume<'_> {
    fn run(&mut self) -> Result<()> {
        // Files without a name (O_TMPFILE) are not brought back.
        let mut ignored = HashSet::new();
        for (key, item) in self.log {
            if key.kind == types::INODE_ITEM && inode(item)?.nlink == 0 {
                ignored.insert(key.object);
            }
        }
        let log = self.log;
        let items = || log.iter().filter(|(key, _)| !ignored.contains(&key.object));
        for (key, item) in items().filter(|(key, _)| key.kind == types::INODE_ITEM) {
            self.inode(key.object, item)?;
        }
        for (key, item) in items().filter(|(key, _)| key.kind == types::DIR_INDEX) {
            for entry in dir_items(item) {
                self.new_name(*key, &entry?)?;
            }
        }
        for (key, item) in items() {
            match key.kind {
                types::INODE_REF | types::INODE_EXTREF => self.references(*key, item)?,
                types::XATTR_ITEM => self.put(*key, item.clone()),
                types::EXTENT_DATA => self.extent(*key, item)?,
                _ => {}
            }
        }
        self.count_links()
    }

    fn get(&self, key: Key) -> Result<Option<Vec<u8>>> {
        self.volume.get(&self.root, key)
    }

    fn change(&mut self, key: Key, item: Option<Arc<[u8]>>) {
        let overlay = self.root.overlay.get_or_insert_with(Arc::default);
        let overlay: &mut Overlay = Arc::make_mut(overlay);
        overlay.insert(key, item);
    }

    fn put(&mut self, key: Key, item: Vec<u8>) {
        self.change(key, Some(item.into()));
    }

    fn remove(&mut self, key: Key) {
        self.change(key, None);
    }

    /// Puts `item`, or removes the key if nothing is left of it.
    fn put_rest(&mut self, key: Key, item: Vec<u8>) {
        if item.is_empty() {
            self.remove(key);
        } else {
            self.put(key, item);
        }
    }

    /// All items of one type of an object, with offsets from `from` to `to`.
    fn items(&self, object: u64, kind: u8, from: u64, to: u64) -> Result<Vec<(Key, Vec<u8>)>> {
        let mut found = Vec::new();
        let (from, to) = (Key::new(object, kind, from), Key::new(object, kind, to));
        self.volume.scan(&self.root, from, to, &mut |key, item| {
            found.push((key, item.to_vec()));
            Ok(())
        })?;
        Ok(found)
    }

    fn inode_at(&self, ino: u64) -> Result<Option<Inode>> {
        self.get(Key::new(ino, types::INODE_ITEM, 0))?
            .map(|item| inode(&item))
            .transpose()
    }

    fn exists(&self, ino: u64) -> Result<bool> {
        Ok(self.inode_at(ino)?.is_some())
    }

    /// The first step for a logged inode: names and attributes that the log does not have any more, the inode itself, and
    /// extents behind its end.
    fn inode(&mut self, ino: u64, logged: &[u8]) -> Result<()> {
        let new = inode(logged)?;
        self.remove_attributes(ino)?;
        if new.is_dir() && self.exists(ino)? {
            self.remove_names(ino, false)?;
        }
        let key = Key::new(ino, types::INODE_ITEM, 0);
        let mut item = logged.to_vec();
        if le64(logged, inode_at::GENERATION) == Some(0)
            && let Some(mut old) = self.get(key)?
        {
            // It was logged only to exist: what is there stays, but for a size that was logged with it.
            if new.is_file() && inode(&old)?.is_file() && new.size != 0 {
                set(&mut old, inode_at::SIZE, &new.size.to_le_bytes());
            }
            item = old;
        }
        let now = inode(&item)?;
        self.put(key, item);
        if now.is_file() {
            let sector = u64::from(self.volume.sb.sector_size);
            let end = now.size.checked_next_multiple_of(sector).unwrap_or(u64::MAX);
            self.drop_extents(ino, end, u64::MAX)?;
        }
        self.fixups.insert(ino);
        Ok(())
    }

    /// Removes the attributes of `ino` that its log does not have.
    fn remove_attributes(&mut self, ino: u64) -> Result<()> {
        for (key, item) in self.items(ino, types::XATTR_ITEM, 0, u64::MAX)? {
            let mut rest = Vec::new();
            for entry in dir_items(&item) {
                let entry = entry?;
                if self.log_entry(key, |e| e.name == entry.name)? {
                    rest.extend_from_slice(entry.bytes);
                }
            }
            if rest.len() < item.len() {
                self.put_rest(key, rest);
            }
        }
        Ok(())
    }

    /// True if the log's item at `key` has an entry that `is` accepts.
    fn log_entry(&self, key: Key, is: impl Fn(&DirItem<'_>) -> bool) -> Result<bool> {
        for entry in dir_items(self.log.get(&key).map_or(&[], Vec::as_slice)) {
            if is(&entry?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the names of directory `dir` that lie in a logged range but are not in the log; all of them with `all`.
    fn remove_names(&mut self, dir: u64, all: bool) -> Result<()> {
        let ranges: Vec<(u64, u64)> = if all {
            vec![(0, u64::MAX)]
        } else {
            let (from, to) = (
                Key::new(dir, types::DIR_LOG_INDEX, 0),
                Key::new(dir, types::DIR_LOG_INDEX, u64::MAX),
            );
            self.log
                .range(from..=to)
                .map(|(key, item)| (key.offset, le64(item, 0).unwrap_or(key.offset)))
                .collect()
        };
        for (from, to) in ranges {
            for (key, item) in self.items(dir, types::DIR_INDEX, from, to)? {
                for entry in dir_items(&item) {
                    let entry = entry?;
                    if !all && self.log_entry(key, |e| e.name == entry.name)? {
                        continue;
                    }
                    self.drop_name(dir, &entry)?;
                }
            }
        }
        Ok(())
    }

    /// Unlinks a name of `dir`, so that its inode's links are counted again.
    fn drop_name(&mut self, dir: u64, entry: &DirItem<'_>) -> Result<()> {
        let ino = entry.location.object;
        self.fixups.insert(ino);
        self.unlink(dir, ino, entry.name)
    }

    /// Removes both entries of `name` in `dir`, and the reference of `ino` to it.
    fn unlink(&mut self, dir: u64, ino: u64, name: &[u8]) -> Result<()> {
        let key = Key::new(dir, types::DIR_ITEM, name_hash(name));
        if let Some(item) = self.get(key)? {
            let mut rest = Vec::new();
            for entry in dir_items(&item) {
                let entry = entry?;
                if entry.name != name {
                    rest.extend_from_slice(entry.bytes);
                }
            }
            self.put_rest(key, rest);
        }
        let keys = [
            Key::new(ino, types::INODE_REF, dir),
            Key::new(ino, types::INODE_EXTREF, extref_hash(dir, name)),
        ];
        for key in keys {
            let Some(item) = self.get(key)? else { continue };
            let mut rest = Vec::new();
            let mut index = None;
            for found in inode_refs(key, &item) {
                let found = found?;
                if found.parent == dir && found.name == name {
                    index = Some(found.index);
                } else {
                    push_ref(&mut rest, key.kind, &found);
                }
            }
            if let Some(index) = index {
                self.put_rest(key, rest);
                self.remove_index(dir, index, name)?;
                return Ok(());
            }
        }
        // Without a reference the index is not known.
        for (key, item) in self.items(dir, types::DIR_INDEX, 0, u64::MAX)? {
            if dir_items(&item).map_while(Result::ok).any(|e| e.name == name) {
                self.remove(key);
            }
        }
        Ok(())
    }

    fn remove_index(&mut self, dir: u64, index: u64, name: &[u8]) -> Result<()> {
        let key = Key::new(dir, types::DIR_INDEX, index);
        if let Some(item) = self.get(key)?
            && dir_items(&item).map_while(Result::ok).any(|e| e.name == name)
        {
            self.remove(key);
        }
        Ok(())
    }

    /// The entry of `name` in `dir` by hash, and that by index, as their locations and types.
    fn entries(&self, dir: u64, index: u64, name: &[u8]) -> Result<[Option<(Key, u8)>; 2]> {
        let find = |key: Key| -> Result<Option<(Key, u8)>> {
            let item = self.get(key)?.unwrap_or_default();
            for entry in dir_items(&item) {
                let entry = entry?;
                if entry.name == name {
                    return Ok(Some((entry.location, entry.file_type)));
                }
            }
            Ok(None)
        };
        Ok([
            find(Key::new(dir, types::DIR_ITEM, name_hash(name)))?,
            find(Key::new(dir, types::DIR_INDEX, index))?,
        ])
    }

    /// A logged name of a directory.
    fn new_name(&mut self, key: Key, logged: &DirItem<'_>) -> Result<()> {
        let dir = key.object;
        if !self.exists(dir)? {
            return Ok(());
        }
        let target = logged.location.object;
        let exists = logged.location.kind == types::INODE_ITEM && self.exists(target)?;
        let wanted = (logged.location, logged.file_type);
        let found = self.entries(dir, key.offset, logged.name)?;
        if found == [Some(wanted); 2] {
            return Ok(());
        }
        for (location, _) in found.into_iter().flatten().filter(|f| *f != wanted) {
            // A name that is taken stays if what would take it is not there.
            if exists {
                self.fixups.insert(location.object);
                self.unlink(dir, location.object, logged.name)?;
            }
        }
        // Where the inode was logged too, its references bring the name.
        if self.is_referenced(target, dir, logged.name)? || !exists {
            return Ok(());
        }
        if self.add_name(dir, target, logged.name, key.offset)? {
            self.add_reference(dir, target, logged.name, key.offset)?;
            if logged.file_type != FT_DIR {
                self.fixups.insert(target);
            }
        }
        Ok(())
    }

    /// True if the log has a reference of `ino` to `name` in `dir`.
    fn is_referenced(&self, ino: u64, dir: u64, name: &[u8]) -> Result<bool> {
        let keys = [
            Key::new(ino, types::INODE_REF, dir),
            Key::new(ino, types::INODE_EXTREF, extref_hash(dir, name)),
        ];
        for key in keys {
            for found in inode_refs(key, self.log.get(&key).map_or(&[], Vec::as_slice)) {
                let found = found?;
                if found.parent == dir && found.name == name {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Adds both entries of `name`; `false` if the name or the index is taken.
    fn add_name(&mut self, dir: u64, ino: u64, name: &[u8], index: u64) -> Result<bool> {
        let [by_hash, _] = self.entries(dir, index, name)?;
        let by_index = Key::new(dir, types::DIR_INDEX, index);
        if by_hash.is_some() || self.get(by_index)?.is_some() {
            return Ok(false);
        }
        let mode = self.inode_at(ino)?.map_or(0, |i| i.mode);
        let file_type = match mode >> 12 & 0xf {
            0o10 => 1,
            0o4 => FT_DIR,
            0o2 => 3,
            0o6 => 4,
            0o1 => 5,
            0o14 => 6,
            0o12 => 7,
            _ => 0,
        };
        let mut entry = Vec::new();
        entry.extend_from_slice(&ino.to_le_bytes());
        entry.push(types::INODE_ITEM);
        entry.extend_from_slice(&[0; 8]);
        entry.extend_from_slice(&self.volume.sb.generation.to_le_bytes());
        entry.extend_from_slice(&[0; 2]);
        entry.extend_from_slice(&length(name)?);
        entry.push(file_type);
        entry.extend_from_slice(name);
        let key = Key::new(dir, types::DIR_ITEM, name_hash(name));
        let mut item = self.get(key)?.unwrap_or_default();
        item.extend_from_slice(&entry);
        self.put(key, item);
        self.put(by_index, entry);
        Ok(true)
    }

    fn add_reference(&mut self, dir: u64, ino: u64, name: &[u8], index: u64) -> Result<()> {
        length(name)?;
        let added = InodeRef {
            parent: dir,
            index,
            name,
        };
        let key = Key::new(ino, types::INODE_REF, dir);
        let mut item = self.get(key)?.unwrap_or_default();
        push_ref(&mut item, key.kind, &added);
        if item.len() < self.volume.sb.node_size as usize / 2 {
            self.put(key, item);
        } else {
            let key = Key::new(ino, types::INODE_EXTREF, extref_hash(dir, name));
            let mut item = self.get(key)?.unwrap_or_default();
            push_ref(&mut item, key.kind, &added);
            self.put(key, item);
        }
        Ok(())
    }

    /// The logged names of an inode: those that are new are added, those that are gone are unlinked.
    fn references(&mut self, key: Key, item: &[u8]) -> Result<()> {
        let ino = key.object;
        let logged: Vec<InodeRef<'_>> = inode_refs(key, item).collect::<Result<_>>()?;
        // The root directory is its own parent, and has no name.
        let first = logged.first().map(|r| r.parent).filter(|p| *p != ino);
        let parent_exists = match first {
            Some(parent) => self.exists(parent)?,
            None => false,
        };
        if !parent_exists || !self.exists(ino)? {
            return Ok(());
        }
        for name in &logged {
            if key.kind == types::INODE_EXTREF && !self.exists(name.parent)? {
                continue;
            }
            let location = Key::new(ino, types::INODE_ITEM, 0);
            let there = |found: Option<(Key, u8)>| found.is_some_and(|(key, _)| key == location);
            let [by_hash, by_index] = self.entries(name.parent, name.index, name.name)?;
            if there(by_hash) && there(by_index) {
                continue;
            }
            self.remove_conflicts(ino, name)?;
            if !self.add_name(name.parent, ino, name.name, name.index)? {
                return Err(Error::corrupt(
                    format!("the log gives inode {ino} a name that is taken"),
                    0,
                ));
            }
        }
        // Names of the old item that the new one does not have.
        for old in inode_refs(key, &self.get(key)?.unwrap_or_default()) {
            let old = old?;
            let kept = |n: &InodeRef<'_>| n.parent == old.parent && n.name == old.name;
            if !logged.iter().any(kept) && self.exists(old.parent)? {
                self.unlink(old.parent, ino, old.name)?;
            }
        }
        self.put(key, item.to_vec());
        Ok(())
    }

    /// Makes room for a logged name: old names of the inode in that directory that are gone, and whatever has its place.
    fn remove_conflicts(&mut self, ino: u64, name: &InodeRef<'_>) -> Result<()> {
        let dir = name.parent;
        let keys = [
            Key::new(ino, types::INODE_REF, dir),
            Key::new(ino, types::INODE_EXTREF, extref_hash(dir, name.name)),
        ];
        for key in keys {
            let item = self.get(key)?.unwrap_or_default();
            for old in inode_refs(key, &item) {
                let old = old?;
                if old.parent == dir && !self.is_referenced(ino, dir, old.name)? {
                    self.unlink(dir, ino, old.name)?;
                }
            }
        }
        // The place by index may be of another name.
        let index = Key::new(dir, types::DIR_INDEX, name.index);
        let item = self.get(index)?.unwrap_or_default();
        for entry in dir_items(&item) {
            self.drop_name(dir, &entry?)?;
        }
        let by_hash = Key::new(dir, types::DIR_ITEM, name_hash(name.name));
        let item = self.get(by_hash)?.unwrap_or_default();
        for entry in dir_items(&item) {
            let entry = entry?;
            if entry.name == name.name {
                self.drop_name(dir, &entry)?;
            }
        }
        Ok(())
    }

    /// A logged piece of a file.
    fn extent(&mut self, key: Key, item: &[u8]) -> Result<()> {
        if !self.exists(key.object)? {
            return Ok(());
        }
        let extent = FileExtent::read(item)?;
        let sector = u64::from(self.volume.sb.sector_size);
        if self.get(key)?.as_deref() == Some(item) {
            return Ok(());
        }
        let end = key.offset.saturating_add(extent.covers(sector));
        self.drop_extents(key.object, key.offset, end)?;
        let hole = matches!(extent.extent, Extent::Regular { disk: 0, .. });
        if !hole || !self.volume.sb.no_holes() {
            self.put(key, item.to_vec());
        }
        Ok(())
    }

    /// Cuts the bytes from `start` to `end` out of the extents of `ino`.
    fn drop_extents(&mut self, ino: u64, start: u64, end: u64) -> Result<()> {
        let sector = u64::from(self.volume.sb.sector_size);
        for (key, item) in self.items(ino, types::EXTENT_DATA, 0, u64::MAX)? {
            if key.offset >= end {
                break;
            }
            let extent = FileExtent::read(&item)?;
            let until = key.offset.saturating_add(extent.covers(sector));
            if until <= start {
                continue;
            }
            let Extent::Regular { offset, disk, .. } = extent.extent else {
                self.remove(key);
                continue;
            };
            // Offset and length stand at 37 and 45; a hole has no offset.
            let cut = |from: u64, to: u64| {
                let mut item = item.clone();
                if disk != 0 {
                    set(
                        &mut item,
                        37,
                        &offset.saturating_add(from - key.offset).to_le_bytes(),
                    );
                }
                set(&mut item, 45, &(to - from).to_le_bytes());
                item
            };
            if key.offset < start {
                self.put(key, cut(key.offset, start));
            } else {
                self.remove(key);
            }
            if until > end {
                self.put(Key::new(ino, types::EXTENT_DATA, end), cut(end, until));
            }
        }
        Ok(())
    }

    /// The last step: link counts are the number of names. A directory without a name loses its own.
    fn count_links(&mut self) -> Result<()> {
        let mut emptied = HashSet::new();
        while let Some(ino) = self.fixups.pop_last() {
            let key = Key::new(ino, types::INODE_ITEM, 0);
            let Some(mut item) = self.get(key)? else { continue };
            let mut links = 0u32;
            for kind in [types::INODE_REF, types::INODE_EXTREF] {
                for (key, item) in self.items(ino, kind, 0, u64::MAX)? {
                    for found in inode_refs(key, &item) {
                        found?;
                        links = links.saturating_add(1);
                    }
                }
            }
            if le32(&item, inode_at::NLINK) != Some(links) {
                set(&mut item, inode_at::NLINK, &links.to_le_bytes());
                let is_dir = inode(&item)?.is_dir();
                self.put(key, item);
                if links == 0 && is_dir && emptied.insert(ino) {
                    self.remove_names(ino, true)?;
                }
            }
        }
        Ok(())
    }
}

fn inode(item: &[u8]) -> Result<Inode> {
    Inode::read(item).ok_or_else(|| {
        Error::corrupt(
            format!("an inode item of {} bytes, not {INODE_LEN}", item.len()),
            0,
        )
    })
}

/// Puts `value` at byte `at` of `item`.
fn set(item: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = item.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}

fn length(name: &[u8]) -> Result<[u8; 2]> {
    u16::try_from(name.len())
        .map(u16::to_le_bytes)
        .map_err(|_| Error::corrupt("a name that is too long", 0))
}

/// Appends a reference in the form of items of type `kind`.
fn push_ref(item: &mut Vec<u8>, kind: u8, name: &InodeRef<'_>) {
    if kind == types::INODE_EXTREF {
        item.extend_from_slice(&name.parent.to_le_bytes());
    }
    item.extend_from_slice(&name.index.to_le_bytes());
    let len = u16::try_from(name.name.len()).unwrap_or(u16::MAX);
    item.extend_from_slice(&len.to_le_bytes());
    item.extend_from_slice(name.name);
}
