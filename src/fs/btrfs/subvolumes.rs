//! The root tree: which subvolumes there are, where they stand, and which one is the default.

use super::Volume;
use super::items::{Key, RootItem, dir_items, ids, inode_refs, is_subvolume, root_ref, types};
use super::tree::{Damage, Root};
use crate::error::{Error, Result};
use crate::path::GuestPath;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// `BTRFS_ROOT_SUBVOL_RDONLY`.
const READ_ONLY: u64 = 1;
/// No path has more parts than this.
const MAX_DEPTH: usize = 4096;

/// One subvolume.
pub(super) struct Entry {
    pub(super) root: Root,
    pub(super) item: RootItem,
}

/// All subvolumes.
pub(super) struct Subvolumes {
    entries: BTreeMap<u64, Entry>,
    /// Directory and name in the parent, by parent and child.
    names: BTreeMap<(u64, u64), (u64, Vec<u8>)>,
    /// The subvolume with each UUID.
    uuids: HashMap<[u8; 16], u64>,
    default: Option<u64>,
}

fn root_tree(volume: &Volume) -> Root {
    Root {
        tree: ids::ROOT_TREE,
        bytenr: volume.sb.root,
        level: volume.sb.root_level,
        generation: volume.sb.generation,
        overlay: None,
    }
}

/// The root of tree `id`; `None` if there is none.
///
/// # Errors
/// [`Error::Corrupt`] if the root tree is damaged.
pub(super) fn tree_root(volume: &Volume, id: u64) -> Result<Option<Root>> {
    let mut found = None;
    let (from, to) = (
        Key::new(id, types::ROOT_ITEM, 0),
        Key::new(id, types::ROOT_ITEM, u64::MAX),
    );
    volume.scan(&root_tree(volume), from, to, &mut |_, item| {
        found = RootItem::read(item).map(|item| Root::new(id, &item));
        Ok(())
    })?;
    Ok(found)
}

impl Subvolumes {
    /// Reads the root tree; what cannot be read of it is put into `damage`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is no subvolume at all.
    pub(super) fn read(volume: &Volume, damage: &mut Vec<Damage>) -> Result<Self> {
        let mut found = Self {
            entries: BTreeMap::new(),
            names: BTreeMap::new(),
            uuids: HashMap::new(),
            default: None,
        };
        let mut damaged = Vec::new();
        let mut short = Vec::new();
        let mut visit = |key: Key, item: &[u8]| {
            match key.kind {
                types::ROOT_ITEM if is_subvolume(key.object) => match RootItem::read(item) {
                    // With no references it is being deleted.
                    Some(item) if item.refs > 0 => {
                        if item.uuid != [0; 16] {
                            found.uuids.insert(item.uuid, key.object);
                        }
                        let root = Root::new(key.object, &item);
                        found.entries.insert(key.object, Entry { root, item });
                    }
                    Some(_) => {}
                    None => short.push(key),
                },
                types::ROOT_REF => match root_ref(item) {
                    Some((dir, name)) => {
                        found.names.insert((key.object, key.offset), (dir, name.to_vec()));
                    }
                    None => short.push(key),
                },
                types::DIR_ITEM if key.object == ids::ROOT_TREE_DIR => {
                    for entry in dir_items(item).map_while(Result::ok) {
                        if entry.name == b"default" {
                            found.default = Some(entry.location.object);
                        }
                    }
                }
                _ => {}
            }
            Ok(())
        };
        volume.scan_past(
            &root_tree(volume),
            Key::MIN,
            Key::MAX,
            Some(&mut damaged),
            &mut visit,
        )?;
        if found.entries.is_empty() {
            return Err(match damaged.into_iter().next() {
                Some(first) => first.error,
                None => Error::corrupt("the root tree names no subvolume", volume.sb.root),
            });
        }
        damage.append(&mut damaged);
        damage.extend(short.into_iter().map(|key| Damage {
            from: key,
            to: key,
            error: Error::corrupt(
                format!("root tree: a damaged item of subvolume {}", key.object),
                0,
            ),
        }));
        Ok(found)
    }

    pub(super) fn get(&self, id: u64) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// Puts the items that a log replay made over those of subvolume `id`.
    pub(super) fn lay_over(&mut self, id: u64, overlay: Arc<super::tree::Overlay>) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.root.overlay = Some(overlay);
        }
    }

    /// The number of the subvolume that is mounted if none is named.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it does not exist.
    pub(super) fn default_root(&self) -> Result<u64> {
        let id = self.default.unwrap_or(ids::FS_TREE);
        self.entries
            .get(&id)
            .map(|_| id)
            .ok_or_else(|| Error::corrupt(format!("the default subvolume {id} does not exist"), 0))
    }

    /// The subvolume that `id` is a snapshot of, if it still exists.
    pub(super) fn snapshot_of(&self, id: u64) -> Option<u64> {
        let parent = self.entries.get(&id)?.item.parent_uuid;
        Some(parent)
            .filter(|uuid| *uuid != [0; 16])
            .and_then(|uuid| self.uuids.get(&uuid).copied())
            .filter(|parent| *parent != id)
    }

    /// True if directory `dir` of subvolume `parent` holds `child` as `name`.
    pub(super) fn is_named(&self, parent: u64, child: u64, dir: u64, name: &[u8]) -> bool {
        self.entries.contains_key(&child)
            && self
                .names
                .get(&(parent, child))
                .is_some_and(|(d, n)| *d == dir && n == name)
    }

    /// The subvolumes below `root`, with their parents; what lies below one that `enter` does not accept is not among
    /// them, but it is itself.
    pub(super) fn below(&self, root: u64, enter: &dyn Fn(u64) -> bool) -> Vec<(u64, u64)> {
        let mut met = HashSet::from([root]);
        let mut found = Vec::new();
        let mut todo = vec![root];
        while let Some(parent) = todo.pop() {
            for (_, child) in self
                .names
                .range((parent, 0)..=(parent, u64::MAX))
                .map(|(key, _)| *key)
            {
                if !self.entries.contains_key(&child) || !met.insert(child) {
                    continue;
                }
                found.push((child, parent));
                if enter(child) {
                    todo.push(child);
                }
            }
        }
        found
    }

    /// The path of a directory inside its subvolume, without a leading slash.
    fn directory(&self, volume: &Volume, subvolume: u64, dir: u64) -> Option<Vec<u8>> {
        let entry = self.get(subvolume)?;
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let mut at = dir;
        while at != entry.item.root_dir {
            let mut up = None;
            let (from, to) = (
                Key::new(at, types::INODE_REF, 0),
                Key::new(at, types::INODE_REF, u64::MAX),
            );
            volume
                .scan(&entry.root, from, to, &mut |key, item| {
                    if let Some(Ok(name)) = inode_refs(key, item).next() {
                        up = Some((name.parent, name.name.to_vec()));
                    }
                    Ok(())
                })
                .ok()?;
            let (parent, name) = up?;
            parts.push(name);
            at = parent;
            if parts.len() > MAX_DEPTH {
                return None;
            }
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    /// The path of subvolume `id` from the top, without a leading slash.
    fn path(&self, volume: &Volume, id: u64, parents: &HashMap<u64, u64>) -> Option<Vec<u8>> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let mut at = id;
        while at != ids::FS_TREE {
            let parent = *parents.get(&at)?;
            let (dir, name) = self.names.get(&(parent, at))?;
            parts.push(name.clone());
            let dir = self.directory(volume, parent, *dir)?;
            if !dir.is_empty() {
                parts.push(dir);
            }
            at = parent;
            if parts.len() > MAX_DEPTH {
                return None;
            }
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    fn parents(&self) -> HashMap<u64, u64> {
        self.below(ids::FS_TREE, &|_| true).into_iter().collect()
    }

    /// All subvolumes, by number.
    pub(super) fn all(&self, volume: &Volume) -> Vec<crate::fs::Subvolume> {
        let parents = self.parents();
        let default = self.default_root().ok();
        self.entries
            .iter()
            .map(|(id, entry)| crate::fs::Subvolume {
                id: *id,
                path: self.path(volume, *id, &parents).unwrap_or_default(),
                default: default == Some(*id),
                snapshot_of: self.snapshot_of(*id),
                read_only: entry.item.flags & READ_ONLY != 0,
            })
            .collect()
    }

    /// The subvolume at `path` from the top.
    pub(super) fn find(&self, volume: &Volume, path: &GuestPath) -> Option<u64> {
        let parents = self.parents();
        self.entries
            .keys()
            .find(|id| self.path(volume, **id, &parents).as_deref() == Some(path.relative()))
            .copied()
    }
}
