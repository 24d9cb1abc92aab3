//! btrfs: kernel Documentation/filesystems/btrfs and include/uapi/linux/btrfs_tree.h. `docs/filesystems.md` says what is
//! read and what is not.
//!
//! ```text
//! devices -> superblocks -> chunks -> Volume (nodes, checked) -> Trees (subvolumes, with the log over them)
//!                                                                      -> walk: the tree of one view
//!                                                                      -> file: contents
//! ```
//!
//! Every checksum is checked, and where there is another copy it is read. What is damaged is named and never used.
#![deny(clippy::indexing_slicing)]

mod checksum;
mod chunks;
mod compress;
mod file;
mod items;
mod log;
mod node;
mod subvolumes;
mod superblock;
mod tree;
mod walk;

use super::{Filesystem, Info, Listing, Selector, Subvolume, View};
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::read_at::ReadAt;
use crate::tree::Problem;
use chunks::{Chunks, Device};
use items::{Key, ids, types};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use subvolumes::Subvolumes;
use superblock::Superblock;
use tree::{Damage, Root};

/// Bytes of nodes that are kept.
const NODES: usize = 32 << 20;

/// Bits of an inode number in an id; above them stands the number of a nested subvolume.
const INODE_BITS: u32 = 40;

/// True if `volume` has the magic number of btrfs.
pub(super) fn probe(volume: &dyn ReadAt) -> bool {
    Superblock::probe(volume)
}

/// True if a copy of the superblock is valid, whatever stands in the place of the primary one.
pub(super) fn probe_copies(volume: &dyn ReadAt) -> bool {
    Superblock::probe_copies(volume)
}

/// The UUID that all devices of one filesystem share, and true for a seed, which other filesystems may need too.
pub(super) fn set(volume: &dyn ReadAt) -> Option<([u8; 16], bool)> {
    let (sb, _) = Superblock::read(volume).ok()?;
    Some((sb.fsid, sb.is_seed()))
}

/// Opens a filesystem of one device.
///
/// # Errors
/// As [`open_several`].
pub(super) fn open(volume: Arc<dyn ReadAt>) -> Result<Box<dyn Filesystem>> {
    open_several(&[volume])
}

/// Opens the filesystem on the first of `volumes`; the others may be further devices of it, and its seeds.
///
/// # Errors
/// [`Error::Unsupported`] with the name of a feature or of a device that is missing, [`Error::Corrupt`] if its trees
/// cannot be read.
pub(super) fn open_several(volumes: &[Arc<dyn ReadAt>]) -> Result<Box<dyn Filesystem>> {
    let mut notes = Vec::new();
    let (sb, devices, fsids) = devices(volumes, &mut notes)?;
    let mut damage = Vec::new();
    let volume = Arc::new(Volume::new(sb, devices, fsids, &mut notes, &mut damage)?);
    let mut trees = Trees {
        subvolumes: Subvolumes::read(&volume, &mut damage)?,
        csums: Csums::read(&volume),
        volume,
    };
    let mut problems: Vec<Problem> = damage.iter().map(|d| problem(d.error.to_string())).collect();
    if trees.volume.sb.log_root != 0 {
        let replay = log::replay(&mut trees);
        notes.extend(replay.notes);
        problems.extend(replay.problems.into_iter().map(problem));
    }
    notes.splice(0..0, trees.volume.sb.notes());
    let size = trees.volume.sb.total_bytes;
    let lies: u64 = trees
        .volume
        .chunks
        .devices
        .iter()
        .fold(0, |n, d| n.saturating_add(d.volume.len()));
    if trees.volume.chunks.missing().is_empty() && size > lies {
        problems.push(problem(format!(
            "the filesystem has {size} bytes, its devices only {lies}"
        )));
    }
    let root = trees.subvolumes.default_root()?;
    Btrfs::view(Arc::new(trees), root, &View::default(), notes, problems).map(|fs| Box::new(fs) as _)
}

fn problem(what: String) -> Problem {
    Problem {
        path: GuestPath::root(),
        what,
    }
}

/// The devices of the filesystem on the first volume, and the UUIDs its nodes may have.
type Devices = (Superblock, Vec<Device>, Vec<[u8; 16]>);

fn devices(volumes: &[Arc<dyn ReadAt>], notes: &mut Vec<String>) -> Result<Devices> {
    let mut all = Vec::new();
    let mut first: Option<Superblock> = None;
    for volume in volumes {
        let (sb, said) = match Superblock::read(&**volume) {
            Ok(found) => found,
            Err(e) if first.is_none() => return Err(e),
            Err(e) => {
                notes.push(format!("a device cannot be used: {e}"));
                continue;
            }
        };
        notes.extend(said);
        first.get_or_insert_with(|| sb.clone());
        all.push((sb, volume));
    }
    let first = first.ok_or_else(|| Error::unsupported("no device of a btrfs filesystem"))?;
    let mut fsids = vec![first.metadata_uuid];
    let mut devices: Vec<Device> = Vec::new();
    let mut newest = first.clone();
    for (sb, volume) in all {
        let member = sb.fsid == first.fsid;
        if !member && !sb.is_seed() {
            continue;
        }
        if member && sb.generation > newest.generation {
            newest = sb.clone();
        }
        if !fsids.contains(&sb.metadata_uuid) {
            fsids.push(sb.metadata_uuid);
        }
        let device = Device {
            uuid: sb.device_uuid,
            devid: sb.devid,
            generation: if member { sb.generation } else { newest.generation },
            volume: Arc::clone(volume),
        };
        match devices.iter_mut().find(|d| d.uuid == sb.device_uuid) {
            None => devices.push(device),
            Some(twice) => {
                let (old, new) = (
                    twice.generation.min(device.generation),
                    twice.generation.max(device.generation),
                );
                notes.push(format!(
                    "device {} is there twice: the one of generation {new} is read, not the one of generation {old}",
                    sb.devid
                ));
                if device.generation > twice.generation {
                    *twice = device;
                }
            }
        }
    }
    for device in &devices {
        if device.generation < newest.generation {
            notes.push(format!(
                "device {} was not there at the latest changes: it is of generation {}, the filesystem of {}",
                device.devid, device.generation, newest.generation
            ));
        }
    }
    // Of two copies the newer is read first.
    devices.sort_by_key(|d| (std::cmp::Reverse(d.generation), d.devid));
    Ok((newest, devices, fsids))
}

/// The devices as one range of logical addresses, and its nodes.
struct Volume {
    sb: Superblock,
    chunks: Chunks,
    /// UUIDs that nodes may have: the filesystem's, and those of its seeds.
    fsids: Vec<[u8; 16]>,
    nodes: Cache,
}

impl Volume {
    fn new(
        sb: Superblock,
        devices: Vec<Device>,
        fsids: Vec<[u8; 16]>,
        notes: &mut Vec<String>,
        damage: &mut Vec<Damage>,
    ) -> Result<Self> {
        let mut volume = Self {
            chunks: Chunks::new(&sb, devices)?,
            sb,
            fsids,
            nodes: Cache::new(NODES),
        };
        let sb = &volume.sb;
        let root = Root {
            tree: ids::CHUNK_TREE,
            bytenr: sb.chunk_root,
            level: sb.chunk_root_level,
            generation: sb.chunk_root_generation,
            overlay: None,
        };
        let mut found = Vec::new();
        let mut damaged = Vec::new();
        let mut devids = Vec::new();
        let read = volume.scan_past(&root, Key::MIN, Key::MAX, Some(&mut damaged), &mut |key, item| {
            match key.kind {
                types::CHUNK_ITEM => found.push((key.offset, item.to_vec())),
                types::DEV_ITEM => devids.push((
                    key.offset,
                    crate::bytes::array::<16>(item, 66).unwrap_or_default(),
                    crate::bytes::array::<16>(item, 82).unwrap_or_default(),
                )),
                _ => {}
            }
            Ok(())
        });
        let seed = |uuid: [u8; 16]| {
            let fsid = devids
                .iter()
                .find(|(_, u, _)| *u == uuid)
                .map(|(_, _, fsid)| *fsid)
                .filter(|fsid| *fsid != volume.sb.fsid && *fsid != volume.sb.metadata_uuid);
            fsid.map(crate::bytes::uuid)
        };
        let named = |error: Error, uuid: [u8; 16]| match seed(uuid) {
            Some(fsid) => Error::unsupported(format!("{error}: it is the seed device of filesystem {fsid}")),
            None => error,
        };
        // The chunk tree itself may lie on a device that is missing.
        if let Some((devid, uuid)) = volume.chunks.needed() {
            return Err(lacking(named(chunks::missing(devid, uuid), uuid)));
        }
        read?;
        if found.is_empty()
            && let Some(first) = damaged.pop()
        {
            return Err(first.error);
        }
        let mut chunks = std::mem::take(&mut volume.chunks);
        for (start, item) in found {
            // A chunk that cannot be leaves its addresses without one.
            if let Err(error) = chunks.add(start, &item) {
                let key = Key::new(ids::FIRST_CHUNK_TREE, types::CHUNK_ITEM, start);
                damaged.push(Damage {
                    from: key,
                    to: key,
                    error,
                });
            }
        }
        damage.append(&mut damaged);
        if let Some((devid, uuid)) = chunks.needed() {
            return Err(lacking(named(chunks::missing(devid, uuid), uuid)));
        }
        for (devid, uuid) in chunks.missing() {
            let error = named(chunks::missing(devid, uuid), uuid);
            notes.push(format!("{error}; its copies on other devices are read"));
        }
        volume.chunks = chunks;
        Ok(volume)
    }
}

/// An error about a missing device, with advice.
fn lacking(error: Error) -> Error {
    error.hint("give the files of all the machine's disks")
}

/// The checksums of data: the tree, and those that only a log has.
struct Csums {
    root: Option<Root>,
    /// By the logical address of their first sector.
    log: BTreeMap<u64, Arc<[u8]>>,
}

impl Csums {
    fn read(volume: &Volume) -> Self {
        let root = subvolumes::tree_root(volume, ids::CSUM_TREE).ok().flatten();
        Self {
            root,
            log: BTreeMap::new(),
        }
    }
}

/// What is above the bytes.
struct Trees {
    volume: Arc<Volume>,
    subvolumes: Subvolumes,
    csums: Csums,
}

/// A file or directory: the subvolume's number and the inode number in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    subvolume: u64,
    ino: u64,
}

/// An open btrfs, seen from one of its subvolumes.
struct Btrfs {
    trees: Arc<Trees>,
    root: u64,
    snapshots: bool,
    without: HashSet<u64>,
    /// What is worth telling of the filesystem, whichever subvolume is seen.
    notes: Vec<String>,
    problems: Vec<Problem>,
    /// How many snapshots stay empty directories.
    left_out: usize,
}

impl Btrfs {
    /// The filesystem seen from subvolume `root`. `notes` and `problems` are those of the filesystem itself.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is no such subvolume.
    fn view(
        trees: Arc<Trees>,
        root: u64,
        view: &View,
        notes: Vec<String>,
        problems: Vec<Problem>,
    ) -> Result<Self> {
        if trees.subvolumes.get(root).is_none() {
            return Err(Error::corrupt(format!("there is no subvolume {root}"), 0));
        }
        let mut fs = Self {
            trees,
            root,
            snapshots: view.snapshots,
            without: view.without.iter().copied().collect(),
            notes,
            problems,
            left_out: 0,
        };
        fs.left_out = fs
            .trees
            .subvolumes
            .below(root, &|child| !fs.is_left_out(child))
            .iter()
            .filter(|(id, _)| !fs.without.contains(id) && fs.is_left_out(*id))
            .count();
        Ok(fs)
    }

    /// True if the subvolume stays an empty directory where it is nested.
    fn is_left_out(&self, id: u64) -> bool {
        self.without.contains(&id) || !self.snapshots && self.trees.subvolumes.snapshot_of(id).is_some()
    }

    /// The id in a tree of what is at `place`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if its numbers are too large to be told apart.
    fn id(&self, place: Place) -> Result<u64> {
        let fits = place.ino >> INODE_BITS == 0 && place.subvolume >> (64 - INODE_BITS) == 0;
        match place.subvolume {
            _ if !fits => Err(Error::unsupported(format!(
                "inode {} of subvolume {}: so large a number",
                place.ino, place.subvolume
            ))),
            subvolume if subvolume == self.root => Ok(place.ino),
            subvolume => Ok(subvolume << INODE_BITS | place.ino),
        }
    }

    /// What [`Self::id`] gave `id`.
    fn place(&self, id: u64) -> Place {
        let subvolume = match id >> INODE_BITS {
            0 => self.root,
            subvolume => subvolume,
        };
        Place {
            subvolume,
            ino: id & ((1 << INODE_BITS) - 1),
        }
    }
}

impl Filesystem for Btrfs {
    fn info(&self) -> Info {
        let sb = &self.trees.volume.sb;
        let mut notes = self.notes.clone();
        match self.left_out {
            0 => {}
            1 => notes.push("1 snapshot is left out (an empty directory; --snapshots reads it)".to_owned()),
            n => notes.push(format!(
                "{n} snapshots are left out (empty directories; --snapshots reads them)"
            )),
        }
        Info {
            kind: "btrfs".to_owned(),
            uuid: Some(sb.uuid_text()),
            label: sb.label(),
            size: sb.total_bytes,
            used: Some(sb.bytes_used),
            notes,
        }
    }

    fn list(&self) -> Result<Listing> {
        let mut listing = walk::list(self)?;
        listing.problems.splice(0..0, self.problems.iter().cloned());
        Ok(listing)
    }

    fn open(&self, id: u64) -> Result<Arc<dyn ReadAt>> {
        let place = self.place(id);
        file::open(&self.trees, place)
    }

    fn subvolumes(&self) -> Vec<Subvolume> {
        self.trees.subvolumes.all(&self.trees.volume)
    }

    fn view(&self, view: &View) -> Result<Box<dyn Filesystem>> {
        let trees = &self.trees;
        let unknown = |which: &dyn std::fmt::Display| Error::usage(format!("there is no subvolume {which}"));
        let root = match &view.subvolume {
            None => trees.subvolumes.default_root()?,
            Some(Selector::Id(0)) => ids::FS_TREE,
            Some(Selector::Id(id)) => Some(*id)
                .filter(|id| trees.subvolumes.get(*id).is_some())
                .ok_or_else(|| unknown(id))?,
            Some(Selector::Path(path)) => trees
                .subvolumes
                .find(&trees.volume, path)
                .ok_or_else(|| unknown(path))?,
        };
        let (notes, problems) = (self.notes.clone(), self.problems.clone());
        let view = Self::view(Arc::clone(trees), root, view, notes, problems)?;
        Ok(Box::new(view))
    }

    fn current(&self) -> Option<u64> {
        Some(self.root)
    }

    fn find(&self, path: &GuestPath) -> Result<Option<crate::tree::Node>> {
        walk::find(self, path)
    }
}
