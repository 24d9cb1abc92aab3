//! XFS, versions 4 and 5: "XFS Algorithms & Data Structures", 3rd edition. `docs/filesystems.md` says what is read and
//! what is not.
//!
//! ```text
//! volume -> log (committed transactions laid over it) -> Volume -> walk: the tree
//!                                                               -> file: contents
//! ```
//!
//! Every checksum is checked. What is damaged is named and never used.
#![deny(clippy::indexing_slicing)]

mod attr;
mod checksum;
mod dir;
mod extents;
mod file;
mod inode;
mod log;
mod superblock;
mod symlink;
mod walk;

use super::{Filesystem, Info, Listing};
use crate::error::Result;
use crate::path::GuestPath;
use crate::read_at::ReadAt;
use crate::tree::Problem;
use extents::Edit;
use std::collections::HashMap;
use std::sync::Arc;
use superblock::{Superblock, incompat};

/// True if `volume` has the magic number of XFS.
pub(super) fn probe(volume: &dyn ReadAt) -> bool {
    Superblock::probe(volume)
}

/// Opens the filesystem. A log that needs recovery is replayed in memory.
///
/// # Errors
/// [`crate::error::Error::Unsupported`] with a feature's name, [`crate::error::Error::Corrupt`] if the superblock is
/// damaged.
pub(super) fn open(disk: Arc<dyn ReadAt>) -> Result<Box<dyn Filesystem>> {
    let mut sb = Superblock::read(&*disk)?;
    let mut volume = Volume {
        disk: Arc::clone(&disk),
        sb: sb.clone(),
        edits: HashMap::new(),
        inodes: inode::InodeCache::default(),
    };
    let mut notes = Vec::new();
    let mut problems = Vec::new();
    if let Some(recovery) = log::recover(&disk, &sb) {
        notes.extend(recovery.notes);
        problems.extend(recovery.problems);
        volume.disk = recovery.disk;
        volume.edits = recovery.edits;
        sb = Superblock::read(&*volume.disk)?;
        volume.sb = sb;
    }
    let sb = &volume.sb;
    notes.splice(0..0, sb.notes());
    if sb.has(incompat::NEEDSREPAIR) {
        problems.push("the filesystem says of itself that it needs xfs_repair (needsrepair)".to_owned());
    }
    if sb.size() > volume.disk.len() {
        problems.push(format!(
            "the filesystem has {} bytes, its volume only {}",
            sb.size(),
            volume.disk.len()
        ));
    }
    Ok(Box::new(Xfs {
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
    /// The volume, with what the log holds over it.
    disk: Arc<dyn ReadAt>,
    sb: Superblock,
    /// Changes of files that the log promises, by inode.
    edits: HashMap<u64, Vec<Edit>>,
    inodes: inode::InodeCache,
}

/// An open XFS.
struct Xfs {
    volume: Arc<Volume>,
    notes: Vec<String>,
    problems: Vec<Problem>,
}

impl Filesystem for Xfs {
    fn info(&self) -> Info {
        let sb = &self.volume.sb;
        Info {
            kind: "xfs".to_owned(),
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
        self.volume.open(ino)
    }
}
