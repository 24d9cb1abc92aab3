//! ext2, ext3 and ext4: kernel Documentation/filesystems/ext4. `docs/filesystems.md` says what is read and what is not.
//!
//! ```text
//! volume -> journal (committed blocks laid over it, fast commits) -> Volume -> walk: the tree
//!                                                                          -> file: contents
//! ```
//!
//! Every checksum is checked. What is damaged is named and never used.
#![deny(clippy::indexing_slicing)]

mod checksum;
mod dir;
mod extents;
mod fast_commit;
mod file;
mod groups;
mod inode;
mod journal;
mod superblock;
mod walk;
mod xattr;

use super::{Filesystem, Info, Listing};
use crate::error::{Error, Result};
use crate::path::GuestPath;
use crate::read_at::{ReadAt, read_vec};
use crate::tree::Problem;
use std::sync::Arc;
use superblock::{Superblock, incompat};

/// True if `volume` has the magic number of ext2, ext3 and ext4.
pub(super) fn probe(volume: &dyn ReadAt) -> bool {
    Superblock::probe(volume)
}

/// Opens the filesystem. A journal that needs recovery is replayed in memory.
///
/// # Errors
/// [`Error::Unsupported`] with a feature's name, [`Error::Corrupt`] if superblock or descriptors are damaged.
pub(super) fn open(disk: Arc<dyn ReadAt>) -> Result<Box<dyn Filesystem>> {
    let sb = Superblock::read(&*disk, true)?;
    let mut notes = Vec::new();
    let mut problems = Vec::new();
    let volume = if sb.has(incompat::RECOVER) {
        let recovery = journal::recover(&disk, &sb)?;
        notes.extend(recovery.notes);
        problems.extend(recovery.problems);
        recovery.volume
    } else {
        Volume::new(disk, sb)?
    };
    notes.splice(0..0, volume.sb.notes());
    problems.extend(volume.groups.problems.iter().cloned());
    if volume.sb.size() > volume.disk.len() {
        problems.push(format!(
            "the filesystem has {} bytes, its volume only {}",
            volume.sb.size(),
            volume.disk.len()
        ));
    }
    Ok(Box::new(Ext4 {
        volume: Arc::new(volume),
        notes,
        problems: problems
            .into_iter()
            .map(|what| Problem {
                path: GuestPath::root(),
                what,
            })
            .collect(),
    }))
}

/// The bytes and what every part of the reader needs of them.
struct Volume {
    /// The volume, with the journal's blocks over it.
    disk: Arc<dyn ReadAt>,
    sb: Superblock,
    groups: groups::Groups,
    /// What fast commits changed.
    fast: fast_commit::FastCommits,
    tables: inode::TableCache,
    xattr_blocks: xattr::Cache,
}

impl Volume {
    fn new(disk: Arc<dyn ReadAt>, sb: Superblock) -> Result<Self> {
        let groups = groups::Groups::read(&*disk, &sb)?;
        Ok(Self {
            disk,
            sb,
            groups,
            fast: fast_commit::FastCommits::default(),
            tables: inode::TableCache::default(),
            xattr_blocks: xattr::Cache::default(),
        })
    }

    /// The block `number`.
    fn block(&self, number: u64) -> Result<Vec<u8>> {
        self.blocks(number, 1)
    }

    /// `count` blocks from `number`; the caller bounds `count`.
    fn blocks(&self, number: u64, count: u64) -> Result<Vec<u8>> {
        let size = u64::from(self.sb.block_size);
        let bytes = |blocks: u64| {
            blocks
                .checked_mul(size)
                .ok_or_else(|| Error::corrupt(format!("block {number} does not exist"), 0))
        };
        let len = usize::try_from(bytes(count)?).unwrap_or(usize::MAX);
        read_vec(&*self.disk, bytes(number)?, len)
    }
}

/// An open ext2, ext3 or ext4.
struct Ext4 {
    volume: Arc<Volume>,
    notes: Vec<String>,
    problems: Vec<Problem>,
}

impl Filesystem for Ext4 {
    fn info(&self) -> Info {
        let sb = &self.volume.sb;
        Info {
            kind: sb.kind().to_owned(),
            uuid: sb.uuid_text(),
            label: sb.label(),
            size: sb.size(),
            used: Some(sb.used()),
            notes: self.notes.clone(),
        }
    }

    fn list(&self) -> Result<Listing> {
        let mut listing = walk::list(&self.volume)?;
        listing.problems.splice(0..0, self.problems.iter().cloned());
        Ok(listing)
    }

    fn open(&self, ino: u64) -> Result<Arc<dyn ReadAt>> {
        let ino = u32::try_from(ino).map_err(|_| Error::corrupt(format!("there is no inode {ino}"), 0))?;
        self.volume.open(ino)
    }
}
